"""Covariates: from tables, grids and pictures, used as the likelihood says, refused in one line."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray
from PIL import Image

from sparsefield import load
from sparsefield.errors import UserError

RNG = np.random.default_rng(5)
PLACES = RNG.uniform(size=(70, 2))


def height(p: np.ndarray) -> np.ndarray:
    """In km: rough, so that it cannot be told from near-by places."""
    return 1 + np.sin(37 * p[..., 0]) * np.cos(29 * p[..., 1])


def temperature(p: np.ndarray) -> np.ndarray:
    """In degC: 6 colder for each km, and a smooth rest."""
    return 20 - 6 * height(p) + np.sin(3 * p[..., 0]) + p[..., 1]


@pytest.fixture
def stations(tmp_path):
    rows = np.column_stack([PLACES, height(PLACES), temperature(PLACES)])
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="x,y,elev,t", comments="")


def grid_file(path, size=20, low=0.0, high=1.0, name="elev", gap=None, steps=()):
    at = low + (np.arange(size) + 0.5) / size * (high - low)
    values = height(np.stack(np.meshgrid(at, at), axis=-1))
    if gap is not None:
        values[0, :4] = gap
    values = np.broadcast_to(values, (*steps, size, size))
    xarray.DataArray(values, dims=(*["time"] * len(steps), "y", "x"), name=name,
                     coords={"x": at, "y": at}, attrs={"units": "km"}).to_netcdf(
                         path, engine="scipy")
    return path


ASK = "a.csv", "--value", "t", "--covariates", "elev"


def test_a_table_follows_height_on_the_grid_of_a_file(command, stations, tmp_path):
    code, out, _ = command(*ASK, "--grid", grid_file(tmp_path / "g.nc"), "--units", "degC")
    assert code == 0 and "x = x, y = y, value = t, covariates = elev" in out
    assert "covariate elev: drift -6." in out or "covariate elev: drift -5.9" in out
    assert "degC per km" in out
    with np.load("out/field.npz") as field:
        error = field["mean"][..., 0] - temperature(field["coords"])
        inside = np.abs(error) < 1.645 * field["sd"][..., 0]
    assert np.sqrt((error**2).mean()) < 0.15  # the rest of the field varies by 0.6, height by 3
    assert inside.mean() > 0.75


def test_a_covariate_is_interpolated_where_another_grid_is_asked_for(command, stations, tmp_path):
    grid = grid_file(tmp_path / "g.nc", size=160)
    code, out, _ = command(*ASK, "--grid", grid, "--extent", 0.2, 0.6, 0.2, 0.6)
    assert code == 0 and "covariates elev are interpolated from the 160 x 160 points" in out
    with np.load("out/field.npz") as field:
        error = field["mean"][..., 0] - temperature(field["coords"])
    assert error.shape == (64, 64) and np.sqrt((error**2).mean()) < 0.15


def test_hidden_measurements_show_what_covariates_are_worth_without_a_grid(command, stations):
    code, out, _ = command(*ASK, "--holdout", 0.2)
    rows = {line[:30].strip(): float(line[30:].split()[-4]) for line in out.splitlines()
            if line.startswith(("this", "fitted kriging  ")) and " CRPS " not in line}
    assert code == 0 and rows["this (kriging, covariates)"] < 0.3 * rows["fitted kriging"]


def test_cells_without_a_covariate_stay_empty_and_those_beyond_are_counted(
        command, stations, tmp_path):
    code, out, _ = command(*ASK, "--grid", grid_file(tmp_path / "g.nc", gap=np.nan))
    assert code == 0 and "4 of 400 places lack a covariate: left empty" in out
    with np.load("out/field.npz") as field:
        assert np.isnan(field["mean"]).sum() == 4
    _, out, _ = command(*ASK, "--grid", grid_file(tmp_path / "c.nc", gap=-9999), "--missing", -9999)
    assert "4 of 400 places lack a covariate: left empty" in out
    rows = np.loadtxt("a.csv", delimiter=",", skiprows=1)
    np.savetxt("a.csv", rows[rows[:, 2] < 1.5], delimiter=",", header="x,y,elev,t", comments="")
    _, out, _ = command(*ASK, "--grid", tmp_path / "g.nc")
    assert "places elev lies outside the" in out


@pytest.mark.parametrize("words, wrong", [
    (("--value", "t", "--covariates", "elev"), "--grid FILE"),
    (("--value", "t", "--covariates", "slope"), "--covariates slope is none of them"),
    (("--value", "t", "--covariates", "t"), "each covariate must be columns of their own"),
    (("--value", "t", "--covariates", "code", "--grid", "g.nc"), "code: -9999 stands there 1 time"),
    (("--value", "t", "--covariates", "elev", "--grid", "code.nc"), "give --missing -9999"),
    (("--value", "t", "--covariates", "elev", "--grid", "other.nc"), "no variable 'elev'"),
    (("--value", "t", "--covariates", "elev", "--grid", "steps.nc"), "choose one step"),
    (("--value", "t", "--covariates", "elev", "--grid", "far.nc", "--extent", "0", "1", "0", "1"),
     "it covers x 5.1"),
    (("--value", "t", "--covariates", "word", "--grid", "g.nc"), "is no number"),
    (("--value", "t", "--covariates", "elev", "--grid", "g.nc", "--checkpoint", "bundled"),
     "for kriging alone"),
])
def test_what_cannot_be_used_is_refused_in_one_line(command, stations, tmp_path, words, wrong):
    table = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join(
        [table[0] + ",word,code", table[1] + ",clay,-9999",
         *(line + f",clay,{n}" for n, line in enumerate(table[2:]))]))
    grid_file(tmp_path / "code.nc", gap=-9999)
    grid_file(tmp_path / "g.nc")
    grid_file(tmp_path / "other.nc", name="slope")
    grid_file(tmp_path / "steps.nc", steps=(3,))
    grid_file(tmp_path / "far.nc", size=4, low=5, high=6)
    code, out, err = command("a.csv", *words)
    assert code == 2 and wrong in err and err.count("\n") == 1, (out, err)


def test_as_many_covariates_as_measurements_are_refused_and_gaps_are_left_out(caplog):
    few, model = PLACES[:6], load("none")
    with pytest.raises(UserError, match=r"for 6 measurement\(s\): give at most 3"):
        model.at(few, few, height(few), covariates=RNG.normal(size=(6, 4)),
                 covariates_at=RNG.normal(size=(6, 4)))
    gaps = height(PLACES)
    gaps[:5] = np.nan
    with caplog.at_level("INFO", logger="sparsefield"):
        model.at(PLACES, PLACES, temperature(PLACES), covariates=np.ma.masked_invalid(gaps),
                 covariates_at=height(PLACES), num_samples=2)
    assert "5 of 70 measurements have a missing or infinite number: left out" in caplog.text


def test_in_python_the_same_answer_on_a_grid_and_at_places():
    """Also where nothing is known of a cell, and with more than one covariate."""
    model, values = load("none"), temperature(PLACES)
    known = np.stack([height(PLACES), RNG.normal(size=70)], axis=-1)
    grid = np.stack(np.meshgrid((np.arange(9) + .5) / 9, (np.arange(9) + .5) / 9), axis=-1)
    there = np.stack([height(grid), RNG.normal(size=(9, 9))], axis=-1)
    there[3, 4] = np.nan
    field = model.reconstruct(PLACES, values, 9, covariates=known, covariates_at=there,
                              num_samples=2)
    assert np.isnan(field.mean[3, 4]) and np.isnan(field.mean).sum() == 1
    assert "covariate 1: drift -6" in field.covariates[0] or "-5.9" in field.covariates[0]
    some = model.at(grid[0], PLACES, values, covariates=known, covariates_at=there[0],
                    num_samples=2)
    np.testing.assert_allclose(some.mean, field.mean[0], atol=1e-3)
    with pytest.raises(UserError, match=r"give covariates_at \(9, 9, 2\), not \(9, 9\)"):
        model.reconstruct(PLACES, values, 9, covariates=known, covariates_at=there[..., 0])
    with pytest.raises(UserError, match="go together"):
        model.reconstruct(PLACES, values, 9, covariates_at=there)
    with pytest.raises(UserError, match=r"give covariates_at \(3, 9, 1\), not \(9, 3\)"):
        model.reconstruct(PLACES, values, (3, 9), covariates=height(PLACES),
                          covariates_at=there[:3, :, 0].T)
    with pytest.raises(UserError, match=r"covariates \(70, 0\): give \(M, p\)"):
        model.reconstruct(PLACES, values, 9, covariates=known[:, :0], covariates_at=there[..., :0])


@pytest.mark.parametrize("is_masked", [True, False])
def test_codes_and_masks_hide_covariates_at_measurements_and_elsewhere(is_masked):
    known, there = height(PLACES), height(PLACES[:5])
    known[:3] = there[1] = -9999
    if is_masked:
        known, there = np.ma.masked_less(known, 0), np.ma.masked_less(there, 0)
    field = load("none").at(PLACES[:5], PLACES, temperature(PLACES), covariates=known,
                            covariates_at=there, missing=None if is_masked else [-9999],
                            num_samples=2)
    assert np.isnan(field.mean[:, 0]).tolist() == [False, True, False, False, False]
    assert "drift -6." in field.covariates[0] or "drift -5.9" in field.covariates[0]


def test_longitudes_of_a_grid_count_around_the_globe(command):
    """A grid of 0 to 360 degrees, whose ends meet, beside measurements from -20 to 20."""
    lon, lat = np.arange(0, 360, 0.5), np.arange(30, 50.5, 0.5)

    def degrees(p):  # to what `height` takes
        return np.stack([((p[..., 0] + 180) % 360 - 160) / 40, (p[..., 1] - 30) / 20], axis=-1)

    xarray.DataArray(height(degrees(np.stack(np.meshgrid(lon, lat), axis=-1))), name="elev",
                     dims=("lat", "lon"), coords={"lat": lat, "lon": lon}).to_netcdf(
                         "globe.nc", engine="scipy")
    rows = np.column_stack([PLACES * (40, 20) + (-20, 30), height(PLACES), temperature(PLACES)])
    np.savetxt("a.csv", rows, delimiter=",", header="lon,lat,elev,t", comments="")
    code, out, _ = command("a.csv", "--value", "t", "--covariates", "elev", "--grid", "globe.nc",
                           "--lonlat", "--extent", -20, 20, 30, 50, "--resolution", "24x48")
    assert code == 0 and "lack a covariate" not in out
    with np.load("out/field.npz") as field:
        error = field["mean"][..., 0] - temperature(degrees(field["coords"]))
    assert np.sqrt((error**2).mean()) < 0.3


def test_units_that_differ_are_said(command, stations, tmp_path):
    rows = np.loadtxt("a.csv", delimiter=",", skiprows=1)
    xarray.Dataset({name: ("obs", column) for name, column in zip(
        ("x", "y", "elev", "t"), (rows * (1, 1, 1000, 1) + (0, 0, 5000, 0)).T, strict=True)}
        ).assign(elev=lambda d: d.elev.assign_attrs(units="m")).to_netcdf("a.nc", engine="scipy")
    _, out, _ = command("a.nc", *ASK[1:], "--grid", grid_file(tmp_path / "g.nc"))
    assert "elev is in m at the measurements and in km in" in out
    assert "at 400 of 400 places elev lies outside" in out and "the same units?" in out


def test_a_grid_may_have_one_row(command, stations):
    at = (np.arange(20) + 0.5) / 20
    xarray.DataArray(height(np.stack([at, 0 * at + 0.5], axis=-1))[None, None], name="elev",
                     dims=("time", "y", "x"), coords={"x": at, "y": [0.5]}
                     ).to_netcdf("g.nc", engine="scipy")
    for more in ((), ("--extent", 0.2, 0.6, 0.49, 0.51, "--resolution", "1x20")):
        code, out, err = command(*ASK, "--grid", "g.nc", *more)
        assert code == 0 and "-> 1x20" in out and "lack a covariate" not in out, err


def test_bands_of_a_geotiff_have_the_names_that_describe_them(command, stations):
    pytest.importorskip("rioxarray")
    at = (np.arange(20) + 0.5) / 20
    high = height(np.stack(np.meshgrid(at, at[::-1]), axis=-1))
    xarray.DataArray(np.stack([0 * high, high]), dims=("band", "y", "x"),
                     coords={"x": at, "y": at[::-1]}, attrs={"long_name": ("flat", "elev")}
                     ).rio.to_raster("g.tif")
    code, out, _ = command(*ASK, "--grid", "g.tif")
    assert code == 0 and ("elev: drift -6." in out or "elev: drift -5.9" in out)


@pytest.mark.parametrize("trend, used", [("quadratic", "a linear one"), ("linear", "none")])
def test_a_trend_that_the_places_do_not_determine_is_told(trend, used, caplog):
    """A quadratic of four places, or a plane through places on one line."""
    corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.8, 0.9], [0.4, 0.3]])
    places = corners if trend == "quadratic" else np.outer(np.arange(9.0), [1.0, 2.0])
    load("none").at(np.array([[0.5, 0.5]]), places, places.sum(axis=1), trend=trend, num_samples=2)
    assert f"do not determine a {trend} trend: {used} is used" in caplog.text


def test_a_trend_carries_on_beyond_the_measurements():
    """A slope seen on the left half alone is that of the right half, too."""
    left = PLACES * (0.5, 1)
    values = 5 * left[:, 0] + 0.1 * RNG.normal(size=70)
    far = np.array([[1.0, 0.5]])
    plain, linear = (load("none").at(far, left, values, trend=trend, noise_sd=0.1, num_samples=2)
                     for trend in (None, "linear"))
    assert abs(linear.mean.item() - 5) < 3 * linear.sd.item() < 3 * plain.sd.item()
    with pytest.raises(UserError, match="give linear or quadratic"):
        load("none").at(far, left, values, trend="cubic")


def test_colours_follow_the_luminance_of_a_picture(command, monkeypatch):
    y, x = np.mgrid[:32, :32]
    grey = 128 + 60 * np.sin(x) * np.cos(y / 2)
    picture = np.stack([grey, 0.6 * grey + x, 255 - grey], axis=-1).clip(0, 255)
    Image.fromarray(picture.astype(np.uint8)).save("photo.png")
    Image.fromarray(grey.astype(np.uint8)).save("guide.png")
    Image.fromarray(grey.astype(np.uint8)[:9]).save("small.png")
    np.save("gap.npy", np.where((x > 3) | (y > 3), grey, np.nan))
    errors = {}
    for name in ("", "luminance", "guide.png"):
        flags = ("--covariates", name) if name else ()
        code, out, _ = command("photo.png", "--observe", "random:0.05", "--checkpoint", "none",
                               *flags)
        assert code == 0 and (not name or f"covariate {name}: drift" in out)
        with np.load("out/field.npz") as field:
            errors[name] = np.sqrt(((field["mean"] - picture) ** 2).mean())
    assert errors["guide.png"] < 0.2 * errors[""] and errors["luminance"] < 0.6 * errors[""]
    code, _, err = command("photo.png", "--observe", "random:0.05", "--covariates", "small.png")
    assert code == 2 and "is 32 x 9 pixels, the picture 32 x 32" in err
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pixels that stay empty are no numbers
        code, out, _ = command("photo.png", "--observe", "random:0.2", "--covariates", "gap.npy")
    assert code == 0 and "16 of 1024 places lack a covariate" in out
    monkeypatch.setattr("sparsefield.use.read.LARGEST", 16)
    code, out, err = command("photo.png", "--observe", "random:0.2", "--covariates", "guide.png")
    assert code == 0 and "-> 16x16" in out, err
