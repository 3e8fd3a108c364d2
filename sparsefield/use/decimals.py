"""Numbers in text: which entries are some, and whether they have decimal points or commas."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from sparsefield.errors import UserError

COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
POINT = re.compile(r"[-+]?\d*\.\d+([eE][-+]?\d+)?")
THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
UNDER_THOUSAND = re.compile(r"[-+]?\d{1,3}")


def is_number(entry: str) -> bool:
    """Whether an entry is a number, with a decimal point or a decimal comma."""
    if COMMA.fullmatch(entry):
        return True
    try:
        float(entry)
    except ValueError:
        return False
    return True


def decimal_of(source: str, rows: Sequence[Sequence[str]], separator: str | None) -> str:
    """What stands before decimals, "." or ",".

    Args:
        rows: entries of the measurements. separator: what stands between columns.
    Raises:
        UserError: both are there, or 1,205 may be 1205 as well as 1.205.
    """
    comma = _first(COMMA, rows)
    if comma is None:
        return "."
    point = _first(POINT, rows)
    if point is not None:
        raise UserError(f"{source}: has both decimal points ({point}) and commas in numbers "
                        f"({comma}): say numbers in one way, thousands without a mark")
    if _may_be_thousands(rows, separator):
        raise UserError(f"{source}: {comma} may be {comma.replace(',', '')} or "
                        f"{comma.replace(',', '.')}; write numbers without commas")
    return ","


def _first(kind: re.Pattern[str], rows: Iterable[Sequence[str]]) -> str | None:
    return next((entry for row in rows for entry in row if kind.fullmatch(entry)), None)


def _may_be_thousands(rows: Sequence[Sequence[str]], separator: str | None) -> bool:
    """Whether each comma is where one of thousands is, beside numbers that need none.

    Between commas only quotes keep such a number together, as Excel does with thousands.
    """
    commas = [entry for row in rows for entry in row if COMMA.fullmatch(entry)]
    if not all(map(THOUSANDS.fullmatch, commas)):
        return False
    return separator == "," or any(
        any(map(THOUSANDS.fullmatch, column)) and any(map(UNDER_THOUSAND.fullmatch, column))
        for column in itertools.zip_longest(*rows, fillvalue=""))
