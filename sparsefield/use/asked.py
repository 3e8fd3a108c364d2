"""The field that is asked for: about which rectangle, on which grid, and whether it can be had."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsefield.errors import UserError
from sparsefield.use import globe
from sparsefield.use.frame import Frame, beyond
from sparsefield.use.grids import Grid, cells, grid_like, grid_shape, own_grid
from sparsefield.use.points import LARGEST, Measurements

log = logging.getLogger("sparsefield")

POINTS_RESOLUTION = 64  # cells of the longer side, where nothing else is said


@dataclass(frozen=True)
class Asked:
    """A field that is asked for.

    Attributes:
        given: the measurements, and the extent that the field is about. frame: where they lie.
        shape: (rows, columns). grid: that of a file, None for `shape` cells over the extent.
    """

    given: Measurements
    frame: Frame
    shape: tuple[int, int]
    grid: Grid | None = None

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """x (W,) and y (H,) of the grid of a file."""
        return None if self.grid is None else (self.grid.x, self.grid.y)

    def require_unknown(self, source: str) -> None:
        """Raises UserError where every cell was measured; source: what says so."""
        rows, columns = self.shape
        if self.given.shape == self.shape and len(self.given.coords) == rows * columns:
            raise UserError(f"{source}: every pixel is known, so nothing is to be reconstructed; "
                            "make unknown pixels black in the mask, or ask for more with "
                            "--resolution")

    def require_in_reach(self, reach: float) -> None:
        """Raises UserError where no cell's middle is near enough to a measurement."""
        where = cells(self.shape, self.frame) if self.axes is None else own_grid(self.axes)
        lonlat = self.frame.lonlat
        if beyond(reach, where[1], self.given.coords, lonlat).all():
            raise UserError(f"--reach {reach:g}: no cell is as near to a measurement; give more "
                            f"({'km' if lonlat else 'units of x'}), or a finer grid")


def what_is_asked(
    given: Measurements, *, resolution: str = "auto", grid: str | None = None,
    extent: Sequence[float] | None = None, aspect: str = "auto", lonlat: bool = False,
    reach: float | None = None,
) -> Asked:
    """The field that settings of the command ask for.

    Args:
        resolution: cells of the longer side, ROWSxCOLUMNS, or auto. grid: a NetCDF file, on whose
            grid the field is asked for, instead of a resolution and an extent that the user gave.
        aspect: see `sparsefield.use.frame.scales`. lonlat: places are on a globe.
        reach: how near a cell must be to a measurement; in units of x, with lonlat in km.
    Raises:
        UserError: what does not go together, or cannot be had.
    """
    if grid is not None and (given.is_picture or extent is not None or resolution != "auto"):
        raise UserError(f"--grid {grid}: it is for points, and says resolution and extent itself; "
                        "leave those out")
    if reach is not None and (given.is_picture or not reach > 0):
        raise UserError(f"--reach {reach:g}: it is for points, and above 0")
    asked = (_by_resolution(given, resolution, aspect, lonlat) if grid is None else
             _by_grid(given, grid, aspect, lonlat))
    if reach is not None:
        asked.require_in_reach(reach)
    return asked


# --- cells over the extent ------------------------------------------------------------------------


def _by_resolution(given: Measurements, resolution: str, aspect: str, lonlat: bool) -> Asked:
    frame = _frame(given, aspect, lonlat)
    shape = grid_shape(_parse_resolution(resolution, given), frame.extent, frame.scaled_by)
    _warn_of_oblong_cells(shape, frame)
    return Asked(given, frame, shape)


def _frame(given: Measurements, aspect: str, lonlat: bool) -> Frame:
    """Pixels are square."""
    return Frame.of(given.extent, "equal" if given.is_picture and aspect == "auto" else aspect,
                    lonlat)


def _parse_resolution(text: str, given: Measurements) -> int | tuple[int, int]:
    """The argument `resolution` of `Reconstructor.reconstruct`."""
    if text == "auto":
        return POINTS_RESOLUTION if not given.is_picture else _shape_of_picture(given.shape)
    if match := re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text):
        return int(match[1]), int(match[2])
    if re.fullmatch(r"\d{1,6}", text):
        return int(text)
    raise UserError(f"--resolution {text}: give a number such as 64, or ROWSxCOLUMNS as 48x96")


def _shape_of_picture(shape: tuple[int, int]) -> tuple[int, int]:
    """Its own, or of every so manieth row and column."""
    factor = max(1, -(-max(shape) // LARGEST))
    if factor > 1:
        log.info("the picture is %d x %d: the field has every %d-th of its rows and columns",
                 *shape[::-1], factor)
    return tuple(max(1, side // factor) for side in shape)


def _warn_of_oblong_cells(shape: tuple[int, int], frame: Frame) -> None:
    """Say so where cells are not square in the units that the model sees."""
    x0, x1, y0, y1 = frame.extent
    width, height = (x1 - x0) / shape[1], (y1 - y0) / shape[0]
    square = grid_shape(max(shape), frame.extent, frame.scaled_by)
    ratio = (width / frame.scaled_by[0]) / (height / frame.scaled_by[1])
    if not 0.95 < ratio < 1.05 and square != shape:
        log.info("a grid of %dx%d has cells of %.4g (x) by %.4g (y); %dx%d would be square",
                 *shape, width, height, *square)


# --- the grid of a file ---------------------------------------------------------------------------


def _by_grid(given: Measurements, path: str, aspect: str, lonlat: bool) -> Asked:
    grid = grid_like(path)
    given = _about_grid(given, grid, path, lonlat)
    return Asked(given, _frame(given, aspect, lonlat), (len(grid.y), len(grid.x)), grid)


def _about_grid(given: Measurements, grid: Grid, path: str, lonlat: bool) -> Measurements:
    """Measurements with an extent about a grid and all of them, of a globe turned to the grid."""
    extent = grid.extent
    if lonlat:
        given, extent = _turned(given, grid, path)
    x0, x1, y0, y1 = extent
    low, high = given.coords.min(axis=0), given.coords.max(axis=0)
    if (high < (x0, y0)).any() or (low > (x1, y1)).any():
        log.warning("WARNING: all measurements (x %.6g to %.6g, y %.6g to %.6g) lie beside the "
                    "grid of %s (x %.6g to %.6g, y %.6g to %.6g)", low[0], high[0], low[1],
                    high[1], path, x0, x1, y0, y1)
    extent = (min(x0, low[0]), max(x1, high[0]), min(y0, low[1]), max(y1, high[1]))
    return replace(given, extent=tuple(map(float, extent)))


def _turned(
    given: Measurements, grid: Grid, path: str
) -> tuple[Measurements, Sequence[float]]:
    """Measurements at longitudes like those of a grid, and its extent of 360 degrees at most."""
    corners = np.array([[grid.x[k], grid.y[k]] for k in (0, -1)])
    globe.require_degrees(f"--grid {path}", corners, are_points=False)
    x0, x1, y0, y1 = grid.extent
    west = (x0 + x1 - globe.WIDEST) / 2
    coords = given.coords.copy()
    coords[:, 0] = globe.around(coords[:, 0], (west, 0, 0, 0))
    extent = (max(x0, west), min(x1, west + globe.WIDEST),  # its first longitude may be there twice
              max(y0, -90.0), min(y1, 90.0))
    return replace(given, coords=coords), extent
