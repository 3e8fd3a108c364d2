"""A person's own measurements, from a picture, a table or an array, in the units that they have.

pandas reads text and Parquet, xarray NetCDF. What is not clear is refused with a line that names
the flag to give.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import io
import itertools
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas

from sparsefield.data import files, parse_pattern
from sparsefield.data.netcdf import ENDINGS, describe, read_dataset, units_of
from sparsefield.data.overlaps import middle
from sparsefield.data.pictures import read_mask, read_picture
from sparsefield.data.scale import tell_of_values
from sparsefield.errors import UserError
from sparsefield.use import globe
from sparsefield.use.covariates import Known, checked, of_picture
from sparsefield.use.grids import LARGEST
from sparsefield.use.points import (
    COLOURS,
    MOST_POINTS,
    Measurements,
    clean,
    joined,
    measured,
    noise_of,
)
from sparsefield.use.times import Times, of_values

log = logging.getLogger("sparsefield")

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif",
            ".avif", ".jp2", ".ppm", ".pgm", ".npy")
GIVE = "give a picture, a .csv, .parquet, .nc or .npz, or - for CSV on standard input"
# Words in the names of x and y, in pairs that belong together.
PAIRS = (
    ({"x", "xcoord"}, {"y", "ycoord"}),
    ({"lon", "long", "lng", "longitude", "länge", "längengrad"},
     {"lat", "latitude", "breite", "breitengrad"}),
    ({"easting", "eastings", "east", "rechtswert"}, {"northing", "northings", "north", "hochwert"}),
)
AXES = set().union(*PAIRS[0], *PAIRS[1])  # in a line above a table they say that it names columns
# Words of what tells the system of coordinates of a row, and what was measured, in which units.
SYSTEM = {"zone", "epsg", "srid", "crs", "datum"}
KIND = {"parameter", "variable", "element", "pollutant", "quantity", "unit", "units"}
# Words in the names of columns that say which, when or in what order; values only when chosen.
LABELS = {"id", "fid", "objectid", "index", "idx", "no", "nr", "number", "unnamed", "station",
          "site", "sample", "point", "name", "time", "date", "datetime", "timestamp", "year",
          "month", "day", "hour", "minute", "second", "utm", *SYSTEM}
# Words of the uncertainty of another column, and those that make of x no place.
SPREAD = {"sd", "std", "stdev", "stddev", "stderr", "sigma", "error", "err", "uncertainty"}
NO_PLACE = {"wind", "velocity", "speed", *SPREAD}
BLOCK = 1 << 25  # bytes of a text that are read at once
ROWS = 1 << 20  # of a Parquet
BLANK = " ,;|\t\N{NO-BREAK SPACE}"
GZIP, UTF_16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
MOST_UNNAMED = 5  # columns without names, of which the first are x and y: else it may be a matrix
CALENDAR = "calendar of {}"  # in the attributes of a table
NO_VALUE = ("-", "--", "na", "none")  # beside those that pandas knows


def read_measurements(
    source: str, *, channels: int, mask: str | None = None, observe: str | None = None,
    x: str | None = None, y: str | None = None, value: Sequence[str] | None = None,
    missing: Sequence[str] | None = None, noise_sd: str | None = None, decimal: str = ".",
    lonlat: bool = False, seed: int = 0, covariates: Sequence[str] = (), time: str | None = None,
    most: float = MOST_POINTS,
) -> Measurements:
    """Measurements of a file, checked and cleaned; what was left out is logged.

    Args:
        source: a picture (also .npy of (H, W) or (H, W, C)); a .csv, .tsv or .parquet with x, y
            and value columns; a NetCDF with such variables of one dimension; an .npz with `coords`
            (M, 2) and `values` (M,) or (M, C); or "-", CSV on standard input.
        channels: 1 or 3 turns pictures grey or coloured.
        missing: numbers or words that mean: not measured. Without it a number that looks like it
            is refused; ("none",) takes all numbers as they are.
        noise_sd: a number, the name of a column, or auto: it is to be found. Default a column of
            the name noise_sd; with a number or auto it is not read.
        seed: of `observe`. covariates: columns of a table; for a picture luminance or files of
            pictures. time: a column, or the axis of a stack, see `read_grid`. most: places of a
            table that are taken. All else as of reconstruct.py.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(source)
    kind = "" if source == "-" else path.suffix.lower()
    if source != "-":
        if not path.exists():
            raise UserError(f"{path} does not exist: {GIVE}")
        files.require_file(path)
        files.refuse_foreign(path, GIVE)
    number, column = number_or_column(noise_sd)
    numbers, words = files.parse_missing(missing)
    is_chosen = any(given is not None for given in (x, y, value, column))
    if kind in PICTURES:
        if lonlat or is_chosen or time:
            raise UserError(f"{source}: --x, --y, --value, --lonlat, --time and a column for "
                            "--noise_sd are for lists of points, and this is a picture")
        found = measure_picture(path, channels, mask, observe, seed, numbers, covariates)
    else:
        if mask or observe:
            raise UserError(f"{source}: --mask and --observe choose pixels of a picture; in a list "
                            "of measurements every point is known")
        if kind == ".npz" and is_chosen:
            raise UserError(f"{source}: --x, --y, --value and --noise_sd choose columns of a "
                            "table; an .npz has coords, values and, if any, noise_sd")
        reads_noise = noise_sd is None or column is not None
        if kind == ".npz":
            found = _read_npz(path, reads_noise, covariates, time)
        else:
            tables = (iter([_read_netcdf(path, time)]) if kind in ENDINGS else
                      _read_parquet(path) if kind in (".parquet", ".pq") else
                      _read_text(source, words, decimal))
            if time is not None and kind not in ENDINGS:  # dates tell their units together
                tables = iter([pandas.concat(list(tables), ignore_index=True)])
            found = joined(list(_parts(source, tables, x, y, value, column, reads_noise, lonlat,
                                       covariates, time, numbers)))
        found = clean(source, found, numbers, lonlat, most)
    return replace(found, noise=noise_of(number, len(found.coords))) if number else found


