"""Grids with coordinates, NetCDF and GeoTIFF: what a file holds, and tiles to train on."""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparsefield.data.arrays import Part, array_data
from sparsefield.data.files import one_line, require_file, tell_of_no_quantity
from sparsefield.data.scale import Data, require_units
from sparsefield.errors import UserError

if TYPE_CHECKING:
    from xarray import DataArray, Dataset, Variable

log = logging.getLogger("sparsefield")

ENDINGS = (".nc", ".cdf", ".nc3", ".nc4", ".netcdf")
GEOTIFF = (".tif", ".tiff")
ZARR = ".zarr"
# What engines raise on files that are cut off or of another format.
_BROKEN = (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError, AssertionError,
           AttributeError, RuntimeError, struct.error)
UNFILLED = 9.9e36  # what NetCDF writes where nothing was written, but for rounding
HELD_OUT = 0.1  # share of years, times or columns that become validation, and again test
LEAST_YEARS = 3
UNEVEN = 0.05  # of a step, by which the steps of an axis may differ in training
REGULAR = 1e-3  # in a GeoTIFF or a picture


# --- reading --------------------------------------------------------------------------------------


def read_dataset(path: Path) -> Dataset:
    """All variables of a NetCDF file or a GeoTIFF, in memory, NaN where nothing was measured.

    Packed and unsigned numbers are decoded. Fill values count in the type of the data. What lies
    outside valid_min, valid_max or valid_range is missing, too. Times stay numbers.

    Raises:
        UserError: no such file, no permission, broken, another format, or a package is not there.
    """
    with _readable(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _opened(path, decode_cf=False) as file:
            found = file.load()
        return found if path.suffix.lower() in GEOTIFF else _decoded(found)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Within it, what engines raise is said in one line, and before, that there is no such file."""
    if not (path.suffix.lower() == ZARR and path.is_dir()):
        require_file(path)
    try:
        yield
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r or choose another") from None
    except _BROKEN as error:
        raise UserError(f"{path}: broken or cut off ({one_line(error)}); copy it again") from None


@contextmanager
def lazily(path: Path) -> Iterator[Dataset]:
    """A NetCDF file, a zarr or a GeoTIFF whose values are read when they are asked for. Raises as
    `read_dataset`."""
    with _readable(path), _opened(path, decode_times=False) as file:
        yield file


class Stored:
    """One variable of a NetCDF file or a zarr, which stays open. Raises as `read_dataset`."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        with _readable(path):
            self.file = _opened(path, decode_cf=False)[[name]]

    def part(self, where: Mapping[str, slice]) -> DataArray:
        """Some of its cells, in memory and decoded, as of `read_dataset`."""
        with _readable(self.path):
            return _decoded(self.file.isel(where).load())[self.name]


def _decoded(stored: Dataset) -> Dataset:
    """Of variables in memory as they are stored."""
    import xarray

    gaps = {name: _gaps(str(name), variable) for name, variable in stored.variables.items()
            if variable.dtype.kind in "iuf"}
    decoded = xarray.decode_cf(stored, decode_times=False, decode_coords=False)
    return decoded.assign({name: decoded[name].where(~gap) for name, gap in gaps.items()
                           if gap.any() and name not in decoded.dims})


def _engine(path: Path) -> dict[str, object]:
    """Which of xarray's engines reads a file, by how it begins."""
    if path.suffix.lower() == ZARR:
        if not find_spec("zarr"):
            raise UserError(f"{path}: needs one more package: pip install zarr")
        return {"engine": "zarr"}
    with path.open("rb") as file:
        beginning = file.read(4)
    if beginning in (b"CDF\x01", b"CDF\x02"):
        return {"engine": "scipy", "mmap": False}
    if beginning not in (b"\x89HDF", b"CDF\x05"):
        raise UserError(f"{path}: no NetCDF file, whatever its name says")
    if beginning == b"CDF\x05" or not (find_spec("h5netcdf") and find_spec("h5py")):
        raise UserError(f"{path}: NetCDF-4 needs more packages: pip install h5netcdf h5py; or make "
                        "it classic (CDF-5, too): nccopy -k classic in.nc out.nc")
    return {"engine": "h5netcdf"}


def _opened(path: Path, **how: bool) -> Dataset:
    """The file, open; how: its variables are decoded, but for a GeoTIFF."""
    if path.suffix.lower() not in GEOTIFF:
        import xarray

        return xarray.open_dataset(path, **how, **_engine(path))
    if find_spec("rioxarray") is None:
        raise UserError(f"{path}: a GeoTIFF needs rioxarray: pip install rioxarray; pictures to "
                        "train on are given as a folder")
    import rioxarray

    file = rioxarray.open_rasterio(path, mask_and_scale=True, band_as_variable=True)
    if file.rio.transform().is_identity:
        raise UserError(f"{path}: no GeoTIFF, it has no coordinates; pictures to train on are "
                        "given as a folder")
    return file


# --- what xarray's decoding leaves ----------------------------------------------------------------


def _gaps(name: str, variable: Variable) -> np.ndarray:
    """Where a stored variable was not measured; it becomes unsigned if it says so.

    xarray compares fill values in their own type, which -999.9 as double beside float32 fails, and
    knows no valid range.
    """
    attributes, data = variable.attrs, variable.values
    if str(attributes.pop("_Unsigned", "")).lower() == "true" and data.dtype.kind == "i":
        data = variable.data = data.view(data.dtype.str.replace("i", "u"))
    gaps = np.isin(data, [_as_stored(fill, data.dtype) for key in ("_FillValue", "missing_value")
                          for fill in np.ravel(attributes.pop(key, []))])
    if data.dtype.kind == "f":
        gaps |= np.isnan(data) | (np.abs(data) >= UNFILLED) & np.isfinite(data)
    outside = _is_outside(data, attributes) & ~gaps
    if outside.any():
        log.info("%s: %d values outside its valid range are taken as missing", name, outside.sum())
    return gaps | outside


def _as_stored(number: np.generic, dtype: np.dtype) -> np.generic:
    """A number in the type of the data; NaN where this cannot hold it, and for text."""
    if number.dtype.kind not in "iuf":
        return np.nan
    with np.errstate(all="ignore"):
        stored = number.astype(dtype)
    is_held = dtype.kind == "f" or stored.astype(number.dtype) == number
    return stored if is_held else np.nan


def _is_outside(data: np.ndarray, attributes: dict[str, object]) -> np.ndarray:
    """Whether stored values leave their valid range (NetCDF attribute conventions).

    Its bounds are stored values, unless they are floats beside packed integers.
    """
    pair = np.ravel(attributes.get("valid_range", []))
    low, high = pair if len(pair) == 2 else (
        attributes.get("valid_min", np.nan), attributes.get("valid_max", np.nan))
    outside = np.zeros(data.shape, bool)
    for bound, leaves in ((low, np.less), (high, np.greater)):
        bound, values = np.ravel(bound)[0], data
        if bound.dtype.kind not in "iuf":
            continue
        if bound.dtype.kind == "f" and data.dtype.kind != "f":
            values = (data * np.ravel(attributes.get("scale_factor", 1.0))[0]
                      + np.ravel(attributes.get("add_offset", 0.0))[0])
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


def is_time(axis: DataArray) -> bool:
    """Whether an axis is one of time, by type, axis, units or name."""
    is_decoded = axis.dtype.kind == "M" or (
        axis.size > 0 and hasattr(np.ravel(axis.values)[0], "calendar"))
    return is_decoded or str(axis.attrs.get("axis", "")).upper() == "T" or (
        " since " in str(axis.attrs.get("units", ""))) or (
        "time" in (str(axis.name).lower(), axis.attrs.get("standard_name")))


def is_longitude(variable: DataArray) -> bool:
    """Whether an x axis is in degrees east, and not about another pole."""
    return (str(variable.attrs.get("units", "")).strip().lower() in _UNITS["x"]
            and "grid" not in str(variable.attrs.get("standard_name", "")))


def grid_axes(path: Path, dataset: Dataset | None = None) -> tuple[DataArray, DataArray]:
    """The x and y axes of a file's grid; dataset: what it holds, if it was opened already. Nothing
    else of it is read.

    Raises:
        UserError: not one of each, or one that neither grows nor falls.
    """
    if dataset is None:
        with lazily(path) as opened:
            x, y = grid_axes(path, opened)
            return x.load(), y.load()
    axes = {"x": [], "y": []}
    for name in dataset.indexes:
        if dataset[name].dtype.kind in "iuf" and (axis := axis_of(dataset[name])):
            axes[axis].append(dataset[name])
    for axis, found in axes.items():
        if len(found) != 1:
            names = ", ".join(str(v.name) for v in found) or "none"
            raise UserError(f"{path}: which is the {axis} axis of the grid? found {names}; give "
                            "one x and one y axis, with units degrees_east and degrees_north, or "
                            "named lon and lat, or x and y")
        steps = np.diff(found[0].values)
        if not (np.isfinite(found[0].values).all() and ((steps > 0).all() or (steps < 0).all())):
            raise UserError(f"{path}: axis {found[0].name} neither grows nor falls all along: sort "
                            "it, or give another grid")
    return axes["x"][0], axes["y"][0]


def is_even(axis: np.ndarray, tolerance: float) -> bool:
    """Whether the steps of an axis differ by no more than a share of their mean, and what rounding
    to float32 explains."""
    steps, single = np.diff(axis), np.asarray(axis, np.float32)
    is_rounded = np.array_equal(single, axis) and not np.array_equal(single, single.round())
    rounding = 2 * float(np.spacing(np.abs(single).max())) if is_rounded else 0.0
    return len(steps) == 0 or bool(np.ptp(steps) <= tolerance * abs(steps.mean()) + rounding)


def read_plane(
    path: Path, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Variables of axes (y, x) by their names: x (W,), y (H,), values (H, W, p), as in the file,
    and their units.

    Bands of a GeoTIFF have the names that describe them; the only one answers to any one name.

    Raises:
        UserError: one is not there, or has other axes.
    """
    dataset = read_dataset(path)
    x, y = grid_axes(path, dataset)
    fields = {str(name): dataset[name] for name in dataset.data_vars
              if dataset[name].dtype.kind in "iuf" and dataset[name].ndim >= 2}
    if path.suffix.lower() in GEOTIFF:
        called = {str(band.attrs.get("long_name", name)): band for name, band in fields.items()}
        fields = called if len(called) == len(fields) else fields
        if len(names) == len(fields) == 1:
            fields = {names[0]: next(iter(fields.values()))}
    planes, units = [], []
    for name in names:
        plane = find(path, fields, name, "--covariates")
        plane = plane.squeeze([dim for dim, count in plane.sizes.items()
                               if count == 1 and dim not in (x.name, y.name)], drop=True)
        if set(plane.dims) != {x.name, y.name}:
            raise UserError(f"{path}: {describe(plane)}: a covariate has the axes {y.name} and "
                            f"{x.name} alone; choose one step of the others first")
        planes.append(plane.transpose(y.name, x.name).values.astype(np.float64))
        units.append(units_of(plane) or "")
    return x.values, y.values, np.stack(planes, axis=-1), tuple(units)


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
        times: (N,) in the units of the file, or None.
        rows_up: whether the rows have a coordinate, which they grow with.
        steps: (2,), mean steps of rows and columns, NaN without coordinates.
    """

    values: np.ndarray
    units: str | None
    years: np.ndarray | None
    times: np.ndarray | None
    rows_up: bool
    steps: np.ndarray


def read_fields(path: Path, names: Sequence[str] | None = None) -> Fields:
    """The fields of the variables of these names, a channel each; see `open_netcdf`."""
    dataset = read_dataset(path)
    numeric = {str(name): dataset[name] for name in dataset.variables
               if dataset[name].dtype.kind in "iuf"}
    chosen = ([find(path, numeric, name) for name in names] if names
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
    for k, variable in enumerate(chosen):
        tell_of_no_quantity(f"{path}: {variable.name}", str(variable.name), units_of(variable),
                            values[..., k], "flag_meanings" in variable.attrs)
    steps = np.full(2, np.nan)
    for k, dim in enumerate(fields[0].dims[-2:]):
        axis = fields[0].coords[dim].values if dim in fields[0].coords else np.empty(0, str)
        if axis.dtype.kind not in "iuf" or len(axis) < 2:
            continue
        steps[k] = np.diff(axis).mean()
        if not is_even(axis, UNEVEN):
            log.warning("WARNING: %s: %s has steps from %.4g to %.4g, and a model is trained as if "
                        "all were equal: interpolate the fields to even steps first", path, dim,
                        np.abs(np.diff(axis)).min(), np.abs(np.diff(axis)).max())
    if not set(fields[0].dims[-2:]) & set(fields[0].coords) and (maps := [
        name for name, plane in numeric.items() if set(plane.dims) == set(fields[0].dims[-2:])
        and (axis_of(plane) == "y" or "lat" in name.lower().split("_"))
    ]):
        log.warning("WARNING: %s: places are in %s, of two dimensions, which is not read: rows are "
                    "taken as they are, downward; for maps, and to ask with longitude and latitude,"
                    " interpolate to even axes first", path, maps[0])
    units = [units_of(variable) or "" for variable in chosen]
    step, row = (*[None] * (3 - fields[0].ndim), *fields[0].dims)[:2]
    years = _years(fields[0][step]) if step in fields[0].coords else None
    joined = units[0] if len(set(units)) == 1 else ",".join(units)
    times = fields[0][step].values if step in fields[0].coords else np.empty(0, str)
    own = times[kept].astype(np.float64) if times.dtype.kind in "iuf" else None
    return Fields(values[kept], joined or None, None if years is None else years[kept], own,
                  row in fields[0].coords, steps)


def find(path: Path, variables: dict[str, DataArray], wanted: str,
          flag: str = "--variables") -> DataArray:
    """A variable by its name, in any case of letters where that is unique."""
    alike = [name for name in variables if name.lower() == wanted.lower()]
    if wanted in variables or len(alike) == 1:
        return variables[wanted if wanted in variables else alike[0]]
    raise UserError(f"{path}: no variable {wanted!r} of numbers; choose with {flag} among "
                    f"{', '.join(describe(v) for v in variables.values() if v.ndim) or 'none'}")


def _only_field(path: Path, variables: dict[str, DataArray]) -> DataArray:
    fields = [v for v in variables.values() if v.squeeze().ndim in (2, 3)]
    if len(fields) == 1:
        return fields[0]
    if fields:
        raise UserError(f"{path}: which variable? give --variables (VARIABLES=) of "
                        f"{', '.join(map(describe, fields))}")
    raise UserError(f"{path}: no fields of axes (y, x) or (time, y, x), but "
                    f"{', '.join(map(describe, variables.values())) or 'no numbers'}; lists of "
                    "stations are for reconstruct.py")


def _upright(path: Path, variable: DataArray) -> DataArray:
    """Axes (y, x) or (step, y, x), both growing; axes of one step are left out."""
    field = variable.squeeze(drop=True)
    if field.ndim not in (2, 3):
        raise UserError(f"{path}: {describe(variable)}: fields have axes (y, x) or (time, y, x); "
                        + ("choose one step of the others first" if field.ndim > 3 else
                           "lists of stations are for reconstruct.py"))
    axes = {axis_of(field[dim]): dim for dim in field.dims}
    times = [dim for dim in field.dims if is_time(field[dim])]
    if "x" in axes and "y" in axes:
        field = field.transpose(..., axes["y"], axes["x"])
    elif times:
        field = field.transpose(times[0], ...)
    if is_longitude(field[field.dims[-1]]):  # 359, 0 becomes 359, 360
        field = field.assign_coords({field.dims[-1]: np.unwrap(field[field.dims[-1]], period=360)})
    for dim in field.dims[-2:]:
        if dim in field.coords and field[dim].values[0] > field[dim].values[-1]:
            field = field.isel({dim: slice(None, None, -1)})
    return field


# Unit, year, month and day of a time axis, and the number of days in units of time; months and
# years are those of a calendar of 360 days.
_DAYS = {"s": 1 / 86400, "sec": 1 / 86400, "second": 1 / 86400, "min": 1 / 1440,
         "minute": 1 / 1440, "h": 1 / 24, "hr": 1 / 24, "hour": 1 / 24, "d": 1, "day": 1,
         "mon": 30, "month": 30, "yr": 360, "year": 360}
_YEAR_DAYS = {"360_day": 360, "noleap": 365, "365_day": 365, "all_leap": 366, "366_day": 366}
_TIME = re.compile(rf"\s*({'|'.join(_DAYS)})s?\s+(?:since|after|from)"
                   r"\s+(\d{1,4})-(\d{1,2})(?:-(\d{1,2}))?")


def _years(time: DataArray) -> np.ndarray | None:
    """The year of every step of an axis, None where it is no time (CF, 4.4)."""
    rule = _TIME.match(str(time.attrs.get("units", "")).lower())
    if not rule or np.isnan(time.values).any():
        return None
    year, month, day = int(rule[2]), int(rule[3]), int(rule[4] or 1)
    days = time.values.astype(np.float64) * _DAYS[rule[1]]
    calendar = str(time.attrs.get("calendar", "")).lower()
    length = 360 if _DAYS[rule[1]] >= 30 else _YEAR_DAYS.get(calendar)
    if length is None:
        since = np.datetime64(f"{year:04}-{month:02}-{day:02}", "s")
        moments = since + (days * 86400).round().astype("timedelta64[s]")
        return moments.astype("datetime64[Y]").astype(int) + 1970
    passed = 30 * (month - 1) + day if length == 360 else date(
        2000 if length == 366 else 2001, month, day).timetuple().tm_yday
    return np.floor(year + (passed - 1 + days) / length + 1e-9).astype(int)


# --- tiles ----------------------------------------------------------------------------------------


def open_netcdf(
    path: Path, *, variables: Sequence[str] | None = None, image_size: int = 32,
    value_range: Sequence[float] | None = None, units: str | None = None,
    val: Path | None = None, test: Path | None = None, frames: int = 1,
) -> Data:
    """Tiles of image_size points of the fields of a NetCDF or GeoTIFF; smaller grids stay whole.

    A field has axes (y, x), or one more, whose steps are samples (time). Times of three years or
    more are split by year, the last for test and those before for validation; else columns, the
    eastern for test; else steps. Files `val` and `test` replace these parts.

    Args:
        variables: names, a channel each; not needed where the file has one field.
        frames: of a sequence, steps that follow each other; 1: single fields.
    Raises:
        UserError: no such variable, other axes, all missing, cut off, too small to split, files
            in other units.
    """
    main = read_fields(path, variables)
    size = tuple(min(side, image_size) for side in main.values.shape[1:3])
    fields, times = [main.values] * 3, [main.times] * 3
    if not (val and test):
        fields, times = _split(path, main, size)
    parts = [Part(str(path), part, 0, len(part)) for part in fields]
    for number, file in ((1, val), (2, test)):
        if file:
            other = read_fields(file, variables)
            require_units(str(file), other.units, str(path), None if units else main.units)
            if (np.abs(other.steps / main.steps - 1) > UNEVEN).any():
                log.warning("WARNING: %s: steps of %s, those of %s are %s: a model learns what is "
                            "between steps, bring both to one grid", file, *(
                                " and ".join(f"{step:.4g}" for step in steps) if k else steps
                                for k, steps in ((1, other.steps), (0, path), (1, main.steps))))
            parts[number] = Part(str(file), other.values, 0, len(other.values))
            times[number] = other.times
    if frames > 1 and not all(own is None or (np.diff(own) > 0).all() for own in times):
        raise UserError(f"{path}: its times do not grow from step to step, and TIME asks for "
                        "fields that follow each other: sort them first")
    return array_data(path.name, parts, value_range, units or main.units, tile=size,
                      rows_up=main.rows_up, frames=frames, times=times)


Parts = tuple[list[np.ndarray], list[np.ndarray | None]]


def _split(path: Path, fields: Fields, size: tuple[int, int]) -> Parts:
    """Training, validation and test, and their times."""
    values, years = fields.values, fields.years
    count, width = len(values), values.shape[2]
    if years is not None and len(there := np.unique(years)) >= LEAST_YEARS:
        held = max(1, int(HELD_OUT * len(there)))
        log.info("%s: split by year: training to %d, validation to %d, test to %d", path.name,
                 there[-2 * held - 1], there[-held - 1], there[-1])
        part = np.digitize(years, [there[-2 * held], there[-held]])
        return ([values[part == k] for k in range(3)],
                [None if fields.times is None else fields.times[part == k] for k in range(3)])
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
    cuts, times = [total - 2 * held, total - held], [fields.times] * 3
    if axis == 0 and fields.times is not None:
        times = np.split(fields.times, cuts)
    return np.split(values, cuts, axis=axis), times
