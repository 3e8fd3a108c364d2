"""One number that makes the intervals of samples cover what they say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import nn

from sparsefield.evaluate import uncertainty

LEVEL = 0.9
SETTINGS = {"method": "heun", "num_steps": 8}  # of the samples that are calibrated, and drawn later
MEMBERS = 20
PICTURES = 16
LIMITS = (0.25, 4.0)


class Calibration(NamedTuple):
    """How far samples must be from their mean.

    Attributes:
        spread: factor on the distance of every sample from the mean of the samples.
        raw, calibrated: share of held-out truths in the 90 % interval without and with it.
        pictures: how many were looked at.
    """

    spread: float
    raw: float
    calibrated: float
    pictures: int

    def describe(self) -> str:
        return (f"90 % intervals of {self.pictures} validation pictures cover {self.raw:.1%} as "
                f"sampled, {self.calibrated:.1%} with the spread times {self.spread:.2f}")


def widen(samples: np.ndarray, spread: float) -> np.ndarray:
    """Samples (K, ...) with their distance from their mean multiplied."""
    mean = samples.mean(axis=0, keepdims=True)
    return mean + spread * (samples - mean)


def fit_spread(samples: np.ndarray, truth: np.ndarray, level: float = LEVEL) -> float:
    """The factor within LIMITS at which intervals of samples (K, P) cover `level` of truth (P,).

    Coverage grows with the factor, but for rounding; found by bisection of its logarithm.
    """
    low, high = np.log(LIMITS)
    for _ in range(20):
        middle = (low + high) / 2
        if uncertainty.coverage(widen(samples, float(np.exp(middle))), truth, level) < level:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def calibrate(model: nn.Module, validation) -> Calibration:
    """Fit the spread on the first PICTURES cases of a `sparsefield.validation.Validation`.

    Points that were observed are left out: samples agree with them by construction.
    """
    group = list(range(min(PICTURES, len(validation.cases))))
    samples, truth = [], []
    for k in group:
        members = np.stack([
            field for seed in range(0, MEMBERS, 5)
            for field in validation.ensemble(model, k, range(seed, seed + 5), **SETTINGS)
        ])
        of_case = uncertainty.unobserved(
            members, validation.truths[k], np.asarray(validation.cases[k]["observed"])
        )
        samples.append(of_case[0])
        truth.append(of_case[1])
    samples, truth = np.concatenate(samples, axis=1), np.concatenate(truth)
    spread = fit_spread(samples, truth)
    return Calibration(
        spread,
        uncertainty.coverage(samples, truth, LEVEL),
        uncertainty.coverage(widen(samples, spread), truth, LEVEL),
        len(group),
    )
