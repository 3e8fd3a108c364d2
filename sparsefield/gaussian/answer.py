"""The closed-form answer: mean, standard deviation and leave-one-out errors of a fitted field."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsefield.gaussian.fit import Factored, Fit
from sparsefield.gaussian.kernels import NUGGET, variogram

LEAST_VARIANCE = 1e-6  # relative to the amplitude: rounding, on top of an observation
AMPLITUDE_WIDTH = 1.3  # mean spacings around a point that tell how much the field varies there
AMPLITUDE_WORTH = 2.0  # observations that say: as much as everywhere


@dataclass(frozen=True)
class Answer:
    """Gaussian marginals at the queries.

    Attributes:
        mean, sd: (B, N, C), in the units of the values. spread: (B, N, 1) sd between the means of
            the hypotheses: how much the answer depends on the choice of a variogram.
    """

    mean: Tensor
    sd: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Kriged:
    """What each hypothesis makes of the queries, whatever the values.

    Attributes:
        whitened: (B, T, M - 1, N), L^-1 c. variance: (B, T, N), relative to the amplitude.
    """

    whitened: Tensor
    variance: Tensor


def inverse_factor(lower: Tensor) -> Tensor:
    """L^-1 of lower triangular factors (..., P, P)."""
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)


def krige(factored: Factored, queries: Tensor) -> Kriged:
    """Simple kriging of f_q - y_1 from the increments (Cressie 1993, section 3.2).

    Args:
        queries: (B, N, 2). A query on top of an observation has its value, and no variance.
    """
    at, tried = factored.coords, factored.hypotheses
    to_first = variogram(tried.kernels, tried.kernel, at, at[:, :1])      # (B, T, M, 1)
    gamma = variogram(tried.kernels, tried.kernel, at, queries.to(at))    # (B, T, M, N)
    gamma += NUGGET * (gamma > 0)
    common = gamma[:, :, :1]                                              # (B, T, 1, N)
    if tried.noise is not None:
        common = common + tried.noise[..., :1, None].to(at)
    covariance = to_first[:, :, 1:] + NUGGET + common - gamma[:, :, 1:]
    whitened = inverse_factor(factored.lower) @ covariance                # (B, T, M - 1, N)
    variance = common[:, :, 0] + gamma[:, :, 0] - whitened.square().sum(dim=2)
    return Kriged(whitened, variance.clamp_min(LEAST_VARIANCE))


@dataclass(frozen=True)
class LeaveOneOut:
    """What the others say of every observation.

    Attributes:
        mean, sd: (B, M, C), of the measured value, its noise included.
        surprise: (B, M, C), (value - mean) / sd.
    """

    mean: Tensor
    sd: Tensor
    surprise: Tensor


def leave_one_out(fit: Fit) -> LeaveOneOut:
    """Each observation from the others, in closed form (Dubrule 1983).

    With P the precision of the observations once their level is projected out, observation i is
    off its prediction by (P y)_i / P_ii, with variance 1 / P_ii.
    """
    inverse = inverse_factor(fit.factored.lower)                          # (B, T, M - 1, M - 1)
    # Rows of a root of P: those of the increments, and for the first minus their sum.
    root = torch.cat([-inverse.sum(dim=3, keepdim=True), inverse], dim=3)  # (B, T, M - 1, M)
    precision = root.square().sum(dim=2)[..., None].clamp_min(0.5 / root.shape[3])
    error = (root.mT @ fit.white) / precision                             # (B, T, M, C)
    variance = fit.amplitude2[:, :, None] / precision                     # (B, T, M, C)
    weight = fit.weight[..., None, None]
    off = (weight * error).sum(dim=1)                                     # (B, M, C)
    sd = (weight * (variance + (error - off[:, None]) ** 2)).sum(dim=1).sqrt()
    return LeaveOneOut((fit.values.to(off) - off).float(), sd.float(), (off / sd).float())


def local_amplitude(
    queries: Tensor, coords: Tensor, surprise: Tensor, spacing: float
) -> Tensor:
    """How much more the field varies around each query than elsewhere: (B, N, 1), about 1.

    The root mean square of the surprises around, so that flat areas have a small sd and edges a
    large one; a Gaussian of AMPLITUDE_WIDTH spacings weights them.

    Args:
        queries: (B, N, 2). coords: (B, M, 2). surprise: (B, M, C). spacing: between observations.
    """
    square = surprise.square().mean(dim=2, keepdim=True)                  # (B, M, 1)
    distance = torch.cdist(queries.float(), coords.float())               # (B, N, M)
    near = torch.exp(-((distance / (AMPLITUDE_WIDTH * spacing)) ** 2) / 2)
    total = near @ square + AMPLITUDE_WORTH
    return (total / (near.sum(dim=2, keepdim=True) + AMPLITUDE_WORTH)).sqrt()


def combine(fit: Fit, kriged: Kriged) -> Answer:
    """The mixture of what the hypotheses answer, by their weights."""
    means = fit.values[:, None, :1].to(kriged.whitened) + (fit.white.mT @ kriged.whitened).mT
    weight = fit.weight[..., None, None]                                  # (B, T, 1, 1)
    mean = (weight * means).sum(dim=1)                                    # (B, N, C)
    between = (weight * (means - mean[:, None]) ** 2).sum(dim=1)          # (B, N, C)
    within = fit.amplitude2[:, :, None] * kriged.variance[..., None]      # (B, T, N, C)
    variance = (weight * within).sum(dim=1) + between
    spread = between.mean(dim=2, keepdim=True).sqrt()
    return Answer(mean.float(), variance.sqrt().float(), spread.float())
