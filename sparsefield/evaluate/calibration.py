"""One number that makes the intervals of samples cover what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Cases, spread
from sparsefield.evaluate.metrics import widen
from sparsefield.model.field import FieldModel

LEVEL = 0.9
SETTINGS: dict[str, Any] = {"method": "heun", "num_steps": 2}  # of samples, here and later
MEMBERS = 20  # at least 19: fewer cannot state 90 %
PICTURES = 32  # at most: half to fit, half to measure
LIMITS = (0.25, 4.0)

Draw = Callable[[Cases], list[np.ndarray]]


def describe(fitted: dict[str, Any]) -> str:
    """What `calibrate` found, in words."""
    factor = f"the spread times {fitted['spread']:.2f}"
    if not fitted["pictures"]:
        return f"{factor}, fitted on {fitted['fitted_on']} validation picture(s), not measured"
    return (f"90 % intervals of {fitted['pictures']} validation pictures cover {fitted['raw']:.1%} "
            f"as sampled, {fitted['calibrated']:.1%} with {factor}, fitted on "
            f"{fitted.get('fitted_on', 'unknown')} others")


def fit_spread(samples: np.ndarray, truth: np.ndarray) -> float:
    """The factor within LIMITS at which intervals of samples (K, P) cover LEVEL of truth (P,).

    Coverage grows with the factor, but for rounding; found by bisection.
    """
    low, high = LIMITS
    for _ in range(20):
        middle = (low + high) / 2
        if metrics.coverage(widen(samples, middle), truth, LEVEL) < LEVEL:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def calibrate(draw: Draw, cases: Cases) -> dict[str, Any]:
    """Fit the spread on every second of at most PICTURES cases, and measure it on the others.

    Points that were observed are left out: samples agree with them by construction.

    Args:
        draw: gives K samples (K, H, W, C) in [0, 1] of each of some cases; see `samples_of`.
        cases: at least one; they are chosen evenly spread.
    Returns:
        what a checkpoint holds: spread, a factor on the distance of every sample from the mean of
        the samples; raw and calibrated, the share of the truths in the LEVEL interval without and
        with it, NaN without other pictures; pictures and fitted_on, how many were measured on and
        fitted on.
    """
    chosen = cases.subset(spread(range(len(cases)), PICTURES))
    scored = [metrics.unobserved(samples, case.truth, case.observed)
              for samples, case in zip(draw(chosen), chosen, strict=True)]
    to_fit, held_out = scored[::2], scored[1::2]
    factor = fit_spread(*pool(to_fit))
    raw = calibrated = float("nan")
    if held_out:
        samples, truth = pool(held_out)
        raw = metrics.coverage(samples, truth, LEVEL)
        calibrated = metrics.coverage(widen(samples, factor), truth, LEVEL)
    return {"spread": factor, "raw": raw, "calibrated": calibrated, "pictures": len(held_out),
            "fitted_on": len(to_fit)}


def samples_of(model: FieldModel) -> Draw:
    """The samples of a model that are calibrated: MEMBERS of each case, by SETTINGS."""
    return lambda cases: cases.sample(model, draws=MEMBERS, **SETTINGS).draws


def pool(scored: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Samples (K, P) and truths (P,) of several images as those of one."""
    samples, truths = zip(*scored, strict=True)
    return np.concatenate(samples, axis=1), np.concatenate(truths)
