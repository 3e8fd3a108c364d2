"""What a token says of its place and time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """sin and cos of random plane waves (Tancik et al. 2020), within a band limit.

    Frequencies are Gaussian, redrawn where they exceed `max_frequency`: a wave above the Nyquist
    limit of the training grid is never constrained between its points, and speckles there.

    Args:
        num_frequencies: F. max_frequency: in cycles over the square's side, per axis; 16 is the
            Nyquist limit of a 32-pixel grid.
    """

    frequencies: Tensor

    def __init__(self, num_frequencies: int = 64, max_frequency: float = 16.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # part of the architecture, not of a run
        frequencies = torch.randn(2, 64 * num_frequencies, generator=generator) * max_frequency / 2
        inside = frequencies.abs().amax(dim=0) <= max_frequency
        self.register_buffer("frequencies", frequencies[:, inside][:, :num_frequencies].clone())

    @property
    def width(self) -> int:
        return 2 * self.frequencies.shape[1]

    def forward(self, coords: Tensor) -> Tensor:
        """(..., 2) coordinates in [0, 1] to (..., 2F) features in [-1, 1]."""
        x, y = (2 * math.pi * coords).split(1, dim=-1)
        # Element by element: as a matrix product, autocast would round places to 8 bits.
        angles = x * self.frequencies[0] + y * self.frequencies[1]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t (Ho et al. 2020), then a two-layer MLP to d_model.

    t in [0, 1] itself would barely turn the slow sinusoids: hence the factor.
    """

    rates: Tensor

    def __init__(self, d_model: int, width: int = 128):
        super().__init__()
        rates = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
        self.register_buffer("rates", 1000 * rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, d_model), nn.SiLU(), nn.Linear(d_model, d_model))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) times in [0, 1] to (B, d_model)."""
        angles = t[:, None].float() * self.rates
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))
