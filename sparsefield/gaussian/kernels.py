"""The bank of variograms, how much a field differs between two places, and random fields with them.

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
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.gaussian.threads import in_threads
from sparsefield.place import grid_coords

NUGGET = 1e-4  # semivariance, relative to the amplitude, of what is not spatially correlated
WAVES = 1536
SLOWEST, FASTEST = 0.05, 4096.0  # cycles a side of the domain
SLOWEST_MATERN = 0.05  # radians a range: 0.1 % of the variance is below
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
PLASTIC = 0.7548776662466927  # 1 / the real root of x^3 = x + 1
LEVEL = 16.0  # variance of a grid's mean, which no kriging error depends on
FEATURES = 2 * WAVES + 2  # numbers that a field in the plane takes
KEPT_POINTS = 4096  # off a grid, whose features are kept for further draws
SUMMED_POINTS = 512  # otherwise, whose features are there at once
GRID_SHARE = 16  # points of a grid for each one that is asked for, up to which all are summed


class Kernel(NamedTuple):
    """A variogram of |A h|; A stretches distances across `angle` and shrinks them along it.

    |A h|^smoothness without a `reach`: a field that looks alike at all scales. With one, Matern's
    (Stein 1999, Interpolation of Spatial Data, section 2.7), of amplitude 1.

    Attributes:
        smoothness: b in (0, 2) of a power; nu of Matern's, 0.5, 1.5, 2.5 or infinite.
        reach: range of Matern's in sides of the domain: distances are sqrt(2 nu) |A h| / reach.
        ratio: how many times farther the field reaches along `angle` (radians from the x axis
            towards y) than across it; 1: isotropic.
        nugget: semivariance, relative to the amplitude, of what is not spatially correlated.
    """

    smoothness: float
    reach: float | None = None
    ratio: float = 1.0
    angle: float = 0.0
    nugget: float = NUGGET

    def describe(self) -> str:
        name = f"power {self.smoothness:g}"
        if self.reach is not None:
            family = "Gaussian" if math.isinf(self.smoothness) else f"Matern {self.smoothness:g}"
            name = f"{family} of range {self.reach:.2g}"
            if self.nugget != NUGGET and not math.isinf(self.smoothness):
                name += f" and nugget {self.nugget:g}"
        if self.ratio == 1:
            return f"{name}, isotropic"
        return f"{name}, {self.ratio:g} times farther along {math.degrees(self.angle):.0f} degrees"

    def stretch(self, dims: int = 2) -> Tensor:
        """A, (dims, dims) float64, symmetric; in two dimensions of determinant 1.

        The third axis is stretched like the first, so that along a parallel of a globe all
        directions are alike. Further ones are as they are.
        """
        c, s = math.cos(self.angle), math.sin(self.angle)
        long, short = self.ratio**-0.5, self.ratio**0.5
        matrix = torch.eye(dims, dtype=torch.float64)
        matrix[:2, :2] = torch.tensor([[long * c * c + short * s * s, (long - short) * c * s],
                                       [(long - short) * c * s, long * s * s + short * c * c]],
                                      dtype=torch.float64)
        matrix[2:3, 2:3] *= matrix[0, 0].clone()
        return matrix

    def spectral_density(self, w: Tensor, dims: int) -> Tensor:
        """S(w) with gamma(h) = integral of S(w) (1 - cos w.h) over dims dimensions, for |w|.

        Of a power (Samorodnitsky & Taqqu 1994, section 7.2) and of Matern's (Rasmussen & Williams
        2006, equation 4.15).
        """
        s, half = self.smoothness, dims / 2
        if self.reach is None:
            constant = s * 2 ** (s - 1) * math.gamma(half + s / 2) / (
                math.pi**half * math.gamma(1 - s / 2))
            return constant * w ** (-dims - s)
        if math.isinf(s):
            constant = (self.reach**2 / (2 * math.pi)) ** half
            return constant * torch.exp(-((self.reach * w) ** 2) / 2)
        rate2 = 2 * s / self.reach**2
        constant = math.exp(math.lgamma(s + half) - math.lgamma(s)) / math.pi**half
        return constant * rate2**s * (rate2 + w**2) ** (-s - half)


def _matern(nu: float, *reaches: float, nugget: float = NUGGET) -> list[Kernel]:
    return [Kernel(nu, reach, nugget=nugget) for reach in reaches]


def _directed(kernels: list[Kernel]) -> list[Kernel]:
    return [kernel._replace(ratio=2.5, angle=k * math.pi / 4) for kernel in kernels
            for k in range(4)]


BANK = tuple(
    [Kernel(b) for b in (0.8, 1.2, 1.6, 1.9)]
    + _directed([Kernel(1.0), Kernel(1.4)])
    + _matern(0.5, 0.2) + _matern(1.5, 0.05, 0.1, 0.2, 0.4, 0.8)
    + _directed(_matern(1.5, 0.1, 0.2, 0.4))
    + _matern(1.5, 0.1, 0.2, 0.4, nugget=1e-6)
    + _matern(math.inf, 0.1, 0.14, 0.2, 0.28, 0.4, nugget=1e-8)
)
# In time: by a power, the level before a gap or an end of the times would go on for ever.
TIMED = tuple(kernel for kernel in BANK if kernel.reach is not None)
# For questions whose every answer needs factors of its own: the noise, the use of a covariate.
FEW = (Kernel(0.8), Kernel(1.4), Kernel(1.9), Kernel(1.5, 0.1), Kernel(1.5, 0.3))
PENALTY = 2.0  # log odds against a direction, against a range, against another nugget
ONE_KERNEL = (Kernel(1.0),)  # kriging that is not fitted to the field
FEW_POINTS = 2  # up to so many do not determine a direction


def isotropic(kernels: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Those without a direction."""
    return tuple(kernel for kernel in kernels if kernel.ratio == 1)