def number_or_column(noise_sd: str | None) -> tuple[float | None, str | None]:
    """The flag as a number, or as the name of a column."""
    if noise_sd is None or noise_sd == "auto":
        return None, None
    try:
        return float(noise_sd), None
    except ValueError:
        return None, noise_sd


# --- pictures -------------------------------------------------------------------------------------

def measure_picture(
    path: Path, channels: int, mask: str | None, observe: str | None, seed: int,
    missing: Sequence[float] | None = None, covariates: Sequence[str] = (),
) -> Measurements:
    """The known pixels of a picture; arguments as of `read_measurements`.

    Pixels that are transparent, NaN, or of a value in `missing` are never known. Pictures of 8 bits
    become grey or coloured as the model is; grey ones of more bits stay one channel of numbers.
    """
    if mask and observe:
        raise UserError("--mask and --observe both say what is known: give one of them")
    picture = read_picture(path)
    if picture.channels == 3 and channels not in (1, 3):
        raise UserError(f"{path}: the model's fields have {channels} channels and a picture has 1 "
                        "or 3: give an .npz with coords and values")
    files.tell_of_classes(str(path), middle(picture.values)[None])
    if picture.white is None:
        tell_of_values(str(path), picture.values[picture.known])
    whole = picture
    if picture.is_8_bit or picture.channels > channels:
        picture = picture.with_channels(channels if channels in (1, 3) else 1)
    factor = -(-max(picture.shape) // LARGEST) if observe else 1
    if factor > 1:
        picture, whole = picture.reduced(factor), whole.reduced(factor)
        log.info("%s is large: reduced %d times to %d x %d", path, factor, *picture.shape[::-1])
    there = picture.known
    if missing and path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif"):
        log.warning("WARNING: %s: JPEG changes values, at the edges of holes most: give --mask, or "
                    "a PNG, for what is missing", path)
    if missing:
        there = there & np.isfinite(files.without(picture.values, missing)).any(axis=2)
    elif missing is None and picture.white is None:
        files.refuse_lone_extreme(str(path), picture.values[there].reshape(-1))
    points = _points(path, there, mask, observe, seed)
    rows, columns = np.divmod(points, picture.shape[1])
    known = of_picture(covariates, whole, rows, columns, factor, missing) if covariates else None
    found = Measurements(
        np.stack([columns + 0.5, rows + 0.5], axis=1),
        picture.values[rows, columns].astype(np.float64),
        COLOURS if picture.channels == 3 else ("grey",),
        shape=picture.shape,
        value_range=None if picture.white is None else (0.0, float(picture.white)), known=known,
    )
    if known is None:
        return found
    found = found.of(np.isfinite(known.values).all(axis=1))
    return replace(found, known=checked(found.known, len(found.coords)))


def _points(
    path: Path, there: np.ndarray, mask: str | None, observe: str | None, seed: int
) -> np.ndarray:
    """The pixels that are known, (M,) int64, of those that are there, (H, W) bool."""
    if not there.any():
        raise UserError(f"{path}: no pixel has a value: all are transparent or missing")
    if observe and there.sum() == 1:
        raise UserError(f"{path}: a single pixel has a value, and --observe {observe} hides some: "
                        "give a larger picture")
    if observe:
        return parse_pattern(observe).draw(there, np.random.default_rng(seed))
    known = there
    if mask:
        known = read_mask(Path(mask))
        if known.shape != there.shape:
            raise UserError("--mask {}: is {} x {} pixels, {} is {} x {}: make them equal".format(
                mask, *known.shape[::-1], path, *there.shape[::-1]))
        known = known & there
    elif there.all():
        raise UserError(f"{path}: nothing says which pixels are known: give --mask mask.png "
                        "(white: known), a picture with transparent pixels, or --observe "
                        "random:0.2 to try")
    points = np.flatnonzero(known)
    if len(points) == 0:
        raise UserError(f"{mask}: no pixel is known; paint known pixels white in the mask")
    if len(points) > MOST_POINTS:
        raise UserError(f"{path}: {len(points):,} known pixels, at most {MOST_POINTS:,} can be "
                        "used: make the picture smaller, or fewer pixels white in the mask")
    return points


def _parts(
    source: str, tables: Iterator[pandas.DataFrame], *chosen: object
) -> Iterator[Measurements]:
    """Those of each table: of all the columns that are `chosen` in the first, see `Columns`."""
    columns = Columns(source, next(tables))
    yield columns.measurements(*chosen)
    before = len(columns.table)
    for table in tables:
        yield Columns(source, table, before).taken(*columns.places)
        before += len(table)


# --- tables: which column is what -----------------------------------------------------------------


def words_of(name: str) -> list[str]:
    """Words of a column's name without numbers: "coords.x1", "siteLat (deg)" -> coords, x; site,
    lat. What stands in brackets is a unit."""
    text = re.sub(r"[(\[{].*?[)\]}]", " ", name)
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()
    return re.findall(r"[^\W\d_]+", text)


def are_degrees(name: str) -> bool:
    """Whether a column or axis y is named as latitude, and not about another pole."""
    words = set(words_of(name))
    return bool(words & PAIRS[1][1]) and not words & globe.ROTATED


class Columns:
    """The columns of a table, by places from 0; axis_names: of x and y, once they are chosen.

    Args:
        before: rows that were read before these.
    """

    def __init__(self, source: str, table: pandas.DataFrame, before: int = 0):
        self.source, self.table, self.before = source, table, before
        self.names = [str(name).strip() for name in table.columns]
        self.seen = f"{source}: columns {', '.join(self.names)}"
        self.axis_names = ("x", "y")
        if len(self.names) < 3:
            raise UserError(f"{source}: {len(self.names)} column(s) ({', '.join(self.names)}); "
                            "give x, y and one or more values in every row")

    def measurements(
        self, x: str | None, y: str | None, value: Sequence[str] | None, noise: str | None,
        reads_noise: bool, lonlat: bool | None, covariates: Sequence[str] = (),
        time: str | None = None, missing: Sequence[float] | None = None,
    ) -> Measurements:
        """Those of the columns that are chosen, or known by their names, which is logged; lonlat:
        None where it is as the names say; missing: no degrees."""
        if noise is None and "noise_sd" in map(str.lower, self.names):
            noise = "noise_sd"
        k_noise = None if noise is None else self.find(noise, "--noise_sd")
        chosen = [self.find(name, "--value") for name in value or ()]
        k_known = [self.find(name, "--covariates") for name in covariates]
        k_time = None if time is None else self.find(time, "--time")
        k_x, k_y = self.axes(x, y, [*chosen, *k_known, k_noise, k_time])
        chosen = chosen or self.values(k_x, k_y, k_noise, k_time, *k_known)
        k_noise = k_noise if reads_noise else None
        names, known = ([self.names[k] for k in columns] for columns in (chosen, k_known))
        left = [name or f"column {k + 1}" for k, name in enumerate(self.names)
                if k not in (k_x, k_y, *chosen, k_noise, k_time, *k_known)]
        log.info("%s: x = %s, y = %s, value%s = %s%s%s", self.source, self.names[k_x],
                 self.names[k_y], "s" if len(names) > 1 else "", ", ".join(names),
                 ("" if k_noise is None else f", noise_sd = {self.names[k_noise]}")
                 + ("" if k_time is None else f", time = {self.names[k_time]}")
                 + (f", covariates = {', '.join(known)}" if known else ""),
                 f"; left out: {', '.join(left)}" if left else "")
        for name in left:
            if (SYSTEM | KIND) & set(words_of(name)) and (
                count := self.table.iloc[:, self.names.index(name)].nunique()) > 1:
                log.warning("WARNING: %s: %s has %d different entries: if x and y are of several "
                            "systems (UTM zones), or values of several kinds or units, leave one",
                            self.source, name, count)
        self.places = k_x, k_y, chosen, k_noise, k_known, k_time
        found = self.taken(*self.places)
        self.axis_names = self.names[k_x], self.names[k_y]
        if lonlat:
            globe.refuse_rotated(self.source, ", ".join(self.axis_names))
        elif lonlat is False and are_degrees(self.names[k_y]):
            tell_of_globe(self.source, files.without(found.coords, missing),
                          x is not None or y is not None)
        return found

    def taken(self, k_x: int, k_y: int, chosen: Sequence[int], k_noise: int | None,
              k_known: Sequence[int], k_time: int | None) -> Measurements:
        """Those of x, y, values, noise, covariates and time."""
        coords = np.stack([self.numbers(k_x, "x"), self.numbers(k_y, "y")], axis=1)
        values = np.stack([self.numbers(k, "value") for k in chosen], axis=1)
        names = tuple(self.names[k] for k in chosen)
        said, known, times = self.table.attrs, None, None
        if k_known:
            columns = [self.numbers(k, "covariates") for k in k_known]
            of_known = tuple(self.names[k] for k in k_known)
            known = Known(np.stack(columns, axis=1), of_known,
                          tuple(said.get(name) or "" for name in of_known))
        if k_time is not None:
            name, column = self.names[k_time], self.table.iloc[:, k_time]
            if (units := said.get(name)) and column.dtype.kind in "iuf":
                times = Times(self.numbers(k_time, "time"), name, units,
                              said.get(CALENDAR.format(name)) or "standard")
            else:
                times = of_values(self.source, column, name)
        return Measurements(
            coords, values, names, units=said.get(names[0]) if len(names) == 1 else None,
            known=known, times=times,
            noise=None if k_noise is None else self.numbers(k_noise, "noise_sd"))

    def find(self, wanted: str | int, flag: str) -> int:
        """A column by its name, or its number from 1. Raises UserError where it is not one."""
        wanted = str(wanted).strip()
        places = [k for k, name in enumerate(self.names) if name == wanted] or [
            k for k, name in enumerate(self.names) if name.lower() == wanted.lower()]
        if not places and wanted.isdecimal() and 1 <= int(wanted) <= len(self.names):
            return int(wanted) - 1
        if len(places) != 1:
            found = f"{len(places)} of them; give its" if places else "none of them; give a name or"
            raise UserError(f"{self.seen}: {flag} {wanted} is {found} number, 1 to "
                            f"{len(self.names)}")
        return places[0]

    def axes(self, x: str | None, y: str | None, taken: Sequence[int | None]) -> tuple[int, int]:
        """x and y: as chosen, else by the words of their names.

        Raises:
            UserError: none is known, or several may be meant.
        """
        chosen = [None if axis is None else self.find(axis, flag)
                  for axis, flag in ((x, "--x"), (y, "--y"))]
        used = [k for k in (*chosen, *taken) if k is not None]
        if len(set(used)) < len(used):
            raise UserError(f"{self.seen}: x, y, each value and each covariate must be columns of "
                            "their own; choose with --x, --y, --value, --covariates and --noise_sd")
        options = set()
        for pair in PAIRS:
            sides = [self._called(words, used) if fixed is None else [fixed]
                     for words, fixed in zip(pair, chosen, strict=True)]
            options |= {(i, j) for i, j in itertools.product(*sides) if i != j}
        if len(options) == 1:
            return options.pop()
        what = " or ".join(f"({self.names[i]}, {self.names[j]})" for i, j in sorted(options))
        raise UserError(f"{self.seen}: " + (f"x and y may be {what}; choose with --x and --y"
                                            if what else "which are x and y? give --x and --y"
                                            + (" (a matrix of a field? save it as .npy)"
                                               if self.names[0] == "column 1" else "")))

    def _called(self, words: set[str], used: Sequence[int]) -> list[int]:
        """Columns that are not used whose names are one of some words, or else have one of them."""
        having = [k for k, name in enumerate(self.names)
                  if k not in used and words & set(words_of(name))
                  and not NO_PLACE & set(words_of(name))]
        return [k for k in having if len(words_of(self.names[k])) == 1] or having

    def values(self, *taken: int | None) -> list[int]:
        """All other columns with numbers but labels.

        Raises:
            UserError: there is none, or two columns have one name.
        """
        rest = [k for k, name in enumerate(self.names)
                if k not in taken and not set(words_of(name)) <= LABELS]
        rest = [k for k in rest if np.isfinite(_as_numbers(self.table.iloc[:, k])).any()] or rest
        if not rest:
            raise UserError(f"{self.seen}: no value column is left beside x, y and the noise's sd; "
                            "choose one with --value")
        names = [self.names[k].lower() for k in (*rest, *taken) if k is not None]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{self.seen}: {twice!r} is there {names.count(twice)} times; choose "
                            "with --x, --y and --value, by number")
        spreads = [self.names[k] for k in rest if set(words_of(self.names[k])) & SPREAD]
        if spreads and len(spreads) < len(rest):
            log.warning("WARNING: %s: %s is taken as a value; if it is the uncertainty of another, "
                        "give --noise_sd %s, or name the values with --value", self.source,
                        ", ".join(spreads), spreads[0])
        return rest

    def numbers(self, k: int, flag: str) -> np.ndarray:
        """A column as float64, NaN where an entry is missing. Raises UserError for words."""
        column = self.table.iloc[:, k]
        numbers = _as_numbers(column)
        is_word = np.isnan(numbers) & column.notna().to_numpy()
        if is_word.any():
            row = int(is_word.argmax())
            entry = str(column.iloc[row])
            hint = " (a decimal comma? give --decimal ,)" if re.fullmatch(
                r"[-+]?\d*(,|\s+)\d+([eE][-+]?\d+)?", entry) else ""
            raise UserError(f"{self.source}: {entry!r} in column {self.names[k]!r}, measurement "
                            f"{self.before + row + 1}, is no number{hint}; mend it, put # before "
                            f"its line, choose other columns with --{flag}, or name it with "
                            "--missing")
        return numbers


