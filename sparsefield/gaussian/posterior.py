"""The one entry point: observations in, a Gaussian posterior out.

    posterior = condition(coords, values)      # fitted to the field
    answer = posterior.at(queries)             # mean, sd, spread
    noise = posterior.noise(queries)           # draws: answer.mean + answer.sd * noise(generators)

Up to DENSE_POINTS observations the answer is exact. Beyond, the field is fitted once, on so many of
its points, and answered in tiles, each from the observations in it and around it. Either way the
answer at a place, and what a seed draws there, do not depend on what else is asked for.

Symbols: B fields, M observations, N queries, C channels, S draws.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsefield import hashed
from sparsefield.gaussian.design import Design, Use, at_random, choose, some_of
from sparsefield.gaussian.fit import PRIOR_AMPLITUDE2, Fit, correlation_root, fit
from sparsefield.gaussian.kernels import (
    WAVES,
    Kernel,
    Waves,
    nuggets,
    variogram,
)
from sparsefield.gaussian.kriging import (
    Answer,
    LeaveOneOut,
    Mixture,
    Sites,
    answered_at_once,
    closeness,
    full_precision,
    local_amplitude,
)
from sparsefield.gaussian.threads import in_threads
from sparsefield.gaussian.tiles import Boxes
from sparsefield.place import UNIT_SQUARE, Domain
from sparsefield.progress import Count

DENSE_POINTS = 2000
NOISY_FIT_POINTS = 500  # with noise many more hypotheses are tried
LARGEST_NOISE = 1e9  # sd, in units of values of unit size: such an observation has no weight at all
TILE = 64  # observations of a tile
SOLID_TILE = 32  # in more than two dimensions, where more of them lie at its faces
TOGETHER = 256  # with those around it
ABREAST = 8  # tiles, at most, that are factored side by side: their matrices fit into a cache
KEPT_NUMBERS = 1 << 25  # up to which what draws need is kept for further ones: 128 MiB
VARIOGRAM_POINTS = 300  # observations, at most, whose pairs a variogram shows
CLASSES = 12  # of distance, up to half of the largest
LEAST_PAIRS = 10  # in a class that is shown

Errors = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def condition(
    coords: Tensor,
    values: Tensor,
    noise_sd: Tensor | None = None,
    *,
    domain: Domain = UNIT_SQUARE,
    kernels: tuple[Kernel, ...] | None = None,
    covariates: int = 0,
    trend: int = 0,
    timed: bool = False,
    priors: Sequence[Prior] | None = None,
) -> Posterior:
    """Fit a Gaussian field to observations.

    Args:
        coords: (B, M, 2), M from 1 on; or (B, M, 3) on a globe, see sparsefield.use.globe. With
            covariates their values are further columns, here and at queries.
        values: (B, M, C), of about unit size. noise_sd: (B, M, C) of the noise in them, in their
            units; channels are then fitted each on its own. None or all zero: values are exact.
        domain: the rectangle that the observations stand for: what a distance is compared with.
        kernels: the bank; ONE_KERNEL for kriging that is not fitted. None: BANK, or TIMED.
        covariates: how many of the columns of coords are no coordinates in space; the restricted
            likelihood decides what each is used for, see sparsefield.gaussian.design.
        trend: degree of a polynomial of the coordinates in space as drift: 0, 1 or 2.
        timed: whether the last of the covariates is time.
        priors: what was fitted to other observations of the same fields (`Posterior.priors`).
            Nothing is fitted then, and these observations are answered in tiles, however few.
    Raises:
        UserError: places that cannot be told apart in double precision.
    """
    return Posterior(coords, values.float(), noise_sd, domain, kernels, covariates, trend,
                     timed, priors)


class Prior(NamedTuple):
    """What was fitted to a field, which holds for all observations of it.

    Attributes:
        fit: without its sites. drift: coefficients (q, C) and the root of their covariance (q, q),
            or None. spacing: between observations, in sides of the domain.
    """

    design: Design
    fit: Fit
    drift: tuple[Tensor, Tensor] | None
    spacing: float


class Posterior:
    """A fitted Gaussian field for each of B sets of observations; made by `condition`.

    With noise every channel is a field of its own inside: `folded` of them, next to each other.
    """

    def __init__(self, coords: Tensor, values: Tensor, noise_sd: Tensor | None, domain: Domain,
                 kernels: tuple[Kernel, ...] | None, covariates: int, trend: int, timed: bool,
                 priors: Sequence[Prior] | None):
        self.device = coords.device
        self.fields: list[_Field] = []
        self.folded = 1
        if noise_sd is not None and not bool(noise_sd.any()):
            noise_sd = None
        if noise_sd is not None:
            self.folded = values.shape[2]
            noise_sd = noise_sd.to(values).clamp(max=LARGEST_NOISE)
            # One order for all channels, so that what is white in one goes with that in another.
            orders = noise_sd.norm(dim=2).argsort(dim=1, stable=True)
            orders = orders.repeat_interleave(self.folded, dim=0)
            noise_sd = _fold(noise_sd)[..., 0]
            coords, values = coords.repeat_interleave(self.folded, dim=0), _fold(values)
        spacing = domain.spacing(coords.shape[1]) / domain.side
        with full_precision(coords.device):
            for b, places in enumerate(coords):
                noise = None if noise_sd is None else noise_sd[b].square()
                prior = None if priors is None else priors[b]
                design = (Design.of(places, domain.side, covariates, trend, timed)
                          if prior is None else prior.design)
                order = torch.arange(len(places), device=places.device)
                if noise is not None:
                    order = orders[b]
                    noise = noise[order]
                places, own = places[order], values[b][order]
                if covariates and prior is None:
                    design = choose(design, places, own, noise)
                observed = _Observed(*design.see(places), own, noise, order.argsort())
                if prior is not None:
                    self.fields.append(_Tiles(design, observed, *prior[1:]))
                    continue
                most = DENSE_POINTS if noise is None else NOISY_FIT_POINTS
                part = observed.take(some_of(design, places, most).to(places.device))
                self.fields.append(_field(design, observed, part, kernels or design.bank,
                                          spacing))

    @property
    def priors(self) -> tuple[Prior, ...]:
        """What was fitted, small, for `condition`: of each field (with noise: of each channel)."""
        return tuple(
            Prior(field.design, field.fit._replace(sites=Sites(field.fit.kernels, [])),
                  _drift(field.fit), field.spacing) for field in self.fields)

    def describe(self, field: int = 0) -> str:
        """The fitted variogram of a field (with noise: of its first channel) in words."""
        return self.fields[field * self.folded].fit.describe()

    def design(self, field: int = 0) -> Design:
        """How places of a field (with noise: of its first channel) are seen."""
        return self.fields[field * self.folded].design

    def uses(self, field: int = 0) -> tuple[Use, ...]:
        """What each covariate of a field is used for; with noise the scales are those of its first
        channel."""
        parts = [self.fields[field * self.folded + c].coefficients() for c in range(self.folded)]
        value, error = (torch.cat(column, dim=1).numpy() for column in zip(*parts, strict=True))
        design = self.design(field)
        scales = (scale / spread for scale, spread in
                  zip(design.scales, design.spread[design.space :].tolist(), strict=True))
        return tuple(Use(*each) for each in zip(scales, value, error, strict=True))

    @torch.no_grad()
    def variograms(self, field: int = 0) -> tuple[Variogram, ...]:
        """Of each channel of a field, empirical and as it was fitted."""
        own = self.fields[field * self.folded : (field + 1) * self.folded]
        return tuple(found for part in own for found in part.variograms())

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """What the other observations predict for each: each (B, M, C)."""
        with torch.no_grad(), full_precision(self.device):
            found = [[x[field.observed.back] for x in field.leave_one_out] for field in self.fields]
        return LeaveOneOut(*(self._unfolded(column) for column in zip(*found, strict=True)))

    @torch.no_grad()
    def at(self, queries: Tensor, done: Count | None = None) -> Answer:
        """Mean and sd (B, N, C), and spread of the means (B, N, 1), at queries (B, N, D).

        Args:
            done: called after each of `parts` of the work.
        """
        found = []
        with full_precision(self.device):
            for field, places in zip(self.fields, self._places(queries), strict=True):
                rows = field.pieces(places[0])
                given = [_part(places, piece) for piece in rows]
                parts = in_threads(field.answer, given, self.device, done)
                back = torch.cat(rows).argsort()
                found.append([torch.cat(column)[back] for column in zip(*parts, strict=True)])
        mean, sd, spread = (self._unfolded(column) for column in zip(*found, strict=True))
        return Answer(mean, sd, spread.mean(dim=2, keepdim=True))

    def parts(self, queries: Tensor) -> int:
        """In how many pieces `at` answers."""
        return sum(len(field.pieces(places))
                   for field, (places, _) in zip(self.fields, self._places(queries), strict=True))

    @torch.no_grad()
    def noise(self, queries: Tensor, done: Count | None = None) -> PosteriorNoise:
        """Draws at queries (B, N, D) of what the observations leave open.

        Args:
            done: called after each of the `parts` of a call.
        """
        return PosteriorNoise(self, self._places(queries), done)

    def _places(self, queries: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """(N, D) in sides of the domain and (N, q), of B folded fields."""
        each = queries.to(self.device).repeat_interleave(self.folded, dim=0)
        return [field.design.see(places) for field, places in zip(self.fields, each, strict=True)]

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


Places = tuple[Tensor, Tensor | None]


def _part(places: Places, rows: Tensor) -> Places:
    """Some of places (N, D) and of their drift (N, q) or None."""
    coords, drift = places
    return coords[rows], None if drift is None else drift[rows]


def _fold(x: Tensor) -> Tensor:
    """(B, M, C) to (B C, M, 1)."""
    return x.mT.flatten(0, 1)[..., None]


class _Observed(NamedTuple):
    """The observations of a field, the least noisy (in all channels together) first.

    Attributes:
        coords: (M, D). drift: (M, q) or None. values: (M, C). noise_variance: (M,) or None.
        back: (M,), their order as they were given.
    """

    coords: Tensor
    drift: Tensor | None
    values: Tensor
    noise_variance: Tensor | None
    back: Tensor

    def take(self, index: Tensor) -> _Observed:
        """Some of them, (..., k)."""
        coords, drift, values, noise, back = self
        return _Observed(coords[index], None if drift is None else drift[index], values[index],
                         None if noise is None else noise[index], back[index])


class Variogram(NamedTuple):
    """Semivariances in classes of distance between observations.

    Attributes:
        distance: (D,), mean of each class, in sides of the domain.
        empirical: (D,), half the squared difference of a pair beside the drift, mean of its class.
        fitted: (D,), what the fitted kernels expect of the same pairs, with nugget and noise.
        pairs: (D,), their number.
    """

    distance: np.ndarray
    empirical: np.ndarray
    fitted: np.ndarray
    pairs: np.ndarray


def _field(design: Design, observed: _Observed, part: _Observed, kernels: tuple[Kernel, ...],
           spacing: float) -> _Field:
    """Fitted to all observations, or to a part of them."""
    count = len(observed.coords)
    fitted = fit(kernels, part.coords, part.values, part.noise_variance, part.drift)
    if count > DENSE_POINTS:
        return _Tiles(design, observed, fitted, _drift(fitted), spacing)
    if count > len(part.coords):
        fitted = fitted.at(observed.coords, observed.values, observed.noise_variance,
                           observed.drift)
    return _Field(design, observed, fitted, spacing)


def _drift(fitted: Fit) -> tuple[Tensor, Tensor] | None:
    """As of `Prior`."""
    each, covariance = fitted.sites.coefficients(fitted.white)
    if each.shape[-2] == 0:
        return None
    root = torch.linalg.cholesky(covariance).to(fitted.white)
    return fitted.mixture.mean(each).to(fitted.white), root


class _Field:
    """One field, answered from all its observations by one factorisation; or tiles of one field,
    each from as many of its observations as the others: then these have a leading dimension.

    Args:
        spacing: between observations, in sides of the domain.
    """

    def __init__(self, design: Design, observed: _Observed, fitted: Fit, spacing: float):
        self.design, self.observed, self.fit, self.spacing = design, observed, fitted, spacing
        self.at_once = answered_at_once(len(fitted.kernels) * len(observed.coords))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Of the drift: values and standard errors, both (p, C) float64, in units of the values for
        one unit of each covariate; NaN where it is no drift column."""
        design, mixture = self.design, self.fit.mixture
        found = torch.full((2, len(design.scales), self.observed.values.shape[1]), torch.nan,
                           dtype=torch.float64)
        if design.drift:
            each, covariance = self.fit.sites.coefficients(self.fit.white)
            mean = mixture.mean(each)
            within = mixture.within(covariance.diagonal(dim1=-2, dim2=-1))
            error = (within + mixture.spread(each, mean)).sqrt()
            count, columns = len(design.drift), list(design.drift)
            unit = design.spread[design.space :][columns, None].cpu()
            found[:, columns] = torch.stack([mean[:count].cpu(), error[:count].cpu()]) / unit
        return found[0], found[1]

    def variograms(self) -> list[Variogram]:
        """One for each channel, see `Variogram`; without classes where there are few pairs."""
        some = at_random(len(self.observed.coords), VARIOGRAM_POINTS)
        coords, drift, values, noise, _ = self.observed.take(some.to(self.observed.coords.device))
        if drift is not None:
            each, _ = self.fit.sites.coefficients(self.fit.white)
            values = values - drift @ self.fit.mixture.mean(each).to(values)
        i, j = torch.triu_indices(len(coords), len(coords), 1, device=coords.device)
        distance = (coords[i] - coords[j]).norm(dim=1)                    # (P,)
        mixture, kernels = self.fit.mixture, self.fit.kernels
        gamma = variogram(kernels, coords, coords)[:, i, j]               # (K, P)
        expected = mixture.within(gamma + nuggets(kernels, gamma.device, gamma.dtype))
        if noise is not None:
            expected = expected + ((noise[i] + noise[j]) / 2)[:, None]
        halves = (values[i] - values[j]).square() / 2                     # (P, C)
        width = float(distance.max()) / 2 / CLASSES if len(i) else 0.0
        width = width or 1.0  # of one place
        which = (distance / width).long().clamp(max=CLASSES)
        count = torch.bincount(which, minlength=CLASSES + 1)
        shown = (count[:CLASSES] >= LEAST_PAIRS).nonzero()[:, 0]
        table = torch.cat([distance[:, None], halves, expected], dim=1).double()
        sums = table.new_zeros(CLASSES + 1, table.shape[1]).index_add_(0, which, table)
        mean = (sums[shown] / count[shown, None]).cpu().numpy()
        channels = values.shape[1]
        return [Variogram(mean[:, 0], mean[:, 1 + c], mean[:, 1 + channels + c],
                          count[shown].cpu().numpy()) for c in range(channels)]

    @cached_property
    def leave_one_out(self) -> LeaveOneOut:
        """Each (M, C), the least noisy first."""
        sites = self.fit.sites
        return self.fit.mixture.leave_one_out(self.observed.values, sites.weigh(self.fit.white),
                                              sites.precision())

    def pieces(self, coords: Tensor) -> list[Tensor]:
        """Which of coords (N, D) are answered together, each once."""
        return list(torch.arange(len(coords), device=coords.device).split(self.at_once))

    def held(self, pieces: list[Tensor]) -> int:
        """How many numbers the `errors` of all pieces hold."""
        size = len(self.observed.coords)
        return size * (size + sum(map(len, pieces)))

    def answer(self, queries: Tensor, drift: Tensor | None) -> Answer:
        """At (n, D), a piece, with (n, q): (n, C)."""
        z = self.leave_one_out.z  # first: the inverse factors that it needs serve queries, too
        return self.weighed(queries, z, *self.fit.sites.krige(queries, drift))

    def weighed(self, queries: Tensor, z: Tensor, whitened: Tensor, variance: Tensor) -> Answer:
        """What the kernels predict together at (n, D), where they were kriged; z: (M, C)."""
        found = self.fit.mixture.answer(self.observed.values[..., :1, :],
                                        (self.fit.white.mT @ whitened).mT, variance)
        near = closeness(queries, self.observed.coords, self.spacing)
        return found.scaled(local_amplitude(near, z, self.fit.mixture.rough(self.fit.kernels)))

    @cached_property
    def _heaviest(self) -> Sites:
        return self.fit.sites.take([self.fit.heaviest])

    def errors(self, queries: Tensor, drift: Tensor | None) -> Errors:
        """What makes errors (S, ..., n) of unit variance, under the heaviest kernel, of random
        fields at the queries (S, ..., n) and at the observations (S, ..., M)."""
        whitened, variance = self._heaviest.krige(queries, drift)

        def of(at_queries: Tensor, at_observed: Tensor) -> Tensor:
            known = at_observed.movedim(0, -1)                            # (..., M, S)
            change = (whitened.mT @ self._heaviest.whiten(known)).squeeze(-3)
            kriged = (known[..., :1, :] + change).movedim(-1, 0)
            return (at_queries - kriged) / variance.squeeze(-2).sqrt()

        return of


