"""Train MAMBA Diffusion V1: the baseline that V2 is compared with.

As described it starts from noise, and has no grid U-Net. With --prior fitted --unet_width 48
--flow_unet_width 48 it starts where V2 does, and differs from it in the tokens alone.

    python train_mamba.py                                      # embedded photographs, any device
    python train_mamba.py --data pictures.npz --d_model 256 --epochs 200
    torchrun --standalone --nproc_per_node 2 train_mamba.py    # several processes or GPUs

The same command again continues where the last one stopped.

Symbols: B batch, M observed points (context), N queried points, L = M + N tokens, C channels,
D d_model, theta the angle of the flow: 0 at a draw of kriging, pi/2 at the data.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import sys
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparsefield import cli
from sparsefield.model.attention import Attention
from sparsefield.model.field import FieldModel, TokenBlock, require_positive, require_share
from sparsefield.model.mamba import MambaLayer
from sparsefield.model.tokens import permute
from sparsefield.train.config import TrainingConfig


class MAMBADiffusion(FieldModel):
    """F(z, theta): tokens, one-way Mamba over all of them, one cross-attention, decoder.

    Preprocessing, prior and decoder are those of V2; the differences are what V2 is about.

    Args:
        d_model: D. num_layers: Mamba layers, all reading forward. d_state: of their scans.
        heads: of the cross-attention. dropout: in [0, 1).
        cross_attention_residual: add the queries to what they read. Without it, as V1 was
            described, a query passes on only what it gathers from the observations.
        distance_attention: let attention know how far apart points are.
        channels and shared: see FieldModel (prior, neighbours, order, Fourier features).
    Raises:
        UserError: sizes that no model can be built from, with the reason.
    """

    def __init__(
        self, d_model: int = 512, num_layers: int = 6, heads: int = 8, d_state: int = 16,
        dropout: float = 0.0, channels: int = 3, cross_attention_residual: bool = False,
        distance_attention: bool = True, **shared,
    ):
        require_share(dropout=dropout)
        require_positive(num_layers=num_layers, d_state=d_state)
        super().__init__(channels=channels, d_model=d_model, **shared)
        self.cross_attention_residual = cross_attention_residual
        self.mamba = nn.ModuleList(MambaLayer(d_model, d_state, dropout) for _ in range(num_layers))
        self.query_norm, self.context_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.cross_attention = Attention(d_model, heads, distance_attention)
        self.dropout = nn.Dropout(dropout)

    def mix(self, context: Tensor, queries: Tensor, block: TokenBlock) -> Tensor:
        tokens = torch.cat([context, queries], dim=1)                     # (B, L, D)
        before = None
        for k, layer in enumerate(self.mamba):
            tokens = layer(permute(tokens, block.scan, before, k))   # (B, L, D) along curve k
            before = k
        tokens = permute(tokens, block.scan, before, None)           # (B, L, D) as they came
        context, queries = tokens.split([context.shape[1], queries.shape[1]], dim=1)
        seen = self.cross_attention(self.query_norm(queries), self.context_norm(context),
                                    block.query_coords, block.input_coords)
        seen = self.dropout(seen)                                         # (B, N, D)
        return queries + seen if self.cross_attention_residual else seen


@dataclass
class Config(TrainingConfig):
    """Settings of a V1 training."""

    d_model: int = 512
    """Width of the model."""
    num_layers: int = 6
    """Mamba layers, all reading forward."""
    heads: int = 8
    """Attention heads; must divide d_model."""
    d_state: int = 16
    """States per channel of the selective scan."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    cross_attention_residual: bool = False
    """Add the queries to what the cross-attention gives them, as V2 does."""
    distance_attention: bool = True
    """Let attention know how far apart points are."""
    prior: Literal["fitted", "none"] = "none"
    """What the flow starts from: independent noise, as described, or V2's fitted posterior."""
    unet_width: int = 0
    """Width of V2's grid U-Nets, which improve a fitted posterior; 0: none, as described."""
    flow_unet_width: int = 0
    """Width of V2's grid U-Net that predicts the flow's velocity before the tokens do; 0: none."""
    save_dir: str = "checkpoints_mamba"
    """Folder for checkpoints, pictures and metrics."""


def main(arguments: list[str] | None = None) -> None:
    from sparsefield.train.loop import train  # here: whoever loads a model needs no trainer

    train(cli.parse(Config, arguments, __doc__), MAMBADiffusion, name="mamba")


if __name__ == "__main__":
    sys.exit(cli.run(main))
