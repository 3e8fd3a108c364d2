"""Fields of any size: what is near to a tile of one, and kriging's answer there.

Kriging is fitted once, to at most DENSE_POINTS measurements spread over the whole. A tile
is answered from the measurements in it, those around it, and ever fewer the farther away, so that
its answer does not depend on the other tiles. Draws belong to places, and join up at the borders.

A field of many measurements looks alike everywhere, so distances are in units of UNIT spacings of
the measurements: the bank of variograms is one for fields of about so many points a side.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy
import torch

from sparsefield import hashed, progress
from sparsefield.data.files import one_line, refuse_lone_extreme, without
from sparsefield.data.netcdf import REGULAR, Stored, is_even, is_longitude, units_of
from sparsefield.data.scale import Scale
from sparsefield.errors import UserError
from sparsefield.gaussian import Prior, condition
from sparsefield.gaussian.posterior import DENSE_POINTS
from sparsefield.place import UNIT_SQUARE, Domain
from sparsefield.use.field import Field, Gaussian
from sparsefield.use.grids import Asked, Frame, Grid
from sparsefield.use.points import COLOURS, SAME_PLACE, Extent, Measurements, joined
from sparsefield.use.predict import TRENDS, Reconstructor, Settings, observe
from sparsefield.use.values import moments, own_range, untransformed

if TYPE_CHECKING:
    from rasterio import Affine
    from rasterio.crs import CRS
    from xarray import DataArray

log = logging.getLogger("sparsefield")

UNIT = 45  # spacings of the measurements
HALO = 16  # spacings around a tile in which all measurements are seen
THINNED = 16  # of so many measurements one is seen four times as far away, and so on
CELL = 64  # measurements of a cell of the index
KEPT = 1 << 20  # pixels of a raster, at most, that are kept in memory for what is far away
WINDOW = 2048  # pixels of a side that are read at once
OBLONG = 1.25  # times as wide as high: pixels that are said not to be squares
NEIGHBOURHOODS, EACH = 16, 62  # half of what is fitted to; the other half is at random


# --- measurements in memory -----------------------------------------------------------------------


class Index:
    """Measurements in memory, sorted into cells, in levels that each hold one of THINNED of those
    in the level below, chosen at random.

    Args:
        halo: (2,), in units of x and y.
    """

    def __init__(self, given: Measurements, halo: np.ndarray):
        count = len(given.coords)
        self.low, self.halo = given.coords.min(axis=0), halo
        self.side = max(1, int((count / CELL) ** 0.5))  # cells
        self.size = np.maximum(np.ptp(given.coords, axis=0) / self.side, 1e-300)
        cell = self._cells(given.coords) @ (1, self.side)
        order = cell.argsort(kind="stable")
        self.given, cell = given.of(order), cell[order]
        levels = max(0, int(np.ceil(np.log(max(count, 1) / HALO**2) / np.log(THINNED))))
        draw = np.random.default_rng(0).random(count)
        self.rows = [np.flatnonzero(draw < THINNED**-level) for level in range(levels + 1)]
        self.starts = [np.searchsorted(cell[rows], np.arange(self.side**2 + 1))
                       for rows in self.rows]

    def _cells(self, places: np.ndarray) -> np.ndarray:
        """Column and row (..., 2) of the cells of places, those outside in the next."""
        cells = np.clip((places - self.low) / self.size, 0, self.side - 1)
        return cells.astype(np.int64)

    def near(self, low: np.ndarray, high: np.ndarray) -> Measurements:
        """All in a rectangle and its halo, one of THINNED as far as four halos, and so on."""
        found, inner = [], None
        for level, (rows, starts) in enumerate(zip(self.rows, self.starts, strict=True)):
            reach = self.halo * (4**level if level + 1 < len(self.rows) else np.inf)
            outer = low - reach, high + reach
            (left, bottom), (right, top) = map(self._cells, outer)
            lines = self.side * np.arange(bottom, top + 1)
            own = np.concatenate([rows[starts[line + left] : starts[line + right + 1]]
                                  for line in lines])
            places = self.given.coords[own]
            chosen = _is_within(places, *outer)
            if inner is not None:
                chosen &= ~_is_within(places, *inner)
            found.append(own[chosen])
            inner = outer
        return self.given.of(np.concatenate(found))


def _is_within(places: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return ((places >= low) & (places <= high)).all(axis=1)


# --- rasters --------------------------------------------------------------------------------------


class Picture:
    """A GeoTIFF, or another raster that GDAL reads, whose windows are read when they are asked for.

    Attributes:
        shape: (H, W). transform, crs: where pixels lie. names, units: of its C bands.
    Raises:
        UserError: broken, or its numbers are places in a palette.
    """

    def __init__(self, path: str):
        self.path, self.file = path, opened(path)
        self.shape, self.transform, self.crs = self.file.shape, self.file.transform, self.file.crs
        kinds = [kind.name for kind in self.file.colorinterp]
        if "palette" in kinds:
            raise UserError(f"{path}: its numbers are places in a palette: save it in colours, as "
                            "by gdal_translate -expand rgb")
        self.bands = [k for k, kind in zip(self.file.indexes, kinds, strict=True)
                      if kind != "alpha"]
        self.names = tuple(self.file.descriptions[k - 1] or (
            kinds[k - 1] if kinds[k - 1] in COLOURS else
            "grey" if len(self.bands) == 1 else f"band {k}") for k in self.bands)
        self.units = self.file.units[0]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """(C, h, w) float64, NaN where nothing was measured."""
        values = _read(self.file, (rows, columns), self.bands)
        return np.where(_read(self.file, (rows, columns), None) > 0, values, np.nan)


class Cells:
    """A variable of (y, x) in a NetCDF file or a zarr, as `Picture`, from the north downward.

    Args:
        variable, x, y: as it lies in the file, and its axes, see `labelled.grid_in`, `with_axes`.
    Raises:
        UserError: the steps of an axis are uneven.
    """

    def __init__(self, path: str, variable: DataArray, x: DataArray, y: DataArray):
        from rasterio.crs import CRS
        from rasterio.transform import from_bounds

        self.path, self.x, self.y = path, str(x.name), str(y.name)
        if not (is_even(x.values, REGULAR) and is_even(y.values, REGULAR)):
            raise UserError(f"{path}: the steps of {self.x} or {self.y} are uneven, and tiles need "
                            "even ones: bring it to an even grid")
        self.shape = y.size, x.size
        x0, x1, y0, y1 = Grid(x.values, y.values).extent
        self.transform = from_bounds(x0, y0, x1, y1, x.size, y.size)
        self.crs = CRS.from_epsg(4326) if is_longitude(x) else None
        self.turned = bool(y.values[0] < y.values[-1]), bool(x.values[0] > x.values[-1])
        self.names, self.units = (str(variable.name),), units_of(variable)
        self.stored = Stored(Path(path), str(variable.name))

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """(1, h, w) float64, NaN where nothing was measured."""
        where = {axis: slice(size - own.stop, size - own.start) if turned else own
                 for axis, size, own, turned in zip(
                     (self.y, self.x), self.shape, (rows, columns), self.turned, strict=True)}
        with _quiet():
            part = self.stored.part(where)
        values = part.squeeze(set(part.dims) - {self.x, self.y}).transpose(self.y, self.x).values
        steps = (slice(None, None, -1 if turned else 1) for turned in self.turned)
        return values[tuple(steps)].astype(np.float64)[None]


def tell_of_oblong_pixels(source: str, transform: Affine, crs: CRS | None, rows: int) -> None:
    """Log where pixels, which are taken as squares, are much wider or narrower on the ground."""
    across, down = transform.a, transform.e
    middle = transform.f + down * rows / 2
    is_geographic = crs is not None and crs.is_geographic
    shrunk = np.cos(np.radians(middle)) if is_geographic else 1.0
    width = abs(across * shrunk / down) if down else 1.0
    if not 1 / OBLONG < width < OBLONG:
        log.warning("WARNING: %s: its pixels are %.2g times as wide as high on the ground, and "
                    "were taken as squares: bring it to square metres (gdalwarp -t_srs), or give "
                    "its pixels as a table, with --lonlat for degrees", source, width)


class Raster:
    """The known pixels of a raster that is read window by window.

    Attributes:
        count: of them. given: all, or up to KEPT of them, chosen at random.
    Args:
        mask: another raster, bright where pixels are known; or None.
        missing: numbers that mean: not measured, see `points.clean`.
    Raises:
        UserError: broken, cut off, of another size than the mask, or without a known pixel.
    """

    def __init__(self, source: Picture | Cells, mask: str | None, missing: Sequence[float] | None):
        self.source, self.missing, path = source, missing, source.path
        self.shape, self.transform, self.crs = source.shape, source.transform, source.crs
        self.mask, self.white = None, 0.0
        windows = list(cut(self.shape, WINDOW))
        if mask:
            self.mask = Picture(mask).file
            if self.mask.shape != self.shape:
                raise UserError(f"--mask {mask}: is {self.mask.shape[1]} x {self.mask.shape[0]} "
                                f"pixels, {path} is {self.shape[1]} x {self.shape[0]}: make them "
                                "equal")
            self.white = max(float(np.nanmax(np.abs(_read(self.mask, window, [1])), initial=0))
                             for window in progress.over(windows, "reading the mask", "window"))
        self.count, share, kept = 0, 1.0, []
        for window in progress.over(windows, "reading", "window"):
            found = self.within(*window)
            self.count += len(found.coords)
            kept.append(found.of(self._draw(found.coords) < share))
            while sum(len(part.coords) for part in kept) > KEPT:
                share /= 2
                kept = [part.of(self._draw(part.coords) < share) for part in kept]
        self.given = joined(kept)
        if not self.count:
            raise UserError(f"{path}: no pixel is known: all are no-data, or black in the mask")
        if missing is None:
            refuse_lone_extreme(path, self.given.values.reshape(-1))
        if self.count == self.shape[0] * self.shape[1]:
            by = "--missing" if isinstance(source, Cells) else "--mask mask.tif or --missing"
            raise UserError(f"{path}: every pixel is known, so nothing is to be reconstructed; say "
                            f"which are not with {by}")

    def _draw(self, coords: np.ndarray) -> np.ndarray:
        """A number in 0 ... 1 for each pixel."""
        place = torch.from_numpy(coords.astype(np.int64) @ (1, self.shape[1]))
        return (hashed.scrambled(place) & ((1 << 52) - 1)).numpy() / 2.0**52

    def within(self, rows: slice, columns: slice) -> Measurements:
        """The known pixels of a window, each at its middle."""
        values = self.source.read(rows, columns)
        known = np.isfinite(values).all(axis=0)
        if self.missing:
            # Of colours all of red, green and blue are the code; else any is a gap.
            gap = np.isnan(without(values, self.missing))
            known &= ~(gap.all(axis=0) if self.source.names == COLOURS else gap.any(axis=0))
        if self.mask is not None:
            bright = np.abs(_read(self.mask, (rows, columns), [1])[0])
            known &= (bright > 0) & (bright >= self.white / 2)
        row, column = np.nonzero(known)
        coords = np.stack([column + columns.start + 0.5, row + rows.start + 0.5], axis=1)
        return Measurements(coords, values[:, row, column].T, self.source.names, shape=self.shape,
                            units=self.source.units)

    def reaching(self, halo: np.ndarray) -> Index | Raster:
        """What has `near` with a halo (2,) in pixels: of a raster whose known pixels are all in
        memory their index."""
        if self.count == len(self.given.coords):
            return Index(self.given, halo)
        self.halo = halo
        self.index = Index(self.given, halo * (self.count / len(self.given.coords)) ** 0.5)
        return self

    def near(self, low: np.ndarray, high: np.ndarray) -> Measurements:
        """All in a rectangle and its halo, and those farther away by the index."""
        start = np.maximum(low - self.halo, 0).astype(int)
        stop = np.minimum(np.ceil(high + self.halo), self.shape[::-1]).astype(int)
        far = self.index.near(low, high)
        far = far.of(~_is_within(far.coords, start, stop))
        if (stop <= start).any():
            return far
        return joined([self.within(*map(slice, start[::-1], stop[::-1])), far])


def cut(shape: Sequence[int], side: int) -> Iterator[tuple[slice, slice]]:
    """Windows of rows and columns, row by row."""
    for row in range(0, shape[0], side):
        for column in range(0, shape[1], side):
            yield (slice(row, min(row + side, shape[0])),
                   slice(column, min(column + side, shape[1])))


def opened(path: str):
    """A raster. Raises UserError where it cannot be read."""
    import rasterio

    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # pictures are none
    try:
        return rasterio.open(path)
    except (rasterio.errors.RasterioError, OSError) as error:
        raise UserError(f"{path}: no raster that can be read ({one_line(error)})") from None


def _read(file, window: tuple[slice, slice], bands: Sequence[int] | None) -> np.ndarray:
    """Bands (C, h, w) float64 of a window, scaled; without bands its mask (h, w)."""
    import rasterio

    pixels = rasterio.windows.Window.from_slices(*window)
    try:
        if bands is None:
            return file.dataset_mask(window=pixels)
        values = file.read(bands, window=pixels).astype(np.float64)
    except (rasterio.errors.RasterioError, OSError) as error:
        raise UserError(f"{file.name}: broken or cut off ({one_line(error.__cause__ or error)}); "
                        "copy it again") from None
    scale, offset = (np.array(each)[np.array(bands) - 1, None, None]
                     for each in (file.scales, file.offsets))
    return values * scale + offset


# --- the answer -----------------------------------------------------------------------------------


class Part(NamedTuple):
    """Some channels, read together: how they are scaled, and what was fitted to them."""

    channels: slice
    scale: Scale
    priors: tuple[Prior, ...]


@dataclass(frozen=True)
class Plan:
    """All that tiles share; small, as it goes to the workers with each tile.

    Attributes:
        frame: in units of UNIT spacings. spacing: of the measurements, in these.
        names: of the channels. samples: their number. above, quantiles: see `Field.answers`.
    """

    frame: Frame
    spacing: float
    settings: Settings
    names: tuple[str, ...]
    samples: int = 0
    above: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, some: Measurements, count: int, extent: Extent, aspect: str, *rest: object) -> Plan:
        """Of `count` measurements, some of which are given, that have not been fitted yet."""
        ends = [rows for own in some.coords.T for rows in (own.argmin(), own.argmax())]
        rows = np.linspace(0, len(some.coords) - 1, min(len(some.coords), DENSE_POINTS)).astype(int)
        frame = Frame.of(some.of(np.unique([*ends, *rows])), extent, aspect)
        spacing = frame.domain.spacing(count)
        unit = min(1.0, UNIT * spacing)
        frame = replace(frame, scaled_by=tuple(unit * length for length in frame.scaled_by))
        return cls(frame, spacing / unit, *rest)

    @property
    def halo(self) -> np.ndarray:
        """(2,), in units of x and y."""
        return HALO * self.spacing * np.array(self.frame.scaled_by)

    def asked(self, places: np.ndarray, count: int) -> Asked:
        """Places (..., 2) that are asked for, beside so many measurements around them."""
        side = self.spacing * count**0.5
        return Asked(places, (0.0, 1.0, 0.0, 1.0), replace(self.frame, domain=Domain(side, side)))

    def fitted(self, given: Measurements, separately: bool) -> tuple[Plan, str]:
        """Fitted to measurements; and the variogram in words."""
        asked = self.asked(given.coords[:1], len(given.coords))
        measured = observe(_closed_form(), given, asked, self.settings)
        channels = measured.values.shape[1]
        parts, words = [], []
        for k in range(channels) if separately else [None]:
            own = slice(0, channels) if k is None else slice(k, k + 1)
            scale = Scale(own_range(measured.values[:, own]))
            posterior = condition(*_tensors(measured, own, scale), domain=UNIT_SQUARE,
                                  trend=TRENDS[self.settings.trend])
            words.append(posterior.describe())
            parts.append(Part(own, scale, tuple(
                prior._replace(spacing=self.spacing) for prior in posterior.priors)))
        return replace(self, parts=tuple(parts)), " | ".join(words)


def spread_over(source: Index | Raster) -> Measurements:
    """Up to DENSE_POINTS of all measurements: at random, and in neighbourhoods at random, which
    tell how the field varies from one to the next."""
    some, rng = source.given, np.random.default_rng(0)
    if len(some.coords) <= DENSE_POINTS:
        return some
    parts = [some.of(rng.choice(len(some.coords), DENSE_POINTS - NEIGHBOURHOODS * EACH, False))]
    for middle in some.coords[rng.choice(len(some.coords), NEIGHBOURHOODS, False)]:
        around = source.near(middle, middle)
        away = np.abs((around.coords - middle) / source.halo).max(axis=1)
        parts.append(around.of(away.argsort(kind="stable")[:EACH]))
    found = joined(parts)
    return found.of(np.unique(found.coords, axis=0, return_index=True)[1])


def _closed_form() -> Reconstructor:
    return Reconstructor.load("none", "cpu")


def _tensors(measured, channels: slice, scale: Scale) -> tuple[torch.Tensor | None, ...]:
    """Places, values and noise of one field, for `condition`."""
    noise = measured.noise[:, channels] / scale.half_width
    places, values, noise = (torch.as_tensor(part, dtype=torch.float32)[None] for part in (
        measured.places, scale.to_inside(measured.values[:, channels]), noise))
    return places, values, noise if noise.any() else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is said of measurements was said of those that were fitted."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def answer(plan: Plan, given: Measurements, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A tile with the axes x (W,) and y (H,), from the measurements near to it.

    With one thread, so that it is the same whatever else a machine does.

    Returns:
        (bands, H, W) float32: of each channel mean, sd and answers, then its samples.
    """
    torch.set_num_threads(1)
    asked = plan.asked(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), len(given.coords))
    with _quiet():
        measured = observe(_closed_form(), given, asked, plan.settings)
    queries = plan.frame.inside(asked.places)
    distance, nearest = scipy.spatial.cKDTree(measured.places).query(
        queries, distance_upper_bound=SAME_PLACE)
    is_known = np.isfinite(distance)
    is_known[is_known] = (measured.noise[nearest[is_known]] == 0).all(axis=1)
    places = torch.as_tensor(queries[~is_known], dtype=torch.float32)[None]
    transform = plan.settings.transform
    bands: list[np.ndarray] = []
    for own, scale, priors in plan.parts:
        shape = (len(queries), len(scale.value_range))
        mean, sd = np.empty(shape, np.float32), np.zeros(shape, np.float32)
        samples = np.empty((plan.samples, *shape), np.float32)
        samples[:, is_known] = mean[is_known] = measured.values[nearest[is_known], own]
        if not is_known.all():
            posterior = condition(*_tensors(measured, own, scale), domain=UNIT_SQUARE,
                                  trend=TRENDS[plan.settings.trend], priors=priors)
            found = posterior.at(places)
            mean[~is_known] = scale.to_physical(found.mean[0].numpy())
            sd[~is_known] = found.sd[0].numpy() * scale.half_width
            seeds = [hashed.noise_seed(plan.settings.seed, own.start, k + 1)
                     for k in range(plan.samples)]
            if seeds:
                drawn = posterior.noise(places)([torch.Generator().manual_seed(k) for k in seeds])
                samples[:, ~is_known] = scale.to_physical((found.mean + found.sd * drawn).numpy())
        field = Field(asked.places, mean, sd, samples, "", names=plan.names[own],
                      gaussian=Gaussian(mean, sd, transform))
        answers = field.answers(plan.above, plan.quantiles).values()
        if transform is not None:
            mean, sd = moments(transform, mean, sd)
            samples = untransformed(transform, samples)
        for c in range(shape[1]):
            bands += [part[:, c] for part in (mean, sd, *answers, *samples)]
    return np.stack(bands).astype(np.float32).reshape(len(bands), len(y), len(x))
