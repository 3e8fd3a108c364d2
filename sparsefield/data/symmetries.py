"""Symmetries of pictures: flips and quarter turns of the grid, and exchanges of colour channels.

A closed form knows them too (its bank of kernels is as symmetric), so that one closed form serves a
field in every guise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

TURNS = 8  # of a square; the first 4 map any rectangle onto itself


def draw(rng: np.random.Generator, height: int, width: int, channels: int) -> int:
    """A number of a symmetry, all of them equally likely; 0 changes nothing."""
    turns = TURNS if height == width else TURNS // 2
    return int(rng.integers(turns)) + TURNS * int(rng.integers(math.factorial(channels)))


class Symmetry:
    """Symmetry `number` of fields of a shape.

    Attributes:
        source: (H W,) int64: which point of the field each point of its image shows.
        channels: (C,) int64: which channel of the field each channel of its image shows.
    """

    def __init__(self, number: int, height: int, width: int, channels: int):
        self.source, self.target = _points(number % TURNS, height, width)
        self.channels = _channels(number // TURNS, channels)

    def of_field(self, values: np.ndarray) -> np.ndarray:
        """(H W, C) of a field to those of its image."""
        return values[self.source][:, self.channels]

    def of_index(self, index: np.ndarray) -> np.ndarray:
        """Where points of the field lie in its image."""
        return self.target[index]


@lru_cache(maxsize=64)
def _points(turn: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    grid = np.arange(height * width).reshape(height, width)
    if turn & 1:
        grid = grid[::-1]
    if turn & 2:
        grid = grid[:, ::-1]
    if turn & 4:
        grid = grid.T
    source = np.ascontiguousarray(grid).ravel()
    return source, np.argsort(source)


@lru_cache(maxsize=1024)
def _channels(number: int, channels: int) -> np.ndarray:
    """Permutation `number` in lexicographic order."""
    if number == 0:
        return np.arange(channels)
    left, found = list(range(channels)), []
    for place in range(channels, 0, -1):
        chosen, number = divmod(number, math.factorial(place - 1))
        found.append(left.pop(chosen))
    return np.array(found)
