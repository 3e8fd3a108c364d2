"""Where a field is asked for: coordinates in a model's units, and the grid of its cells."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import numpy as np
import scipy
import torch
from torch import Tensor

from sparsefield.data.netcdf import grid_axes, is_longitude
from sparsefield.errors import UserError
from sparsefield.place import grid_coords
from sparsefield.use import globe
from sparsefield.use.points import LARGEST, Measurements, real_array

log = logging.getLogger("sparsefield")

UNLIKE = 10  # sides that differ by more are of different kinds, such as distance and depth


@dataclass(frozen=True)
class Frame:
    """How places become coordinates that a model sees.

    Attributes:
        extent: x0 x1 y0 y1. scaled_by: units of x and y that become one side of the square.
        lonlat: whether places are degrees on a globe.
    """

    extent: tuple[float, float, float, float]
    scaled_by: tuple[float, float]
    lonlat: bool

    @classmethod
    def of(cls, extent: tuple[float, float, float, float], aspect: str, lonlat: bool) -> Frame:
        """That of an extent.

        Args:
            aspect: see `scales`; a globe has its own. lonlat: places are on a globe.
        Raises:
            UserError: another aspect.
        """
        return cls(extent, globe.scales(extent) if lonlat else scales(extent, aspect), lonlat)

    @property
    def aspect(self) -> str:
        """What was chosen, for what is called later: auto is said once."""
        return "free" if self.scaled_by[0] != self.scaled_by[1] else "equal"

    def inside(self, places: np.ndarray) -> Tensor:
        """(P, 2) to float32 (P, 2), or (P, 3) on a globe."""
        if self.lonlat:
            return globe.to_space(places, self.extent)
        x0, _, y0, _ = self.extent
        scaled = (np.asarray(places) - (x0, y0)) / self.scaled_by
        return torch.from_numpy(scaled.astype(np.float32))


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


def beyond(reach: float, places: np.ndarray, coords: np.ndarray, lonlat: bool) -> np.ndarray:
    """(P,) bool: places (P, 2) farther than `reach` from the nearest of coords (M, 2).

    Args:
        reach: in the units of x and y; with lonlat in km on the Earth.
    """
    if lonlat:
        places, coords = globe.on_sphere(places), globe.on_sphere(coords)
        reach = 2 * np.sin(min(reach / globe.EARTH, np.pi) / 2)           # of the chord
    return scipy.spatial.cKDTree(coords).query(places)[0] > reach


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
        aspect: see `sparsefield.use.grids.scales`. lonlat: places are on a globe.
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
