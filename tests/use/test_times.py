"""Fields that move: times in tables, arrays and files, as they are asked for and given back."""

from __future__ import annotations

import re

import numpy as np
import pandas
import pytest
import xarray
from PIL import Image

from browser import browse
from sparsefield import load
from sparsefield.errors import UserError
from sparsefield.use import holdout, points
from sparsefield.use.blocks import stretches_of
from sparsefield.use.grids import Frame
from sparsefield.use.times import Times, of_values

KRIGING = load("none")
FEW = {"num_samples": 2}
DAYS = pandas.date_range("2020-03-01", periods=5, freq="12h")


def wave(x, y, t):
    """A hill that moves to the right, from places in the unit square and times in steps."""
    return 20 + 5 * np.sin(4 * x - 0.8 * t) * np.cos(3 * y)


def measured(per_frame=15, frames=5, seed=0):
    """Coordinates (M, 2), values (M,), steps in time (M,): other places at each time."""
    rng = np.random.default_rng(seed)
    coords = rng.uniform(size=(per_frame * frames, 2))
    steps = np.repeat(np.arange(frames), per_frame)
    return coords, wave(*coords.T, steps), steps


def table(**columns) -> pandas.DataFrame:
    coords, values, steps = measured()
    return pandas.DataFrame({"x": coords[:, 0], "y": coords[:, 1], "date": DAYS[steps],
                             "heat": values, **columns})


def stack(**changes) -> xarray.DataArray:
    """(time, y, x) with gaps, and no value at all at one time."""
    axis = (np.arange(8) + 0.5) / 8
    values = wave(axis, axis[:, None], np.arange(5)[:, None, None])
    values[np.random.default_rng(0).uniform(size=values.shape) < 0.7] = np.nan
    values[2] = np.nan
    array = xarray.DataArray(values, {"time": DAYS, "y": axis, "x": axis}, ("time", "y", "x"),
                             "heat", {"units": "K"})
    return array.assign_coords(changes)


def write_stack(path, **changes):
    stack(**changes).to_dataset().to_netcdf(path, engine="scipy")
    return path


# --- Python ---------------------------------------------------------------------------------------


def test_other_times_tell_of_a_field_that_moves():
    coords, values, steps = measured()
    field = KRIGING.reconstruct(coords, values, 8, times=steps, **FEW)
    x, y = field.grid.places[..., 0], field.grid.places[..., 1]
    truth = np.stack([wave(x, y, t) for t in range(5)])[..., None]
    assert field.mean.shape == (5, 8, 8, 1) and field.samples.shape == (2, 5, 8, 8, 1)
    alone = np.stack([KRIGING.reconstruct(coords[steps == t], values[steps == t], 8, **FEW).mean
                      for t in range(5)])
    def rmse(mean):
        return ((mean - truth) ** 2).mean() ** 0.5
    assert rmse(field.mean) < 0.6 * rmse(alone)
    assert re.fullmatch(r"time: 1 unit counts as a distance of [\d.]+ units of x", field.in_time)


@pytest.mark.parametrize("given", [
    np.arange(5.0), DAYS, DAYS.strftime("%Y-%m-%dT%H:%MZ"), DAYS.tz_localize("Asia/Tokyo"),
    ["2020-03-01T01:00+01:00", *DAYS[1:].strftime("%Y-%m-%dT%H:%M:%SZ")]])
def test_times_may_be_numbers_or_dates_with_and_without_zones(given):
    """The field depends on their order alone, whatever they are called."""
    coords, values, steps = measured()
    moments = np.asarray(given)[steps] if not isinstance(given, pandas.DatetimeIndex) else (
        given[steps])
    field = KRIGING.reconstruct(coords, values, 4, times=moments, **FEW)
    plain = KRIGING.reconstruct(coords, values, 4, times=steps, **FEW)
    np.testing.assert_array_equal(field.mean, plain.mean)


def test_the_sd_grows_outside_the_measured_times_and_a_line_says_so(caplog):
    frame = table()
    field = KRIGING.reconstruct(frame, value="heat", times="date", resolution=4, **FEW,
                                at_times=["2020-03-02", "2020-03-03T18:00", "2020-03-20"])
    inside, near, far = field.sd.mean(axis=(1, 2, 3))
    assert inside < near < far
    assert "2 of 3 times lie outside those measured, 2020-03-01 to 2020-03-03" in caplog.text


