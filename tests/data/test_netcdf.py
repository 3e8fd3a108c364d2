"""Fields of NetCDF files and GeoTIFFs: what is read, which way is up, how it is cut and split."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.io import netcdf_file

from sparsefield.data import TrainingBatches, open_data, parse_pattern
from sparsefield.data.netcdf import read_dataset, read_fields
from sparsefield.errors import UserError

ALL = ("time", "lat", "lon")
FIELD = np.random.default_rng(0).normal(20, 3, (48, 20, 24)).astype(np.float32)


def write(path, variables, axes, **attributes):
    """A classic NetCDF: variables name -> (dims, array), axes name -> (values, units) or size."""
    records = {"time"} & {dims[0] for dims, _ in variables.values()}
    with netcdf_file(path, "w") as file:
        for name, axis in axes.items():
            size = axis if isinstance(axis, int) else len(axis[0])
            file.createDimension(name, None if name in records else size)
            if size is not axis:
                variables = variables | {name: ((name,), np.asarray(axis[0], float))}
                attributes = attributes | {name: {"units": axis[1], **attributes.get(name, {})}}
        for name, (dims, array) in variables.items():
            variable = file.createVariable(name, array.dtype.char, dims)
            variable[:] = array
            for key, value in attributes.get(name, {}).items():
                setattr(variable, key, value)
    return path


def lonlat(height=20, width=24):
    return {"lat": (np.linspace(-50, 50, height), "degrees_north"),
            "lon": (np.linspace(0, 350, width), "degrees_east")}


def months(count=48):
    return {"time": (np.arange(count) * 730.5, "hours since 1990-01-16 00:00:00")}


@pytest.fixture
def sea(tmp_path):
    """Four years of months with land, packed in 16 bits."""
    packed = np.random.default_rng(0).integers(0, 3000, (48, 20, 24)).astype(np.int16)
    packed[:, :5, :6] = -999
    return write(tmp_path / "sea.nc", {"sst": (ALL, packed)}, months() | lonlat(),
                 sst={"_FillValue": np.int16(-999), "scale_factor": 0.01, "add_offset": 2.0,
                      "units": "degC"}), packed


def test_packed_values_land_and_years(sea):
    path, packed = sea
    data = open_data(str(path))
    assert (data.height, data.width, data.units) == (20, 24, "degC")
    assert len(data.train) == 24 and len(data.val) == len(data.test) == 12
    first = data.to_physical(data.train.example(0))[..., 0]
    assert np.isnan(first[:5, :6]).all() and data.train.has_gaps
    np.testing.assert_allclose(first[5:], packed[0, 5:] * 0.01 + 2, rtol=1e-5)
    np.testing.assert_allclose(data.to_physical(data.test.example(0))[5:, :, 0],
                               packed[36, 5:] * 0.01 + 2, rtol=1e-5)
    batches = TrainingBatches(data.train, parse_pattern("random:0.2"), seed=0, batch_size=4,
                              queries=(20, 40), draw_angles=lambda rng, n: rng.random(n))
    assert np.isfinite(batches[0].x_1.numpy()).all()
    named = open_data(str(path), variables=["SST"])
    assert named.fingerprint == data.fingerprint
    own = open_data(str(path), val=str(path), test=str(path))
    assert [len(s) for s in (own.train, own.val, own.test)] == [48, 48, 48]


# --- which way is up ------------------------------------------------------------------------------


def test_rows_of_a_map_grow_with_latitude_whichever_way_the_file_goes(tmp_path):
    """A model is asked by tables whose y grows to the north: training must see the same."""
    axes = months() | lonlat()
    north_first = axes | {"lat": (axes["lat"][0][::-1], "degrees_north"),
                          "lon": (axes["lon"][0][::-1], "degrees_east")}
    write(tmp_path / "up.nc", {"q": (ALL, FIELD)}, axes)
    write(tmp_path / "down.nc", {"q": (ALL, FIELD[:, ::-1, ::-1])}, north_first)
    up, down = (open_data(str(tmp_path / f"{name}.nc")) for name in ("up", "down"))
    assert up.fingerprint == down.fingerprint and up.rows_up and down.describe()["rows_up"]
    np.testing.assert_allclose(down.to_physical(down.train.example(0))[..., 0], FIELD[0], rtol=1e-5)


def test_rows_without_coordinates_stay(tmp_path):
    path = write(tmp_path / "a.nc", {"q": (("step", "row", "column"), FIELD)},
                 {"step": 48, "row": 20, "column": 24})
    data = open_data(str(path))
    assert not data.rows_up
    np.testing.assert_allclose(data.to_physical(data.train.example(0))[..., 0], FIELD[0], rtol=1e-5)


def test_a_region_across_greenwich_is_not_turned_round(tmp_path, caplog):
    lon = np.concatenate([np.arange(345.0, 360), np.arange(9.0)])
    write(tmp_path / "a.nc", {"t": (ALL, FIELD)},
          months() | lonlat() | {"lon": (lon, "degrees_east")})
    np.testing.assert_array_equal(read_fields(tmp_path / "a.nc").values[..., 0], FIELD)
    assert "has steps from" not in caplog.text


def test_places_of_two_dimensions_are_said(tmp_path, caplog):
    j, i = np.mgrid[:20, :24]
    write(tmp_path / "a.nc", {"t": (("time", "j", "i"), FIELD), "nav_lat": (("j", "i"), 60.0 - j),
                              "nav_lon": (("j", "i"), 5.0 + i)},
          months() | {"j": 20, "i": 24}, nav_lat={"units": "degrees_north"})
    open_data(str(tmp_path / "a.nc"), variables=["t"])
    assert "places are in nav_lat, of two dimensions, which is not read" in caplog.text



def test_a_geotiff_is_turned_north_up_and_scaled(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    stored = np.random.default_rng(0).integers(0, 5000, (20, 90)).astype(np.int16)
    stored[:3, :3] = -9999
    array = xarray.DataArray(stored, dims=("y", "x"), coords={
        "y": 60.0 - np.arange(20), "x": 5.0 + np.arange(90)})
    array.attrs = {"scale_factor": 0.1, "add_offset": -50.0, "units": "m"}
    array.rio.write_nodata(-9999).rio.write_crs(4326).rio.to_raster(tmp_path / "dem.tif")
    data = open_data(str(tmp_path / "dem.tif"), image_size=20)
    assert data.rows_up and data.train.has_gaps
    first = data.to_physical(data.train.example(0))[..., 0]
    np.testing.assert_allclose(first[:17], stored[::-1, :20][:17] * 0.1 - 50, atol=1e-3)
    assert np.isnan(first[17:, :3]).all()


def test_a_spike_in_a_geotiff_is_said(tmp_path, caplog):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    heights = np.random.default_rng(0).uniform(100, 400, (40, 90)).astype(np.float32)
    heights[7, 7] = 1e5
    array = xarray.DataArray(heights, dims=("y", "x"), coords={
        "y": 60.0 - np.arange(40), "x": 5.0 + np.arange(90)})
    array.rio.write_crs(4326).rio.to_raster(tmp_path / "dem.tif")
    open_data(str(tmp_path / "dem.tif"), image_size=20)
    assert "(VALUE_RANGE)" in caplog.text


# --- what means: not measured ---------------------------------------------------------------------


@pytest.mark.parametrize("key, marker", [("_FillValue", -999.9), ("missing_value", -9.99),
                                         ("missing_value", 1e20)])
def test_fill_values_stored_as_double_beside_float32(tmp_path, key, marker):
    values = FIELD.copy()
    values[:, :4] = marker
    path = write(tmp_path / "a.nc", {"t": (ALL, values)}, months() | lonlat(),
                 t={key: np.float64(marker)})
    read = read_dataset(path)["t"].values
    assert np.isnan(read[:, :4]).all() and not np.isnan(read[:, 4:]).any()


TRUTH = np.linspace(15, 20, 40)
BAD = TRUTH.astype(np.float32)
BAD[:2] = -5, 500
PACKED = np.round((TRUTH - 20) / 0.01).astype(np.int16)
PACKED[:2] = 3000
SCALED = {"scale_factor": 0.01, "add_offset": 20.0}
BYTES = np.round((TRUTH - 5) / 0.1).astype(np.uint8)
BYTES[:2] = 255
ATTRIBUTES = {
    "valid_min and valid_max": (BAD, {"valid_min": np.float32(0), "valid_max": np.float32(40)}),
    "valid_range as double": (BAD, {"valid_range": np.array([0.0, 40.0])}),
    "valid_range of packed numbers": (
        PACKED, SCALED | {"valid_range": np.array([-2000, 2500], np.int16)}),
    "valid_range in units beside packed": (PACKED, SCALED | {"valid_range": np.array([0.0, 40.0])}),
    "unsigned bytes": (BYTES.view(np.int8), {
        "scale_factor": 0.1, "add_offset": 5.0, "_Unsigned": b"true", "_FillValue": np.int8(-1)}),
    "never written": (np.where(TRUTH.astype(np.float32) == BAD, BAD, 9.969209968386869e36).astype(
        np.float32), {}),
    "a fill value that the type cannot hold": (PACKED, SCALED | {
        "_FillValue": np.float64(1e20), "missing_value": np.int16(3000)}),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_that_tell_what_was_measured(tmp_path, name):
    stored, attributes = ATTRIBUTES[name]
    path = write(tmp_path / "a.nc", {"t": (("lon",), stored)}, {"lon": (np.arange(40.0), "m")},
                 t=attributes)
    read = read_dataset(path)["t"].values
    assert np.isnan(read[:2]).all()
    np.testing.assert_allclose(read[2:], TRUTH[2:], atol=0.051 if stored.itemsize == 1 else 0.006)


# --- axes and times -------------------------------------------------------------------------------


UNEVEN = np.array([0, 1, 3, 7, *range(15, 127, 7)])


@pytest.mark.parametrize("lats, name, units, words", [
    (np.linspace(-50, 50, 20), "t", "K", ""), (UNEVEN - 60, "t", "K", "lat has steps from 1 to 8"),
    (60 - UNEVEN, "t", "K", "lat has steps from 1 to 8"),
    (np.linspace(-50, 50, 20), "wdir", "1", "wdir looks like a direction"),
    (np.linspace(-50, 50, 20), "d", "degrees", "d looks like a direction"),
])
def test_uneven_axes_and_directions_are_said(tmp_path, caplog, lats, name, units, words):
    values = np.random.default_rng(0).uniform(1, 359, FIELD.shape).astype(np.float32)
    axes = months() | lonlat() | {"lat": (lats, "degrees_north")}
    open_data(str(write(tmp_path / "a.nc", {name: (ALL, values)}, axes, **{name: {"units": units}})
                  ))
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any(words in line for line in said) if words else not said


@pytest.mark.parametrize("dims", [("lat", "lon", "time"), ("lon", "level", "time", "lat")])
def test_axes_in_another_order_and_axes_of_one_step(tmp_path, dims):
    order = [ALL.index(dim) for dim in dims if dim in ALL]
    stored = FIELD.transpose(order)
    stored = stored[:, None] if "level" in dims else stored
    fields = read_fields(write(tmp_path / "a.nc", {"t": (dims, stored)},
                               months() | lonlat() | {"level": 1}))
    np.testing.assert_array_equal(fields.values[..., 0], FIELD)
    assert sorted(set(fields.years)) == [1990, 1991, 1992, 1993]


@pytest.mark.parametrize("dims", [("month", "row", "column"), ("row", "column", "month")])
def test_time_is_the_axis_of_steps_wherever_it_stands(tmp_path, dims):
    """Beside axes without coordinates."""
    stored = FIELD if dims[0] == "month" else np.moveaxis(FIELD, 0, 2)
    fields = read_fields(write(tmp_path / "a.nc", {"t": (dims, stored)}, {
        "month": months()["time"], "row": 20, "column": 24}))
    np.testing.assert_array_equal(fields.values[..., 0], FIELD)
    assert len(fields.years) == 48


@pytest.mark.parametrize("units, calendar, times", [
    ("d since 1990-01-01", "standard", np.arange(120) * 30.44 + 15),
    ("days after 1990-1-1", "standard", np.arange(120) * 30.44 + 15),
    ("months since 1990-01-01", "standard", np.arange(120)),
    ("days since 1850-01-01", "360_day", 140 * 360 + np.arange(120) * 30),
    ("hours since 1850-03-01", "noleap", 24 * (140 * 365 - 59 + np.arange(10).repeat(12) * 365
                                               + np.tile(np.arange(12) * 30, 10))),
])
def test_years_of_units_and_calendars(tmp_path, units, calendar, times):
    path = write(tmp_path / "a.nc", {"t": (ALL, np.resize(FIELD, (120, 20, 24)))},
                 {"time": (times, units)} | lonlat(), time={"calendar": calendar})
    np.testing.assert_array_equal(read_fields(path).years, np.arange(1990, 2000).repeat(12))


def test_two_variables_are_two_channels_and_empty_steps_are_left_out(tmp_path):
    u, v = FIELD, FIELD[::-1].copy()
    v[3] = np.nan
    path = write(tmp_path / "wind.nc", {"U": (ALL, u), "V": (ALL, v)}, months() | lonlat(),
                 U={"units": "m/s"}, V={"units": "m/s"})
    data = open_data(str(path), variables=("u", "V"))
    assert data.channels == 2 and data.units == "m/s" and len(data.train) == 23
    np.testing.assert_allclose(data.to_physical(data.train.example(0))[..., 1], v[0], rtol=1e-4)


def test_one_field_is_split_by_longitude(tmp_path):
    heights = np.arange(20 * 80, dtype=np.float32).reshape(20, 80)
    path = write(tmp_path / "topo.cdf", {"z": (("lat", "lon"), heights)}, lonlat(20, 80))
    data = open_data(str(path), image_size=10)

    def columns(fields):
        return {float(x) % 80 for field in fields for x in np.unique(np.round(
            data.to_physical(field)))}

    train, val, test = (columns(split.example(i) for i in range(len(split)))
                        for split in (data.train, data.val, data.test))
    assert max(train) < min(val) and max(val) < min(test) == 70
    rng = np.random.default_rng(0)
    assert max(columns(data.train.training_example(0, rng) for _ in range(20))) < 60


# --- files ----------------------------------------------------------------------------------------


def test_netcdf_4(tmp_path, monkeypatch):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5py")
    values = np.random.default_rng(0).normal(size=(12, 8, 9))
    values[:, 0, 0] = np.nan
    array = xarray.DataArray(values, dims=("time", "y", "x"), attrs={"units": "K"})
    path = tmp_path / "a.nc"
    array.to_dataset(name="t").to_netcdf(path, engine="h5netcdf")
    data = open_data(str(path), variables=["t"])
    assert data.units == "K" and np.isnan(data.train.example(0)[0, 0, 0])
    with monkeypatch.context() as patch:
        for name in ("h5netcdf", "netCDF4"):
            patch.setitem(sys.modules, name, None)
        refuse(path, "pip install h5netcdf")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    refuse(path, "broken or cut off")


def refuse(path, words, **settings):
    with pytest.raises(UserError) as refused:
        open_data(str(path), **settings)
    assert words in str(refused.value) and "\n" not in str(refused.value)


REFUSED = {
    "another variable": ({"sst": (ALL, FIELD)}, {"variables": ["salt"]}, "no variable 'salt'"),
    "two fields": ({"u": (ALL, FIELD), "v": (ALL, FIELD)}, {}, "which variable? give --variables"),
    "stations": ({"t": (("lon",), FIELD[0, 0])}, {"variables": ["t"]}, "lists of stations"),
    "no field": ({"t": (("lon",), FIELD[0, 0])}, {}, "no fields of axes"),
    "four axes": ({"t": (("time", "level", "lat", "lon"), np.stack([FIELD] * 2, 1))},
                  {"variables": ["t"]}, "choose one step of the others"),
    "other axes": ({"u": (ALL, FIELD), "h": (("lat", "lon"), FIELD[0])},
                   {"variables": ["u", "h"]}, "lie on other axes"),
    "all missing": ({"t": (ALL, np.full_like(FIELD, np.nan))}, {}, "all of t is missing"),
    "infinite": ({"t": (ALL, np.where(FIELD > 22, np.inf, FIELD).astype(np.float32))}, {},
                 "infinite values"),
    "a code": ({"t": (ALL, np.where(FIELD > 22, -9999, FIELD).astype(np.float32))}, {},
               "_FillValue"),
    "mostly land": ({"t": (ALL, np.where(FIELD > 22, FIELD, np.nan).astype(np.float32))}, {},
                    "no tile of 20 x 24 points of which half exist"),
    "one small field": ({"t": (("lat", "lon"), FIELD[0])}, {}, "cannot be split"),
    "a range of one point": ({"t": (ALL, FIELD)}, {"value_range": (1, 1)}, "below its hi"),
    "a range in another unit": ({"t": (ALL, FIELD)}, {"value_range": (280, 310)},
                                "lie far outside 280 to 310"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path, name):
    variables, settings, words = REFUSED[name]
    refuse(write(tmp_path / "a.nc", variables,
                 months() | lonlat() | {"level": (np.arange(2.0), "m")}), words, **settings)


def test_steps_of_another_grid_and_classes_are_said(sea, tmp_path, caplog):
    kinds = np.random.default_rng(0).choice([1, 2, 3], FIELD.shape).astype(np.int16)
    half = {"lat": (np.linspace(-25, 25, 20), "degrees_north"), "lon": lonlat()["lon"]}
    other = write(tmp_path / "b.nc", {"sst": (ALL, kinds)}, months() | half,
                  sst={"flag_meanings": "water forest town", "units": "degC"})
    open_data(str(sea[0]), val=str(sea[0]), test=str(sea[0]))
    assert not caplog.text
    open_data(str(sea[0]), val=str(other))
    assert "b.nc: steps of 2.632 and 15.22, those of" in caplog.text
    assert "sst looks like flags or classes" in caplog.text


def test_validation_in_another_unit_is_refused(sea, tmp_path):
    kelvin = write(tmp_path / "k.nc", {"sst": (ALL, FIELD + 273)}, months() | lonlat(),
                   sst={"units": "K"})
    refuse(sea[0], "in K", val=str(kelvin))


@pytest.mark.parametrize("content, words", [
    (b"", "no NetCDF file"), (b"lon,lat,sst\n1,2,3\n", "no NetCDF file"), (b"CDF\x01", "cut off"),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "broken or cut off"), (b"CDF\x05" + bytes(50), "CDF-5"),
])
def test_files_that_are_no_netcdf(tmp_path, content, words):
    (tmp_path / "a.nc").write_bytes(content)
    refuse(tmp_path / "a.nc", words)


def test_variables_are_of_netcdf():
    refuse("photos", "is no NetCDF file", variables=["sst"])
