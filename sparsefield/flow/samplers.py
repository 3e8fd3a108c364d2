"""From a Gaussian draw to a sample: ODE and SDE samplers in the angle, behind one signature.

    sampler(velocity, z (B, N, C), angles (n+1,), fresh, **options) -> z (B, N, C)

with velocity(z, theta) = F, angles from 0 to pi/2 and fresh() -> a draw like z. Samplers know
nothing of models, observations or blocks. Where F = 0, Heun, Euler and the adaptive solver return
z.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sparsefield.device import has_float64
from sparsefield.errors import UserError
from sparsefield.flow.path import END, data_estimate, noise_estimate

Velocity = Callable[[Tensor, float], Tensor]
Fresh = Callable[[], Tensor]


def angles(num_steps: int) -> list[float]:
    """num_steps + 1 angles, equal steps from 0 to pi/2."""
    return [END * step / num_steps for step in range(num_steps + 1)]


def _steps(grid: list[float]) -> list[tuple[float, float]]:
    return list(pairwise(grid))


def euler(velocity: Velocity, z: Tensor, grid: list[float], fresh: Fresh) -> Tensor:
    """The ODE dz/dtheta = F by Euler's rule: first order, n evaluations."""
    for theta, end in _steps(grid):
        z = z + (end - theta) * velocity(z, theta)
    return z


def heun(velocity: Velocity, z: Tensor, grid: list[float], fresh: Fresh) -> Tensor:
    """The ODE by Heun's rule, the last step by Euler's: second order, 2n - 1 evaluations.

    Source: Karras et al. 2022 (EDM), algorithm 1.
    """
    for theta, end in _steps(grid):
        f = velocity(z, theta)
        if end < grid[-1]:
            f = (f + velocity(z + (end - theta) * f, end)) / 2
        z = z + (end - theta) * f
    return z


def sde(
    velocity: Velocity, z: Tensor, grid: list[float], fresh: Fresh, *, temperature: float = 0.5
) -> Tensor:
    """The SDE with the marginals of the ODE: n evaluations, second order in its drift.

    dz = (F - tau z_0) dtheta + sqrt(2 tau cos(theta)) dW, with z_0 = cos(theta) z - sin(theta) F
    the noise estimate and dW correlated like the draw: diffusion tau cos(theta) and its score drift
    (SiT, Ma et al. 2024, equation 4; no singularity, every marginal as it is). `temperature` is
    tau: how strongly errors of earlier steps are forgotten. It is not a width: every tau samples
    the same posterior, tau = 0 is the ODE.

    Each step solves the part linear in z exactly, for F extrapolated to the middle of the step (the
    idea of SDE-DPM-Solver++(2M), Lu et al. 2022). The last step is the ODE's, without noise.
    """
    before: Tensor | None = None
    step_before = 0.0
    for theta, end in _steps(grid):
        step, f = end - theta, velocity(z, theta)
        ahead = f
        if before is not None:
            ahead = f + step / (2 * step_before) * (f - before)
        before, step_before = f, step
        faded = temperature * (math.sin(end) - math.sin(theta))
        if end == grid[-1] or faded == 0:
            z = z + step * ahead
            continue
        kept = math.exp(-faded)
        drift = 1 + temperature * math.sin((theta + end) / 2)
        z = kept * z + step * drift * (1 - kept) / faded * ahead
        z = z + math.sqrt(1 - kept**2) * fresh()
    return z


def ddim(
    velocity: Velocity, z: Tensor, grid: list[float], fresh: Fresh, *, eta: float = 0.0
) -> Tensor:
    """DDIM: each step splits z in data and noise, rotates, and renews part of the noise.

    With eta = 0 an exact rotation of the two estimates, z cos(step) + F sin(step). An estimate is
    less spread than what it estimates, so that few steps give too narrow samples: a Gaussian draw
    (F = 0) keeps cos(step)^n of its spread, 0.73 with 4 steps, 0.93 with 16. eta = 1 renews as much
    as ancestral sampling. n evaluations. Source: Song et al. 2021 (DDIM), equation 12.
    """
    for theta, end in _steps(grid):
        f = velocity(z, theta)
        ratio = math.tan(theta) / math.tan(end)
        sigma = eta * math.cos(end) * math.sqrt(1 - ratio**2) if theta > 0 else 0.0
        old = math.sqrt(max(0.0, math.cos(end) ** 2 - sigma**2))
        z = math.sin(end) * data_estimate(z, f, theta) + old * noise_estimate(z, f, theta)
        if sigma > 0 and end < grid[-1]:
            z = z + sigma * fresh()
    return z


def mean(velocity: Velocity, z: Tensor, grid: list[float], fresh: Fresh) -> Tensor:
    """The posterior mean E[z_1], not a sample: F(0, 0), one evaluation."""
    return velocity(torch.zeros_like(z), 0.0)


def adaptive(
    velocity: Velocity, z: Tensor, grid: list[float], fresh: Fresh, *, tolerance: float = 1e-3
) -> Tensor:
    """The ODE by Dormand-Prince 5(4) with step control (torchdiffeq); the grid is not used.

    `tolerance` is the local error, absolute and relative, of the whole batch, whose draws share the
    steps. The evaluations are as many as it takes.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError("sampler 'adaptive' needs torchdiffeq: pip install torchdiffeq") from error
    dtype = torch.float64 if has_float64(z.device) else torch.float32
    ends = torch.tensor([grid[0], grid[-1]], dtype=dtype)
    path = odeint(lambda theta, state: velocity(state, float(theta)), z, ends,
                  rtol=tolerance, atol=tolerance, method="dopri5")
    return path[-1]


SAMPLERS = {"heun": heun, "euler": euler, "sde": sde, "ddim": ddim, "mean": mean,
            "adaptive": adaptive}
LIMITS = {"temperature": (0.0, math.inf), "eta": (0.0, 1.0), "tolerance": (1e-12, 1.0)}


def sampler_options(method: str) -> dict[str, float]:
    """The options of a sampler beside the shared signature, with their defaults."""
    parameters = inspect.signature(SAMPLERS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def declared_nfe(method: str, num_steps: int) -> int | None:
    """Evaluations of a draw, the first of which all draws of a field share; None: it depends."""
    return {"heun": 2 * num_steps - 1, "mean": 1, "adaptive": None}.get(method, num_steps)


def check_sampler(method: str, num_steps: int, options: dict[str, float]) -> None:
    """Raise UserError unless the sampler exists and its settings are in range."""
    if method not in SAMPLERS:
        raise UserError(f"unknown sampler '{method}': choose one of {', '.join(SAMPLERS)}")
    if num_steps < 1:
        raise UserError(f"num_steps is {num_steps}: a sampler takes at least 1 step")
    known = sampler_options(method)
    for name, value in options.items():
        if name not in known:
            raise UserError(f"sampler '{method}' has no option '{name}': it takes "
                            f"{', '.join(known) or 'none'}")
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise UserError(f"{name} of sampler '{method}' is {value}: give {low} to {high}")
