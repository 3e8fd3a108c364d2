"""Measurements: scattered values, what is wrong with them, and several at one place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import scipy

from sparsefield.data.files import is_code, refuse_lone_extreme, tell_of_no_quantity, without
from sparsefield.data.scale import tell_of_values
from sparsefield.errors import UserError
from sparsefield.use import globe
from sparsefield.use.covariates import Known, checked
from sparsefield.use.times import Times, of_values

log = logging.getLogger("sparsefield")

MOST_POINTS = 1_000_000
COLOURS = ("red", "green", "blue")
FARTHEST = 1e15  # coordinates beyond it are mistakes
SAME_PLACE = 1e-6  # in units of the measurements' longer side
NEAR = 0.01  # of the spacing: two points that are nearer to each other are twins
# At most this share of the numbers, farther from all others than so many times their span, strays.
STRAY = (0.2, 5)
LOST = 0.5  # times the span of all others: (0, 0) farther from them may mean that it is unknown
DISAGREE = 3.0  # times the difference of ordinary neighbours: twins that differ by more are noise

Extent = tuple[float, float, float, float]  # x0, x1, y0, y1


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        coords: (M, 2) float64, x and y. values: (M, C) float64.
        names: of the C channels, where they are known ("column 4" is none). units: of the values.
        noise: (M,) sd of the noise in the values; None where it is not known, or 0.
        shape: (H, W) of the picture that they come from, whose x and y are pixels, y downward; None
            of scattered points.
        value_range: of pictures, what is black and white; None where the file has none.
        known: covariates, or None. times: when, or None.
    """

    coords: np.ndarray
    values: np.ndarray
    names: tuple[str, ...] = ()
    noise: np.ndarray | None = None
    units: str | None = None
    shape: tuple[int, int] | None = None
    value_range: tuple[float, float] | None = None
    known: Known | None = None
    times: Times | None = None

    @property
    def is_picture(self) -> bool:
        return self.shape is not None

    @property
    def region(self) -> Extent | None:
        """The rectangle that they stand for, where it is known: that of a whole picture."""
        return None if self.shape is None else (0.0, self.shape[1], 0.0, self.shape[0])

    @property
    def are_colours(self) -> bool:
        """Whether the channels are named red, green and blue."""
        return tuple(name.lower() for name in self.names) in (COLOURS, ("r", "g", "b"))

    @property
    def are_quantities(self) -> bool:
        """Whether there are several channels whose names say that they are no colours."""
        is_named = len(self.names) > 1 and not all(n.startswith("column ") for n in self.names)
        return is_named and not self.are_colours

    def of(self, chosen: np.ndarray) -> Self:
        """Those that are chosen, by (M,) bool."""
        noise = None if self.noise is None else self.noise[chosen]
        return replace(self, coords=self.coords[chosen], values=self.values[chosen], noise=noise,
                       known=self.known and self.known.of(chosen),
                       times=self.times and self.times.of(chosen))

    def turned(self, middle: float | None = None) -> Self:
        """With longitudes around a middle; None: where they are closest together."""
        lon = globe.around(self.coords[:, 0], middle)
        return replace(self, coords=np.column_stack([lon, self.coords[:, 1]]))


