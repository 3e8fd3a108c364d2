"""Tables of measurements: which columns are x, y, values and noise, as numbers.

pandas reads text and Parquet. Odd dialects are refused with a line that names the flag to give.
"""

from __future__ import annotations

import collections
import gzip
import io
import itertools
import logging
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from sparsefield.data.files import kind_by_beginning, refuse_foreign
from sparsefield.data.netcdf import ENDINGS, axis_of, describe, read_dataset, units_of
from sparsefield.errors import UserError
from sparsefield.use.points import Table, words_of

log = logging.getLogger("sparsefield")

# Words in the names of x and y, in pairs that belong together.
PAIRS = (
    ({"x", "xcoord"}, {"y", "ycoord"}),
    ({"lon", "long", "lng", "longitude", "länge", "längengrad"},
     {"lat", "latitude", "breite", "breitengrad"}),
    ({"easting", "eastings", "east", "rechtswert"}, {"northing", "northings", "north", "hochwert"}),
    ({"distance", "dist", "range"}, {"z", "depth", "height", "altitude", "elevation"}),
    ({"x"}, {"z", "depth", "height", "altitude", "elevation"}),
)
PLAIN = 3  # of the pairs above; the others are axes only where none of these is there
# Columns that say which, when or in what order; values only when chosen.
LABELS = {"", "id", "index", "idx", "fid", "objectid", "no", "nr", "number", "station", "site",
          "name", "time", "date", "datetime", "timestamp", "year", "month", "day", "hour", "minute",
          "second", "unnamed 0", "point", "sample", "station id", "site id", "point id",
          "sample id"}
NO_VALUE = ("-", "--", "na", "none")  # beside those that pandas knows


