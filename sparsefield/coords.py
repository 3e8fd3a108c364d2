"""Where the points of a grid lie."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_coords(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Pixel centres of a grid over the unit square, row by row.

    Args:
        height, width: number of rows and columns, at least 1.
    Returns:
        (height * width, 2) float32: x = (j + 1/2) / width and y = (i + 1/2) / height of point
        i * width + j. Grids of every size cover the same square, so that a field can be asked
        for at another resolution than it was observed at.
    """
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy], dim=-1).reshape(-1, 2)
