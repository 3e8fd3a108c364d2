"""Where things lie: the measurements decide, whatever is asked for; repeats and twins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsefield import load
from sparsefield.use import predict
from sparsefield.use.grids import Frame, grid_shape
from sparsefield.use.points import Measurements, merge_repeats, merge_twins

RNG = np.random.default_rng(3)
PLACES, QUERIES = RNG.uniform(size=(80, 2)), RNG.uniform(size=(100, 2))


def truth(p: np.ndarray) -> np.ndarray:
    return np.sin(5 * p[..., 0]) + p[..., 1] ** 2 + 0.3 * np.cos(9 * p[..., 0] * p[..., 1])


@pytest.mark.parametrize("extent", [(-0.1, 1.1, -0.1, 1.1), (-50, 50, -20, 400), (0.4, 0.5, 0, 1)])
@pytest.mark.parametrize("noise_sd", [0.0, 0.05])
def test_the_answer_at_a_place_does_not_depend_on_the_extent(extent, noise_sd):
    model = load("none")
    here, there = (model.at(QUERIES, PLACES, truth(PLACES), extent=e, num_samples=3,
                            noise_sd=noise_sd) for e in ((0, 1, 0, 1), extent))
    for name in ("mean", "sd", "samples"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), atol=1e-4)


def test_a_field_on_a_part_is_that_part_of_the_field():
    """On a globe as on a plane; measurements outside the extent are used."""
    for lonlat, scale in ((False, 1), (True, 30)):
        model, coords = load("none"), scale * PLACES
        part = model.reconstruct(coords, truth(PLACES), 8, num_samples=2, lonlat=lonlat,
                                 extent=tuple(scale * np.array([0.3, 0.5, 0.3, 0.5])))
        same = model.at(part.coords.reshape(-1, 2), coords, truth(PLACES), num_samples=2,
                        lonlat=lonlat, extent=tuple(scale * np.array([0.0, 1, 0, 1])))
        np.testing.assert_allclose(part.mean.reshape(-1, 1), same.mean, atol=1e-4)
        np.testing.assert_allclose(part.samples.reshape(2, -1, 1), same.samples, atol=1e-4)


def test_the_command_uses_what_lies_outside_the_extent(command):
    rows = np.column_stack([PLACES, truth(PLACES)])
    np.savetxt("a.csv", rows, delimiter=",", header="x,y,v", comments="")
    code, out, _ = command("a.csv", "--extent", .35, .65, .35, .65)
    assert code == 0 and "measurements lie outside the field (x 0.35 to 0.65" in out
    assert "they are used, too" in out and "WARNING" not in out
    with np.load("out/field.npz") as field:
        error = field["mean"][..., 0] - truth(field["coords"])
    assert np.sqrt((error**2).mean()) < 0.03


@pytest.mark.parametrize("order, is_said", [([0, 1], False), ([1, 0], True)])
def test_places_far_from_all_measurements_are_said(caplog, order, is_said):
    coords = np.random.default_rng(0).uniform((5, 50), (10, 55), (60, 2))
    load("none").at(coords[:5, order] + 0.1, coords, coords.sum(axis=1), num_samples=2)
    assert ("x and y exchanged" in caplog.text) == is_said


@pytest.mark.parametrize("name", ["none", "trained"])
def test_y_of_a_table_grows_upward(paths, name):
    model = load("none" if name == "none" else paths["sea"])
    field = model.reconstruct(PLACES, truth(PLACES), 8, num_samples=2, num_steps=1,
                              value_range=(-2, 3))
    assert field.mean[-1].mean() > field.mean[0].mean()
    assert field.coords[-1, 0, 1] > field.coords[0, 0, 1]


def test_a_trained_model_sees_data_and_places_within_its_square(paths, monkeypatch):
    seen = []
    original = predict.sample

    def watched(network, queries, places, *rest, **options):
        seen.extend([queries, places])
        return original(network, queries, places, *rest, **options)

    monkeypatch.setattr(predict, "sample", watched)
    load(paths["sea"]).reconstruct(100 * PLACES + 7, truth(PLACES), 8, num_samples=2, num_steps=1,
                                   extent=(50, 400, 0, 60))
    assert min(x.min() for x in seen) >= 0 and max(x.max() for x in seen) <= 1


@pytest.mark.parametrize("width, height, aspect, shape", [
    (1, 1, "auto", (64, 64)), (10, 5, "auto", (32, 64)), (10, 5, "free", (64, 64)),
    (10, 1, "auto", (6, 64)), (100_000, 100, "auto", (64, 64)), (100_000, 100, "equal", (1, 64)),
    (1, 11, "auto", (64, 64)), (5, 0, "auto", (1, 64)),
])
def test_scales_of_the_axes(width, height, aspect, shape):
    coords = np.array([[5, 0], [5 + width, height]])
    extent = 5, 5 + width, 0, height
    frame = Frame.of(Measurements(coords, np.zeros((2, 1))), extent, aspect)
    assert grid_shape(64, extent, frame.scaled_by) == shape
    assert frame.domain.side == pytest.approx(1) and (frame.inside(coords) >= 0).all()


def test_a_section_is_read_along_both_of_its_axes(paths):
    """Distance 0 ... 100,000 and depth 0 ... 100: what was measured in a corner is found there."""
    distance, depth = np.meshgrid(np.linspace(0, 1e5, 6), np.linspace(0, 100, 6))
    coords = np.stack([distance.ravel(), depth.ravel()], 1)
    field = load(paths["sea"]).reconstruct(coords, 10 - 5 * coords[:, 1] / 100, 16, num_samples=2,
                                           num_steps=1, extent=(0, 1e5, 0, 100))
    assert field.mean.shape == (16, 16, 1)
    down = field.mean[..., 0].mean(axis=1)
    assert np.allclose(down, 10 - 5 * (np.arange(16) + 0.5) / 16, atol=0.3)


def test_a_section_on_the_command_line(command):
    np.savetxt("a.csv", np.column_stack([PLACES * (100_000, 100), truth(PLACES)]), delimiter=",",
               header="distance,depth,t", comments="")
    axes = "--x", "distance", "--y", "depth"
    _, out, _ = command("a.csv", *axes)
    assert "each axis has a scale of its own (--aspect equal" in out and "-> 8x8" in out
    assert "-> 1x8" in command("a.csv", *axes, "--aspect", "equal")[1]


# --- repeats and twins ----------------------------------------------------------------------------


@pytest.mark.parametrize("values, noise, mean, sd", [
    ([8, 20], [0.05, 10], 8.0003, 0.05), ([8, 20], [10, 0], 20, 0), ([8, 20], [0, 0], 14, 0),
    ([8, 20], [2, 2], 14, 2**0.5), ([8, 20, 5], [0, 0, 1], 14, 0),
])
def test_repeats_are_weighted_by_their_noise(values, noise, mean, sd):
    places = np.zeros((len(values), 2))
    _, found, noise = merge_repeats(places, np.array(values, float)[:, None],
                                    np.array(noise, float)[:, None])
    assert found.item() == pytest.approx(mean, abs=1e-4)
    assert noise.item() == pytest.approx(sd, abs=1e-3)


def test_exact_repeats_that_differ_are_warned_of(caplog):
    coords = PLACES[:12].repeat(5, axis=0)
    values = np.tile(3.0 * np.arange(5), 12)
    with caplog.at_level("WARNING", logger="sparsefield"):
        load("none").at(QUERIES[:2], coords, values, num_samples=2)
    assert "at 12 places repeated values differ (by an sd of 4.74)" in caplog.text


def test_a_twin_that_disagrees_is_noise_at_its_place_alone(caplog):
    values = truth(PLACES)
    coords = np.vstack([PLACES, PLACES[7] + 1e-5])
    disagreeing = np.append(values, values[7] + values.std())
    model = load("none")
    plain = model.at(QUERIES, PLACES, values, num_samples=2)
    with caplog.at_level("WARNING", logger="sparsefield"):
        twins = model.at(QUERIES, coords, disagreeing, num_samples=2)
        at_twin = model.at(PLACES[7:8], coords, disagreeing, num_samples=2)
    assert "1 pair(s) of points next to each other differ" in caplog.text
    assert np.median(twins.sd) < 1.5 * np.median(plain.sd)
    assert twins.sd.max() < 2 * plain.sd.max()
    off = abs(at_twin.mean.item() - truth(PLACES[7:8]).item())  # the others know it better
    assert at_twin.sd.item() > 0 and off < 3 * at_twin.sd.item()
    error = [np.sqrt(((a.mean[:, 0] - truth(QUERIES)) ** 2).mean()) for a in (plain, twins)]
    assert error[1] < 1.5 * error[0]


def test_pairs_of_noisy_and_of_smooth_fields_are_left_alone():
    rng = np.random.default_rng(0)
    coords = np.vstack([PLACES, PLACES[:40] + 1e-4])
    for values in (rng.normal(size=120), truth(coords)):
        given = coords, values[:, None], np.zeros((120, 1))
        found = merge_twins(*given, 0.1)
        for a, b in zip(given, found, strict=True):
            np.testing.assert_array_equal(a, b)


# --- draws and imports ----------------------------------------------------------------------------


def test_channels_have_draws_of_their_own():
    """Not those of the next seed."""
    values = np.repeat(truth(PLACES)[:, None], 3, axis=1)
    first, second = (load("none").at(QUERIES, PLACES, values, num_samples=2, seed=seed,
                                     separately=True).samples for seed in (0, 1))
    drawn = [x[..., c] for x in (first, second) for c in range(3)]
    for i, one in enumerate(drawn):
        assert all(np.abs(one - other).max() > 1e-3 for other in drawn[:i])


def test_no_training_no_pictures_no_tables_are_imported_for_the_closed_form():
    code = ("import sys; from sparsefield import load; load('none'); print(sorted({'matplotlib', "
            "'tensorboard', 'pandas', 'xarray', 'sparsefield.train', 'train_mamba_v2'} "
            "& set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
