"""Random fields with the bank's variograms, that are functions of the place alone.

A field is a sum of plane waves whose frequencies are fixed and whose amplitudes are random,

    f(x) = sum_k sqrt(w_k) (a_k cos w_k.A x + b_k sin w_k.A x) + g.A x,   a, b, g ~ N(0, 1)

so that the same seed gives the same value at a place, whatever else is asked for. w_k integrates
the spectral density of |h|^b in the plane, c_b |w|^(-2-b) (Samorodnitsky & Taqqu 1994, section
7.2), over log-spaced frequencies in golden-angle directions; g is what lies below the lowest of
them, where a wave is a slope.
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
    """Frequencies (2, WAVES) in radians, and sd (WAVES + 1,) of each and of the slope, float64."""
    b = kernel.exponent
    low, high = 2 * math.pi * SLOWEST, 2 * math.pi * FASTEST
    step = math.log(high / low) / WAVES
    k = torch.arange(WAVES, dtype=torch.float64)
    radius = low * torch.exp((k + 0.5) * step)
    frequencies = radius * torch.stack([(k * GOLDEN_ANGLE).cos(), (k * GOLDEN_ANGLE).sin()])
    constant = b * 2 ** (b - 1) * math.gamma(1 + b / 2) / (math.pi * math.gamma(1 - b / 2))
    variance = constant * 2 * math.pi * step * radius**-b
    slope = math.pi * constant * low ** (2 - b) / (2 - b)
    sd = torch.cat([variance, variance.new_tensor([slope])]).sqrt()
    return frequencies, sd


def features(kernel: Kernel, coords: Tensor, out: Tensor | None = None) -> Tensor:
    """Waves at places: f = features @ N(0, 1) has the variogram of `kernel`.

    A wave is the product of one along x and one along y, so that a grid costs its sides only.

    Args:
        coords: (N, 2) in sides of the square. out: (N, FEATURES) float32, to write to.
    Returns:
        (N, FEATURES) float32.
    """
    frequencies, sd = (x.to(coords.device) for x in _waves(kernel))       # (2, WAVES), (WAVES + 1,)
    matrix = stretch((kernel,))[0].to(frequencies)
    along_x, along_y = matrix @ frequencies                               # (WAVES,)
    x, y = coords.unbind(dim=1)
    if out is None:
        out = torch.empty(len(coords), FEATURES, device=coords.device)
    waves = torch.view_as_complex(out[:, :-2].unflatten(1, (WAVES, 2)))
    torch.mul(_turns(x, along_x, sd[:-1]), _turns(y, along_y), out=waves)
    out[:, -2:] = coords.to(matrix) @ matrix * sd[-1]
    return out


def _turns(at: Tensor, frequency: Tensor, size: float | Tensor = 1.0) -> Tensor:
    """size * exp(i frequency at): (N,) and (F,) to (N, F) complex64."""
    where, index = torch.unique(at.double(), return_inverse=True)
    phase = torch.remainder(where[:, None] * frequency, 2 * math.pi).float()
    return torch.polar(torch.as_tensor(size).float().expand_as(phase), phase)[index]


def standard_normal(
    generators: Sequence[torch.Generator], count: int, channels: int
) -> Tensor:
    """(S, count, C) float32, one generator for each draw."""
    return torch.stack([torch.randn(count, channels, generator=g) for g in generators])


@lru_cache(maxsize=64)
def grid_root(kernel: Kernel, height: int, width: int) -> Tensor:
    """(H W, H W) float32: rows of N(0, 1) times it are fields on the pixel centres, up to their level.

    Cheaper than waves where many fields are drawn on one small grid.
    """
    y, x = torch.meshgrid((torch.arange(height, dtype=torch.float64) + 0.5) / height,
                          (torch.arange(width, dtype=torch.float64) + 0.5) / width, indexing="ij")
    coords = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    only = torch.zeros(1, dtype=torch.long)
    gamma = variogram((kernel,), only, only, coords, coords)[0]
    covariance = LEVEL - gamma
    covariance.diagonal().add_(1e-9)
    return torch.linalg.cholesky(covariance).mT.contiguous().float()
