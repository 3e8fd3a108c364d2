"""pandas and xarray in and out: names, units and coordinates are kept."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import xarray
from scipy.ndimage import gaussian_filter

from sparsefield import load
from sparsefield.errors import UserError

STATIONS = Path(__file__).parents[2] / "docs/stations.csv"
KRIGING = load("none")
FEW = {"num_samples": 2}


@pytest.fixture
def stations() -> pandas.DataFrame:
    frame = pandas.read_csv(STATIONS, comment="#")
    frame = frame.rename(columns={"lon": "longitude", "lat": "latitude"})
    frame.attrs = {"temperature": "degC"}
    return frame[:60]


def gappy(transposed: bool = False, falling: bool = False, **attributes) -> xarray.DataArray:
    """A smooth field of 10 x 12 with a hole, on a plane of metres, as rioxarray gives it."""
    y, x = np.arange(10) * 30.0 + 5e6, np.arange(12) * 30.0 + 4e5
    y = y[::-1] if falling else y
    values = 20 + np.sin((y[:, None] - 5e6) / 100) + np.cos((x - 4e5) / 80)
    values[3:6, 4:9] = np.nan
    array = xarray.DataArray(values, {"y": y, "x": x, "time": np.datetime64("2020-07-01"),
                                      "crs": ((), 0, {"crs_wkt": "PROJCS[...]"})},
                             ("y", "x"), "lst", {"units": "degC", **attributes})
    array.encoding["grid_mapping"] = "crs"
    return array.T if transposed else array


def test_a_frame_is_read_by_the_names_of_its_columns(stations):
    """As the same numbers without names are, with lonlat."""
    field = KRIGING.reconstruct(stations, value="temperature", resolution=8, **FEW)
    coords = stations[["longitude", "latitude"]].to_numpy()
    plain = KRIGING.reconstruct(coords, stations["temperature"], 8, lonlat=True, **FEW)
    np.testing.assert_array_equal(field.mean, plain.mean)
    np.testing.assert_array_equal(field.samples, plain.samples)
    data, table = field.to_xarray(above=[10]), field.to_dataframe(quantiles=[0.05])
    assert data["mean"].dims == ("latitude", "longitude") and data["mean"].units == "degC"
    assert data["longitude"].units == "degrees_east"
    np.testing.assert_array_equal(data["probability_above_10"], field.probability_above(10)[..., 0])
    assert list(table) == ["longitude", "latitude", "mean", "sd", "quantile_0.05"]
    assert table.attrs["mean"] == table.attrs["quantile_0.05"] == "degC"
    row = table.iloc[9]
    at = data.sel(longitude=row["longitude"], latitude=row["latitude"])
    assert float(at["mean"]) == row["mean"] and float(at["sd"]) == row["sd"]


def test_coords_and_values_of_other_indexes_are_refused(stations):
    coords, values = stations[["longitude", "latitude"]], stations["temperature"]
    asked = {"resolution": 4, "extent": (-10, 40, 30, 70), **FEW}
    with pytest.raises(UserError, match=r"have other indexes: .*values\.loc\[coords\.index\]"):
        KRIGING.reconstruct(coords.sort_values("longitude"), values, **asked)
    KRIGING.reconstruct(coords, values, **asked)


def test_settings_of_a_frame(stations):
    def field(data, **settings):
        return KRIGING.reconstruct(data, resolution=4, **settings, **FEW)

    flat = field(stations, value=["temperature"], lonlat=False)
    assert flat.grid.names == ("longitude", "latitude") and not flat.grid.is_global
    stations["sigma"] = 0.5
    named = field(stations, value="temperature", noise_sd="sigma")
    number = field(stations, value="temperature", noise_sd=0.5)
    np.testing.assert_array_equal(named.mean, number.mean)
    assert abs(named.mean - flat.mean).max() > 0.01
    indexed = stations.set_index(["latitude", "longitude"])
    again = field(indexed, value="temperature", noise_sd=0.5)
    np.testing.assert_array_equal(again.mean, number.mean)
    kept = field(stations.set_index("latitude", drop=False), value="temperature", noise_sd=0.5)
    np.testing.assert_array_equal(kept.mean, number.mean)
    both = field(stations, value=["temperature", "wind"])
    assert {"temperature_mean", "wind_sd"} <= set(both.to_xarray())
    points = stations["temperature"].to_xarray().assign_coords(
        lon=("index", stations["longitude"]), lat=("index", stations["latitude"]))
    along = field(points, noise_sd=0.5)
    np.testing.assert_array_equal(along.mean, number.mean)


@pytest.mark.parametrize("transposed, falling", [(False, False), (True, False), (False, True)])
def test_a_gappy_array_comes_back_filled_on_the_same_coordinates(transposed, falling):
    array = gappy(transposed, falling, standard_name="surface_temperature")
    filled = KRIGING.reconstruct(array, **FEW).to_xarray()
    assert filled["mean"].dims == array.dims == filled["sd"].dims
    assert filled["mean"].attrs.items() >= array.attrs.items() and filled["sd"].units == "degC"
    assert filled["mean"].attrs["grid_mapping"] == filled["sd"].attrs["grid_mapping"] == "crs"
    for name in array.coords:
        xarray.testing.assert_identical(filled[name].drop_vars("realization", errors="ignore"),
                                        array[name])
    is_known = array.notnull()
    np.testing.assert_allclose(filled["mean"].where(is_known), array, rtol=1e-6)
    truth = 20 + np.sin((array["y"] - 5e6) / 100) + np.cos((array["x"] - 4e5) / 80)
    assert abs(filled["mean"] - truth).max() < 0.1
    assert (filled["sd"].where(~is_known, 0) > 0).sum() == 15 == (filled["sd"] > 0).sum()
    assert filled["samples"].sizes["realization"] == 2


def test_a_packed_array_is_unpacked():
    packed = (gappy() * 100).round().fillna(-999).astype(np.int16).assign_attrs(
        scale_factor=0.01, _FillValue=-999, units="degC")
    filled = KRIGING.reconstruct(packed, **FEW).to_xarray()["mean"]
    assert "scale_factor" not in filled.attrs
    np.testing.assert_allclose(filled.where(gappy().notnull()), gappy(), atol=0.006)


def test_an_array_of_classes_is_said(caplog):
    labels = gaussian_filter(np.random.default_rng(0).normal(size=(5, 20, 30)), (0, 3, 3)).argmax(0)
    array = xarray.DataArray(labels.astype(float), dims=("y", "x"), coords={
        "y": np.arange(20), "x": np.arange(30)})
    KRIGING.reconstruct(array.where(np.random.default_rng(1).random((20, 30)) < 0.5), **FEW)
    assert "5 values or colours, in patches: if they are classes" in caplog.text


def test_a_region_has_the_dimensions_of_the_array_in_any_order():
    square = gappy()[:, :10]
    field = KRIGING.reconstruct(square, **FEW)
    region = square > 20.5
    assert field.mean_over(region.T) == field.mean_over(region.to_numpy())


@pytest.mark.parametrize("change", [
    lambda array: array.rename(x="lon", y="lat"),
    lambda array: array.assign_coords(x=array["x"].assign_attrs(units="degrees_east"),
                                      y=array["y"].assign_attrs(units="degrees_north")),
    lambda array: array.drop_vars("crs").assign_coords(
        spatial_ref=((), 0, {"crs_wkt": 'GEOGCS["WGS 84"]'})),
])
def test_an_array_in_degrees_lies_on_the_globe(change):
    array = gappy().assign_coords(x=np.linspace(170, 190, 12), y=np.linspace(50, 70, 10))
    field = KRIGING.reconstruct(change(array), **FEW)
    assert field.grid.is_global
    flat = KRIGING.reconstruct(change(array), lonlat=False, **FEW)
    assert not flat.grid.is_global and (field.sd != flat.sd).any()


def test_dimensions_without_names_or_numbers_can_be_chosen():
    array = gappy().drop_vars(["x", "y"]).rename(x="column", y="row")
    with pytest.raises(UserError, match="which is the x axis of the grid"):
        KRIGING.reconstruct(array, **FEW)
    filled = KRIGING.reconstruct(array, x="column", y="row", **FEW).to_xarray()
    np.testing.assert_allclose(filled["mean"].transpose("row", "column").where(array.notnull()),
                               array, rtol=1e-6)


def test_places_on_no_grid_have_a_dimension_of_their_own(stations):
    coords, values = stations[["longitude", "latitude"]].to_numpy(), stations["temperature"]
    field = KRIGING.at([[-100.0, 40.0], [-90.0, 35.0]], coords, values, lonlat=True, **FEW)
    table = field.to_dataframe(above=[0])
    assert list(table) == ["x", "y", "mean", "sd", "probability_above_0"] and len(table) == 2
    assert field.to_xarray()["samples"].dims == ("realization", "place")


def test_other_coordinates_of_an_array_stay_but_for_names_of_the_answer():
    """A member of an ensemble has a coordinate `realization`, and any may be called `mean`."""
    array = gappy().assign_coords(realization=3, mean=1.5, quality=("x", np.arange(12)))
    filled = KRIGING.reconstruct(array, **FEW).to_xarray(above=20)
    assert filled["mean"].shape == array.shape and filled["realization"].shape == (2,)
    assert {"probability_above_20", "quality", "time"} <= set(filled.variables)


@pytest.mark.parametrize("change, missing", [
    (lambda array: array.fillna(-9999), [-9999]), (lambda array: array.fillna(np.inf), None),
    (lambda array: array.isel(y=[4]), None), (lambda array: array.expand_dims("band"), None),
])
def test_gaps_by_other_marks_and_dimensions_of_one_step(change, missing):
    array = change(gappy())
    filled = KRIGING.reconstruct(array, missing=missing, **FEW).to_xarray()
    assert filled["mean"].dims == ("y", "x") and (filled["sd"].isel(y=-1) >= 0).all()
    assert (filled["sd"] > 0).sum() == (5 if array.sizes["y"] == 1 else 15)


@pytest.mark.parametrize("data, settings, words", [
    (lambda frame: frame, {"x": ["longitude"]}, "is none of them"),
    (lambda frame: gappy().fillna(-9999), {}, "-9999 stands there 15 times"),
    (lambda frame: frame.to_xarray(), {}, "such as dataset"),
    (lambda frame: frame.to_numpy(), {}, "ndarray without values"),
    (lambda frame: frame.to_dict(), {}, "dict without values"),
    (lambda frame: frame, {"value": "temp"}, "none of them"),
    (lambda frame: frame, {"value": "temperature", "noise_sd": "sigma"}, "none of them"),
    (lambda frame: frame.rename(columns={"latitude": "b"}), {}, "which are x and y"),
    (lambda frame: frame.assign(temperature="warm"), {"value": "temperature"}, "is no number"),
    (lambda frame: frame.assign(temperature=1j), {"value": "temperature"}, "is no number"),
    (lambda frame: frame[:0], {}, "holds no measurement"),
    (lambda frame: gappy().expand_dims(band=2), {}, "take one step of the others with .isel"),
    (lambda frame: gappy().fillna(0), {}, "has no gap"),
    (lambda frame: gappy() * np.nan, {}, "holds no measurement"),
    (lambda frame: gappy(), {"resolution": 8}, "has its own"),
    (lambda frame: gappy(), {"noise_sd": "sigma"}, "a number or auto"),
    (lambda frame: gappy(), {"x": "lon"}, "no dimension lon"),
    (lambda frame: gappy(), {"covariates": ["x"]}, "covariates are for a DataFrame"),
    (lambda frame: gappy().astype(str), {}, "real numbers"),
    (lambda frame: gappy(), {"lonlat": True}, "--lonlat takes -720 to 720"),
    (lambda frame: xarray.concat([gappy()] * 90, "x").assign_coords(x=np.arange(1080.0)), {},
     "at most 1024 rows and columns"),
])
def test_what_cannot_be_read_is_refused_in_one_line(stations, data, settings, words):
    with pytest.raises(UserError) as refused:
        KRIGING.reconstruct(data(stations), **settings, **FEW)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_page_on_python_runs_and_is_right(monkeypatch):
    monkeypatch.chdir(STATIONS.parents[1])
    page = (STATIONS.parent / "python.md").read_text()
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.S)), names)
    table, south, gappy, filled = (names[key] for key in ("table", "south", "gappy", "filled"))
    assert {"lon", "lat", "probability_above_10", "quantile_0.95"} <= set(table)
    assert south.low < table[table["lat"] < 35]["mean"].mean() < south.high
    is_hole = gappy.isnull()
    assert is_hole.any() and (filled["sd"] > 0).equals(is_hole)
    assert abs(filled["mean"] - names["data"]["mean"]).max() < 6
    assert names["there"].mean.shape == (1, 1)


# --- a grid with gaps in a file -------------------------------------------------------------------


def test_the_command_fills_a_grid_as_python_does(command, tmp_path):
    array = gappy(falling=True).drop_vars("crs")
    for name, own in (("grid.nc", array), ("turned.nc", array.expand_dims("time").T)):
        own.to_dataset().to_netcdf(tmp_path / name, engine="scipy")
        code, out, _ = command(name, "--resolution", "auto", "--overwrite")
        assert code == 0 and "105 of 120 cells are known" in out
        with xarray.open_dataset(tmp_path / "out/field.nc") as found:
            filled = KRIGING.reconstruct(array, num_samples=2)
            np.testing.assert_allclose(found["mean"].values, filled.mean[..., 0], rtol=1e-6)
            np.testing.assert_array_equal(found["y"], array["y"])
            assert found["mean"].units == "degC"


@pytest.mark.parametrize("flags, change, words", [
    ((), lambda array: array.fillna(0).to_dataset(), "has no gap"),
    ((), lambda array: array.to_dataset().assign(other=array), "which variable? give one"),
    ((), lambda array: xarray.concat([array] * 2, "time").to_dataset(), "with --time"),
    (("--value", "lst"), lambda array: xarray.concat([array] * 2, "time").to_dataset(),
     "with --time also"),
    (("--value", "sst"), lambda array: array.to_dataset(), "sst"),
    (("--observe", "random:0.5"), lambda array: array.to_dataset(), "are for a picture"),
])
def test_grids_that_cannot_be_filled_are_refused(command, tmp_path, flags, change, words):
    change(gappy().drop_vars(["crs", "time"])).to_netcdf(tmp_path / "grid.nc", engine="scipy")
    code, _, err = command("grid.nc", "--resolution", "auto", *flags)
    assert code == 2 and words in err and err.count("\n") == 1
