"""Which points are observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparsefield.errors import UserError


class Pattern(Protocol):
    """A rule that chooses observed points. `str(pattern)` gives its text back."""

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        """Observed points of one field.

        Args:
            valid: (H, W) bool, True where a point exists.
            rng: source of the positions.
            level: number in [0, 1) that decides *how many* where the rule varies that; a batch
                shares one, so that all its fields have equally many. Default: drawn from rng.
        Returns:
            (M,) int64, sorted indices i * W + j; only points that exist, at least one of them,
            and never all of them.
        """


@dataclass(frozen=True)
class RandomPoints:
    """int(fraction * existing points), uniformly without replacement; fraction in [low, high]."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"random:{self.low:g}" + (f"-{self.high:g}" if self.high > self.low else "")

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        points = np.flatnonzero(valid)
        if self.high > self.low:
            level = rng.random() if level is None else level
            fraction = self.low + level * (self.high - self.low)
        else:
            fraction = self.low
        count = min(max(int(fraction * len(points)), 1), len(points) - 1)
        return np.sort(rng.choice(points, count, replace=False, shuffle=False))


def parse_pattern(text: str) -> Pattern:
    """The pattern that `--observe` names: random:0.2, random:0.05-0.5.

    Raises:
        UserError: unknown rule, or numbers that observe nothing or everything.
    """
    rule, _, argument = text.partition(":")
    if rule != "random":
        raise UserError(f"--observe {text}: unknown; use random:0.2 or random:0.05-0.5")
    low, _, high = argument.partition("-")
    try:
        pattern = RandomPoints(float(low), float(high or low))
    except ValueError:
        raise UserError(f"--observe {text}: give a share such as random:0.2") from None
    if not 0 < pattern.low <= pattern.high < 1:
        raise UserError(f"--observe {text}: shares lie between 0 and 1, the smaller one first")
    return pattern