def read_table(
    source: str, x: str | None = None, y: str | None = None, value: Sequence[str] | None = None,
    missing: Sequence[str] = (), noise: str | None = None, reads_noise: bool = True,
    decimal: str = ".",
) -> Table:
    """The measurements of a table, NaN where one is missing.

    Columns are separated by tabs, semicolons, commas, bars or spaces. UTF-8, UTF-16 and Latin-1 are
    read, also packed by gzip. Which columns became x, y and values is logged.

    Args:
        source: a path, or "-" for standard input. x, y, value: columns by name or number from 1.
        missing: further entries that mean: no value. decimal: . or , before decimals.
        noise: the column of the noise's sd; default one of the name noise_sd, if there is one.
        reads_noise: whether that column is read; it is no value either way.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(source)
    units: list[str | None] = []
    if decimal not in (".", ","):
        raise UserError(f"--decimal {decimal}: give . or ,")
    if path.suffix.lower() in ENDINGS:
        table, units = _read_netcdf(path, value)
        has_header = True
    elif path.suffix.lower() in (".parquet", ".pq"):
        table, has_header = _read_parquet(source), True
    else:
        refuse_foreign(path, "tables are CSV, TSV or Parquet")
        table, has_header = _read_text(source, missing, decimal)
    columns = _Columns(source, table, has_header)
    k_noise = columns.noise(noise)
    chosen = None if value is None else [columns.find(v, "--value") for v in value]
    k_x, k_y = columns.axes(x, y, [*(chosen or []), k_noise])
    values = columns.values(k_x, k_y, k_noise) if chosen is None else chosen
    k_noise = k_noise if reads_noise else None
    names = columns.names
    others = [name or f"column {k + 1}" for k, name in enumerate(names)
              if k not in (k_x, k_y, *values, k_noise)]
    log.info("%s: x = %s, y = %s, value%s = %s%s%s", source, names[k_x], names[k_y],
             "s" if len(values) > 1 else "", ", ".join(names[k] for k in values),
             "" if k_noise is None else f", noise_sd = {names[k_noise]}",
             f"; left out: {', '.join(others)}" if others else "")
    coords = np.stack([columns.numbers(k_x, "x"), columns.numbers(k_y, "y")], axis=1)
    return Table(coords, np.stack([columns.numbers(k, "value") for k in values], axis=1),
                 tuple(names[k] for k in values),
                 None if k_noise is None else columns.numbers(k_noise, "noise_sd"),
                 units[values[0]] or None if units and len(values) == 1 else None,
                 bool(PAIRS[1][1] & set(words_of(names[k_y])))
                 and not {"grid", "rotated"} & set(words_of(names[k_y])))


# --- which column is what -------------------------------------------------------------------------


class _Columns:
    """The columns of a table, by places from 0."""

    def __init__(self, source: str, table: pandas.DataFrame, has_header: bool):
        self.source, self.table, self.has_header = source, table, has_header
        self.names = [str(name).strip() for name in table.columns]
        self.seen = f"{source}: columns {', '.join(self.names)}"
        if len(self.names) < 3:
            raise UserError(f"{source}: {len(self.names)} column(s) ({', '.join(self.names)}); "
                            "give x, y and one or more values in every row")

    def find(self, wanted: str, flag: str) -> int:
        """A column by its name, or its number from 1. Raises UserError where it is not one."""
        for same in (lambda n: n == wanted.strip(), lambda n: n.lower() == wanted.strip().lower(),
                     lambda n: words_of(n) == words_of(wanted) != []):
            places = [k for k, name in enumerate(self.names) if same(name)]
            if len(places) > 1:
                raise UserError(f"{self.seen}: {flag} {wanted} names {len(places)} of them; give "
                                f"its number, from 1 to {len(self.names)}")
            if places:
                return places[0]
            if wanted.strip().isdecimal() and 1 <= int(wanted) <= len(self.names):
                return int(wanted) - 1
        raise UserError(f"{self.seen}: {flag} {wanted} is none of them; give a name, or a number "
                        f"from 1 to {len(self.names)}")

    def noise(self, wanted: str | None) -> int | None:
        """The column of the noise's sd: the one that is wanted, or one named noise_sd."""
        if wanted is not None:
            return self.find(wanted, "--noise_sd")
        places = [k for k, name in enumerate(self.names) if words_of(name) == ["noise", "sd"]]
        return places[0] if len(places) == 1 else None

    def axes(self, x: str | None, y: str | None, taken: Sequence[int | None]) -> tuple[int, int]:
        """x and y: as chosen, else by the words of their names; without a header the first two.

        Raises:
            UserError: none is known, or several may be meant.
        """
        chosen = [None if axis is None else self.find(axis, flag)
                  for axis, flag in ((x, "--x"), (y, "--y"))]
        used = [k for k in (*chosen, *taken) if k is not None]
        if len(set(used)) < len(used):
            raise UserError(f"{self.seen}: x, y and each value must be columns of their own; "
                            "choose with --x, --y, --value and --noise_sd")
        free = [k for k in range(len(self.names)) if k not in used]
        if None not in chosen:
            return chosen[0], chosen[1]
        if not self.has_header and len(free) >= chosen.count(None):
            rest = iter(free)
            return tuple(next(rest) if k is None else k for k in chosen)
        options = self._pairs(PAIRS[:PLAIN], free, chosen) or self._pairs(
            PAIRS[PLAIN:], free, chosen)
        if len(options) == 1:
            return options[0]
        if options:
            what = " or ".join(f"({self.names[i]}, {self.names[j]})" for i, j in options)
            raise UserError(f"{self.seen}: x and y may be {what}; choose with --x and --y")
        raise UserError(f"{self.seen}: which are x and y? give --x and --y")

    def _pairs(
        self, pairs: Sequence[tuple[set[str], set[str]]], free: Sequence[int],
        chosen: Sequence[int | None],
    ) -> list[tuple[int, int]]:
        """All that may be x and y; a name that is the word alone goes before one that has it."""
        found = set()
        for pair in pairs:
            sides = []
            for known, fixed in zip(pair, chosen, strict=True):
                having = [k for k in free if known & set(words_of(self.names[k]))]
                alone = [k for k in having if len(words_of(self.names[k])) == 1]
                sides.append([fixed] if fixed is not None else alone or having)
            found |= {(i, j) for i, j in itertools.product(*sides) if i != j}
        return sorted(found)

    def values(self, x: int, y: int, noise: int | None) -> list[int]:
        """All columns with numbers but axes, noise and labels.

        Raises:
            UserError: there is none, or two have one name.
        """
        rest = [k for k in range(len(self.names)) if k not in (x, y, noise)]
        telling = [k for k in rest if " ".join(words_of(self.names[k])) not in LABELS] or rest
        telling = [k for k in telling if not self.holds_no_number(k)] or [
            k for k in telling if not pandas.api.types.is_datetime64_any_dtype(
                self.table.dtypes.iloc[k])]
        if not telling:
            raise UserError(f"{self.seen}: no value column is left beside x = {self.names[x]}, y = "
                            f"{self.names[y]} and the noise's sd; give a table with one")
        lowered = [self.names[k].lower() for k in (*telling, x, y)]
        for name in lowered:
            if lowered.count(name) > 1:
                raise UserError(f"{self.seen}: {name!r} is there {lowered.count(name)} times; "
                                "choose with --x, --y and --value, by number")
        return telling

    def holds_no_number(self, k: int) -> bool:
        """Whether a column has entries of which none is a number."""
        column = self.table.iloc[:, k]
        return bool(column.notna().any()) and not np.isfinite(_as_numbers(column)).any()

    def numbers(self, k: int, flag: str) -> np.ndarray:
        """A column as float64, NaN where an entry is missing. Raises UserError for words."""
        column = self.table.iloc[:, k]
        numbers = _as_numbers(column)
        is_word = np.isnan(numbers) & column.notna().to_numpy()
        if is_word.any():
            row = int(is_word.argmax())
            entry = str(column.iloc[row])
            way_out = ("leave the column out with --value" if flag == "value"
                       else f"choose another column with --{flag}")
            hint = " (a decimal comma? give --decimal ,)" if re.fullmatch(
                r"[-+]?\d*(,|\s+)\d+([eE][-+]?\d+)?", entry) else ""
            raise UserError(f"{self.source}: {entry!r} in column {self.names[k]!r}, measurement "
                            f"{row + 1}, is no number{hint}; mend it, put # before its line, "
                            f"{way_out}, or name it with --missing")
        return numbers


