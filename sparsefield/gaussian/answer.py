"""The closed-form answer: mean, standard deviation and leave-one-out errors of a fitted field.

Symbols: B fields, M observations, N queries, C channels, R hypotheses, each about one field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefield.gaussian.factor import Factored
from sparsefield.gaussian.fit import Fit, Mixture
from sparsefield.gaussian.kernels import NUGGET

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
class LeaveOneOut:
    """What the others say of every observation.

    Attributes:
        mean, sd: (B, M, C), of the measured value, its noise included.
        surprise: (B, M, C), (value - mean) / sd.
    """

    mean: Tensor
    sd: Tensor
    surprise: Tensor


@dataclass(frozen=True)
class Kriged:
    """What each hypothesis makes of the queries, whatever the values.

    Attributes:
        whitened: (R, M - 1, N), L^-1 c. variance: (R, N), relative to the amplitude.
    """

    whitened: Tensor
    variance: Tensor


def krige(factored: Factored, queries: Tensor) -> Kriged:
    """Simple kriging of f_q - y_1 from the increments (Cressie 1993, section 3.2).

    Args:
        queries: (B, N, 2). A query on top of an observation has its value, and no variance.
    """
    coords = factored.coords
    gamma = factored.hypotheses.variogram(coords, queries.to(coords))     # (R, M, N)
    gamma.add_(gamma > 0, alpha=NUGGET)
    first = gamma[:, :1].clone()                                          # (R, 1, N)
    common = first if factored.noise is None else first + factored.noise[:, :1, None]
    to_first = factored.hypotheses.variogram(coords[:, 1:], coords[:, :1])  # (R, M - 1, 1)
    covariance = gamma[:, 1:].neg_().add_(common).add_(to_first + NUGGET)
    whitened = factored.inverse @ covariance                              # (R, M - 1, N)
    variance = (first + common)[:, 0] - whitened.square().sum(dim=1)
    return Kriged(whitened, variance.clamp_min(LEAST_VARIANCE))


def kriging_weights(factored: Factored, kriged: Kriged) -> Tensor:
    """(R, N, M), of sum 1 over the observations."""
    others = kriged.whitened.mT @ factored.inverse                        # (R, N, M - 1)
    return torch.cat([1 - others.sum(dim=2, keepdim=True), others], dim=2)


def answer(fit: Fit, queries: Tensor, surprise: Tensor, spacing: float) -> Answer:
    """The mixture of the hypotheses, its sd by how much the field varies around each query.

    Args:
        queries: (B, N, 2). surprise: (B, M, C), leave-one-out. spacing: between observations.
    """
    mixture = combine(fit, krige(fit.factored, queries))
    amplitude = local_amplitude(queries, fit.factored.coords, surprise, spacing)
    return Answer(mixture.mean, mixture.sd * amplitude, mixture.spread * amplitude)


def combine(fit: Fit, kriged: Kriged) -> Answer:
    """The mixture of what the hypotheses answer, by their weights."""
    return answer_of(fit, (fit.white.mT @ kriged.whitened).mT, kriged.variance)


def answer_of(mixture: Mixture, change: Tensor, variance: Tensor) -> Answer:
    """The same from what each hypothesis says.

    Args:
        change: (R, N, C), of the mean from the first observation.
        variance: (R, N), relative to the amplitude.
    """
    mean = mixture.mix(change)                                            # (B, N, C)
    between = mixture.mix((change - mean[mixture.hypotheses.field]) ** 2)
    within = mixture.mix(variance[..., None] * mixture.amplitude2[:, None])
    spread = between.mean(dim=2, keepdim=True).sqrt()
    mean = mixture.values[:, :1].to(mean) + mean
    return Answer(mean.float(), (within + between).sqrt().float(), spread.float())


def leave_one_out(fit: Fit) -> LeaveOneOut:
    """Each observation from the others, in closed form (Dubrule 1983).

    With P the precision of the observations once their level is projected out, observation i is
    off its prediction by (P y)_i / P_ii, with variance 1 / P_ii. Rows of a root of P are those of
    L^-1, and for the first observation minus their sum.
    """
    inverse = fit.factored.inverse                                        # (R, M - 1, M - 1)
    return left_out(fit, inverse.mT @ fit.white, precisions(inverse))


def precisions(inverse: Tensor) -> Tensor:
    """P_ii (R, M) of L^-1 (R, M - 1, M - 1)."""
    precision = torch.cat([inverse.sum(dim=2).square().sum(dim=1, keepdim=True),
                           inverse.square().sum(dim=1)], dim=1)
    return precision.clamp_min(0.5 / precision.shape[1])


def left_out(mixture: Mixture, weighted: Tensor, precision: Tensor) -> LeaveOneOut:
    """`leave_one_out` of what each hypothesis says.

    Args:
        weighted: (R, M - 1, C), P y without its first row, which is minus the sum of the others.
        precision: (R, M), P_ii.
    """
    weighted = torch.cat([-weighted.sum(dim=1, keepdim=True), weighted], dim=1)
    error = weighted / precision[..., None]                               # (R, M, C)
    off = mixture.mix(error)                                              # (B, M, C)
    between = (error - off[mixture.hypotheses.field]) ** 2
    sd = mixture.mix(mixture.amplitude2[:, None] / precision[..., None] + between).sqrt()
    return LeaveOneOut((mixture.values.to(off) - off).float(), sd.float(), (off / sd).float())


def local_amplitude(
    queries: Tensor, coords: Tensor, surprise: Tensor, spacing: float
) -> Tensor:
    """How much more the field varies around each query than elsewhere: (B, N, 1), about 1.

    The root mean square of the surprises around, so that flat areas have a small sd and edges a
    large one; a Gaussian of AMPLITUDE_WIDTH spacings weights them.

    Args:
        queries: (B, N, 2). coords: (B, M, 2). surprise: (B, M, C). spacing: between observations.
    """
    return amplitude_around(closeness(queries, coords, spacing), surprise)


def closeness(queries: Tensor, coords: Tensor, spacing: float) -> Tensor:
    """How much each observation tells of the amplitude at each query: (B, N, M), up to 1."""
    steps = [q[:, :, None] - x[:, None] for q, x in                       # (B, N, M)
             zip(queries.float().unbind(dim=2), coords.float().unbind(dim=2))]
    distance2 = steps[0].square_()
    for step in steps[1:]:
        distance2.addcmul_(step, step)
    return distance2.mul_(-0.5 / (AMPLITUDE_WIDTH * spacing) ** 2).exp_()


def amplitude_around(near: Tensor, surprise: Tensor) -> Tensor:
    """`local_amplitude` (B, N, 1) from `closeness`."""
    square = surprise.square().mean(dim=2, keepdim=True)                  # (B, M, 1)
    total = near @ square + AMPLITUDE_WORTH
    return (total / (near.sum(dim=2, keepdim=True) + AMPLITUDE_WORTH)).sqrt()
