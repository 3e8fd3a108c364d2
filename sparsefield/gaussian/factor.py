"""Observed places under the variograms that are tried: all that does not depend on the values.

Everything is stated in increments from the first observation, y_i - y_1, whose covariance

    C_ij = gamma_i1 + gamma_j1 - gamma_ij      (+ s_i [i = j] + s_1, with noise of variance s)

exists for every variogram. Simple kriging of increments *is* ordinary kriging with an unknown
level, and their likelihood *is* the restricted likelihood (Patterson & Thompson 1971; Cressie 1993,
section 2.6), without the large constant that makes a covariance of the field ill-conditioned.

Symbols: B fields, M observations, C channels, R hypotheses (rows), each about one of the fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsefield.gaussian.kernels import NUGGET, Kernel, variogram

SINGLE_POINTS = 512  # up to so many float32 serves, unless a pivot is below LEAST_PIVOT
LEAST_PIVOT = 0.02


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, PyTorch computes on one thread of the CPU: of many small matrices, where threads
    wait for each other longer than they work, ten times as long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it, float32 products are float32, whatever is set around: no TF32, no autocast.

    The weights of near points cancel.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Hypotheses:
    """What is tried, a row each: this kernel for that field.

    Attributes:
        kernels: the bank. kernel: (R,) int64, which of it. field: (R,) int64, ascending.
        amplitude2: (R,), what gamma is multiplied with; None: the best, in closed form.
    """

    kernels: tuple[Kernel, ...]
    kernel: Tensor
    field: Tensor
    amplitude2: Tensor | None = None

    @classmethod
    def every(cls, kernels: tuple[Kernel, ...], fields: int, device: torch.device) -> Hypotheses:
        """All kernels for all fields."""
        kernel = torch.arange(len(kernels), device=device).repeat(fields)
        field = torch.arange(fields, device=device).repeat_interleave(len(kernels))
        return cls(kernels, kernel, field)

    def take(self, rows: Tensor) -> Hypotheses:
        amplitude2 = None if self.amplitude2 is None else self.amplitude2[rows]
        return Hypotheses(self.kernels, self.kernel[rows], self.field[rows], amplitude2)

    def variogram(self, a: Tensor, b: Tensor) -> Tensor:
        """gamma (R, P, Q) between places (B, P, 2) and (B, Q, 2)."""
        return variogram(self.kernels, self.kernel, self.field, a, b)


@dataclass(frozen=True)
class Factored:
    """Observed places under every hypothesis.

    Attributes:
        hypotheses: R rows. coords: (B, M, 2).
        noise: (R, M) variance of the noise in units of the amplitude, or None.
        lower: (R, M - 1, M - 1) Cholesky factor of the covariance of increments.
    """

    hypotheses: Hypotheses
    coords: Tensor
    noise: Tensor | None
    lower: Tensor

    def take(self, rows: Tensor) -> Factored:
        noise = None if self.noise is None else self.noise[rows]
        return Factored(self.hypotheses.take(rows), self.coords, noise, self.lower[rows])

    @cached_property
    def inverse(self) -> Tensor:
        """(R, M - 1, M - 1), of `lower`."""
        eye = torch.eye(self.lower.shape[1], dtype=self.lower.dtype, device=self.lower.device)
        return torch.linalg.solve_triangular(self.lower, eye.expand_as(self.lower), upper=False)

    def log_det(self) -> Tensor:
        """(R,) of the covariance of increments, float64."""
        return 2 * self.lower.diagonal(dim1=1, dim2=2).double().log().sum(dim=1)

    def whiten(self, values: Tensor) -> Tensor:
        """L^-1 (y_i - y_1): (B, M, C) to (R, M - 1, C)."""
        increments = (values[:, 1:] - values[:, :1]).to(self.lower)
        return torch.linalg.solve_triangular(
            self.lower, increments[self.hypotheses.field], upper=False
        )


def factor(
    hypotheses: Hypotheses, coords: Tensor, noise_variance: Tensor | None = None
) -> Factored:
    """Factor observed places, in float32 where their conditioning allows, else in float64.

    Args:
        coords: (B, M, 2), in sides of the unit square.
        noise_variance: (B, M), in units of the values; the hypotheses then have an amplitude.
    """
    noise = None
    if noise_variance is not None:
        assert hypotheses.amplitude2 is not None
        noise = noise_variance[hypotheses.field] / hypotheses.amplitude2[:, None]
    if coords.shape[1] <= SINGLE_POINTS:
        single, is_sound = _factor(hypotheses, coords.float(), noise)
        if is_sound:
            return single
    return _factor(hypotheses, coords.double(), noise)[0]


def _factor(
    hypotheses: Hypotheses, coords: Tensor, noise: Tensor | None
) -> tuple[Factored, bool]:
    """In the dtype of the coordinates, and whether no pivot is lost in rounding."""
    noise = None if noise is None else noise.to(coords)
    lower, failed = torch.linalg.cholesky_ex(
        increments(hypotheses.variogram(coords, coords), noise),
        check_errors=coords.dtype == torch.float64,
    )
    lost = (lower.diagonal(dim1=1, dim2=2) < LEAST_PIVOT).any() | failed.any()
    return Factored(hypotheses, coords, noise, lower), not bool(lost)


def increments(gamma: Tensor, noise: Tensor | None) -> Tensor:
    """Covariance of increments from the first observation; overwrites gamma.

    Args:
        gamma: (R, M, M) variogram among observations. noise: (R, M) variances, or None.
    Returns:
        (R, M - 1, M - 1).
    """
    to_first = gamma[:, 1:, 0].clone()                                    # (R, M - 1)
    common = to_first + NUGGET  # the first observation is in all increments
    own: float | Tensor = NUGGET
    if noise is not None:
        common, own = common + noise[:, :1], own + noise[:, 1:]
    covariance = gamma[:, 1:, 1:].neg_()
    covariance += to_first[:, :, None]
    covariance += common[:, None]
    covariance.diagonal(dim1=1, dim2=2).add_(own)
    return covariance