def _as_numbers(column: pandas.Series) -> np.ndarray:
    """float64, NaN for words; dates and truths are no numbers."""
    if column.dtype.kind in "bMm":
        return np.full(len(column), np.nan)
    return pandas.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)


# --- text -----------------------------------------------------------------------------------------


def _read_text(
    source: str, missing: Sequence[str], decimal: str
) -> tuple[pandas.DataFrame, bool]:
    """The table in a text, and whether it names its columns."""
    lines = [line.strip(" ") for line in _content(source).splitlines()]
    is_row = [bool(line.strip(" ,;|\t\N{NO-BREAK SPACE}")) and line[0] not in "#%"
              for line in lines]
    rows = list(itertools.compress(lines, is_row))
    if not rows:
        raise UserError(f"{source}: no readable table of x,y,value rows: it is empty")
    comments = [line.lstrip("#% ") for line in lines[:is_row.index(True)] if line[:1] in ("#", "%")]
    separator = next((s for s in "\t;,|" if s in rows[0] and s != decimal), r"\s+")
    header = _header(source, rows[0], comments, separator)
    in_row = header is not None and header == _entries(rows[0], separator)
    try:
        table = pandas.read_csv(
            io.StringIO("\n".join(rows[in_row:])), header=None, sep=separator, decimal=decimal,
            skipinitialspace=True, na_values=[*NO_VALUE, *missing], index_col=False,
        ) if rows[in_row:] else pandas.DataFrame(columns=range(len(header)))
    except (ValueError, OverflowError, MemoryError) as error:  # ParserError is a ValueError
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: no readable table of x,y,value rows ({reason}); rows that are "
                        "no measurements begin with #") from None
    return _named(source, table, header, separator), header is not None


def _entries(line: str, separator: str) -> list[str]:
    """Those of one row, without empty ones at its end."""
    row = pandas.read_csv(io.StringIO(line), header=None, sep=separator, dtype=str,
                          skipinitialspace=True, keep_default_na=False).iloc[0]
    entries = [str(entry).strip() for entry in row]
    while entries and not entries[-1]:
        entries.pop()
    return entries


