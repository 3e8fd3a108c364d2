"""Kriging: places factored under variograms, and what observed values there predict elsewhere.

Everything is stated in contrasts, combinations of values that a drift F b with unknown b does not
change. Of M observations the first p are pivots, and the contrasts are B y with

    B = [-A, I],   A = F_rest F_pivot^-1                                       (M - p, M)

Here F is a column of ones (p = 1): contrasts are differences from the first observation. Their
covariance B K B' exists for every variogram, with K_ij = -gamma_ij + [i = j] (nugget + noise_i).
Simple kriging of contrasts *is* universal kriging, and their likelihood *is* the restricted
likelihood (Patterson & Thompson 1971; Cressie 1993, sections 2.6 and 3.4). Pivots take part in all
contrasts, so they must be the observations with the least noise: order them first.

Symbols: M observations, N queries, C channels, K kernels, p drift terms, ... any leading
dimensions, such as one for each place that is answered from its nearest observations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.gaussian.kernels import NUGGET, Kernel, variogram

SINGLE_POINTS = 512  # up to so many float32 serves, unless a pivot is below LEAST_PIVOT
LEAST_PIVOT = 0.02
AT_ONCE = 1 << 25  # numbers in the matrices that are factored together
ALONE = 0.5  # precision, relative to the amplitude
LEAST_VARIANCE = 1e-6  # relative to the amplitude: rounding, on top of an observation
AMPLITUDE_WIDTH = 1.3  # spacings: width of the Gaussian that weights the errors around a query
AMPLITUDE_WORTH = 2.0  # observations: weight of the amplitude of the whole field among them
INDISTINCT = ("the measurements cannot be told apart in double precision: leave out points that "
              "are very far from the others, or very near to them")


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


def drift(coords: Tensor) -> Tensor:
    """F, (..., M, p): the field has an unknown mean F b. Here an unknown level."""
    return torch.ones_like(coords[..., :1])


class Kriged(NamedTuple):
    """Queries under every kernel, whatever the values. A prediction is
    `onto` y_pivot + `whitened`' (whitened contrasts of y).

    Attributes:
        onto: (..., N, p). whitened: (..., K, M - p, N), L^-1 c. variance: (..., K, N), relative to
            the amplitude.
    """

    onto: Tensor
    whitened: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Factored:
    """Observed places under K kernels, in one precision.

    Attributes:
        kernels: K. coords: (..., M, D). onto: A (..., M - p, p).
        pivots: (..., K, p, p), -K among pivots. across: (..., K, M - p, p), gamma - A `pivots`.
        lower: (..., K, M - p, M - p) Cholesky factor of the covariance of contrasts.
        failed: (..., K), whether there is none.
    """

    kernels: tuple[Kernel, ...]
    coords: Tensor
    onto: Tensor
    pivots: Tensor
    across: Tensor
    lower: Tensor
    failed: Tensor

    @classmethod
    def of(cls, kernels: tuple[Kernel, ...], coords: Tensor, noise: Tensor | None) -> Factored:
        """Factor places in the dtype of their coordinates; noise as in `Sites.of`."""
        shares = drift(coords)
        p = shares.shape[-1]
        onto = torch.linalg.solve_ex(shares[..., :p, :], shares[..., p:, :], left=False)[0]
        gamma = variogram(kernels, coords, coords)                        # (..., K, M, M)
        own = gamma.new_full(gamma.shape[:-1], NUGGET)
        if noise is not None:
            own += noise.to(own)
        pivots = gamma[..., :p, :p] - torch.diag_embed(own[..., :p])
        a, to_pivots = onto.unsqueeze(-3).expand(*gamma.shape[:-2], -1, -1), gamma[..., p:, :p]
        across = to_pivots - a @ pivots
        covariance = torch.cat([across, a], dim=-1) @ torch.cat([a, to_pivots], dim=-1).mT
        covariance -= gamma[..., p:, p:]
        covariance.diagonal(dim1=-2, dim2=-1).add_(own[..., p:])
        lower, info = torch.linalg.cholesky_ex(covariance)
        return cls(kernels, coords, onto, pivots, across, lower, info != 0)

    def take(self, rows: list[int]) -> Factored:
        """Some of the kernels."""
        which: list[int] | slice = rows
        if rows == list(range(rows[0], rows[-1] + 1)):  # without a copy, or an index sent to a GPU
            which = slice(rows[0], rows[-1] + 1)
        return replace(self, kernels=tuple(self.kernels[k] for k in rows),
                       pivots=self.pivots[..., which, :, :], across=self.across[..., which, :, :],
                       lower=self.lower[..., which, :, :], failed=self.failed[..., which])

    @property
    def imprecise(self) -> Tensor:
        """(K,), whether rounding may show."""
        lost = (self.lower.diagonal(dim1=-2, dim2=-1) < LEAST_PIVOT).any(dim=-1) | self.failed
        return lost.reshape(-1, len(self.kernels)).any(dim=0)

    @cached_property
    def inverse(self) -> Tensor:
        """(..., K, M - p, M - p), of `lower`."""
        eye = torch.eye(self.lower.shape[-1], dtype=self.lower.dtype, device=self.lower.device)
        return torch.linalg.solve_triangular(self.lower, eye.expand_as(self.lower), upper=False)

    def log_det(self) -> Tensor:
        """(..., K) of the covariance of contrasts, float64; infinite where it has failed."""
        log_det = 2 * self.lower.diagonal(dim1=-2, dim2=-1).double().log().sum(dim=-1)
        return log_det.masked_fill(self.failed, float("inf"))

    def whiten(self, values: Tensor) -> Tensor:
        """L^-1 B y: (..., M, F), or one for each kernel (..., K, M, F), to (..., K, M - p, F)."""
        y, p = values.to(self.lower), self.onto.shape[-1]
        if y.dim() < self.lower.dim():
            y = y.unsqueeze(-3)
        contrasts = y[..., p:, :] - self.onto.unsqueeze(-3) @ y[..., :p, :]
        contrasts = contrasts.expand(*self.lower.shape[:-1], -1)
        return torch.linalg.solve_triangular(self.lower, contrasts, upper=False)

    def krige(self, queries: Tensor) -> Kriged:
        """Queries (..., N, D). On top of an observation: its value, and no variance."""
        queries = queries.to(self.coords)
        p = self.onto.shape[-1]
        gamma = variogram(self.kernels, self.coords, queries)             # (..., K, M, N)
        gamma.add_(gamma == 0, alpha=-NUGGET)
        onto = torch.linalg.solve_ex(drift(self.coords[..., :p, :]), drift(queries), left=False)[0]
        a_q = onto.mT.unsqueeze(-3).expand(*gamma.shape[:-2], -1, -1)     # (..., K, p, N)
        a = self.onto.unsqueeze(-3).expand_as(self.across)
        to_pivots = gamma[..., :p, :]
        covariance = torch.cat([a, self.across], dim=-1) @ torch.cat([to_pivots, a_q], dim=-2)
        covariance -= gamma[..., p:, :]
        whitened = self.inverse @ covariance                              # (..., K, M - p, N)
        prior = NUGGET + (a_q * (2 * to_pivots - self.pivots @ a_q)).sum(dim=-2)
        variance = prior - whitened.square().sum(dim=-2)
        return Kriged(onto, whitened, variance.clamp_min(LEAST_VARIANCE))

    def precision(self) -> Tensor:
        """P_ii (..., K, M) of P = B' (L L')^-1 B, the precision with the drift projected out,
        and ALONE where there are no other observations."""
        onto = self.onto.unsqueeze(-3)
        if self.inverse.shape[-1] == 0:
            return self.inverse.new_full((*self.inverse.shape[:-2], onto.shape[-1]), ALONE)
        return torch.cat([(self.inverse @ onto).square().sum(dim=-2),
                          self.inverse.square().sum(dim=-2)], dim=-1)

    def weigh(self, white: Tensor) -> Tensor:
        """P y (..., K, M, F) of whitened contrasts of y (..., K, M - p, F)."""
        weight = self.inverse.mT @ white.to(self.inverse)
        return torch.cat([-(self.onto.unsqueeze(-3).mT @ weight), weight], dim=-2)


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
        cls, kernels: tuple[Kernel, ...], coords: Tensor, noise: Tensor | None = None
    ) -> Sites:
        """Factor places in float32 where their conditioning allows, else in float64; on a GPU,
        which would have to be waited for, always in float64.

        Args:
            coords: (..., M, D), in sides of the domain, the least noisy first.
            noise: (..., K, M) variance in units of the amplitude.
        """
        def factored(rows: Rows, dtype: torch.dtype) -> Factored:
            return Factored.of(tuple(kernels[k] for k in rows), coords.to(dtype),
                               None if noise is None else noise[..., rows, :])

        size = coords[..., 0].numel() * coords.shape[-2]
        together = max(1, len(kernels) if coords.is_cuda else AT_ONCE // size)
        every, parts = list(range(len(kernels))), []
        for rows in (every[i : i + together] for i in range(0, len(every), together)):
            if coords.is_cuda or coords.shape[-2] > SINGLE_POINTS:
                parts.append((rows, factored(rows, torch.float64)))
                continue
            single = factored(rows, torch.float32)
            bad = single.imprecise.tolist()
            sound = [i for i in range(len(rows)) if not bad[i]]
            if sound:
                parts.append(([rows[i] for i in sound], single.take(sound)))
            lost = [k for k, is_bad in zip(rows, bad, strict=True) if is_bad]
            if lost:
                parts.append((lost, factored(lost, torch.float64)))
        return cls(kernels, parts)

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
        return self._joined([part.log_det() for _, part in self.parts], -1)

    def whiten(self, values: Tensor) -> Tensor:
        """See Factored.whiten."""
        return self._joined([part.whiten(values).float() for _, part in self.parts], -3)

    def precision(self) -> Tensor:
        """See Factored.precision."""
        return self._joined([part.precision().float() for _, part in self.parts], -2)

    def weigh(self, white: Tensor) -> Tensor:
        """See Factored.weigh."""
        return self._joined([part.weigh(white[..., rows, :, :]).float()
                             for rows, part in self.parts], -3)

    def krige(self, queries: Tensor) -> Kriged:
        """See Factored.krige."""
        found = [part.krige(queries) for _, part in self.parts]
        onto, whitened, variance = zip(*found, strict=True)
        return Kriged(onto[0].float(), self._joined([x.float() for x in whitened], -3),
                      self._joined([x.float() for x in variance], -2))

    def require(self) -> None:
        """Raises UserError unless every kernel could be factored."""
        if any(bool(part.failed.any()) for _, part in self.parts):
            raise UserError(INDISTINCT)

    def _joined(self, parts: list[Tensor], dim: int) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([k for rows, _ in self.parts for k in rows])
        return torch.cat(parts, dim).index_select(dim, order.argsort().to(parts[0].device))


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
            level: (..., N, C), from the pivots. change: (..., K, N, C), from the contrasts.
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
    """How much each observation tells of the amplitude at each query: (..., N, M), up to 1."""
    distance = torch.cdist(queries.float(), coords.float(),
                           compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square_().mul_(-0.5 / (AMPLITUDE_WIDTH * spacing) ** 2).exp_()


def local_amplitude(near: Tensor, z: Tensor) -> Tensor:
    """How much more the field varies around each query than elsewhere: (..., N, 1), about 1.

    The root mean square of the leave-one-out scores around, so that flat areas have a small sd and
    edges a large one.

    Args:
        near: (..., N, M), `closeness`. z: (..., M, C), leave-one-out.
    """
    square = z.square().mean(dim=-1, keepdim=True)                        # (..., M, 1)
    total = near @ square + AMPLITUDE_WORTH
    return (total / (near.sum(dim=-1, keepdim=True) + AMPLITUDE_WORTH)).sqrt()
