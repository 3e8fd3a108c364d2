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

from sparsefield.data.netcdf import grid_axes, is_longitude
from sparsefield.errors import UserError
from sparsefield.place import Domain
from sparsefield.use import globe
from sparsefield.use.points import (
    LARGEST,
    Extent,
    Measurements,
    middle_of,
    real_array,
    tell_of_outside,
)

log = logging.getLogger("sparsefield")

UNLIKE = 10  # sides that differ by more are of different kinds, such as distance and depth


@dataclass(frozen=True)
class Frame:
    """How places become coordinates: by the measurements, whatever is asked for.

    Attributes:
        rectangle: x0 x1 y0 y1, whose corner becomes (0, 0). scaled_by: units of x and y that become
            one. lonlat: whether places are degrees on a globe. domain: the rectangle that the
            measurements stand for, in these coordinates.
    """

    rectangle: Extent
    scaled_by: tuple[float, float]
    lonlat: bool
    domain: Domain

    @classmethod
    def of(
        cls, coords: np.ndarray, *, aspect: str = "auto", lonlat: bool = False,
        region: Extent | None = None, asked: Extent | None = None, in_unit: bool = False,
    ) -> Frame:
        """That of measurements at coords (M, 2).

        Args:
            aspect: equal (one scale for x and y), free (each its own) or auto: free, and logged,
                where the measurements span more than ten times as much of one.
            region: the rectangle that they stand for, where it is known.
            asked: the rectangle that is asked for. in_unit: coordinates of all of it and of the
                measurements lie in 0 ... 1, as networks need; else it gives the scale of a single
                point alone.
        Raises:
            UserError: another aspect.
        """
        rectangle = region or _stands_for(coords, lonlat, asked)
        width, height = sides(rectangle)
        if lonlat:
            scaled_by = globe.scales(rectangle)
        else:
            is_free = _is_free(aspect, width, height)
            if in_unit:
                (x0, y0), (x1, y1) = coords.min(axis=0).tolist(), coords.max(axis=0).tolist()
                rectangle = (min(x0, asked[0]), max(x1, asked[1]),
                             min(y0, asked[2]), max(y1, asked[3]))
            x, y = sides(rectangle)
            scaled_by = (x, y) if is_free else (max(x, y),) * 2
        domain = Domain(width / scaled_by[0], height / scaled_by[1])
        return cls(rectangle, scaled_by, lonlat, domain)

    @property
    def aspect(self) -> str:
        """What was chosen; auto is logged once."""
        return "free" if self.scaled_by[0] != self.scaled_by[1] else "equal"

    def inside(self, places: np.ndarray) -> np.ndarray:
        """(P, 2) to float64 (P, 2), or (P, 3) on a globe."""
        if self.lonlat:
            return globe.to_space(places, self.rectangle).double().numpy()
        return (np.asarray(places) - self.rectangle[::2]) / self.scaled_by

    def beyond(self, reach: float, places: np.ndarray, coords: np.ndarray) -> np.ndarray:
        """(P,) bool: places (P, 2) farther than `reach` from the nearest of coords (M, 2).

        Args:
            reach: in units of x, where each axis has its own scale: so much of x, or as large a
                part of the span of y; with lonlat in km on the Earth.
        """
        if self.lonlat:
            places, coords = globe.on_sphere(places), globe.on_sphere(coords)
            reach = 2 * np.sin(min(reach / globe.EARTH, np.pi) / 2)           # of the chord
        else:
            places, coords = self.inside(places), self.inside(coords)
            reach = reach / self.scaled_by[0]
        return scipy.spatial.cKDTree(coords).query(places)[0] > reach


