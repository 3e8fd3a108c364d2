"""Values at scattered points: what was measured, where, and which rectangle is asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy

from sparsefield.data.files import refuse_lone_extreme
from sparsefield.errors import UserError
from sparsefield.use import globe

log = logging.getLogger("sparsefield")

LARGEST = 512  # rows or columns of a field that is asked for
MOST_POINTS = 100_000
FARTHEST = 1e15  # coordinates beyond it are mistakes
SAME_PLACE = 1e-6  # in units of the measurements' longer side
NEAR = 0.01  # of the spacing: two points that are nearer to each other are twins
DISAGREE = 3.0  # times the difference of ordinary neighbours: twins that differ by more are noise

COLOURS = ({"red", "r"}, {"green", "g"}, {"blue", "b"})

Extent = tuple[float, float, float, float]  # x0, x1, y0, y1


class Table(NamedTuple):
    """The columns of a table that were chosen, NaN where a value is missing.

    Attributes:
        coords: (M, 2). values: (M, C). names: of the values.
        noise: (M,) sd of the noise in them, or None. units: of the values, where the file has them.
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
    """Scattered values, and the rectangle that is asked for.

    Attributes:
        coords: (M, 2) float64, x and y. values: (M, C) float64.
        extent: x0, x1, y0, y1 of the rectangle.
        shape: (H, W) of the picture that they come from, None for scattered points.
        names: of the C channels. downward: whether y grows downward, as in pictures.
        value_range: of pictures, what is black and white; None where the file has none.
        noise: (M,) sd of the noise in the values, None where the file has none.
        units: of the values, likewise.
    """

    coords: np.ndarray
    values: np.ndarray
    extent: Extent
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
    def region(self) -> Extent | None:
        """The rectangle that they stand for, where it is known: that of a whole picture."""
        return self.extent if self.is_picture else None

    @property
    def noise_sd(self) -> np.ndarray | float:
        """The argument of that name of `Reconstructor.reconstruct`."""
        return 0.0 if self.noise is None else self.noise


def words_of(name: str) -> list[str]:
    """Words of a column's name without numbers: "coords.x1", "siteLat (deg)" -> coords, x; site,
    lat. What stands in brackets is a unit."""
    text = re.sub(r"[(\[{].*?[)\]}]", " ", str(name))
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()
    return re.findall(r"[^\W\d_]+", text)


def are_colours(names: Sequence[str]) -> bool:
    """Whether three names are those of red, green and blue."""
    return len(names) == 3 and all(
        len(words_of(n)) == 1 and words_of(n)[0] in known
        for n, known in zip(names, COLOURS, strict=True))


def clean(
    source: str, coords: np.ndarray, values: np.ndarray, names: tuple[str, ...],
    extent: Sequence[float] | None, missing: Sequence[float] | None,
    noise: np.ndarray | None = None, lonlat: bool = False, units: str | None = None,
) -> Measurements:
    """Measurements without those that have no place or value.

    Args:
        coords: (M, 2). values: (M, C). names: of the C channels, or none.
        extent: the rectangle that is asked for; None: the smallest around the measurements, with
            lonlat across the 180th meridian if that is smaller.
        missing: numbers that mean: not measured. None refuses what looks like one, a list other
            codes than those in it, [] nothing.
        noise: (M,) sd of the noise in the values. lonlat: whether places are on a globe.
    Raises:
        UserError: nothing is left, there are too many, or the extent is none.
    """
    coords, values = without(coords, missing), without(values, missing)
    noise = None if noise is None else without(noise, missing)
    if missing != []:
        for name, column in zip(names or ["values"] * values.shape[1], values.T, strict=True):
            refuse_lone_extreme(f"{source}: {name}", column, codes_only=bool(missing))
        for axis, column in zip("xy", coords.T, strict=True):
            refuse_lone_extreme(f"{source}: {axis}", column, codes_only=True)
    noises = [] if noise is None else [noise]
    kept = np.isfinite(np.column_stack([coords, values, *noises])).all(axis=1)
    if not kept.all():
        log.info("%d of %d measurements have a missing or infinite number: left out",
                 (~kept).sum(), len(kept))
        lacks = np.isnan(values[~kept]).sum(axis=0)
        if len(names) > 1 and lacks.min() < (~kept).sum():
            log.warning("WARNING: they are left out of every column, though %s; --value takes one "
                        "column, with all that was measured of it",
                        ", ".join(f"{name} lacks {lack}"
                                  for name, lack in zip(names, lacks, strict=True)))
    coords, values = coords[kept], values[kept]
    noise = None if noise is None else noise[kept]
    if len(coords) == 0:
        raise UserError(f"{source}: holds no measurement")
    if len(np.unique(coords, axis=0)) > MOST_POINTS:
        raise UserError(f"{source}: {len(coords):,} points, at most {MOST_POINTS:,} can be used: "
                        "average neighbours, or leave rows out")
    if noise is not None and not (noise >= 0).all():
        raise UserError(f"{source}: the noise's sd is {noise.min():g} in places; give 0 or more")
    if extent is not None:
        require_extent(extent, lonlat)
    if lonlat:
        globe.require_degrees(source, coords)
        coords[:, 0] = globe.around(coords[:, 0], middle_of(extent))
    if extent is None:
        extent = bounds(source, coords, lonlat)
    else:
        tell_of_outside(coords, extent, "the extent")
    return Measurements(coords, values, tuple(extent), names=names, noise=noise, units=units)


