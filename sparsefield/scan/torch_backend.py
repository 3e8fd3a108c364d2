"""The selective scan in plain PyTorch with a hand-written backward: any device, any float dtype.

The sequence is cut into chunks of `CHUNK` steps. The forward keeps the state at the start of each
chunk; the backward recomputes the states inside a chunk from it. So autograd sees one node
instead of L, and memory grows as B·L·E plus B·E·S·L/CHUNK, never as B·L·E·S.

Inside, time comes first and channels last: a step is then one contiguous (B, S, E) block.
T is the length of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    delta_bias: Tensor, reverse: bool = False,
) -> Tensor:
    """See `sparsefield.scan.selective_scan`."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    # Half-precision scans overflow.
    dtype = torch.float64 if torch.float64 in {x.dtype for x in inputs} else torch.float32
    sequences = (x.to(dtype).permute(2, 0, 1) for x in (u, delta, z, B, C))
    with torch.autocast(u.device.type, enabled=False):
        out = _SelectiveScan.apply(*sequences, A.to(dtype).t(), D.to(dtype), delta_bias.to(dtype),
                                   reverse)
    return out.permute(1, 2, 0).to(u.dtype)


class _SelectiveScan(torch.autograd.Function):
    """u, delta, z: (L, B, E); B, C: (L, B, S); A: (S, E); D, delta_bias: (E,)."""

    @staticmethod
    def forward(ctx, u, delta, z, B, C, A, D, delta_bias, reverse):
        out = torch.empty_like(u)
        h = u.new_zeros(u.shape[1], *A.shape)                                # (B, S, E)
        starts = []
        for span in _spans(len(u), reverse):
            starts.append(h)
            dt = F.softplus(delta[span] + delta_bias)                        # (T, B, E)
            decay, drive = _discretise(dt, u[span], A, B[span])              # (T, B, S, E)
            after, _, h = _chunk_states(h, decay, drive, reverse)
            out[span] = _read_out(after, C[span], D, u[span]) * F.silu(z[span])
        ctx.save_for_backward(u, delta, z, B, C, A, D, delta_bias, *starts)
        ctx.reverse = reverse
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        u, delta, z, B, C, A, D, delta_bias, *starts = ctx.saved_tensors
        du, ddelta, dz, dB, dC, dy = (torch.empty_like(x) for x in (u, delta, z, B, C, u))
        dA = torch.zeros_like(A)
        end = torch.zeros_like(starts[0])                                    # (B, S, E)
        for span, start in reversed(list(zip(_spans(len(u), ctx.reverse), starts, strict=True))):
            x = u[span]                                                      # (T, B, E)
            raw = delta[span] + delta_bias
            dt = F.softplus(raw)
            decay, drive = _discretise(dt, x, A, B[span])                    # (T, B, S, E)
            after, before, _ = _chunk_states(start, decay, drive, ctx.reverse)

            y = _read_out(after, C[span], D, x)
            gate = torch.sigmoid(z[span])
            dz[span] = grad_out[span] * y * gate * (1 + z[span] * (1 - gate))
            dy[span] = grad_out[span] * (z[span] * gate)
            dC[span] = (after * dy[span, :, None]).sum(-1)                   # (T, B, S)

            g = dy[span, :, None] * C[span, ..., None]                       # (T, B, S, E)
            end = _run_adjoint(g, decay, end, ctx.reverse)
            g_input = (g * B[span, ..., None]).sum(2)                        # (T, B, E)
            g_decay = g * decay * before                                     # (T, B, S, E)
            dB[span] = (g * (dt * x)[:, :, None]).sum(-1)                    # (T, B, S)
            dA += (g_decay * dt[:, :, None]).sum((0, 1))                     # (S, E)
            du[span] = g_input * dt + D * dy[span]
            ddelta[span] = ((g_decay * A).sum(2) + g_input * x) * torch.sigmoid(raw)
        dD = (dy * u).sum((0, 1))
        return du, ddelta, dz, dB, dC, dA, dD, ddelta.sum((0, 1)), None


def _spans(length: int, reverse: bool) -> list[slice]:
    """The chunks in the order in which the scan visits them."""
    spans = [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]
    return spans[::-1] if reverse else spans


def _discretise(dt: Tensor, u: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold for A, Euler for B (Gu & Dao 2023, section 3.2): decay and drive."""
    return torch.exp(dt[:, :, None] * A), (dt * u)[:, :, None] * B[..., None]


def _read_out(states: Tensor, C: Tensor, D: Tensor, u: Tensor) -> Tensor:
    return (states * C[..., None]).sum(2) + D * u


def _chunk_states(
    start: Tensor, decay: Tensor, drive: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run h_t = decay_t h_{t-1} + drive_t from `start` (B, S, E).

    Returns the states after each step and before each step, both (T, B, S, E) and views of one
    buffer, and the last state.
    """
    length = len(decay)
    states = decay.new_empty(length + 1, *start.shape)
    states[length if reverse else 0] = start
    after, before = (states[:-1], states[1:]) if reverse else (states[1:], states[:-1])
    for t in reversed(range(length)) if reverse else range(length):
        torch.addcmul(drive[t], decay[t], before[t], out=after[t])
    return after, before, after[0 if reverse else -1].clone()


def _run_adjoint(g: Tensor, decay: Tensor, end: Tensor, reverse: bool) -> Tensor:
    """Run g_t += decay_{t+1} g_{t+1} in place, against the direction of the scan.

    `end` is that product for the step after the chunk; returns it for the step before.
    """
    for t in range(len(g)) if reverse else reversed(range(len(g))):
        g[t] += end
        end = decay[t] * g[t]
    return end
