"""The nearest observations of every point."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 25  # distances held at once: 128 MiB


def nearest(points: Tensor, coords: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and distances of the observations nearest to each point, nearest first.

    Args:
        points: (B, N, 2). coords: (B, M, 2). count: how many; where there are fewer than
            that, the farthest is repeated, so that the shape never depends on M.
    Returns:
        index (B, N, count) int64 into M, and distance (B, N, count) in units of the square.
    """
    kept = min(count, coords.shape[1])
    rows = max(1, _BLOCK_ELEMENTS // (coords.shape[0] * coords.shape[1]))
    blocks = [
        torch.cdist(part, coords, compute_mode="donot_use_mm_for_euclid_dist").topk(
            kept, dim=2, largest=False
        )
        for part in points.split(rows, dim=1)
    ]
    distance = torch.cat([block.values for block in blocks], dim=1)
    index = torch.cat([block.indices for block in blocks], dim=1)
    if kept < count:
        padding = (*index.shape[:2], count - kept)
        index = torch.cat([index, index[..., -1:].expand(padding)], dim=2)
        distance = torch.cat([distance, distance[..., -1:].expand(padding)], dim=2)
    return index, distance


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """values (B, M, F) at index (B, N, K): (B, N, K, F)."""
    batch = torch.arange(len(values), device=values.device)[:, None, None]
    return values[batch, index]
