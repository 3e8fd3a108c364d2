"""Data sets in one array: (N, H, W, C) or (N, H, W), uint8 or float, in .npz or .npy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from sparsefield.data.base import Data
from sparsefield.data.pictures import flip
from sparsefield.data.scale import Scale, pixel_scale
from sparsefield.errors import UserError

# Shares of one array that become validation and test.
HELD_OUT = 0.05


class ArraySplit:
    """Fields of one array, decoded one at a time; see `base.Split`."""

    def __init__(self, fields: np.ndarray, scale: Scale, *, flips: bool, has_gaps: bool):
        self.fields = fields
        self.scale = scale
        self.flips = flips
        self.has_gaps = has_gaps

    def __len__(self) -> int:
        return len(self.fields)

    def example(self, index: int) -> np.ndarray:
        return self.scale.to_inside(self.fields[index])

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        field = self.fields[index]
        return self.scale.to_inside(flip(field, rng) if self.flips else field)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        return None


def open_array(path: Path, *, val: Path | None = None, test: Path | None = None) -> Data:
    """The fields of a file, in the order of the file: 90 % training, 5 % validation, 5 % test.

    Blocks rather than a shuffle, because neighbours in a file often show the same thing (crops of
    one picture, days of one season), and a neighbour in training would make the test too easy.
    With `val` and `test` all of `path` is training; with `val` alone, its first half is
    validation and its second half test.
    """
    fields = _read(path)
    if val is None and test is None:
        held = max(1, int(HELD_OUT * len(fields)))
        parts = fields[:-2 * held], fields[-2 * held:-held], fields[-held:]
    elif test is None:
        rest = _read(val)
        parts = fields, rest[:len(rest) // 2], rest[len(rest) // 2:]
    else:
        parts = fields, _read(val), _read(test)
    scale = pixel_scale(fields.shape[-1])
    flips = fields.shape[-1] == 3
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts))
    train, val_split, test_split = (
        ArraySplit(part, scale, flips=flips, has_gaps=False) for part in parts
    )
    return Data(
        path.name, *fields.shape[1:3], scale, digest.hexdigest(), train, val_split, test_split
    )


def _read(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        if "images" not in archive:
            raise UserError(f"{path}: has no array `images`, only {', '.join(archive)}")
        fields = archive["images"]
    if fields.dtype != np.uint8 or fields.ndim != 4:
        raise UserError(f"{path}: images must be uint8 (N, H, W, C), not "
                        f"{fields.dtype} {fields.shape}")
    return fields
