"""Numbers of one image's samples, against ensembles that are calibrated by construction."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefield.evaluate import metrics
from sparsefield.evaluate.metrics import (
    ensemble_scores,
    evaluate_samples,
    interval_name,
    largest_coverage,
)

SIDE, CHANNELS = 64, 3
NOTHING = np.empty(0, dtype=np.int64)
COVERAGES = ["coverage_90", "coverage_90_4x4", "coverage_90_8x8", "coverage_90_luminance"]


def field(rng: np.random.Generator, shared: float) -> np.ndarray:
    """(SIDE, SIDE, C) of unit variance: `shared` of it the same over 8 x 8 points and channels."""
    coarse = rng.standard_normal((SIDE // 8, SIDE // 8, 1))
    coarse = coarse.repeat(8, axis=0).repeat(8, axis=1)
    fine = rng.standard_normal((SIDE, SIDE, CHANNELS))
    return np.sqrt(shared) * coarse + np.sqrt(1 - shared) * fine


def ensemble(
    shared: float = 0.5, members: int = 20, width: float = 1.0, drawn: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Truth and draws around one mean; draws share as much as the truth, or `drawn`."""
    rng = np.random.default_rng(0)
    truth = 0.5 + 0.1 * field(rng, shared)
    drawn = shared if drawn is None else drawn
    draws = np.stack([0.5 + 0.1 * width * field(rng, drawn) for _ in range(members)])
    return draws, truth


def test_a_calibrated_ensemble_covers_points_blocks_and_luminance():
    numbers = evaluate_samples(*ensemble(), NOTHING)
    stated = min(0.9, largest_coverage(20))
    assert numbers["coverage_90"] == pytest.approx(stated, abs=0.03)
    assert numbers["coverage_50"] == pytest.approx(0.5, abs=0.03)
    for name, tolerance in zip(COVERAGES[1:], (0.06, 0.1, 0.06), strict=True):
        assert numbers[name] == pytest.approx(stated, abs=tolerance)


def test_noise_of_its_own_in_every_value_is_caught_by_blocks_and_luminance_alone():
    """What independent noise does to a field whose errors are correlated."""
    numbers = evaluate_samples(*ensemble(shared=0.5, drawn=0.0), NOTHING)
    assert numbers["coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert numbers["coverage_90_8x8"] < numbers["coverage_90_4x4"] < 0.6
    assert numbers["coverage_90_luminance"] < 0.85


@pytest.mark.parametrize("members", [2, 5, 20])
def test_spread_over_error_does_not_depend_on_the_number_of_samples(members):
    numbers = [evaluate_samples(*ensemble(0.0, members, width), NOTHING) for width in (1.0, 0.5)]
    ratios = [(n["variance"] / n["squared_error"]) ** 0.5 for n in numbers]
    assert ratios[0] == pytest.approx(1, abs=0.02)
    expected = 0.5 * ((1 + 1 / members) / (1 + 0.25 / members)) ** 0.5
    assert ratios[1] == pytest.approx(expected, abs=0.02)


def test_observed_and_missing_points_count_nowhere():
    draws, truth = ensemble()
    missing = np.zeros((SIDE, SIDE), dtype=bool)
    missing[5:20, 7:30] = True
    observed = np.setdiff1d(np.arange(0, SIDE * SIDE, 3), np.flatnonzero(missing))
    seen = np.zeros((SIDE, SIDE), dtype=bool)
    seen.ravel()[observed] = True
    draws[:, seen] = truth[seen]
    truth[missing], draws[:, missing] = np.nan, np.nan
    numbers = evaluate_samples(draws, truth, observed)
    x, g = draws[:, ~seen & ~missing], truth[~seen & ~missing]
    assert numbers["crps"] == pytest.approx(metrics.crps_of_values(x, g).mean())
    low, high = np.quantile(x, [0.05, 0.95], axis=0, method="weibull")
    assert numbers["coverage_90"] == pytest.approx(np.mean((low <= g) & (g <= high)))
    assert numbers["squared_error"] == pytest.approx(np.mean((x.mean(axis=0) - g) ** 2))
    draws[:, missing] = 1e9  # whatever a method puts there
    assert evaluate_samples(draws, truth, observed) == numbers


def test_what_cannot_be_scored_is_undefined():
    draws = np.random.default_rng(0).random((3, 6, 6, 1))
    small = evaluate_samples(draws, np.full((6, 6, 1), 0.5), NOTHING)
    assert np.isnan(small["coverage_90_8x8"]) and 0 <= small["coverage_90_4x4"] <= 1
    truth = np.full((8, 8, 1), 0.5)
    seen = evaluate_samples(np.stack([truth] * 3), truth, np.arange(64))
    assert all(np.isnan(value) for value in seen.values())


@pytest.mark.parametrize("members, highest", [(16, 15 / 17), (19, 0.9), (20, 19 / 21)])
def test_the_coverage_that_samples_can_state_is_reached_and_not_passed(members, highest):
    said = "90%" if highest >= 0.9 else "90% (of 16 samples at most 88%)"
    assert interval_name(0.9, members) == said
    assert largest_coverage(members) == pytest.approx(highest)
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(members, 40_000)), rng.normal(size=40_000)
    for level in (0.9, 0.99):
        found = metrics.coverage(samples, truth, level)
        assert found == pytest.approx(min(level, highest), abs=0.006)


# --- points of all images ------------------------------------------------------------------------

POINTS = 20_000


def points(members: int, width: float = 1.0, shift: float = 0.0):
    """Truth ~ N(m, s^2) with m and s varying by point; samples ~ N(m + shift s, (width s)^2)."""
    rng = np.random.default_rng(0)
    mean, sd = rng.uniform(0.3, 0.7, POINTS), rng.uniform(0.01, 0.1, POINTS)
    truth = mean + sd * rng.standard_normal(POINTS)
    return mean + sd * (shift + width * rng.standard_normal((members, POINTS))), truth


@pytest.mark.parametrize("members, width, shift, is_uniform", [
    (2, 1, 0, True), (20, 1, 0, True), (20, 0.8, 0, False), (20, 1.25, 0, False),
    (20, 1, 0.15, False),
])
def test_calibrated_ensembles_alone_have_uniform_ranks(members, width, shift, is_uniform):
    ranks = np.array(ensemble_scores(*points(members, width, shift))["ranks"])
    assert ranks.shape == (members + 1,) and ranks.sum() == pytest.approx(1)
    assert (np.abs(ranks * len(ranks) - 1).max() < 0.15) == is_uniform


def test_ties_are_shared_between_ranks():
    samples = np.array([[0.0], [0.0], [0.5]])
    for truth, ranks in ((0.0, [1/3, 1/3, 1/3, 0]), (0.2, [0, 0, 1, 0])):
        assert ensemble_scores(samples, np.array([truth]))["ranks"] == pytest.approx(ranks)


def test_spread_equals_skill_in_every_class_when_calibrated():
    many = ensemble_scores(*points(100))
    np.testing.assert_allclose(many["bin_spread"], many["bin_skill"], rtol=0.1)
