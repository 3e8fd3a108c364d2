"""Elevation inside matplotlib, and fields of NetCDF files: what is read, cut, split and refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import netcdf_file

from sparsefield.data import TrainingBatches, open_data, parse_pattern, sources
from sparsefield.data.netcdf import read_dataset, read_fields
from sparsefield.errors import UserError


def write(path, variables, axes, **attributes):
    """A classic NetCDF: variables name -> (dims, array), axes name -> (values, units)."""
    with netcdf_file(path, "w") as file:
        for name, (values, units) in axes.items():
            file.createDimension(name, len(values))
            axis = file.createVariable(name, "d", (name,))
            axis[:], axis.units = values, units
        for name, (dims, array) in variables.items():
            variable = file.createVariable(name, array.dtype.char, dims)
            variable[:] = array
            for key, value in attributes.get(name, {}).items():
                setattr(variable, key, value)
    return path


def lonlat(height=20, width=80):
    return {"lat": (np.linspace(-50, 50, height), "degrees_north"),
            "lon": (np.linspace(0, 350, width), "degrees_east")}


def months(count):
    return {"time": (np.arange(count) * 730.5, "hours since 1990-01-16 00:00:00")}


@pytest.fixture
def sea(tmp_path):
    """Four years of months with land, packed in 16 bits."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 3000, (48, 20, 24)).astype(np.int16)
    packed[:, :5, :6] = -999
    return write(tmp_path / "sea.nc", {"sst": (("time", "lat", "lon"), packed)},
                 months(48) | lonlat(20, 24),
                 sst={"_FillValue": np.int16(-999), "scale_factor": 0.01, "add_offset": 2.0,
                      "units": "degC"}), packed


# --- terrain --------------------------------------------------------------------------------------


def test_terrain_is_in_metres_and_split_by_place():
    data = open_data("terrain")
    assert (data.height, data.width, data.channels, data.units) == (32, 32, 1, "m")
    heights = data.to_physical(data.test.example(0))
    assert 236 <= heights.min() < heights.max() <= 1076
    for (file, first, last) in sources.TERRAIN["val"] + sources.TERRAIN["test"]:
        assert all(other != file or stop <= first or start >= last
                   for other, start, stop in sources.TERRAIN["train"])
    again = open_data("terrain")
    np.testing.assert_array_equal(data.val.example(5), again.val.example(5))
    assert data.fingerprint == again.fingerprint != open_data("terrain", image_size=16).fingerprint


@pytest.mark.parametrize("image_size", [16, 48, 64])
def test_terrain_of_other_sizes(image_size):
    data = open_data("terrain", image_size=image_size)
    rng = np.random.default_rng(0)
    for split in (data.train, data.val, data.test):
        assert split.training_example(1, rng).shape == split.example(0).shape == (
            image_size, image_size, 1)
    with pytest.raises(UserError, match="8 to 64"):
        open_data("terrain", image_size=65)


# --- NetCDF ---------------------------------------------------------------------------------------


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


def test_naming_the_only_variable_makes_no_other_data(sea):
    assert open_data(str(sea[0])).fingerprint == open_data(
        str(sea[0]), variables=["SST"]).fingerprint


def test_two_variables_are_two_channels(tmp_path):
    u, v = np.random.default_rng(0).normal(size=(2, 48, 20, 24)).astype(np.float32)
    path = write(tmp_path / "wind.nc", {"U": (("time", "lat", "lon"), u),
                                        "V": (("time", "lat", "lon"), v)},
                 months(48) | lonlat(20, 24), U={"units": "m/s"}, V={"units": "m/s"})
    data = open_data(str(path), variables=("u", "V"))
    assert data.channels == 2 and data.units == "m/s"
    np.testing.assert_allclose(data.to_physical(data.train.example(0))[..., 1], v[0], rtol=1e-4,
                               atol=1e-5)


def test_one_field_is_split_by_longitude(tmp_path):
    heights = np.arange(20 * 80, dtype=np.float32).reshape(20, 80)
    path = write(tmp_path / "topo.cdf", {"z": (("lat", "lon"), heights)}, lonlat())
    data = open_data(str(path), image_size=10)
    columns = [{float(x) % 80 for i in range(len(split)) for x in
                np.unique(np.round(data.to_physical(split.example(i))))}
               for split in (data.train, data.val, data.test)]
    assert max(columns[0]) < min(columns[1]) and max(columns[1]) < min(columns[2]) == 70
    rng = np.random.default_rng(0)
    assert max(float(x) % 80 for _ in range(20) for x in np.unique(np.round(
        data.to_physical(data.train.training_example(0, rng))))) < 60


def test_axes_in_another_order_and_axes_of_one_step(tmp_path):
    values = np.random.default_rng(0).normal(size=(48, 1, 24, 20)).astype(np.float32)
    path = write(tmp_path / "a.nc", {"t": (("time", "level", "lon", "lat"), values)},
                 months(48) | {"level": (np.zeros(1), "m")} | lonlat(20, 24))
    fields = read_fields(path, None).values
    np.testing.assert_array_equal(fields[..., 0], values[:, 0].swapaxes(1, 2))


