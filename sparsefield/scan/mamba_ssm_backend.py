"""The CUDA kernels of the authors of Mamba, where they are installed (requirements-gpu.txt)."""

from __future__ import annotations

# mamba_ssm can be installed without its kernels, and then this fails, as it should.
import selective_scan_cuda  # noqa: F401
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    delta_bias: Tensor, reverse: bool = False,
) -> Tensor:
    """See `sparsefield.scan.selective_scan`. These kernels read forward: `reverse` flips copies."""
    # They want one dtype for what varies along the sequence, and float32 for what does not.
    delta, B, C, z = (x.to(u.dtype) for x in (delta, B, C, z))
    A, D, delta_bias = (x.float() for x in (A, D, delta_bias))
    if reverse:
        u, delta, B, C, z = (x.flip(-1) for x in (u, delta, B, C, z))
    out = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)
    return out.flip(-1) if reverse else out
