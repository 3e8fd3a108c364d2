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
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from sparsefield.gaussian.kernels import NUGGET, Kernel, variogram
from sparsefield.place import grid_coords

WAVES = 1536
SLOWEST, FASTEST = 0.05, 4096.0  # cycles a side of the domain
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
PLASTIC = 0.7548776662466927  # 1 / the real root of x^3 = x + 1
LEVEL = 16.0  # variance of a grid's mean, which no kriging error depends on
FEATURES = 2 * WAVES + 2  # numbers that a field in the plane takes
KEPT_POINTS = 4096  # off a grid, whose features are kept for further draws
GRID_SHARE = 16  # points of a grid for each one that is asked for, up to which all are summed


@lru_cache
def _waves(
    kernel: Kernel, device: torch.device, dims: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies along the axes (D, WAVES) in radians, float64, sd of waves (WAVES,) and slopes
    (D, D), float32.

    In d dimensions the spectral density of |h|^b is c |w|^(-d - b), with
    c = b 2^(b - 1) Gamma((d + b) / 2) / (pi^(d / 2) Gamma(1 - b / 2)).
    """
    b = kernel.exponent
    low, high = 2 * math.pi * SLOWEST, 2 * math.pi * FASTEST
    step = math.log(high / low) / WAVES
    k = torch.arange(WAVES, dtype=torch.float64)
    radius = low * torch.exp((k + 0.5) * step)
    directions = torch.stack([(k * GOLDEN_ANGLE).cos(), (k * GOLDEN_ANGLE).sin()])
    sphere = 2 * math.pi
    if dims == 3:  # Heights by the golden ratio of the plane (Roberts 2018): even on the sphere.
        height = 2 * torch.remainder(k * PLASTIC + 0.5, 1) - 1
        turn = 2 * math.pi * k * PLASTIC**2
        around = (1 - height**2).sqrt()
        directions = torch.stack([around * turn.cos(), around * turn.sin(), height])
        sphere = 4 * math.pi
    constant = b * 2 ** (b - 1) * math.gamma((dims + b) / 2) / (
        math.pi ** (dims / 2) * math.gamma(1 - b / 2))
    sd = (constant * sphere * step * radius**-b).sqrt()
    slope = math.sqrt(constant * sphere / dims * low ** (2 - b) / (2 - b))
    matrix = kernel.stretch(dims)
    return ((matrix @ (radius * directions)).to(device), sd.float().to(device),
            (matrix * slope).float().to(device))


class Waves:
    """The random fields of one kernel at some places: f = features @ N(0, 1) has its variogram.

    A wave is the product of one along x and one along y. Where places lie on a grid, or are many of
    its points, fields are summed from these by one product of matrices, without the features.

    Args:
        coords: (N, D) in sides of the domain, D 2 or 3.
    """

    def __init__(self, kernel: Kernel, coords: Tensor):
        self.kernel, self.coords = kernel, coords
        self.is_grid = False
        if coords.shape[1] > 2:
            return
        self.x, self.column = torch.unique(coords[:, 0], return_inverse=True)  # (X,), (N,)
        self.y, self.row = torch.unique(coords[:, 1], return_inverse=True)     # (Y,), (N,)
        self.is_grid = len(self.x) * len(self.y) <= GRID_SHARE * len(coords)

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        """Waves along x (X, WAVES) and along y (Y, WAVES), complex64."""
        (along_x, along_y), sd, _ = _waves(self.kernel, self.coords.device)
        return _turns(self.x[:, None] * along_x) * sd, _turns(self.y[:, None] * along_y)

    @cached_property
    def _features(self) -> Tensor:
        return features(self.kernel, self.coords)

    def fields(self, numbers: Tensor) -> Tensor:
        """Values (S, N) of the fields with numbers (S, 2 WAVES + D)."""
        if self.is_grid:
            return self._from_sides(numbers)
        if len(self.coords) <= KEPT_POINTS:
            return numbers @ self._features.T
        return torch.cat([numbers @ features(self.kernel, part).T
                          for part in self.coords.split(KEPT_POINTS)], dim=1)

    def _from_sides(self, numbers: Tensor) -> Tensor:
        x, y = self._sides
        y = torch.view_as_real(y).flatten(1).T                            # (2 WAVES, Y)
        # a cos + b sin is the real part of conj(a + i b) exp(i w x) exp(i w y): a real product.
        pairs = torch.view_as_complex(numbers[:, :-2].unflatten(1, (WAVES, 2)).contiguous())
        summed = torch.stack([torch.view_as_real(pair * x.conj()).flatten(1) @ y
                              for pair in pairs])                         # (S, X, Y)
        _, _, slope = _waves(self.kernel, self.coords.device)
        return summed[:, self.column, self.row] + numbers[:, -2:] @ (self.coords @ slope).T


def features(kernel: Kernel, coords: Tensor) -> Tensor:
    """(N, 2 WAVES + D) float32: times N(0, 1) a field with the variogram of `kernel` at (N, D)."""
    along, sd, slope = _waves(kernel, coords.device, coords.shape[1])
    first, *others = coords.to(along).unbind(dim=1)
    phase = torch.outer(first, along[0])
    for x, along_x in zip(others, along[1:]):
        phase.addcmul_(x[:, None], along_x)
    waves = _turns(phase) * sd
    return torch.cat([torch.view_as_real(waves).flatten(1), coords.float() @ slope], dim=1)


def _turns(phase: Tensor) -> Tensor:
    """exp(i phase), complex64."""
    phase = torch.remainder(phase, 2 * math.pi).float()
    return torch.polar(torch.ones_like(phase), phase)


@lru_cache(maxsize=64)
def grid_roots(kernels: tuple[Kernel, ...], height: int, width: int,
               device: torch.device) -> Tensor:
    """(K, H W, H W) float32: times columns of N(0, 1) they are fields on pixel centres, but for a
    level, with the nugget that kriging counts.

    Cheaper than waves where many fields are drawn on one small grid.
    """
    coords = grid_coords(height, width).double()
    covariance = LEVEL - variogram(kernels, coords, coords)
    covariance.diagonal(dim1=1, dim2=2).add_(NUGGET)
    return torch.linalg.cholesky(covariance).float().to(device)
