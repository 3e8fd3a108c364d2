"""Files that were once lost, refused, or read wrongly without a word."""

import numpy as np
import pandas
import pytest
import tifffile
import xarray
from PIL import Image

from reconstruct import Config
from sparsefield import load
from sparsefield.data.netcdf import is_even
from sparsefield.data.pictures import read_picture
from sparsefield.errors import UserError
from sparsefield.use import large, mosaic
from sparsefield.use.times import of_values

RNG = np.random.default_rng(0)


def plane(side=40):
    """10 to 12, float32."""
    y, x = np.mgrid[:side, :side] / side
    return (10 + x + y).astype(np.float32)


def test_a_covariate_in_the_folder_of_results_stays(command):
    Image.fromarray(RNG.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save("pic.png")
    Image.fromarray(RNG.integers(0, 255, (16, 16), dtype=np.uint8)).save("mean.png")
    code, _, err = command("pic.png", "--observe", "random:0.5", "--covariates", "mean.png",
                           "--out", ".")
    assert code == 2 and "mean.png" in err
    assert Image.open("mean.png").mode == "L"


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
def test_codes_that_float32_rounds_are_missing(command, name):
    values = np.where(RNG.random((40, 40)) < 0.5, np.float32(-999.9), plane())
    np.save(name, values) if name == "a.npy" else tifffile.imwrite(name, values)
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save("mask.png")
    code, _, err = command(name, "--missing", "-999.9", "--mask", "mask.png", "--checkpoint",
                           "none", "--resolution", "auto")
    assert code == 0, err
    assert np.load("out/field.npz")["mean"].min() > 9


def test_pixels_under_the_mask_of_a_tiff_are_not_known(tmp_path):
    masked = RNG.random((40, 40)) < 0.3
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.where(masked, 0, plane()))
        file.write(~masked, subfiletype=4, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[1].is_mask
    assert np.array_equal(read_picture(tmp_path / "a.tif").known, ~masked)


def test_a_mask_with_a_palette_is_refused_in_tiles(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=40, width=40, count=1,
                       dtype="float32") as file:
        file.write(plane(), 1)
    mask = Image.fromarray((plane() > 11).astype(np.uint8), "P")
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="places in a palette"):
        large.Raster(large.Picture(str(tmp_path / "a.tif")), str(tmp_path / "mask.png"), None)


def test_steps_that_float32_rounds_are_even():
    for axis in (np.arange(-180, 180, 0.01, np.float32), np.linspace(140, 142, 201, dtype="f4")):
        assert is_even(axis, 1e-3) and is_even(axis.astype(float), 1e-3)
    assert not is_even(np.array([0, 0.01, 0.021], np.float32), 1e-3)
    assert not is_even(5e6 + np.array([0.0, 10, 21]), 1e-3)  # metres


def test_between_a_million_cells_and_the_largest_side_tiles_answer(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    tifffile.imwrite(tmp_path / "a.tif", plane())
    config = Config(str(tmp_path / "a.tif"))
    assert not mosaic.is_beyond(config)
    monkeypatch.setattr(mosaic, "MOST_POINTS", 1000)
    assert mosaic.is_beyond(config)


def test_a_range_that_the_model_of_any_quantity_does_not_take_stops_nothing(command):
    x, y = 100 * RNG.random((2, 60))
    pandas.DataFrame({"x": x, "y": y, "v": np.sin(x / 20)}).to_csv("a.csv", index=False)
    code, out, err = command("a.csv", "--value_range", "-3", "3")
    assert code == 0 and "kriging answers: the model of any quantity needs no --value_range" in out
    code, out, err = command("a.csv", "--value_range", "-3", "3", "--holdout", "0.2")
    assert code == 0 and "--checkpoint fields" in out, err
    code, out, err = command("a.csv", "--value", "v", "--transform", "log", "--value_range", "0",
                             "10", "--out", "b")
    assert code == 2 and "value" in err  # some are below 0
    pandas.DataFrame({"x": x, "y": y, "v": np.exp(x / 90)}).to_csv("a.csv", index=False)
    code, _, err = command("a.csv", "--transform", "log", "--value_range", "0", "10", "--out", "b")
    assert code == 0, err


def test_missing_longitudes_are_no_degrees_and_hide_no_warning(command):
    lon, lat = RNG.uniform(-179, 179, 40), RNG.uniform(-80, 80, 40)
    table = pandas.DataFrame({"lon": lon, "lat": lat, "v": np.sin(lat / 30)})
    table.loc[3, ["lon", "lat"]] = -9999
    table.to_csv("codes.csv", index=False)
    code, out, err = command("codes.csv", "--missing", "-9999")
    assert code == 0 and "longitudes span" in out, err
    table.loc[3, ["lon", "lat"]] = np.nan
    table.to_csv("gaps.csv", index=False)
    code, out, err = command("gaps.csv", "--out", "b")
    assert code == 0 and "longitudes span" in out, err


def test_one_moment_with_seconds_is_no_range():
    times = of_values("a", pandas.date_range("2020-01-01", periods=9, freq="6h").to_series(), "t")
    assert len(times.asked(["2020-01-02T12:00:00"]).values) == 1
    assert len(times.asked(["2020-01-01:2020-01-02:6h"]).values) == 5


def test_parquet_with_an_index_has_its_columns(command):
    pytest.importorskip("pyarrow")
    y, x = np.mgrid[:8, :8]
    frame = pandas.DataFrame({"y": y.ravel(), "x": x.ravel(), "v": (x + y).ravel() / 3})
    frame.set_index(["y", "x"]).to_parquet("a.parquet")
    code, out, err = command("a.parquet")
    assert code == 0 and "x = x, y = y, value = v" in out, err


def test_columns_may_be_called_by_their_years(command):
    pandas.DataFrame({"lon": RNG.random(20), "lat": RNG.random(20), "2019": 1 + RNG.random(20),
                      "2020": RNG.random(20)}).to_csv("a.csv", index=False)
    code, out, err = command("a.csv", "--value", "2019")
    assert code == 0 and "value = 2019" in out, err


def test_constant_values_with_noise_to_be_found(command, recwarn):
    x, y = RNG.random((2, 60))
    pandas.DataFrame({"x": x, "y": y, "v": 3.0}).to_csv("a.csv", index=False)
    assert command("a.csv", "--noise_sd", "auto")[0] == 0
    assert not [one for one in recwarn if "overflow" in str(one.message)]


def test_a_time_axis_without_times_is_one_line(command):
    xarray.DataArray(np.zeros((0, 5, 5)), {"time": np.zeros(0), "y": np.arange(5.0),
                                           "x": np.arange(5.0)}, ("time", "y", "x"), "v"
                     ).to_netcdf("a.nc", engine="scipy")
    code, _, err = command("a.nc", "--time", "time")
    assert code == 2 and err.count("\n") == 1


def test_noise_of_zero_does_not_open_a_full_grid(command):
    xarray.DataArray(plane(8), {"y": np.arange(8.0), "x": np.arange(8.0)}, ("y", "x"), "v"
                     ).to_netcdf("a.nc", engine="scipy")
    code, _, err = command("a.nc", "--noise_sd", "0", "--resolution", "auto")
    assert code == 2 and "has no gap" in err


def test_noise_in_another_order_of_rows_is_refused():
    frame = pandas.DataFrame({"x": RNG.random(9), "y": RNG.random(9), "v": RNG.random(9)})
    with pytest.raises(UserError, match="other indexes"):
        load("none").reconstruct(frame, noise_sd=frame["v"].sort_values())
