"""How a Gaussian field sees a place: where it is, what is known there, and the drift.

Beside its coordinates in space a place may have covariates: whatever is known at the measurements
and everywhere that is asked for, such as height, distance to a river, luminance or time. Each can
be a drift column (the field follows it, by a coefficient) and a further coordinate (places are near
when they are near in it as well): distance^2 = |A h|^2 + sum_j (s_j du_j)^2. The restricted
likelihood decides on both, and finds every scale s_j; 0 ignores the covariate.

Time is a covariate that is never drift, whose scales reach from one field for all times to a field
of its own for each.

Symbols: M observations, p covariates, q drift columns, D coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsefield.gaussian.fit import climb, scores
from sparsefield.gaussian.kernels import BANK, FEW, TIMED, Kernel
from sparsefield.gaussian.kriging import Sites

SCALES = (0.0, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)  # sides of the domain for one sd
CHOICE_POINTS = 300  # observations, at most, that decide; with time twice as many
STRETCHES, LEAST_TIMES = 3, 8  # of time, and in each, of which observations are taken
FLAT, APART = 0.02, 4.0  # sides that all times and that one step count as: at most, at least
FINER = 2**0.5  # between scales of time that are tried around the best of those by its square
ROUNDS = 4  # over all covariates, at most
PENALTY = 5.0  # log odds against a further coordinate
LEAST_PART = 1e-4  # of a column that the others leave: below, it is their combination


class Use(NamedTuple):
    """What a covariate is used for.

    Attributes:
        scale: sides of the domain that one unit of it counts as; 0: it is no coordinate.
        value, error: (C,), coefficient in the drift and its standard error, in units of the values
            for one of the covariate; NaN: it is no drift column.
    """

    scale: float
    value: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Design:
    """How places of a field are seen.

    Attributes:
        side: of the domain. space: coordinates in space, 2, or 3 on a globe.
        trend: degree of the polynomial of the coordinates in the drift: 0, 1 or 2.
        middle, spread: (space + p,) float64, of the observations, by which columns are made of
            about unit size.
        drift: the covariates that are drift columns, of 0 ... p - 1.
        scales: p, in sides of the domain for one spread: 0 where a covariate is no coordinate.
        timed: whether the last covariate is time.
    """

    side: float
    space: int
    trend: int
    middle: Tensor
    spread: Tensor
    drift: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    timed: bool = False

    @classmethod
    def of(cls, places: Tensor, side: float, covariates: int, trend: int,
           timed: bool = False) -> Design:
        """Before anything is chosen: all covariates are drift columns, but for time and those that
        are constant or a combination of others; and the trend is as high as places determine.

        Args:
            places: (M, space + covariates), the observations.
        """
        exact = places.double()
        spread = exact.std(dim=0, correction=0)
        made = cls(side, places.shape[1] - covariates, trend, exact.mean(dim=0),
                   torch.where(spread > 0, spread, 1.0), (), (0.0,) * covariates, timed)
        while made.trend and not _determined(made.see(places)[1]):
            made = replace(made, trend=made.trend - 1)
        for j in range(covariates - timed):
            wider = replace(made, drift=(*made.drift, j))
            if float(spread[made.space + j]) > 0 and _determined(wider.see(places)[1]):
                made = wider
        return made

    @property
    def bank(self) -> tuple[Kernel, ...]:
        """The variograms that the field may have."""
        return TIMED if self.timed and self.scales[-1] else BANK

    def see(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coordinates (..., D) in sides of the domain, and drift columns (..., q), or None for an
        unknown level alone.

        Args:
            places: (..., space + p). D is 2 or 3, or with further coordinates 3 + as many.
        """
        coords = places[..., : self.space].float() / self.side
        if not (self.trend or self.scales):
            return coords, None
        unit = ((places.double() - self.middle) / self.spread).to(coords)
        inside, known = unit[..., : self.space].unbind(dim=-1), unit[..., self.space :]
        used = [j for j, scale in enumerate(self.scales) if scale]
        if used:
            flat = [coords, *[torch.zeros_like(coords[..., :1])] * (3 - self.space)]
            further = known[..., used] * known.new_tensor([self.scales[j] for j in used])
            seen = torch.cat([*flat, further], dim=-1)
        else:
            seen = coords
        columns = [known[..., j] for j in self.drift]
        for degree in range(1, self.trend + 1):
            columns += [torch.stack(chosen).prod(dim=0)
                        for chosen in combinations_with_replacement(inside, degree)]
        return seen, torch.stack(columns, dim=-1) if columns else None


def at_random(count: int, most: int) -> Tensor:
    """Indices of at most so many of `count` observations, in their order: always the same ones."""
    some = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return some[:most].sort().values


