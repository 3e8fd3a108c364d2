"""The nearest observations of every point."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor


def nearest(points: Tensor, coords: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and distances of the observations nearest to each point, nearest first.

    Args:
        points: (N, 2). coords: (M, 2). count: how many, at most M.
    Returns:
        index (N, count) int64 into M, and distance (N, count) float32.
    """
    tree = cKDTree(coords.detach().cpu().numpy())
    distance, index = tree.query(points.detach().cpu().numpy(), k=np.arange(1, count + 1))
    return (torch.from_numpy(index).to(coords.device),
            torch.from_numpy(distance.astype(np.float32)).to(coords.device))