def test_a_stack_comes_back_filled_with_its_coordinates_and_attributes():
    given = stack()
    field = KRIGING.reconstruct(given, **FEW)
    filled = field.to_xarray()["mean"]
    assert filled.dims == given.dims and filled.attrs["units"] == "K"
    xarray.testing.assert_identical(filled.coords["time"], given.coords["time"])
    np.testing.assert_allclose(filled.where(given.notnull()), given, rtol=1e-6)
    assert filled.notnull().all()
    turned = KRIGING.reconstruct(given.transpose("y", "time", "x")[:, ::-1], **FEW).to_xarray()
    np.testing.assert_allclose(turned["mean"].sortby("time").transpose(*given.dims), filled,
                               atol=1e-3)


def test_one_time_is_no_other_field_than_without_time():
    coords, values, _ = measured(frames=1)
    plain = KRIGING.reconstruct(coords, values, 8, **FEW)
    timed = KRIGING.reconstruct(coords, values, 8, times=np.full(len(values), 7.0), **FEW)
    np.testing.assert_array_equal(timed.mean[0], plain.mean)
    np.testing.assert_array_equal(timed.samples[:, 0], plain.samples)


def test_covariates_may_stand_still_beside_times():
    coords, values, steps = measured()
    grid = KRIGING.reconstruct(coords, values, 6, **FEW).grid.places
    tilt = 10 * coords[:, 0] ** 2
    field = KRIGING.reconstruct(coords, values + tilt, 6, times=steps, covariates=tilt,
                                covariates_at=10 * grid[..., 0] ** 2, **FEW)
    assert field.mean.shape == (5, 6, 6, 1) and field.in_time
    assert re.match("covariate 1: drift (0.9|1.0)", field.covariates[0])


def test_places_have_times_of_their_own():
    coords, values, steps = measured()
    field = KRIGING.at(coords[::10], coords, values, times=steps, at_times=steps[::10], **FEW)
    np.testing.assert_allclose(field.mean[:, 0], values[::10], rtol=1e-6)
    assert list(field.to_dataframe()) == ["time", "x", "y", "mean", "sd"]


@pytest.mark.parametrize("times, at_times, words", [
    (["2020-03-01", "yesterday"], None, "time of measurement 2, 'yesterday', is no time"),
    (["2020-03-01T00:00Z", "2020-03-02"], None, "measurement 2, 2020-03-02, has no zone"),
    ([1.0], None, r"times (1,): give one for each of the 2"),
    ([True, False], None, "are no times"),
    ([[1.0], [2.0]], None, "times (2, 1): give one or more, in one dimension"),
    ([1.0, 2.0], [], "times (0,): give one or more"),
    (None, [1.0], "times and at_times go together"),
    ([1.0, 2.0], ["2020-03-01"], "time is given in numbers"),
    (["2020-03-01", "2020-03-02"], [3.0], "time is given in dates, such as 2020-03-01"),
])
def test_times_that_cannot_be_used_are_refused_in_one_line(times, at_times, words):
    with pytest.raises(UserError) as refused:
        KRIGING.reconstruct([[0, 0], [1, 1]], [1.0, 2.0], 4, times=times, at_times=at_times)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_column_of_times_may_have_the_name_of_a_map():
    field = KRIGING.reconstruct(table().rename(columns={"date": "sd"}), value="heat", times="sd",
                                resolution=3, **FEW)
    assert list(field.to_dataframe()) == ["time", "x", "y", "mean", "sd"]


def test_more_frames_than_fit_in_memory_are_refused():
    coords, values, _ = measured()
    with pytest.raises(UserError, match="75 times of 300 x 300 cells: at most 4,000,000 in all"):
        KRIGING.reconstruct(coords, values, (300, 300), times=np.arange(75.0))


def test_dates_written_as_numbers_are_dates():
    for days, gap in (([20200131, 20200201], 1), ([201912, 202001], 31)):
        found = of_values("a table", days)
        assert found.unit == "day" and np.diff(found.values) == gap


def test_times_are_told_apart_to_the_microsecond_and_come_back():
    texts = ["2020-03-01T10:00:00.000001", "2020-03-01T10:00:00.000002", "2020-03-04T08:00:00"]
    found = of_values("a table", texts)
    assert found.labels()[:2] == texts[:2]
    thirds = Times(np.array([1 / 3, 1000 + 2 / 3]), "time", "days since 2020-01-01", "standard")
    assert thirds.labels() == ["2020-01-01T08:00", "2022-09-27T16:00"]


def test_a_calendar_that_cannot_be_decoded_stays_numbers():
    odd = Times(np.array([0.0, 30.0]), "time", "days since 2000-01-01", "360_day")
    assert odd.labels() == ["0 days since 2000-01-01", "30 days since 2000-01-01"]
    assert odd.read("--times", [15.0]).values == [15.0]
    variable = odd.as_variable("time")
    assert variable.attrs["calendar"] == "360_day" and variable.attrs["units"] == odd.units


# --- the command ----------------------------------------------------------------------------------


