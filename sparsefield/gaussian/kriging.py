"""Kriging: places factored under variograms, and what observed values there predict elsewhere.

Everything is stated in contrasts, differences from the first of M observations, which an unknown
level does not change. Their covariance exists for every variogram: with own_i = nugget + noise_i

    cov(y_i - y_0, y_j - y_0) = gamma_i0 + gamma_j0 - gamma_ij + own_0 + [i = j] own_i

Simple kriging of contrasts *is* ordinary kriging, and their likelihood *is* the restricted
likelihood (Patterson & Thompson 1971; Cressie 1993, sections 2.6 and 3.4). The first observation
takes part in all contrasts, so it must be the one with the least noise.

A drift F b with unknown b adds columns: whitened by the Cholesky factor of that covariance they are
Q R, and what is left of whitened values beside Q is all that the restricted likelihood sees.
Universal kriging is then: kriging of what is left, plus the drift by its generalised least squares,
whose error is added to the variance (Cressie 1993, section 3.4).

Symbols: M observations, N queries, C channels, K kernels, q drift columns beside the level, ... any
leading dimensions, such as one for each place that is answered from its nearest observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.gaussian.kernels import Apart, Kernel, nuggets, roughness, variogram

SINGLE_POINTS = 512  # up to so many float32 serves, unless a pivot is below LEAST_PIVOT
LEAST_PIVOT = 0.02
LEAST_NUGGET = 1e-5  # below which float32 never serves
AT_ONCE = 1 << 25  # numbers in the matrices that are factored together
QUERIES, HELD = 512, 1 << 18  # answered together, at least; numbers that fit into a cache
BLOCK = 64  # rows of a triangle that is not split
ALONE = 0.5  # precision, relative to the amplitude
LEAST_PRECISION = 1e-5
LEAST_VARIANCE = 1e-6  # relative to the amplitude, or a smaller nugget: rounding, on top of an
                       # observation
AMPLITUDE_WIDTH = 1.3  # spacings: width of the Gaussian that weights the errors around a query
AMPLITUDE_WORTH = 2.0  # observations: weight of the amplitude of the whole field among them
INDISTINCT = ("the measurements cannot be told apart in double precision: leave out points that "
              "are very far from the others, or very near to them")


def answered_at_once(rows: int) -> int:
    """How many queries, in matrices of so many rows, a CPU answers together fastest."""
    return max(QUERIES, HELD // rows)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it, float32 products are float32, whatever is set around: no TF32, no autocast.

    The weights of near points cancel.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Kriged(NamedTuple):
    """Queries under every kernel, whatever the values: a prediction is y_0 + `whitened`' `white`.

    Attributes:
        whitened: (..., K, M - 1 + q, N). variance: (..., K, N), relative to the amplitude.
    """

    whitened: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Factored:
    """Observed places under K kernels, in one precision.

    Attributes:
        kernels: K. coords: (..., M, D). own: (..., K), nugget and noise of the first.
        first: (..., K, M - 1), gamma from the first to the others.
        lower: (..., K, M - 1, M - 1) Cholesky factor of the covariance of contrasts.
        failed: (..., K), whether there is none.
        level: (..., 1, q), the drift at the first. basis: (..., K, M - 1, q), Q. root: R,
            (..., K, q, q).
    """

    kernels: tuple[Kernel, ...]
    coords: Tensor
    own: Tensor
    first: Tensor
    lower: Tensor
    failed: Tensor
    level: Tensor
    basis: Tensor
    root: Tensor

    @classmethod
    def of(cls, kernels: tuple[Kernel, ...], coords: Tensor, noise: Tensor | None,
           drift: Tensor | None = None) -> Factored:
        """Factor places in the dtype of their coordinates; arguments as in `Sites.of`."""
        gamma = variogram(kernels, coords, coords)                        # (..., K, M, M)
        own = nuggets(kernels, gamma.device, gamma.dtype).expand(gamma.shape[:-1])
        if noise is not None:
            own = own + noise.to(own)
        first = gamma[..., 0, 1:].clone().expand(*own.shape[:-1], -1)
        covariance = (first + own[..., :1])[..., None] + first[..., None, :]
        covariance -= gamma[..., 1:, 1:]
        covariance.diagonal(dim1=-2, dim2=-1).add_(own[..., 1:])
        lower, info = torch.linalg.cholesky_ex(covariance)
        drift = coords[..., :0] if drift is None else drift.to(coords)
        changes = (drift[..., 1:, :] - drift[..., :1, :]).unsqueeze(-3)
        basis = changes.expand(*lower.shape[:-1], -1)
        root = basis[..., :0, :]
        if drift.shape[-1]:
            basis, root = torch.linalg.qr(torch.linalg.solve_triangular(lower, basis, upper=False))
        return cls(kernels, coords, own[..., 0], first, lower, info != 0, drift[..., :1, :], basis,
                   root)

    def take(self, rows: list[int]) -> Factored:
        """Some of the kernels."""
        which: list[int] | slice = rows
        if rows == list(range(rows[0], rows[-1] + 1)):  # without a copy, or an index sent to a GPU
            which = slice(rows[0], rows[-1] + 1)
        return replace(self, kernels=tuple(self.kernels[k] for k in rows),
                       own=self.own[..., which], first=self.first[..., which, :],
                       failed=self.failed[..., which],
                       **{name: getattr(self, name)[..., which, :, :]
                          for name in ("lower", "basis", "root")})

    @property
    def imprecise(self) -> Tensor:
        """(K,), whether rounding may show."""
        size = torch.cat([self.first, self.own[..., None]], dim=-1).amax(dim=-1, keepdim=True)
        largest = size.clamp(max=1.0).sqrt()
        small = self.lower.diagonal(dim1=-2, dim2=-1) < LEAST_PIVOT * largest
        lost = small.any(dim=-1) | self.failed
        return lost.reshape(-1, len(self.kernels)).any(dim=0)

    @cached_property
    def inverse(self) -> Tensor:
        """(..., K, M - 1, M - 1), of `lower`."""
        return _inverse(self.lower)

    @cached_property
    def log_det(self) -> Tensor:
        """(..., K) of the covariance of contrasts and of F' cov^-1 F, float64; infinite where there
        is no factor."""
        pivots = torch.cat([self.lower.diagonal(dim1=-2, dim2=-1),
                            self.root.diagonal(dim1=-2, dim2=-1)], dim=-1)
        log_det = 2 * pivots.double().abs().log().sum(dim=-1)
        return log_det.masked_fill(self.failed, float("inf"))

    def whiten(self, values: Tensor) -> Tensor:
        """Contrasts of y (..., M, F), or one for each kernel (..., K, M, F), whitened: what is left
        beside the drift, then the part of each drift column: (..., K, M - 1 + q, F)."""
        y = values.to(self.lower)
        if y.dim() < self.lower.dim():
            y = y.unsqueeze(-3)
        contrasts = (y[..., 1:, :] - y[..., :1, :]).expand(*self.lower.shape[:-1], -1)
        white = torch.linalg.solve_triangular(self.lower, contrasts, upper=False)
        if not self.root.shape[-1]:
            return white
        along = self.basis.mT @ white                                     # (..., K, q, F)
        return torch.cat([white - self.basis @ along, along], dim=-2)

    def krige(self, queries: Tensor, drift: Tensor | None = None) -> Kriged:
        """Queries (..., N, D), with their drift (..., N, q). On top of an observation: its value,
        and no variance."""
        nugget = nuggets(self.kernels, self.lower.device, self.lower.dtype)
        own = self.own[..., None]
        gamma = variogram(self.kernels, self.coords, queries.to(self.coords))  # (..., K, M, N)
        same = gamma[..., :1, :, :] == 0
        if same.is_cuda or bool(same.any()):
            gamma.addcmul_(same, nugget[..., None], value=-1)
        to_first = gamma[..., :1, :]                                      # (..., K, 1, N)
        covariance = to_first - gamma[..., 1:, :]
        covariance += (self.first + own)[..., None]
        whitened = self._whitened(covariance)                             # (..., K, M - 1, N)
        variance = nugget + 2 * to_first[..., 0, :] + own - whitened.square().sum(dim=-2)
        if self.root.shape[-1]:
            assert drift is not None
            change = (drift.to(self.level) - self.level).mT.unsqueeze(-3)
            along = torch.linalg.solve_triangular(
                self.root.mT, change.expand(*whitened.shape[:-2], -1, -1), upper=False)
            variance += (along - self.basis.mT @ whitened).square().sum(dim=-2)
            whitened = torch.cat([whitened, along], dim=-2)
        return Kriged(whitened, torch.maximum(variance, nugget.clamp(max=LEAST_VARIANCE)))

    def _whitened(self, covariance: Tensor) -> Tensor:
        """Columns (..., K, M - 1, N) by the factor: of few by substitution, unless its inverse is
        there already."""
        if "inverse" in self.__dict__ or covariance.shape[-1] > covariance.shape[-2]:
            return _lower_times(self.inverse, covariance)
        return torch.linalg.solve_triangular(self.lower, covariance, upper=False)

    def _spread_out(self, weight: Tensor) -> Tensor:
        """Weights of contrasts (..., K, M - 1, F) as weights of observations (..., K, M, F)."""
        return torch.cat([-weight.sum(dim=-2, keepdim=True), weight], dim=-2)

    def precision(self) -> Tensor:
        """P_ii (..., K, M) of P, the precision with level and drift projected out, and ALONE where
        there are no other observations. At least LEAST_PRECISION of that without drift: a drift
        column may be known from one observation alone."""
        inverse = self.inverse
        if inverse.shape[-1] == 0:
            return inverse.new_full((*inverse.shape[:-2], 1), ALONE)
        whole = torch.cat([inverse.sum(dim=-1).square().sum(dim=-1)[..., None],
                           inverse.square().sum(dim=-2)], dim=-1)
        along = self._spread_out(inverse.mT @ self.basis).square().sum(dim=-1)
        return torch.maximum(whole - along, LEAST_PRECISION * whole)

    def weigh(self, white: Tensor) -> Tensor:
        """P y (..., K, M, F) of whitened y (..., K, M - 1 + q, F)."""
        left = white[..., : self.lower.shape[-1], :].to(self.lower)
        return self._spread_out(self.inverse.mT @ left)


def _inverse(lower: Tensor) -> Tensor:
    """(..., n, n) of a lower triangle, whose zeros a CPU gains by leaving out: halves and their
    product."""
    size = lower.shape[-1]
    if lower.is_cuda or size <= BLOCK:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    inverse, half = torch.zeros_like(lower), size // 2
    first = inverse[..., :half, :half] = _inverse(lower[..., :half, :half])
    second = inverse[..., half:, half:] = _inverse(lower[..., half:, half:])
    torch.neg(second @ (lower[..., half:, :half] @ first), out=inverse[..., half:, :half])
    return inverse


def _lower_times(lower: Tensor, x: Tensor) -> Tensor:
    """(..., n, n) @ (..., n, N); on a CPU in two blocks of rows, without half of the zeros."""
    if x.is_cuda:
        return lower @ x
    found, half = torch.empty_like(x), x.shape[-2] // 2
    flat = (tensor.flatten(0, -3) for tensor in (lower, x, found))
    for factor, given, product in zip(*flat, strict=True):
        torch.mm(factor[:half, :half], given[:half], out=product[:half])
        torch.mm(factor[half:], given, out=product[half:])
    return found


Rows = list[int]


@dataclass(frozen=True)
class Sites:
    """Observed places under K kernels, each in the precision that it needs; results are float32.

    Attributes:
        kernels: K. parts: which of them, and their factors.
    """

    kernels: tuple[Kernel, ...]
    parts: list[tuple[Rows, Factored]]

    @classmethod
    def of(
        cls, kernels: tuple[Kernel, ...], coords: Tensor, noise: Tensor | None = None,
        drift: Tensor | None = None,
    ) -> Sites:
        """Factor places in float32 where their conditioning allows, else in float64; on a GPU,
        which would have to be waited for, always in float64.

        Args:
            coords: (..., M, D), in sides of the domain, the least noisy first.
            noise: (..., K, M) variance in units of the amplitude, or (A, K, M) to factor one set
                of places with each of A. drift: (..., M, q) columns beside the level, of unit
                size; None: no more than a level.
        """
        def factored(rows: Rows, dtype: torch.dtype) -> Factored:
            return Factored.of(tuple(kernels[k] for k in rows), coords.to(dtype),
                               None if noise is None else noise[..., rows, :], drift)

        every, parts = list(range(len(kernels))), []
        single_serves = not coords.is_cuda and coords.shape[-2] <= SINGLE_POINTS
        smooth = [k for k in every if not single_serves or kernels[k].nugget < LEAST_NUGGET]
        places = coords[..., 0] if noise is None else noise[..., 0, :]
        together = max(1, len(kernels) if coords.is_cuda
                       else AT_ONCE // (places.numel() * places.shape[-1]))
        for rows in _cut([k for k in every if k not in smooth], together):
            single = factored(rows, torch.float32)
            bad = single.imprecise.tolist()
            sound = [i for i in range(len(rows)) if not bad[i]]
            if sound:
                parts.append(([rows[i] for i in sound], single.take(sound)))
            smooth += [k for k, is_bad in zip(rows, bad, strict=True) if is_bad]
        parts += [(rows, factored(rows, torch.float64)) for rows in _cut(sorted(smooth), together)]
        return cls(kernels, parts)

    @property
    def contrasts(self) -> int:
        """M - 1, rows of whitened values that are not of the drift."""
        return self.parts[0][1].lower.shape[-1]

    @property
    def free(self) -> int:
        """M - q, observations that the drift leaves, the prior one among them."""
        return self.contrasts + 1 - self.parts[0][1].root.shape[-1]

    def one_by_one(self) -> list[Factored]:
        """The factors of every kernel on its own, views of these."""
        each = {k: part.take([i]) for rows, part in self.parts for i, k in enumerate(rows)}
        return [each[k] for k in range(len(self.kernels))]

    def take(self, kept: Rows) -> Sites:
        """Some of the kernels, in their order."""
        parts = []
        for rows, part in self.parts:
            mine = [i for i, k in enumerate(rows) if k in kept]
            if mine:
                parts.append(([kept.index(rows[i]) for i in mine],
                              part if len(mine) == len(rows) else part.take(mine)))
        return Sites(tuple(self.kernels[k] for k in kept), parts)

    def log_det(self) -> Tensor:
        """See Factored.log_det."""
        return self._joined([part.log_det for _, part in self.parts], -1)

    def whiten(self, values: Tensor) -> Tensor:
        """See Factored.whiten."""
        own = values.dim() == self.parts[0][1].lower.dim()  # of each kernel
        return self._joined([part.whiten(values[..., rows, :, :] if own else values).float()
                             for rows, part in self.parts], -3)

    def coefficients(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """Of the drift under every kernel, by generalised least squares: (K, q, F), and their
        covariance relative to the amplitude (K, q, q), float64.

        Args:
            white: (K, M - 1 + q, F).
        """
        root = self._joined([part.root.double() for _, part in self.parts], -3)
        along = white[..., self.contrasts :, :].double()
        inverse = torch.linalg.inv(root)
        return inverse @ along, inverse @ inverse.mT

    def precision(self) -> Tensor:
        """See Factored.precision."""
        return self._joined([part.precision().float() for _, part in self.parts], -2)

    def weigh(self, white: Tensor) -> Tensor:
        """See Factored.weigh."""
        return self._joined([part.weigh(white[..., rows, :, :]).float()
                             for rows, part in self.parts], -3)

    def krige(self, queries: Tensor, drift: Tensor | None = None) -> Kriged:
        """See Factored.krige."""
        whitened, variance = zip(*(part.krige(queries, drift) for _, part in self.parts),
                                 strict=True)
        return Kriged(self._joined([x.float() for x in whitened], -3),
                      self._joined([x.float() for x in variance], -2))

    def require(self) -> None:
        """Raises UserError unless every kernel could be factored."""
        if any(bool(part.failed.any()) for _, part in self.parts):
            raise UserError(INDISTINCT)

    def _joined(self, parts: list[Tensor], dim: int) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        order, joined = [k for rows, _ in self.parts for k in rows], torch.cat(parts, dim)
        if order == sorted(order):
            return joined
        return joined.index_select(dim, torch.tensor(order).argsort().to(joined.device))


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class Answer(NamedTuple):
    """Gaussian marginals at the queries.

    Attributes:
        mean, sd: (..., N, C), in the units of the values. spread: (..., N, 1) sd between the means
            of the kernels: how much the answer depends on the choice of a variogram.
    """

    mean: Tensor
    sd: Tensor
    spread: Tensor

    def scaled(self, amplitude: Tensor) -> Answer:
        """With sd and spread times (..., N, 1), see `local_amplitude`."""
        return Answer(self.mean, self.sd * amplitude, self.spread * amplitude)


class LeaveOneOut(NamedTuple):
    """What the other observations predict for each.

    Attributes:
        mean, sd: (..., M, C), of the measured value, its noise included.
        z: (..., M, C), (value - mean) / sd.
    """

    mean: Tensor
    sd: Tensor
    z: Tensor


class Mixture(NamedTuple):
    """The kernels that answer for a field, and how large it is under each.

    Attributes:
        weight: (..., K), of sum 1. channels: (..., K, C, C) covariance between channels: the
            field's is that times -gamma.
    """

    weight: Tensor
    channels: Tensor

    def rough(self, kernels: tuple[Kernel, ...]) -> Tensor:
        """Weight of those of K kernels that are no squared exponentials: (...)."""
        return (self.weight * roughness(kernels, self.weight.device)).sum(dim=-1)

    def mean(self, x: Tensor) -> Tensor:
        """(..., K, N, C) to (..., N, C)."""
        return (self.weight[..., None, None] * x).sum(dim=-3)

    def spread(self, x: Tensor, mean: Tensor) -> Tensor:
        """Variance between the kernels: (..., N, C)."""
        return self.mean((x - mean.unsqueeze(-3)).square())

    def within(self, variance: Tensor) -> Tensor:
        """Variance (..., N, C) of variances (..., K, N) relative to the amplitudes."""
        amplitude2 = self.channels.diagonal(dim1=-2, dim2=-1)             # (..., K, C)
        return self.mean(variance[..., None] * amplitude2[..., None, :])

    def answer(self, level: Tensor, change: Tensor, variance: Tensor) -> Answer:
        """What the kernels predict together.

        Args:
            level: (..., 1, C), the first observation. change: (..., K, N, C), from the contrasts.
            variance: (..., K, N).
        """
        mean = self.mean(change)
        between = self.spread(change, mean)
        return Answer(level + mean, (self.within(variance) + between).sqrt(),
                      between.mean(dim=-1, keepdim=True).sqrt())

    def leave_one_out(self, values: Tensor, weighed: Tensor, precision: Tensor) -> LeaveOneOut:
        """Each observation from the others, in closed form (Dubrule 1983): observation i is off its
        prediction by (P y)_i / P_ii, with variance 1 / P_ii.

        Args:
            values: (..., M, C). weighed: P y (..., K, M, C). precision: P_ii (..., K, M).
        """
        error = weighed / precision[..., None]
        off = self.mean(error)
        sd = (self.within(1 / precision) + self.spread(error, off)).sqrt()
        return LeaveOneOut(values - off, sd, off / sd)


def closeness(queries: Tensor, coords: Tensor, spacing: float) -> Tensor:
    """How much each observation tells of the amplitude at each query: (..., N, M), up to 1.

    Of coordinates in space alone, the first three.
    """
    space = Apart(queries[..., :3].float(), coords[..., :3].float())
    scale = -0.5 / math.log(2) / (AMPLITUDE_WIDTH * spacing) ** 2
    return sum(space.squares[1:], space.squares[0]).mul_(scale).exp2_()


def local_amplitude(near: Tensor, z: Tensor, rough: Tensor) -> Tensor:
    """How much more the field varies around each query than elsewhere: (..., N, 1), about 1.

    The root mean square of the leave-one-out scores around, so that flat areas have a small sd and
    edges a large one. Not of a field with squared exponential kernels: it is so smooth that the
    scores of many neighbours are one score, and their mean square is chance.

    Args:
        near: (..., N, M), `closeness`. z: (..., M, C), leave-one-out. rough: (...), see
            `Mixture.rough`.
    """
    square = z.square().mean(dim=-1, keepdim=True)                        # (..., M, 1)
    total = near @ square + AMPLITUDE_WORTH
    return (total / (near.sum(dim=-1, keepdim=True) + AMPLITUDE_WORTH)) ** (
        rough[..., None, None] / 2)