def _as_numbers(column: pandas.Series) -> np.ndarray:
    """float64, NaN for words; dates, truths and complex numbers are none."""
    if column.dtype.kind in "bMmc":
        return np.full(len(column), np.nan)
    return pandas.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def tell_of_globe(source: str, coords: np.ndarray, are_chosen: bool) -> None:
    """Say what names of longitude and latitude allow; raises UserError where they are exchanged, or
    no degrees."""
    coords = coords[np.isfinite(coords).all(axis=1)]
    lon, lat = np.abs(coords).max(axis=0, initial=0)
    if lon <= 90 < lat <= globe.WIDEST and not are_chosen:
        raise UserError(f"{source}: a latitude of {lat:g}, and no longitude beyond {lon:g}: they "
                        "are exchanged; give --x and --y")
    if (lat > 90 or lon > globe.WIDEST) and not are_chosen:
        raise UserError(f"{source}: longitudes up to {lon:.7g} and latitudes up to {lat:.7g} are "
                        "no degrees (metres? degrees and minutes in one number?): convert them, "
                        "or, if they are x and y of a plane, give --x and --y")
    span = np.ptp(coords[:, 0]) if len(coords) else 0
    if span > globe.WIDEST / 2:
        log.warning("WARNING: %s: longitudes span %.4g degrees of a plane; around the globe they "
                    "may be near to each other: --lonlat (kriging alone)", source, span)
    else:
        log.info("%s: x and y are longitude and latitude; --lonlat measures distances on the globe "
                 "(kriging alone)", source)


