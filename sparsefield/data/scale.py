"""What every data set is: three splits of fields on one grid, and the scale of their values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from sparsefield.errors import UserError

log = logging.getLogger(__name__)

SEARCHED = 2**22  # how many values of a data set are searched for spikes and codes
# Warn where leaving out the first share of the values leaves less than the second of their range:
# spikes, and values of many decades.
SPIKES = ((0.001, 0.1), (0.1, 0.01))
NARROW = 0.01  # of a range: values within so little look alike to a model
PIXELS, NARROW_PIXELS = ((0.0, 255.0), (0.0, 65535.0)), 0.1  # where the type gives the range
LEAST_GAPS = 0.01  # share of values that are one and the same, far from all others: gaps, perhaps
LEAST_ALIKE = 3  # equal values that may be a gap
SORTED = 2**16  # values, at most, that are searched for gaps
FAR_STEPS = 20  # a gap is so many times as wide as usual steps between values
STANDARD = 3.0  # sd of the measurements that 1 inside is, of standardised fields
LEAST_SD = 0.1  # of measurements that such a field is divided by, in its own sd
HELD_OUT = 0.05  # share of what is not split yet that becomes validation, and again test

Part = TypeVar("Part")


@dataclass(frozen=True)
class Scale:
    """An affine map for each channel, the last axis, between values of a file and of a model.

    Attributes:
        value_range: (lo, hi) of each channel, which become (-1, 1).
        units: text for colour bars, "K", or "m/s,m/s,K" for each channel; None for pictures.
        is_standard: values are those of `standardised` fields, in sd of the measurements from their
            mean.
    """

    value_range: tuple[tuple[float, float], ...]
    units: str | None = None
    is_standard: bool = False

    @property
    def channels(self) -> int:
        return len(self.value_range)

    def unit(self, channel: int) -> str | None:
        names = self.units.split(",") if self.units else [None]
        return names[channel] if len(names) == self.channels else self.units

    def describe(self) -> str:
        """The range in words: "-2 to 30 degC", or so for each channel where they differ."""
        parts = [f"{low:g} to {high:g}" + (f" {self.unit(c)}" if self.unit(c) else "")
                 for c, (low, high) in enumerate(self.value_range)]
        return parts[0] if len(set(parts)) == 1 else "; ".join(parts)

    def to_inside(self, values: np.ndarray) -> np.ndarray:
        """Values of the file -> float32 in [-1, 1]; NaN stays NaN."""
        return ((values - self._middle) / self.half_width).astype(np.float32)

    def to_physical(self, inside: np.ndarray) -> np.ndarray:
        """[-1, 1] -> values of the file, float64."""
        return self._middle + np.asarray(inside, dtype=np.float64) * self.half_width

    @cached_property
    def _middle(self) -> np.ndarray:
        return np.mean(self.value_range, axis=1)

    @cached_property
    def half_width(self) -> np.ndarray:
        """(C,), what 1 inside is in units of the file."""
        return np.diff(self.value_range, axis=1)[:, 0] / 2


def to_unit(inside: np.ndarray) -> np.ndarray:
    """[-1, 1] -> [0, 1], the values of metrics and pictures."""
    return (inside + 1) / 2


def pixel_scale(channels: int) -> Scale:
    """The scale of uint8 pictures."""
    return Scale(((0.0, 255.0),) * channels)


def wide_enough(low: float, high: float) -> tuple[float, float]:
    """The range, or one around a single value: constant data must not divide by 0."""
    margin = 0.5 * max(1.0, abs(low)) if low == high else 0.0
    return low - margin, high + margin


def given_range(given: Sequence[float], channels: int) -> tuple[tuple[float, float], ...]:
    """The range of each channel that a user gave, as lo hi for all or for each. Raises UserError
    for another count, and for what is not finite or not in order."""
    text = " ".join(f"{value:g}" for value in given)
    if len(given) not in (2, 2 * channels):
        each = f", or {channels} times lo hi" if channels > 1 else ""
        raise UserError(f"--value_range {text}: give lo hi for all channels{each}")
    pairs = tuple(zip(map(float, given[::2]), map(float, given[1::2]), strict=True))
    if not all(low < high and np.isfinite(high - low) for low, high in pairs):
        raise UserError(f"--value_range {text}: give low high, lo below its hi, both finite")
    return pairs if len(pairs) == channels else pairs * channels


def check_inside(
    source: str, low: np.ndarray, high: np.ndarray, scale: Scale, is_given: bool
) -> None:
    """Raises UserError where a channel, in another unit, leaves its range by more than the width of
    that. Logs values a little outside of a range that the user has given (`is_given`), and those
    that take hardly any of another; low, high: (C,)."""
    lows, highs = np.asarray(scale.value_range).T
    outside = np.maximum(lows - low, high - highs) / (highs - lows)
    extent = f"{source}: values from {low.min():g} to {high.max():g}"
    if outside.max() > 1:
        raise UserError(
            f"{extent} lie far outside {scale.describe()}: convert the units, mark points that do "
            "not exist with NaN, or widen it with --value_range")
    taken = ((high - low) / (highs - lows)).max()
    if not is_given and 0 < taken < (NARROW_PIXELS if scale.value_range[0] in PIXELS else NARROW):
        log.warning("WARNING: %s take only %.2g %% of %s and look alike to a model: convert them, "
                    "or say their range with --value_range low high (VALUE_RANGE)", extent,
                    100 * taken, scale.describe())
    if is_given and outside.max() > 1e-6:  # more than rounding to float32
        log.warning("%s leave the value range %s: reconstructions are clipped to it",
                    extent, scale.describe())


def tell_of_spikes(source: str, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Log where a few values stretch the range, in which all others then look alike; values:
    (N, C), some of them; low, high: (C,), of all."""
    told: set[int] = set()
    for share, part in SPIKES:
        first, last = np.nanquantile(values, (share / 2, 1 - share / 2), axis=0)
        for c in set(np.flatnonzero(last - first < part * (high - low)).tolist()) - told:
            told.add(c)
            log.warning(
                "WARNING: %s: values go from %.6g to %.6g, and %.1f %% of them from %.6g to %.6g, "
                "which look alike to a model then: mark spikes with NaN, take logarithms, or say "
                "with --value_range low high (VALUE_RANGE) that they were measured",
                source, low[c], high[c], 100 - 100 * share, first[c], last[c])