def test_a_table_with_dates_becomes_a_film_and_a_stack(command, tmp_path):
    table().sample(frac=1, random_state=0).to_csv(tmp_path / "heat.csv", index=False)
    code, out, _ = command("heat.csv", "--time", "date", "--above", 20)
    assert code == 0 and "date: 1 hour counts as" in out and "5x8x" in out
    with xarray.open_dataset(tmp_path / "out/field.nc", decode_times=False) as raw:
        assert raw["date"].units == "hours since 2020-03-01"
        assert raw["mean"].dims == ("date", "y", "x")
    with xarray.open_dataset(tmp_path / "out/field.nc") as data:
        np.testing.assert_array_equal(data["date"], DAYS)
        rows = pandas.read_csv(tmp_path / "out/field.csv", parse_dates=["date"])
        assert list(rows) == ["date", "x", "y", "mean", "sd", "probability_above_20"]
        np.testing.assert_allclose(rows["mean"], data["mean"].values.ravel(), rtol=1e-6)
    with Image.open(tmp_path / "out/field.gif") as film:
        assert film.n_frames == 5


def test_a_time_without_measurements_may_be_asked_for_alone(command, tmp_path):
    write_stack(tmp_path / "sea.nc")
    code, _, err = command("sea.nc", "--time", "time", "--times", "2020-03-02T01:00", "--page")
    assert (code, err) == (0, "") and (tmp_path / "out/reconstruction.png").exists()
    with xarray.open_dataset(tmp_path / "out/field.nc") as data:
        truth = wave(data["x"].values, data["y"].values[:, None], 25 / 12)
        assert np.abs(data["mean"].values[0] - truth).max() < 0.5


def test_a_stack_is_filled_in_its_own_units_and_calendar(command, tmp_path):
    path = write_stack(tmp_path / "sea.nc")
    with xarray.open_dataset(path, decode_times=False) as raw:
        before = raw["time"].load()
    code, out, _ = command("sea.nc", "--time", "time", "--resolution", "auto")
    assert code == 0 and "heat (time 5, y 8, x 8)" in out
    with xarray.open_dataset(tmp_path / "out/field.nc", decode_times=False) as found:
        np.testing.assert_array_equal(found["time"], before)
        assert found["time"].attrs["units"] == before.attrs["units"]
        assert found["mean"].shape == (5, 8, 8) and found["mean"].units == "K"


def test_stations_that_report_on_one_time_axis_are_a_table(command, tmp_path):
    coords, _, _ = measured(12, 1)
    xarray.Dataset(
        {"heat": (("time", "station"), wave(*coords.T, np.arange(5)[:, None]), {"units": "K"}),
         "x": ("station", coords[:, 0]), "y": ("station", coords[:, 1])},
        {"time": ("time", np.arange(5), {"units": "days since 2020-03-01"})},
    ).to_netcdf(tmp_path / "stations.nc", engine="scipy")
    code, out, _ = command("stations.nc", "--time", "time", "--times", "2020-03-01:2020-03-02:6h")
    assert code == 0 and "60 points -> 5x8x" in out


@pytest.mark.parametrize("flags, words", [
    (("--time", "when"), "--time when is none of them"),
    (("--times", "1"), "give --time, too"),
    (("--holdout", 0.2, "--holdout_by", "times"), "give --time, too"),
    (("--time", "date", "--times", "0:10:1"), "is given in dates, such as 2020-03-01"),
    (("--time", "date", "--times", "2020-03-01:2020-03-02:soon"), "no dates with a step"),
    (("--time", "date", "--observe", "random:0.5"), "are for a picture"),
    (("--time", "x"), "which are x and y?"),
    (("--time", "date", "--checkpoint", "bundled", "--value", "heat"), "learnt sequences"),
])
def test_flags_of_time_that_make_no_sense_are_refused(command, tmp_path, flags, words):
    table().to_csv(tmp_path / "heat.csv", index=False)
    code, _, err = command("heat.csv", *flags)
    assert code == 2 and words in err and err.count("\n") == 1


@pytest.mark.parametrize("array, words", [
    (stack().isel(time=0, drop=True), "has no axis time"),
    (stack().fillna(0), "has no gap"),
    (stack().drop_vars("time"), "axis time has no values"),
    (stack(time=("time", [1.0, 2.0, np.nan, 4.0, 5.0], {"units": "s"})), "times that are missing"),
])
def test_stacks_that_cannot_be_filled_are_refused(command, tmp_path, array, words):
    array.to_dataset(name="heat").to_netcdf(tmp_path / "sea.nc", engine="scipy")
    code, _, err = command("sea.nc", "--time", "time", "--resolution", "auto")
    assert code == 2 and words in err and err.count("\n") == 1