# --- tables: files --------------------------------------------------------------------------------


def _read_text(source: str, missing: Sequence[str], decimal: str) -> Iterator[pandas.DataFrame]:
    """The table in a text, in parts of about BLOCK bytes."""
    top = ""
    for block in _blocks(source):
        text = top + _text(source, block)
        table = _table_of(source, text, missing, decimal)
        yield table
        if not top and table.attrs["is_named"]:
            lines = (line.strip() for line in text.splitlines(keepends=True))
            top = next(line for line in lines if line.strip(BLANK) and line[0] not in "#%") + "\n"


def _table_of(
    source: str, text: str, missing: Sequence[str], decimal: str
) -> pandas.DataFrame:
    """A table whose columns are separated by tabs, semicolons, commas, bars or spaces.

    The first row names them, unless it has two numbers or more, and no two names of axes: then
    they are x, y and values.
    """
    if decimal not in (".", ","):
        raise UserError(f"--decimal {decimal}: give . or ,")
    lines = [line.strip(" ") for line in text.splitlines()]
    rows = [line for line in lines if line.strip(BLANK) and line[0] not in "#%"]
    if not rows:
        raise UserError(f"{source}: no readable table of x,y,value rows: it is empty")
    separator = next((s for s in "\t;,|" if s in rows[0] and s != decimal), r"\s+")
    options = dict(header=None, sep=separator, skipinitialspace=True, index_col=False)
    try:
        first = pandas.read_csv(io.StringIO(rows[0]), dtype=str, keep_default_na=False, **options)
        names = [name.strip() for name in first.iloc[0]]
        numbers = pandas.to_numeric([name.replace(",", ".") for name in names], errors="coerce")
        named = AXES & set(words_of(" ".join(names)))
        has_header = bool(np.isfinite(numbers).sum() < 2) or len(named) > 1
        table = pandas.read_csv(
            io.StringIO("\n".join(rows[has_header:])), decimal=decimal,
            na_values=[*NO_VALUE, *missing], **options,
        ) if rows[has_header:] else first.iloc[:0]
    except (ValueError, OverflowError, MemoryError) as error:  # ParserError is a ValueError
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: no readable table of x,y,value rows ({reason}); rows that are "
                        "no measurements begin with #") from None
    while names and not names[-1]:
        names.pop()
    if table.iloc[:, len(names):].isna().all(axis=None):  # a separator at the end of each line
        table = table.iloc[:, :len(names)]
    if not has_header:
        _refuse_names_in_comments(source, lines)
        axes = ["x", "y"] if table.shape[1] <= MOST_UNNAMED else ["column 1", "column 2"]
        names = axes + [f"column {k + 1}" for k in range(2, table.shape[1])]
    if len(names) != table.shape[1]:
        hint = ("are these decimal commas? put semicolons between the columns, and give --decimal ,"
                if separator == "," and table.shape[1] > len(names) else
                "give each column one name, in quotes if it has the separator in it")
        raise UserError(f"{source}: the line on top has {len(names)} names ({', '.join(names)}), "
                        f"the rows {table.shape[1]} entries; {hint}")
    table = table.set_axis(names, axis=1)
    table.attrs["is_named"] = has_header
    return table


