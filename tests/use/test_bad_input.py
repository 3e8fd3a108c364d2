"""What people get wrong with files of their own: an input, and the one line that comes of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import netcdf_file

import reconstruct as script
from sparsefield import cli

ROWS = np.round(np.random.default_rng(0).uniform(size=(12, 2)) * (40, 20) + (100, 30), 3)
CSV = "lon,lat,sst,err,day\n" + "".join(
    f"{x},{y},{10 + x / 50:.3f},0.1,2024-01-{k + 1:02d}\n" for k, (x, y) in enumerate(ROWS))


def netcdf(path, dims: dict[str, int], *variables: tuple[str, tuple[str, ...]]) -> None:
    with netcdf_file(path, "w") as file:
        for name, size in dims.items():
            file.createDimension(name, size)
        for name, axes in variables:
            shape = [dims[axis] for axis in axes]
            file.createVariable(name, "f", axes)[:] = np.arange(np.prod(shape)).reshape(shape)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "words.csv").write_text(CSV.replace("10.", "ten.", 1).replace(",12.", ",warm", 1))
    (tmp_path / "nan.csv").write_text("lon,lat,sst\n1,2,nan\n2,3,\n3,4,NA\n")
    (tmp_path / "swapped.csv").write_text("lat,lon,sst,err,day\n" + CSV.split("\n", 1)[1])
    (tmp_path / "named.csv").write_text("lon,lat,v\n30,100,1\n35,110,2\n40,120,3\n")
    (tmp_path / "huge.csv").write_text("x,y,v\n" + "".join(
        f"{k},{k % 3},{10 + k}e300\n" for k in range(9)))
    netcdf("exchanged.nc", {"lat": 3, "lon": 3}, ("lat", ("lat",)), ("lon", ("lon",)))
    with netcdf_file("exchanged.nc", "a") as file:
        file.variables["lat"][:] = [100, 120, 140]
    (tmp_path / "five.nc").write_bytes(b"CDF\x05" + b"\xff" * 60)
    (tmp_path / "minus.csv").write_text(CSV.replace(",0.1,", ",-0.1,", 1))
    (tmp_path / "zero.csv").write_text("x,y,v\n0,0,0\n1,1,2\n0,1,4\n1,0,3\n")
    netcdf("stations.nc", {"n": 12}, ("lon", ("n",)), ("lat", ("n",)), ("t", ("n",)),
           ("salt", ("n",)))
    netcdf("field.nc", {"time": 4, "lat": 12, "lon": 12}, ("sst", ("time", "lat", "lon")),
           ("ice", ("time", "lat", "lon")))
    netcdf("deep.nc", {"time": 4, "level": 2, "lat": 12, "lon": 12},
           ("sst", ("time", "level", "lat", "lon")))
    content = (tmp_path / "field.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(content[: len(content) // 2])
    (tmp_path / "renamed.nc").write_text(CSV)
    return tmp_path


RECONSTRUCT = {
    "a wrong column": ("a.csv --value temp", "--value temp is none of them; give a name"),
    "negative noise": ("minus.csv --value sst --noise_sd err", "the noise's sd is -0.1 in places"),
    "text in a column of numbers": ("words.csv --value sst", "is no number; mend it"),
    "dates": ("a.csv --value day", "'2024-01-01' in column 'day', measurement 1, is no number"),
    "all NaN": ("nan.csv", "holds no measurement"),
    "longitude and latitude exchanged": ("swapped.csv --value sst --lonlat",
                                         "are longitude and latitude exchanged"),
    "metres as degrees": ("far.csv --lonlat", "are these metres"),
    "exchanged by their names": ("named.csv", "a latitude of 120, and no longitude beyond 40: they "
                                              "are exchanged; give --x and --y"),
    "an extent beyond a pole": ("a.csv --value sst --lonlat --extent 100 140 30 100",
                                "--extent 100 140 30 100: latitudes from 30 to 100"),
    "an endless extent": ("a.csv --value sst --lonlat --extent -inf inf 30 60", "give x0 < x1"),
    "values beyond all numbers": ("huge.csv", "too large; do they mean: not measured"),
    "nothing within reach": ("a.csv --value sst --reach 1e-6",
                             "no cell is as near to a measurement"),
    "a NetCDF of fields": ("field.nc", "no list of stations"),
    "a NetCDF of stations, no value": ("stations.nc", "which is the value? give --value, one of t, "
                                                      "salt"),
    "a NetCDF that is cut off": ("cut.nc", "cut off"),
    "a table by the name of a NetCDF": ("renamed.nc", "no NetCDF file, whatever its name says"),
    "a grid that is cut off": ("a.csv --value sst --grid cut.nc", "cut off"),
    "a grid exchanged": ("a.csv --value sst --lonlat --grid exchanged.nc",
                         "--grid exchanged.nc: latitudes from 100 to 140"),
    "a NetCDF of a newer kind": ("five.nc", "h5netcdf"),
    "a grid without axes": ("a.csv --value sst --grid deep.nc", "which is the x axis of the grid"),
    "a logarithm of 0": ("zero.csv --transform log", "above 0 have a logarithm; give sqrt"),
    "an unknown transform": ("zero.csv --transform cube", None),
    "words for a share": ("zero.csv --holdout some", None),
}


@pytest.mark.parametrize("name", RECONSTRUCT)
def test_reconstruct(folder, capsys, name):
    (folder / "far.csv").write_text("x,y,v\n500000,10,1\n600000,20,2\n700000,30,3\n")
    arguments, words = RECONSTRUCT[name]
    given = [*arguments.split(), "--num_samples", "2", "--resolution", "4", "--out", "out"]
    if "--grid" in given:
        given[given.index("4")] = "auto"
    if words is None:  # the parser of the command line says it
        with pytest.raises(SystemExit) as stopped:
            script.main(given)
        assert stopped.value.code == 2
        return
    assert cli.run(lambda: script.main(given)) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (folder / "out").exists()
