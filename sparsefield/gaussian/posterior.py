"""The one entry point: observations in, a Gaussian posterior out.

    posterior = condition(coords, values)      # fitted to the field
    answer = posterior.at(queries)             # mean, sd, spread
    noise = posterior.noise(queries)           # draws: answer.mean + answer.sd * noise(generators)

Up to DENSE_POINTS observations the answer is exact. Beyond, the field is fitted once, on so many of
its points, and every query is answered from its nearest observations. Either way the answer at a
place, and what a seed draws there, do not depend on what else is asked for.

Symbols: B fields, M observations, N queries, C channels, S draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from sparsefield.gaussian.fit import PRIOR_AMPLITUDE2, Fit, correlation_root, fit
from sparsefield.gaussian.kernels import BANK, FEATURES, WAVES, Kernel, Waves
from sparsefield.gaussian.kriging import (
    Answer,
    LeaveOneOut,
    Sites,
    closeness,
    full_precision,
    local_amplitude,
)
from sparsefield.place import UNIT_SQUARE, Domain

DENSE_POINTS = 2000
NOISY_FIT_POINTS = 500  # with noise many more hypotheses are tried
LARGEST_NOISE = 1e9  # sd, in units of values of unit size: such an observation has no weight at all
NEIGHBOURS = 64
BLOCK = 2048  # queries answered together from their neighbours: bounds memory, changes nothing
HELD = 1 << 24  # numbers in the matrices of queries answered together from all observations
WAVES_HELD = 1 << 26  # numbers in the waves of queries that are drawn together
KEPT_NUMBERS = 1 << 26  # in what is kept for further draws at the same queries

Done = Callable[[], None]
Errors = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def condition(
    coords: Tensor,
    values: Tensor,
    noise_sd: Tensor | None = None,
    *,
    domain: Domain = UNIT_SQUARE,
    kernels: tuple[Kernel, ...] | None = None,
) -> Posterior:
    """Fit a Gaussian field to observations.

    Args:
        coords: (B, M, 2), M from 1 on; or (B, M, 3) on a globe, see sparsefield.use.globe.
        values: (B, M, C), of about unit size. noise_sd: (B, M, C) of the noise in them, in their
            units; channels are then fitted each on its own. None or all zero: values are exact.
        domain: the rectangle that the observations stand for: what a distance is compared with.
        kernels: the bank; ONE_KERNEL for kriging that is not fitted. None: BANK.
    Raises:
        UserError: places that cannot be told apart in double precision.
    """
    return Posterior(coords.float(), values.float(), noise_sd, domain, kernels or BANK)


class Posterior:
    """A fitted Gaussian field for each of B sets of observations; made by `condition`.

    With noise every channel is a field of its own inside: `folded` of them, next to each other.
    """

    def __init__(self, coords: Tensor, values: Tensor, noise_sd: Tensor | None, domain: Domain,
                 kernels: tuple[Kernel, ...]):
        self.side, self.device = domain.side, coords.device
        self.fields: list[_Field] = []
        self.folded = 1
        if noise_sd is not None and not bool(noise_sd.any()):
            noise_sd = None
        if noise_sd is not None:
            self.folded = values.shape[2]
            noise_sd = _fold(noise_sd.to(values).clamp(max=LARGEST_NOISE))[..., 0]
            coords, values = coords.repeat_interleave(self.folded, dim=0), _fold(values)
        spacing = domain.spacing(coords.shape[1]) / self.side
        with full_precision(coords.device):
            for b, places in enumerate(coords / self.side):
                noise = None if noise_sd is None else noise_sd[b].square()
                self.fields.append(
                    _field(_Observed.of(places, values[b], noise), kernels, spacing))

    def describe(self, field: int = 0) -> str:
        """The fitted variogram of a field (with noise: of its first channel) in words."""
        return self.fields[field * self.folded].fit.describe()

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """What the other observations predict for each: each (B, M, C)."""
        with torch.no_grad(), full_precision(self.device):
            found = [[x[field.observed.back] for x in field.leave_one_out] for field in self.fields]
        return LeaveOneOut(*(self._unfolded(column) for column in zip(*found, strict=True)))

    @torch.no_grad()
    def at(self, queries: Tensor, done: Done | None = None) -> Answer:
        """Mean and sd (B, N, C), and spread of the means (B, N, 1), at queries (B, N, D).

        Args:
            done: called after each piece of the work.
        """
        found = []
        with full_precision(self.device):
            for field, places in zip(self.fields, self._places(queries), strict=True):
                parts = []
                for piece in places.split(field.at_once):
                    parts.append(field.answer(piece))
                    if done is not None:
                        done()
                found.append([torch.cat(column) for column in zip(*parts, strict=True)])
        mean, sd, spread = (self._unfolded(column) for column in zip(*found, strict=True))
        return Answer(mean, sd, spread.mean(dim=2, keepdim=True))

    @torch.no_grad()
    def noise(self, queries: Tensor, done: Done | None = None) -> PosteriorNoise:
        """Draws at queries (B, N, D) of what the observations leave open.

        Args:
            done: called after each piece of each draw.
        """
        return PosteriorNoise(self, self._places(queries), done)

    def _places(self, queries: Tensor) -> Tensor:
        """(B folded, N, D) in sides of the domain."""
        return queries.to(self.device).float().repeat_interleave(self.folded, dim=0) / self.side

    def _unfolded(self, fields: Sequence[Tensor]) -> Tensor:
        """(B, n, C) of fields (n, C), or of folded channels (n, 1)."""
        x = torch.stack(list(fields))
        return x if self.folded == 1 else x[..., 0].unflatten(0, (-1, self.folded)).mT

    def channel_root(self) -> Tensor:
        """(B, C, C): times independent channels those that go together like the field's."""
        if self.folded == 1:
            return correlation_root(torch.stack(
                [field.fit.mixture.channels[field.fit.heaviest] for field in self.fields]))
        # Each has its own variogram, amplitude and noise.
        white = torch.stack([field.fit.white[field.fit.heaviest, :, 0] for field in self.fields])
        white = white.unflatten(0, (-1, self.folded)).double()
        prior = PRIOR_AMPLITUDE2 * torch.eye(self.folded).to(white)
        return correlation_root(white @ white.mT + prior)