def _stands_for(coords: np.ndarray, lonlat: bool, asked: Extent | None) -> Extent:
    """The rectangle from which points (M, 2) may have been drawn: see `Domain.of_points`."""
    if lonlat:
        coords = np.column_stack([globe.around(coords[:, 0]), coords[:, 1]])
    low, high = coords.min(axis=0), coords.max(axis=0)
    if (low == high).all():
        grown = np.full(2, max(sides(asked)) if asked else 1.0)
    else:
        grown = np.array(Domain.of_points(torch.from_numpy(np.unique(coords, axis=0))))
    if lonlat:
        grown = np.minimum(grown, (globe.WIDEST, globe.WIDEST / 2))
    low, high = (low + high - grown) / 2, (low + high + grown) / 2
    if lonlat:
        low[1], high[1] = max(low[1], -90.0), min(high[1], 90.0)
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _is_free(aspect: str, width: float, height: float) -> bool:
    """Whether each axis has a scale of its own."""
    if aspect not in ("auto", "equal", "free"):
        raise UserError(f"aspect {aspect!r}: give equal, free or auto")
    shorter, longer = sorted((width, height))
    if shorter == 0 or aspect == "equal":
        return False
    if aspect == "auto" and longer > UNLIKE * shorter:
        log.info("x spans %.6g and y %.6g: each axis has a scale of its own (--aspect equal for "
                 "one scale)", width, height)
        return True
    return aspect == "free"


def sides(extent: Sequence[float]) -> tuple[float, float]:
    """Width and height."""
    x0, x1, y0, y1 = extent
    return x1 - x0, y1 - y0


POINTS_RESOLUTION = 64  # cells of the longer side, by default
DEGREES = {
    "x": {"standard_name": "longitude", "units": "degrees_east"},
    "y": {"standard_name": "latitude", "units": "degrees_north"},
}


@dataclass(frozen=True)
class Grid:
    """The axes of a field.

    Attributes:
        x: (W,), y: (H,), growing or falling, as in the file that the grid is like; results are
            written in this order. names: of x and y. attributes: of x and y.
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, str] = ("x", "y")
    attributes: tuple[dict[str, str], dict[str, str]] = ({}, {})

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x, self.y

    @property
    def extent(self) -> Extent:
        """x0 x1 y0 y1 of the outer sides of its cells."""
        return (*_edges(self.x), *_edges(self.y))

    @property
    def is_global(self) -> bool:
        """Whether its axes are degrees of longitude and latitude."""
        return self.attributes[0].get("units") == DEGREES["x"]["units"]


def _edges(axis: np.ndarray) -> tuple[float, float]:
    axis = np.sort(axis)
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
        kept = tuple(DEGREES[axis] | own for axis, own in zip("xy", kept, strict=True))
        kept[0]["units"], kept[1]["units"] = DEGREES["x"]["units"], DEGREES["y"]["units"]
    return Grid(x.values, y.values, (str(x.name), str(y.name)), kept)


def grid_of(coords: np.ndarray, lonlat: bool) -> Grid:
    """The grid of a field that was asked for by resolution, from the middles (H, W, 2) of cells."""
    x, y = coords[0, :, 0], coords[:, 0, 1]
    return Grid(x, y, ("lon", "lat"), (DEGREES["x"], DEGREES["y"])) if lonlat else Grid(x, y)


def grid_shape(
    resolution: int | Sequence[int], extent: Sequence[float],
    scaled_by: Sequence[float],
) -> tuple[int, int]:
    """(rows, columns) of a grid.

    Args:
        resolution: cells of the longer side, for cells that are square in the units that the
            model sees; or (rows, columns) as they are.
        scaled_by: see `Frame`.
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
    width, height = np.divide(sides(extent), scaled_by)
    longer = max(width, height)
    return max(1, round(wanted[0] * height / longer)), max(1, round(wanted[0] * width / longer))


def cells(shape: tuple[int, int], extent: Sequence[float]) -> np.ndarray:
    """(rows, columns, 2) float64: middles of the cells over an extent."""
    x0, x1, y0, y1 = extent
    x = x0 + (np.arange(shape[1]) + 0.5) / shape[1] * (x1 - x0)
    y = y0 + (np.arange(shape[0]) + 0.5) / shape[0] * (y1 - y0)
    return np.stack(np.meshgrid(x, y), axis=-1)


