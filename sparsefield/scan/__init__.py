"""The selective scan of Mamba (Gu & Dao 2023): one function, several backends.

Symbols: B batch, E channels (the inner width of a Mamba block), S states per channel, L steps.

The best backend present is used. The environment variable SCAN overrides the choice:

    auto       the default: on a CPU numba, then torch; on CUDA mamba_ssm, then triton, then torch
    torch      plain PyTorch, any device
    numba      fused kernels for a CPU; needs no compiler
    triton     fused kernels for a GPU; nothing to build
    mamba_ssm  the CUDA kernels of the authors, see requirements-gpu.txt
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from sparsefield.errors import UserError

# The best first: the only device that a backend computes on, and how to get it.
BACKENDS = {
    "numba": ("cpu", "pip install numba"),
    "mamba_ssm": ("cuda", "see requirements-gpu.txt"),
    "triton": ("cuda", "pip install triton"),
    "torch": (None, ""),  # any, and the only one that knows float64
}


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    delta_bias: Tensor, reverse: bool = False,
) -> Tensor:
    """Selective state-space scan: mamba_ssm's `selective_scan_fn` with all that a block gives it.

        dt_t = softplus(delta_t + delta_bias)
        h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t     h before the first step is 0
        y_t  = C_t h_t + D u_t
        out  = y * silu(z)

    Args:
        u, delta, z: (B, E, L) in any memory order; views of (B, L, E) memory are as good.
        A: (E, S), negative for a stable scan. B, C: (B, S, L). D, delta_bias: (E,).
        reverse: scan from the last step to the first; nothing is flipped.
    Returns:
        (B, E, L) in the dtype of `u`; float32 inside (float64 if an input is).
    Raises:
        ValueError: shapes that do not fit.
        UserError: the backend forced by SCAN is unknown or cannot be used here.
    Source: Gu & Dao 2023, "Mamba", algorithm 2 and section 3.3.
    """
    (batch, channels, length), states = u.shape, A.shape[1]
    full, state, one = (batch, channels, length), (batch, states, length), (channels,)
    wanted = {"delta": (delta, full), "A": (A, (channels, states)), "B": (B, state),
              "C": (C, state), "D": (D, one), "z": (z, full), "delta_bias": (delta_bias, one)}
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {(*tensor.shape,)}")
    _, backend = choose_backend(u.device.type, u.dtype)
    return backend.selective_scan(u, delta, A, B, C, D, z, delta_bias, reverse=reverse)


def describe_backend(device: torch.device | str) -> str:
    """One line for the log: the backend that `selective_scan` uses on `device`, and why.

    Raises:
        UserError: as `selective_scan`.
    """
    kind = torch.device(device).type
    name, _ = choose_backend(kind)
    if _wanted() != "auto":
        return f"selective scan: {name} (forced by SCAN)"
    better = [other for other in _fitting(kind) if isinstance(load_backend(other), str)]
    missing = "; ".join(f"{other}: {load_backend(other)}" for other in better)
    return f"selective scan: {name}" + (f" ({missing})" if missing else "")


def choose_backend(kind: str, dtype: torch.dtype = torch.float32) -> tuple[str, ModuleType]:
    """Name and module of the backend for tensors on a kind of device.

    Raises:
        UserError: as `selective_scan`.
    """
    name, fitting = _wanted(), _fitting(kind, dtype)
    if name == "auto":
        name = next(other for other in fitting if not isinstance(load_backend(other), str))
    if name not in BACKENDS:
        raise UserError(f"SCAN={name} is no scan backend; use auto, {', '.join(BACKENDS)}")
    if name not in fitting:
        what = "float64 on " if dtype == torch.float64 else ""
        raise UserError(f"SCAN={name} cannot compute {what}{kind}; use SCAN=auto")
    module = load_backend(name)
    if isinstance(module, str):
        raise UserError(f"SCAN={name}: {module}; {BACKENDS[name][1]}, or use SCAN=auto")
    return name, module


def _wanted() -> str:
    return os.environ.get("SCAN", "auto") or "auto"


def _fitting(kind: str, dtype: torch.dtype = torch.float32) -> list[str]:
    return [name for name, (device, _) in BACKENDS.items()
            if device is None or (device == kind and dtype != torch.float64)]


@functools.cache
def load_backend(name: str) -> ModuleType | str:
    """The backend's module, or why it cannot be imported."""
    try:
        return importlib.import_module(f"{__name__}.{name}_backend")
    except ImportError as error:
        return str(error)


def with_gradients(
    forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., list[Tensor]]
) -> Callable[..., Tensor]:
    """A function of (*tensors, reverse=False) with gradients that `backward` computes.

    Args:
        forward: (*tensors, reverse, keep) to the output and, with `keep`, what the backward needs.
        backward: (*tensors, reverse, *kept, gradient of the output) to those of the tensors.
    """
    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, reverse, *tensors):
            out, *kept = forward(*tensors, reverse, True)
            ctx.reverse, ctx.count = reverse, len(tensors)
            ctx.save_for_backward(*tensors, *kept)
            return out

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, dout):
            saved = ctx.saved_tensors
            return None, *backward(*saved[:ctx.count], ctx.reverse, *saved[ctx.count:], dout)

    def run(*tensors, reverse=False):
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return Kernel.apply(reverse, *tensors)
        return forward(*tensors, reverse, False)[0]

    return run
