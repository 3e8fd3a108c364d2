"""The noise in measurements, found by the likelihood of the field and by the scatter of repeats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsefield.gaussian.design import Design, choose, some_of
from sparsefield.gaussian.fit import climb
from sparsefield.gaussian.kernels import FEW
from sparsefield.gaussian.kriging import full_precision
from sparsefield.gaussian.threads import one_thread

MOST_POINTS = 300  # observations, at most, from which the noise is estimated
LEVELS = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)  # of the sd
LEAST = 0.03  # of the sd of the values; less cannot be told from none
FEWEST_POINTS = 10  # below which the field tells no noise
ASSUMED = 0.2  # of the sd: the noise with which the use of covariates is chosen


@torch.no_grad()
def estimate_noise(
    coords: Tensor, values: Tensor, relative: Tensor, *, square: float = 0.0, freedom: int = 0,
    covariates: int = 0, trend: int = 0, timed: bool = False,
) -> float:
    """The sd of the noise in values of one channel, 0 where it cannot be told from none.

    A level of noise has the likelihood of a few kernels and their amplitudes at it, times that of
    the scatter of repeats; the best level is taken.

    Args:
        coords: (M, D) in sides of the domain, and columns of covariates. values: (M,).
        relative: (M,), by which the noise of each observation differs, such as 1/2 for the mean of
            four. square: summed, of the differences of repeats from the mean at their place, which
            have `freedom` degrees of freedom: repeats minus places.
        covariates, trend, timed: see `sparsefield.gaussian.condition`.
    """
    scatter = (square / freedom) ** 0.5 if freedom else 0.0
    if len(values) < FEWEST_POINTS or float(values.std()) == 0:
        return scatter
    design = Design.of(coords, 1.0, covariates, trend, timed)
    some = some_of(design, coords, MOST_POINTS)
    some = some[relative[some].argsort(stable=True)]
    places, relative = coords[some], relative[some].float()
    spread = float(values[some].std())
    unit = ((values[some] - values[some].mean()) / spread)[:, None].float()
    likelihoods: dict[float, float] = {}
    with full_precision(coords.device), one_thread():
        design = Design.of(places, 1.0, covariates, trend, timed)
        if covariates:
            design = choose(design, places, unit, (ASSUMED * relative).square())
        seen, drift = design.see(places)
        for level in (*LEVELS, *([scatter / spread] if scatter else [])):
            score, _ = climb(FEW, seen, unit, (level * relative).square(), drift)
            of_repeats = freedom * math.log(level) + square / (2 * (level * spread) ** 2)
            likelihoods[level] = float(score.logsumexp(dim=0)) - of_repeats
    best = max(likelihoods, key=likelihoods.__getitem__)
    return best * spread if best >= LEAST or freedom else 0.0
