"""Which precision the machine multiplies matrices fastest in."""

from __future__ import annotations

import torch

# torch has these since 2.6; they became part of a public function in 2.13.
_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has_fast_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 matrices (AVX512-BF16 or AMX).

    They are 4 times as fast as float32 there; without them bfloat16 is emulated and slower. Known
    of x86 alone: elsewhere the answer is no.
    """
    return any(getattr(torch.cpu, check, bool)() for check in _CHECKS)
