"""Between the values of a file and the values that a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparsefield.errors import UserError


@dataclass(frozen=True)
class Scale:
    """An affine map for each channel: `value_range[c] = (lo, hi)` of the file becomes (-1, 1).

    Arrays have the channels last. `units` is text for colour bars ("K", or one unit for each
    channel as "m/s,m/s,K"), or None for pictures.
    """

    value_range: tuple[tuple[float, float], ...]
    units: str | None = None

    @property
    def channels(self) -> int:
        return len(self.value_range)

    def unit(self, channel: int) -> str | None:
        """The unit of one channel."""
        names = self.units.split(",") if self.units else [None]
        return names[channel] if len(names) == self.channels else self.units

    def describe(self) -> str:
        """The range in words: "-2 to 30 degC", or so for each channel where they differ."""
        parts = [f"{low:g} to {high:g}" + (f" {self.unit(c)}" if self.unit(c) else "")
                 for c, (low, high) in enumerate(self.value_range)]
        return parts[0] if len(set(parts)) == 1 else "; ".join(parts)

    def to_inside(self, values: np.ndarray) -> np.ndarray:
        """Values of the file -> float32 in [-1, 1]; NaN stays NaN."""
        return ((values - self._middle) / self._half_width).astype(np.float32)

    def to_physical(self, inside: np.ndarray) -> np.ndarray:
        """[-1, 1] -> values of the file, float64."""
        return self._middle + np.asarray(inside, dtype=np.float64) * self._half_width

    @cached_property
    def _middle(self) -> np.ndarray:
        return np.mean(self.value_range, axis=1)

    @cached_property
    def _half_width(self) -> np.ndarray:
        return np.diff(self.value_range, axis=1)[:, 0] / 2


def to_unit(inside: np.ndarray) -> np.ndarray:
    """[-1, 1] -> [0, 1], the values of metrics and pictures."""
    return (inside + 1) / 2


def pixel_scale(channels: int) -> Scale:
    """The scale of uint8 pictures."""
    return Scale(((0.0, 255.0),) * channels)


def wide_enough(low: float, high: float) -> tuple[float, float]:
    """Constant data lies in the middle of a range that can be divided by."""
    margin = 0.5 * max(1.0, abs(low)) if low == high else 0.0
    return low - margin, high + margin


def given_range(given: Sequence[float], channels: int) -> tuple[tuple[float, float], ...]:
    """The range of each channel that a user gave, as low high for all or for each.

    Raises:
        UserError: not so many numbers, not finite, or not in order.
    """
    text = " ".join(f"{value:g}" for value in given)
    if len(given) not in (2, 2 * channels):
        each = f", or {channels} times lo hi" if channels > 1 else ""
        raise UserError(f"--value_range {text}: give lo hi for all channels{each}")
    pairs = tuple(zip(map(float, given[::2]), map(float, given[1::2])))
    if not all(low < high and np.isfinite(high - low) for low, high in pairs):
        raise UserError(f"--value_range {text}: give low high, each lo must be below its hi, and "
                        "both finite")
    return pairs if len(pairs) == channels else pairs * channels
