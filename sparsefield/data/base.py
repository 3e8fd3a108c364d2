"""What every data set is: three splits of fields on one grid, and the scale of their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparsefield.data.scale import Scale, to_unit


class Split(Protocol):
    """Fields (H, W, C), float32, the data set's range mapped to [-1, 1].

    A point that does not exist is NaN in all channels. `has_gaps` is False when every point of
    every field exists. `is_symmetric` where flips, quarter turns and exchanged channels of a field
    are as likely fields: pictures.
    """

    has_gaps: bool
    is_symmetric: bool

    def __len__(self) -> int: ...

    def example(self, index: int) -> np.ndarray:
        """The frozen field `index`, for evaluation."""

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Field `index` for training, augmented with numbers of `rng`."""

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        """(size, size, C): the truth of `example(index)` on a finer grid.

        `example(index)` is its area average. None if the source has fewer points than that.
        """


@dataclass(frozen=True)
class Data:
    """A data set, split for good into training, validation and test fields.

    Attributes:
        name: what the user asked for, without folders.
        height, width: the grid of every field.
        scale: value range and units, one range for each channel.
        fingerprint: hash of the source, equal on every machine.
    """

    name: str
    height: int
    width: int
    scale: Scale
    fingerprint: str
    train: Split
    val: Split
    test: Split

    @property
    def channels(self) -> int:
        return self.scale.channels

    @property
    def units(self) -> str | None:
        return self.scale.units

    @property
    def value_range(self) -> tuple[tuple[float, float], ...]:
        return self.scale.value_range

    def to_unit(self, inside: np.ndarray) -> np.ndarray:
        """[-1, 1] -> [0, 1]."""
        return to_unit(inside)

    def to_physical(self, inside: np.ndarray) -> np.ndarray:
        """[-1, 1] -> values of the file, channels last."""
        return self.scale.to_physical(inside)

    def describe(self) -> dict[str, object]:
        """What a checkpoint remembers of its data, in plain types.

        `Scale(d["value_range"], d["units"])` of the result brings the scale back.
        """
        return {
            "name": self.name,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "value_range": [list(pair) for pair in self.value_range],
            "units": self.units,
            "fingerprint": self.fingerprint,
            "sizes": [len(self.train), len(self.val), len(self.test)],
        }