def test_steps_without_any_value_are_left_out(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 8, 9)).astype(np.float32)
    values[3] = np.nan
    path = write(tmp_path / "a.nc", {"t": (("time", "lat", "lon"), values)},
                 {"time": (np.arange(10.0), "days since 2000-01-01")} | lonlat(8, 9))
    data = open_data(str(path))
    assert [len(s) for s in (data.train, data.val, data.test)] == [7, 1, 1]


def test_parts_of_their_own(sea, tmp_path):
    path, _ = sea
    data = open_data(str(path), val=str(path), test=str(path))
    assert [len(s) for s in (data.train, data.val, data.test)] == [48, 48, 48]


def test_netcdf_4_by_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5py")
    values = np.random.default_rng(0).normal(size=(12, 8, 9))
    values[:, 0, 0] = np.nan
    array = xarray.DataArray(values, dims=("time", "y", "x"), attrs={"units": "K"})
    array.to_dataset(name="t").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    data = open_data(str(tmp_path / "a.nc"), variables=["t"])
    assert data.units == "K" and np.isnan(data.train.example(0)[0, 0, 0])
    _truncated(tmp_path / "a.nc")
    with pytest.raises(UserError, match="broken or cut off") as refused:
        open_data(str(tmp_path / "a.nc"), variables=["t"])
    assert "\n" not in str(refused.value)


def test_what_was_never_written_is_missing(tmp_path):
    values = np.full((3, 4), 9.969209968386869e36, np.float32)
    values[0] = 1
    path = write(tmp_path / "a.nc", {"t": (("lat", "lon"), values)}, lonlat(3, 4))
    assert np.isnan(read_dataset(path)["t"].values).sum() == 8


# --- what is refused ------------------------------------------------------------------------------


def _truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _header_only(path):
    path.write_bytes(path.read_bytes()[:60])


FIELD = np.random.default_rng(0).normal(size=(48, 20, 24)).astype(np.float32)
ALL = ("time", "lat", "lon")
REFUSED = {
    "another variable": ({"sst": (ALL, FIELD)}, {"variables": ["salt"]},
                         "no variable 'salt' of numbers; choose with --variables among"),
    "two fields": ({"u": (ALL, FIELD), "v": (ALL, FIELD)}, {}, "which variable? give --variables"),
    "stations": ({"t": (("lon",), FIELD[0, 0])}, {"variables": ["t"]}, "lists of stations"),
    "no field": ({"t": (("lon",), FIELD[0, 0])}, {}, "no fields of axes"),
    "four axes": ({"t": (("level", *ALL), np.stack([FIELD] * 2))}, {"variables": ["t"]},
                  "choose one step of the others"),
    "other axes": ({"u": (ALL, FIELD), "h": (("lat", "lon"), FIELD[0])},
                   {"variables": ["u", "h"]}, "lie on other axes"),
    "all missing": ({"t": (ALL, np.full_like(FIELD, np.nan))}, {}, "all of t is missing"),
    "infinite": ({"t": (ALL, np.where(FIELD > 2, np.inf, FIELD).astype(np.float32))}, {},
                 "infinite values"),
    "a code": ({"t": (ALL, np.where(FIELD > 2, -9999, FIELD).astype(np.float32))}, {},
               "mark it as _FillValue"),
    "mostly land": ({"t": (ALL, np.where(FIELD > 1, FIELD, np.nan).astype(np.float32))}, {},
                    "no tile of 20 x 24 points of which half exist"),
    "one small field": ({"t": (("lat", "lon"), FIELD[0])}, {}, "cannot be split"),
    "a range of one point": ({"t": (ALL, FIELD)}, {"value_range": (1, 1)}, "below its hi"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path, name):
    variables, settings, words = REFUSED[name]
    path = write(tmp_path / "a.nc", variables,
                 months(48) | lonlat(20, 24) | {"level": (np.arange(2.0), "m")})
    with pytest.raises(UserError) as refused:
        open_data(str(path), **settings)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("spoil", [_truncated, _header_only])
def test_files_that_are_cut_off(sea, spoil):
    spoil(sea[0])
    with pytest.raises(UserError, match="cut off"):
        open_data(str(sea[0]))


@pytest.mark.parametrize("content, words", [
    (b"", "no NetCDF file"), (b"lon,lat,sst\n1,2,3\n", "no NetCDF file"), (b"CDF\x01", "cut off"),
    (b"\x89HDF\r\n\x1a\n" + bytes(50), "broken or cut off"),
])
def test_files_that_are_no_netcdf(tmp_path, content, words):
    (tmp_path / "a.nc").write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        open_data(str(tmp_path / "a.nc"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spec", ["photos", "terrain", "a.npz"])
def test_variables_are_of_netcdf(tmp_path, spec):
    np.savez(tmp_path / "a.npz", images=FIELD)
    spec = str(tmp_path / spec) if spec.endswith("npz") else spec
    with pytest.raises(UserError, match="is no NetCDF file"):
        open_data(spec, variables=["sst"])
