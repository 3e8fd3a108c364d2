"""The path from a Gaussian draw to the field, with time as an angle.

    x = mean + sd z,  z_theta = cos(theta) z_0 + sin(theta) z_1,  theta from 0 (draw) to pi/2 (data)

z_0 is a draw of the closed-form posterior (unit variance, correlated like the field), z_1 the truth
seen from it. It is the straight path of flow matching (Lipman et al. 2023; Liu et al. 2023) with
x_t divided by its own scale: tan(theta) = t / (1 - t), the trigonometric path of Albergo et al.
2023 (Stochastic Interpolants, section 4). A network learns

    F(z, theta) = E[dz/dtheta | z] = E[cos(theta) z_1 - sin(theta) z_0 | z]

by plain squared error. Where the closed form is all there is to know, F = 0. At theta = 0 the draw
says nothing of the truth: F(0, 0) = E[z_1] is the posterior mean, in one evaluation.

Shapes: z (B, N, C), theta (B,) in radians.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

END = math.pi / 2


def interpolate(z_0: Tensor, z_1: Tensor, theta: Tensor) -> Tensor:
    """z_theta."""
    angle = theta[:, None, None]
    return angle.cos() * z_0 + angle.sin() * z_1


def target(z_0: Tensor, z_1: Tensor, theta: Tensor) -> Tensor:
    """dz/dtheta, whose conditional mean the network learns."""
    angle = theta[:, None, None]
    return angle.cos() * z_1 - angle.sin() * z_0


def seen(z: Tensor, theta: Tensor) -> Tensor:
    """What the network sees of z: nothing at theta = 0, where it says nothing."""
    return z * (theta > 0)[:, None, None]


def data_estimate(z: Tensor, velocity: Tensor, theta: float) -> Tensor:
    """E[z_1 | z_theta] = sin(theta) z + cos(theta) F."""
    return math.sin(theta) * z + math.cos(theta) * velocity


def noise_estimate(z: Tensor, velocity: Tensor, theta: float) -> Tensor:
    """E[z_0 | z_theta] = cos(theta) z - sin(theta) F."""
    return math.cos(theta) * z - math.sin(theta) * velocity


def draw_angles(rng: np.random.Generator, size: int, zero_share: float = 0.25) -> np.ndarray:
    """Training angles: exactly 0 with probability `zero_share`, otherwise uniform on [0, pi/2).

    theta = 0 is where one evaluation gives the posterior mean, a single point that a continuous
    density never visits. Uses exactly 2 * size numbers of `rng`. Returns (size,) float32.
    """
    is_zero = rng.random(size) < zero_share
    return np.where(is_zero, 0.0, END * rng.random(size)).astype(np.float32)
