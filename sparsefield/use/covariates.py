"""What is known at the measurements and everywhere that is asked for: read, brought to the places,
and what became of it in words.

Kriging decides what each covariate is used for (sparsefield.gaussian.design).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import scipy

from sparsefield.data.files import refuse_lone_extreme, tell_of_no_quantity, without
from sparsefield.errors import UserError
from sparsefield.gaussian.design import Use
from sparsefield.use import globe

if TYPE_CHECKING:
    from sparsefield.data.pictures import Raster

log = logging.getLogger("sparsefield")

LUMINANCE = "luminance"  # of the picture itself, by name
MOST = 20


@dataclass(frozen=True)
class Known:
    """Covariates of measurements.

    Attributes:
        values: (M, p) float64. names: p. units: of each, "" where they are not known.
        pixels: (H, W, p) of all pixels, where the measurements come from a picture.
        missing: numbers that mean: not known, see `points.clean`.
    """

    values: np.ndarray
    names: tuple[str, ...]
    units: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    missing: Sequence[float] | None = None

    def of(self, chosen: np.ndarray) -> Self:
        """Those of the measurements that are chosen, by (M,) bool."""
        return replace(self, values=self.values[chosen])

    def told(self, source: str, values: np.ndarray) -> np.ndarray:
        """Covariates (..., p) of a source, NaN where they are in `missing`. Raises UserError for a
        code such as -9999 that is not said to be one."""
        values = without(values, self.missing)
        for name, plane in zip(self.names, np.moveaxis(values, -1, 0), strict=True):
            if self.missing != []:
                refuse_lone_extreme(f"{source}: {name}", plane.reshape(-1))
        return values

    def standard(self, values: np.ndarray) -> np.ndarray:
        """Covariates (..., p) of mean 0 and sd 1 at the measurements."""
        middle, spread = self.values.mean(axis=0), self.spread
        return (values - middle) / spread

    @property
    def spread(self) -> np.ndarray:
        """(p,) sd of each at the measurements; 1 of one that is constant."""
        sd = self.values.std(axis=0)
        return np.where(sd > 1e-9 * np.abs(self.values).max(axis=0), sd, 1.0)

    def unit(self, j: int) -> str:
        return self.units[j] if self.units else ""

    def units_or(self, others: tuple[str, ...]) -> tuple[str, ...]:
        """Their units, where they are known, else others."""
        return tuple(self.unit(j) or other for j, other in enumerate(others))


def checked(known: Known, count: int) -> Known:
    """Covariates of `count` measurements. Raises UserError where they cannot be used."""
    if known.values.shape != (count, len(known.names)):
        raise UserError(f"covariates {known.values.shape}: give a row for each of the {count} "
                        "measurements, (M, p)")
    if len(known.names) > MOST or len(known.names) + 3 > count:
        most = min(MOST, count - 3)
        raise UserError(f"{len(known.names)} covariate(s) for {count} measurement(s): "
                        + (f"give at most {most}" if most > 0 else "too few, leave them out"))
    for j, (name, column) in enumerate(zip(known.names, known.values.T, strict=True)):
        tell_of_no_quantity(name, name, known.unit(j), column)
        if np.ptp(column) == 0:
            log.warning("WARNING: %s is %g at all measurements: it tells nothing and is left out",
                        name, column[0])
    return known


def of_picture(
    names: Sequence[str], picture: Raster, rows: np.ndarray, columns: np.ndarray, factor: int = 1,
    missing: Sequence[float] | None = None,
) -> Known:
    """Covariates of pixels: luminance of the picture itself, or pictures of the same size, or of
    that which it had before it was reduced by a factor. missing: see `points.clean`."""
    from sparsefield.data.pictures import read_picture

    planes, found = [], []
    for name in names:
        if name == LUMINANCE:
            if picture.channels != 3:
                raise UserError(f"--covariates {name}: it is for pictures in colour")
            plane = picture.with_channels(1).values
        else:
            guide = read_picture(Path(name))
            guide = guide if guide.shape == picture.shape else guide.reduced(factor)
            if guide.shape != picture.shape:
                raise UserError("--covariates {}: is {} x {} pixels, the picture {} x {}: make "
                                "them equal".format(name, *guide.shape[::-1],
                                                    *picture.shape[::-1]))
            plane = np.where(guide.known[..., None], guide.values, np.nan)
        found += [name if plane.shape[2] == 1 else f"{name}[{c}]" for c in range(plane.shape[2])]
        planes.append(plane.astype(np.float64))
    known = Known(np.empty((0, len(found))), tuple(found), missing=missing)
    pixels = known.told("--covariates", np.concatenate(planes, axis=2))
    return replace(known, values=pixels[rows, columns], pixels=pixels)


def of_pixels(known: Known, shape: tuple[int, int]) -> np.ndarray:
    """(h, w, p): the covariates of a picture on a grid of another size over it, linear between the
    middles of pixels."""
    assert known.pixels is not None
    height, width, _ = known.pixels.shape
    if shape == (height, width):
        return known.pixels
    y, x = ((np.arange(n) + 0.5) / n * size - 0.5 for n, size in zip(shape, (height, width),
                                                                     strict=True))
    places = np.stack(np.meshgrid(x.clip(0, width - 1), y.clip(0, height - 1)), axis=-1)
    return _between(np.arange(width), np.arange(height), known.pixels, places)


def of_grid(
    known: Known, path: str, places: np.ndarray, lonlat: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Covariates (H, W, p) at places (H, W, 2) by the variables of the same names in a file, NaN
    outside its cells; and their units.

    Args:
        lonlat: whether places are degrees on a globe, where -90 is 270 of the grid.
    Raises:
        UserError: a variable is missing, or no place is on the grid.
    """
    from sparsefield.data.netcdf import read_plane  # xarray, which kriging does not need

    x, y, values, units = read_plane(Path(path), known.names)
    values = known.told(f"--grid {path}", values)
    for j, (name, unit) in enumerate(zip(known.names, units, strict=True)):
        if known.unit(j) and unit and known.unit(j) != unit:
            log.warning("WARNING: %s is in %s at the measurements and in %s in %s", name,
                        known.unit(j), unit, path)
    if places.shape[:2] == values.shape[:2] and np.array_equal(
            places, np.stack(np.meshgrid(x, y), axis=-1)):
        return values, units
    log.info("covariates %s are interpolated from the %d x %d points of %s", ", ".join(known.names),
             len(y), len(x), path)
    columns, rows = np.argsort(x), np.argsort(y)
    x, y, values = x[columns], y[rows], values[rows][:, columns]
    if lonlat:
        turned = globe.around(places[..., 0], (x[0] + x[-1]) / 2)
        places = np.stack([turned, places[..., 1]], axis=-1)
        if 0 < x[0] + globe.WIDEST - x[-1] < 1.5 * np.diff(x).max(initial=0):  # all around
            x = np.array([x[-1] - globe.WIDEST, *x, x[0] + globe.WIDEST])
            values = np.concatenate([values[:, -1:], values, values[:, :1]], axis=1)
    at = [_onto(axis, places[..., k]) for k, axis in enumerate((x, y))]
    found = _between(x, y, values, np.stack(at, axis=-1))
    if np.isnan(found).any(axis=-1).all():
        raise UserError(f"--grid {path}: it covers x {x.min():g} to {x.max():g} and y {y.min():g} "
                        f"to {y.max():g}, and no place that is asked for; give --extent within it")
    return found, units


