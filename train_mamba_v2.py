"""Train MAMBA Diffusion V2: whole fields from few measurements.

    python train_mamba_v2.py                                   # embedded photographs, any device
    python train_mamba_v2.py --data pictures.npz --d_model 128 --epochs 200
    torchrun --standalone --nproc_per_node 2 train_mamba_v2.py # several processes or GPUs

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
from functools import partial

import torch
from torch import Tensor, nn

from sparsefield import cli
from sparsefield.errors import UserError
from sparsefield.model.attention import Attention
from sparsefield.model.field import FieldModel, TokenBlock, require_positive, require_share
from sparsefield.model.mamba import MambaLayer
from sparsefield.model.tokens import ScanOrder, permute
from sparsefield.model.transfer import take_shared_components
from sparsefield.train.config import TrainingConfig


class BidirectionalMAMBA(nn.Module):
    """Two stacks of Mamba layers read the same tokens, one from each end; a projection merges.

    Args:
        d_model: D. num_layers: of both stacks together, even. d_state, dropout: of each layer.
        two_way: False lets the second stack read forward too, to measure what the other way adds.
    Raises:
        UserError: num_layers is odd or less than 2.
    """

    def __init__(
        self, d_model: int, num_layers: int = 8, d_state: int = 16, dropout: float = 0.0,
        two_way: bool = True,
    ):
        super().__init__()
        self.two_way = two_way
        if num_layers < 2 or num_layers % 2:
            raise UserError(f"num_layers={num_layers}: half of the layers read forward, half "
                            "backward, so give an even number of at least 2")
        self.forward_layers, self.backward_layers = (
            nn.ModuleList(MambaLayer(d_model, d_state, dropout) for _ in range(num_layers // 2))
            for _ in range(2))
        self.merge = nn.Linear(2 * d_model, d_model)

    def forward(self, x: Tensor, scan: ScanOrder | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); every output depends on every input.

        Layer k of both stacks reads along curve k of `scan`; None: as the tokens come.
        """
        ahead = back = x                                                  # (B, L, D)
        before = None
        layers = zip(self.forward_layers, self.backward_layers, strict=True)
        for k, (forward, backward) in enumerate(layers):
            ahead = forward(permute(ahead, scan, before, k))              # (B, L, D) along curve k
            back = backward(permute(back, scan, before, k), reverse=self.two_way)
            before = k
        merged = self.merge(torch.cat([ahead, back], dim=-1))             # (B, L, D)
        return permute(merged, scan, before, None)                      # (B, L, D) as they came


class PerceiverIteration(nn.Module):
    """Queries attend to the context, then to each other, then an MLP: pre-norm, with residuals."""

    def __init__(
        self, d_model: int, heads: int, dropout: float, distance: bool, self_attention: bool
    ):
        super().__init__()
        self.query_norm, self.context_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.cross_attention = Attention(d_model, heads, distance)
        self.self_attention = None
        if self_attention:
            self.self_norm = nn.LayerNorm(d_model)
            self.self_attention = Attention(d_model, heads, distance)
        self.mlp = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, 4 * d_model), nn.GELU(),
                                 nn.Linear(4 * d_model, d_model))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, x_at: Tensor, context_at: Tensor) -> Tensor:
        peers, context = self.query_norm(x), self.context_norm(context)
        seen = self.cross_attention(peers, context, x_at, context_at)
        x = x + self.dropout(seen)                                        # (B, N, D)
        if self.self_attention is not None:
            peers = self.self_norm(x)                                     # (B, N, D)
            x = x + self.dropout(self.self_attention(peers, peers, x_at, x_at))
        return x + self.dropout(self.mlp(x))                              # (B, N, D)


