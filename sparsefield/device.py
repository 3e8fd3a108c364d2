"""Which device computes, what it lacks, and in which precision it is fast."""

from __future__ import annotations

import torch

from sparsefield.errors import UserError

# torch has these since 2.6; they became part of a public function in 2.13.
_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")

def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """The device of a name. Raises UserError if it is not there.

    "auto" is CUDA or the CPU. MPS is taken by name alone: nothing has been measured there, and the
    closed form, which needs float64, has to be computed on the CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device!r} is unknown: use auto, cpu, cuda or mps") from error
    if chosen.type == "cuda":
        index = local_rank if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise UserError(
                f"device={device!r} is not there (process {local_rank} of this machine, "
                f"{torch.cuda.device_count()} CUDA devices found): use auto or cpu, and at most "
                "one process a GPU (NPROC)"
            )
        chosen = torch.device("cuda", index)
        torch.cuda.set_device(chosen)
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps' is not there: use auto or cpu")
    elif chosen.type not in ("cpu", "mps"):
        raise UserError(f"device={device!r} is not supported: use auto, cpu, cuda or mps")
    return chosen


def has_float64(device: torch.device) -> bool:
    """Whether a device knows float64."""
    return device.type != "mps"


def has_fast_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 matrices (AVX512-BF16 or AMX).

    They are 4 times as fast as float32 there; without them bfloat16 is emulated and slower. Known
    of x86 alone: elsewhere the answer is no.
    """
    return any(getattr(torch.cpu, check, bool)() for check in _CHECKS)
