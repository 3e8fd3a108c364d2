"""The selective scan as the paper writes it: one line a step, slow and obvious.

Every fast backend is tested against this one, values and gradients. It computes in the dtype of
its inputs (float32 for the half precisions), so float64 inputs give a float64 truth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 when an input is float64, else float32: half-precision scans overflow."""
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if wide else torch.float32


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
    """See `sparsefield.scan.selective_scan`. Autograd runs through the loop."""
    out_dtype = u.dtype
    dtype = compute_dtype(u, delta, A, B, C, D, z, delta_bias)
    u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    batch, channels, length = u.shape
    steps = range(length - 1, -1, -1) if reverse else range(length)
    h = u.new_zeros(batch, channels, A.shape[1])                             # (B, E, S)
    y = [u] * length
    for t in steps:
        decay = torch.exp(delta[:, :, t, None] * A)                          # (B, E, S)
        h = decay * h + (delta[:, :, t] * u[:, :, t])[:, :, None] * B[:, None, :, t]
        y[t] = (h * C[:, None, :, t]).sum(-1)                                # (B, E)
    out = torch.stack(y, dim=-1)                                             # (B, E, L)

    if D is not None:
        out = out + D.to(dtype)[:, None] * u
    if z is not None:
        out = out * F.silu(z.to(dtype))
    return out.to(out_dtype)