def _between(x: np.ndarray, y: np.ndarray, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values (H, W, p) on growing axes, linear at places (h, w, 2), NaN outside."""
    return scipy.interpolate.RegularGridInterpolator(
        (y, x), values, bounds_error=False, fill_value=np.nan)(places[..., ::-1])


def _onto(axis: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Places in the outer halves of the first and last cell of a growing axis, moved to their
    middles."""
    halves = np.diff(axis)[[0, -1]] / 2 if len(axis) > 1 else (0, 0)
    is_within = (at >= axis[0] - halves[0]) & (at <= axis[-1] + halves[1])
    return np.where(is_within, at.clip(axis[0], axis[-1]), at)


def tell_of_range(known: Known, there: np.ndarray) -> None:
    """Log at how many places (..., p) covariates lie outside those of the measurements."""
    there = there.reshape(-1, len(known.names))
    low, high = known.values.min(axis=0), known.values.max(axis=0)
    slack = 1e-6 * (high - low)
    for j, name in enumerate(known.names):
        count = int(((there[:, j] < low[j] - slack[j]) | (there[:, j] > high[j] + slack[j])).sum())
        if count and low[j] < high[j]:
            log.warning("WARNING: at %d of %d places %s lies outside the %.6g to %.6g of the "
                        "measurements: %s", count, len(there), name, low[j], high[j],
                        "what holds within is carried on beyond" if count < len(there) else
                        "do both have the same units?")


def in_words(
    known: Known, uses: Sequence[Use], half_widths: np.ndarray, units: str, side: float,
    distance: str,
) -> list[str]:
    """What each covariate is used for, a line each.

    Args:
        uses: of the standardised covariates, for values divided by half_widths (C,).
        units: of the values. side: of the domain, in the units `distance`, such as km.
    """
    lines = []
    for j, (name, use) in enumerate(zip(known.names, uses, strict=True)):
        per = f" per {known.unit(j) or f'unit of {name}'}"
        said = []
        if not np.isnan(use.value).any():
            factor = half_widths / known.spread[j]
            pairs = zip(use.value * factor, use.error * factor, strict=True)
            numbers = ", ".join(_with_error(value, error) for value, error in pairs)
            said.append(f"drift {numbers} {units}{per}".replace("  ", " "))
        if use.scale:
            far = float(f"{use.scale * side / known.spread[j]:.2g}")
            said.append(f"1 {known.unit(j)} of {name} counts as a distance of {far:.10g} {distance}"
                        .replace("  ", " "))
        lines.append(f"{name}: {'; '.join(said) or 'not used: it tells nothing more'}")
    return lines


def _with_error(value: float, error: float) -> str:
    """Such as -6.1 ± 0.2: as many digits as the error has."""
    digits = max(0, 1 - int(np.floor(np.log10(error)))) if 0 < error < np.inf else 3
    return f"{value:.{min(digits, 12)}f} ± {error:.{min(digits, 12)}f}"
