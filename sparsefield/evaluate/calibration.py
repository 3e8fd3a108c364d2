"""One number a channel that makes the intervals of samples cover what they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sparsefield.evaluate.cases import Case, Cases
from sparsefield.evaluate.metrics import (
    LEVEL,
    by_channel,
    coverage,
    ensemble_scores,
    unobserved,
    widen,
)
from sparsefield.model.field import FieldModel

METHOD = "heun"  # of samples, here and later, with the model's own number of steps
MEMBERS = 20  # at least 19: fewer cannot state 90 %
PICTURES = 32  # at most: half to fit, half to measure
LIMITS = (0.25, 4.0)


def describe(fitted: dict[str, Any]) -> str:
    """What `calibrate` found, in words."""
    factor = f"the spread times {by_channel(fitted['spread'])}"
    if not fitted["pictures"]:
        return f"{factor}, fitted on {fitted['fitted_on']} validation picture(s), not measured"
    return (f"90 % intervals of {fitted['pictures']} validation pictures cover "
            f"{by_channel(fitted['raw'], '.1%')} as sampled, "
            f"{by_channel(fitted['calibrated'], '.1%')} with {factor}, fitted on "
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


def calibrate(model: FieldModel, cases: Cases, most: int | None = None) -> dict[str, Any]:
    """Fit the spread of samples on every second of at most `most` evenly spread cases (None:
    PICTURES), at the points that were not observed, and measure it on the others.

    Returns:
        what a checkpoint holds: for each channel spread, a factor on the distance of samples from
        their mean, and raw and calibrated, the share of the truths in the LEVEL interval without
        and with it (of earlier versions one number for all channels); pictures, how many that was
        measured on (of none it is NaN), fitted_on, and num_steps of the samples; ranks, of these
        pictures with the factors, see `metrics.ensemble_scores`.
    """
    chosen = cases.spread(most or PICTURES)
    draws = chosen.sample(model, draws=MEMBERS, bar="calibration", method=METHOD).draws
    halves: list[list[int]] = [[], []]
    for k in range(len(chosen)):
        halves[k // chosen.frames % 2].append(k)
    (to_fit, fitting), (held_out, holding) = (
        ([chosen[k] for k in half], [draws[k] for k in half]) for half in halves)
    channels = [slice(c, None, cases.channels) for c in range(cases.channels)]
    samples, truth = pool(fitting, to_fit)
    factors = [fit_spread(samples[:, own], truth[own]) for own in channels]
    raw = calibrated = [float("nan")] * len(channels)
    ranks: list[float] = []
    if held_out:
        samples, truth = pool(holding, held_out)
        wide = [widen(own, factors) for own in holding]
        ranks = ensemble_scores(*pool(wide, held_out))["ranks"]
        raw = [coverage(samples[:, own], truth[own], LEVEL) for own in channels]
        calibrated = [coverage(widen(samples[:, own], factor), truth[own], LEVEL)
                      for own, factor in zip(channels, factors, strict=True)]
    return {"spread": factors, "raw": raw, "calibrated": calibrated, "pictures": len(held_out),
            "fitted_on": len(to_fit), "num_steps": model.num_steps, "ranks": ranks}


def pool(draws: Iterable[np.ndarray], cases: Iterable[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Samples (K, P) and truths (P,) at the points of all cases that are not known."""
    samples, truths = zip(*(unobserved(own, case.truth, case.exact)
                            for own, case in zip(draws, cases, strict=True)), strict=True)
    return np.concatenate(samples, axis=1), np.concatenate(truths)