class _Tiles(_Field):
    """Places are cut into tiles, each answered from its own observations, those around it and some
    farther away, with what was fitted to the field.

    A tile is a box of at most TILE observations, or SOLID_TILE in more than two dimensions, so that
    tiles depend on the data alone. The drift is that of the fit, everywhere: what is left beside it
    is kriged, and the error of its coefficients is added.
    """

    def __init__(self, design: Design, observed: _Observed, fitted: Fit,
                 drift: tuple[Tensor, Tensor] | None, spacing: float):
        super().__init__(design, observed, fitted, spacing)
        self.left = observed
        if observed.drift is not None:
            assert drift is not None
            self.slope, self.root = drift
            self.left = observed._replace(values=observed.values - observed.drift @ self.slope)
        most = TILE if observed.coords.shape[1] == 2 else SOLID_TILE
        self.tiles = Boxes(observed.coords, most)
        self.at_once = answered_at_once(len(fitted.kernels) * TOGETHER)
        self._newest = threading.local()  # (numbers, fit, field, index)
        self._scores = LeaveOneOut(*(torch.empty_like(self.left.values) for _ in range(3)))
        self._scored = [False] * len(self.tiles.own)

    def pieces(self, coords: Tensor) -> list[Tensor]:
        return [torch.cat([rows for _, rows in group])
                for group in self._groups(self.tiles.of(coords))]

    def _groups(self, boxes: Iterable[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
        """Boxes with what lies in them, as many as are computed side by side."""
        group: list[tuple[int, Tensor]] = []
        for number, rows in boxes:
            for part in rows.split(self.at_once):
                longest = max(len(each) for _, each in [*group, (number, part)])
                if group and ((len(group) + 1) * longest > self.at_once or len(group) == ABREAST
                              or self._size(number) != self._size(group[0][0])):
                    yield group
                    group = []
                group.append((number, part))
        if group:
            yield group

    def held(self, pieces: list[Tensor]) -> int:
        return sum(TOGETHER * (min(ABREAST, len(piece)) * TOGETHER + len(piece))
                   for piece in pieces)

    def _size(self, number: int) -> int:
        """How many observations a tile is answered from."""
        return self.tiles.size(number, TOGETHER)

    def _tile(self, numbers: list[int], fitted: Fit) -> tuple[_Field, Tensor]:
        """The field of T tiles, without the drift, and which observations each is answered from:
        (T, M)."""
        newest = getattr(self._newest, "tile", None)
        if newest is None or newest[0] != numbers or newest[1] is not fitted:
            index = torch.stack([self.tiles.nearest(number, TOGETHER) for number in numbers])
            there = self.left.take(index)
            own = fitted.at(there.coords, there.values, there.noise_variance)
            newest = numbers, fitted, _Field(self.design, there, own, self.spacing), index
            self._newest.tile = newest
        return newest[2:]

    @cached_property
    def _of_heaviest(self) -> Fit:
        """The fit with its heaviest kernel alone, for `Fit.at`."""
        heaviest = slice(self.fit.heaviest, self.fit.heaviest + 1)
        weight, channels = self.fit.mixture
        return self.fit._replace(kernels=self.fit.kernels[heaviest],
                                 mixture=Mixture(weight[heaviest], channels[heaviest]))

    @cached_property
    def leave_one_out(self) -> LeaveOneOut:
        missing = [(number, self.tiles.own[number][:1])
                   for number, scored in enumerate(self._scored) if not scored]
        for group in self._groups(missing):
            numbers = [number for number, _ in group]
            self._score(numbers, *self._tile(numbers, self.fit))
        if self.observed.drift is not None:
            return self._scores._replace(
                mean=self._scores.mean + self.observed.drift @ self.slope)
        return self._scores

    def _score(self, numbers: list[int], tile: _Field, index: Tensor) -> None:
        """Keep what the others predict for the observations of tiles, while these are factored."""
        mine = self.tiles.box[index] == torch.tensor(numbers).to(index)[:, None]
        for whole, part in zip(self._scores, tile.leave_one_out, strict=True):
            whole[index[mine]] = part[mine]
        for number in numbers:
            self._scored[number] = True

    def _laid_out(self, queries: Tensor) -> tuple[list[int], Tensor, Tensor]:
        """The T tiles of a piece of (N, D), which rows are in each (T, n), the first one repeated
        where a tile has fewer than others, and which are no repetition (T, n)."""
        boxes = list(self.tiles.of(queries))
        longest = max(len(rows) for _, rows in boxes)
        rows = torch.stack([torch.cat([rows, rows[:1].expand(longest - len(rows))])
                            for _, rows in boxes])
        count = torch.tensor([len(rows) for _, rows in boxes]).to(rows)
        return ([number for number, _ in boxes], rows,
                torch.arange(longest).to(rows) < count[:, None])

    def answer(self, queries: Tensor, drift: Tensor | None) -> Answer:
        numbers, rows, own = self._laid_out(queries)
        tile, index = self._tile(numbers, self.fit)
        if not all(self._scored[number] for number in numbers):
            self._score(numbers, tile, index)
        if drift is None:
            return Answer(*(x[own] for x in tile.answer(queries[rows], None)))
        sites, known, z = tile.fit.sites, tile.observed.drift, tile.leave_one_out.z
        assert known is not None
        whitened, variance = sites.krige(queries[rows])
        kriged = (known[..., :1, :].mT.unsqueeze(-3)                      # (T, K, q, n)
                  + sites.whiten(known).mT @ whitened)
        off = drift[rows].mT.unsqueeze(-3) - kriged
        variance = variance + (self.root.mT @ off).square().sum(dim=-2)
        answer = tile.weighed(queries[rows], z, whitened, variance)
        answer = answer._replace(mean=answer.mean + drift[rows] @ self.slope)
        return Answer(*(x[own] for x in answer))

    def errors(self, queries: Tensor, drift: Tensor | None) -> Errors:
        numbers, rows, own = self._laid_out(queries)
        tile, index = self._tile(numbers, self._of_heaviest)
        of_tiles = tile.errors(queries[rows], None)
        return lambda at_queries, at_observed: of_tiles(
            at_queries[:, rows], at_observed[:, index])[:, own]


class PosteriorNoise:
    """Draws of z with answer.mean + answer.sd * z from the posterior: Matheron's rule.

    A draw of the prior minus its own kriging is a draw of the error (Journel & Huijbregts 1978;
    Wilson et al. 2020, equation 4). Of unit variance at every point, correlated between points like
    the heaviest kernel and between channels like the field; 0 at an observation.
    """

    def __init__(self, posterior: Posterior, places: list[Places], done: Count | None):
        self.fields, self.folded, self.done = posterior.fields, posterior.folded, done
        self.root = posterior.channel_root()                              # (B, C, C)
        self.kernels = [field.fit.kernels[field.fit.heaviest] for field in self.fields]
        self.places = places
        self.rows = [field.pieces(coords)
                     for field, (coords, _) in zip(self.fields, places, strict=True)]
        held = sum(field.held(rows) for field, rows in zip(self.fields, self.rows, strict=True))
        self.keep = held <= KEPT_NUMBERS
        self._kept: dict[tuple[int, int], Errors] = {}

    @cached_property
    def _waves(self) -> list[tuple[Waves, Waves]]:
        """Of each field, at its observations and at the queries."""
        return [(Waves(kernel, field.observed.coords), Waves(kernel, coords))
                for kernel, field, (coords, _) in zip(
                    self.kernels, self.fields, self.places, strict=True)]

    @property
    def parts(self) -> int:
        """In how many pieces it draws."""
        return sum(map(len, self.rows))

    @torch.no_grad()
    def __call__(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One draw a generator: (S, N, C).

        Args:
            generators: as many for each field as for the others, field after field.
        """
        count = 2 * WAVES + max(field.observed.coords.shape[1] for field in self.fields)
        with full_precision(self.root.device):
            numbers = self._by_field(self._numbers(generators, count) @ self.root[:, None].mT)
            channels = self.root.shape[1]
            seeds = torch.stack([torch.randint(1 << 62, (channels,), generator=g)
                                 for g in generators]).to(self.root.device)
            seeds = seeds.unflatten(0, (len(self.root), -1))              # (B, draws, C)
            found = torch.stack([self._drawn(b, numbers[b], seeds[b // self.folded])
                                 for b in range(len(self.fields))])
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

    def _drawn(self, b: int, numbers: Tensor, seeds: Tensor) -> Tensor:
        """(s, N) of numbers (s, F), and of seeds (draws, C) of nugget and errors of measurement."""
        field = self.fields[b]
        numbers = numbers[:, : 2 * WAVES + field.observed.coords.shape[1]]
        known, drawn = (waves.fields(numbers) + self._nugget(b, seeds, waves.coords)
                        for waves in self._waves[b])
        noise = field.fit.relative(field.observed.noise_variance)
        if noise is not None:
            errors = hashed.normal_at(hashed.scrambled(seeds), field.observed.coords)
            known = known + self._own(b, errors) * noise[field.fit.heaviest].sqrt()

        def part(i: int, rows: Tensor) -> Tensor:
            return self._errors(b, i)(drawn[:, rows], known)

        parts = in_threads(part, list(enumerate(self.rows[b])), known.device, self.done)
        return torch.cat(list(parts), dim=1)[:, torch.cat(self.rows[b]).argsort()]

    def _nugget(self, b: int, seeds: Tensor, coords: Tensor) -> Tensor:
        """What is not correlated between places (n, D), as kriging counts it: (s, n)."""
        numbers = self.root[b // self.folded] @ hashed.normal_at(seeds, coords)
        return self.kernels[b].nugget ** 0.5 * self._own(b, numbers)

    def _own(self, b: int, numbers: Tensor) -> Tensor:
        """(s, n) of numbers (draws, C, n) for all channels."""
        return numbers.unflatten(1, (self.folded, -1))[:, b % self.folded].flatten(0, 1)

    def _errors(self, b: int, i: int) -> Errors:
        """Of a piece of a field; kept for further draws where that is small."""
        if (b, i) in self._kept:
            return self._kept[b, i]
        found = self.fields[b].errors(*_part(self.places[b], self.rows[b][i]))
        if self.keep:
            self._kept[b, i] = found
        return found
