"""Data sets of NetCDF fields: tiles of a grid, at several times or places, land and gaps as NaN."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsefield.data.base import Data
from sparsefield.data.missing import lone_extreme
from sparsefield.data.netcdf import Variable, axis_of, read_variables
from sparsefield.data.scale import Scale, given_range, wide_enough
from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")

HELD_OUT = 0.1  # share of years, times or columns that become validation, and again test
LEAST_YEARS = 3
LEAST_SHARE = 0.5  # of the points of a tile that exist
MOST_FROZEN = 256  # tiles of validation and of test
TRIES = 8
SINCE = re.compile(r"\s*(\w+?)s?\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})")
DAYS = {"second": 1 / 86400, "minute": 1 / 1440, "hour": 1 / 24, "hr": 1 / 24, "day": 1.0,
        "month": 30.44, "year": 365.25}


@dataclass(frozen=True)
class Fields:
    """What a file holds.

    Attributes:
        values: (N, H, W, C) float32, NaN in all channels where one is missing.
        units: of the channels, as a Scale has them. years: (N,) whole numbers, or None.
    """

    values: np.ndarray
    units: str | None
    years: np.ndarray | None


class TileSplit:
    """Tiles of a block of fields (N, H, W, C) in memory; see `base.Split`.

    Example i is a frozen tile. A training example is a tile of the same field anywhere in the
    block, with points enough. Directions mean something on a map, and so does each channel.
    """

    is_symmetric = False

    def __init__(self, fields: np.ndarray, size: tuple[int, int], scale: Scale, where: str):
        self.fields, self.size, self.scale = fields, size, scale
        self.tiles = _tiles(fields, size)
        if not self.tiles:
            raise UserError(
                f"{where}: no tile of {size[0]} x {size[1]} points of which half exist; "
                "choose a smaller --image_size, or another variable"
            )
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

    def only(self, most: int) -> TileSplit:
        """The same with at most so many tiles, evenly from all."""
        if len(self.tiles) > most:
            chosen = np.linspace(0, len(self.tiles) - 1, most).round().astype(int)
            self.tiles = [self.tiles[k] for k in chosen]
        return self


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
    """Tiles of image_size points of the fields of a NetCDF file; smaller grids stay whole.

    A field has axes (y, x), or one more, whose steps are samples (time). Times of three years or
    more are split by year, the last for test and those before for validation; else columns, the
    eastern for test; else steps. Files `val` and `test` replace these parts.

    Args:
        variables: names, a channel each; not needed where the file has one field.
    Raises:
        UserError: no such variable, other axes, all missing, cut off, too small to split.
    """
    fields = read_fields(path, variables)
    size = tuple(min(side, image_size) for side in fields.values.shape[1:3])
    parts = _split(path, fields, size)
    for k, other in ((1, val), (2, test)):
        if other is not None:
            parts[k] = read_fields(other, variables).values
            if parts[k].shape[3] != fields.values.shape[3]:
                raise UserError(f"{other}: {parts[k].shape[3]} variables, {path} has "
                                f"{fields.values.shape[3]}")
    if val is not None and test is not None:
        parts[0] = fields.values
    scale = Scale(_range(path, parts[0], value_range), units or fields.units)
    train, validation, testing = (
        TileSplit(part, size, scale, f"{path} ({name})")
        for part, name in zip(parts, ("training", "validation", "test")))
    digest = hashlib.sha256(f"{size} {[part.shape for part in parts]}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part))
    return Data(path.name, *size, scale, digest.hexdigest(), train, validation.only(MOST_FROZEN),
                testing.only(MOST_FROZEN))


# --- reading --------------------------------------------------------------------------------------


def read_fields(path: Path, variables: Sequence[str] | None) -> Fields:
    """The fields of a file; see `open_netcdf`."""
    everything = read_variables(path)
    chosen = ([_only_field(path, everything)] if not variables else
              list(read_variables(path, variables).values()))
    if len(chosen) != len(variables or chosen):
        raise UserError(f"{path}: {', '.join(variables)}: text is no field; choose numbers")
    first = chosen[0]
    for variable in chosen[1:]:
        if variable.dims != first.dims or variable.values.shape != first.values.shape:
            raise UserError(f"{path}: {variable.describe()} and {first.describe()} lie on other "
                            "axes; channels must share them")
    stack = np.stack([_as_fields(path, variable, everything) for variable in chosen], axis=-1)
    stack[np.isnan(stack).any(axis=-1)] = np.nan
    if np.isnan(stack).all():
        raise UserError(f"{path}: all of {', '.join(v.name for v in chosen)} is missing; choose "
                        "another variable")
    if np.isinf(stack).any():
        raise UserError(f"{path}: {first.name} holds infinite values; mark gaps by _FillValue")
    units = [variable.units or "" for variable in chosen]
    kept = ~np.isnan(stack).all(axis=(1, 2, 3))
    years = _years(first, everything)
    return Fields(stack[kept].astype(np.float32),
                  None if not any(units) else units[0] if len(set(units)) == 1 else ",".join(units),
                  None if years is None else years[kept])


def _only_field(path: Path, variables: dict[str, Variable]) -> Variable:
    fields = [v for v in variables.values() if len(_long_axes(v)) in (2, 3)]
    if len(fields) == 1:
        return fields[0]
    if fields:
        raise UserError(f"{path}: which variable? give --variables (VARIABLES=) of "
                        f"{', '.join(v.describe() for v in fields)}")
    found = ", ".join(v.describe() for v in variables.values()) or "no numbers"
    raise UserError(f"{path}: no fields of axes (y, x) or (time, y, x), but {found}; lists of "
                    "stations are for reconstruct.py")


def _long_axes(variable: Variable) -> list[int]:
    return [k for k, side in enumerate(variable.values.shape) if side > 1]


def _as_fields(path: Path, variable: Variable, everything: dict[str, Variable]) -> np.ndarray:
    """(N, H, W) of one variable: axes of one step are left out, x comes last."""
    axes = _long_axes(variable)
    if len(axes) not in (2, 3):
        raise UserError(f"{path}: {variable.describe()}: fields have axes (y, x) or (time, y, x); "
                        + ("choose one step of the others first" if len(axes) > 3 else
                           "lists of stations are for reconstruct.py"))
    values = variable.values.reshape([variable.values.shape[k] for k in axes])
    names = [variable.dims[k] for k in axes]
    kinds = [axis_of(everything[name]) if name in everything else None for name in names]
    if "x" in kinds and "y" in kinds:
        values = np.moveaxis(values, (kinds.index("y"), kinds.index("x")), (-2, -1))
    return values if values.ndim == 3 else values[None]


def _years(variable: Variable, everything: dict[str, Variable]) -> np.ndarray | None:
    """The year of every step of the first axis, None where that is no time."""
    axes = _long_axes(variable)
    time = everything.get(variable.dims[axes[0]])
    if len(axes) != 3 or time is None:
        return None
    rule = SINCE.match(str(time.attributes.get("units", "")).lower())
    if not rule or rule[1] not in DAYS or np.isnan(time.values).any():
        return None
    since = int(rule[2]) + (int(rule[3]) - 1) / 12 + (int(rule[4]) - 1) / 365.25
    return np.floor(since + time.values * DAYS[rule[1]] / 365.2425 + 1e-3).astype(int)


# --- splitting ------------------------------------------------------------------------------------


def _split(path: Path, fields: Fields, size: tuple[int, int]) -> list[np.ndarray]:
    """Training, validation and test."""
    values, years = fields.values, fields.years
    count, width = len(values), values.shape[2]
    if years is not None and len(np.unique(years)) >= LEAST_YEARS:
        there = np.unique(years)
        held = max(1, int(HELD_OUT * len(there)))
        log.info("%s: split by year: training to %d, validation to %d, test to %d", path.name,
                 there[-2 * held - 1], there[-held - 1], there[-1])
        return [values[years < there[-2 * held]],
                values[(years >= there[-2 * held]) & (years < there[-held])],
                values[years >= there[-held]]]
    held = max(size[1], int(HELD_OUT * width))
    if width >= 2 * held + 2 * size[1]:
        log.info("%s: split by place: %d columns for training, %d each for validation and test",
                 path.name, width - 2 * held, held)
        return [values[:, :, :width - 2 * held], values[:, :, width - 2 * held:width - held],
                values[:, :, width - held:]]
    held = max(1, int(HELD_OUT * count))
    if count < 3:
        raise UserError(f"{path}: {count} fields of {values.shape[1]} x {width} points cannot be "
                        f"split into training, validation and test with tiles of {size[0]} x "
                        f"{size[1]}; choose a smaller --image_size, or name --data_val and "
                        "--data_test")
    log.info("%s: split by the order of its fields: %d for training, %d each for validation and "
             "test", path.name, count - 2 * held, held)
    return [values[:count - 2 * held], values[count - 2 * held:count - held], values[count - held:]]


def _range(
    path: Path, values: np.ndarray, given: Sequence[float] | None
) -> tuple[tuple[float, float], ...]:
    """The range of each channel: as given, or of all training values."""
    if given is not None:
        return given_range(given, values.shape[3])
    for channel in np.moveaxis(values, -1, 0):
        code = lone_extreme(channel[:: max(1, len(channel) // 16)].astype(np.float64).ravel(),
                            codes_only=True)
        if code is not None:
            raise UserError(f"{path}: {code:.10g} stands far from all other values; if it means: "
                            "not measured, mark it as _FillValue, else give --value_range low high")
    lows, highs = (f(values, axis=(0, 1, 2)).tolist() for f in (np.nanmin, np.nanmax))
    return tuple(map(wide_enough, lows, highs))