def joined(parts: Sequence[Measurements]) -> Measurements:
    """Those of all parts, with the names of the first."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    coords, values, noise, known = (
        None if own[0] is None else np.concatenate(own) for own in (
            [part.coords for part in parts], [part.values for part in parts],
            [part.noise for part in parts], [part.known and part.known.values for part in parts]))
    return replace(first, coords=coords, values=values, noise=noise,
                   known=None if known is None else replace(first.known, values=known))


def as_given(
    coords: np.ndarray, values: np.ndarray, noise_sd: float | Sequence[float] = 0.0,
    missing: Sequence[float] | None = None, lonlat: bool = False,
    covariates: np.ndarray | None = None, times: Any = None,
) -> Measurements:
    """Measurements of a program, see `Reconstructor.reconstruct`. Raises UserError for no real
    numbers, other shapes, NaN or infinity that is not masked, and as `clean`."""
    if hasattr(coords, "reindex") and hasattr(values, "reindex") and not (
        coords.index.equals(values.index)
    ):
        raise UserError("coords and values are of pandas and have other indexes: bring their rows "
                        "to one order (values.loc[coords.index]), or give .to_numpy() of both")
    masked_times = times if np.ma.isMaskedArray(times) else None
    masks = [np.ma.getmaskarray(array)
             for array in (coords, values, noise_sd, covariates, masked_times)]
    found = measured("", coords, values, covariates=covariates, times=(
        times if masked_times is None else masked_times.data))
    coords, values = found.coords, found.values
    hidden = np.any([mask.reshape(len(values), -1).any(axis=1) for mask in masks
                     if mask.shape[:1] == values.shape[:1]], axis=0)
    if not (np.isfinite(coords[~hidden]).all() and np.isfinite(values[~hidden]).all()):
        raise UserError("coords or values hold NaN or infinity: leave those points out")
    values[hidden] = np.nan
    found = replace(found, noise=noise_of(np.ma.filled(noise_sd, 0.0), len(values)))
    return clean("measurements", found, missing, lonlat)


def measured(
    source: str, coords: np.ndarray, values: np.ndarray, *, covariates: np.ndarray | None = None,
    names: Sequence[str] = (), times: Any = None, time: str = "time",
    noise: np.ndarray | None = None,
) -> Measurements:
    """Measurements of arrays; names: of covariates, time: of the times. Raises UserError for what
    is no array of numbers, and for shapes that do not agree."""
    coords, values = pair_of(source, coords, values)
    count, known = len(values), None
    if covariates is not None:
        columns = unmasked(f"{source}covariates", covariates)
        columns = columns[:, None] if columns.ndim == 1 else columns
        if columns.ndim != 2 or len(columns) != count or columns.size == 0:
            raise UserError(f"{source}covariates {columns.shape}: give (M, p), p > 0, a row for "
                            f"each of the {count} measurements")
        known = Known(columns, tuple(names or (f"covariate {j + 1}"
                                               for j in range(columns.shape[1]))))
    when = None if times is None else of_values(f"{source}times", times, time)
    noise = None if noise is None else real_array(f"{source}noise_sd", noise)
    for name, own in (("times", when and when.values), ("noise_sd", noise)):
        if own is not None and own.shape != (count,):
            raise UserError(f"{source}{name} {own.shape}: give one for each of the {count} "
                            "measurements")
    return Measurements(coords, values, noise=noise, known=known, times=when)


def clean(
    source: str, found: Measurements, missing: Sequence[float] | None, lonlat: bool = False,
    most: float = MOST_POINTS,
) -> Measurements:
    """Measurements without those that lack a number, which are counted in the log.

    Args:
        missing: values that mean: not measured. None refuses what looks like one, a list other
            codes than those in it, [] nothing.
        lonlat: whether places are on a globe; their longitudes are turned to be close together.
        most: places that are taken.
    Raises:
        UserError: nothing is left, there are too many, or numbers that cannot be.
    """
    codes = [number for number in missing or () if is_code(number)]
    found = replace(found, coords=_without_codes(found.coords, missing, lonlat),
                    values=without(found.values, missing),
                    noise=None if found.noise is None else without(found.noise, codes))
    names = found.names or ("values",) * found.values.shape[1]
    if missing != []:
        for name, column in zip(names, found.values.T, strict=True):
            refuse_lone_extreme(f"{source}: {name}", column)
        for axis, column in zip("xy", found.coords.T, strict=True):
            refuse_lone_extreme(f"{source}: {axis}", column, is_axis=True)
    noise = np.zeros(len(found.values)) if found.noise is None else found.noise
    there = [found.coords, found.values, noise]
    if found.known is not None:
        known = replace(found.known, missing=missing)
        found = replace(found, known=replace(known, values=known.told(source, known.values)))
        there.append(found.known.values)
    if found.times is not None:
        when = replace(found.times, values=without(found.times.values, codes))
        found = replace(found, times=when)
        if missing != [] and not when.is_dated:
            refuse_lone_extreme(f"{source}: {when.name}", when.values, is_axis=True)
        there.append(when.values[:, None])
    kept = np.isfinite(np.column_stack(there)).all(axis=1)
    if not kept.all():
        log.info("%d of %d measurements have a missing or infinite number: left out",
                 (~kept).sum(), len(kept))
        lacks = dict(zip(names, np.isnan(found.values[~kept]).sum(axis=0), strict=True))
        if len(lacks) > 1 and min(lacks.values()) < (~kept).sum():
            log.warning("WARNING: they are left out of every column, though %s; --value takes one "
                        "column, with all that was measured of it",
                        ", ".join(f"{name} lacks {count}" for name, count in lacks.items()))
        found = found.of(kept)
    if not len(found.coords):
        raise UserError(f"{source}: holds no measurement")
    if found.known is not None:
        found = replace(found, known=checked(found.known, len(found.coords)))
    for name, column in zip(names, found.values.T, strict=True):
        tell_of_no_quantity(f"{source}: {name}", name, found.units, column)
    places = found.coords @ (1, 1j) if found.times is None else np.column_stack(
        [found.coords, found.times.values])
    if len(np.unique(places, axis=0)) > most:
        raise UserError(f"{source}: {len(found.coords):,} points, at most {most:,} can be "
                        "used: average neighbours, or leave rows out")
    if (least := noise[kept].min()) < 0:
        raise UserError(f"{source}: the noise's sd is {least:g} in places; give 0 or more")
    is_zero = (found.coords == 0).all(axis=1)
    if lonlat:
        globe.require_degrees(source, found.coords)
        found = found.turned()
    if missing != []:
        _refuse_lost(source, found.coords, is_zero)
    _tell_of_strays(source, ("x", "y", *names), np.column_stack([found.coords, found.values]))
    tell_of_values(source, found.values)
    return found


def _without_codes(coords: np.ndarray, missing: Sequence[float] | None, lonlat: bool) -> np.ndarray:
    """NaN in place of codes, and of missing numbers that cannot be degrees."""
    most = globe.MOST if lonlat else (np.inf, np.inf)
    return np.stack([without(column, [number for number in missing or ()
                                      if is_code(number) or abs(number) > limit])
                     for column, limit in zip(coords.T, most, strict=True)], axis=1)


def _tell_of_strays(source: str, names: Sequence[str], numbers: np.ndarray) -> None:
    """Log where few numbers of a column are far from all others, as in other units or by a slip."""
    for name, own in zip(names, np.sort(numbers, axis=0).T, strict=True):
        edge = int(np.diff(own).argmax()) + 1 if len(own) > 1 else 0
        few, most = sorted((own[:edge], own[edge:]), key=len)
        if 0 < len(few) <= STRAY[0] * len(own) and (
            own[edge] - own[edge - 1] > STRAY[1] * np.ptp(most) > 0
        ):
            log.warning("WARNING: %s: %d of %d rows have %s from %.7g to %.7g, all others %.7g to "
                        "%.7g: other units, a total, or a slip? then mend them", source, len(few),
                        len(own), name, few[0], few[-1], most[0], most[-1])


def _refuse_lost(source: str, coords: np.ndarray, is_zero: np.ndarray) -> None:
    """Raises UserError where (0, 0) may mean that a place is unknown: it is far from all others."""
    others = coords[~is_zero]
    if not is_zero.any() or len(others) < 5:
        return
    low, high = others.min(axis=0), others.max(axis=0)
    place = coords[is_zero][0]
    if (np.maximum(low - place, place - high) > LOST * (high - low)).any():
        raise UserError(
            f"{source}: {is_zero.sum()} places are (0, 0), all others {low[0]:.6g} to {high[0]:.6g}"
            f", {low[1]:.6g} to {high[1]:.6g}; leave them out (# before their lines), or, if they "
            "are where it was measured, give --missing none (in Python missing=[])")


def pair_of(source: str, coords: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (M, 2) and values (M, C), of (M,) too. Raises UserError for what is none."""
    coords, values = real_array(f"{source}coords", coords), real_array(f"{source}values", values)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or coords.shape != (len(values), 2) or values.shape[1] == 0:
        raise UserError(f"{source}coords {coords.shape} and values {values.shape}: give (M, 2) and "
                        "(M,) or (M, C); one row for each point (a third coordinate goes into "
                        "covariates)")
    return coords, values


