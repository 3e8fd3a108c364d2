"""Random fields with the bank's variograms, that are functions of the place alone.

A field is a sum of plane waves whose frequencies are fixed and whose amplitudes are random,

    f(x) = sum_k sqrt(w_k) (a_k cos w_k.A x + b_k sin w_k.A x) + g.A x,   a, b, g ~ N(0, 1)

so that the same seed gives the same value at a place, whatever else is asked for. w_k integrates
the spectral density of |h|^b in the plane, c_b |w|^(-2-b) (Samorodnitsky & Taqqu 1994, section 7.2),
over log-spaced frequencies in golden-angle directions; g is what lies below the lowest of them,
where a wave is a slope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sparsefield.gaussian.kernels import Kernel, stretch, variogram

WAVES = 1536
SLOWEST, FASTEST = 0.05, 4096.0  # cycles a side of the square
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
LEVEL = 16.0  # variance of a grid's mean, which no kriging error depends on
FEATURES = 2 * WAVES + 2


@lru_cache
def _waves(kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Frequencies (2, WAVES) in radians and sd of every feature (FEATURES,), float64."""
    b = kernel.exponent
    low, high = 2 * math.pi * SLOWEST, 2 * math.pi * FASTEST
    step = math.log(high / low) / WAVES
    k = torch.arange(WAVES, dtype=torch.float64)
    radius = low * torch.exp((k + 0.5) * step)
    frequencies = radius * torch.stack([(k * GOLDEN_ANGLE).cos(), (k * GOLDEN_ANGLE).sin()])
    constant = b * 2 ** (b - 1) * math.gamma(1 + b / 2) / (math.pi * math.gamma(1 - b / 2))
    variance = constant * 2 * math.pi * step * radius**-b
    slope = math.pi * constant * low ** (2 - b) / (2 - b)
    sd = torch.cat([variance, variance, torch.full((2,), slope, dtype=torch.float64)]).sqrt()
    return frequencies, sd


def features(kernel: Kernel, coords: Tensor) -> Tensor:
    """Waves at places: f = features @ N(0, 1) has the variogram of `kernel`.

    Args:
        coords: (N, 2) in sides of the square.
    Returns:
        (N, FEATURES) float32.
    """
    frequencies, sd = (x.to(coords.device) for x in _waves(kernel))
    at = coords.double() @ stretch((kernel,))[0].to(coords.device)        # (N, 2)
    turns = torch.remainder(at @ frequencies, 2 * math.pi).float()        # (N, WAVES)
    return torch.cat([turns.cos(), turns.sin(), at.float()], dim=1) * sd.float()


def coefficients(generators: Sequence[torch.Generator], channels: int) -> Tensor:
    """Standard normal numbers (S, FEATURES, C) float32, one generator for each draw."""
    return torch.stack([torch.randn(FEATURES, channels, generator=g) for g in generators])


@lru_cache(maxsize=64)
def grid_root(kernel: Kernel, height: int, width: int) -> Tensor:
    """(H W, H W) float32: rows of N(0, 1) times it are fields on the pixel centres, up to their level.

    Cheaper than waves where many fields are drawn on one small grid.
    """
    y, x = torch.meshgrid((torch.arange(height, dtype=torch.float64) + 0.5) / height,
                          (torch.arange(width, dtype=torch.float64) + 0.5) / width, indexing="ij")
    coords = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    gamma = variogram((kernel,), torch.zeros(1, 1, dtype=torch.long), coords, coords)[0, 0]
    covariance = LEVEL - gamma
    covariance.diagonal().add_(1e-9)
    return torch.linalg.cholesky(covariance).mT.contiguous().float()
