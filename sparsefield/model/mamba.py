"""The selective state-space block of Gu & Dao 2023 (Mamba), readable in either direction.

Parameter names and shapes are those of `mamba_ssm.Mamba`, so that weights move between the two.

Symbols: B batch, L length, D d_model, E = expand * D inner width, S d_state, R dt_rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsefield.scan import selective_scan
from sparsefield.scan.convolution import causal_conv_silu

CONV_TAPS, EXPAND = 4, 2
STEP_SIZES = 0.001, 0.1  # range that they start in


class Mamba(nn.Module):
    """in_proj, depthwise causal convolution, selective scan, gate, out_proj (figure 3 there).

    Args:
        d_model: D. d_state: S.
    """

    def __init__(self, d_model: int, d_state: int = 16):
        super().__init__()
        inner, rank = EXPAND * d_model, math.ceil(d_model / 16)
        self.sizes = (rank, d_state, d_state)
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, CONV_TAPS, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        # Step sizes are log-uniform at the start: softplus(bias) = dt.
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        dt = torch.empty_like(self.dt_proj.bias).uniform_(*map(math.log, STEP_SIZES)).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(
        self, x: Tensor, reverse: bool = False, log_step: Tensor | None = None
    ) -> Tensor:
        """(B, L, D) to (B, L, D). With `reverse` the sequence is read from its last token on.

        Args:
            log_step: (B, L), logarithms of what the step sizes are multiplied by while they are
                small, where softplus is exp: tokens that are not evenly spaced.
        """
        # Two products: the backward of one, cut in two, would first copy both gradients together.
        x, z = (F.linear(x, half) for half in self.in_proj.weight.chunk(2))  # (B, L, E) each
        assert self.conv1d.bias is not None
        x = causal_conv_silu(x, self.conv1d.weight, self.conv1d.bias, reverse)
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)               # (B, L, R | S | S)
        delta = F.linear(dt, self.dt_proj.weight)                         # (B, L, E)
        if log_step is not None:
            delta = delta + log_step[..., None].to(delta)
        A = -self.A_log.float().exp()                                     # (E, S)
        y = selective_scan(x.mT, delta.mT, A, B.mT, C.mT, self.D.float(), z.mT,
                           self.dt_proj.bias.float(), reverse).mT         # (B, L, E)
        return self.out_proj(y)                                           # (B, L, D)


class MambaLayer(nn.Module):
    """x + dropout(Mamba(norm(x))): pre-norm and residual, (B, L, D) to (B, L, D)."""

    def __init__(self, d_model: int, d_state: int = 16, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mamba = Mamba(d_model, d_state)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        return x + self.dropout(self.mamba(self.norm(x), reverse))
