"""Values at scattered points: what is measured, where, and about which rectangle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sparsefield.data.missing import refuse_lone_extreme
from sparsefield.errors import UserError
from sparsefield.use import globe

log = logging.getLogger("sparsefield")

LARGEST = 512  # rows or columns of a field that is asked for
MOST_POINTS = 100_000
FARTHEST = 1e15  # coordinates beyond it are no places


class Table(NamedTuple):
    """The columns of a table that were chosen, NaN where a value is missing.

    Attributes:
        coords: (M, 2). values: (M, C). names: of the values.
        noise: (M,) sd of the noise in them, or None. units: of the values, where the file tells.
        on_globe: whether the names say that places are longitude and latitude.
    """

    coords: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    noise: np.ndarray | None = None
    units: str | None = None
    on_globe: bool = False


@dataclass(frozen=True)
class Measurements:
    """Scattered values, and the rectangle that they are about.

    Attributes:
        coords: (M, 2) float64, x and y. values: (M, C) float64.
        extent: x0, x1, y0, y1 of the rectangle.
        shape: (H, W) of the grid that they come from, None for scattered points.
        names: of the C channels. downward: whether y grows downward, as in pictures.
        value_range: of pictures, what is black and white; None where the file does not tell.
        noise: (M,) sd of the noise in the values, None where the file does not tell.
        units: of the values, likewise.
    """

    coords: np.ndarray
    values: np.ndarray
    extent: tuple[float, float, float, float]
    shape: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    downward: bool = False
    value_range: tuple[float, float] | None = None
    noise: np.ndarray | None = None
    units: str | None = None

    @property
    def is_picture(self) -> bool:
        return self.shape is not None

    @property
    def noise_sd(self) -> np.ndarray | float:
        """The argument of that name of `Reconstructor.reconstruct`."""
        return 0.0 if self.noise is None else self.noise


def clean(
    source: str,
    coords: np.ndarray,
    values: np.ndarray,
    names: tuple[str, ...],
    extent: Sequence[float] | None,
    missing: Sequence[float] | None,
    noise: np.ndarray | None = None,
    lonlat: bool = False,
) -> Measurements:
    """Measurements without those that have no place or value, or lie outside the extent.

    Args:
        coords: (M, 2). values: (M, C). names: of the C channels, or none.
        noise: (M,) sd of the noise in the values. lonlat: whether places are on a globe; the extent
            is then the narrowest, across the 180th meridian if need be.
        missing: numbers that mean: not measured. None refuses what looks like one, a list other
            codes than those in it, [] nothing.
    Raises:
        UserError: nothing is left, too much is, or the extent is none.
    """
    coords, values = without(coords, missing), without(values, missing)
    noise = None if noise is None else without(noise, missing)
    if missing != []:
        _refuse_codes(source, coords, values, names, codes_only=bool(missing))
    whole = np.isfinite(np.column_stack([coords, values, *([] if noise is None else [noise])]))
    kept = whole.all(axis=1)
    if not kept.all():
        log.info("%d of %d measurements have a missing or infinite number: left out",
                 (~kept).sum(), len(kept))
        _tell_of_gaps(values[~kept], names)
    coords, values = coords[kept], values[kept]
    noise = None if noise is None else noise[kept]
    if len(coords) == 0:
        raise UserError(f"{source}: holds no measurement")
    if noise is not None and not (noise >= 0).all():
        raise UserError(f"{source}: the noise's sd is {noise.min():g} in places; give 0 or more")
    if extent is not None:
        _require_extent(extent, lonlat)
    if lonlat:
        globe.require_degrees(source, coords)
        coords[:, 0] = globe.around(coords[:, 0], extent)
    if extent is None:
        extent = bounds(source, coords, lonlat)
    found = Measurements(coords, values, tuple(extent), names=names, noise=noise)
    return _few_enough(source, _within_extent(source, found))


def _tell_of_gaps(left_out: np.ndarray, names: tuple[str, ...]) -> None:
    """Warn where a column lacks what others have (M, C), which is lost with it."""
    lacks = np.isnan(left_out).sum(axis=0)
    if len(names) > 1 and lacks.min() < len(left_out):
        log.warning("WARNING: they are left out of every column, though %s; --value takes one "
                    "column, with all that was measured of it",
                    ", ".join(f"{name} lacks {lack}" for name, lack in zip(names, lacks)))


def _refuse_codes(
    source: str, coords: np.ndarray, values: np.ndarray, names: tuple[str, ...], codes_only: bool
) -> None:
    """Raises UserError for numbers that look as if they meant: not measured."""
    for c in range(values.shape[1]):
        name = f"{source}: {names[c] if names else 'values'}"
        refuse_lone_extreme(name, values[:, c], codes_only=codes_only)
    for axis, column in zip("xy", coords.T):
        refuse_lone_extreme(f"{source}: {axis}", column, codes_only=True)


def _within_extent(source: str, given: Measurements) -> Measurements:
    """Those that lie in the extent. Raises UserError where none does."""
    x0, x1, y0, y1 = given.extent
    inside = ((given.coords >= (x0, y0)) & (given.coords <= (x1, y1))).all(axis=1)
    if not inside.any():
        raise UserError(f"{source}: all points lie outside --extent {x0:g} {x1:g} {y0:g} {y1:g}")
    if not inside.all():
        log.info("%d of %d points lie outside the extent: left out", (~inside).sum(), len(inside))
    noise = None if given.noise is None else given.noise[inside]
    return replace(given, coords=given.coords[inside], values=given.values[inside], noise=noise)


def _few_enough(source: str, given: Measurements) -> Measurements:
    """As they are. Raises UserError for more places than can be used."""
    if len(given.coords) > MOST_POINTS:
        distinct, _ = average_duplicates(given, np.zeros(len(given.coords)))
        if len(distinct.coords) > MOST_POINTS:
            raise UserError(f"{source}: {len(distinct.coords):,} points, at most {MOST_POINTS:,} "
                            "can be used: average neighbours, or cut the region with --extent")
    return given


def _require_extent(extent: Sequence[float], lonlat: bool) -> None:
    x0, x1, y0, y1 = extent
    words = f"--extent {x0:g} {x1:g} {y0:g} {y1:g}"
    if not (np.isfinite((x1 - x0, y1 - y0)).all() and x0 < x1 and y0 < y1):
        raise UserError(f"{words}: give x0 x1 y0 y1 with x0 < x1 and y0 < y1")
    if lonlat:
        globe.require_degrees(words, np.array([[x0, y0], [x1, y1]]), are_points=False)


def without(numbers: np.ndarray, missing: Sequence[float] | None) -> np.ndarray:
    """NaN in place of the numbers that mean: not measured (equal as float32 is equal enough)."""
    if not missing:
        return numbers
    with np.errstate(over="ignore"):
        codes = np.asarray(missing, np.float64)
        is_code = np.isin(numbers, codes) | np.isin(numbers, codes.astype(np.float32))
    return np.where(is_code, np.nan, numbers)


def bounds(
    source: str, coords: np.ndarray, lonlat: bool = False
) -> tuple[float, float, float, float]:
    """The smallest rectangle around points; of no width or height, as wide as the other side.

    With lonlat it ends at the poles.
    """
    low, high = coords.min(axis=0), coords.max(axis=0)
    if np.abs(coords).max() > FARTHEST:
        raise UserError(f"{source}: coordinates as large as {np.abs(coords).max():.3g}; which are "
                        "these? leave those points out, or give their --missing")
    sides = np.where(high > low, high - low, 0.0)
    grow = np.where(sides > 0, 0.0, max(sides.max(), 0.0) or 1.0) / 2
    low, high = low - grow, high + grow
    if lonlat:
        low[1], high[1] = max(low[1], -90.0), min(high[1], 90.0)
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def average_duplicates(
    given: Measurements, noise: np.ndarray
) -> tuple[Measurements, np.ndarray]:
    """Points closer than a millionth of each side become one, with the mean value.

    Args:
        noise: (M,) sd of the noise of every value.
    Returns:
        the distinct points, and the sd of the noise of their means.
    """
    x0, x1, y0, y1 = given.extent
    cell = np.array((x1 - x0, y1 - y0)) * 1e-6
    keys = np.round((given.coords - (x0, y0)) / cell).astype(np.int64)
    _, first, which, count = np.unique(
        keys, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(keys):
        return given, noise
    which = which.reshape(-1)
    values = np.stack([np.bincount(which, column) / count for column in given.values.T], axis=1)
    log.info("%d of %d measurements share a place with another: averaged to %d points",
             int(count[count > 1].sum()), len(keys), len(first))
    noise = np.sqrt(np.bincount(which, noise**2)) / count
    return replace(given, coords=given.coords[first], values=values), noise


def noise_of(noise_sd: float | Sequence[float], count: int) -> np.ndarray:
    """(count,) sd of the noise of every value. Raises UserError for what is no such number."""
    noise = real_array("noise_sd", noise_sd)
    if noise.shape not in ((), (1,), (count,)):
        raise UserError(f"noise_sd {noise.shape}: give one number, or one for each of the {count} "
                        "points")
    if not (np.isfinite(noise).all() and (noise >= 0).all()):
        raise UserError(f"noise_sd={noise.min():g} ... {noise.max():g}: give 0 or more, in the "
                        "units of the values")
    return np.broadcast_to(noise, count).copy()


def real_array(name: str, array: np.ndarray) -> np.ndarray:
    """An array as float64. Raises UserError for what is no array of real numbers."""
    try:
        found = np.asarray(array)
        if found.dtype.kind not in "buifO":
            raise TypeError(f"{found.dtype}")
        return found.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} must be an array of real numbers ({reason})") from None