def tell_of_values(source: str, values: np.ndarray) -> None:
    """Log where many values of a column of (N, C) are one and the same, far from all others:
    farther than these spread (0 on land, say), or than a tenth of that and many of their steps."""
    for own in values.T.astype(np.float64):
        own = own[np.isfinite(own)]
        own = np.sort(own[::len(own) // SORTED | 1])  # an odd step, which no width is a multiple of
        _tell_of_gaps(source, own)


def _tell_of_gaps(source: str, own: np.ndarray) -> None:
    """See `tell_of_values`; values (N,), sorted."""
    different = np.unique(own)
    for others in (different[1:], different[:-1]) if len(different) > 2 else ():
        extreme = different[0] if others[0] > different[0] else different[-1]
        count, spread = int((own == extreme).sum()), np.ptp(others)
        gap = np.abs(others - extreme).min()
        if count >= max(LEAST_ALIKE, LEAST_GAPS * len(own)) and (
            spread < gap or gap > max(0.1 * spread, FAR_STEPS * np.median(np.diff(others)))
        ):
            log.warning(
                "WARNING: %s: %.6g stands in %.0f %% of the points, all others are %.6g to %.6g: "
                "if it means that nothing is known there, put NaN in its place", source, extreme,
                100 * count / len(own), others[0], others[-1])
    zeros, usual = int((own == 0).sum()), len(own) / max(len(different), 1)
    if len(own) and own[0] < 0 < own[-1] and zeros >= max(LEAST_ALIKE, LEAST_GAPS * len(own)) and (
        zeros > FAR_STEPS * usual
    ):
        log.warning("WARNING: %s: 0 stands in %.0f %% of the points, between values of both signs: "
                    "if it means that nothing is known there, put NaN in its place", source,
                    100 * zeros / len(own))


def require_units(source: str, found: str | None, main: str, wanted: str | None) -> None:
    """Raises UserError where a file beside the main one says that it is in other units."""
    if found and wanted and found != wanted:
        raise UserError(f"{source}: in {found}, {main} in {wanted}; convert one, or, if they are "
                        "alike, name both with --units")


def in_three(
    main: Part, val: Part | None, test: Part | None, cut: Callable[..., list[Part]]
) -> list[Part]:
    """Training, validation and test. `val` alone is halved between the latter two; else a twentieth
    of `main` is held out for each that is missing.

    `cut(part, *shares)` gives what remains, then parts of these shares.
    """
    if val is not None:
        return [main, val, test] if test is not None else [main, *cut(val, 0.5)]
    if test is not None:
        return [*cut(main, HELD_OUT), test]
    return cut(main, HELD_OUT, HELD_OUT)


class Split(Protocol):
    """Fields (H, W, C), float32, the data set's range mapped to [-1, 1].

    Attributes:
        has_gaps: whether points of some field do not exist. These are NaN in all channels.
        is_symmetric: whether a field flipped, turned by quarters, or with channels exchanged is as
            likely as it is, as in pictures.

    Of `standardised` data `is_standard` is True: see sparsefield.data.batches.Pattern.measure. A
    split of sequences also has `frames`, T: its fields i T ... i T + T - 1 are the frames of one,
    in their order, at `time(index)` in mean steps, and are augmented alike by equal random numbers.
    """

    has_gaps: bool
    is_symmetric: bool

    def __len__(self) -> int: ...

    def example(self, index: int) -> np.ndarray:
        """The frozen field `index`, for evaluation."""

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Field `index` for training, augmented with numbers of `rng`."""

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        """(size, size, C), of which `example(index)` is the area average; None if the source has
        fewer points."""


def frames_of(split: Split) -> int:
    """T of a split of sequences, else 1."""
    return getattr(split, "frames", 1)


def time_of(split: Split, index: int) -> float:
    """The time of a field of a split of sequences, else 0."""
    return split.time(index) if frames_of(split) > 1 else 0.0


def measured_moments(field: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (C,) of what is observed (M,) of a field (H, W, C); the sd is at least LEAST_SD
    of the field's."""
    measured = field.reshape(-1, field.shape[-1])[observed]
    sd = np.maximum(measured.std(axis=0), LEAST_SD * np.nanstd(field, axis=(0, 1)))
    return measured.mean(axis=0), sd


def is_standard(split: Split) -> bool:
    """Whether a split is of `standardised` data."""
    return getattr(split, "is_standard", False)


@dataclass(frozen=True)
class Data:
    """A data set, split for good into training, validation and test fields.

    Attributes:
        name: what the user asked for, without folders.
        height, width: the grid of every field.
        fingerprint: hash of the source, equal on every machine.
        rows_up: whether y grows with the row, so that row 0 is drawn at the bottom: maps with
            coordinates.
    """

    name: str
    height: int
    width: int
    scale: Scale
    fingerprint: str
    train: Split
    val: Split
    test: Split
    rows_up: bool = False

    @property
    def channels(self) -> int:
        return self.scale.channels

    @property
    def units(self) -> str | None:
        return self.scale.units

    @property
    def value_range(self) -> tuple[tuple[float, float], ...]:
        return self.scale.value_range

    def to_physical(self, inside: np.ndarray) -> np.ndarray:
        return self.scale.to_physical(inside)

    def describe(self) -> dict[str, object]:
        """What a checkpoint remembers of its data, in plain types."""
        return {
            "name": self.name, "channels": self.channels, "height": self.height,
            "width": self.width, "value_range": [list(pair) for pair in self.value_range],
            "units": self.units, "fingerprint": self.fingerprint, "rows_up": self.rows_up,
            "is_standard": self.scale.is_standard,
            "sizes": [len(self.train), len(self.val), len(self.test)],
        }


def standardised(data: Data) -> Data:
    """Data as fields of any quantity: a model sees each in sd of its measurements from their mean,
    and learns it in all orientations and with both signs."""
    for split in (data.train, data.val, data.test):
        split.is_standard = split.is_symmetric = True  # type: ignore[attr-defined]
    bounds = ((-STANDARD, STANDARD),) * data.channels
    return replace(data, scale=Scale(bounds, is_standard=True))