def _refuse_names_in_comments(source: str, lines: Sequence[str]) -> None:
    """Raises UserError for a comment that names axes, as numpy.savetxt writes it: the columns may
    be in another order than x, y, value."""
    for line in lines:
        if line[:1] in ("#", "%") and len(AXES & set(words_of(line))) >= 2:
            raise UserError(f"{source}: the comment {line!r} names columns, and comments are not "
                            f"read; remove its {line[0]}")


def _blocks(source: str) -> Iterator[bytes]:
    """Whole lines of a source, unpacked where it is gzip: about BLOCK bytes, or all of it from a
    pipe and in UTF-16."""
    with io.BytesIO(sys.stdin.buffer.read()) if source == "-" else open(source, "rb") as raw:
        beginning = raw.read(2)
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if beginning == GZIP else raw
        most = -1 if beginning in UTF_16 or source == "-" else BLOCK
        try:
            block = file.read(most)
            while True:
                yield block + file.readline()
                if not (block := file.read(most)):
                    return
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{source}: no readable gzip ({error})") from None


def _text(source: str, content: bytes) -> str:
    """A text in UTF-8, UTF-16 or Latin-1. Raises UserError for what is no text."""
    kind = files.kind_by_beginning(content)
    for encoding in ("utf-16",) if content[:2] in UTF_16 else ("utf-8-sig", "latin-1"):
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if kind is None and "\0" not in text:
                return text
    raise UserError(f"{source}: no table of x,y,value rows but {kind or 'no text'}; give a CSV")


