"""Tables of measurements, from text, Parquet and NetCDF: which columns are what, as numbers."""

from __future__ import annotations

import collections
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from sparsefield.data.files import refuse_foreign
from sparsefield.data.netcdf import ENDINGS, axis_of, describe, read_dataset, units_of
from sparsefield.errors import UserError
from sparsefield.use.columns import GLOBE, Columns, bare, choose_columns, find_noise
from sparsefield.use.points import Table
from sparsefield.use.text import rows_of

log = logging.getLogger("sparsefield")


def read_table(
    source: str, x: str | None = None, y: str | None = None, value: Sequence[str] | None = None,
    missing: Sequence[str] = (), noise: str | None = None, reads_noise: bool = True,
) -> Table:
    """The measurements of a table, NaN where one is missing.

    Columns may be separated by commas, semicolons, tabs, bars or spaces; with other separators
    than commas, numbers may have decimal commas. UTF-8, UTF-16 and Latin-1 are read, also .gz.
    Which columns became x, y and values is logged.

    Args:
        source: a path, or "-" for standard input. x, y, value: see `choose_columns`.
        missing: further entries that mean: no value.
        noise: the column of the noise's sd; default one of the name noise_sd, if there is one.
        reads_noise: whether that column is read; it is no value either way.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(source)
    if path.suffix.lower() in ENDINGS:
        table, units = _read_netcdf(path, value)
        has_header = True
    elif path.suffix.lower() in (".parquet", ".pq"):
        table, has_header, units = _read_parquet(source), True, None
    else:
        refuse_foreign(path, "tables are CSV, TSV or Parquet")
        table, has_header, units = _read_text(source, missing)
    names = list(table.columns)
    noise_column = find_noise(source, names, noise) if has_header or noise else None
    columns = choose_columns(source, names, x, y, value, has_header, noise_column,
                             [k for k in range(len(names)) if _holds_words(table.iloc[:, k])])
    noise_column = noise_column if reads_noise else None
    values = columns.values if value is not None else _numeric(table, columns.values)
    flags = {columns.x: "x", columns.y: "y", **dict.fromkeys(values, "value")}
    flags |= {} if noise_column is None else {noise_column: "noise_sd"}
    array = np.stack([_numbers(source, table, k, flag) for k, flag in flags.items()], axis=1)
    _tell(source, names, columns, values, noise_column)
    last = 2 + len(values)
    return Table(array[:, :2], array[:, 2:last], tuple(names[k] for k in values),
                 None if noise_column is None else array[:, last],
                 units[values[0]] or None if units and len(values) == 1 else None,
                 bare(names[columns.y]) in GLOBE)


def _tell(
    source: str, names: Sequence[str], columns: Columns, values: Sequence[int], noise: int | None
) -> None:
    """Log which columns became what."""
    used = {columns.x, columns.y, *values, noise}
    others = [str(names[k]) or f"column {k + 1}" for k in range(len(names)) if k not in used]
    log.info("%s: x = %s, y = %s, value%s = %s%s%s", source, names[columns.x], names[columns.y],
             "s" if len(values) > 1 else "", ", ".join(names[k] for k in values),
             "" if noise is None else f", noise_sd = {names[noise]}",
             f"; left out: {', '.join(others)}" if others else "")


def _holds_words(column: pandas.Series) -> bool:
    """Whether there are entries and none is a number."""
    if column.dtype != object and not pandas.api.types.is_string_dtype(column):
        return False
    return bool(column.notna().any()
                and pandas.to_numeric(column.astype(str), errors="coerce").isna().all())


def _numeric(table: pandas.DataFrame, places: Sequence[int]) -> tuple[int, ...]:
    """Those of the columns that hold a number; all if none does."""
    return tuple(k for k in places if pandas.to_numeric(
        table.iloc[:, k], errors="coerce").notna().any()) or tuple(places)


def _numbers(source: str, table: pandas.DataFrame, place: int, flag: str) -> np.ndarray:
    column = table.iloc[:, place]
    numbers = pandas.to_numeric(column, errors="coerce")
    words = (column.notna() & numbers.isna()).to_numpy(dtype=bool)
    if words.any():
        row = int(words.argmax())
        way_out = ("leave the column out with --value" if flag == "value"
                   else f"choose another column with --{flag}")
        raise UserError(f"{source}: {column.iloc[row]!r} in column {table.columns[place]!r}, "
                        f"measurement {row + 1}, is no number; mend it, put # before its line, "
                        f"{way_out}, or name it with --missing")
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _read_text(
    source: str, missing: Sequence[str]
) -> tuple[pandas.DataFrame, bool, list[str] | None]:
    """The table in a text, whether it has a header, and the units under that."""
    rows = rows_of(source, missing)
    try:
        table = pandas.read_csv(
            io.StringIO("\n".join(rows.lines)), header=None, names=range(rows.width),
            index_col=False, sep=r"\s+" if rows.separator is None else rows.separator,
            decimal=rows.decimal, skipinitialspace=True, na_values=["-", "--", *missing],
            skip_blank_lines=True, low_memory=False,
        ) if rows.lines else pandas.DataFrame(columns=range(rows.width))
    except (ValueError, OverflowError, MemoryError) as error:  # ParserError is a ValueError
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: no readable table of x,y,value rows ({reason})") from None
    table.columns = rows.header or [f"column {k + 1}" for k in range(rows.width)]
    if rows.units is not None:
        log.info("%s: the row under the names is taken as units: %s", source,
                 ", ".join(filter(None, rows.units)))
    return table, rows.header is not None, rows.units


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
