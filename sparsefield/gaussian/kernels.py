"""The bank of variograms: how much a field differs between two places.

A variogram is gamma(h) = Var[f(x + h) - f(x)] / 2. Only differences of a field are ever modelled
(its level is unknown), so a variogram says all that a covariance would, and more fields have one:
the power variogram has no covariance at all (Cressie 1993, Statistics for Spatial Data, sections
2.3 and 3.2). Distances are in sides of the unit square.

Places have two coordinates, or three on a globe (sparsefield.use.globe): east, north and up of the
middle of the region. |h|^b is a variogram in any number of dimensions, and so on a sphere with h
the chord.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

NUGGET = 1e-4  # semivariance, relative to the amplitude, of what is not spatially correlated


class Kernel(NamedTuple):
    """gamma(h) = |A h|^exponent; A stretches distances across `angle` and shrinks them along it.

    Attributes:
        exponent: in (0, 2), the larger, the smoother. ratio: how many times farther the field
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


BANK = tuple(
    [Kernel(b) for b in (0.8, 1.0, 1.2, 1.4, 1.6)]
    + [Kernel(b, 2.5, k * math.pi / 4) for b in (1.0, 1.4) for k in range(4)]
)
ONE_KERNEL = (Kernel(1.0),)  # kriging that is not fitted to the field
NOISY_BANK = (*BANK, Kernel(1.9))  # noise hides roughness: smooth fields can be told only by it
FEW_POINTS = 2  # up to so many tell nothing of a direction


def without_directions(kernels: tuple[Kernel, ...], points: int) -> tuple[Kernel, ...]:
    """The kernels that so many observations can choose from: isotropic ones for FEW_POINTS."""
    isotropic = tuple(kernel for kernel in kernels if kernel.ratio == 1)
    return isotropic if isotropic and points <= FEW_POINTS else kernels


def stretch(kernels: tuple[Kernel, ...], dims: int = 2) -> Tensor:
    """A of each kernel, (K, dims, dims) float64, symmetric; in two dimensions of determinant 1.

    The third axis is stretched like the first, so that along a parallel all directions are alike.
    """
    matrices = []
    for kernel in kernels:
        c, s = math.cos(kernel.angle), math.sin(kernel.angle)
        long, short = kernel.ratio**-0.5, kernel.ratio**0.5
        matrices.append([[long * c * c + short * s * s, (long - short) * c * s],
                         [(long - short) * c * s, long * s * s + short * c * c]])
    plane = torch.tensor(matrices, dtype=torch.float64)
    if dims == 2:
        return plane
    space = plane.new_zeros(len(kernels), 3, 3)
    space[:, :2, :2], space[:, 2, 2] = plane, plane[:, 0, 0]
    return space


def variogram(
    kernels: tuple[Kernel, ...], kernel: Tensor, field: Tensor, a: Tensor, b: Tensor
) -> Tensor:
    """gamma between two sets of places for R pairs of a kernel and a field, without the nugget.

    Zero exactly where two places are equal. Kernels that stretch a field alike share its distances.

    Args:
        kernels: the bank. kernel: (R,) int64, which of it. field: (R,) int64 into the batch.
        a: (B, P, D). b: (B, Q, D), D 2 or 3, in sides of the square, of the dtype of the result.
    Returns:
        (R, P, Q).
    """
    shapes = [k[1:] for k in kernels]
    first_alike = torch.tensor([shapes.index(shape) for shape in shapes], device=kernel.device)
    pairs, pair = torch.unique(field * len(kernels) + first_alike[kernel], return_inverse=True)
    matrix = stretch(kernels, a.shape[2]).to(a)[pairs % len(kernels)]     # (U, D, D)
    sides = zip(_stretched(a[pairs // len(kernels)], matrix),             # (U, P), (U, Q)
                _stretched(b[pairs // len(kernels)], matrix))
    steps = (one[:, :, None] - other[:, None] for one, other in sides)
    distance2 = next(steps).square_()
    for step in steps:
        distance2.addcmul_(step, step)
    log2 = distance2.log_()                                               # (U, P, Q)
    half = torch.tensor([k.exponent / 2 for k in kernels], dtype=torch.float64).to(a)
    return log2[pair].mul_(half[kernel][:, None, None]).exp_()            # (R, P, Q)


def _stretched(points: Tensor, matrix: Tensor) -> list[Tensor]:
    """Coordinates (U, P) of (U, P, D), term by term: equal places stay equal to the last bit."""
    along = points.unbind(dim=2)
    return [reduce(torch.add, (row[:, j, None] * x for j, x in enumerate(along)))
            for row in matrix.unbind(dim=1)]
