"""Which Gaussian field the observations come from: restricted likelihood over a bank of variograms.

Without noise the amplitude of a variogram is known in closed form. With noise it is not: a kernel
is tried with a ladder of amplitudes, and has the likelihood of them all and their mean.

Symbols: M observations, C channels, K kernels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.gaussian.kernels import (
    Kernel,
    candidates,
    penalties,
    variogram,
)
from sparsefield.gaussian.kriging import INDISTINCT, Mixture, Sites

KEPT = 3  # kernels that answer at most; the others have no weight
LEAST_WEIGHT = 0.02
TEMPER = 6.0  # scores are divided by it
PRIOR_AMPLITUDE2 = 0.05  # worth one observation, so that one point alone has an uncertainty
LADDER = 3.0 ** -torch.arange(-1.0, 8.0)  # amplitudes tried with noise, by that without any
TRIED = 1 << 22  # numbers in the matrices of the amplitudes that are tried together
ROUNDING = 1e-6  # of correlations, computed in float32
DISTANT = 128  # observations, at most, from which their mean gamma is computed
LEAST_DISTANCE = 0.01  # mean gamma between observations below which they determine no amplitude


class Stage(NamedTuple):
    """A choice between many kernels by some of the observations.

    Attributes:
        least: observations from which it takes place. some: about so many decide. left: kernels
            that are left.
    """

    least: int
    some: int
    left: int


FEW, MORE = STAGES = (Stage(100, 64, 8), Stage(1000, 500, 4))


class Fit(NamedTuple):
    """A fitted field.

    Attributes:
        kernels: K that have weight. mixture: of them.
        sites: the observed places under them. white: (K, M - 1 + q, C), see `Sites.whiten`.
    """

    kernels: tuple[Kernel, ...]
    mixture: Mixture
    sites: Sites
    white: Tensor

    @property
    def heaviest(self) -> int:
        """The kernel with the largest weight."""
        return int(self.mixture.weight.argmax())

    def relative(self, noise_variance: Tensor | None) -> Tensor | None:
        """Variance of the noise (..., M) of one channel in units of the amplitudes: (..., K, M)."""
        if noise_variance is None:
            return None
        return noise_variance.unsqueeze(-2) / self.mixture.channels[:, 0]

    def at(self, coords: Tensor, values: Tensor, noise_variance: Tensor | None,
           drift: Tensor | None = None) -> Fit:
        """The same kernels on other observations of the field, (..., M, D) and (..., M, C)."""
        sites = Sites.of(self.kernels, coords, self.relative(noise_variance), drift)
        sites.require()
        return Fit(self.kernels, self.mixture, sites, sites.whiten(values))

    def describe(self) -> str:
        """The fitted variogram in words: the kernels with weight, the heaviest first."""
        if self.sites.contrasts == 0:
            return "one point: nothing to fit, isotropic variograms of several powers alike"
        weights = self.mixture.weight.tolist()
        order = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)
        return "; ".join(f"{self.kernels[k].describe()} ({weights[k]:.0%})" for k in order)


def fit(kernels: tuple[Kernel, ...], coords: Tensor, values: Tensor,
        noise_variance: Tensor | None, drift: Tensor | None = None) -> Fit:
    """The best Gaussian field for observations.

    Args:
        coords: (M, D) in sides of the domain, M >= 1, the least noisy first.
        values: (M, C), of about unit size.
        noise_variance: (M,) of the noise in the values, with C = 1; None: there is none.
        drift: (M, q), q < M, of about unit size; None: an unknown level alone.
    Raises:
        UserError: places that cannot be told apart.
    """
    kernels = candidates(kernels, len(coords))
    for stage in STAGES:
        kernels = _screened(stage, kernels, coords, values, noise_variance, drift)
    if noise_variance is None:
        sites = Sites.of(kernels, coords, None, drift)
        white = sites.whiten(values)                                      # (K, M - 1 + q, C)
        weight, kept = _chosen(scores(sites, white))
        white, sites = white[kept], sites.take(kept)
        return Fit(sites.kernels, Mixture(weight, covariance_of_channels(sites, white)), sites,
                   white)
    score, amplitude2 = climb(kernels, coords, values, noise_variance, drift)
    weight, kept = _chosen(score)
    channels = amplitude2[kept].to(values)[:, None, None]
    of_kept = tuple(kernels[k] for k in kept)
    sites = Sites.of(of_kept, coords, noise_variance / channels[:, 0], drift)
    return Fit(of_kept, Mixture(weight, channels), sites, sites.whiten(values))


def screened_on(kernels: tuple[Kernel, ...], coords: Tensor, stage: Stage = FEW) -> Tensor | None:
    """Observations on which many kernels are screened, whatever the order of coords (M, D): what is
    far behind there has no weight among all of them. None: all of them decide at once."""
    count = len(coords)
    if len(kernels) <= stage.left or count < stage.least:
        return None
    by_place = (coords[:, 0] + math.pi * coords[:, 1]).argsort(stable=True)
    return by_place[:: max(2, count // stage.some)].sort().values


def promising(score: Tensor, stage: Stage = FEW) -> Tensor:
    """The kernels with the best scores (..., K) where they are screened: (..., stage.left)."""
    return score.topk(stage.left, dim=-1).indices


def _screened(stage: Stage, kernels: tuple[Kernel, ...], coords: Tensor, values: Tensor,
              noise_variance: Tensor | None, drift: Tensor | None) -> tuple[Kernel, ...]:
    some = screened_on(kernels, coords, stage)
    if some is None:
        return kernels
    coords, values = coords[some], values[some]
    if drift is not None:
        drift = drift[some]
        drift = drift[:, drift.amax(dim=0) > drift.amin(dim=0)]  # constant on these: unknown there
    if noise_variance is None:
        sites = Sites.of(kernels, coords, None, drift)
        score = scores(sites, sites.whiten(values))
    else:
        score, _ = climb(kernels, coords, values, noise_variance[some], drift)
    return tuple(kernels[k] for k in sorted(promising(score, stage).tolist()))


def _chosen(score: Tensor) -> tuple[Tensor, list[int]]:
    """Weights, without zeros, of kernels with scores (K,), and which they are."""
    weight = weights(score)
    kept = weight.nonzero()[:, 0].tolist()
    if not kept or not bool(score[kept].isfinite().all()):
        raise UserError(INDISTINCT)
    return weight[kept].float(), kept


def weights(score: Tensor) -> Tensor:
    """Weights of sum 1 of kernels with scores (..., K): 0 but for the KEPT heaviest.

    Scores count by 1 / TEMPER: fields are not quite Gaussian, and a mixture of near-by kernels
    predicts better than the best of them (docs/gaussian.md).
    """
    weight = (score / TEMPER).softmax(dim=-1)
    heaviest = weight.topk(min(KEPT, weight.shape[-1]), dim=-1).values
    least = torch.maximum(heaviest[..., -1:], heaviest[..., :1].clamp(max=LEAST_WEIGHT))
    weight = weight * (weight >= least)
    return weight / weight.sum(dim=-1, keepdim=True)


def covariance_of_channels(sites: Sites, white: Tensor) -> Tensor:
    """(..., C, C) of whitened values (..., M - 1 + q, C), at the best amplitude of each channel."""
    eye = torch.eye(white.shape[-1], dtype=white.dtype, device=white.device)
    left = white[..., : sites.contrasts, :]
    return (left.mT @ left + PRIOR_AMPLITUDE2 * eye) / sites.free


def scores(sites: Sites, white: Tensor, amplitude2: Tensor | None = None) -> Tensor:
    """Restricted log likelihood of each kernel, up to a constant, and its prior: (..., K) float64.

    With a drift of unit size it is the evidence under a prior N(0, 1) of the coefficients, nearly,
    so that different drifts compare.

    PRIOR_AMPLITUDE2 counts as the square of one observation more.

    Args:
        white: (..., K, M - 1 + q, C), see `Sites.whiten`.
        amplitude2: (..., K), or None for the best value of each.
    """
    left = white[..., : sites.contrasts, :]
    square = left.double().square().sum(dim=-2).mean(dim=-1) + PRIOR_AMPLITUDE2
    log_det, count = sites.log_det(), sites.free
    if amplitude2 is None:
        twice = (count - 1) * (square / count).log() + count + log_det
    else:
        twice = square / amplitude2 + count * amplitude2.log() + log_det
    likelihood = (-twice / 2).nan_to_num(nan=-torch.inf)  # where there are no factors
    return likelihood - penalties(sites.kernels, likelihood.device)


def climb(kernels: tuple[Kernel, ...], coords: Tensor, values: Tensor, noise_variance: Tensor,
          drift: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Likelihood of each kernel over the LADDER of amplitudes, and its expected amplitude.

    Returns:
        score and amplitude2, both (K,) float64.
    """
    some = coords[:: -(-len(coords) // DISTANT)]
    apart = variogram(kernels, some, some).mean(dim=(1, 2)).clamp_min(LEAST_DISTANCE)
    level = values.var(correction=0) / apart + PRIOR_AMPLITUDE2 / len(coords)
    tried = LADDER.to(level)[:, None].double() * level.double()           # (A, K)
    together = max(1, TRIED // (len(kernels) * len(coords) ** 2))
    found = []
    for amplitude2 in tried.split(together):
        sites = Sites.of(kernels, coords, noise_variance / amplitude2[..., None], drift)
        found.append(scores(sites, sites.whiten(values), amplitude2))
    score = torch.cat(found)
    return score.logsumexp(dim=0), (score.softmax(dim=0) * tried).sum(dim=0)


def correlation_root(covariance: Tensor) -> Tensor:
    """(..., C, C) float32: times independent numbers of unit variance those that go together."""
    covariance = covariance.double()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / (sd[..., :, None] * sd[..., None, :])
    correlation.diagonal(dim1=-2, dim2=-1).add_(ROUNDING)  # channels may be equal
    root, _ = torch.linalg.cholesky_ex(correlation)  # on a GPU nothing is waited for
    return root.float()
