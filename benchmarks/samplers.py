"""Error of every sampler against its steps, on posteriors whose F is known exactly.

    python benchmarks/samplers.py              # the tables of docs/samplers.md, seconds on one core

Three problems, all from draws z_0 of unit variance: a Gaussian posterior near the draw,
z_1 = 0.3 + 0.9 e, as where little was learnt; a narrow one, z_1 = 0.8 + 0.3 e; and one with two
peaks, z_1 = +-1 + 0.2 e. The error of a sampler is the Wasserstein distance between its samples and
the posterior (mean distance of sorted values), in units of the posterior's sd; spread is the sd of
the samples over that of the posterior. DRAWS samples start at the quantiles of the normal
distribution, so that what is left is the error of the sampler alone; renewed noise is shuffled,
which adds about 0.005.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from common import ROOT, table

sys.path.insert(0, str(ROOT))

from sparsefield.flow.samplers import SAMPLERS, angles

DRAWS = 20_000
STEPS = (1, 2, 4, 8, 16, 32, 64)
WAYS = {
    "heun": ("heun", {}),
    "euler": ("euler", {}),
    "ddim": ("ddim", {}),
    "ddim, eta 1": ("ddim", {"eta": 1.0}),
    "sde, temperature 0.5": ("sde", {"temperature": 0.5}),
    "sde, temperature 2": ("sde", {"temperature": 2.0}),
}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-5)


def gaussian(z: Tensor, theta: float, *, mean: float, sd: float) -> Tensor:
    """F where z_1 = mean + sd e."""
    c, s = math.cos(theta), math.sin(theta)
    gain = c * s * (sd**2 - 1) / (c**2 + (sd * s) ** 2)
    return mean * c + gain * (z - mean * s)


def two_peaks(z: Tensor, theta: float) -> Tensor:
    """F where z_1 = +-1 + 0.2 e with equal odds."""
    c, s = math.cos(theta), math.sin(theta)
    variance = c**2 + (0.2 * s) ** 2
    peak = torch.tanh(s * z / variance)
    return c * peak + c * s * (0.2**2 - 1) / variance * (z - s * peak)


def quantiles(count: int) -> Tensor:
    """(count, 1, 1) of the normal distribution, float64."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(share)[:, None, None]


def exact() -> dict[str, tuple[Callable, Tensor]]:
    """{problem: F and the posterior's samples, sorted}."""
    half = quantiles(DRAWS // 2)
    both = torch.cat([0.2 * half - 1, 0.2 * half + 1]).sort(dim=0).values
    found = {
        name: (partial(gaussian, mean=mean, sd=sd), mean + sd * quantiles(DRAWS))
        for name, mean, sd in (("near the draw", 0.3, 0.9), ("one narrow peak", 0.8, 0.3))
    }
    return found | {"two peaks": (two_peaks, both)}


def score(velocity: Callable, truth: Tensor, method: str, steps: int, options: dict) -> tuple:
    """Error and spread of the samples, and evaluations."""
    generator = torch.Generator().manual_seed(0)
    calls = 0

    def counted(z: Tensor, theta: float) -> Tensor:
        nonlocal calls
        calls += 1
        return velocity(z, theta)

    def fresh() -> Tensor:
        return quantiles(DRAWS)[torch.randperm(DRAWS, generator=generator)]

    found = SAMPLERS[method](counted, quantiles(DRAWS), angles(steps), fresh, **options)
    error = (found.sort(dim=0).values - truth).abs().mean() / truth.std()
    return error.item(), (found.std() / truth.std()).item(), calls


def main() -> None:
    for problem, (velocity, truth) in exact().items():
        rows = []
        for name, (method, options) in WAYS.items():
            found = [score(velocity, truth, method, steps, options) for steps in STEPS]
            rows.append([name, *(f"{error:.3f} ({spread:.2f})" for error, spread, _ in found)])
        table([f"{problem}: error (spread) with", *(f"{n} steps" for n in STEPS)], rows)
        rows = []
        for tolerance in TOLERANCES:
            error, spread, calls = score(velocity, truth, "adaptive", 1, {"tolerance": tolerance})
            rows.append([f"{tolerance:g}", str(calls), f"{error:.3f} ({spread:.2f})"])
        table([f"{problem}: adaptive, tolerance", "evaluations", "error (spread)"], rows)


if __name__ == "__main__":
    main()
