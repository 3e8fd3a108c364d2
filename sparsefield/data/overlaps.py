"""Whether fields to validate or to test on hold squares of points of training fields: copies, and
crops of one picture or map that overlap."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

log = logging.getLogger("sparsefield")

SQUARE = 8  # side of a square; a smaller field is one
ACROSS = 16  # squares across a large picture that are learnt
VARIED = 16  # different values in a square that tells something: sky and land are alike everywhere
LARGEST = 512  # side of what is searched of a field, its middle
LEAST = 0.05  # share of the fields that is said


def mixed(fields: np.ndarray) -> np.ndarray:
    """The bits of every value, mixed, so that sums of them are hashes: uint64 of the same shape."""
    fields = np.ascontiguousarray(fields if fields.itemsize <= 8 else fields.astype(np.float64))
    bits = fields.view(f"u{fields.itemsize}").astype(np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(32)
    return bits


def hashes(bits: np.ndarray, step: int = SQUARE) -> np.ndarray:
    """(n, rows, columns) of the squares of `mixed` fields (n, H, W, C), every `step` points."""
    squares = _squares(bits, step)
    return np.einsum("nijcab,cab->nij", squares, _weights(squares.shape[3:]))


def whole_hashes(bits: np.ndarray) -> np.ndarray:
    """(n,) of `mixed` fields, the same however they are flipped and turned and their channels
    exchanged; 0 where all points are alike."""
    along, across = (_weights((side,))[np.minimum(np.arange(side), np.arange(side)[::-1])]
                     for side in bits.shape[1:3])
    found = (bits.sum(axis=3) * along[:, None] * across).sum(axis=(1, 2))
    return np.where((bits == bits[:, :1, :1]).all(axis=(1, 2, 3)), 0, found)


def some_hashes(values: np.ndarray) -> np.ndarray:
    """(k,) of squares of a picture (H, W, C) far apart, which takes no time."""
    squares = _squares(values[None], max(SQUARE, min(values.shape[:2]) // ACROSS))
    squares = np.moveaxis(squares, 3, -1)
    return hashes(mixed(squares.reshape(-1, *squares.shape[3:])), 1).ravel()


def middle(field: np.ndarray) -> np.ndarray:
    """At most LARGEST x LARGEST points of a field (H, W, C)."""
    top, left = (max(0, side - LARGEST) // 2 for side in field.shape[:2])
    return field[top:top + LARGEST, left:left + LARGEST]


@cache
def _weights(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(2**64, size=shape, dtype=np.uint64)


def tell_of_overlaps(
    source: str, fields: Iterable[np.ndarray], learnt: Sequence[np.ndarray]
) -> None:
    """Log how many of some fields (H, W, C) to validate or to test on hold squares whose `hashes`
    were learnt."""
    known = np.unique(np.concatenate([part.ravel() for part in learnt]))
    are_held = [_holds(field, known) for field in fields]
    if sum(are_held) > LEAST * len(are_held):
        log.warning(
            "WARNING: %s: %d of %d fields to validate or to test on that were searched hold the "
            "same pixels as training fields (crops that overlap?), and scores will be too good: "
            "leave them out, or split by picture or region", source, sum(are_held), len(are_held))


def _squares(fields: np.ndarray, step: int) -> np.ndarray:
    """(n, rows, columns, C, h, w), a view."""
    size = [min(SQUARE, side) for side in fields.shape[1:3]]
    return sliding_window_view(fields, size, axis=(1, 2))[:, ::step, ::step]


def _holds(field: np.ndarray, known: np.ndarray) -> bool:
    """Whether a field holds a square that is known, by sorted hashes, and varied."""
    field = middle(field)[None]
    found = hashes(mixed(field), 1)
    is_known = known[np.searchsorted(known, found).clip(max=len(known) - 1)] == found
    _, first = np.unique(found[is_known], return_index=True)
    squares = _squares(field, 1)[tuple(np.argwhere(is_known)[first].T)]
    return any(len(np.unique(square)) >= VARIED for square in squares)
