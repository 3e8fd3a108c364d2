"""The selective scan of Mamba (Gu & Dao 2023): one function, several backends.

Symbols: B batch, E channels (the inner width of a Mamba block), S states per channel, L steps.

The best backend present is used. The environment variable SCAN overrides the choice:

    auto       the default: on a CPU numba, then torch; on CUDA mamba_ssm, then triton, then torch
    reference  the definition, one line a step: slow, for tests
    torch      plain PyTorch, any device
    numba      fused kernels for a CPU; needs no compiler
    triton     fused kernels for a GPU; nothing to build
    mamba_ssm  the CUDA kernels of the authors, see requirements-gpu.txt
"""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from sparsefield.errors import UserError


@dataclass(frozen=True)
class Backend:
    module: str
    install: str = ""
    devices: tuple[str, ...] = ()      # empty: every device
    float64: bool = True

    def fits(self, device_type: str, float64: bool) -> bool:
        return device_type in (self.devices or (device_type,)) and self.float64 >= float64


BACKENDS = {
    "numba": Backend("numba_backend", "pip install numba", ("cpu",), float64=False),
    "mamba_ssm": Backend("mamba_ssm_backend", "see requirements-gpu.txt", ("cuda",), float64=False),
    "triton": Backend("triton_backend", "pip install triton", ("cuda",), float64=False),
    "torch": Backend("torch_backend"),
    "reference": Backend("reference"),
}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> Tensor:
    """Selective state-space scan, with the meaning of mamba_ssm's `selective_scan_fn`.

        dt_t = softplus(delta_t + delta_bias)         (bias and softplus where asked for)
        h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t     h before the first step is 0
        y_t  = C_t h_t + D u_t
        out  = y * silu(z)                            (skip and gate where given)

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
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    scan = _choose(u.device.type, u.dtype == torch.float64)[1]
    return scan.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, reverse=reverse
    )


def describe_backend(device: torch.device | str) -> str:
    """One line for the log: the backend that `selective_scan` uses on `device`, and why.

    Raises:
        UserError: as `selective_scan`.
    """
    kind = torch.device(device).type
    name, _ = _choose(kind)
    if _wanted() != "auto":
        return f"selective scan: {name} (forced by SCAN)"
    better = list(BACKENDS)[: list(BACKENDS).index(name)]
    fitting = [other for other in better if BACKENDS[other].fits(kind, False)]
    missing = "; ".join(f"{other}: {load_backend(other)}" for other in fitting)
    return f"selective scan: {name}" + (f" ({missing})" if missing else "")


def backend_name(device: torch.device, dtype: torch.dtype) -> str:
    """The backend that `selective_scan` uses for tensors of this kind.

    Raises:
        UserError: as `selective_scan`.
    """
    return _choose(device.type, dtype == torch.float64)[0]


def _wanted() -> str:
    return os.environ.get("SCAN", "auto") or "auto"


def _choose(device_type: str, float64: bool = False) -> tuple[str, ModuleType]:
    name = _wanted()
    if name == "auto":
        return _best(device_type, float64)
    if name not in BACKENDS:
        raise UserError(f"SCAN={name} is no scan backend; use auto, {', '.join(BACKENDS)}")
    if not BACKENDS[name].fits(device_type, float64):
        what = "float64 on " if float64 else ""
        raise UserError(f"SCAN={name} cannot compute {what}{device_type}; use SCAN=auto")
    module = load_backend(name)
    if isinstance(module, str):
        raise UserError(f"SCAN={name}: {module}; {BACKENDS[name].install}, or use SCAN=auto")
    return name, module


@functools.cache
def _best(device_type: str, float64: bool) -> tuple[str, ModuleType]:
    for name, backend in BACKENDS.items():
        if backend.fits(device_type, float64) and isinstance(load_backend(name), ModuleType):
            return name, load_backend(name)
    raise AssertionError("the torch backend is always there")


@functools.cache
def load_backend(name: str) -> ModuleType | str:
    """The backend's module, or why it cannot be imported."""
    try:
        return importlib.import_module(f"{__name__}.{BACKENDS[name].module}")
    except ImportError as error:
        return str(error)


def _check_shapes(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"u must be (B, E, L) and A (E, S), got {(*u.shape,)} and {(*A.shape,)}")
    batch, channels, length = u.shape
    full, states, one = (batch, channels, length), (batch, A.shape[1], length), (channels,)
    wanted = {"delta": (delta, full), "A": (A, (channels, A.shape[1])), "B": (B, states),
              "C": (C, states), "D": (D, one), "z": (z, full), "delta_bias": (delta_bias, one)}
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {(*tensor.shape,)}")
