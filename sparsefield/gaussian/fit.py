"""Which Gaussian field the observations come from: restricted likelihood over a bank of variograms.

All of it is stated in increments from the first observation, y_i - y_1, whose covariance

    C_ij = gamma_i1 + gamma_j1 - gamma_ij      (+ s_i [i = j] + s_1, with noise of variance s)

exists for every variogram. Simple kriging of increments *is* ordinary kriging with an unknown
level, and their likelihood *is* the restricted likelihood (Patterson & Thompson 1971; Cressie 1993,
section 2.6), without the large constant that makes a covariance of the field ill-conditioned.

Without noise the amplitude of a variogram is known in closed form, and a hypothesis is a kernel.
With noise it is not, and a hypothesis is a kernel and an amplitude.

Symbols: B fields, M observations, N queries, C channels, H hypotheses, T of them kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefield.gaussian.kernels import BANK, NUGGET, Kernel, variogram

KEPT = 4  # hypotheses that answer at most; the others have no weight
LEAST_WEIGHT = 0.02
PRIOR_AMPLITUDE2 = 0.05  # worth one observation, so that one point alone has an uncertainty
AMPLITUDES = 9  # tried with noise, each a third of the one before, from three times the variance
SINGLE_POINTS = 512  # up to so many float32 serves, unless a pivot is below LEAST_PIVOT
LEAST_PIVOT = 0.02
AT_ONCE = 1 << 26  # numbers in the matrices that are factored together


@dataclass(frozen=True)
class Hypotheses:
    """What is tried on each field: H kernels with their noise relative to the amplitude.

    Attributes:
        kernels: the bank. kernel: (B, H) int64, which of it.
        amplitude2: (B, H) where noise fixes it, else None. noise: (B, H, M) variance of the noise
            in units of the amplitude, else None.
    """

    kernels: tuple[Kernel, ...]
    kernel: Tensor
    amplitude2: Tensor | None = None
    noise: Tensor | None = None

    def take(self, index: Tensor) -> Hypotheses:
        """Those of index (B, T)."""
        amplitude2, noise = self.amplitude2, self.noise
        if noise is not None:
            amplitude2 = amplitude2.gather(1, index)
            noise = noise.gather(1, index[..., None].expand(-1, -1, noise.shape[2]))
        return Hypotheses(self.kernels, self.kernel.gather(1, index), amplitude2, noise)


@dataclass(frozen=True)
class Factored:
    """Observed places under every hypothesis: all that does not depend on the values.

    Attributes:
        hypotheses: H for each field. coords: (B, M, 2).
        lower: (B, H, M - 1, M - 1) Cholesky factor of the covariance of increments.
    """

    hypotheses: Hypotheses
    coords: Tensor
    lower: Tensor

    def take(self, index: Tensor) -> Factored:
        """Those of index (B, T)."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        return Factored(self.hypotheses.take(index), self.coords, self.lower[rows, index])


@dataclass(frozen=True)
class Fit:
    """The Gaussian field of each batch element, as its observations have chosen it.

    Attributes:
        factored: the T hypotheses that have weight. weight: (B, T), of sum 1, heaviest first.
        channels: (B, T, C, C) covariance between channels: the field's is that times gamma.
        white: (B, T, M - 1, C) increments of the values, whitened.
        values: (B, M, C), as given.
    """

    factored: Factored
    weight: Tensor
    channels: Tensor
    white: Tensor
    values: Tensor

    @property
    def amplitude2(self) -> Tensor:
        """(B, T, C), of every channel."""
        return self.channels.diagonal(dim1=-2, dim2=-1)

    @property
    def heaviest(self) -> Fit:
        """The same with the heaviest hypothesis alone."""
        first = torch.zeros_like(self.factored.hypotheses.kernel[:, :1])
        return Fit(self.factored.take(first), torch.ones_like(self.weight[:, :1]),
                   self.channels[:, :1], self.white[:, :1], self.values)

    def describe(self, field: int = 0) -> str:
        """The fitted variogram in words: the kernels with weight, the heaviest first."""
        share: dict[int, float] = {}
        hypotheses = self.factored.hypotheses
        for kernel, weight in zip(hypotheses.kernel[field].tolist(), self.weight[field].tolist()):
            share[kernel] = share.get(kernel, 0.0) + weight
        return "; ".join(f"{hypotheses.kernels[kernel].describe()} ({weight:.0%})"
                         for kernel, weight in sorted(share.items(), key=lambda pair: -pair[1])
                         if weight >= LEAST_WEIGHT)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it, float32 products are float32, not TF32: the weights of near points cancel."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def hypotheses_for(
    values: Tensor, noise_variance: Tensor | None, kernels: tuple[Kernel, ...] = BANK
) -> Hypotheses:
    """All that is tried on some fields.

    Args:
        values: (B, M, C); C is 1 with noise. noise_variance: (B, M) of every value, or None.
    """
    fields, count, _ = values.shape
    kernel = torch.arange(len(kernels), device=values.device).expand(fields, -1)
    if noise_variance is None:
        return Hypotheses(kernels, kernel)
    level = values.var(dim=(1, 2), correction=0) + PRIOR_AMPLITUDE2 / count   # (B,)
    tried = 3 * level[:, None] / 3.0 ** torch.arange(AMPLITUDES, device=values.device)
    amplitude2 = tried.repeat_interleave(len(kernels), dim=1)                 # (B, H)
    return Hypotheses(kernels, kernel.repeat(1, AMPLITUDES), amplitude2,
                      noise_variance[:, None] / amplitude2[..., None])


