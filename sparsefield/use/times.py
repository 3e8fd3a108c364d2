"""Times of measurements and of frames: numbers with the units and the calendar of a file (CF, 4.4).

pandas reads dates, xarray decodes them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sparsefield.errors import UserError

if TYPE_CHECKING:
    from xarray import DataArray, Variable

log = logging.getLogger("sparsefield")

MOST_FRAMES = 10_000
RESERVED = {"mean", "sd", "samples", "realization", "place"}  # in the files of a field
LENGTHS = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}  # in seconds
AS_DATES = r"((?:1[89]|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])?"  # 20200301, 202003
ZONE = r"[T ]\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"
DATED_RANGE = re.compile(r"(.+?):(\d{4}-\d\d.*):([^:]+)")  # times of the day have colons, too
DATE = re.compile(r"\d{4}-\d\d")
OWN = 2.0  # a step that counts as so many sides of the domain or more makes each time a field alone
SAME = 0.05  # all times that together count as so few sides or fewer are one field


@dataclass(frozen=True)
class Times:
    """Times.

    Attributes:
        values: (T,) float64, in `units`, NaN where one is missing.
        name: of the column or axis. units: such as "days since 2020-01-01", or what a number is,
            "" where that is not known. calendar: of CF; "" of plain numbers.
    """

    values: np.ndarray
    name: str = "time"
    units: str = ""
    calendar: str = ""

    def __post_init__(self) -> None:
        if self.name in RESERVED:
            object.__setattr__(self, "name", "time")

    @property
    def is_dated(self) -> bool:
        return " since " in self.units

    @property
    def unit(self) -> str:
        """One of them in words: day; "" where it is not known."""
        return self.units.split(" since ")[0].removesuffix("s")

    @property
    def step(self) -> float:
        """The usual one between different times; 1 where there is one alone."""
        steps = np.diff(np.unique(self.values))
        return float(np.median(steps)) if len(steps) else 1.0

    def of(self, chosen: np.ndarray) -> Self:
        return replace(self, values=self.values[chosen])

    def distinct(self) -> Self:
        """Each once, in their order."""
        return replace(self, values=np.unique(self.values))

    def in_steps(self, values: np.ndarray) -> np.ndarray:
        """Times (...) in steps from the first of these on: the coordinate of kriging."""
        return (values - self.values.min()) / self.step

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Which of these, which grow, is nearest to each of (M,); -1 beyond half a step of both
        ends."""
        found = np.searchsorted((self.values[1:] + self.values[:-1]) / 2, values)
        first, last = self.values[[0, -1]] + np.array([-0.5, 0.5]) * self.step
        return np.where((values < first) | (values > last), -1, found)

    def decoded(self) -> np.ndarray:
        """As datetime64, or as numbers where they are no dates of the usual calendars."""
        import xarray

        if not self.is_dated:
            return self.values
        attributes = {"units": self.units, "calendar": self.calendar or "standard"}
        try:
            found = xarray.decode_cf(xarray.Dataset({"t": ("t", self.values, attributes)}))["t"]
        except (ValueError, OverflowError, ImportError):
            return self.values
        if found.dtype.kind != "M":
            return self.values
        half = np.timedelta64(500 * (found.dtype == "datetime64[ns]"), "ns")  # days are rounded
        return (found.values + half).astype("datetime64[us]")

    def as_variable(self, dim: str, decoded: bool = True) -> Variable:
        """By CF; numbers in these units and this calendar where they are not decoded."""
        import xarray

        said = {"standard_name": "time", "axis": "T"}
        found = self.decoded() if decoded else self.values
        if found.dtype.kind == "M":
            return xarray.Variable(dim, found, said)
        said |= {"units": self.units} if self.units else {}
        said |= {"calendar": self.calendar} if self.calendar else {}
        return xarray.Variable(dim, found, said, {"_FillValue": None})

    def labels(self) -> list[str]:
        """ISO 8601, or numbers with their unit."""
        found = self.decoded()
        if found.dtype.kind == "M":
            unit = next(unit for unit in ("D", "m", "s", "ms", "us")
                        if (found == found.astype(f"datetime64[{unit}]")).all())
            return np.datetime_as_string(found, unit=unit).tolist()
        unit = f" {self.units}" if self.units else ""
        return [f"{value:.10g}{unit}" for value in self.values]

    def read(self, source: str, given: Any) -> Self:
        """Others in the same units: dates where these are dates. Raises UserError."""
        other = of_values(source, given, self.name)
        origin = replace(self, values=np.array([0.0, 1.0])).decoded()
        has_dates = origin.dtype.kind == "M"
        if other.is_dated != has_dates or not np.isfinite(other.values).all():
            wanted = (f"dates, such as {self.labels()[0]}" if has_dates else
                      f"numbers{self.units and ' in '}{self.units}")
            raise UserError(f"{source}: {self.name} is given in {wanted}: ask for such times")
        if not has_dates:
            return replace(self, values=other.values)
        return replace(self, values=(other.decoded() - origin[0]) / (origin[1] - origin[0]))

    def asked(self, words: Sequence[str]) -> Self:
        """What `--times` asks for: numbers or dates, or start:stop:step, stop included."""
        import pandas

        source = f"--times {' '.join(words)}"
        if not words:
            return self.distinct()
        found = words[0].split(":")
        dated = DATED_RANGE.fullmatch(words[0])
        is_date = DATE.match(words[0]) is not None
        if len(words) > 1 or (dated is None and (len(found) != 3 or is_date)):
            wanted = self.read(source, _numbers_or_words(words))
        elif dated is None:
            try:
                start, stop, step = map(float, found)
                count = int(np.floor((stop - start) / step + 1e-9)) + 1
            except (ValueError, ZeroDivisionError, OverflowError):
                raise UserError(f"{source}: give start:stop:step, numbers or dates, such as 0:10:1 "
                                "or 2020-01-01:2020-02-01:1D") from None
            require_frames(source, count)
            wanted = self.read(source, start + step * np.arange(count))
        else:
            try:
                moments = pandas.date_range(dated[1], dated[2], freq=dated[3])
            except (ValueError, TypeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{source}: no dates with a step such as 6h, 1D or MS ({reason})"
                                ) from None
            require_frames(source, len(moments))
            wanted = self.read(source, moments)
        require_frames(source, len(wanted.values))
        if (np.diff(wanted.values) <= 0).any():
            log.info("%s: sorted, each once", source)
        return wanted.distinct()

    def tell_of_outside(self, asked: Times) -> None:
        """Log how many of the times that are asked for lie before or after all of these."""
        low, high = self.values.min(), self.values.max()
        outside = (asked.values < low) | (asked.values > high)
        if outside.any():
            ends = replace(self, values=np.array([low, high])).labels()
            log.warning("WARNING: %d of %d times lie outside those measured, %s to %s: the field "
                        "is carried on there, and its sd grows with the distance in time",
                        outside.sum(), len(outside), *ends)

    def in_words(self, scale: float, side: float, distance: str) -> str:
        """What time counts as.

        Args:
            scale: sides of the domain that a step counts as. side: in the units `distance`.
        """
        steps = np.ptp(self.values) / self.step
        if steps == 0:
            return ""
        if scale * steps <= SAME:
            return f"{self.name}: the field stands still: all times are one field"
        if scale >= OWN:
            return f"{self.name}: each time is a field of its own, the others tell nothing of it"
        far = scale * side / self.step
        return (f"{self.name}: 1 {self.unit or 'unit'} counts as a distance of "
                f"{float(f'{far:.2g}'):.10g} {distance}")


