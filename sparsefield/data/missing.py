"""Numbers that mean: not measured. Told by the user, or found and asked about."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sparsefield.errors import UserError

# The ends of integers. Numbers of nines (-9999, -99.9) and beyond HUGE (1e20, 1e30, 9.97e36) too.
CODES = {-32768, -32767, 32767, -2147483648, 2147483647, 65535, 4294967295}
HUGE = 1e15
FAR = 10  # times the spread of all others: a value that stands there several times is no outlier


def is_code(value: float) -> bool:
    """Whether programs use this number for: no value."""
    text = f"{value:.10g}"
    return abs(value) >= HUGE or value in CODES or bool(
        re.fullmatch(r"-99(\.9+)?|-?999+(\.9+)?", text))


def lone_extreme(values: np.ndarray, codes_only: bool = False) -> float | None:
    """The smallest or largest value where it may mark missing ones; None if neither may.

    That is a code that is as far from all others as they spread, or any value that stands there
    twice or more and is ten times as far. NaN is left out.

    Args:
        values: (N,). codes_only: whether other values than codes are left alone.
    """
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    for extreme in (float(values.min()), float(values.max())):
        others = values[values != extreme]
        if len(others) == 0:
            return None
        low, high = float(others.min()), float(others.max())
        gap, spread = max(low - extreme, extreme - high), high - low
        repeated = len(values) - len(others) > 1 and spread > 0 and not codes_only
        if (is_code(extreme) and gap > spread) or (repeated and gap > FAR * spread):
            return extreme
    return None


def refuse_lone_extreme(where: str, values: np.ndarray, codes_only: bool = False) -> None:
    """Raises UserError where the user must say whether a value was measured."""
    extreme = lone_extreme(values, codes_only)
    found = np.unique(values[np.isfinite(values)])
    if len(found) == 1 and is_code(found[0]) and not 0 <= found[0] < HUGE:
        raise UserError(f"{where}: all are {found[0]:.10g}, which means: not measured; if not, "
                        "give --missing none (in Python missing=[])")
    if extreme is None:
        return
    times = int((values == extreme).sum())
    others = values[np.isfinite(values) & (values != extreme)]
    text = f"{extreme:.10g}"
    raise UserError(
        f"{where}: {text} stands there {times} time{'s' if times > 1 else ''}, far from all others "
        f"({others.min():.6g} to {others.max():.6g}); if it means: not measured, give --missing "
        f"{text}, if it was measured, --missing none (in Python missing=[{text}] or [])"
    )


def parse_missing(words: Sequence[str] | None) -> tuple[list[float] | None, list[str]]:
    """Numbers and words that mean: no value. Numbers are None where nothing was said."""
    if not words:
        return None, []
    numbers, others = [], []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            others.append(word)
    if [word.lower() for word in others] == ["none"]:
        others = []
    return numbers, others