def _fold(x: Tensor) -> Tensor:
    """(B, M, C) to (B C, M, 1)."""
    return x.mT.flatten(0, 1)[..., None]


class _Observed(NamedTuple):
    """The observations of a field, the least noisy first.

    Attributes:
        coords: (M, D). values: (M, C). noise_variance: (M,) or None. back: (M,), their order as
            they were given.
    """

    coords: Tensor
    values: Tensor
    noise_variance: Tensor | None
    back: Tensor

    @classmethod
    def of(cls, coords: Tensor, values: Tensor, noise_variance: Tensor | None) -> _Observed:
        if noise_variance is None:
            return cls(coords, values, None, torch.arange(len(coords), device=coords.device))
        order = noise_variance.argsort(stable=True)
        return cls(coords[order], values[order], noise_variance[order], order.argsort())

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        noise = None if self.noise_variance is None else self.noise_variance[index]
        return self.coords[index], self.values[index], noise


def _field(observed: _Observed, kernels: tuple[Kernel, ...], spacing: float) -> _Field:
    """Fitted to all observations, or to so many at random."""
    count = len(observed.coords)
    most = DENSE_POINTS if observed.noise_variance is None else NOISY_FIT_POINTS
    some = torch.arange(count)
    if count > most:
        some = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort()[0]
    fitted = fit(kernels, *observed.take(some.to(observed.coords.device)))
    if count > DENSE_POINTS:
        return _FromNearest(observed, fitted, spacing)
    return _Field(observed, fitted if count <= most else fitted.at(*observed[:3]), spacing)