def _header(
    source: str, first: str, comments: Sequence[str], separator: str
) -> list[str] | None:
    """Names of the columns: the first row, unless it holds two numbers or more; else a comment
    above it with as many words, as numpy.savetxt writes them.

    Raises:
        UserError: a comment that names axes and does not fit.
    """
    names = _entries(first, separator)
    numbers = pandas.to_numeric(pandas.Series([n.replace(",", ".") for n in names], dtype=object),
                                errors="coerce")
    if numbers.notna().sum() < 2:
        return names
    known = set().union(*PAIRS[0], *PAIRS[1])
    for comment in reversed(comments):
        if len(known & set(words_of(comment))) >= 2:
            words = re.split(r"\s*[,;\t|]\s*|\s+", comment.strip())
            if len(words) == len(names):
                return words
            raise UserError(f"{source}: the comment {comment!r} names x and y, and has not one "
                            f"word for each of {len(names)} columns; write names as the first line")
    return None


def _named(
    source: str, table: pandas.DataFrame, header: list[str] | None, separator: str
) -> pandas.DataFrame:
    """The table under its names. Raises UserError where they are not as many as its columns."""
    while table.shape[1] > len(header or []) and len(table) and table.iloc[:, -1].isna().all():
        table = table.iloc[:, :-1]
    if header is None:
        return table.set_axis([f"column {k + 1}" for k in range(table.shape[1])], axis=1)
    if len(header) != table.shape[1]:
        hint = "are these decimal commas? put semicolons between the columns, and give --decimal ,"
        if separator != "," or table.shape[1] < len(header):
            hint = "give each column one name, in quotes if it has the separator in it"
        raise UserError(f"{source}: the line on top has {len(header)} names ({', '.join(header)}), "
                        f"the rows {table.shape[1]} entries; {hint}")
    return table.set_axis(header, axis=1)


def _content(source: str) -> str:
    """The text of a source in UTF-8, UTF-16 or Latin-1, unpacked where it is gzip by
    content or name. Raises UserError for what is no text."""
    if source == "-":
        content = getattr(sys.stdin, "buffer", sys.stdin).read()
        content = content.encode() if isinstance(content, str) else content
    else:
        content = Path(source).read_bytes()
    if content.startswith(b"\x1f\x8b") or source.lower().endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{source}: no readable gzip ({error})") from None
    kind = kind_by_beginning(content)
    is_utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "latin-1"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if kind is None and "\0" not in text:
            return text
    raise UserError(f"{source}: no table of x,y,value rows but {kind or 'no text'}; give a CSV")


# --- other files ----------------------------------------------------------------------------------


def _read_parquet(source: str) -> pandas.DataFrame:
    try:
        return pandas.read_parquet(source)
    except ImportError:
        raise UserError(f"{source}: Parquet needs pyarrow: pip install pyarrow, or give a CSV"
                        ) from None
    except PermissionError:
        raise
    except Exception as error:  # pyarrow raises a great many kinds for a broken file
        raise UserError(f"{source}: no readable Parquet ({' '.join(str(error).split())})") from None


def _read_netcdf(
    path: Path, value: Sequence[str] | None
) -> tuple[pandas.DataFrame, list[str | None]]:
    """The variables along the dimension that most share, a column each, and their units."""
    dataset = read_dataset(path)
    variables = [dataset[name] for name in dataset.variables if dataset[name].dtype.kind in "iuf"]
    lists = [v for v in variables if len(v.dims) == 1]
    counts = collections.Counter(v.dims for v in lists)
    fields = ", ".join(describe(v) for v in variables if len(v.dims) > 1)
    if not counts or max(counts.values()) < 3:
        training = f"; fields ({fields}) are for training: DATA={path}" if fields else ""
        raise UserError(f"{path}: no list of stations: give variables x, y and value of one "
                        f"dimension{training}")
    along = max(counts, key=counts.get)
    lists = [v for v in lists if v.dims == along]
    telling = [str(v.name) for v in lists if axis_of(v) is None]
    if value is None and len(telling) > 1:
        raise UserError(f"{path}: which is the value? give --value, one of {', '.join(telling)}")
    table = pandas.DataFrame({str(v.name): v.values for v in lists})
    return table, [units_of(v) for v in lists]
