"""Tables of measurements: text in the ways that programs write it, and Parquet."""

from __future__ import annotations

import collections
import gzip
import io
import logging
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from sparsefield.data.files import kind_by_beginning, refuse_foreign
from sparsefield.data.netcdf import ENDINGS, axis_of, read_variables
from sparsefield.errors import UserError
from sparsefield.use.columns import GLOBE, PAIRS, bare, choose_columns, find_noise

log = logging.getLogger("sparsefield")

COMMENT = "#%"
NO_VALUE = ("", "na", "n/a", "nan", "null", "none", "-", "--")
LOOKED_AT = 200  # lines that tell how a table is written
DECIMAL_COMMA = r"[-+]?\d*(,\d+)?([eE][-+]?\d+)?"
SEPARATORS = ("\t", ";", ",", "|")


class Table(NamedTuple):
    """What `read_table` finds.

    Attributes:
        coords: (M, 2). values: (M, C). names: of the values.
        noise: (M,) sd of the noise in them, or None. units: of the values, where the file tells.
        on_globe: whether the names say that places are longitude and latitude.
    """

    coords: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    noise: np.ndarray | None = None
    units: str | None = None
    on_globe: bool = False


def read_table(
    source: str, x: str | None = None, y: str | None = None, value: Sequence[str] | None = None,
    missing: Sequence[str] = (), noise: str | None = None,
) -> Table:
    """The measurements of a table, NaN where one is missing.

    Columns may be separated by commas, semicolons, tabs, bars or spaces; with other separators
    than commas, numbers may have decimal commas. UTF-8, UTF-16 and Latin-1 are read, also .gz.
    Which columns became x, y and values is logged.

    Args:
        source: a path, or "-" for standard input. x, y, value: see `choose_columns`.
        missing: further entries that mean: no value.
        noise: the column of the noise's sd; default one of the name noise_sd, if there is one.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path, units = Path(source), None
    if path.suffix.lower() in ENDINGS:
        table, units = _read_netcdf(path, value)
        has_header = True
    elif path.suffix.lower() in (".parquet", ".pq"):
        table, has_header = _read_parquet(source), True
    else:
        refuse_foreign(path, "tables are CSV, TSV or Parquet")
        table, has_header = _read_text(source, _content(source), missing)
    names = list(table.columns)
    noise_column = find_noise(source, names, noise) if has_header or noise else None
    columns = choose_columns(source, names, x, y, value, has_header, noise_column)
    columns_values = columns.values if value is not None else _numeric(table, columns.values)
    used = [columns.x, columns.y, *columns_values]
    used += [] if noise_column is None else [noise_column]
    array = np.stack([_numbers(source, table, k) for k in used], axis=1)
    chosen = tuple(names[k] for k in columns_values)
    others = [str(names[k]) or f"column {k + 1}" for k in range(len(names)) if k not in used]
    log.info("%s: x = %s, y = %s, value%s = %s%s%s", source, names[columns.x], names[columns.y],
             "s" if len(chosen) > 1 else "", ", ".join(chosen),
             "" if noise_column is None else f", noise_sd = {names[noise_column]}",
             f"; left out: {', '.join(others)}" if others else "")
    last = 2 + len(chosen)
    return Table(array[:, :2], array[:, 2:last], chosen,
                 None if noise_column is None else array[:, last],
                 units and units.get(chosen[0]) if len(chosen) == 1 else None,
                 bare(names[columns.y]) in GLOBE)


def _numeric(table: pandas.DataFrame, places: Sequence[int]) -> tuple[int, ...]:
    """Those of the columns that hold a number; all if none does."""
    return tuple(k for k in places if pandas.to_numeric(
        table.iloc[:, k], errors="coerce").notna().any()) or tuple(places)


def _numbers(source: str, table: pandas.DataFrame, place: int) -> np.ndarray:
    column = table.iloc[:, place]
    numbers = pandas.to_numeric(column, errors="coerce")
    words = (column.notna() & numbers.isna()).to_numpy(dtype=bool)
    if words.any():
        row = int(words.argmax())
        raise UserError(f"{source}: {column.iloc[row]!r} in column {table.columns[place]!r}, "
                        f"measurement {row + 1}, is no number; mend it, leave the column out with "
                        "--value, or name it with --missing")
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _read_parquet(source: str) -> pandas.DataFrame:
    try:
        table = pandas.read_parquet(source)
    except ImportError:
        raise UserError(f"{source}: Parquet needs pyarrow: pip install pyarrow, or give a CSV"
                        ) from None
    except PermissionError:
        raise
    except Exception as error:  # pyarrow raises a great many kinds for a broken file
        raise UserError(f"{source}: no readable Parquet ({' '.join(str(error).split())})") from None
    table.columns = [str(name) for name in table.columns]
    return table


def _read_netcdf(
    path: Path, value: Sequence[str] | None
) -> tuple[pandas.DataFrame, dict[str, str | None]]:
    """The variables along the dimension that most share, a column each, and their units."""
    variables = read_variables(path)
    lists = [v for v in variables.values() if len(v.dims) == 1]
    counts = collections.Counter(v.dims for v in lists)
    fields = ", ".join(v.describe() for v in variables.values() if len(v.dims) > 1)
    if not counts or max(counts.values()) < 3:
        training = f"; fields ({fields}) are for training: DATA={path}" if fields else ""
        raise UserError(f"{path}: no list of stations: give variables x, y and value of one "
                        f"dimension{training}")
    along = max(counts, key=counts.get)
    lists = [v for v in lists if v.dims == along]
    telling = [v.name for v in lists if axis_of(v) is None]
    if value is None and len(telling) > 1:
        raise UserError(f"{path}: which is the value? give --value, one of {', '.join(telling)}")
    table = pandas.DataFrame({v.name: v.values for v in lists})
    return table, {v.name: v.units for v in lists}


# --- text -----------------------------------------------------------------------------------------


def _content(source: str) -> bytes:
    if source == "-":
        stream = getattr(sys.stdin, "buffer", sys.stdin)
        content = stream.read()
        return content.encode() if isinstance(content, str) else content
    content = Path(source).read_bytes()
    if not source.lower().endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{source}: no readable gzip ({error})") from None


def _decoded(source: str, content: bytes) -> str:
    """The text, whatever wrote it; what is no text is named."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ("utf-16",)
    elif b"\0" in content[:1000]:  # UTF-16 without its mark: every second byte of a number is 0
        encodings = ("utf-16-le",) if content[1:2] == b"\0" else ("utf-16-be",)
    else:
        encodings = ("utf-8-sig", "latin-1")
    if (kind := kind_by_beginning(content)) is None:
        for encoding in encodings:
            try:
                text = content.decode(encoding)
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                return text
        kind = "no text"
    raise UserError(f"{source}: no table of x,y,value rows but {kind}; give a CSV")


