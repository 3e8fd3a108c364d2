"""Files of a field: what stands in them, and grids that are taken from files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas
import pytest
import tifffile
import xarray
from scipy import stats
from scipy.io import netcdf_file

from reconstruct import FIELDS, load, unlike_noise
from sparsefield.data.netcdf import grid_axes
from sparsefield.use import points
from sparsefield.use.grids import Grid
from sparsefield.use.read import read_measurements

ROWS = np.random.default_rng(0).uniform(size=(30, 2)) * (20, 10) + (100, 40)


@pytest.fixture
def tables(command):
    """The command in a folder with a table of one value, and one of two and their noise."""
    sst = 280 + ROWS[:, 1]
    np.savetxt("a.csv", np.column_stack([ROWS, sst]), delimiter=",", header="lon,lat,sst",
               comments="")
    np.savetxt("b.csv", np.column_stack([ROWS, sst, -sst, sst * 0 + 0.5]), delimiter=",",
               header="lon,lat,u wind,v wind,noise_sd", comments="")
    return command


def write_grid(path, lon, lat, **units):
    units = {"lon": "degrees_east", "lat": "degrees_north"} | units
    with netcdf_file(path, "w") as file:
        for name, values in (("lon", lon), ("lat", lat)):
            file.createDimension(name, len(values))
            axis = file.createVariable(name, "d", (name,))
            axis[:] = values
            axis.units = units[name]


def opened(path="out/field.nc"):
    return netcdf_file(path, mmap=False)


def test_csv_has_a_row_for_each_cell(tables):
    assert tables("a.csv")[0] == 0
    with open("out/field.csv") as file:
        assert file.readline() == "x,y,mean,sd\n"
    rows = np.loadtxt("out/field.csv", delimiter=",", skiprows=1)
    with np.load("out/field.npz") as field:
        assert rows.shape == (field["mean"].size, 4)
        np.testing.assert_allclose(rows[:, 2], field["mean"].reshape(-1), rtol=1e-6)
        np.testing.assert_allclose(rows[:, :2], field["coords"].reshape(-1, 2), rtol=1e-6)


def test_netcdf_says_what_it_holds(tables):
    code, out, _ = tables("a.csv", "--lonlat", "--units", "K")
    assert code == 0 and "mean 32" in out
    with opened() as file:
        assert file.Conventions == b"CF-1.8"
        mean, sd, samples = (file.variables[name] for name in ("mean", "sd", "samples"))
        assert mean.dimensions == ("lat", "lon") and samples.dimensions[0] == "realization"
        assert mean.units == sd.units == b"K"
        assert sd.cell_methods == b"realization: standard_deviation"
        lon, lat = file.variables["lon"], file.variables["lat"]
        assert (lon.units, lon.standard_name, lon.axis) == (b"degrees_east", b"longitude", b"X")
        assert (lat.units, lat.standard_name, lat.axis) == (b"degrees_north", b"latitude", b"Y")
        assert samples.shape == (2, *mean.shape) and mean.shape == (len(lat[:]), len(lon[:]))
        assert abs(mean[:].mean() - 325) < 1
        with np.load("out/field.npz") as field:
            np.testing.assert_allclose(sd[:], field["sd"][..., 0], rtol=1e-6)
            np.testing.assert_allclose(samples[:], field["samples"][..., 0], rtol=1e-6)


def test_several_values_have_variables_of_their_own(tables):
    code, out, _ = tables("b.csv")
    assert code == 0 and "noise_sd = noise_sd" in out
    with opened() as file:
        assert {"u_wind_mean", "v_wind_sd", "v_wind_samples"} <= set(file.variables)
        assert file.variables["v_wind_mean"][:].mean() < 0
    with open("out/field.csv") as file:
        assert file.readline().strip() == "x,y,u_wind_mean,u_wind_sd,v_wind_mean,v_wind_sd"


@pytest.mark.parametrize("lat", [np.linspace(41, 49, 5), np.linspace(49, 41, 5),
                                 np.array([41.0, 42, 44, 47, 49])])
def test_a_field_on_the_grid_of_a_file(tables, lat):
    lon = np.linspace(105, 115, 6)
    write_grid("like.nc", lon, lat)
    code, out, err = tables("a.csv", "--grid", "like.nc", "--lonlat")
    assert code == 0, err
    assert ("the steps of the grid are uneven: pictures" in out) == (lat[2] == 44)
    with opened() as file:
        np.testing.assert_allclose(file.variables["lat"][:], lat)
        np.testing.assert_allclose(file.variables["lon"][:], lon)
        np.testing.assert_allclose(file.variables["mean"][:].mean(axis=1), 280 + lat, atol=0.3)


def test_a_grid_of_0_to_360_and_points_of_180_west_to_180_east(tables):
    np.savetxt("c.csv", np.column_stack([ROWS - (200, 0), ROWS[:, 1]]), delimiter=",",
               header="lon,lat,v", comments="")
    write_grid("like.nc", np.arange(2.5, 360, 5), np.array([42.0, 48.0]))
    assert tables("c.csv", "--grid", "like.nc", "--lonlat")[0] == 0
    with opened() as file:
        here = slice(53, 55)  # 267.5 and 272.5 east: the middle of the points
        np.testing.assert_allclose(file.variables["mean"][:, here].mean(axis=1), [42, 48], atol=0.5)


def test_a_grid_with_its_first_longitude_twice(tables):
    write_grid("like.nc", np.linspace(0, 360, 37), np.linspace(-90, 90, 7))
    assert tables("a.csv", "--grid", "like.nc", "--lonlat")[0] == 0
    with opened() as file:
        mean = file.variables["mean"][:]
        np.testing.assert_allclose(mean[:, 0], mean[:, -1], atol=0.05 * np.ptp(mean))
        assert mean.shape == (7, 37) and np.ptp(mean[0]) < 0.05 * np.ptp(mean)  # a pole


def test_longitudes_about_another_pole_are_refused(tables):
    with netcdf_file("like.nc", "w") as file:
        for name, values in (("rlon", [-3.0, 3.0]), ("rlat", [-2.0, 2.0])):
            file.createDimension(name, 2)
            axis = file.createVariable(name, "d", (name,))
            axis[:], axis.units = values, "degrees"
    code, _, err = tables("a.csv", "--grid", "like.nc", "--lonlat")
    assert code == 2 and "rlon, rlat are those of a rotated grid" in err
    assert tables("a.csv", "--grid", "like.nc")[0] == 0


def test_a_grid_beside_all_measurements_is_said(tables):
    write_grid("like.nc", [-20.0, -10.0], [-40.0, -30.0])
    code, out, _ = tables("a.csv", "--grid", "like.nc", "--lonlat")
    assert code == 0 and "WARNING: 30 of 30 measurements lie outside the field (x -20 to -10" in out


def test_geotiff_where_rasterio_is_installed(tables):
    rasterio = pytest.importorskip("rasterio")
    assert tables("a.csv", "--lonlat", "--units", "K")[0] == 0
    with rasterio.open("out/field.tif") as file:
        assert file.count == 2 and file.crs.to_epsg() == 4326 and file.units == ("K", "K")
        north = file.read(1)[0].mean() - file.read(1)[-1].mean()
        assert np.isnan(file.nodata)
        assert north > 5 and file.bounds.top == pytest.approx(ROWS[:, 1].max(), abs=1e-6)


@pytest.mark.parametrize("resolution", ["auto", "24x5"])
def test_a_geotiff_with_gaps_comes_back_in_its_place(command, resolution):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.Affine(30, 0, 500_000, 0, -20, 5_300_000)
    values = np.add.outer(np.arange(12.0), np.arange(10.0)).astype(np.float32)
    gaps = np.zeros((12, 10), bool)
    gaps[3:6, 3:6] = True
    with rasterio.open("a.tif", "w", driver="GTiff", width=10, height=12, count=1, nodata=-9999,
                       dtype="float32", crs="EPSG:25832", transform=place) as file:
        file.write(np.where(gaps, -9999, values), 1)
    code, out, err = command("a.tif", "--checkpoint", "none", "--resolution", resolution)
    assert code == 0 and "pixels are 1.5 times as wide as high" in out + err
    with rasterio.open("a.tif") as old, rasterio.open("out/field.tif") as new:
        assert new.bounds == old.bounds and new.crs == old.crs and np.isnan(new.nodata)
        if resolution == "auto":
            np.testing.assert_allclose(new.read(1)[~gaps], values[~gaps], atol=1e-4)
        else:
            assert new.shape == (24, 5) and new.read(1)[-1, -1] > 18


@pytest.mark.parametrize("north, is_said", [(65.0, True), (5.0, False)])
def test_pixels_of_degrees_are_narrow_in_the_north(command, north, is_said):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open("a.tif", "w", driver="GTiff", width=10, height=12, count=1, dtype="float32",
                       crs="EPSG:4326", transform=rasterio.Affine(0.1, 0, 10, 0, -0.1, north)
                       ) as file:
        file.write(np.add.outer(np.arange(12.0), np.arange(10.0) ** 2).astype(np.float32), 1)
    code, out, err = command("a.tif", "--checkpoint", "none", "--observe", "random:0.5")
    assert code == 0 and ("0.43 times as wide as high" in out + err) == is_said


def test_an_extent_across_the_180th_meridian(tables):
    rows = np.column_stack([(ROWS[:, 0] + 70 + 180) % 360 - 180, ROWS[:, 1], ROWS[:, 1]])
    np.savetxt("d.csv", rows, delimiter=",", header="lon,lat,v", comments="")
    code, out, err = tables("d.csv", "--lonlat", "--extent", 170, -170, 40, 50)
    assert code == 0 and "30 points ->" in out, err
    with opened() as file:
        lon = file.variables["lon"][:]
        assert 170 < lon.min() < lon.max() < 190


def test_beyond_the_reach_of_all_measurements_the_field_is_empty(tables):
    assert tables("a.csv", "--lonlat", "--reach", "60", "--extent", 100, 130, 40, 50)[0] == 0
    with np.load("out/field.npz") as field:
        empty = np.isnan(field["mean"][..., 0])
        assert empty[:, -1].all() and not empty[:, :4].all()
        assert (np.isnan(field["sd"][..., 0]) == empty).all()


def test_the_reach_across_axes_of_unlike_units_is_a_part_of_their_spans(command):
    km, metres = np.meshgrid(np.arange(0, 101, 5.0), np.arange(0, 4001, 200.0))
    np.savetxt("s.csv", np.column_stack([km.ravel(), metres.ravel(), km.ravel() - metres.ravel()]),
               delimiter=",", header="x,y,t", comments="")
    for reach, empty in ((5, 0), (1.5, 0.75)):
        assert command("s.csv", "--reach", reach, "--resolution", "80x80")[0] == 0
        with np.load("out/field.npz") as field:
            assert np.isnan(field["mean"]).mean() == pytest.approx(empty, abs=0.01)


def test_axes_of_a_projection(tmp_path):
    with netcdf_file(tmp_path / "m.nc", "w") as file:
        for name, values in (("x", [0.0, 10.0]), ("y", [5.0, 3.0])):
            file.createDimension(name, 2)
            axis = file.createVariable(name, "d", (name,))
            axis[:] = values
            axis.units = "m"
    path = tmp_path / "m.nc"
    grid = Grid.like(str(path), grid_axes(path))
    assert grid.extent == (-5, 15, 2, 6) and grid.y[0] == 5 and not grid.is_global
    assert grid.attributes[0]["units"] == "m"


def test_of_a_grid_the_axes_alone_are_read(tmp_path):
    h5py, path = pytest.importorskip("h5py"), tmp_path / "large.nc"
    axes = {"x": np.arange(4.0), "y": np.arange(4.0)}
    pytest.importorskip("h5netcdf")
    xarray.Dataset({"t": (("y", "x"), np.ones((4, 4)), {}, {"zlib": True})}, axes).to_netcdf(
        path, engine="h5netcdf")
    with h5py.File(path, "r+") as file:
        file["t"].id.write_direct_chunk((0, 0), b"not compressed")
    assert [axis.size for axis in grid_axes(path)] == [4, 4]


def test_stations_of_a_netcdf(tables):
    with netcdf_file("s.nc", "w") as file:
        file.createDimension("report", 30)
        for name, values in (("lon", ROWS[:, 0]), ("lat", ROWS[:, 1]), ("T", ROWS[:, 1] * 100)):
            variable = file.createVariable(name, "f" if name != "T" else "h", ("report",))
            variable[:] = values
        variable.units, variable._FillValue = b"degC", np.int16(-9999)
        variable.scale_factor, variable.add_offset = 0.01, 20.0
        variable[:3] = -9999
    code, out, err = tables("s.nc", "--lonlat")
    assert code == 0, err
    assert "3 of 30 measurements have a missing" in out and "value = T" in out
    with opened() as file:
        assert file.variables["mean"].units == b"degC"
        assert 60 < file.variables["mean"][:].mean() < 70


def test_a_noise_column_by_name(tables):
    code, out, _ = tables("b.csv", "--value", "u wind", "--noise_sd", "v wind")
    assert code == 2  # it is negative
    code, out, _ = tables("b.csv", "--value", "u wind", "--noise_sd", "noise_sd")
    assert code == 0 and "noise_sd = noise_sd; left out: v wind" in out


@pytest.mark.parametrize("file", ["n.csv", "n.npz"])
@pytest.mark.parametrize("said, read", [("auto", None), ("0.3", 0.3), ("0", None)])
def test_noise_that_is_given_or_found_is_not_read(tables, caplog, file, said, read):
    """A column noise_sd is then left out, and what it lacks costs no measurement."""
    noise = np.where(np.arange(30) < 10, np.nan, 0.5)
    np.savetxt("n.csv", np.column_stack([ROWS, ROWS[:, 0], noise]), delimiter=",", comments="",
               header="lon,lat,sst,noise_sd")
    np.savez("n.npz", coords=ROWS, values=ROWS[:, 0], noise_sd=noise)
    with caplog.at_level("INFO", logger="sparsefield"):
        given = read_measurements(file, channels=3, noise_sd=said)
    assert "noise_sd =" not in caplog.text
    assert len(given.coords) == 30 and given.values.shape[1] == 1
    assert given.noise is None if read is None else np.all(given.noise == read)


def test_holdout_prints_scores_and_writes_nothing(tables, tmp_path):
    code, out, err = tables("a.csv", "--holdout", "0.2", "--lonlat")
    assert code == 0, err
    assert "6 of 30 measurements hidden" in out and "RMSE" in out and "in 90 % intervals" in out
    assert "this (fitted kriging)" in out and "linear" in out and "95 % interval" in out
    assert "fitted kriging, --noise_sd auto" in out and "noise found" in out
    assert not (tmp_path / "out").exists()
    code, out, _ = tables("b.csv", "--holdout", "0.2", "--value", "u wind")
    assert code == 0 and "--noise_sd auto" not in out  # the noise is known
    code, out, _ = tables("a.csv", "--holdout", "0.2", "--transform", "log")
    assert "this (kriging, log)" in out and "\nfitted kriging" in out


def test_holdout_tries_the_model_of_any_quantity(tables):
    """Where it is not used by itself, and can be."""
    row = "\n--checkpoint fields "
    code, out, err = tables("a.csv", "--holdout", "0.2", "--num_steps", "1")
    assert code == 0 and row in out, err
    assert "check it with --holdout 0.2" in out
    for rest in (["--lonlat"], ["--checkpoint", "none"]):
        code, out, err = tables("a.csv", "--holdout", "0.2", *rest)
        assert code == 0 and row not in out, err


def test_holdout_of_three_values_that_are_no_colours(tables):
    rows = np.column_stack([ROWS, ROWS.sum(axis=1), 10 * ROWS])
    np.savetxt("c.csv", rows, delimiter=",")
    code, out, err = tables("c.csv", "--holdout", "0.2")
    assert code == 0 and "this (fitted kriging)" in out, err
    assert "kriging answers: 30 places are measured" in out and "\n--checkpoint" not in out


def test_holdout_of_a_picture_of_16_bits(tables):
    picture = np.add.outer(np.arange(16), np.arange(12))[..., None] * np.array([2000, 1500, 900])
    tifffile.imwrite("deep.tif", picture.astype(np.uint16))
    code, out, err = tables("deep.tif", "--observe", "random:0.5", "--holdout", "0.2",
                             "--num_steps", "1")
    assert code == 0 and "this (bundled)" in out, err


def test_without_a_checkpoint_a_table_is_not_guessed_in_grey(tables):
    code, out, _ = tables("a.csv")
    assert code == 0 and "kriging answers: 30 places are measured" in out
    assert "kriging fitted to the measurements" in out and "read as shades of grey" not in out


@pytest.mark.parametrize("spread, flags, answers", [
    (100, (), "the model of any quantity answers"),
    (100, ("--checkpoint", "none"), "no trained model"),
    (100, ("--noise_sd", "0.1"), "the model of any quantity answers"),
    (100, ("--noise_sd", "1"), "kriging answers: the model of any quantity has learnt noise"),
    (100, ("--noise_sd", "auto"), "the model of any quantity answers"),
    (100, ("--transform", "log"), "kriging answers"),
    (0.5, (), "kriging answers: the measurements are clustered"),
])
def test_the_model_of_any_quantity_answers_where_it_is_better(tables, spread, flags, answers):
    rng = np.random.default_rng(0)
    middles = 100 * rng.random((5, 2))
    x, y = (middles[rng.integers(5, size=80)] + spread * rng.random((80, 2))).T
    pandas.DataFrame({"x": x, "y": y, "v": 300 + np.sin(x / 20) + y / 50}).to_csv(
        "b.csv", index=False)
    code, out, err = tables("b.csv", "--above", "300.5", *flags)
    assert code == 0 and answers in out, err
    assert ("model: fields" in out) == answers.endswith("quantity answers")
    assert "are of the exact Gaussian" in out
    field = pandas.read_csv("out/field.csv")
    assert (field["sd"] > 0).mean() > 0.9 and field["mean"].between(295, 310).all()


def test_the_model_of_any_quantity_answers_noise_that_it_has_learnt(monkeypatch):
    coords = np.random.default_rng(0).random((80, 2))
    exact = points.Measurements(coords, np.sin(9 * coords[:, :1]))
    model = load(FIELDS)
    for learnt, shares in (("0", (0,)), ("0-0.3", (0, 0.1, 0.29)), ("0.05-0.3", (0.1, 0.29))):
        monkeypatch.setitem(model.checkpoint["config"], "noise", learnt)
        for share in (0, 0.1, 0.29, 0.5):
            noise = np.full(80, share * exact.values.std())
            why = unlike_noise(model, replace(exact, noise=noise))
            assert (why is None) == (share in shares), (learnt, share)
    assert "has learnt noise of 0.05 to 0.3 of the sd" in unlike_noise(model, exact)


@pytest.mark.parametrize("share, answers", [(0.2, "the model of any quantity"), (0.8, "kriging")])
def test_noise_that_is_found_decides_who_answers(tables, share, answers):
    rng = np.random.default_rng(1)
    x, y = 100 * rng.random((2, 300))
    field = np.sin(x / 15) + np.cos(y / 20)
    noisy = field + share * field.std() * rng.normal(size=300)
    pandas.DataFrame({"x": x, "y": y, "v": noisy}).to_csv("n.csv", index=False)
    code, out, err = tables("n.csv", "--noise_sd", "auto", "--resolution", "16")
    assert code == 0 and f"{answers} answers" in out and out.count("noise found in the") == 1, err


def test_axes_in_degrees_that_do_not_say_so_are_written_as_such(tables):
    """So that regions on them are weighted by their area, and a GeoTIFF lies on the globe."""
    write_grid("like.nc", np.linspace(105, 115, 6), np.linspace(41, 49, 5))
    with netcdf_file("like.nc", "a") as file:
        file.variables["lon"].units = file.variables["lat"].units = "degrees"
    assert tables("a.csv", "--grid", "like.nc", "--lonlat")[0] == 0
    with opened() as file:
        assert file.variables["lon"].units == b"degrees_east"


def test_probabilities_and_quantiles_are_written_in_every_form(tables, tmp_path):
    """Those of the Gaussian; a later run that does not ask for them deletes them."""
    code, out, err = tables("b.csv", "--lonlat", "--value", "u wind", "--units", "m/s", "--above",
                            "325", "-1.5", "--quantiles", "0.05")
    assert code == 0, err
    assert "above 325: on average" in out and "are of the exact Gaussian" in out
    with np.load("out/field.npz") as field:
        expected = stats.norm(field["mean"], field["sd"])
        np.testing.assert_allclose(field["probability_above_325"], expected.sf(325), atol=1e-6)
        np.testing.assert_allclose(field["quantile_0.05"], expected.ppf(0.05), rtol=1e-6)
        rows = np.genfromtxt("out/field.csv", delimiter=",", names=True, deletechars="")
        np.testing.assert_allclose(rows["probability_above_325"],
                                   field["probability_above_325"].reshape(-1), atol=1e-9)
        with opened() as file:
            above, low = (file.variables[name] for name in ("probability_above_325",
                                                            "quantile_0.05"))
            assert (above.units, low.units) == (b"1", b"m/s")
            assert above.long_name == b"probability that u wind is above 325 m/s"
            np.testing.assert_allclose(low[:], field["quantile_0.05"][..., 0], rtol=1e-6)
        rasterio = pytest.importorskip("rasterio")
        with rasterio.open("out/field.tif") as file:
            assert file.descriptions == ("mean", "sd", "probability_above_325",
                                         "probability_above_-1.5", "quantile_0.05")
            assert file.units == ("m/s", "m/s", "1", "1", "m/s")
            np.testing.assert_allclose(file.read(3)[::-1], field["probability_above_325"][..., 0])
    pictures = {"probability_above_325.png", "probability_above_-1.5.png", "quantile_0.05.png"}
    assert {path.name for path in (tmp_path / "out").glob("*_*.png")} > pictures
    assert tables("b.csv")[0] == 0
    assert not pictures & {path.name for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out/probability_above_sea.png").touch()
    assert "probability_above_sea.png" in tables("b.csv")[2]


def test_what_samples_cannot_tell_is_said_before_they_are_drawn(tables, tmp_path):
    code, out, err = tables("a.csv", "--checkpoint", "bundled", "--above", "325")
    assert code == 0 and "of 2 samples: they tell a probability in steps of 0.5" in out, err
    assert "to the highest of 2 samples is an interval of 33%" in out
    for wrong in (["--quantiles", "0.95", "--checkpoint", "bundled"], ["--above", "nan"],
                  ["--quantiles", "1"]):
        code, _, err = tables("a.csv", *wrong, "--out", "none")
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        assert not (tmp_path / "none").exists()