def candidates(kernels: tuple[Kernel, ...], points: int) -> tuple[Kernel, ...]:
    """The kernels that so many observations can choose from: isotropic ones for FEW_POINTS."""
    return (points <= FEW_POINTS and isotropic(kernels)) or kernels


@lru_cache(maxsize=256)
def penalties(kernels: tuple[Kernel, ...], device: torch.device) -> Tensor:
    """(K,) float64: what the log likelihood must gain before a less simple kernel is preferred."""
    more = [(kernel.ratio != 1) + (kernel.reach is not None)
            + (kernel.nugget != NUGGET and math.isfinite(kernel.smoothness)) for kernel in kernels]
    return PENALTY * torch.tensor(more, dtype=torch.float64, device=device)


@lru_cache(maxsize=256)
def roughness(kernels: tuple[Kernel, ...], device: torch.device) -> Tensor:
    """(K,): 0 for a squared exponential, else 1."""
    return torch.tensor([float(math.isfinite(kernel.smoothness)) for kernel in kernels],
                        device=device)


@lru_cache(maxsize=256)
def nuggets(kernels: tuple[Kernel, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(K, 1)."""
    each = [kernel.nugget for kernel in kernels]
    return torch.tensor(each, dtype=dtype, device=device)[:, None]


def variogram(kernels: tuple[Kernel, ...], a: Tensor, b: Tensor) -> Tensor:
    """gamma of K kernels between two sets of places, without the nugget.

    Exactly zero where two places are equal.

    Args:
        a: (..., P, D). b: (..., Q, D), of the dtype of the result.
    Returns:
        (..., K, P, Q).
    """
    apart = Apart(a, b)
    found = a.new_empty(*a.shape[:-2], len(kernels), a.shape[-2], b.shape[-2])
    for kernel, gamma in zip(kernels, found.unbind(dim=-3), strict=True):
        _fill(gamma, kernel, apart)
    return found


def _fill(gamma: Tensor, kernel: Kernel, apart: Apart) -> None:
    """Write gamma of one kernel."""
    nu, distance = kernel.smoothness, apart.distance(kernel)
    if kernel.reach is None:
        torch.mul(apart.log2_distance(kernel), nu, out=gamma).exp2_()
        return
    if math.isinf(nu):
        torch.mul(distance, distance, out=gamma)
        gamma.mul_(-0.5 / kernel.reach**2).expm1_().neg_()
        return
    minus_d = distance * (-math.sqrt(2 * nu) / kernel.reach)
    decay = torch.expm1(minus_d, out=gamma)  # e^-d - 1
    if nu == 0.5:
        decay.neg_()
        return
    # 1 - (1 + p) e^-d = -p - (1 + p) decay, p = d or d + d^2 / 3
    minus_p = minus_d if nu == 1.5 else minus_d.addcmul(minus_d, minus_d, value=-1 / 3)
    torch.addcmul(minus_p, minus_p - 1, decay, out=gamma)


class Apart:
    """Distances |A (a - b)|, (..., P, Q), computed once for the kernels that share A. Without a
    product of matrices, so that equal places stay equal."""

    def __init__(self, a: Tensor, b: Tensor):
        self.steps = [one[..., :, None] - other[..., None, :]
                      for one, other in zip(a.unbind(dim=-1), b.unbind(dim=-1), strict=True)]
        self.squares = [step.square() for step in self.steps]
        self._distances: dict[tuple[float, float], Tensor] = {}
        self._logarithms: dict[tuple[float, float], Tensor] = {}

    @cached_property
    def product(self) -> Tensor:
        return self.steps[0] * self.steps[1]

    def distance(self, kernel: Kernel) -> Tensor:
        shape = (kernel.ratio, kernel.angle)
        if shape not in self._distances:
            form = _metric(kernel, len(self.steps))
            total = self.squares[0] * form[0][0]
            for j, square in enumerate(self.squares[1:], 1):
                total.add_(square, alpha=form[j][j])
            if form[0][1]:
                total.add_(self.product, alpha=2 * form[0][1])
            self._distances[shape] = total.sqrt_()
        return self._distances[shape]

    def log2_distance(self, kernel: Kernel) -> Tensor:
        shape = (kernel.ratio, kernel.angle)
        if shape not in self._logarithms:
            self._logarithms[shape] = self.distance(kernel).log2()
        return self._logarithms[shape]


@lru_cache(maxsize=256)
def _metric(kernel: Kernel, dims: int) -> list[list[float]]:
    """A' A, (dims, dims): off its diagonal only the first two axes go together."""
    matrix = kernel.stretch(dims)
    return (matrix.T @ matrix).tolist()


@lru_cache
def _waves(
    kernel: Kernel, device: torch.device, dims: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies along the axes (D, WAVES) in turns a side, float64, sd of waves (WAVES,) and
    slopes (D, D), float32."""
    low, high = 2 * math.pi * SLOWEST, 2 * math.pi * FASTEST
    if kernel.reach is not None:
        low = SLOWEST_MATERN / kernel.reach
    step = math.log(high / low) / WAVES
    k = torch.arange(WAVES, dtype=torch.float64)
    radius = low * torch.exp((k + 0.5) * step)
    directions = torch.stack([(k * GOLDEN_ANGLE).cos(), (k * GOLDEN_ANGLE).sin()])
    if dims == 3:  # Heights by the golden ratio of the plane (Roberts 2018): even on the sphere.
        height = 2 * torch.remainder(k * PLASTIC + 0.5, 1) - 1
        turn = 2 * math.pi * k * PLASTIC**2
        around = (1 - height**2).sqrt()
        directions = torch.stack([around * turn.cos(), around * turn.sin(), height])
    elif dims > 3:
        uniform = torch.quasirandom.SobolEngine(dims, scramble=True, seed=0).draw(WAVES).double()
        normal = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
        directions = (normal / normal.norm(dim=1, keepdim=True)).T
    sphere = 2 * math.pi ** (dims / 2) / math.gamma(dims / 2)
    sd = (kernel.spectral_density(radius, dims) * sphere * step * radius**dims).sqrt()
    slope = 0.0
    if kernel.reach is None:  # the integral of S(w) w^2 over all that is slower
        at_low = float(kernel.spectral_density(torch.tensor(low, dtype=torch.float64), dims))
        slope = math.sqrt(at_low * sphere * low ** (dims + 2) / (2 - kernel.smoothness) / dims)
    matrix = kernel.stretch(dims)
    along = matrix @ (radius * directions) / (2 * math.pi)
    return (along.to(device), sd.float().to(device),
            (matrix * slope).float().to(device))


class Waves:
    """The random fields of one kernel at some places: f = features @ N(0, 1) has its variogram.

    A field is a sum of plane waves whose frequencies are fixed and whose amplitudes are random,

        f(x) = sum_k sqrt(w_k) (a_k cos w_k.A x + b_k sin w_k.A x) + g.A x,   a, b, g ~ N(0, 1)

    so that the same seed gives the same value at a place, whatever else is asked for. w_k
    integrates the spectral density over log-spaced frequencies in directions that are even on the
    sphere; g is what a power variogram has below the lowest of them, where a wave is a slope.

    A wave is the product of one along x and one along y. Where places lie on a grid, or are many of
    its points, fields are summed from these by one product of matrices, without the features; so
    are those of layers of one grid, such as frames, that differ in further coordinates.

    Args:
        coords: (N, D) in sides of the domain.
    """

    def __init__(self, kernel: Kernel, coords: Tensor):
        self.kernel, self.coords = kernel, coords
        self.x, self.column = torch.unique(coords[:, 0], return_inverse=True)  # (X,), (N,)
        self.y, self.row = torch.unique(coords[:, 1], return_inverse=True)     # (Y,), (N,)
        self.layers, self.layer = coords[:1, 2:], torch.zeros_like(self.column)
        if coords.shape[1] > 2:
            self.layers, self.layer = torch.unique(coords[:, 2:], dim=0, return_inverse=True)
        points = len(self.x) * len(self.y) * len(self.layers)
        self.is_grid = points <= GRID_SHARE * len(coords)

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        """Waves along x (X, WAVES) and along y (Y, WAVES), complex64."""
        along, sd, _ = _waves(self.kernel, self.coords.device, self.coords.shape[1])
        along_x, along_y = along[:2]
        return _turns(self.x[:, None] * along_x) * sd, _turns(self.y[:, None] * along_y)

    @cached_property
    def _features(self) -> Tensor:
        return features(self.kernel, self.coords)

    def fields(self, numbers: Tensor) -> Tensor:
        """Values (S, N) of the fields with numbers (S, 2 WAVES + D)."""
        if self.is_grid:
            return self._from_sides(numbers)
        is_kept = len(self.coords) <= KEPT_POINTS
        parts = (self._features if is_kept else self.coords).split(SUMMED_POINTS)

        def summed(part: Tensor) -> Tensor:
            return numbers @ (part if is_kept else features(self.kernel, part)).T

        return torch.cat(list(in_threads(summed, [(part,) for part in parts], numbers.device)),
                         dim=1)

    def _from_sides(self, numbers: Tensor) -> Tensor:
        x, y = self._sides
        y = torch.view_as_real(y).flatten(1).T                            # (2 WAVES, Y)
        # a cos + b sin is the real part of conj(a + i b) exp(i w x) exp(i w y): a real product.
        dims = self.coords.shape[1]
        pairs = torch.view_as_complex(numbers[:, :-dims].unflatten(1, (WAVES, 2)).contiguous())
        pairs = pairs[:, None]                                            # (S, 1, WAVES)
        along, _, slope = _waves(self.kernel, self.coords.device, dims)
        if dims > 2:                                                      # (S, layers, WAVES)
            pairs = pairs * _turns(self.layers.to(along) @ along[2:]).conj()

        def summed_along(pair: Tensor) -> Tensor:
            return torch.view_as_real(pair * x.conj()).flatten(1) @ y

        each = in_threads(summed_along, [(pair,) for pair in pairs.flatten(0, 1)], numbers.device)
        summed = torch.stack(list(each))                                  # (S layers, X, Y)
        summed = summed.unflatten(0, (len(numbers), -1))
        return (summed[:, self.layer, self.column, self.row]
                + numbers[:, -dims:] @ (self.coords.float() @ slope).T)


def features(kernel: Kernel, coords: Tensor) -> Tensor:
    """(N, 2 WAVES + D) float32: times N(0, 1) a field with the variogram of `kernel` at (N, D)."""
    along, sd, slope = _waves(kernel, coords.device, coords.shape[1])
    first, *others = coords.to(along).unbind(dim=1)
    phase = torch.outer(first, along[0])
    for x, along_x in zip(others, along[1:], strict=True):
        phase.addcmul_(x[:, None], along_x)
    waves = _turns(phase) * sd
    return torch.cat([torch.view_as_real(waves).flatten(1), coords.float() @ slope], dim=1)


def _turns(phase: Tensor) -> Tensor:
    """exp(2 pi i phase), complex64."""
    angle = phase.frac().float().mul_(2 * math.pi)
    return torch.complex(angle.cos(), angle.sin())


@lru_cache(maxsize=64)
def grid_roots(kernels: tuple[Kernel, ...], height: int, width: int,
               device: torch.device) -> Tensor:
    """(K, H W, H W) float32: times columns of N(0, 1) they are fields on pixel centres, but for a
    level, with the nugget that kriging counts.

    Cheaper than waves where many fields are drawn on one small grid.
    """
    coords = grid_coords(height, width).double()
    covariance = LEVEL - variogram(kernels, coords, coords)
    covariance.diagonal(dim1=1, dim2=2).add_(
        nuggets(kernels, covariance.device, covariance.dtype))
    return torch.linalg.cholesky(covariance).float().to(device)
