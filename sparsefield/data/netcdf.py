"""Grids with coordinates, NetCDF and GeoTIFF: what a file holds, and tiles to train on."""

from __future__ import annotations

import hashlib
import logging
import re
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparsefield.data.arrays import Part, check_inside, refuse_codes
from sparsefield.data.files import require_file
from sparsefield.data.scale import Data, Scale, given_range, wide_enough
from sparsefield.errors import UserError

if TYPE_CHECKING:
    from xarray import DataArray, Dataset, Variable

log = logging.getLogger("sparsefield")

ENDINGS = (".nc", ".cdf", ".nc3", ".nc4", ".netcdf")
GEOTIFF = (".tif", ".tiff")
# What engines raise on files that are cut off or of another format.
_BROKEN = (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError, AssertionError,
           AttributeError, RuntimeError, struct.error)
UNFILLED = 9.9e36  # what NetCDF writes where nothing was written, but for rounding
HELD_OUT = 0.1  # share of years, times or columns that become validation, and again test
LEAST_YEARS = 3
LEAST_SHARE = 0.5  # of the points of a tile that exist
MOST_FROZEN = 256  # tiles of validation and of test
TRIES = 8


# --- reading --------------------------------------------------------------------------------------


def read_dataset(path: Path) -> Dataset:
    """All variables of a NetCDF file or a GeoTIFF, in memory, NaN where nothing was measured.

    Packed and unsigned numbers are decoded. Fill values count in the type of the data. What lies
    outside valid_min, valid_max or valid_range is missing, too. Times stay numbers.

    Raises:
        UserError: no such file, no permission, broken, another format, or a package is not there.
    """
    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read_geotiff(path) if path.suffix.lower() in GEOTIFF else _read_netcdf(path)
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r or choose another") from None
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: broken or cut off ({reason}); copy it again") from None


def _read_netcdf(path: Path) -> Dataset:
    import xarray

    with xarray.open_dataset(path, decode_cf=False, **_engine(path)) as file:
        stored = file.load()
    gaps = {name: _prepare(str(name), variable) for name, variable in stored.variables.items()
            if variable.dtype.kind in "iuf"}
    decoded = xarray.decode_cf(stored, decode_times=False, decode_coords=False)
    return decoded.assign({name: decoded[name].where(~gap) for name, gap in gaps.items()
                           if gap.any() and name not in decoded.dims})


def _engine(path: Path) -> dict[str, object]:
    """Which of xarray's engines reads a file, by how it begins."""
    with path.open("rb") as file:
        beginning = file.read(4)
    if beginning in (b"CDF\x01", b"CDF\x02"):
        return {"engine": "scipy", "mmap": False}
    if beginning not in (b"\x89HDF", b"CDF\x05"):
        raise UserError(f"{path}: no NetCDF file, whatever its name says")
    if find_spec("netCDF4"):
        return {"engine": "netcdf4"}
    if beginning == b"\x89HDF" and find_spec("h5netcdf") and find_spec("h5py"):
        return {"engine": "h5netcdf"}
    raise UserError(f"{path}: NetCDF-4 needs more packages: pip install h5netcdf h5py (netCDF4 for "
                    "CDF-5), or make it classic: nccopy -k classic in.nc out.nc")


def _read_geotiff(path: Path) -> Dataset:
    if find_spec("rioxarray") is None:
        raise UserError(f"{path}: a GeoTIFF needs rioxarray: pip install rioxarray; pictures to "
                        "train on are given as a folder")
    import rioxarray

    with rioxarray.open_rasterio(path, mask_and_scale=True, band_as_variable=True) as file:
        if file.rio.transform().is_identity:
            raise UserError(f"{path}: no GeoTIFF, it has no coordinates; pictures to train on are "
                            "given as a folder")
        return file.load()


# --- what xarray's decoding leaves ----------------------------------------------------------------