def noise_of(noise_sd: float | Sequence[float], count: int) -> np.ndarray:
    """(count,) sd of the noise of every value. Raises UserError for what is no such number."""
    noise = real_array("noise_sd", noise_sd)
    if noise.shape not in ((), (count,)):
        raise UserError(f"noise_sd {noise.shape}: give one number, or one for each of the {count} "
                        "points")
    if not (np.isfinite(noise).all() and (noise >= 0).all()):
        raise UserError(f"noise_sd={noise.min():g} ... {noise.max():g}: give 0 or more, in the "
                        "units of the values")
    return np.broadcast_to(noise, count).copy()


def unmasked(name: str, array: np.ndarray) -> np.ndarray:
    """`real_array` with NaN where it is masked."""
    return np.where(np.ma.getmaskarray(array), np.nan, real_array(name, array))


def real_array(name: str, array: np.ndarray) -> np.ndarray:
    """A copy as float64. Raises UserError for what is no array of real numbers."""
    try:
        found = np.asarray(array)
        if found.dtype.kind not in "buifO":
            raise TypeError(f"{found.dtype}")
        return found.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} must be an array of real numbers ({reason})") from None


# --- extents --------------------------------------------------------------------------------------


def bounds(source: str, coords: np.ndarray, lonlat: bool = False) -> Extent:
    """The smallest rectangle around points (M, 2); where it has no width or no height, as wide as
    the other side. With lonlat it ends at the poles."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    if np.abs(coords).max() > FARTHEST:
        raise UserError(f"{source}: coordinates as large as {np.abs(coords).max():.3g}; which are "
                        "these? leave those points out, or give their --missing")
    sides = high - low
    grow = np.where(sides > 0, 0.0, sides.max() or 1.0) / 2
    (x0, y0), (x1, y1) = (low - grow).tolist(), (high + grow).tolist()
    return (x0, x1, max(y0, -90.0), min(y1, 90.0)) if lonlat else (x0, x1, y0, y1)


def checked_extent(name: str, extent: Sequence[float], lonlat: bool) -> Extent:
    """x0 x1 y0 y1. Raises UserError for what is no rectangle."""
    numbers = real_array(name, extent)
    words = f"{name} {' '.join(f'{number:g}' for number in numbers.reshape(-1))}"
    if numbers.shape != (4,):
        raise UserError(f"{words}: give x0, x1, y0, y1")
    x0, x1, y0, y1 = numbers.tolist()
    if not (np.isfinite((x1 - x0, y1 - y0)).all() and x0 < x1 and y0 < y1):
        raise UserError(f"{words}: give x0 < x1 and y0 < y1, finite")
    if lonlat:
        globe.require_degrees(words, numbers.reshape(2, 2).T)
        if x1 - x0 > globe.WIDEST:
            raise UserError(f"{words}: longitudes span 360 degrees at most")
    return x0, x1, y0, y1


# --- several measurements of one place ------------------------------------------------------------


def merge_repeats(
    places: np.ndarray, values: np.ndarray, noise: np.ndarray, what: str = "a place"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measurements of one place become one: their mean, weighted by 1 / sd^2; exact ones win.

    Args:
        places: (M, D) in units of the longer side. values: (M, C). noise: (M, C), sd of the noise.
        what: they share, in words.
    Returns:
        places (P, D), values and noise (P, C).
    """
    first, which, count = _grouped(places)
    if len(first) == len(places):
        return places, values, noise
    log.info("%d of %d measurements share %s with another: averaged to %d points",
             count[count > 1].sum(), len(places), what, len(first))
    is_exact = noise == 0
    exact = _summed(is_exact, which)                                       # (P, C)
    weights = np.where(exact[which] > 0, is_exact, np.maximum(noise, 1e-100) ** -2.0)
    total = _summed(weights, which)
    means = _summed(weights * values, which) / total
    squares = _summed(is_exact * (values - means[which]) ** 2, which)
    scatters = np.sqrt(squares / np.maximum(exact - 1, 1))
    differ = scatters > SAME_PLACE * np.ptp(values, axis=0)
    if differ.any():
        worst = np.sqrt((scatters**2).sum(axis=0) / np.maximum(differ.sum(axis=0), 1))
        log.warning("WARNING: at %d places repeated values differ (by an sd of %s) and no noise is "
                    "given: their means are taken as exact; --noise_sd auto finds the noise",
                    differ.any(axis=1).sum(), ", ".join(f"{sd:.3g}" for sd in worst))
    return places[first], means, np.where(exact > 0, 0.0, total**-0.5)


