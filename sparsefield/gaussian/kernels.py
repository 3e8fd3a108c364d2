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


def stretch(kernels: tuple[Kernel, ...]) -> Tensor:
    """A of each kernel, (K, 2, 2) float64, symmetric and of determinant 1."""
    matrices = []
    for kernel in kernels:
        c, s = math.cos(kernel.angle), math.sin(kernel.angle)
        long, short = kernel.ratio**-0.5, kernel.ratio**0.5
        matrices.append([[long * c * c + short * s * s, (long - short) * c * s],
                         [(long - short) * c * s, long * s * s + short * c * c]])
    return torch.tensor(matrices, dtype=torch.float64)


def exponents(kernels: tuple[Kernel, ...]) -> Tensor:
    """(K,) float64."""
    return torch.tensor([kernel.exponent for kernel in kernels], dtype=torch.float64)


def variogram(kernels: tuple[Kernel, ...], which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """gamma between two sets of places, without the nugget.

    Args:
        kernels: the bank. which: (B, T) int64, T of them for each field.
        a: (B, P, 2). b: (B, Q, 2), in sides of the square, of the dtype of the result.
    Returns:
        (B, T, P, Q).
    """
    matrix = stretch(kernels).to(a)[which]                                # (B, T, 2, 2)
    distance = torch.cdist(
        a[:, None] @ matrix, b[:, None] @ matrix, compute_mode="donot_use_mm_for_euclid_dist"
    )                                                                     # (B, T, P, Q)
    return distance.pow_(exponents(kernels).to(a)[which][..., None, None])
