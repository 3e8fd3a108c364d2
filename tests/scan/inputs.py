"""Inputs of a scan, and what a backend makes of them."""

import reference
import torch
from torch import Tensor

from sparsefield import scan


def make_inputs(length: int, states: int = 16, channels: int = 5, batch: int = 2):
    """Inputs of a trained block's size, float64: step sizes 1e-3 to 1 after the softplus."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return {
        "u": normal(batch, channels, length), "delta": normal(batch, channels, length),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, states, length), "C": normal(batch, states, length),
        "D": normal(channels), "z": normal(batch, channels, length),
        "delta_bias": normal(channels) - 2,
    }


def scan_of(name: str):
    """The scan of a backend, or "reference", of inputs by their names."""
    backend = reference if name == "reference" else scan.load_backend(name)
    return lambda reverse=False, **inputs: backend.selective_scan(*inputs.values(), reverse=reverse)


def run(name: str, inputs: dict[str, Tensor], dtype=torch.float64, **flags) -> dict[str, Tensor]:
    """The output and the gradients of a fixed random weighting of it, as float64."""
    leaves = {key: x.to(dtype).requires_grad_() for key, x in inputs.items()}
    out = scan_of(name)(**leaves, **flags)
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out)
    grads = torch.autograd.grad(out, list(leaves.values()), weight)
    found = {"out": out.detach()} | dict(zip(leaves, grads, strict=True))
    return {key: x.double().cpu() for key, x in found.items()}


def errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of the output and of each gradient."""
    return {key: float((got[key] - x).norm() / (x.norm() or 1)) for key, x in want.items()}


def tokens(x: Tensor) -> Tensor:
    """x (B, E, L) on (B, L, E) memory, as a Mamba block has it."""
    return x.mT.contiguous().mT if x.ndim == 3 else x
