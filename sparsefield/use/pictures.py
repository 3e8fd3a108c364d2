"""A person's picture: which of its pixels are known, and what their values are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsefield.data.missing import refuse_lone_extreme
from sparsefield.data.patterns import parse_pattern
from sparsefield.data.pictures import Raster, read_mask, read_picture
from sparsefield.errors import UserError
from sparsefield.use.points import LARGEST, MOST_POINTS, Measurements

log = logging.getLogger("sparsefield")

NOTHING_TOLD = ("nothing says which pixels are known: give --mask mask.png (white: known), a "
                "picture with transparent pixels, or --observe random:0.2 to try")


def measure_picture(
    path: Path, channels: int, mask: str | None, observe: str | None, seed: int,
    missing: Sequence[float] | None = None,
) -> Measurements:
    """The known pixels of a picture.

    Pixels that are transparent, NaN, or of a value in `missing` are never known; of the others,
    those that `mask` shows in white or `observe` chooses, or all.

    Args:
        channels: 1 or 3 turns pictures of 8 bits a channel grey or coloured. Grey pictures of
            more bits stay one channel, of the numbers in the file.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    if mask and observe:
        raise UserError("--mask and --observe both say what is known: give one of them")
    picture = read_picture(path)
    if picture.channels == 3 and channels not in (1, 3):
        raise UserError(f"{path}: the model's fields have {channels} channels and a picture has 1 "
                        "or 3: give an .npz with coords and values")
    if picture.is_8_bit or picture.channels > channels:
        picture = picture.with_channels(min(channels, 3) if channels in (1, 3) else 1)
    chosen = None
    if mask:
        chosen = read_mask(Path(mask))
        if chosen.shape != picture.shape:
            raise UserError("--mask {}: is {} x {} pixels, {} is {} x {}: make them equal".format(
                mask, *chosen.shape[::-1], path, *picture.shape[::-1]))
    elif observe and max(picture.shape) > LARGEST:
        factor = -(-max(picture.shape) // LARGEST)
        picture = picture.reduced(factor)
        log.info("%s is large: reduced %d times to %d x %d", path, factor, *picture.shape[::-1])
    there = _there(path, picture, missing)
    points = _points(path, there, chosen, mask, observe, seed)
    rows, columns = np.divmod(points, picture.shape[1])
    height, width = picture.shape
    return Measurements(
        np.stack([columns + 0.5, rows + 0.5], axis=1),
        picture.values[rows, columns].astype(np.float64),
        (0.0, float(width), 0.0, float(height)),
        (height, width),
        ("red", "green", "blue") if picture.channels == 3 else ("grey",),
        downward=True,
        value_range=None if picture.white is None else (0.0, float(picture.white)),
    )


def _there(path: Path, picture: Raster, missing: Sequence[float] | None) -> np.ndarray:
    """(H, W) bool: the pixels that have a value."""
    there = np.ones(picture.shape, bool) if picture.known is None else picture.known
    if missing:
        there = there & ~np.isin(picture.values, missing).all(axis=2)
    elif missing is None and picture.white is None:
        refuse_lone_extreme(str(path), picture.values[there].reshape(-1))
    return there


def _points(
    path: Path, there: np.ndarray, chosen: np.ndarray | None, mask: str | None,
    observe: str | None, seed: int,
) -> np.ndarray:
    """(M,) int64: the pixels that are known."""
    if not there.any():
        raise UserError(f"{path}: no pixel has a value: all are transparent or missing")
    if observe and there.sum() == 1:
        raise UserError(f"{path}: a single pixel has a value, and --observe {observe} hides some: "
                        "give a larger picture")
    if observe:
        return parse_pattern(observe).draw(there, np.random.default_rng(seed))
    if chosen is None and there.all():
        raise UserError(f"{path}: {NOTHING_TOLD}")
    known = there if chosen is None else there & chosen
    points = np.flatnonzero(known)
    if len(points) == 0:
        raise UserError(f"{mask}: no pixel is known; paint known pixels white in the mask")
    if len(points) > MOST_POINTS:
        every = "every pixel is known, nothing is to be reconstructed; and " if known.all() else ""
        raise UserError(f"{path}: {every}{len(points):,} known pixels, at most {MOST_POINTS:,} can "
                        "be used: make the picture smaller, or fewer pixels white in the mask")
    return points
