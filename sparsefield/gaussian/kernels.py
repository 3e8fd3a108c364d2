"""The bank of variograms: how much a field differs between two places.

A variogram is gamma(h) = Var[f(x + h) - f(x)] / 2. Only differences of a field are ever modelled,
because its level is unknown. So a variogram tells all that a covariance would, and more fields have
one: the power variogram has no covariance (Cressie 1993, Statistics for Spatial Data, sections 2.3
and 3.2). Distances are in units of the side of the domain (sparsefield.place.Domain).

Places have two coordinates, or three on a globe (sparsefield.use.globe): east, north and up of the
middle of the region. |h|^b is a variogram in any number of dimensions, and so on a sphere with h
the chord.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

NUGGET = 1e-4  # semivariance, relative to the amplitude, of what is not spatially correlated


class Kernel(NamedTuple):
    """gamma(h) = |A h|^exponent; A stretches distances across `angle` and shrinks them along it.

    Attributes:
        exponent: in (0, 2); the larger, the smoother. ratio: how many times farther the field
            reaches along `angle` (radians from the x axis towards y) than across it; 1: isotropic.
    """

    exponent: float
    ratio: float = 1.0
    angle: float = 0.0

    def describe(self) -> str:
        if self.ratio == 1:
            return f"power {self.exponent:g}, isotropic"
        return (f"power {self.exponent:g}, {self.ratio:g} times farther along "
                f"{math.degrees(self.angle):.0f} degrees")

    def stretch(self, dims: int = 2) -> Tensor:
        """A, (dims, dims) float64, symmetric; in two dimensions of determinant 1.

        The third axis is stretched like the first, so that along a parallel of a globe all
        directions are alike.
        """
        c, s = math.cos(self.angle), math.sin(self.angle)
        long, short = self.ratio**-0.5, self.ratio**0.5
        matrix = torch.eye(dims, dtype=torch.float64)
        matrix[:2, :2] = torch.tensor([[long * c * c + short * s * s, (long - short) * c * s],
                                       [(long - short) * c * s, long * s * s + short * c * c]],
                                      dtype=torch.float64)
        matrix[2:, 2:] *= matrix[0, 0].clone()
        return matrix


BANK = tuple(
    [Kernel(b) for b in (0.8, 1.0, 1.2, 1.4, 1.6)]
    + [Kernel(b, 2.5, k * math.pi / 4) for b in (1.0, 1.4) for k in range(4)]
    + [Kernel(1.9)]
)
ONE_KERNEL = (Kernel(1.0),)  # kriging that is not fitted to the field
FEW_POINTS = 2  # up to so many do not determine a direction


def isotropic(kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Those without a direction."""
    return tuple(kernel for kernel in kernels if kernel.ratio == 1)


def candidates(kernels: tuple[Kernel, ...], points: int) -> tuple[Kernel, ...]:
    """The kernels that so many observations can choose from: isotropic ones for FEW_POINTS."""
    return (points <= FEW_POINTS and isotropic(kernels)) or kernels


def variogram(kernels: tuple[Kernel, ...], a: Tensor, b: Tensor) -> Tensor:
    """gamma of K kernels between two sets of places, without the nugget.

    Exactly zero where two places are equal.

    Args:
        a: (..., P, D). b: (..., Q, D), of the dtype of the result.
    Returns:
        (..., K, P, Q).
    """
    matrix, shape, half = _constants(kernels, a.shape[-1], a.device, a.dtype)
    distance2: Tensor | None = None
    for one, other in zip(_stretched(matrix, a), _stretched(matrix, b)):  # (..., U, P), (..., U, Q)
        step = one[..., :, None] - other[..., None, :]
        distance2 = step.square_() if distance2 is None else distance2.addcmul_(step, step)
    assert distance2 is not None
    log2 = distance2.log_()                                               # (..., U, P, Q)
    if matrix.shape[0] < len(kernels):  # kernels of one shape share their distances
        log2 = log2.index_select(-3, shape)
    return log2.mul_(half).exp_()                                         # (..., K, P, Q)


@lru_cache(maxsize=256)
def _constants(
    kernels: tuple[Kernel, ...], dims: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The U different stretches (U, D, D), which of them (K,) and half the exponent (K, 1, 1)."""
    shapes = list(dict.fromkeys(kernel[1:] for kernel in kernels))
    matrix = torch.stack([Kernel(1.0, *shape).stretch(dims) for shape in shapes])
    shape = torch.tensor([shapes.index(kernel[1:]) for kernel in kernels])
    half = torch.tensor([kernel.exponent / 2 for kernel in kernels], dtype=torch.float64)
    return matrix.to(device, dtype), shape.to(device), half[:, None, None].to(device, dtype)


def _stretched(matrix: Tensor, points: Tensor) -> list[Tensor]:
    """Coordinates (..., U, P) of points (..., P, D). No product of matrices: equal places stay
    equal to the last bit."""
    along = points.unsqueeze(-3).unbind(dim=-1)                           # (..., 1, P) each
    return [sum(row[:, j, None] * x for j, x in enumerate(along))  # type: ignore[misc]
            for row in matrix.unbind(dim=1)]
