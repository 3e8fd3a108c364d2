"""Readers along time: what a cell of a grid U-Net learns from the same cell in other frames.

A reader is a two-way layer over the T frames of a sequence, the same in every cell, and adds to
what is there; it starts by adding nothing. Steps between frames that are not even enter as Mamba's
step size, and as an input of any other.

Symbols: T frames, K draws of each, W width, n sequences of cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefield.errors import UserError
from sparsefield.model.mamba import Mamba
from sparsefield.place import Frames

D_STATE = 8

READERS: dict[str, type[TimeReader]] = {}  # by the name that settings have for them


class TimeReader(nn.Module):
    """x + read(norm(x)) along time. A subclass says what `read` is, and is known by its name.

    Args:
        width: W.
    """

    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()
        READERS[name] = cls

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def read(self, x: Tensor, steps: Tensor) -> Tensor:
        """(n, T, W) to (n, T, W).

        Args:
            steps: (n, T, 2), logarithms of the time since the frame before and until the next, of
                which the mean is 1.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """(B T K, W, h, w) to (B T K, W, h, w), channels last."""
        apart = x.permute(0, 2, 3, 1).unflatten(0, (-1, frames.count, frames.draws))
        cells = apart.movedim(1, 4)                                       # (B, K, h, w, T, W)
        steps = frames.log_steps(x)[:, None, None, None]                  # (B, 1, 1, 1, T, 2)
        steps = steps.expand(*cells.shape[:5], 2).flatten(0, 3)
        found = self.read(self.norm(cells.flatten(0, 3)), steps)          # (n, T, W)
        found = found.view_as(cells).movedim(4, 1).flatten(0, 2)          # (B T K, h, w, W)
        return x + found.permute(0, 3, 1, 2)


class MambaReader(TimeReader, name="mamba"):
    """One Mamba from each end."""

    def __init__(self, width: int):
        super().__init__(width)
        self.ahead, self.back = Mamba(width, D_STATE), Mamba(width, D_STATE)
        for part in (self.ahead, self.back):
            nn.init.zeros_(part.out_proj.weight)

    def read(self, x: Tensor, steps: Tensor) -> Tensor:
        before, after = steps.unbind(dim=-1)
        return self.ahead(x, log_step=before) + self.back(x, reverse=True, log_step=after)


class GRUReader(TimeReader, name="gru"):
    """A gated recurrent unit (Cho et al. 2014) from each end."""

    def __init__(self, width: int):
        super().__init__(width)
        self.gru = nn.GRU(width + 2, width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, width)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def read(self, x: Tensor, steps: Tensor) -> Tensor:
        return self.out(self.gru(torch.cat([x, steps], dim=-1))[0])


def make_reader(name: str, width: int) -> TimeReader:
    """Raises UserError for a name that no reader has."""
    if name not in READERS:
        raise UserError(f"time_reader={name!r} is unknown: choose one of {', '.join(READERS)}")
    return READERS[name](width)
