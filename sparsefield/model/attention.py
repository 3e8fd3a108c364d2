"""Multi-head attention between points of the plane, with a sense of distance."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsefield.errors import UserError

WIDTHS = (0.5 / 32, 14 / 32)  # narrowest and widest head at the start, in units of the square


class Attention(nn.Module):
    """softmax(q k / sqrt(d) - a_h |x_q - x_k|^2) v, with a learnt a_h > 0 per head.

    The heads start as Gaussian kernel smoothers of widths from half a pixel to 14 pixels (of
    32). The distance costs no N x M matrix: -a |x_q - x_k|^2 is, up to a term that the softmax
    drops, an inner product of (sqrt(2a) x_q, 1) and (sqrt(2a) x_k, -a |x_k|^2), which are
    appended to queries and keys, so that fused attention runs as it is, in linear memory.

    Args:
        d_model: D. heads: H, dividing D. distance: without it, plain attention.
    Raises:
        UserError: heads does not divide d_model.
    """

    def __init__(self, d_model: int, heads: int, distance: bool = True):
        super().__init__()
        if heads < 1 or d_model % heads:
            raise UserError(f"heads={heads} does not divide d_model={d_model}: give heads that do")
        self.heads = heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.kv_proj = nn.Linear(d_model, 2 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.log_a = None
        if distance:
            narrowest, widest = map(math.log10, WIDTHS)
            widths = torch.logspace(narrowest, widest, heads)
            self.log_a = nn.Parameter((0.5 / widths**2).log())

    def forward(self, x: Tensor, context: Tensor, x_at: Tensor, context_at: Tensor) -> Tensor:
        """x (B, N, D) attends to context (B, M, D) at (B, N, 2), (B, M, 2): to (B, N, D)."""
        q = self._heads(self.q_proj(x))                                   # (B, H, N, d)
        k, v = map(self._heads, self.kv_proj(context).chunk(2, dim=-1))   # (B, H, M, d) each
        if self.log_a is None:
            y = F.scaled_dot_product_attention(q, k, v)                   # (B, H, N, d)
        else:
            y = near(q, k, v, x_at, context_at, self.log_a)               # (B, H, N, d)
        return self.out_proj(y.transpose(1, 2).flatten(2))                # (B, N, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def near(q: Tensor, k: Tensor, v: Tensor, x_q: Tensor, x_k: Tensor, log_a: Tensor) -> Tensor:
    """Attention of (B, H, N, d) to (B, H, M, d) twice, at (B, N, 2), (B, M, 2), with log a (H,).

    In float32: with a of up to 2,000 a rounded coordinate would outweigh the content.
    """
    with torch.autocast(q.device.type, enabled=False):
        width = q.shape[-1]
        a = log_a.float().exp()[:, None, None]                        # (H, 1, 1)
        x_q, x_k = (x.float()[:, None] - 0.5 for x in (x_q, x_k))     # (B, 1, N, 2) | (…, M, 2)
        ones = torch.ones_like(x_q[..., :1]).expand(-1, q.shape[1], -1, -1)
        square = x_k.square().sum(dim=-1, keepdim=True)               # (B, 1, M, 1)
        q = torch.cat([q.float() * width**-0.5, (2 * a).sqrt() * x_q, ones], dim=-1)
        k = torch.cat([k.float(), (2 * a).sqrt() * x_k, -a * square], dim=-1)
        padding = -q.shape[-1] % 8                                    # fused kernels want 8 n
        q, k = F.pad(q, (0, padding)), F.pad(k, (0, padding))
        v = F.pad(v.float(), (0, q.shape[-1] - width))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]
