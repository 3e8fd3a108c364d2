"""Numbers that mean: not measured. Given by the user, or found and asked about."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sparsefield.errors import UserError

# The ends of integers. Numbers of nines (-9999, -99.9) and beyond HUGE (1e20, 1e30, 9.97e36) too.
CODES = {-32768, -32767, 32767, -2147483648, 2147483647, 65535, 4294967295}
HUGE = 1e15
FAR = 10  # times the spread of all others: a value that repeats there is no outlier


def lone_extreme(values: np.ndarray, codes_only: bool = False) -> float | None:
    """The smallest or largest value where it may mean: not measured; None if neither may.

    A code counts where it is farther from all others than they spread. Negative nines (-999) also
    count where nothing else is negative, or where they repeat. Any other value counts where it
    repeats, ten times as far from all others as they spread.

    Args:
        values: (N,), NaN is left out. codes_only: whether other values than codes are left alone.
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
        times = len(values) - len(others)
        alone = low >= 0 or (times > 2 and gap > spread / FAR)
        repeats = times > 1 and spread > 0 and not codes_only
        if (is_code(extreme) and gap > spread) or (repeats and gap > FAR * spread) or (
                extreme < 0 and _is_nines(extreme) and alone):
            return extreme
    return None


def is_code(value: float) -> bool:
    """Whether programs use this number for: no value."""
    return abs(value) >= HUGE or value in CODES or _is_nines(value)


def _is_nines(value: float) -> bool:
    return bool(re.fullmatch(r"-99(\.9+)?|-?999+(\.9+)?", f"{value:.10g}"))


def refuse_lone_extreme(where: str, values: np.ndarray, codes_only: bool = False) -> None:
    """Raises UserError where the user must say whether a value was measured; see `lone_extreme`."""
    found = np.unique(values[np.isfinite(values)])
    if len(found) == 1 and is_code(found[0]) and not 0 <= found[0] < HUGE:
        raise UserError(f"{where}: all are {found[0]:.10g}, which means: not measured; if not, "
                        "give --missing none (in Python missing=[])")
    extreme = lone_extreme(values, codes_only)
    if extreme is None:
        return
    times = int((values == extreme).sum())
    others = found[found != extreme]
    text = f"{extreme:.10g}"
    raise UserError(
        f"{where}: {text} stands there {times} time{'s' if times > 1 else ''}, far from all others "
        f"({others.min():.6g} to {others.max():.6g}); if it means: not measured, give --missing "
        f"{text}, if it was measured, --missing none (in Python missing=[{text}] or [])"
    )


def parse_missing(words: Sequence[str] | None) -> tuple[list[float] | None, list[str]]:
    """Numbers and words that mean: no value. Numbers are None where nothing was given."""
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
