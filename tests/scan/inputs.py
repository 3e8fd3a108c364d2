"""Inputs of a scan, and what a backend makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefield import scan


def make_inputs(length: int, states: int = 16, channels: int = 5, batch: int = 2, seed: int = 0):
    """Inputs of a trained block's size, float64: step sizes 1e-3 to 1 after the softplus."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels) - 2,
    }


def run(name: str, inputs: dict[str, Tensor], dtype=torch.float64, **flags) -> dict[str, Tensor]:
    """The output and the gradients of a fixed random weighting of it, as float64."""
    leaves = {key: x.to(dtype).requires_grad_() for key, x in inputs.items()}
    out = scan.load_backend(name).selective_scan(**leaves, **flags)
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out)
    grads = torch.autograd.grad(out, list(leaves.values()), weight)
    found = {"out": out.detach()} | dict(zip(leaves, grads, strict=True))
    return {key: x.double().cpu() for key, x in found.items()}
