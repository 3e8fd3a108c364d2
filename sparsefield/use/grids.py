"""The grid that is asked for, and how places on it become coordinates that a model sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from sparsefield.coords import grid_coords
from sparsefield.errors import UserError
from sparsefield.use.points import LARGEST

log = logging.getLogger("sparsefield")

UNLIKE = 10  # sides that differ by more are of different kinds, such as distance and depth


def sides(extent: Sequence[float]) -> tuple[float, float]:
    """Width and height."""
    x0, x1, y0, y1 = extent
    return x1 - x0, y1 - y0


def scales(extent: Sequence[float], aspect: str) -> tuple[float, float]:
    """What becomes 1 on each axis: the longer side on both (equal), or each its own (free).

    Args:
        aspect: equal, free, or auto: free, and said, where the sides differ by more than 10 times.
    Raises:
        UserError: another aspect.
    """
    if aspect not in ("auto", "equal", "free"):
        raise UserError(f"aspect {aspect!r}: give equal, free or auto")
    width, height = sides(extent)
    longer, shorter = max(width, height), min(width, height)
    if aspect == "auto" and longer > UNLIKE * shorter:
        log.info("x spans %.6g and y %.6g: each axis has a scale of its own (--aspect equal for "
                 "one scale)", width, height)
        aspect = "free"
    return (width, height) if aspect == "free" else (longer, longer)


def grid_shape(
    resolution: int | Sequence[int], extent: Sequence[float],
    scaled_by: Sequence[float] | None = None,
) -> tuple[int, int]:
    """(rows, columns) of a grid.

    Args:
        resolution: cells of the longer side, for cells that are square in the units that the
            model sees; or (rows, columns) as they are.
        scaled_by: see `scales`; default one scale for both.
    Raises:
        UserError: no whole numbers, or a side is not in 1 ... 512.
    """
    wanted = np.asarray(resolution).reshape(-1).tolist()
    if np.ndim(resolution) > 1 or len(wanted) not in (1, 2) or not all(
        isinstance(side, Integral) and not isinstance(side, bool) for side in wanted
    ):
        raise UserError(f"resolution {resolution!r}: give a whole number such as 64, or rows and "
                        "columns as (48, 96)")
    if not all(1 <= side <= LARGEST for side in wanted):
        text = "x".join(map(str, wanted))
        raise UserError(f"resolution {text}: rows and columns are 1 to {LARGEST}")
    if len(wanted) == 2:
        return wanted[0], wanted[1]
    width, height = np.divide(sides(extent), scaled_by or (max(sides(extent)),) * 2)
    return max(1, round(wanted[0] * height)), max(1, round(wanted[0] * width))


def own_grid(axes: tuple[np.ndarray, np.ndarray]) -> tuple[tuple[int, int], np.ndarray]:
    """(rows, columns) and places (N, 2), row by row, of a grid with axes x (W,) and y (H,).

    Raises:
        UserError: axes that are none, or longer than 512.
    """
    x, y = (np.asarray(axis, dtype=np.float64) for axis in axes)
    for name, axis in (("x", x), ("y", y)):
        if axis.ndim != 1 or not np.isfinite(axis).all():
            raise UserError(f"axes: {name} must be a list of finite numbers")
        if not 1 <= len(axis) <= LARGEST:
            raise UserError(f"a grid of {len(y)} rows and {len(x)} columns: each is 1 to {LARGEST}")
    return (len(y), len(x)), np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def to_square(
    points: np.ndarray, extent: Sequence[float], scaled_by: Sequence[float]
) -> Tensor:
    """Coordinates (P, 2) in the unit square, float32; see `scales`."""
    x0, _, y0, _ = extent
    return torch.from_numpy(((np.asarray(points) - (x0, y0)) / scaled_by).astype(np.float32))


def cells(
    shape: tuple[int, int], extent: Sequence[float], scaled_by: Sequence[float]
) -> tuple[Tensor, np.ndarray]:
    """Middles of the cells of a grid over the extent, row by row.

    Returns:
        (N, 2) float32 in the unit square (where it is filled, those that training saw, to the
        bit); and (N, 2) float64 in the units of the extent.
    """
    x0, x1, y0, y1 = extent
    x = x0 + (np.arange(shape[1]) + 0.5) / shape[1] * (x1 - x0)
    y = y0 + (np.arange(shape[0]) + 0.5) / shape[0] * (y1 - y0)
    where = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    fills = tuple(scaled_by) == sides(extent)
    return (grid_coords(*shape) if fills else to_square(where, extent, scaled_by)), where
