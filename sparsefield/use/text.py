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
from sparsefield.use.columns import PAIRS, bare

COMMENT = "#%"
NO_VALUE = ("", "na", "n/a", "nan", "null", "none", "-", "--")
LOOKED_AT = 200  # lines that tell how a table is written
DECIMAL_COMMA = r"[-+]?\d*(,\d+)?([eE][-+]?\d+)?"
SEPARATORS = ("\t", ";", ",", "|")


class Rows(NamedTuple):
    """A table as it is written.

    Attributes:
        lines: the measurements. header: names of the columns, None where there are none.
        separator: what stands between columns, None: spaces. decimal: , or . in numbers.
        width: entries of a line.
    """

    lines: list[str]
    header: list[str] | None
    separator: str | None
    decimal: str
    width: int


def rows_of(source: str, missing: Sequence[str]) -> Rows:
    """The rows of a text.

    Args:
        source: a path, also of .gz, or "-" for standard input. missing: entries that mean: no
            value, beside those that always do.
    Raises:
        UserError: no text, no rows, or rows that have more entries than the first.
    """
    lines, header = _lines(_decoded(source, _content(source)))
    if not lines:
        raise UserError(f"{source}: no readable table of x,y,value rows: it is empty")
    separator = _separator(lines[:LOOKED_AT])
    first = _fields(lines[0], separator)
    decimal = "," if separator != "," and _has_decimal_commas(lines[:LOOKED_AT], separator) else "."
    if header is not None and len(_fields(header, separator)) != len(first):
        header = None
    if header is None and any(_is_word(field, decimal, missing) for field in first):
        header, lines = lines[0], lines[1:]
    width = _check_widths(source, lines, separator, header)
    return Rows(lines, None if header is None else _fields(header, separator), separator, decimal,
                width)


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