def some_of(design: Design, places: Tensor, most: int) -> Tensor:
    """Indices of at most so many observations (M, space + p), from which a field is known: at
    random, but with time all those of some places in stretches of it. Few of many times, at random,
    would not show how the field goes on from one time to the next.
    """
    count = len(places)
    if count <= most or not design.timed:
        return at_random(count, most)
    times, when = places[:, -1].cpu().unique(return_inverse=True)
    length = max(LEAST_TIMES, round(len(times) * most / STRETCHES / count))
    starts = [round(len(times) * (k + 0.5) / STRETCHES - length / 2) for k in range(STRETCHES)]
    inside = torch.stack([(when >= first) & (when < first + length) for first in starts])
    some = inside.any(dim=0).nonzero()[:, 0]
    _, where = places[some, : design.space].cpu().unique(dim=0, return_inverse=True)
    order = torch.randperm(int(where.max()) + 1, generator=torch.Generator().manual_seed(0))
    return some[order[where].argsort(stable=True)[:most]].sort().values


def choose(design: Design, places: Tensor, values: Tensor, noise: Tensor | None) -> Design:
    """The covariates that the restricted likelihood keeps, as drift, as coordinate or both.

    One covariate after the other is tried with every scale, in the drift and out of it, until
    nothing changes.

    Args:
        places: (M, space + p), the least noisy first. values: (M, C), of about unit size.
        noise: (M,) variance of the noise in the values of one channel, or None.
    """
    count = len(places)
    in_time = _scales_in_time(design, places) if design.timed else []
    if in_time:
        design = _in_time(design, in_time[0])
    most = CHOICE_POINTS * (1 + design.timed)
    if count > most:
        some = some_of(design, places, most).to(places.device)
        places, values = places[some], values[some]
        noise = None if noise is None else noise[some]
        of_some = Design.of(places, design.side, len(design.scales), design.trend, design.timed)
        design = replace(design, trend=of_some.trend, drift=of_some.drift)
    possible, known = design.drift, {}

    def score(tried: Design) -> float:
        key = (tried.drift, tried.scales)
        if key not in known:
            known[key] = _evidence(tried, places, values, noise)
        return known[key]

    for _ in range(ROUNDS):
        before = design
        for j in possible:
            design = max(_variants(design, j), key=score)
        if in_time:
            design = max((design, *(_in_time(design, scale) for scale in in_time)), key=score)
            around = (design.scales[-1] * FINER, design.scales[-1] / FINER)
            design = max((design, *(_in_time(design, scale) for scale in around)), key=score)
        if (design.drift, design.scales) == (before.drift, before.scales):
            break
    return design


def _variants(design: Design, j: int) -> Iterator[Design]:
    """Every way to use covariate j; the present one first, which equals keep."""
    yield design
    others = tuple(k for k in design.drift if k != j)
    with_j = tuple(sorted((*others, j)))
    for scale, drift in product(SCALES, (others, with_j)):
        scales = (*design.scales[:j], scale, *design.scales[j + 1 :])
        yield replace(design, drift=drift, scales=scales)


def _in_time(design: Design, scale: float) -> Design:
    return replace(design, scales=(*design.scales[:-1], scale))


def _scales_in_time(design: Design, places: Tensor) -> list[float]:
    """Those to try, in sides of the domain for one spread; none where there is one time alone. 0 is
    the first unless a place has several times, which it would make repeats."""
    times = places[:, -1].double().unique()
    if len(times) == 1:
        return []
    spread = float(design.spread[-1])
    lowest = FLAT * spread / float(times[-1] - times[0])
    count = math.ceil(math.log(APART * spread / float(times.diff().median()) / lowest, FINER**2))
    is_repeated = len(places[:, : design.space].unique(dim=0)) < len(places)
    return [0.0] * (not is_repeated) + [lowest * FINER ** (2 * k) for k in range(count + 1)]


def _evidence(design: Design, places: Tensor, values: Tensor, noise: Tensor | None) -> float:
    """Log evidence of a design, up to a constant."""
    coords, drift = design.see(places)
    if noise is None:
        sites = Sites.of(FEW, coords, None, drift)
        found = scores(sites, sites.whiten(values))
    else:
        found, _ = climb(FEW, coords, values, noise, drift)
    return float(found.logsumexp(dim=0)) - PENALTY * sum(scale > 0 for scale in design.scales)


def _determined(columns: Tensor | None) -> bool:
    """Whether M observations determine drift columns (M, q) beside a level, and something is left:
    none is a combination of the others."""
    assert columns is not None
    if len(columns) <= columns.shape[1] + 1:
        return False
    whole = torch.cat([torch.ones_like(columns[:, :1]), columns], dim=1).double()
    left = torch.linalg.qr(whole)[1].diagonal().abs() / whole.norm(dim=0)
    return bool((left > LEAST_PART).all())
