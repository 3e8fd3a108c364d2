"""The bank of variograms: how much a field differs between two places.

A variogram is gamma(h) = Var[f(x + h) - f(x)] / 2. Only differences of a field are ever modelled
(its level is unknown), so a variogram says all that a covariance would, and more fields have one:
the power variogram has no covariance at all (Cressie 1993, Statistics for Spatial Data, sections
2.3 and 3.2). Distances are in sides of the unit square.
"""

from __future__ import annotations

import math
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


def stretch(kernels: tuple[Kernel, ...]) -> Tensor:
    """A of each kernel, (K, 2, 2) float64, symmetric and of determinant 1."""
    matrices = []
    for kernel in kernels:
        c, s = math.cos(kernel.angle), math.sin(kernel.angle)
        long, short = kernel.ratio**-0.5, kernel.ratio**0.5
        matrices.append([[long * c * c + short * s * s, (long - short) * c * s],
                         [(long - short) * c * s, long * s * s + short * c * c]])
    return torch.tensor(matrices, dtype=torch.float64)


def variogram(
    kernels: tuple[Kernel, ...], kernel: Tensor, field: Tensor, a: Tensor, b: Tensor
) -> Tensor:
    """gamma between two sets of places for R pairs of a kernel and a field, without the nugget.

    Zero exactly where two places are equal. Kernels that stretch a field alike share its distances.

    Args:
        kernels: the bank. kernel: (R,) int64, which of it. field: (R,) int64 into the batch.
        a: (B, P, 2). b: (B, Q, 2), in sides of the square, of the dtype of the result.
    Returns:
        (R, P, Q).
    """
    shapes = [k[1:] for k in kernels]
    first_alike = torch.tensor([shapes.index(shape) for shape in shapes], device=kernel.device)
    pairs, pair = torch.unique(field * len(kernels) + first_alike[kernel], return_inverse=True)
    matrix = stretch(kernels).to(a)[pairs % len(kernels)]                 # (U, 2, 2)
    ax, ay = _stretched(a[pairs // len(kernels)], matrix)                 # (U, P)
    bx, by = _stretched(b[pairs // len(kernels)], matrix)                 # (U, Q)
    distance2 = (ax[:, :, None] - bx[:, None]).square_()
    dy = ay[:, :, None] - by[:, None]
    log2 = distance2.addcmul_(dy, dy).log_()                              # (U, P, Q)
    half = torch.tensor([k.exponent / 2 for k in kernels], dtype=torch.float64).to(a)
    return log2[pair].mul_(half[kernel][:, None, None]).exp_()            # (R, P, Q)


def _stretched(points: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """x and y (U, P) of (U, P, 2), term by term: equal places stay equal to the last bit."""
    x, y = points.unbind(dim=2)
    return tuple(matrix[:, i, 0, None] * x + matrix[:, i, 1, None] * y for i in (0, 1))