def test_times_that_go_backward_are_sorted_and_repeats_are_averaged(command, tmp_path):
    write_stack(tmp_path / "sea.nc", time=("time", [3.0, 1.0, 1.0, 0.0, 4.0], {"units": "hours"}))
    code, out, _ = command("sea.nc", "--time", "time", "--resolution", "auto")
    assert code == 0 and "goes backward in places: sorted" in out
    with xarray.open_dataset(tmp_path / "out/field.nc") as found:
        np.testing.assert_array_equal(found["time"], [0, 1, 3, 4])


def test_the_page_has_a_slider_of_time(command, tmp_path):
    write_stack(tmp_path / "sea.nc")
    code, *_ = command("sea.nc", "--time", "time", "--resolution", "auto", "--page",
                       "--num_samples", 8)
    assert code == 0
    seen, _, said = browse(tmp_path / "out/field.html", """(async () => {
      const slider = document.getElementById("time"), seen = [];
      for (const time of [0, 2, 4]) {
        slider.value = time;
        slider.dispatchEvent(new Event("input"));
        await new Promise(go => setTimeout(go, 300));
        const drawn = document.getElementById("map-0").data;
        seen.push({when: document.getElementById("when").textContent, mean: drawn[0].z,
                   points: drawn.at(-1).x.length,
                   top: document.getElementById("map-1").data[0].zmax});
      }
      return seen;
    })""")
    assert said == [] and [one["when"] for one in seen] == [
        "2020-03-01T00:00", "2020-03-02T00:00", "2020-03-03T00:00"]
    means = np.load(tmp_path / "out/field.npz")["mean"][[0, 2, 4], ..., 0]
    np.testing.assert_allclose([one["mean"] for one in seen], means, atol=1e-3)
    assert seen[0]["points"] == np.isfinite(stack()[0]).sum()
    assert seen[1]["points"] == 2  # the line of the section alone: nothing was measured
    assert len({one["top"] for one in seen}) == 1  # the colours of the sd stay


# --- hold-out -------------------------------------------------------------------------------------


def stations(values, frames=8, count=12):
    """A table of fixed places that all report at each time, from values(x, y, t)."""
    coords = np.random.default_rng(3).uniform(size=(count, 2))
    x, y = (np.tile(column, frames) for column in coords.T)
    t = np.repeat(np.arange(frames), count)
    return pandas.DataFrame({"x": x, "y": y, "t": t, "heat": values(x, y, t)})


@pytest.mark.parametrize("values, words", [
    (wave, "other times help: CRPS -"),
    (lambda x, y, t: np.sin(4 * x + 31 * t**2) + 30 * np.cos(29 * t**2),
     "time brings nothing that shows|other times do harm"),
])
def test_the_command_says_whether_other_times_help(command, tmp_path, values, words):
    stations(values, count=40).to_csv(tmp_path / "heat.csv", index=False)
    code, out, _ = command("heat.csv", "--time", "t", "--holdout", 0.2)
    assert code == 0 and re.search(words, out)
    assert all(f"\n{name} " in out for name in ("frame by frame", "linear in time", "constant"))


@pytest.mark.parametrize("by, hides", [
    ("places", lambda kept, hidden: not kept & hidden),
    ("points", lambda kept, hidden: hidden <= kept),
])
def test_whole_places_or_some_of_their_times_are_hidden(by, hides):
    frame = stations(wave)
    given = points.Measurements(frame[["x", "y"]].to_numpy(), frame[["heat"]].to_numpy(),
                                times=of_values("", frame["t"]))
    kept, hidden = holdout.split(given, 0.25, 0, whole=by == "places")
    assert len(hidden.coords) == 24 and len(kept.coords) == 72
    assert hides(*(set(part.coords[:, 0]) for part in (kept, hidden)))


def test_stretches_of_time_are_hidden_whole():
    times = of_values("", np.repeat(np.arange(40), 3))
    found = stretches_of(times, 0.2, seed=0)
    assert found.length == 2 and found.fold.max() == 4
    for number in range(20):
        own = found.number == number
        assert own.sum() == 6 and len(set(found.fold[own])) == 1
        assert np.ptp(times.values[own]) == 1


def test_linear_in_time_goes_between_the_values_of_a_place():
    frame = stations(lambda x, y, t: x + 2.0 * t)
    given = points.Measurements(frame[["x", "y"]].to_numpy(), frame[["heat"]].to_numpy(),
                                times=of_values("", frame["t"]))
    method = holdout.linear_in_time(Frame.of(given, (0, 1, 0, 1)))
    asked = np.column_stack([given.coords[:2], [2.5, 99.0]])
    np.testing.assert_allclose(method(given, asked).mean[:, 0],
                               given.coords[:2, 0] + [5.0, 14.0])
