"""Models of sequences in use: frames of any size and at any times, as kriging and the evaluations
answer them."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
import xarray
from PIL import Image

from small import write_untrained
from sparsefield import load
from sparsefield.data import open_data, parse_pattern
from sparsefield.errors import UserError
from sparsefield.evaluate.cases import Cases
from sparsefield.place import Domain, Frames, Observed
from sparsefield.use import predict
from sparsefield.use.grids import Asked, Frame, Grid
from sparsefield.use.points import Measurements
from sparsefield.use.predict import Settings
from sparsefield.use.times import Times

KRIGING, FRAMES, UNIT = load("none"), 3, (0, 1, 0, 1)
COUNTS, TIMES = (12, 3, 20, 7), (0.0, 1.0, 1.5, 4.0)  # unequal frames, uneven steps


def awake(weights):
    """Last layers start as zeros; give them something to say."""
    torch.manual_seed(1)
    return {name: 0.1 * torch.randn_like(weight) if weight.dim() > 1 and not weight.any() else
            weight for name, weight in weights.items()}


def model(folder, start="spacetime", **changes):
    path = write_untrained(folder / "model.pth", 1, (-1.0, 1.0), sizes=dict(
        unet_width=8, flow_unet_width=4, time=FRAMES, time_start=start), **changes)
    return load(path)


def measured():
    """Of a hill that moves: coordinates, values whose own range is -1 to 1, times."""
    coords, when = np.random.default_rng(0).uniform(size=(sum(COUNTS), 2)), np.repeat(TIMES, COUNTS)
    values = np.sin(4 * coords[:, 0] - 0.5 * when) * np.cos(3 * coords[:, 1])
    return coords, (2 * (values - values.min()) / np.ptp(values) - 1) / 1.2, when


def on_unit_square(side, times):
    """A grid in the coordinates that evaluations have."""
    grid = Grid.over(UNIT, (side, side))
    return Asked(grid.places, UNIT, Frame(UNIT, (1.0, 1.0), False, Domain()), grid, times=times)


@pytest.mark.parametrize("noise_sd", [0.0, 0.1])
def test_a_network_that_predicts_0_is_kriging_in_space_and_time(tmp_path, noise_sd):
    coords, values, when = measured()
    settings = Settings(num_samples=3, noise_sd=noise_sd)
    asked = on_unit_square(9, Times(np.array([-1.0, 0.0, 1.2, 1.5, 5.0])))
    found, expected = (made.answer(settings.given(coords, values, times=when), asked, settings)
                       for made in (model(tmp_path), KRIGING))
    assert found.mean.shape == (5, 9, 9, 1) and found.in_time == expected.in_time != ""
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-4)
    np.testing.assert_allclose(found.samples, expected.samples, atol=1e-3)


def test_use_and_evaluation_give_the_same_numbers(tmp_path, monkeypatch):
    split = open_data("tracer", image_size=8, frames=FRAMES).test
    cases = Cases(split, parse_pattern("random:0.2"), range(FRAMES))
    made = model(tmp_path, change=awake)
    expected = 2 * np.stack(cases.sample(made.network, draws=2, clip=False).fields) - 1
    still = 2 * np.stack(cases.sample(KRIGING.network, draws=2).fields) - 1

    monkeypatch.setattr(predict, "noise_seed",
                        lambda seed, channel, draw, frame=0: cases[frame].seed(draw - 1))
    coords, values = (np.concatenate([getattr(case, name) for case in cases]).astype(float)
                      for name in ("coords", "values"))
    given = Settings().given(coords, values, times=np.repeat(range(FRAMES), len(coords) // FRAMES))
    field = made.answer(given, on_unit_square(8, given.times.distinct()), Settings(num_samples=2))
    np.testing.assert_allclose(field.samples[0], expected, atol=2e-3)
    assert np.abs(expected - still).max() > 0.1, "the network says nothing"


def test_what_fills_up_a_frame_tells_nothing(tmp_path):
    network = model(tmp_path, change=awake).network
    coords, values, _ = (torch.tensor(part, dtype=torch.float32) for part in measured())
    queries, counts = torch.rand(4, 30, 2), (*COUNTS[:3], 0)

    def answer(filling):
        places, known = (torch.full((4, 24, size), filling) for size in (2, 1))
        for b, own in enumerate(torch.arange(sum(counts)).split(counts)):
            places[b, : len(own)], known[b, : len(own), 0] = coords[own], values[own]
        observed = Observed(places, known, frames=Frames(4, torch.tensor(TIMES)), counts=counts)
        state = network.encode(observed, queries)
        z = state.noise([torch.Generator().manual_seed(k) for k in (0, 1) * 4])
        found = network.velocity(z, torch.full((8,), 0.5), state.repeat(2))
        return state.mean, state.sd, found

    with torch.no_grad():
        for one, other in zip(answer(0.1), answer(0.9), strict=True):
            assert one.abs().min() > 0 and torch.equal(one, other)


def test_frames_may_start_from_kriging_of_each(tmp_path, monkeypatch):
    made, (coords, values, when) = model(tmp_path, "frame"), measured()
    given = Settings().given(coords, values, times=when)
    field = made.answer(given, on_unit_square(6, given.times.distinct()), Settings())
    for k, time in enumerate(TIMES):
        own = Measurements(coords[when == time], values[when == time, None])
        expected = KRIGING.answer(own, on_unit_square(6, None), Settings())
        np.testing.assert_allclose(field.mean[k], expected.mean, atol=1e-3)
    with pytest.raises(UserError, match="1 of 5 times have no measurement"):
        made.reconstruct(coords, values, 6, times=when, at_times=[0.5])
    monkeypatch.setattr(predict, "MOST_CELLS", 99)
    with pytest.raises(UserError, match="4 times, measured or asked for, of 36 places: at most 99"):
        made.reconstruct(coords, values, 6, times=when, at_times=[0.0])


def test_a_stack_with_gaps_becomes_a_film_and_a_page(command, tmp_path):
    model(tmp_path)
    split = open_data("tracer", image_size=8, frames=5).test
    array = np.stack([split.example(k)[..., 0] for k in range(5)])
    array[np.random.default_rng(0).random(array.shape) > 0.3] = np.nan
    array[3] = np.nan  # nothing was measured
    axes = {"time": [0, 1, 2, 4, 7], "y": np.arange(8), "x": np.arange(8)}
    xarray.DataArray(array, axes, name="tracer").to_netcdf(tmp_path / "sea.nc", engine="scipy")
    flags = "sea.nc", "--time", "time", "--resolution", "auto"
    code, out, _ = command(*flags, "--checkpoint", "model.pth", "--page")
    assert code == 0 and "one sequence of 5 frame(s), all times that" in out
    assert (tmp_path / "out/field.html").exists()
    with Image.open(tmp_path / "out/field.gif") as film:
        assert film.n_frames == 5
    assert command(*flags, "--out", "kriging")[0] == 0
    found, expected = (xarray.load_dataset(tmp_path / f"{folder}/field.nc")["mean"]
                       for folder in ("out", "kriging"))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_hold_out_shows_it_beside_kriging(command, tmp_path):
    model(tmp_path)
    (x, y), *others = (part.T for part in measured())
    pandas.DataFrame(dict(zip("xyvt", (x, y, *others), strict=True))).to_csv("table.csv")
    flags = "--time", "t", "--value", "v", "--checkpoint", "model.pth"
    code, out, _ = command("table.csv", *flags, "--holdout", 0.2)
    assert code == 0
    names = out[out.index("method "):].splitlines()[1:4]
    assert [line.split("  ")[0] for line in names] == [
        "this (model.pth, time)", "kriging in space and time", "frame by frame"]