def _prepare(name: str, variable: Variable) -> np.ndarray:
    """Make a stored variable unsigned if it says so, without fill values; return where it has gaps.

    xarray compares fill values in their own type, which -999.9 as double beside float32 fails, and
    knows no valid range.
    """
    attributes = variable.attrs
    is_unsigned = str(attributes.pop("_Unsigned", "")).lower() == "true"
    if is_unsigned and variable.dtype.kind == "i":
        variable.data = variable.values.view(variable.dtype.str.replace("i", "u"))
    data = variable.values
    fills = [_as_stored(attributes.pop(key, []), data.dtype)
             for key in ("_FillValue", "missing_value")]
    gaps = np.isin(data, np.concatenate(fills))
    if data.dtype.kind == "f":
        gaps |= np.isnan(data) | (np.abs(data) >= UNFILLED) & np.isfinite(data)
    outside = _is_outside(data, attributes) & ~gaps
    if outside.any():
        log.info("%s: %d values outside its valid range are taken as missing", name, outside.sum())
    return gaps | outside


def _as_stored(numbers: object, dtype: np.dtype) -> np.ndarray:
    """Numbers in the type of the data, without those that it cannot hold."""
    try:
        numbers = np.ravel(numbers)
        numbers = numbers if numbers.dtype.kind in "iuf" else numbers.astype(np.float64)
    except ValueError:  # text
        return np.empty(0, dtype)
    with np.errstate(all="ignore"):
        stored = numbers.astype(dtype)
        return stored if dtype.kind == "f" else stored[stored.astype(numbers.dtype) == numbers]


def _is_outside(data: np.ndarray, attributes: dict[str, object]) -> np.ndarray:
    """Whether stored values leave their valid range (NetCDF attribute conventions).

    Its bounds are stored values, unless they are floats beside packed integers.
    """
    pair = np.ravel(attributes.get("valid_range", []))
    low, high = pair if len(pair) == 2 else (
        attributes.get("valid_min"), attributes.get("valid_max"))
    outside = np.zeros(data.shape, bool)
    for bound, leaves in ((low, np.less), (high, np.greater)):
        if bound is None or (bound := np.ravel(bound)[0]).dtype.kind not in "iuf":
            continue
        values = data
        if bound.dtype.kind == "f" and data.dtype.kind != "f":
            factor = np.ravel(attributes.get("scale_factor", 1.0))[0]
            values = data * factor + np.ravel(attributes.get("add_offset", 0.0))[0]
        elif data.dtype.kind == "f" or bound.itemsize == data.itemsize:
            bound = bound.astype(data.dtype)
        outside |= leaves(values, bound)
    return outside


# --- which axis is which --------------------------------------------------------------------------

_UNITS = {"x": ("degrees_east", "degree_east", "degrees_e", "degree_e"),
          "y": ("degrees_north", "degree_north", "degrees_n", "degree_n")}
_NAMES = {"x": ("lon", "longitude", "x", "easting", "projection_x_coordinate", "rlon"),
          "y": ("lat", "latitude", "y", "northing", "projection_y_coordinate", "rlat")}


def axis_of(variable: DataArray) -> str | None:
    """Whether the file says that a coordinate is "x" or "y", by axis, units or name (CF, 4)."""
    text = {key: str(variable.attrs.get(key, "")).strip().lower()
            for key in ("axis", "units", "standard_name")}
    for axis in "xy":
        if text["axis"] == axis or text["units"] in _UNITS[axis] or (
            {text["standard_name"], str(variable.name).lower()} & set(_NAMES[axis])
        ):
            return axis
    return None


def is_longitude(variable: DataArray) -> bool:
    """Whether an x axis is in degrees east."""
    return str(variable.attrs.get("units", "")).strip().lower() in _UNITS["x"]


def grid_axes(path: Path) -> tuple[DataArray, DataArray]:
    """The x and y axes of a file's grid.

    Raises:
        UserError: not one of each, or one that neither grows nor falls.
    """
    dataset = read_dataset(path)
    axes = {"x": [], "y": []}
    for name in dataset.indexes:
        if dataset[name].dtype.kind in "iuf" and (axis := axis_of(dataset[name])):
            axes[axis].append(dataset[name])
    for axis, found in axes.items():
        if len(found) != 1:
            names = ", ".join(str(v.name) for v in found) or "none"
            raise UserError(f"{path}: which is the {axis} axis of the grid? found {names}; give "
                            "a file with one x and one y axis (units degrees_east and "
                            "degrees_north, or names lon and lat, x and y), or --resolution")
        steps = np.diff(found[0].values)
        if not (np.isfinite(found[0].values).all() and ((steps > 0).all() or (steps < 0).all())):
            raise UserError(f"{path}: axis {found[0].name} neither grows nor falls all along; give "
                            "another grid, or --resolution")
    return axes["x"][0], axes["y"][0]