class LightweightPerceiver(nn.Module):
    """`iterations` rounds (coarse, then fine) of queries attending to context and each other.

    Args:
        d_model: D. iterations: 0 leaves queries as they are. heads: dividing d_model. distance:
            attention that knows how far apart points are (sparsefield.model.attention).
            self_attention: among queries.
    Raises:
        UserError: iterations < 0, or heads does not divide d_model.
    """

    def __init__(
        self, d_model: int, iterations: int = 2, heads: int = 8, dropout: float = 0.0,
        distance: bool = True, self_attention: bool = True,
    ):
        super().__init__()
        if iterations < 0:
            raise UserError(f"perceiver_iterations={iterations}: give 0 (none) or more")
        self.iterations = nn.ModuleList(
            PerceiverIteration(d_model, heads, dropout, distance, self_attention)
            for _ in range(iterations))

    def forward(
        self, queries: Tensor, context: Tensor, query_coords: Tensor, input_coords: Tensor
    ) -> Tensor:
        """queries (B, N, D) and context (B, M, D), at their coordinates, to queries (B, N, D)."""
        for iteration in self.iterations:
            queries = iteration(queries, context, query_coords, input_coords)
        return queries


class MAMBADiffusionV2(FieldModel):
    """F(z, theta): tokens, two-way Mamba over all of them, perceiver, decoder.

    Args:
        d_model: D. num_layers: Mamba layers, half of them each way. d_state: of their scans.
        perceiver_iterations, perceiver_heads: of the perceiver. dropout: in [0, 1).
        distance_attention: let attention know how far apart points are.
        two_way, query_self_attention: False, and num_layers, perceiver_iterations: 0, take out what
            V2 is about, to measure what it adds.
        channels and shared: see FieldModel (prior, neighbours, order, Fourier features).
    Raises:
        UserError: sizes that no model can be built from, with the reason.
    """

    def __init__(
        self, d_model: int = 256, num_layers: int = 8, perceiver_iterations: int = 2,
        perceiver_heads: int = 8, d_state: int = 16, dropout: float = 0.0, channels: int = 3,
        distance_attention: bool = True, two_way: bool = True, query_self_attention: bool = True,
        **shared,
    ):
        require_share(dropout=dropout)
        require_positive(d_state=d_state)
        super().__init__(channels=channels, d_model=d_model, **shared)
        self.mamba = None
        if num_layers:
            self.mamba = BidirectionalMAMBA(d_model, num_layers, d_state, dropout, two_way)
        self.perceiver = LightweightPerceiver(d_model, perceiver_iterations, perceiver_heads,
                                              dropout, distance_attention, query_self_attention)

    def mix(self, context: Tensor, queries: Tensor, block: TokenBlock) -> Tensor:
        if self.mamba is not None:
            tokens = torch.cat([context, queries], dim=1)                 # (B, L, D)
            tokens = self.mamba(tokens, block.scan)                       # (B, L, D)
            context, queries = tokens.split([context.shape[1], queries.shape[1]], dim=1)
        return self.perceiver(queries, context, block.query_coords, block.input_coords)


@dataclass
class Config(TrainingConfig):
    """Settings of a V2 training."""

    d_model: int = 256
    """Width of the model."""
    num_layers: int = 8
    """Mamba layers, half of them reading forward, half backward; 0, for ablations: none."""
    perceiver_iterations: int = 2
    """Rounds of the perceiver: queries attend to observations, then to each other; 0: none."""
    perceiver_heads: int = 8
    """Attention heads; must divide d_model."""
    d_state: int = 16
    """States per channel of the selective scan."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    distance_attention: bool = True
    """Let attention know how far apart points are."""
    two_way: bool = True
    """Half of the Mamba layers read backward; False (all forward) is for ablations."""
    query_self_attention: bool = True
    """Queries attend to each other; False is for ablations."""
    init_from_v1: str | None = None
    """Checkpoint of V1 whose encoders and decoder a new training starts from, where they fit."""
    save_dir: str = "checkpoints_mamba_v2"
    """Folder for checkpoints, pictures and metrics."""


def main(arguments: list[str] | None = None) -> None:
    from sparsefield.train.loop import train  # here: whoever loads a model needs no trainer

    config = cli.parse(Config, arguments, __doc__)
    initialise = None
    if config.init_from_v1 is not None:
        initialise = partial(take_shared_components, path=config.init_from_v1,
                             model_class="MAMBADiffusion")
    train(config, MAMBADiffusionV2, name="mamba_v2", initialise=initialise)


if __name__ == "__main__":
    sys.exit(cli.run(main))