def axes_grid(axes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(H, W, 2): places of a grid with axes x (W,) and y (H,).

    Raises:
        UserError: axes that are none, or longer than 512.
    """
    if len(axes) != 2:
        raise UserError(f"axes: give two, x and y, not {len(axes)}")
    x, y = (real_array("axes", axis) for axis in axes)
    if not x.ndim == y.ndim == 1 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("axes: x and y must be lists of finite numbers")
    if not (1 <= len(x) <= LARGEST and 1 <= len(y) <= LARGEST):
        raise UserError(f"a grid of {len(y)} rows and {len(x)} columns: each is 1 to {LARGEST}")
    return np.stack(np.meshgrid(x, y), axis=-1)


@dataclass(frozen=True)
class Asked:
    """A field that is asked for.

    Attributes:
        given: the measurements, and the extent of the field. frame: where they lie.
        shape: (rows, columns). grid: that of a file, None for `shape` cells over the extent.
    """

    given: Measurements
    frame: Frame
    shape: tuple[int, int]
    grid: Grid | None = None

    def require_unknown(self, source: str) -> None:
        """Raises UserError where every cell was measured; source: the mask or picture."""
        rows, columns = self.shape
        if self.given.shape == self.shape and len(self.given.coords) == rows * columns:
            raise UserError(f"{source}: every pixel is known, so nothing is to be reconstructed; "
                            "make unknown pixels black in the mask, or ask for more with "
                            "--resolution")


def what_is_asked(
    given: Measurements, *, resolution: str = "auto", grid: str | None = None,
    extent: Sequence[float] | None = None, aspect: str = "auto", lonlat: bool = False,
    reach: float | None = None,
) -> Asked:
    """The field that settings of the command ask for.

    Args:
        resolution: cells of the longer side, ROWSxCOLUMNS, or auto. grid: a NetCDF file, on whose
            grid the field is asked for, instead of a resolution and an extent that the user gave.
        aspect: see `Frame.of`. lonlat: places are on a globe.
        reach: how near a cell must be to a measurement; in units of x, with lonlat in km.
    Raises:
        UserError: what does not go together, or cannot be had.
    """
    if grid is not None and (given.is_picture or extent is not None or resolution != "auto"):
        raise UserError(f"--grid {grid}: it is for points, and sets resolution and extent; "
                        "leave those out")
    if reach is not None and (given.is_picture or not reach > 0):
        raise UserError(f"--reach {reach:g}: it is for points, and above 0")
    like = None if grid is None else grid_like(grid)
    if like is not None:
        given = _on_grid(given, like, grid, lonlat)
    aspect = "equal" if given.is_picture and aspect == "auto" else aspect  # pixels are square
    frame = Frame.of(given.coords, aspect=aspect, lonlat=lonlat, region=given.region,
                     asked=given.extent)
    if like is None:
        shape = grid_shape(_parse_resolution(resolution, given), given.extent, frame.scaled_by)
        where = cells(shape, given.extent)
    else:
        where = axes_grid(like.axes)
    if reach is not None and frame.beyond(reach, where.reshape(-1, 2), given.coords).all():
        raise UserError(f"--reach {reach:g}: no cell is as near to a measurement; give more "
                        f"({'km' if lonlat else 'units of x'}), or a finer grid")
    return Asked(given, frame, where.shape[:2], like)


def _on_grid(given: Measurements, grid: Grid, path: str, lonlat: bool) -> Measurements:
    """Measurements with the extent of a grid; of a globe turned to lie around it."""
    extent = grid.extent
    if lonlat:
        corners = np.array([[grid.x.min(), grid.y.min()], [grid.x.max(), grid.y.max()]])
        globe.require_degrees(f"--grid {path}", corners, are_points=False)
        west = middle_of(extent) - globe.WIDEST / 2
        extent = (max(extent[0], west), min(extent[1], west + globe.WIDEST),
                  max(extent[2], -90.0), min(extent[3], 90.0))  # the first longitude may be twice
        lon = globe.around(given.coords[:, 0], middle_of(extent))
        given = replace(given, coords=np.column_stack([lon, given.coords[:, 1]]))
    tell_of_outside(given.coords, extent, f"the grid of {path}")
    return replace(given, extent=extent)


def _parse_resolution(text: str, given: Measurements) -> int | tuple[int, int]:
    """The argument `resolution` of `Reconstructor.reconstruct`."""
    if text == "auto" and not given.is_picture:
        return POINTS_RESOLUTION
    if text == "auto":
        rows, columns = given.shape
        factor = -(-max(rows, columns) // LARGEST)
        if factor > 1:
            log.info("the picture is %d x %d: the field has every %d-th of its rows and columns",
                     columns, rows, factor)
        return max(1, rows // factor), max(1, columns // factor)
    if match := re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text):
        rows, columns = match.groups()
        return int(rows) if columns is None else (int(rows), int(columns))
    raise UserError(f"--resolution {text}: give a number such as 64, or ROWSxCOLUMNS as 48x96")