def units_of(variable: DataArray) -> str | None:
    """The units that a file gives for a variable."""
    return str(variable.attrs.get("units", "")).strip() or None


def describe(variable: DataArray) -> str:
    """Such as "sst (time 12, lat 90, lon 180)"."""
    return f"{variable.name} ({', '.join(f'{dim} {n}' for dim, n in variable.sizes.items())})"


# --- fields ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """The fields of a file. Columns grow with x; rows grow with y where the file has y.

    Attributes:
        values: (N, H, W, C) float32, NaN in all channels where one is missing.
        units: of the channels, as a Scale has them. years: (N,) whole numbers, or None.
        rows_up: whether the rows have a coordinate, which they grow with.
    """

    values: np.ndarray
    units: str | None
    years: np.ndarray | None
    rows_up: bool


def read_fields(path: Path, names: Sequence[str] | None = None) -> Fields:
    """The fields of the variables of these names, a channel each; see `open_netcdf`."""
    dataset = read_dataset(path)
    numeric = {str(name): dataset[name] for name in dataset.variables
               if dataset[name].dtype.kind in "iuf"}
    chosen = ([_find(path, numeric, name) for name in names] if names
              else [_only_field(path, numeric)])
    first = chosen[0]
    for variable in chosen[1:]:
        if variable.sizes != first.sizes:
            raise UserError(f"{path}: {describe(variable)} and {describe(first)} lie on other "
                            "axes; channels must share them")
    fields = [_upright(path, variable) for variable in chosen]
    values = np.stack([field.values for field in fields], axis=-1).astype(np.float32)
    values = values if values.ndim == 4 else values[None]
    values[np.isnan(values).any(axis=-1)] = np.nan
    kept = ~np.isnan(values).all(axis=(1, 2, 3))
    if not kept.any():
        raise UserError(f"{path}: all of {', '.join(str(v.name) for v in chosen)} is missing; "
                        "choose another variable")
    if np.isinf(values).any():
        raise UserError(f"{path}: {first.name} holds infinite values; mark gaps by _FillValue")
    units = [units_of(variable) or "" for variable in chosen]
    step, row = (*[None] * (3 - fields[0].ndim), *fields[0].dims)[:2]
    years = _years(fields[0][step]) if step in fields[0].coords else None
    joined = units[0] if len(set(units)) == 1 else ",".join(units)
    return Fields(values[kept], joined or None, None if years is None else years[kept],
                  rows_up=row in fields[0].coords)


def _find(path: Path, variables: dict[str, DataArray], wanted: str) -> DataArray:
    """A variable by its name, in any case of letters where that is unique."""
    alike = [name for name in variables if name.lower() == wanted.lower()]
    if wanted in variables or len(alike) == 1:
        return variables[wanted if wanted in variables else alike[0]]
    there = ", ".join(describe(v) for v in variables.values() if v.ndim > 0)
    raise UserError(f"{path}: no variable {wanted!r} of numbers; choose with --variables among "
                    f"{there or 'none'}")


def _only_field(path: Path, variables: dict[str, DataArray]) -> DataArray:
    fields = [v for v in variables.values() if v.squeeze().ndim in (2, 3)]
    if len(fields) == 1:
        return fields[0]
    if fields:
        raise UserError(f"{path}: which variable? give --variables (VARIABLES=) of "
                        f"{', '.join(map(describe, fields))}")
    found = ", ".join(map(describe, variables.values())) or "no numbers"
    raise UserError(f"{path}: no fields of axes (y, x) or (time, y, x), but {found}; lists of "
                    "stations are for reconstruct.py")


def _upright(path: Path, variable: DataArray) -> DataArray:
    """Axes (y, x) or (step, y, x), both growing; axes of one step are left out."""
    field = variable.squeeze(drop=True)
    if field.ndim not in (2, 3):
        raise UserError(f"{path}: {describe(variable)}: fields have axes (y, x) or (time, y, x); "
                        + ("choose one step of the others first" if field.ndim > 3 else
                           "lists of stations are for reconstruct.py"))
    axes = {axis_of(field[dim]): dim for dim in field.dims}
    if "x" in axes and "y" in axes:
        field = field.transpose(..., axes["y"], axes["x"])
    for dim in field.dims[-2:]:
        if dim in field.coords and field[dim].values[0] > field[dim].values[-1]:
            field = field.isel({dim: slice(None, None, -1)})
    return field


_TIME = re.compile(r"\s*(\w+?)s?\s+(?:since|after|from)\s+(\d{1,4})-(\d{1,2})(?:-(\d{1,2}))?")
_MONTHS = {"month": 1, "mon": 1, "year": 12, "yr": 12}
_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hr": 3600,
            "hour": 3600, "d": 86400, "day": 86400}
_YEAR_DAYS = {"360_day": 360, "noleap": 365, "365_day": 365, "all_leap": 366, "366_day": 366}


def _years(time: DataArray) -> np.ndarray | None:
    """The year of every step of an axis, None where it is no time (CF, 4.4)."""
    rule = _TIME.match(str(time.attrs.get("units", "")).lower())
    if not rule or rule[1] not in _MONTHS | _SECONDS or np.isnan(time.values).any():
        return None
    year, month, day = int(rule[2]), int(rule[3]), int(rule[4] or 1)
    if rule[1] in _MONTHS:
        return np.floor(year + (month - 1 + time.values * _MONTHS[rule[1]]) / 12 + 1e-6).astype(int)
    seconds = (time.values.astype(np.float64) * _SECONDS[rule[1]]).round()
    days = _YEAR_DAYS.get(str(time.attrs.get("calendar", "")).lower())
    if days is None:
        since = np.datetime64(f"{year:04}-{month:02}-{day:02}", "s")
        return (since + seconds.astype("timedelta64[s]")).astype("datetime64[Y]").astype(int) + 1970
    passed = 30 * (month - 1) + day if days == 360 else date(
        2000 if days == 366 else 2001, month, day).timetuple().tm_yday
    return np.floor(year + (passed - 1 + seconds / 86400) / days + 1e-9).astype(int)


# --- tiles ----------------------------------------------------------------------------------------


class TileSplit:
    """Tiles of a block of fields (N, H, W, C) in memory; see `scale.Split`.

    Example i is a frozen tile. A training example is a tile of the same field anywhere in the
    block, with points enough. Directions mean something on a map, and so does each channel.
    """

    is_symmetric = False

    def __init__(self, fields: np.ndarray, size: tuple[int, int], scale: Scale, where: str,
                 most: int | None = None):
        self.fields, self.size, self.scale = fields, size, scale
        self.tiles = _tiles(fields, size)
        if not self.tiles:
            raise UserError(
                f"{where}: no tile of {size[0]} x {size[1]} points of which half exist; "
                "choose a smaller --image_size, or another variable"
            )
        if most and len(self.tiles) > most:  # evenly from all
            chosen = np.linspace(0, len(self.tiles) - 1, most).round().astype(int)
            self.tiles = [self.tiles[k] for k in chosen]
        self.has_gaps = bool(np.isnan(fields).any())

    def __len__(self) -> int:
        return len(self.tiles)

    def example(self, index: int) -> np.ndarray:
        return self._cut(*self.tiles[index])

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        field, top, left = self.tiles[index]
        rows, columns = self.fields.shape[1] - self.size[0], self.fields.shape[2] - self.size[1]
        for _ in range(TRIES):
            tile = self._cut(field, int(rng.integers(rows + 1)), int(rng.integers(columns + 1)))
            if (~np.isnan(tile[..., 0])).mean() >= LEAST_SHARE:
                return tile
        return self._cut(field, top, left)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        return None

    def _cut(self, field: int, top: int, left: int) -> np.ndarray:
        tile = self.fields[field, top:top + self.size[0], left:left + self.size[1]]
        return self.scale.to_inside(tile)


def _tiles(fields: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Field, top and left of tiles side by side, of which half of the points exist."""
    found = []
    for top in range(0, fields.shape[1] - size[0] + 1, size[0]):
        for left in range(0, fields.shape[2] - size[1] + 1, size[1]):
            block = fields[:, top:top + size[0], left:left + size[1], 0]
            share = (~np.isnan(block)).mean(axis=(1, 2))
            found += [(int(n), top, left) for n in np.flatnonzero(share >= LEAST_SHARE)]
    return sorted(found)