def _read_text(
    source: str, content: bytes, missing: Sequence[str]
) -> tuple[pandas.DataFrame, bool]:
    """The table in a text, and whether it has a header."""
    lines, header = _lines(_decoded(source, content))
    if not lines:
        raise UserError(f"{source}: no readable table of x,y,value rows: it is empty")
    separator = _separator(lines[:LOOKED_AT])
    first = _fields(lines[0], separator)
    decimal = "," if separator != "," and _has_decimal_commas(lines[:LOOKED_AT], separator) else "."
    if header is not None and len(_fields(header, separator)) != len(first):
        header = None
    if header is None and any(_is_word(field, decimal, missing) for field in first):
        header, lines = lines[0], lines[1:]
    widest = _check_widths(source, lines, separator, header)
    try:
        table = pandas.read_csv(
            io.StringIO("\n".join(lines)), header=None, names=range(widest), index_col=False,
            sep=r"\s+" if separator is None else separator, decimal=decimal, skipinitialspace=True,
            na_values=["-", "--", *missing], skip_blank_lines=True, low_memory=False,
        ) if lines else pandas.DataFrame(columns=range(widest))
    except (ValueError, OverflowError, MemoryError) as error:  # ParserError is a ValueError
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: no readable table of x,y,value rows ({reason})") from None
    if header is None:
        table.columns = [f"column {k + 1}" for k in range(widest)]
        return table, False
    named = _fields(header, separator)
    table.columns = named + [""] * (widest - len(named))
    return table, True


def _lines(text: str) -> tuple[list[str], str | None]:
    """Lines that hold something, without comments and what trails; a header in a comment."""
    lines, header = [], None
    for line in text.splitlines():
        if line.lstrip()[:1] in tuple(COMMENT):
            words = line.lstrip().lstrip(COMMENT + " ")
            if not lines and _names_axes(words):
                header = words
            continue
        line = re.sub(r"\s#.*", "", line).strip(" ")
        line = re.sub(r"[,;|\s]+$", "", line)
        if line:
            lines.append(line)
    return lines, header


def _names_axes(text: str) -> bool:
    """Whether names of x and y are among these words, as in numpy.savetxt's header."""
    names = {bare(field) for field in _fields(text, _separator([text]))}
    return any(names & xs and names & ys for xs, ys in PAIRS)


def _separator(lines: Sequence[str]) -> str | None:
    """What stands between the columns in most lines; None: spaces."""
    for separator in SEPARATORS:
        if sum(separator in line for line in lines) > 0.6 * len(lines):
            return None if separator == "," and all(map(_is_decimal_row, lines)) else separator
    return None if any(" " in line for line in lines) else ","


def _is_decimal_row(line: str) -> bool:
    """Numbers with decimal commas and spaces between, such as "1,5 2,5 3"."""
    fields = line.split()
    return len(fields) > 1 and all(re.fullmatch(DECIMAL_COMMA, field) for field in fields)


def _fields(line: str, separator: str | None) -> list[str]:
    if '"' not in line:
        return [part.strip() for part in line.split(separator)]
    if separator is None:
        parts = re.findall(r'"[^"]*"|\S+', line)
    else:
        parts = re.findall(rf'(?:^|{re.escape(separator)})\s*("[^"]*"|[^{re.escape(separator)}]*)',
                           line)
    return [part.strip().strip('"').strip() for part in parts]


def _has_decimal_commas(lines: Sequence[str], separator: str | None) -> bool:
    fields = [field for line in lines for field in _fields(line, separator)]
    return any("," in field and re.fullmatch(DECIMAL_COMMA, field) for field in fields)


def _is_word(field: str, decimal: str, missing: Sequence[str]) -> bool:
    """Whether an entry of the first line is a name, not a number or a missing one."""
    if field.lower() in (*NO_VALUE, *map(str.lower, missing)):
        return False
    try:
        float(field.replace(decimal, "."))
    except ValueError:
        return True
    return False


def _check_widths(
    source: str, lines: Sequence[str], separator: str | None, header: str | None
) -> int:
    """The most fields of a line; where a header has fewer, its names belong to other columns."""
    counts = [len(_fields(line, separator)) for line in lines]
    widest = max(counts, default=0)
    first = counts[0] if header is None else len(_fields(header, separator))
    if widest > first:
        row = counts.index(widest)
        hint = ("; are these decimal commas? put semicolons between the columns"
                if separator == "," else "")
        raise UserError(f"{source}: measurement {row + 1} has {widest} entries, the line on top "
                        f"{first}{hint}; begin lines that are no measurements with #")
    return first
