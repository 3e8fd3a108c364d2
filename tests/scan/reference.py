"""The selective scan as the paper writes it: one line a step, slow and obvious.

Every backend is tested against this one, values and gradients. It computes in the dtype of its
inputs (float32 for the half precisions), so float64 inputs give a float64 truth.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    delta_bias: Tensor, reverse: bool = False,
) -> Tensor:
    """See `sparsefield.scan.selective_scan`. Autograd runs through the loop."""
    inputs, out_dtype = (u, delta, A, B, C, D, z, delta_bias), u.dtype
    dtype = torch.float64 if torch.float64 in {x.dtype for x in inputs} else torch.float32
    u, delta, A, B, C, D, z, delta_bias = (x.to(dtype) for x in inputs)
    delta = F.softplus(delta + delta_bias[:, None])

    batch, channels, length = u.shape
    h = u.new_zeros(batch, channels, A.shape[1])                             # (B, E, S)
    y = [u] * length
    for t in reversed(range(length)) if reverse else range(length):
        decay = torch.exp(delta[:, :, t, None] * A)                          # (B, E, S)
        h = decay * h + (delta[:, :, t] * u[:, :, t])[:, :, None] * B[:, None, :, t]
        y[t] = (h * C[:, None, :, t]).sum(-1)                                # (B, E)
    out = torch.stack(y, dim=-1) + D[:, None] * u                            # (B, E, L)
    return (out * F.silu(z)).to(out_dtype)
