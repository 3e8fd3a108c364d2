"""The selective scan in plain PyTorch: any device, any float dtype.

The sequence is cut into chunks of `CHUNK` steps. The forward keeps the state before each chunk; the
backward computes the states inside a chunk again from it. Memory so grows as B·L·E plus
B·E·S·L/CHUNK, never as B·L·E·S.

Inside, time comes first and channels last: a step is then one contiguous (B, S, E) block.
T is the length of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 16


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    delta_bias: Tensor, reverse: bool = False,
) -> Tensor:
    """See `sparsefield.scan.selective_scan`."""
    inputs, memory = (u, delta, A, B, C, D, z, delta_bias), u.dtype
    # Half-precision scans overflow.
    dtype = torch.float64 if torch.float64 in {x.dtype for x in inputs} else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        u, delta, z, B, C = (x.to(dtype).permute(2, 0, 1) for x in (u, delta, z, B, C))
        A, D, delta_bias = A.to(dtype).t(), D.to(dtype), delta_bias.to(dtype)
        h, outputs = u.new_zeros(u.shape[1], *A.shape), []
        chunks = list(zip(*(x.split(CHUNK) for x in (u, delta, B, C)), strict=True))
        for chunk in reversed(chunks) if reverse else chunks:
            arguments = h, *chunk, A, delta_bias, reverse
            y, h = _walk(*arguments) if not torch.is_grad_enabled() else checkpoint(
                _walk, *arguments, use_reentrant=False, preserve_rng_state=False)
            outputs.append(y.transpose(0, 1))
        y = torch.cat(outputs[::-1] if reverse else outputs, dim=1)           # (B, L, E)
        return ((y + D * u.transpose(0, 1)) * F.silu(z.transpose(0, 1))).mT.to(memory)


def _walk(
    h: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, delta_bias: Tensor,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """From the state h (B, S, E) through a chunk: C h of each step (T, B, E), and the last state.
    Zero-order hold for A, Euler for B (Gu & Dao 2023, section 3.2)."""
    dt = F.softplus(delta + delta_bias)                                       # (T, B, E)
    decays = torch.exp(dt[:, :, None] * A).unbind()                           # T of (B, S, E)
    drives = ((dt * u)[:, :, None] * B[..., None]).unbind()
    states = []
    for t in reversed(range(len(u))) if reverse else range(len(u)):
        h = torch.addcmul(drives[t], decays[t], h)
        states.append(h)
    states = torch.stack(states[::-1] if reverse else states)                 # (T, B, S, E)
    return (states * C[..., None]).sum(2), h
