"""What is asked for: the places of a field, and how they become a model's coordinates."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import scipy
import torch

from sparsefield.data.netcdf import grid_axes, is_longitude
from sparsefield.errors import UserError
from sparsefield.place import Domain
from sparsefield.use import globe
from sparsefield.use.covariates import Known, of_grid, of_pixels, tell_of_range
from sparsefield.use.points import Extent, Measurements, bounds, checked_extent
from sparsefield.use.times import Times

if TYPE_CHECKING:
    from xarray import DataArray

log = logging.getLogger("sparsefield")

LARGEST = 1024  # rows or columns of a field that is asked for
MOST_CELLS = 4_000_000  # of all frames
UNLIKE = 10  # sides that differ by more are of different kinds, such as distance and depth
ARRAY = "the DataArray"  # in messages
RESOLUTION = r"\d{1,6}([xX]\d{1,6})?"
POINTS_RESOLUTION = 64  # cells of the longer side, by default


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
        cls, given: Measurements, asked: Extent, aspect: str = "auto", lonlat: bool = False
    ) -> Self:
        """That of measurements; aspect, lonlat: see `predict.Settings`.

        Args:
            asked: the rectangle that is asked for, which gives the scale of a single point.
        """
        if given.is_picture and aspect == "auto":
            aspect = "equal"  # pixels are square
        rectangle = given.region or _stands_for(given.coords, lonlat, asked)
        width, height = sides(rectangle)
        scaled_by = (globe.scales(rectangle) if lonlat else
                     (width, height) if _is_free(aspect, width, height) else
                     (max(width, height),) * 2)
        return cls(rectangle, scaled_by, lonlat,
                   Domain(width / scaled_by[0], height / scaled_by[1]))

    def around(self, coords: np.ndarray, asked: Extent) -> Self:
        """The same with coordinates in 0 ... 1 of points (M, 2) and of all that is asked for."""
        (x0, y0), (x1, y1) = coords.min(axis=0).tolist(), coords.max(axis=0).tolist()
        rectangle = min(x0, asked[0]), max(x1, asked[1]), min(y0, asked[2]), max(y1, asked[3])
        x, y = sides(rectangle)
        scaled_by = (x, y) if self.aspect == "free" else (max(x, y),) * 2
        domain = Domain(*(side * old / new for side, old, new in zip(
            self.domain, self.scaled_by, scaled_by, strict=True)))
        return type(self)(rectangle, scaled_by, self.lonlat, domain)

    @property
    def aspect(self) -> str:
        return "free" if self.scaled_by[0] != self.scaled_by[1] else "equal"

    @property
    def unit_length(self) -> float:
        """How long one unit of the coordinates is along x: in units of x, on a globe in km."""
        return np.radians(self.scaled_by[1]) * globe.EARTH if self.lonlat else self.scaled_by[0]

    @property
    def unit_of_length(self) -> str:
        return "km" if self.lonlat else "units of x"

    def inside(self, places: np.ndarray) -> np.ndarray:
        """Places (P, 2) to float64 (P, 2), or (P, 3) on a globe."""
        if self.lonlat:
            return globe.to_space(places, self.rectangle).double().numpy()
        return (np.asarray(places) - self.rectangle[::2]) / self.scaled_by

    def beyond(self, reach: float, places: np.ndarray, coords: np.ndarray) -> np.ndarray:
        """(P,) bool: places (P, 2) farther than `reach` from the nearest of coords (M, 2), in units
        of x, or as large a part of the span of y; on a globe in km."""
        if self.lonlat:
            places, coords = globe.on_sphere(places), globe.on_sphere(coords)
            reach = 2 * np.sin(min(reach / globe.EARTH, np.pi) / 2)           # of the chord
        else:
            places, coords = self.inside(places), self.inside(coords)
            reach = reach / self.scaled_by[0]
        return scipy.spatial.cKDTree(coords).query(places)[0] > reach


def _stands_for(coords: np.ndarray, lonlat: bool, asked: Extent) -> Extent:
    """The rectangle from which points (M, 2) may have been drawn: see `Domain.of_points`."""
    if lonlat:
        coords = np.column_stack([globe.around(coords[:, 0]), coords[:, 1]])
    low, high = coords.min(axis=0), coords.max(axis=0)
    if (low == high).all():
        grown = np.full(2, max(sides(asked)))
    else:
        grown = np.array(Domain.of_points(torch.from_numpy(np.unique(coords, axis=0))))
    if lonlat:
        grown = np.minimum(grown, (globe.WIDEST, globe.WIDEST / 2))
    (x0, y0), (x1, y1) = ((low + high - grown) / 2).tolist(), ((low + high + grown) / 2).tolist()
    return (x0, x1, max(y0, -90.0), min(y1, 90.0)) if lonlat else (x0, x1, y0, y1)


def _is_free(aspect: str, width: float, height: float) -> bool:
    """Whether each axis has a scale of its own. Raises UserError for another aspect."""
    if aspect not in ("auto", "equal", "free"):
        raise UserError(f"aspect {aspect!r}: give equal, free or auto")
    shorter, longer = sorted((width, height))
    if aspect == "auto" and longer > UNLIKE * shorter > 0:
        log.info("x spans %.6g and y %.6g: each axis has a scale of its own (--aspect equal for "
                 "one scale)", width, height)
        return True
    return aspect == "free" and shorter > 0


def sides(extent: Sequence[float]) -> tuple[float, float]:
    """Width and height."""
    x0, x1, y0, y1 = extent
    return x1 - x0, y1 - y0


# --- grids ----------------------------------------------------------------------------------------

GLOBAL = ({"standard_name": "longitude", "units": "degrees_east"},
          {"standard_name": "latitude", "units": "degrees_north"})


@dataclass(frozen=True)
class Grid:
    """The axes x (W,) and y (H,) of a field, growing or falling: the middles of its cells; names
    and attributes: of x and y in files."""

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, str] = ("x", "y")
    attributes: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})

    @classmethod
    def over(cls, extent: Sequence[float], shape: tuple[int, int], lonlat: bool = False) -> Self:
        """That of (rows, columns) cells over an extent."""
        x0, x1, y0, y1 = extent
        x = x0 + (np.arange(shape[1]) + 0.5) / shape[1] * (x1 - x0)
        y = y0 + (np.arange(shape[0]) + 0.5) / shape[0] * (y1 - y0)
        return cls(x, y, ("lon", "lat"), GLOBAL) if lonlat else cls(x, y)

    @classmethod
    def like(cls, path: str, axes: tuple[DataArray, DataArray], lonlat: bool = False) -> Self:
        """That of a file with these axes; lonlat: they are degrees, though they may not say so.
        Raises UserError where it is too large."""
        x, y = axes
        if max(x.size, y.size) > LARGEST:
            raise UserError(f"--grid {path}: {y.size} rows and {x.size} columns, at most {LARGEST} "
                            "can be asked for; give --resolution and --extent")
        kept = tuple({key: str(axis.attrs[key]) for key in ("standard_name", "units", "long_name")
                      if key in axis.attrs} for axis in axes)
        if lonlat or is_longitude(x):
            kept = tuple(own | known for own, known in zip(kept, GLOBAL, strict=True))
        return cls(x.values, y.values, (str(x.name), str(y.name)), kept)

    @property
    def places(self) -> np.ndarray:
        """(H, W, 2): the middles of the cells."""
        return np.stack(np.meshgrid(self.x, self.y), axis=-1)

    @property
    def extent(self) -> Extent:
        """x0 x1 y0 y1 of the outer sides of its cells."""
        return (*_edges(self.x), *_edges(self.y))

    @property
    def is_global(self) -> bool:
        """Whether its axes are degrees of longitude and latitude."""
        return self.attributes[0].get("units") == GLOBAL[0]["units"]


def _edges(axis: np.ndarray) -> tuple[float, float]:
    axis = np.sort(axis)
    steps = np.diff(axis) if len(axis) > 1 else np.ones(1)
    return float(axis[0] - steps[0] / 2), float(axis[-1] + steps[-1] / 2)


def grid_shape(
    resolution: int | Sequence[int], extent: Sequence[float], scaled_by: Sequence[float],
    most: int = LARGEST,
) -> tuple[int, int]:
    """(rows, columns) of a grid; scaled_by: see `Frame`.

    Args:
        resolution: (rows, columns) as they are, or how many cells the longer side has; these are
            then square in the units that the model sees.
    Raises:
        UserError: no whole numbers, or a side is not in 1 ... most.
    """
    wanted = np.ravel(resolution)
    if wanted.dtype.kind not in "iu" or len(wanted) not in (1, 2):
        raise UserError(f"resolution {resolution!r}: give a whole number such as 64, or rows and "
                        "columns as (48, 96)")
    if wanted.min() < 1 or wanted.max() > most:
        raise UserError(f"resolution {'x'.join(map(str, wanted))}: rows and columns are 1 to "
                        f"{most}")
    if len(wanted) == 2:
        return tuple(wanted.tolist())
    width, height = np.divide(sides(extent), scaled_by)
    cells = wanted[0] / max(width, height)
    return max(1, round(cells * height)), max(1, round(cells * width))


# --- what is asked for ----------------------------------------------------------------------------


class Labelled(NamedTuple):
    """What is to be reconstructed.

    Attributes:
        given: the measurements. lonlat: whether x and y are longitude and latitude.
        settings: of `predict.Settings`, which are known by now.
        names: of x and y, None where they have none. like, grid, times: the array whose gaps are
            filled, and its axes; None of points.
    """

    given: Measurements
    lonlat: bool
    settings: Mapping[str, Any] = {}
    names: tuple[str, str] | None = None
    like: DataArray | None = None
    grid: Grid | None = None
    times: Times | None = None

    @property
    def is_full(self) -> bool:
        """Whether an array has no gaps."""
        return self.like is not None and len(self.given.coords) == self.like.size


@dataclass(frozen=True)
class Asked:
    """The places that are asked for.

    Attributes:
        places: (H, W, 2) of a grid or (N, 2), in the units of the measurements.
        extent: a rectangle that holds them. frame: of the measurements.
        grid: the axes of the places, None where they are on no grid.
        is_far: (H, W), cells that stay empty; None: there are none.
        known: (H, W, p) or (N, p), covariates there, or (T, H, W, p); None without any.
        times: T of the frames of a grid, or N of other places; None without time.
    """

    places: np.ndarray
    extent: Extent
    frame: Frame
    grid: Grid | None = None
    is_far: np.ndarray | None = None
    known: np.ndarray | None = None
    times: Times | None = None

    def __post_init__(self) -> None:
        """Raises UserError for more frames than can be answered."""
        if len(self.shape) == 3 and math.prod(self.shape) > MOST_CELLS:
            raise UserError("{} times of {} x {} cells: at most {:,} in all can be asked for; give "
                            "fewer times or a smaller resolution".format(*self.shape, MOST_CELLS))

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W), (H, W) or (N,)."""
        own = self.places.shape[:-1]
        return own if self.times is None or self.grid is None else (len(self.times.values), *own)

    def queries(self, given: Measurements) -> np.ndarray:
        """All places in the coordinates of `Measured.places`, one after the other: (N, D)."""
        columns = [self.frame.inside(self.places.reshape(-1, 2))]
        frames = math.prod(self.shape) // len(columns[0])
        columns[0] = np.tile(columns[0], (frames, 1))
        if given.known is not None:
            assert self.known is not None  # see predict._knowing, and the check of the command
            there = np.broadcast_to(self.known, (*self.shape, self.known.shape[-1]))
            columns.append(given.known.standard(there.reshape(len(columns[0]), -1)))
        if given.times is not None:
            assert self.times is not None
            when = given.times.in_steps(self.times.values)
            columns.append(np.repeat(when, len(columns[0]) // len(when)))
        return np.column_stack(columns)


def what_is_asked(
    given: Measurements, *, resolution: str = "auto", grid: str | None = None,
    extent: Sequence[float] | None = None, aspect: str = "auto", lonlat: bool = False,
    reach: float | None = None, times: Sequence[str] = (), cells: Labelled | None = None,
) -> tuple[Measurements, Asked]:
    """What settings of the command ask for, and the measurements turned to lie around it.

    Args:
        extent: with lonlat x1 may be below x0, across the 180th meridian. cells: those of
            a grid that the measurements come from; it and its times are the default.
    Raises:
        UserError: what does not go together, or cannot be had.
    """
    is_free = extent is None and resolution == "auto"
    if given.is_picture and (extent, grid, reach) != (None, None, None):
        raise UserError("--extent, --grid and --reach are for scattered points: a picture has its "
                        "pixels")
    if grid is not None and not (is_free or given.known):
        raise UserError(f"--grid {grid}: it sets resolution and extent; leave those out")
    if reach is not None and not reach > 0:
        raise UserError(f"--reach {reach:g}: give a distance above 0")
    like = cells.grid if cells is not None and is_free else None
    if grid is not None and (lonlat or is_free):
        axes = grid_axes(Path(grid))
        if lonlat:
            globe.refuse_rotated(f"--grid {grid}", ", ".join(
                f"{axis.attrs.get('standard_name', axis.name)}" for axis in axes))
        like = Grid.like(grid, axes, lonlat) if is_free else None
    if like is not None or extent is not None:
        if like is not None:
            extent = extent_of(like, f"--grid {grid}" if grid else "the grid", lonlat)
        else:
            x0, x1, y0, y1 = extent
            x1 += globe.WIDEST * (lonlat and x1 < x0)  # across the 180th meridian
            extent = checked_extent("--extent", (x0, x1, y0, y1), lonlat)
        given = given.turned((extent[0] + extent[1]) / 2) if lonlat else given
        _tell_of_outside(given.coords, extent)
    extent = extent or given.region or bounds("measurements", given.coords, lonlat)
    frame = Frame.of(given, extent, aspect, lonlat)
    if like is None:
        shape = grid_shape(parse_resolution(resolution, given), extent, frame.scaled_by)
        like = Grid.over(extent, shape, lonlat)
    asked = Asked(like.places, extent, frame, like)
    if given.known is not None and given.known.pixels is not None:
        asked = with_known(given.known, asked, of_pixels(given.known, asked.shape))
    elif given.known is not None and grid is not None:
        values, units = of_grid(given.known, grid, like.places, lonlat)
        asked = with_known(given.known, asked, values)
        given = replace(given, known=replace(given.known, units=given.known.units_or(units)))
    if given.times is not None:
        whole = given.times if cells is None else cells.times
        asked = replace(asked, times=whole.asked(times))
        given.times.tell_of_outside(asked.times)
    if reach is None:
        return given, asked
    is_far = frame.beyond(reach, like.places.reshape(-1, 2), given.coords)
    is_far = is_far.reshape(like.places.shape[:2])
    if is_far.all():
        raise UserError(f"--reach {reach:g}: no cell is as near to a measurement; give more "
                        f"({'km' if lonlat else 'units of x'}), or a finer grid")
    return given, replace(asked, is_far=is_far if asked.is_far is None else is_far | asked.is_far)


def grid_for(
    found: Labelled, resolution: int | Sequence[int] | None, extent: Sequence[float] | None,
    aspect: str, at_times: Any = None,
) -> Asked:
    """What `Reconstructor.reconstruct` asks for: the array's own grid, or one over an extent."""
    given, lonlat, grid = found.given, found.lonlat, found.grid
    if grid is not None:
        if (extent, resolution) != (None, None):
            raise UserError("extent and resolution: a DataArray has its own; leave them out")
        extent = extent_of(grid, ARRAY, lonlat)
    elif extent is not None:
        extent = checked_extent("extent", extent, lonlat)
    elif lonlat or found.names is not None:
        extent = bounds("coords", given.coords, lonlat)
    else:
        extent = 0.0, 1.0, 0.0, 1.0
        outside = ((given.coords < 0) | (given.coords > 1)).any(axis=1).sum()
        if outside:
            raise UserError(f"{outside} points lie outside the unit square: give extent=(x0, x1, "
                            "y0, y1)")
    frame = Frame.of(given, extent, aspect, lonlat)
    if grid is None:
        wanted = POINTS_RESOLUTION if resolution is None else resolution
        shape = grid_shape(wanted, extent, frame.scaled_by)
        grid = Grid.over(extent, shape, lonlat)
        grid = replace(grid, names=found.names or grid.names)
    elif found.times is not None and at_times is not None:
        raise UserError("at_times: a DataArray has its own; leave them out")
    times = moments_of(given, at_times) if found.times is None else found.times
    return Asked(grid.places, extent, frame, grid, times=times)


def moments_of(given: Measurements, at_times: Any) -> Times | None:
    """The times that are asked for: by default those of the measurements."""
    if given.times is None:
        if at_times is not None:
            raise UserError("times and at_times go together: give times, too")
        return None
    found = given.times.distinct() if at_times is None else given.times.read("at_times", at_times)
    given.times.tell_of_outside(found)
    return found


def with_known(known: Known, asked: Asked, values: np.ndarray) -> Asked:
    """What is asked for with the covariates (..., p) there. Places that lack one stay empty, which
    is said."""
    lacks = ~np.isfinite(values).all(axis=-1)
    if lacks.all():
        raise UserError(f"{', '.join(known.names)}: no place that is asked for has all of them")
    if lacks.any():
        log.warning("WARNING: %d of %d places lack a covariate: left empty", lacks.sum(),
                    lacks.size)
        values = np.where(lacks[..., None], known.values.mean(axis=0), values)
    tell_of_range(known, values[~lacks])
    return replace(asked, known=values, is_far=lacks if lacks.any() else asked.is_far)


def extent_of(grid: Grid, source: str, lonlat: bool) -> Extent:
    """That of a grid; on a globe of the middles of its cells, which lie between the poles."""
    if not lonlat:
        return grid.extent
    places = grid.places.reshape(-1, 2)
    globe.require_degrees(source, places)
    return bounds(source, places, lonlat)


def _tell_of_outside(coords: np.ndarray, extent: Extent) -> None:
    """Log how many measurements (M, 2) lie outside what is asked for, with a warning if all do."""
    is_outside = ((coords < extent[::2]) | (coords > extent[1::2])).any(axis=1)
    if is_outside.any():
        level, label = (logging.WARNING, "WARNING: ") if is_outside.all() else (logging.INFO, "")
        log.log(level, "%s%d of %d measurements lie outside the field (x %.6g to %.6g, y %.6g to "
                "%.6g); they are used, too", label, is_outside.sum(), len(coords), *extent)


def tell_of_far(coords: np.ndarray, places: np.ndarray, lonlat: bool) -> None:
    """Log where all places (N, 2) are farther from all measurements (M, 2) than these spread."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    if lonlat:
        places = np.column_stack([globe.around(places[:, 0], (low[0] + high[0]) / 2), places[:, 1]])
    off = np.maximum(low - places, places - high).max(axis=1).min()
    if len(coords) > 1 and off > max(high - low):
        log.warning("WARNING: all places that are asked for are far from the measurements, which "
                    "have x from %.6g to %.6g and y from %.6g to %.6g: x and y exchanged, or other "
                    "units?", low[0], high[0], low[1], high[1])


def parse_resolution(text: str, given: Measurements) -> int | tuple[int, ...]:
    """The argument `resolution` of `Reconstructor.reconstruct`."""
    if text == "auto" and given.shape is None:
        return POINTS_RESOLUTION
    if text == "auto":
        factor = -(-max(given.shape) // LARGEST)
        return tuple(max(1, side // factor) for side in given.shape)
    if not re.fullmatch(RESOLUTION, text):
        raise UserError(f"--resolution {text}: give a number such as 64, or ROWSxCOLUMNS as 48x96")
    return tuple(map(int, text.lower().split("x")))