def middle_of(extent: Sequence[float] | None) -> float | None:
    """Middle x of a rectangle."""
    return None if extent is None else (extent[0] + extent[1]) / 2


def tell_of_outside(coords: np.ndarray, extent: Sequence[float], what: str) -> None:
    """Log how many measurements (M, 2) lie outside a rectangle that is asked for; warn where it
    lies beside all of them."""
    x0, x1, y0, y1 = extent
    outside = ~((coords >= (x0, y0)) & (coords <= (x1, y1))).all(axis=1)
    low, high = coords.min(axis=0), coords.max(axis=0)
    if (high < (x0, y0)).any() or (low > (x1, y1)).any():
        log.warning("WARNING: all measurements (x %.6g to %.6g, y %.6g to %.6g) lie beside %s "
                    "(x %.6g to %.6g, y %.6g to %.6g)", low[0], high[0], low[1], high[1], what,
                    x0, x1, y0, y1)
    elif outside.any():
        log.info("%d of %d measurements lie outside %s; they are used, too", outside.sum(),
                 len(coords), what)


def require_extent(extent: Sequence[float], lonlat: bool, name: str = "--extent") -> None:
    """Raises UserError for four numbers that are no rectangle."""
    if real_array("extent", extent).shape != (4,):
        raise UserError(f"extent {extent}: give x0, x1, y0, y1")
    x0, x1, y0, y1 = extent
    words = f"{name} {x0:g} {x1:g} {y0:g} {y1:g}"
    if not (np.isfinite((x1 - x0, y1 - y0)).all() and x0 < x1 and y0 < y1):
        raise UserError(f"{words}: give x0 < x1 and y0 < y1, finite")
    if lonlat:
        globe.require_degrees(words, np.array([[x0, y0], [x1, y1]]), are_points=False)
        if x1 - x0 > globe.WIDEST:
            raise UserError(f"{words}: longitudes span 360 degrees at most")


def without(numbers: np.ndarray, missing: Sequence[float] | None) -> np.ndarray:
    """NaN in place of the numbers that mean: not measured (equal as float32 is equal enough)."""
    if not missing:
        return numbers
    with np.errstate(over="ignore"):
        codes = np.asarray(missing, np.float64)
        is_code = np.isin(numbers, codes) | np.isin(numbers, codes.astype(np.float32))
    return np.where(is_code, np.nan, numbers)


