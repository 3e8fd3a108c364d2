"""Grids that a field is asked for on: by a resolution, by axes, or like that of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
from torch import Tensor

from sparsefield.data.netcdf import grid_axes, is_longitude
from sparsefield.errors import UserError
from sparsefield.place import grid_coords
from sparsefield.use.frame import Frame, sides
from sparsefield.use.points import LARGEST, real_array

DEGREES = {
    "x": {"standard_name": "longitude", "units": "degrees_east"},
    "y": {"standard_name": "latitude", "units": "degrees_north"},
}


@dataclass(frozen=True)
class Grid:
    """The axes of a field.

    Attributes:
        x: (W,), y: (H,), both growing. names: of x and y. attributes: of x and y.
        downward: whether y falls in the file that the grid is like, and in those written.
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, str] = ("x", "y")
    attributes: tuple[dict[str, str], dict[str, str]] = ({}, {})
    downward: bool = False

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """x0 x1 y0 y1 of the outer sides of its cells."""
        return (*_edges(self.x), *_edges(self.y))

    @property
    def is_global(self) -> bool:
        """Whether its axes are degrees of longitude and latitude."""
        return self.attributes[0].get("units") == DEGREES["x"]["units"]


def _edges(axis: np.ndarray) -> tuple[float, float]:
    if len(axis) == 1:
        return float(axis[0]) - 0.5, float(axis[0]) + 0.5
    return (float(axis[0] - (axis[1] - axis[0]) / 2), float(axis[-1] + (axis[-1] - axis[-2]) / 2))


def grid_like(path: str) -> Grid:
    """The grid of a NetCDF file.

    Raises:
        UserError: it has none, or a side is not in 1 ... 512.
    """
    x, y = grid_axes(Path(path))
    if max(len(x.values), len(y.values)) > LARGEST:
        raise UserError(f"--grid {path}: {len(y.values)} rows and {len(x.values)} columns, at most "
                        f"{LARGEST} can be asked for; give --resolution and --extent")
    kept = tuple({key: str(v.attrs[key]) for key in ("standard_name", "units", "long_name")
                  if key in v.attrs} for v in (x, y))
    if is_longitude(x):
        kept = tuple(DEGREES[axis] | own for axis, own in zip("xy", kept))
        kept[0]["units"], kept[1]["units"] = DEGREES["x"]["units"], DEGREES["y"]["units"]
    return Grid(np.sort(x.values), np.sort(y.values), (str(x.name), str(y.name)), kept,
                downward=len(y.values) > 1 and y.values[0] > y.values[1])


def grid_of(coords: np.ndarray, lonlat: bool) -> Grid:
    """The grid of a field that was asked for by resolution, from the middles (H, W, 2) of cells."""
    x, y = coords[0, :, 0], coords[:, 0, 1]
    return Grid(x, y, ("lon", "lat"), (DEGREES["x"], DEGREES["y"])) if lonlat else Grid(x, y)


def grid_shape(
    resolution: int | Sequence[int], extent: Sequence[float],
    scaled_by: Sequence[float] | None = None,
) -> tuple[int, int]:
    """(rows, columns) of a grid.

    Args:
        resolution: cells of the longer side, for cells that are square in the units that the
            model sees; or (rows, columns) as they are.
        scaled_by: see `Frame`; default one scale for both.
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


def cells(shape: tuple[int, int], frame: Frame) -> tuple[Tensor, np.ndarray]:
    """Middles of the cells of a grid of (rows, columns) over the extent of a frame, row by row.

    Returns:
        float32 (N, 2), on a globe (N, 3), as a model sees them: where the unit square is filled,
        those that training saw, to the bit; and (N, 2) float64 in the units of the extent.
    """
    x0, x1, y0, y1 = frame.extent
    x = x0 + (np.arange(shape[1]) + 0.5) / shape[1] * (x1 - x0)
    y = y0 + (np.arange(shape[0]) + 0.5) / shape[0] * (y1 - y0)
    where = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    fills = not frame.lonlat and tuple(frame.scaled_by) == sides(frame.extent)
    return (grid_coords(*shape) if fills else frame.inside(where)), where


def own_grid(axes: tuple[np.ndarray, np.ndarray]) -> tuple[tuple[int, int], np.ndarray]:
    """(rows, columns) and places (N, 2), row by row, of a grid with axes x (W,) and y (H,).

    Raises:
        UserError: axes that are none, or longer than 512.
    """
    if len(axes) != 2:
        raise UserError(f"axes: give two, x and y, not {len(axes)}")
    x, y = (real_array("axes", axis) for axis in axes)
    for name, axis in (("x", x), ("y", y)):
        if axis.ndim != 1 or not np.isfinite(axis).all():
            raise UserError(f"axes: {name} must be a list of finite numbers")
        if not 1 <= len(axis) <= LARGEST:
            raise UserError(f"a grid of {len(y)} rows and {len(x)} columns: each is 1 to {LARGEST}")
    return (len(y), len(x)), np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
