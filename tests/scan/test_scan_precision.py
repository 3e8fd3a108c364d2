"""What the machine says of itself, against what Linux says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefield.device import has_fast_bfloat16

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="only Linux lists the CPU's instructions")
def test_bfloat16_instructions_are_found():
    flags = CPUINFO.read_text().split()
    assert has_fast_bfloat16() is ("avx512_bf16" in flags or "amx_tile" in flags)
