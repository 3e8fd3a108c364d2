"""Text in the ways that programs write tables: what is a row, a header, and between columns."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sparsefield.data.files import kind_by_beginning
from sparsefield.errors import UserError
from sparsefield.use.columns import PAIRS, axes_in
from sparsefield.use.decimals import COMMA, decimal_of, is_number

COMMENT = "#%"
GZIP = b"\x1f\x8b"
NO_VALUE = ("", "na", "n/a", "nan", "null", "none", "-", "--")
LOOKED_AT = 200  # lines that tell how a table is written
SEPARATORS = ("\t", ";", ",", "|")
SEP_LINE = re.compile(r'"?sep=([^\w".])"?[,;\s]*', re.IGNORECASE)  # on top, from or for Excel


class Rows(NamedTuple):
    """A table as it is written.

    Attributes:
        lines: the measurements. header: names of the columns, None where there are none.
        units: what the row under the header says, "" where nothing; None where it is none of units.
        separator: what stands between columns, None: spaces. decimal: , or . in numbers.
        width: entries of a line.
    """

    lines: list[str]
    header: list[str] | None
    units: list[str] | None
    separator: str | None
    decimal: str
    width: int


def rows_of(source: str, missing: Sequence[str]) -> Rows:
    """The rows of a text.

    Args:
        source: a path, also of .gz, or "-" for standard input. missing: entries that mean: no
            value, beside those that always do.
    Raises:
        UserError: no text, no rows, rows that have more entries than the first, a header that has
            more than all rows, or numbers in two ways.
    """
    lines, separator, comments = _lines(_decoded(source, _content(source)))
    if not lines:
        raise UserError(f"{source}: no readable table of x,y,value rows: it is empty")
    separator = _separator(lines) if separator is None else separator.strip(" ") or None
    whole = _without_remarks(lines, separator)
    lines = [_stripped(line, separator) for line in whole]
    rows = [_fields(line, separator) for line in lines]
    unknown = (*NO_VALUE, *map(str.lower, missing))
    header = _header(source, rows, comments, separator, unknown)
    top = 1 if header is rows[0] else 0
    units = _units(rows[top:], header, unknown)
    top += units is not None
    rows, lines, whole = rows[top:], lines[top:], whole[top:]
    width = _check_widths(source, rows, whole, separator, header)
    return Rows(lines, header, units and units + [""] * (width - len(units)), separator,
                decimal_of(source, rows, separator), width)


def _content(source: str) -> bytes:
    """The bytes of a source, unpacked where they are gzip, whatever the name says."""
    if source == "-":
        stream = getattr(sys.stdin, "buffer", sys.stdin)
        content = stream.read()
        content = content.encode() if isinstance(content, str) else content
    else:
        content = Path(source).read_bytes()
    if not content.startswith(GZIP) and not source.lower().endswith(".gz"):
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


def _lines(text: str) -> tuple[list[str], str | None, list[str]]:
    """Lines that hold something; what "sep=" on top says is between columns; comments above."""
    lines, comments = [], []
    every = text.splitlines()
    said = SEP_LINE.fullmatch(every[0]) if every else None
    for line in every[1:] if said else every:
        if line.lstrip()[:1] in tuple(COMMENT):
            comments += [line.lstrip().lstrip(COMMENT + " ")] if not lines else []
        elif _stripped(line, None):
            lines.append(line.strip(" "))
    return lines, said[1] if said else None, comments


def _stripped(line: str, separator: str | None) -> str:
    """A line without what trails."""
    return line.strip(" ").rstrip(",;| \t\N{NO-BREAK SPACE}" + (separator or ""))


def _without_remark(line: str, separator: str | None, width: int) -> str:
    """A line up to the first " #" outside quotes that leaves it that many entries."""
    for mark in re.finditer(r"\s#", line):
        kept = line[: mark.start()]
        if kept.count('"') % 2 == 0 and len(_fields(kept, separator)) >= width:
            return kept
    return line


def _without_remarks(lines: Sequence[str], separator: str | None) -> Sequence[str]:
    """Lines without what follows " #", unless that takes entries away, as of a station "St #3"."""
    clear = [line for line in lines if not re.search(r"\s#", line)]
    if len(clear) == len(lines):
        return lines
    counts = [len(_fields(_stripped(line, separator), separator)) for line in clear or lines]
    width = 1 if separator is None else max(counts) if clear else min(counts)
    return [_without_remark(line, separator, width) for line in lines]


def _separator(lines: Sequence[str]) -> str | None:
    """What stands between the columns in most lines, by those without remarks; None: spaces."""
    clear = [line for line in lines if not re.search(r"\s#", line)]
    lines = (clear or [_without_remark(line, None, 1) for line in lines])[:LOOKED_AT]
    lines = [_stripped(line, None) for line in lines]
    for separator in SEPARATORS:
        if sum(separator in line for line in lines) > 0.6 * len(lines):
            return None if separator == "," and all(map(_is_decimal_row, lines)) else separator
    return None if any(" " in line for line in lines) else ","


def _is_decimal_row(line: str) -> bool:
    """Numbers with decimal commas and spaces between, such as "1,5 2,5 3"."""
    fields = line.split()
    return len(fields) > 1 and all(
        COMMA.fullmatch(field) or re.fullmatch(r"[-+]?\d+", field) for field in fields)


def _fields(line: str, separator: str | None) -> list[str]:
    if '"' not in line:
        return [part.strip() for part in line.split(separator)]
    if separator is None:
        parts = re.findall(r'"[^"]*"|\S+', line)
    else:
        parts = re.findall(rf'(?:^|{re.escape(separator)})\s*("[^"]*"|[^{re.escape(separator)}]*)',
                           line)
    return [part.strip().strip('"').strip() for part in parts]


def _header(
    source: str, rows: Sequence[list[str]], comments: Sequence[str], separator: str | None,
    unknown: Sequence[str],
) -> list[str] | None:
    """Names of the columns: in the first line, or in a comment, as numpy.savetxt writes them."""
    first = rows[0]
    words = [not is_number(entry) and entry.lower() not in unknown for entry in first]
    if all(words) and axes_in(first):
        return first
    for comment in reversed(comments):
        for names in (_fields(comment, _separator([comment])), _fields(comment, separator)):
            if len(names) == len(first) and axes_in(names):
                return names
    if any(words) and not _is_measured(rows):
        return first
    _refuse_comment_of_names(source, comments, len(first))
    return None


def _is_measured(rows: Sequence[list[str]]) -> bool:
    """Whether the first row has words and numbers where the second has them: "3,50,Bergen,11"."""
    kinds = [[is_number(entry) for entry in row] for row in rows[:2]]
    return len(kinds) == 2 and kinds[0] == kinds[1] and sum(kinds[0]) >= 2


def _refuse_comment_of_names(source: str, comments: Sequence[str], width: int) -> None:
    """Raises UserError for "# lat lon wind speed" above rows of three: x would be the latitude."""
    for comment in comments:
        names = _fields(comment, _separator([comment]))
        axes = axes_in(names, PAIRS)
        if axes is not None and axes[1] < axes[0]:
            raise UserError(f"{source}: the comment on top, {comment!r}, names y before x, and has "
                            f"{len(names)} words for {width} columns; write a line of {width} "
                            "names instead")


def _units(
    rows: Sequence[list[str]], header: list[str] | None, unknown: Sequence[str]
) -> list[str] | None:
    """The first row under a header, if it holds words alone, above three columns of numbers."""
    if not rows or header is None or header == rows[0] or len(rows[0]) > len(header) or any(
            map(is_number, rows[0])):
        return None
    words = sum(entry.lower() not in unknown for entry in rows[0])
    numbers = {k for row in rows[1:LOOKED_AT] for k, entry in enumerate(row) if is_number(entry)}
    if words < 2 or len(numbers) < 3:
        return None
    return ["" if entry.lower() in NO_VALUE else re.sub(r"^[\[(](.*)[\])]$", r"\1", entry)
            for entry in rows[0]]


def _check_widths(
    source: str, rows: Sequence[list[str]], lines: Sequence[str], separator: str | None,
    header: Sequence[str] | None,
) -> int:
    """The entries of a row; where a header has fewer or more, its names belong to other columns.

    Args:
        rows: of entries, without empty ones at the end. lines: the same with them.
    """
    counts = [len(row) for row in rows]
    widest = max(counts, default=0)
    first = counts[0] if header is None else len(header)
    if widest > first:
        row = counts.index(widest)
        hint = ("; are these decimal commas? put semicolons between the columns"
                if separator == "," else "")
        raise UserError(f"{source}: measurement {row + 1} has {widest} entries, the line on top "
                        f"{first}{hint}; begin lines that are no measurements with #")
    if 0 < widest < first and max(len(_fields(line, separator)) for line in lines) < first:
        hint = ("write a name of two words as one, or put commas between the columns"
                if separator is None else "quote names with separators in them, or leave out those "
                "without a column")
        raise UserError(f"{source}: the line on top has {first} names ({', '.join(header)}), no "
                        f"measurement more than {widest} entries; {hint}")
    return first