def bounds(source: str, coords: np.ndarray, lonlat: bool = False) -> Extent:
    """The smallest rectangle around points (M, 2); where it has no width or no height, as wide as
    the other side. With lonlat it ends at the poles."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    if np.abs(coords).max() > FARTHEST:
        raise UserError(f"{source}: coordinates as large as {np.abs(coords).max():.3g}; which are "
                        "these? leave those points out, or give their --missing")
    sides = high - low
    grow = np.where(sides > 0, 0.0, sides.max() or 1.0) / 2
    low, high = low - grow, high + grow
    if lonlat:
        low[1], high[1] = max(low[1], -90.0), min(high[1], 90.0)
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


# --- several measurements of one place ------------------------------------------------------------


def merge_repeats(
    places: np.ndarray, values: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measurements of one place become one: their mean, weighted by 1 / sd^2; exact ones win.

    Args:
        places: (M, D) in units of the longer side. values: (M, C). noise: (M, C), sd of the noise.
    Returns:
        places (P, D), values and noise (P, C).
    """
    keys = np.round(places / SAME_PLACE).astype(np.int64)
    _, first, which, count = np.unique(keys, axis=0, return_index=True, return_inverse=True,
                                       return_counts=True)
    if len(first) == len(places):
        return places, values, noise
    log.info("%d of %d measurements share a place with another: averaged to %d points",
             count[count > 1].sum(), len(places), len(first))
    channels = [_mean_of_each(which.reshape(-1), *pair)
                for pair in zip(values.T, noise.T, strict=True)]
    means, sds, scatters = (np.stack(parts, axis=1) for parts in zip(*channels, strict=True))
    differ = scatters > SAME_PLACE * np.ptp(values, axis=0)
    if differ.any():
        worst = np.sqrt((scatters**2).sum(axis=0) / np.maximum(differ.sum(axis=0), 1))
        log.warning("WARNING: at %d places repeated values differ (by an sd of %s) and no noise is "
                    "given: their means are taken as exact; --noise_sd auto finds the noise",
                    differ.any(axis=1).sum(), ", ".join(f"{sd:.3g}" for sd in worst))
    return places[first], means, sds


def _mean_of_each(
    which: np.ndarray, values: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, sd of its noise, and scatter of exact values, of each group; all arguments (M,)."""
    is_exact = noise == 0
    has_exact = np.bincount(which, is_exact) > 0
    weights = np.where(has_exact[which], is_exact, np.maximum(noise, 1e-100) ** -2.0)
    total = np.bincount(which, weights)
    mean = np.bincount(which, weights * values) / total
    squares = np.bincount(which, is_exact * (values - mean[which]) ** 2)
    scatter = np.sqrt(squares / np.maximum(np.bincount(which, is_exact) - 1, 1))
    return mean, np.where(has_exact, 0.0, total**-0.5), scatter


def merge_twins(
    places: np.ndarray, values: np.ndarray, noise: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two points next to each other that differ far more than ordinary neighbours become one.

    That is noise at this place, and no field that varies so fast everywhere: the one point gets
    noise whose sd is half their difference, that of a mean of two values. Where neighbours differ
    as much everywhere, nothing is merged.

    Args, returns: as of `merge_repeats`. spacing: between the points, in the units of places.
    """
    if len(places) < 3:
        return places, values, noise
    distance, nearest = (column[:, 1] for column in scipy.spatial.cKDTree(places).query(places, 2))
    is_near = distance < NEAR * spacing
    if not is_near.any() or is_near.mean() > 0.5:
        return places, values, noise
    difference = np.abs(values - values[nearest])                         # (M, C)
    usual = np.sqrt((difference[~is_near] ** 2).mean(axis=0))
    most = DISAGREE * np.sqrt(usual**2 + noise**2 + noise[nearest] ** 2)
    mutual = nearest[nearest] == np.arange(len(places))
    pairs = np.flatnonzero(is_near & mutual & (difference > most).any(axis=1))
    first = pairs[pairs < nearest[pairs]]
    if not len(first):
        return places, values, noise
    second = nearest[first]
    shown = np.unravel_index((difference[first] - most[first]).argmax(), difference[first].shape)
    log.warning("WARNING: %d pair%s of points next to each other differ%s by up to %.3g, where "
                "neighbours differ by %.3g: each pair is taken as one noisy measurement",
                len(first), "s" * (len(first) > 1), "s" * (len(first) == 1),
                difference[first][shown], usual[shown[1]])
    values, noise = values.copy(), noise.copy()
    values[first] = (values[first] + values[second]) / 2
    noise[first] = np.maximum(difference[first] / 2,
                              np.hypot(noise[first], noise[second]) / 2)
    return tuple(np.delete(part, second, axis=0) for part in (places, values, noise))


# --- arguments ------------------------------------------------------------------------------------


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
