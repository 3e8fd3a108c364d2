"""One number that makes the intervals of samples cover what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsefield.evaluate.cases import Cases, spread
from sparsefield.evaluate.metrics import LEVEL, coverage, unobserved, widen
from sparsefield.model.field import FieldModel

SETTINGS: dict[str, Any] = {"method": "heun", "num_steps": 2}  # of samples, here and later
MEMBERS = 20  # at least 19: fewer cannot state 90 %
PICTURES = 32  # at most: half to fit, half to measure
LIMITS = (0.25, 4.0)


def describe(fitted: dict[str, Any]) -> str:
    """What `calibrate` found, in words."""
    factor = f"the spread times {fitted['spread']:.2f}"
    if not fitted["pictures"]:
        return f"{factor}, fitted on {fitted['fitted_on']} validation picture(s), not measured"
    return (f"90 % intervals of {fitted['pictures']} validation pictures cover {fitted['raw']:.1%} "
            f"as sampled, {fitted['calibrated']:.1%} with {factor}, fitted on "
            f"{fitted.get('fitted_on', 'unknown')} others")


def fit_spread(samples: np.ndarray, truth: np.ndarray) -> float:
    """The factor within LIMITS at which intervals of samples (K, P) cover LEVEL of truth (P,), by
    bisection: coverage grows with the factor, but for rounding."""
    low, high = LIMITS
    for _ in range(20):
        middle = (low + high) / 2
        if coverage(widen(samples, middle), truth, LEVEL) < LEVEL:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def calibrate(model: FieldModel, cases: Cases) -> dict[str, Any]:
    """Fit the spread of samples on every second of at most PICTURES evenly spread cases, at the
    points that were not observed, and measure it on the others.

    Returns:
        what a checkpoint holds: spread, a factor on the distance of samples from their mean; raw
        and calibrated, the share of the truths in the LEVEL interval without and with it; pictures,
        how many that was measured on (of none it is NaN), and fitted_on.
    """
    chosen = cases.subset(spread(range(len(cases)), PICTURES))
    made = chosen.sample(model, draws=MEMBERS, **SETTINGS)
    scored = [unobserved(samples, case.truth, case.observed)
              for samples, case in zip(made.draws, chosen, strict=True)]
    to_fit, held_out = scored[::2], scored[1::2]
    factor = fit_spread(*pool(to_fit))
    raw = calibrated = float("nan")
    if held_out:
        samples, truth = pool(held_out)
        raw = coverage(samples, truth, LEVEL)
        calibrated = coverage(widen(samples, factor), truth, LEVEL)
    return {"spread": factor, "raw": raw, "calibrated": calibrated, "pictures": len(held_out),
            "fitted_on": len(to_fit)}


def pool(scored: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Samples (K, P) and truths (P,) of several images as those of one."""
    samples, truths = zip(*scored, strict=True)
    return np.concatenate(samples, axis=1), np.concatenate(truths)