def _read_parquet(path: Path) -> Iterator[pandas.DataFrame]:
    """ROWS at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: Parquet needs pyarrow: pip install pyarrow, or give a CSV"
                        ) from None
    try:
        with ParquetFile(path) as file:
            if not file.metadata.num_rows:
                yield file.read().to_pandas()
            for batch in file.iter_batches(ROWS):
                frame = batch.to_pandas()
                yield frame.reset_index([name for name in frame.index.names if name is not None])
    except Exception as error:  # pyarrow raises a great many kinds for a broken file
        raise UserError(f"{path}: no readable Parquet ({' '.join(str(error).split())})") from None


def _read_netcdf(path: Path, time: str | None) -> pandas.DataFrame:
    """The variables along the dimension that most share, a column each; with a time axis also of
    stations times this axis."""
    dataset = read_dataset(path)
    series = [v.dims for v in dataset.values() if time in v.dims and v.ndim == 2]
    if series:
        kept = [name for name, v in dataset.items() if set(v.dims) <= set(series[0])]
        dataset = dataset[kept].stack(row=series[0], create_index=False)
    variables = [dataset[name] for name in dataset.variables if dataset[name].dtype.kind in "iuf"]
    counts = collections.Counter(v.dims for v in variables if len(v.dims) == 1)
    if not counts or max(counts.values()) < 3:
        fields = ", ".join(describe(v) for v in variables if len(v.dims) > 1)
        training = (f"; of fields ({fields}) those with axes named as x and y are filled, and with "
                    "--time those of time, too") if fields else ""
        raise UserError(f"{path}: no list of stations: give variables x, y and value of one "
                        f"dimension{training}")
    lists = [v for v in variables if v.dims == max(counts, key=counts.get)]
    if others := [describe(v) for v in variables
                  if v.ndim and v.dims != lists[0].dims and v.name not in v.dims]:
        log.warning("WARNING: %s: %s left out: a place has one value here, so choose one step of "
                    "the other axes first, or bring all to one axis", path, ", ".join(others))
    table = pandas.DataFrame({str(v.name): v.values for v in lists})
    table.attrs = {str(v.name): units_of(v) for v in lists} | {
        CALENDAR.format(v.name): v.attrs["calendar"] for v in lists if "calendar" in v.attrs}
    return table


def _read_npz(
    path: Path, reads_noise: bool, covariates: Sequence[str] = (), time: str | None = None
) -> Measurements:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = ("coords", "values", "noise_sd", *covariates, time)
            arrays = {name: file[name] for name in names if name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile,
            zipfile.LargeZipFile) as error:
        raise UserError(f"{path}: no readable .npz of numbers ({error})") from None
    if lacking := {"coords", "values", *covariates, time or "coords"} - set(arrays):
        raise UserError(f"{path}: holds no array {' and no '.join(sorted(lacking))}; coords is "
                        "(M, 2), values (M,) or (M, C)")
    known = [arrays[name] for name in covariates]
    if len({column.shape for column in known}) > 1:
        raise UserError(f"{path}: covariates must be a number for each point, (M,)")
    return measured(f"{path}: ", arrays["coords"], arrays["values"], names=covariates,
                    covariates=np.stack(known, axis=-1) if known else None,
                    times=arrays.get(time), time=time or "time",
                    noise=arrays.get("noise_sd") if reads_noise else None)