def increments(gamma: Tensor, noise: Tensor | None) -> Tensor:
    """Covariance of increments from the first observation.

    Args:
        gamma: (..., M, M) variogram among observations. noise: (..., M) variances, or None.
    Returns:
        (..., M - 1, M - 1).
    """
    covariance = gamma[..., 1:, :1] + gamma[..., :1, 1:] - gamma[..., 1:, 1:]
    covariance += NUGGET  # the nugget of the first observation, which all have in common
    own = torch.full_like(covariance[..., 0], NUGGET)
    if noise is not None:
        covariance += noise[..., :1, None]
        own = own + noise[..., 1:]
    covariance.diagonal(dim1=-2, dim2=-1).add_(own)
    return covariance


def factor(hypotheses: Hypotheses, coords: Tensor) -> Factored:
    """Factor observed places under every hypothesis.

    Args:
        coords: (B, M, 2), in sides of the unit square.
    Returns:
        `Factored`, in float32 where its conditioning allows, else in float64.
    """
    if coords.shape[1] <= SINGLE_POINTS:
        single = coords.float()
        gamma = variogram(hypotheses.kernels, hypotheses.kernel, single, single)
        noise = None if hypotheses.noise is None else hypotheses.noise.float()
        lower, failed = torch.linalg.cholesky_ex(increments(gamma, noise))
        pivots = lower.diagonal(dim1=-2, dim2=-1)
        if not bool(failed.any()) and bool((pivots > LEAST_PIVOT).all()):
            return Factored(hypotheses, single, lower)
    double = coords.double()
    gamma = variogram(hypotheses.kernels, hypotheses.kernel, double, double)
    noise = None if hypotheses.noise is None else hypotheses.noise.double()
    return Factored(hypotheses, double, torch.linalg.cholesky(increments(gamma, noise)))


def whiten(factored: Factored, values: Tensor) -> Tensor:
    """L^-1 (y_i - y_1) under every hypothesis: (B, M, C) to (B, H, M - 1, C)."""
    shift = (values[:, 1:] - values[:, :1]).to(factored.lower)[:, None]
    return torch.linalg.solve_triangular(
        factored.lower, shift.expand(-1, factored.lower.shape[1], -1, -1), upper=False
    )


def scores(factored: Factored, white: Tensor) -> Tensor:
    """Restricted log likelihood of each hypothesis, up to a constant: (B, H).

    The amplitude is at its best value, or where there is noise that of the hypothesis.
    """
    count = white.shape[2]  # M - 1
    log_det = 2 * factored.lower.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    quadratic = white.square().sum(dim=2).mean(dim=-1)                    # (B, H)
    amplitude2 = factored.hypotheses.amplitude2
    if amplitude2 is None:
        return -(count * ((quadratic + PRIOR_AMPLITUDE2) / (count + 1)).log() + log_det) / 2
    return -(quadratic / amplitude2 + count * amplitude2.log() + log_det) / 2


def choose(score: Tensor) -> tuple[Tensor, Tensor]:
    """Which hypotheses answer, (B, T) int64, and with what weights, (B, T): heaviest first."""
    weight, index = score.double().softmax(dim=1).topk(min(KEPT, score.shape[1]), dim=1)
    weight = weight * (weight >= weight[:, :1].clamp(max=LEAST_WEIGHT))
    kept = int((weight > 0).sum(dim=1).max())
    weight, index = weight[:, :kept], index[:, :kept]
    return index, weight / weight.sum(dim=1, keepdim=True)


def fit_factored(factored: Factored, values: Tensor) -> Fit:
    """The best Gaussian field for values (B, M, C) at places that have been factored."""
    white = whiten(factored, values)
    index, weight = choose(scores(factored, white))
    rows = torch.arange(len(index), device=index.device)[:, None]
    white = white[rows, index]                                            # (B, T, M - 1, C)
    chosen = factored.take(index)
    eye = torch.eye(values.shape[2]).to(white)
    if chosen.hypotheses.amplitude2 is None:
        channels = (white.mT @ white + PRIOR_AMPLITUDE2 * eye) / values.shape[1]
    else:
        channels = chosen.hypotheses.amplitude2[..., None, None].to(white) * eye
    return Fit(chosen, weight.to(white), channels, white, values)


def fit(coords: Tensor, values: Tensor, noise_variance: Tensor | None = None,
        kernels: tuple[Kernel, ...] = BANK) -> Fit:
    """The best Gaussian field for observations.

    Args:
        coords: (B, M, 2) in sides of the unit square, M >= 1. values: (B, M, C), of about unit size.
        noise_variance: (B, M) of the noise in the values, with C = 1; None: there is none.
    """
    tried = hypotheses_for(values, noise_variance, kernels)
    together = max(1, AT_ONCE // (len(coords) * coords.shape[1] ** 2))
    if together >= tried.kernel.shape[1]:
        return fit_factored(factor(tried, coords), values)
    scored = []
    for part in torch.arange(tried.kernel.shape[1], device=coords.device).split(together):
        factored = factor(tried.take(part.expand(len(coords), -1)), coords)
        scored.append(scores(factored, whiten(factored, values)).double())
    index, _ = choose(torch.cat(scored, dim=1))
    return fit_factored(factor(tried.take(index), coords), values)
