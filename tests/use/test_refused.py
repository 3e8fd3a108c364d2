"""What people get wrong: an input or an argument, and the one line that comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import netcdf_file

import reconstruct as script
from sparsefield import load
from sparsefield.errors import UserError

ROWS = np.round(np.random.default_rng(0).uniform(size=(12, 2)) * (40, 20) + (100, 30), 3)
CSV = "lon,lat,sst,err,day\n" + "".join(
    f"{x},{y},{10 + x / 50:.3f},0.1,2024-01-{k + 1:02d}\n" for k, (x, y) in enumerate(ROWS))
TABLES = {
    "a": CSV, "words": CSV.replace("10.", "ten.", 1).replace(",12.", ",warm", 1),
    "nan": "lon,lat,sst\n1,2,nan\n2,3,\n3,4,NA\n",
    "swapped": "lat,lon,sst,err,day\n" + CSV.split("\n", 1)[1],
    "named": "lon,lat,v\n30,100,1\n35,110,2\n40,120,3\n",
    "huge": "x,y,v\n" + "".join(f"{k},{k % 3},{10 + k}e300\n" for k in range(9)),
    "minus": CSV.replace(",0.1,", ",-0.1,", 1), "zero": "x,y,v\n0,0,0\n1,1,2\n0,1,4\n1,0,3\n",
    "far": "x,y,v\n500000,10,1\n600000,20,2\n700000,30,3\n",
}


def netcdf(path: str, *variables: tuple[str, tuple[str, ...]], **axes) -> None:
    """Axes of numbers, and variables on them."""
    with netcdf_file(path, "w") as file:
        for name, numbers in axes.items():
            file.createDimension(name, len(numbers))
            file.createVariable(name, "d", (name,))[:] = numbers
        for name, dims in variables:
            shape = [len(axes[dim]) for dim in dims]
            file.createVariable(name, "f", dims)[:] = np.arange(np.prod(shape)).reshape(shape)


@pytest.fixture
def inputs(command, tmp_path):
    """The command in a folder with all that is refused below."""
    for name, text in TABLES.items():
        (tmp_path / f"{name}.csv").write_text(text)
    twelve = dict(lat=np.arange(12.0), lon=np.arange(12.0))
    netcdf("exchanged.nc", lat=[100, 120, 140], lon=[0, 1, 2])
    netcdf("field.nc", ("sst", ("time", "lat", "lon")), time=range(4), **twelve)
    netcdf("like.nc", x=[1, 2], y=[1, 2])
    netcdf("folded.nc", x=[1, 3, 2], y=[1, 2])
    netcdf("bare.nc", x=[0, 1])
    content = Path("field.nc").read_bytes()
    Path("cut.nc").write_bytes(content[: len(content) // 2])
    Path("five.nc").write_bytes(b"CDF\x05" + b"\xff" * 60)
    Path("renamed.nc").write_text(CSV)
    Path("broken.npz").write_bytes(b"PK\x03\x04 and no more")
    Image.new("RGB", (8, 8), "red").save("red.png")
    Image.new("L", (4, 4), 255).save("small.png")
    for name, brightness in (("black", 0), ("white", 255)):
        Image.new("L", (8, 8), brightness).save(f"{name}.png")
    return command


@pytest.mark.parametrize("arguments, words", [
    ("a.csv --value temp", "--value temp is none of them; give a name"),
    ("minus.csv --value sst --noise_sd err", "the noise's sd is -0.1 in places"),
    ("a.csv --value sst --noise_sd -1", "0 or more"),
    ("a.csv --value sst --above", "--above: give one value or more, or leave it out"),
    ("words.csv --value sst", "is no number; mend it"),
    ("a.csv --value day", "'2024-01-01' in column 'day', measurement 1, is no number"),
    ("nan.csv", "holds no measurement"),
    ("swapped.csv --value sst --lonlat", "are longitude and latitude exchanged"),
    ("far.csv --lonlat", "are these metres"),
    ("named.csv", "a latitude of 120, and no longitude beyond 40: they are exchanged; give --x"),
    ("a.csv --value sst --lonlat --extent 100 140 30 100",
     "--extent 100 140 30 100: latitudes from 30 to 100"),
    ("a.csv --value sst --extent -inf inf 30 60", "give x0 < x1"),
    ("a.csv --value sst --extent -1e308 1e308 0 1", "give x0 < x1"),
    ("huge.csv", "too large; do they mean: not measured"),
    ("zero.csv --transform log", "above 0 have a logarithm; give sqrt"),
    ("zero.csv --value_range 3 1", "low high"),
    ("zero.csv --checkpoint none.pth", "does not exist"),
    ("zero.csv --observe random:0.2", "every point is known"),
    ("nowhere.csv", "does not exist"), (".", "is a folder"), ("broken.npz", "no readable .npz"),
    ("field.nc", "no list of stations"), ("cut.nc", "cut off"), ("five.nc", "h5netcdf"),
    ("renamed.nc", "no NetCDF file, whatever its name says"),
    ("zero.csv --resolution 0", "1 to 1024"), ("zero.csv --resolution big", "ROWSxCOLUMNS"),
    ("zero.csv --resolution " + 5000 * "9", "ROWSxCOLUMNS"),
    ("zero.csv --reach 0", "above 0"), ("zero.csv --out zero.csv", "--out zero.csv"),
    ("a.csv --value sst --reach 1e-6", "no cell is as near to a measurement"),
    ("a.csv --value sst --lonlat --grid exchanged.nc", "--grid exchanged.nc: latitudes from 100"),
    ("zero.csv --grid like.nc --resolution 8", "sets resolution and extent"),
    ("zero.csv --grid a.csv", "no NetCDF file"), ("zero.csv --grid nowhere.nc", "no such file"),
    ("zero.csv --grid cut.nc", "cut off"), ("zero.csv --grid bare.nc", "which is the y axis"),
    ("zero.csv --grid folded.nc", "neither grows nor falls"),
    ("red.png --resolution 8", "nothing says which pixels are known"),
    ("red.png --mask small.png", "make them equal"),
    ("red.png --mask black.png", "no pixel is known"),
    ("red.png --mask white.png", "every pixel is known, so nothing is to be reconstructed"),
    ("red.png --mask black.png --observe random:0.2", "give one of them"),
    ("red.png --observe random:0.2 --extent 0 1 0 1", "has its pixels"),
    ("red.png --observe random:0.2 --x 1", "this is a picture"),
])
def test_the_command(inputs, arguments, words):
    code, _, err = inputs(*arguments.split())
    assert code == 2 and words in err and err.startswith("error: ") and err.count("\n") == 1
    assert not list(Path("out").glob("*"))


@pytest.mark.parametrize("arguments", ["--transform cube", "--holdout some"])
def test_what_the_parser_refuses(arguments):
    with pytest.raises(SystemExit) as stopped:
        script.main(["zero.csv", *arguments.split()])
    assert stopped.value.code == 2


PLACES = np.random.default_rng(0).uniform(size=(40, 2))
WAVE = np.sin(5 * PLACES[:, 0]) * np.cos(4 * PLACES[:, 1])


@pytest.mark.parametrize("settings, words", [
    (dict(value_range=(0, 1, 2)), "--value_range 0 1 2: give lo hi"),
    (dict(value_range=(0, np.inf)), "both finite"),
    (dict(value_range=(100, 101)), "far outside --value_range"),
    (dict(seed=-1), "seed=-1: give a whole number"), (dict(seed=2**70), "2^63"),
    (dict(resolution=0), "resolution 0: rows and columns are 1 to 1024"),
    (dict(resolution=8.5), "give a whole number"), (dict(resolution="big"), "give a whole number"),
    (dict(num_steps=0), "num_steps=0"), (dict(num_samples=1), "from 2 to 1,000"),
    (dict(num_samples=10**9), "from 2 to 1,000"), (dict(noise_sd=np.nan), "noise_sd=nan"),
    (dict(noise_sd=[0.1, 0.2]), "one for each of the 40 points"),
    (dict(aspect="wide"), "give equal, free or auto"), (dict(transform="cube"), "give log or sqrt"),
    (dict(transform="log"), "the lowest value is -0"), (dict(transform="sqrt"), "no root"),
    (dict(extent=(0, 1, 2)), "x0, x1, y0, y1"), (dict(extent=(0, np.inf, 0, 1)), "finite"),
    (dict(coords=2 * PLACES), "lie outside the unit square: give extent"),
    (dict(values=WAVE + 1j), "real numbers (complex128)"),
    (dict(values=np.array(["2024-01-01"] * 40, "datetime64[D]")), "real numbers"),
    (dict(values=[None] * 39 + ["x"]), "real numbers"),
    (dict(coords=PLACES.T), "one row for each point"),
    (dict(values=np.where(WAVE > 0.6, np.nan, WAVE)), "leave those points out"),
    (dict(values=np.where(WAVE > 0.6, -9999, WAVE)), "-9999 stands there"),
    (dict(values=np.ma.masked_all(40)), "holds no measurement"),
    (dict(values=np.stack([WAVE, WAVE], 1)), "the model was trained on 1"),
    (dict(lonlat=True), "kriging alone"),
])
def test_python(paths, settings, words):
    given = dict(coords=PLACES, values=WAVE, resolution=8, num_samples=2, num_steps=1) | settings
    with pytest.raises(UserError) as refused:
        load(paths["sea"]).reconstruct(**given)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_places_that_are_none_are_not_dropped():
    hidden = np.ma.masked_array(PLACES[:2], mask=[[True, True], [False, False]])
    for places, words, lonlat in ((hidden, "not masked", False), (PLACES.T, "give .N, 2.", False),
                                  (PLACES[:0], "N > 0", False),
                                  ([[0, np.nan]], "finite", False), ([[10, 95]], "latitude", True)):
        with pytest.raises(UserError, match=words):
            load("none").at(places, PLACES, WAVE, lonlat=lonlat)
