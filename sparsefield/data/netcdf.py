"""Variables of a NetCDF file, gaps as NaN: classic files by SciPy, NetCDF-4 by xarray."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

from sparsefield.data.files import require_file
from sparsefield.errors import UserError

ENDINGS = (".nc", ".cdf", ".nc3", ".nc4", ".netcdf")
# What SciPy raises on files that are cut off or no NetCDF.
_BROKEN = (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError, AssertionError,
           struct.error)
UNFILLED = 9.9e36  # what NetCDF writes where nothing was written, but for rounding


@dataclass(frozen=True)
class Variable:
    """One variable.

    Attributes:
        dims: names of its axes. values: float64, NaN where nothing was measured.
        attributes: text and numbers that the file says of it.
    """

    name: str
    dims: tuple[str, ...]
    values: np.ndarray
    attributes: dict[str, object]

    @property
    def units(self) -> str | None:
        return str(self.attributes["units"]).strip() or None if "units" in self.attributes else None

    def describe(self) -> str:
        """Such as "sst (time 12, lat 90, lon 180)"."""
        sides = ", ".join(f"{dim} {size}" for dim, size in zip(self.dims, self.values.shape))
        return f"{self.name} ({sides})"


def read_variables(path: Path, wanted: Sequence[str] | None = None) -> dict[str, Variable]:
    """All variables of numbers in a file, or those of these names (in any case of letters).

    `_FillValue` and `missing_value` become NaN, `scale_factor` and `add_offset` are applied.

    Raises:
        UserError: no such file or variable, cut off, or NetCDF-4 where xarray cannot read it.
    """
    require_file(path)
    with _opened(path) as file:
        shapes = {name: (variable.dimensions, variable.shape)
                  for name, variable in file.variables.items()}
        names = list(shapes) if wanted is None else [_find(path, shapes, name) for name in wanted]
        found = {name: _decoded(path, name, file.variables[name]) for name in names}
    return {name: variable for name, variable in found.items() if variable is not None}


@contextmanager
def _opened(path: Path) -> Iterator[object]:
    """A file whose `variables` have dimensions, shape, data and _attributes."""
    try:
        with path.open("rb") as file:
            beginning = file.read(4)
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r or choose another") from None
    if beginning in (b"\x89HDF", b"CDF\x05"):
        yield _by_xarray(path)
        return
    if beginning[:3] != b"CDF":
        raise UserError(f"{path}: no NetCDF file, whatever its name says")
    try:
        with scipy.io.netcdf_file(path, mmap=False) as file:
            yield file
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: broken or cut off ({reason}); copy it again") from None


@dataclass(frozen=True)
class _Stored:
    """A variable as SciPy gives it."""

    dimensions: tuple[str, ...]
    data: np.ndarray
    _attributes: dict[str, object]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


@dataclass(frozen=True)
class _File:
    variables: dict[str, _Stored]


def _by_xarray(path: Path) -> _File:
    way_out = "pip install xarray netCDF4, or make it classic: nccopy -k classic in.nc out.nc"
    try:
        import xarray
    except ImportError:
        raise UserError(f"{path}: NetCDF-4 (and CDF-5) is read by xarray: {way_out}") from None
    try:
        with xarray.open_dataset(path, decode_cf=False) as data:
            return _File({str(name): _Stored(tuple(map(str, v.dims)), np.asarray(v.values),
                                             dict(v.attrs))
                          for name, v in data.variables.items()})
    except (ValueError, ImportError) as error:  # none of its engines is there
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: xarray cannot read it ({reason}); {way_out}") from None
    except (*_BROKEN, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: broken or cut off (xarray: {reason}); copy it again") from None


def _find(path: Path, shapes: dict[str, tuple], wanted: str) -> str:
    """The name of a variable as the file writes it."""
    if wanted in shapes:
        return wanted
    alike = [name for name in shapes if name.lower() == wanted.lower()]
    if len(alike) == 1:
        return alike[0]
    there = ", ".join(f"{name} ({' x '.join(map(str, shape))})"
                      for name, (_, shape) in shapes.items() if len(shape) > 0)
    raise UserError(f"{path}: no variable {wanted!r}; choose with --variables or --value among "
                    f"{there or 'none'}")


def _decoded(path: Path, name: str, stored: object) -> Variable | None:
    """Physical values; None for text."""
    attributes = {key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                  for key, value in stored._attributes.items()}
    data = np.asarray(stored.data)
    if data.dtype.kind not in "uif":
        return None
    if data.ndim != len(stored.dimensions):
        raise UserError(f"{path}: {name} is cut off; copy the file again")
    values = data.astype(np.float64)
    gaps = np.isfinite(values) & (np.abs(values) >= UNFILLED)
    for key in ("_FillValue", "missing_value"):
        for marker in np.ravel(attributes.get(key, [])):
            gaps |= data == marker
    values = values * _number(attributes, "scale_factor", 1) + _number(attributes, "add_offset", 0)
    values[gaps] = np.nan
    return Variable(name, tuple(stored.dimensions), values, attributes)


def _number(attributes: dict[str, object], key: str, otherwise: float) -> float:
    """A number that the file says, once."""
    try:
        return float(np.ravel(attributes.get(key, otherwise))[0])
    except (TypeError, ValueError, IndexError):
        return otherwise


# --- which axis is which --------------------------------------------------------------------------

_UNITS = {"x": ("degrees_east", "degree_east", "degrees_e", "degree_e"),
          "y": ("degrees_north", "degree_north", "degrees_n", "degree_n")}
_NAMES = {"x": ("lon", "longitude", "x", "easting", "projection_x_coordinate"),
          "y": ("lat", "latitude", "y", "northing", "projection_y_coordinate")}


def axis_of(variable: Variable) -> str | None:
    """Whether the file says that a coordinate is "x" or "y", by axis, units or name (CF, 4)."""
    says = {key: str(variable.attributes.get(key, "")).strip().lower()
            for key in ("axis", "units", "standard_name")}
    for axis in "xy":
        if says["axis"] == axis or says["units"] in _UNITS[axis] or (
            {says["standard_name"], variable.name.lower()} & set(_NAMES[axis])
        ):
            return axis
    return None


def is_longitude(variable: Variable) -> bool:
    """Whether an x axis is in degrees east."""
    return str(variable.attributes.get("units", "")).strip().lower() in _UNITS["x"]


def grid_axes(path: Path) -> tuple[Variable, Variable]:
    """The x and y axes of a file's grid.

    Raises:
        UserError: not one of each, or one that neither grows nor falls.
    """
    variables = read_variables(path)
    axes = {"x": [], "y": []}
    for variable in variables.values():
        if variable.dims == (variable.name,) and (axis := axis_of(variable)):
            axes[axis].append(variable)
    for axis, found in axes.items():
        if len(found) != 1:
            names = ", ".join(v.name for v in found) or "none"
            raise UserError(f"{path}: which is the {axis} axis of the grid? found {names}; give "
                            "a file with one x and one y axis (units degrees_east and "
                            "degrees_north, or names lon and lat, x and y), or --resolution")
        steps = np.diff(found[0].values)
        if not (np.isfinite(found[0].values).all() and ((steps > 0).all() or (steps < 0).all())):
            raise UserError(f"{path}: axis {found[0].name} neither grows nor falls all along; give "
                            "another grid, or --resolution")
    return axes["x"][0], axes["y"][0]