class _Field:
    """One field, answered from all its observations by one factorisation.

    Args:
        spacing: between observations, in sides of the domain.
    """

    def __init__(self, observed: _Observed, fitted: Fit, spacing: float):
        self.observed, self.fit, self.spacing = observed, fitted, spacing
        self.at_once = max(64, HELD // (len(fitted.kernels) * len(observed.coords)))  # queries

    @cached_property
    def leave_one_out(self) -> LeaveOneOut:
        """Each (M, C), the least noisy first."""
        sites = self.fit.sites
        return self.fit.mixture.leave_one_out(self.observed.values, sites.weigh(self.fit.white),
                                              sites.precision())

    def answer(self, queries: Tensor) -> Answer:
        """At (n, D): (n, C)."""
        onto, whitened, variance = self.fit.sites.krige(queries)
        level = onto @ self.observed.values[: onto.shape[1]]
        found = self.fit.mixture.answer(level, (self.fit.white.mT @ whitened).mT, variance)
        near = closeness(queries, self.observed.coords, self.spacing)
        return found.scaled(local_amplitude(near, self.leave_one_out.z))

    @cached_property
    def _heaviest(self) -> Sites:
        return self.fit.sites.take([self.fit.heaviest])

    def errors(self, queries: Tensor) -> Errors:
        """What makes errors (S, n) of unit variance, under the heaviest kernel, of random fields at
        the queries (S, n) and at the observations (S, M)."""
        onto, whitened, variance = self._heaviest.krige(queries)

        def of(at_queries: Tensor, at_observed: Tensor) -> Tensor:
            known = at_observed.mT                                        # (M, S)
            white = self._heaviest.whiten(known)
            kriged = onto @ known[: onto.shape[1]] + (whitened.mT @ white)[0]
            return (at_queries - kriged.mT) / variance[0].sqrt()

        return of


class _FromNearest(_Field):
    """Each query from its NEIGHBOURS nearest observations, with what was fitted to the field."""

    def __init__(self, observed: _Observed, fitted: Fit, spacing: float):
        super().__init__(observed, fitted, spacing)
        self.at_once = BLOCK
        self.tree = scipy.spatial.cKDTree(observed.coords.cpu().numpy())

    def _around(self, points: Tensor, own: Tensor | None = None) -> tuple[Fit, Tensor, Tensor]:
        """The fit around each of points (n, D), the values there and their indices (n, k).

        Args:
            own: (n,) the observation that is left out of each.
        """
        count = NEIGHBOURS + (own is not None)
        _, index = self.tree.query(points.cpu().numpy(), k=np.arange(count) + 1)
        if own is not None:
            others = index != own.cpu().numpy()[:, None]
            others[others.all(axis=1), -1] = False  # more observations at the place than these
            index = index[others].reshape(len(index), -1)
        if self.observed.noise_variance is not None:
            index.sort(axis=1)  # the least noisy first
        near = torch.from_numpy(index).to(points.device)
        coords, values, noise = self.observed.take(near)
        return self.fit.at(coords, values, noise), values, near

    def _krige(self, fitted: Fit, values: Tensor, points: Tensor) -> Answer:
        """At points (n, D), each from its own observations."""
        onto, whitened, variance = fitted.sites.krige(points[:, None])
        level = onto @ values[:, : onto.shape[2]]
        answer = fitted.mixture.answer(level, whitened.mT @ fitted.white, variance)
        return Answer(*(x[:, 0] for x in answer))

    @cached_property
    def leave_one_out(self) -> LeaveOneOut:
        coords, values, noise = self.observed[:3]
        every, parts = torch.arange(len(coords), device=coords.device), []
        for rows in every.split(BLOCK):
            fitted, around, _ = self._around(coords[rows], own=rows)
            mean, sd, _ = self._krige(fitted, around, coords[rows])
            if noise is not None:
                sd = (sd.square() + noise[rows, None]).sqrt()
            parts.append(LeaveOneOut(mean, sd, (values[rows] - mean) / sd))
        return LeaveOneOut(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def answer(self, queries: Tensor) -> Answer:
        fitted, values, index = self._around(queries)
        near = closeness(queries[:, None], self.observed.coords[index], self.spacing)
        amplitude = local_amplitude(near, self.leave_one_out.z[index])[:, 0]
        return self._krige(fitted, values, queries).scaled(amplitude)

    def errors(self, queries: Tensor) -> Errors:
        fitted, _, index = self._around(queries)
        sites = fitted.sites.take([self.fit.heaviest])
        onto, whitened, variance = sites.krige(queries[:, None])
        weight = sites.weigh(whitened)[:, 0, :, 0]                        # (n, k)
        weight[:, : onto.shape[2]] += onto[:, 0]
        sd = variance[:, 0, 0].sqrt()

        def of(at_queries: Tensor, at_observed: Tensor) -> Tensor:
            known = torch.stack([(f[index] * weight).sum(dim=1) for f in at_observed])
            return (at_queries - known) / sd

        return of


class PosteriorNoise:
    """Draws of z with answer.mean + answer.sd * z from the posterior: Matheron's rule.

    A draw of the prior minus its own kriging is a draw of the error (Journel & Huijbregts 1978;
    Wilson et al. 2020, equation 4). Of unit variance at every point, correlated between points like
    the heaviest kernel and between channels like the field; 0 at an observation.
    """

    def __init__(self, posterior: Posterior, places: Tensor, done: Done | None):
        self.fields, self.folded, self.done = posterior.fields, posterior.folded, done
        self.root = posterior.channel_root()                              # (B, C, C)
        self.kernels = [field.fit.kernels[field.fit.heaviest] for field in self.fields]
        self.at_observed = [Waves(kernel, field.observed.coords)
                            for kernel, field in zip(self.kernels, self.fields, strict=True)]
        most = max(64, WAVES_HELD // (len(places) * FEATURES))
        self.pieces = [own.split(min(field.at_once, most))
                       for field, own in zip(self.fields, places, strict=True)]
        each = len(self.fields[0].observed.coords) + FEATURES       # numbers of a query
        self.keep = places[..., 0].numel() * each <= KEPT_NUMBERS
        self._kept: dict[tuple[int, int], tuple[Waves, Errors]] = {}

    @torch.no_grad()
    def __call__(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One draw a generator: (S, N, C).

        Args:
            generators: as many for each field as for the others, field after field.
        """
        observed = self.fields[0].observed
        count = 2 * WAVES + observed.coords.shape[1]
        with full_precision(self.root.device):
            numbers = self._by_field(self._numbers(generators, count) @ self.root[:, None].mT)
            errors: Sequence[Tensor | None] = [None] * len(self.fields)
            if observed.noise_variance is not None:
                errors = list(self._by_field(self._numbers(generators, len(observed.coords))))
            found = torch.stack([self._drawn(b, numbers[b], errors[b])
                                 for b in range(len(self.fields))])
        channels = self.root.shape[1]
        found = found.unflatten(0, (-1, self.folded)).unflatten(2, (-1, channels // self.folded))
        return found.permute(0, 2, 4, 1, 3).flatten(3, 4).flatten(0, 1)

    def _numbers(self, generators: Sequence[torch.Generator], count: int) -> Tensor:
        """N(0, 1): (B, draws of a field, count, C)."""
        channels = self.root.shape[1]
        numbers = torch.stack([torch.randn(count, channels, generator=g) for g in generators])
        return numbers.to(self.root.device).unflatten(0, (len(self.root), -1))

    def _by_field(self, x: Tensor) -> Tensor:
        """(B, draws, n, C) to (B folded, s, n): draws and the channels that are not folded in s."""
        x = x.unflatten(3, (self.folded, -1)).permute(0, 3, 1, 4, 2)
        return x.flatten(2, 3).flatten(0, 1)

    def _drawn(self, b: int, numbers: Tensor, errors: Tensor | None) -> Tensor:
        """(s, N) of numbers (s, F) and, with noise, of errors of measurement (s, M) in its sd."""
        field = self.fields[b]
        known = self.at_observed[b].fields(numbers)
        noise = field.fit.relative(field.observed.noise_variance)
        if noise is not None and errors is not None:
            order = field.observed.back.argsort()
            known = known + errors[:, order] * noise[field.fit.heaviest].sqrt()
        parts = []
        for i in range(len(self.pieces[b])):
            waves, errors_of = self._prepared(b, i)
            parts.append(errors_of(waves.fields(numbers), known))
            if self.done is not None:
                self.done()
        return torch.cat(parts, dim=1)

    def _prepared(self, b: int, i: int) -> tuple[Waves, Errors]:
        """All that a piece of a field needs but for the random numbers."""
        if (b, i) in self._kept:
            return self._kept[b, i]
        piece = self.pieces[b][i]
        prepared = Waves(self.kernels[b], piece), self.fields[b].errors(piece)
        if self.keep:
            self._kept[b, i] = prepared
        return prepared
