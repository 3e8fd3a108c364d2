"""Ensembles whose calibration is known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsefield.evaluate.metrics import (
    ensemble_scores,
    rank_histogram,
)

POINTS = 20_000


def ensemble(members: int, width: float = 1.0, shift: float = 0.0, seed: int = 0):
    """Truth ~ N(m, s^2) with m and s varying by point; samples ~ N(m + shift s, (width s)^2)."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.3, 0.7, POINTS)
    sd = rng.uniform(0.01, 0.1, POINTS)
    truth = mean + sd * rng.standard_normal(POINTS)
    samples = mean + sd * (shift + width * rng.standard_normal((members, POINTS)))
    return samples, truth, sd


def chi_square(ranks: np.ndarray) -> float:
    """Standard normal under uniform ranks, for many bins (chi-square, centred and scaled)."""
    expected = 1 / len(ranks)
    statistic = POINTS * ((ranks - expected) ** 2 / expected).sum()
    freedom = len(ranks) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("members", [2, 20])
def test_calibrated_ensembles_have_uniform_ranks(members):
    samples, truth, _ = ensemble(members)
    ranks = rank_histogram(samples, truth)
    assert ranks.shape == (members + 1,)
    assert ranks.sum() == pytest.approx(1)
    assert chi_square(ranks) < 4


@pytest.mark.parametrize("width, shift", [(0.8, 0), (1.25, 0), (1, 0.15)])
def test_other_ensembles_do_not(width, shift):
    ranks = rank_histogram(*ensemble(20, width, shift)[:2])
    assert chi_square(ranks) > 20


def test_ties_are_shared_between_ranks():
    samples = np.array([[0.0], [0.0], [0.5]])
    np.testing.assert_allclose(rank_histogram(samples, np.array([0.0])), [1/3, 1/3, 1/3, 0])
    np.testing.assert_allclose(rank_histogram(samples, np.array([0.2])), [0, 0, 1, 0])


def test_coverage_of_a_wide_level_is_limited_by_the_number_of_samples():
    few = ensemble_scores(*ensemble(9)[:2])
    assert few["attainable"] == {"50%": 0.5, "90%": 0.8}
    assert few["coverage"]["90%"] == pytest.approx(0.8, abs=0.015)
    many = ensemble_scores(*ensemble(20)[:2])
    assert many["attainable"]["90%"] == 0.9
    assert many["coverage"]["90%"] == pytest.approx(0.9, abs=0.01)


def test_spread_equals_skill_only_when_calibrated():
    right = ensemble_scores(*ensemble(8)[:2])
    assert right["spread"] == pytest.approx(right["skill"], rel=0.02)
    narrow = ensemble_scores(*ensemble(8, width=0.5)[:2])
    assert narrow["spread"] < 0.65 * narrow["skill"]
    many = ensemble_scores(*ensemble(100)[:2])
    np.testing.assert_allclose(many["bin_spread"], many["bin_skill"], rtol=0.1)


def test_correlation_of_spread_and_error_has_its_closed_form():
    """|error| = s |z|, s uniform: Cov(s, s|z|) = c Var(s), Var(s|z|) = E s^2 - c^2 (E s)^2."""
    samples, truth, sd = ensemble(400, seed=1)
    c = math.sqrt(2 / math.pi)
    expected = c * sd.std() / math.sqrt((sd**2).mean() - (c * sd.mean()) ** 2)
    assert ensemble_scores(samples, truth)["correlation"] == pytest.approx(expected, abs=0.02)
    even = np.tile([[0.0], [1.0]], (1, 5))  # one sd everywhere
    assert math.isnan(ensemble_scores(even, truth[:5])["correlation"])


def test_crps_of_a_calibrated_gaussian_is_sd_over_root_pi():
    samples, truth, sd = ensemble(10)
    expected = sd.mean() / math.sqrt(math.pi)
    assert ensemble_scores(samples, truth)["crps"] == pytest.approx(expected, rel=0.02)
