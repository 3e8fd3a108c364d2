"""Flow matching on the straight path: pure functions of tensors.

    x_t = (1 - t) x_0 + t x_1,   x_0 ~ N(0, I) at t = 0,   x_1 data at t = 1,   v = x_1 - x_0

(Lipman et al. 2023; Liu et al. 2023; score and noise estimates as in SiT, Ma et al. 2024). Values
are (B, N, C) and times (B,), unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sparsefield.data import Batch


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """x_t on the straight path."""
    t = t[:, None, None]
    return (1 - t) * noise + t * data


def velocity_target(noise: Tensor, data: Tensor) -> Tensor:
    """dx_t/dt, which the model learns the conditional mean of."""
    return data - noise


def data_estimate(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """E[x_1 | x_t] = x + (1 - t) v. At t = 0 this is the posterior mean in one evaluation."""
    return x + (1 - t[:, None, None]) * velocity


def noise_estimate(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] = x - t v."""
    return x - t[:, None, None] * velocity


def score(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Gradient of log p_t(x_t) = (t v - x) / (1 - t); singular at t = 1."""
    t = t[:, None, None]
    return (t * velocity - x) / (1 - t)


def draw_times(rng: np.random.Generator, size: int, zero_share: float = 0.25) -> np.ndarray:
    """Training times: exactly 0 with probability `zero_share`, otherwise uniform on [0, 1).

    t = 0 is where one evaluation gives the posterior mean, a single point that a continuous
    density never visits. Uses exactly 2 * size numbers of `rng`. Returns (size,) float32.
    """
    is_zero = rng.random(size) < zero_share
    return np.where(is_zero, 0.0, rng.random(size)).astype(np.float32)


def path_variance(t: Tensor, sd: Tensor) -> Tensor:
    """Variance of x_t when x_1 ~ N(mean, sd^2): (1 - t)^2 + t^2 sd^2. sd is (B, N, 1)."""
    t = t[:, None, None]
    return (1 - t) ** 2 + t**2 * sd**2


def gaussian_velocity(x: Tensor, t: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """The optimal velocity E[x_1 - x_0 | x_t] when x_1 ~ N(mean, sd^2) at each point.

    Conditioning of jointly Gaussian (x_1 - x_0, x_t); mean is (B, N, C), sd (B, N, 1).
    """
    tt = t[:, None, None]
    gain = (tt * sd**2 - (1 - tt)) / path_variance(t, sd)
    return mean + gain * (x - tt * mean)


def preconditioned_velocity(
    residual: Tensor, x: Tensor, t: Tensor, mean: Tensor, sd: Tensor
) -> Tensor:
    """Velocity from a network output of unit variance around the Gaussian answer.

    v = v* + sqrt(sd^2 / path_variance) F: the idea of EDM (Karras et al. 2022, section 5) around
    a conditional Gaussian. `residual` is F, (B, N, C).
    """
    return gaussian_velocity(x, t, mean, sd) + sd / path_variance(t, sd).sqrt() * residual


def normalised_state(x: Tensor, t: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """x_t as the network sees it: zero mean and unit variance under the Gaussian answer."""
    return (x - t[:, None, None] * mean) / path_variance(t, sd).sqrt()


def loss_weight(t: Tensor, sd: Tensor) -> Tensor:
    """Weight (B, N, 1) that makes the squared velocity error that of F, of order one at every t."""
    return path_variance(t, sd) / sd**2


def velocity_loss(model, batch: Batch, forward: Callable[..., Tensor] | None = None) -> Tensor:
    """Weighted squared velocity error (Lipman et al. 2023, eq. 14): its mean is the training loss.

    Args:
        model: see the one contract in the README, with `prepare` and `loss_weight`.
        batch: observations, queries, noise, data and times.
        forward: the model as wrapped for training (compiled, data-parallel), if it is.
    Returns:
        (B, N, C). Around a prior the weight makes its mean about 1 for the prior itself.
    """
    places = batch.query_coords, batch.input_coords, batch.input_values
    prepared = model.prepare(*places)
    x = interpolate(batch.x_0, batch.x_1, batch.t)
    velocity = (forward or model)(x, places[0], batch.t, *places[1:], prepared=prepared)
    error = velocity - velocity_target(batch.x_0, batch.x_1)
    return model.loss_weight(batch.t, prepared) * error**2
