"""Symmetries of pictures: flips and quarter turns of the grid, and exchanges of channels."""

from __future__ import annotations

import numpy as np

TURNS = 8  # of a square; the first 4 map any rectangle onto itself


def count(height: int, width: int) -> int:
    """How many flips and quarter turns map a grid onto itself."""
    return TURNS if height == width else TURNS // 2


def augmented(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A field (H, W, C) as one of its symmetries shows it, all of them equally likely."""
    turn = int(rng.integers(count(*values.shape[:2])))
    if turn & 1:
        values = values[::-1]
    if turn & 2:
        values = values[:, ::-1]
    if turn & 4:
        values = values.swapaxes(0, 1)
    return np.ascontiguousarray(values[..., rng.permutation(values.shape[2])])