def require_frames(source: str, count: int) -> None:
    """Raises UserError for no times, or too many."""
    if not 1 <= count <= MOST_FRAMES:
        raise UserError(f"{source}: {count} times; give 1 to {MOST_FRAMES:,}")


def _numbers_or_words(words: Sequence[str]) -> list[float] | list[str]:
    try:
        return [float(word) for word in words]
    except ValueError:
        return list(words)


def of_values(source: str, given: Any, name: str = "time") -> Times:
    """Times of numbers, datetime64, or texts by ISO 8601, some of them missing.

    Raises:
        UserError: what is none, with its row; some times with a zone and others without.
    """
    import pandas

    if np.ndim(given) > 1 or np.size(given) == 0:
        raise UserError(f"{source}: times {np.shape(given)}: give one or more, in one dimension")
    column = pandas.Series(given)
    is_there = column.notna().to_numpy()
    if column.dtype.kind in "iuf" or not is_there.any():
        numbers = pandas.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        text = column[is_there].map(lambda number: f"{number:.10g}")
        if not is_there.any() or not text.str.fullmatch(AS_DATES).all():
            return Times(np.where(np.isfinite(numbers), numbers, np.nan), name)
        log.info("%s: %s is read as dates, such as %s", source, name, text.iloc[0])
        column = text.str.replace(
            AS_DATES, lambda found: "-".join(filter(None, found.groups())), regex=True
        ).reindex(column.index)
    if column.dtype.kind == "b":
        raise UserError(f"{source}: {name} is true or false, which are no times")
    if column.dtype.kind != "M" and not isinstance(column.dtype, pandas.DatetimeTZDtype):
        column = column.astype("str").str.strip().where(is_there)
        has_zone = column.str.contains(ZONE, na=False).to_numpy()
        if has_zone.any() and not has_zone[is_there].all():
            row = int((is_there & ~has_zone).argmax())
            raise UserError(f"{source}: {name} of measurement {row + 1}, {column.iloc[row]}, has "
                            f"no zone, and that of {int(has_zone.argmax()) + 1} has one: give all "
                            "of them one, such as Z")
        if column[has_zone].str.extract(r"([Zz]|[+-][\d:]+)$")[0].nunique() > 1:
            log.info("%s: %s has several zones: taken as UTC", source, name)
    moments = pandas.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
    wrong = is_there & moments.isna().to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{source}: {name} of measurement {row + 1}, {column.iloc[row]!r}, is no "
                        "time: give numbers or ISO 8601, such as 2020-03-01 or 2020-03-01T12:00Z")
    found = moments.dt.tz_localize(None).to_numpy("datetime64[us]")
    since = found[is_there].min().astype("datetime64[D]")
    seconds = (found[is_there] - since).astype(np.int64) / 1e6
    unit = next((unit for unit, length in LENGTHS.items() if not (seconds % length).any()),
                "seconds")
    values = np.full(len(found), np.nan)
    values[is_there] = seconds / LENGTHS[unit]
    return Times(values, name, f"{unit} since {since}", "proleptic_gregorian")


def of_axis(source: str, axis: DataArray) -> Times:
    """Those of an axis of a file, whose times are numbers, or of a DataArray. Raises UserError."""
    name, units = str(axis.name), str(axis.attrs.get("units", "")).strip()
    if axis.dtype.kind not in "iuf":
        if axis.dtype.kind == "O" and hasattr(axis.values[0], "calendar"):  # cftime
            from xarray.conventions import encode_cf_variable

            coded = encode_cf_variable(axis.variable)
            return Times(coded.values.astype(np.float64), name, coded.attrs["units"],
                         coded.attrs["calendar"])
        return of_values(source, axis.values, name)
    if not np.isfinite(axis.values).all():
        raise UserError(f"{source}: axis {name} has times that are missing")
    if (np.diff(axis.values) < 0).any():
        log.info("%s: %s goes backward in places: sorted", source, name)
    calendar = str(axis.attrs.get("calendar", "")) or ("standard" if " since " in units else "")
    return Times(axis.values.astype(np.float64), name, units, calendar)