def scatter(places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, int]:
    """How repeats at one place differ: the summed squares (C,) of their differences from the mean
    there, and the degrees of freedom, measurements (M, D), (M, C) minus places."""
    _, which, count = _grouped(places)
    off = values - (_summed(values, which) / count[:, None])[which]
    return (off**2).sum(axis=0), len(values) - len(count)


def _grouped(places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first measurement at each of P places, the place of each (M,), and how many are at it."""
    keys = np.round(places / SAME_PLACE).astype(np.int64)
    _, first, which, count = np.unique(keys, axis=0, return_index=True, return_inverse=True,
                                       return_counts=True)
    return first, which.reshape(-1), count


def _summed(numbers: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Numbers (M, C) summed over each place, (P, C)."""
    total = np.zeros((which.max() + 1, numbers.shape[1]))
    np.add.at(total, which, numbers)
    return total


def merge_twins(
    places: np.ndarray, values: np.ndarray, noise: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two points next to each other that differ far more than ordinary neighbours become one.

    That is noise at this place, and no field that varies so fast everywhere: the one point gets
    noise whose sd is half their difference, that of a mean of two values.

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
    is_mutual = nearest[nearest] == np.arange(len(places))
    pairs = np.flatnonzero(is_near & is_mutual & (difference > most).any(axis=1))
    first = pairs[pairs < nearest[pairs]]
    if not len(first):
        return places, values, noise
    second = nearest[first]
    log.warning("WARNING: %d pair(s) of points next to each other differ by up to %s, where "
                "neighbours differ by %s: each pair is taken as one noisy measurement", len(first),
                *(", ".join(f"{size:.3g}" for size in sizes)
                  for sizes in (difference[first].max(axis=0), usual)))
    values, noise = values.copy(), noise.copy()
    values[first] = (values[first] + values[second]) / 2
    noise[first] = np.maximum(difference[first], np.hypot(noise[first], noise[second])) / 2
    return tuple(np.delete(part, second, axis=0) for part in (places, values, noise))