def open_netcdf(
    path: Path, *, variables: Sequence[str] | None = None, image_size: int = 32,
    value_range: Sequence[float] | None = None, units: str | None = None,
    val: Path | None = None, test: Path | None = None,
) -> Data:
    """Tiles of image_size points of the fields of a NetCDF or GeoTIFF; smaller grids stay whole.

    A field has axes (y, x), or one more, whose steps are samples (time). Times of three years or
    more are split by year, the last for test and those before for validation; else columns, the
    eastern for test; else steps. Files `val` and `test` replace these parts.

    Args:
        variables: names, a channel each; not needed where the file has one field.
    Raises:
        UserError: no such variable, other axes, all missing, cut off, too small to split, files
            in other units.
    """
    main = read_fields(path, variables)
    size = tuple(min(side, image_size) for side in main.values.shape[1:3])
    others = [file and read_fields(file, variables) for file in (val, test)]
    for file, other in zip((val, test), others, strict=True):
        if other and other.values.shape[3] != main.values.shape[3]:
            raise UserError(f"{file}: {other.values.shape[3]} variables, {path} has "
                            f"{main.values.shape[3]}")
        if other and other.units and main.units and other.units != main.units:
            raise UserError(f"{file}: in {other.units}, {path} in {main.units}; convert one")
    parts = [main.values] * 3 if all(others) else _split(path, main, size)
    parts[1:] = [other.values if other else part
                 for other, part in zip(others, parts[1:], strict=True)]
    if value_range is None:
        refuse_codes(Part(str(path), parts[0], 0, len(parts[0])), "mark it as _FillValue")
    lows, highs = (np.stack([f(part, axis=(0, 1, 2)) for part in parts]).astype(float)
                   for f in (np.nanmin, np.nanmax))
    bounds = given_range(value_range, main.values.shape[3]) if value_range else tuple(
        map(wide_enough, lows[0].tolist(), highs[0].tolist()))
    scale = Scale(bounds, units or main.units)
    for file, low, high in zip((path, val or path, test or path), lows, highs, strict=True):
        check_inside(str(file), low, high, scale, warns=value_range is not None)
    train, validation, testing = (
        TileSplit(part, size, scale, f"{path} ({name})", most)
        for part, name, most in zip(parts, ("training", "validation", "test"),
                                    (None, MOST_FROZEN, MOST_FROZEN), strict=True))
    digest = hashlib.sha256(f"{size} {[part.shape for part in parts]}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part))
    return Data(path.name, *size, scale, digest.hexdigest(), train, validation, testing,
                main.rows_up)


def _split(path: Path, fields: Fields, size: tuple[int, int]) -> list[np.ndarray]:
    """Training, validation and test."""
    values, years = fields.values, fields.years
    count, width = len(values), values.shape[2]
    if years is not None and len(there := np.unique(years)) >= LEAST_YEARS:
        held = max(1, int(HELD_OUT * len(there)))
        log.info("%s: split by year: training to %d, validation to %d, test to %d", path.name,
                 there[-2 * held - 1], there[-held - 1], there[-1])
        part = np.digitize(years, [there[-2 * held], there[-held]])
        return [values[part == k] for k in range(3)]
    held = max(size[1], int(HELD_OUT * width))
    what, total, axis = "columns", width, 2
    if width < 2 * held + 2 * size[1]:
        held = max(1, int(HELD_OUT * count))
        what, total, axis = "fields", count, 0
    if total < 3:
        raise UserError(f"{path}: {count} fields of {values.shape[1]} x {width} points cannot be "
                        f"split into training, validation and test with tiles of {size[0]} x "
                        f"{size[1]}; choose a smaller --image_size, or name --data_val and "
                        "--data_test")
    log.info("%s: split in order: %d %s for training, %d each for validation and test",
             path.name, total - 2 * held, what, held)
    return np.split(values, [total - 2 * held, total - held], axis=axis)
