"""Which points are observed: the rules behind `--observe`.

    random:0.2         a fifth of the points, uniformly
    random:0.05-0.5    a share that varies from batch to batch, from evaluation field to field
    grid:4             every 4th point of every 4th row
    block:0.3          everything but a block of 0.3 of the area (inpainting)
    lines:8            8 whole rows
    mask.png           what is white, and opaque, in a picture of the size of the fields
    random:0.2,lines:8 one of several rules, equally often: for who will measure in several ways
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sparsefield.data.pictures import read_mask
from sparsefield.errors import UserError


class Pattern(Protocol):
    """A rule that chooses observed points. `str(pattern)` gives its text back.

    Attributes:
        is_fixed: whether it draws equally many points on every whole field.
        is_symmetric: whether its points turned with the field are as likely.
    """

    is_fixed: bool
    is_symmetric: bool

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        """Observed points of one field.

        Args:
            valid: (H, W) bool, True where a point exists; at least two.
            rng: source of the positions.
            level: number in [0, 1) that decides *how many* where the rule varies that; a batch
                shares one, so that all its fields have equally many. Default: drawn from rng.
        Returns:
            (M,) int64, sorted indices i * W + j; only points that exist, at least one of them,
            and never all of them (one is added or dropped if the rule leaves none on one side).
        Raises:
            UserError: the rule does not fit a grid of this size.
        """


@dataclass(frozen=True)
class RandomPoints:
    """int(share * existing points), uniformly without replacement; share in [low, high], its
    logarithm uniform."""

    low: float
    high: float

    is_symmetric = True

    @property
    def is_fixed(self) -> bool:
        return self.low == self.high

    def __str__(self) -> str:
        return f"random:{self.low:g}" + (f"-{self.high:g}" if self.high > self.low else "")

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        points = np.flatnonzero(valid)
        share = self.low
        if self.high > self.low:
            level = rng.random() if level is None else level
            share *= (self.high / self.low) ** level
        count = min(max(int(share * len(points)), 1), len(points) - 1)
        return np.sort(rng.choice(points, count, replace=False, shuffle=False))


@dataclass(frozen=True)
class Grid:
    """Every `step`-th point both ways, as far from the border as from each other's middle."""

    step: int

    is_fixed, is_symmetric = True, False

    def __str__(self) -> str:
        return f"grid:{self.step}"

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        if self.step > min(valid.shape):
            raise _does_not_fit(self, valid)
        observed = np.zeros_like(valid)
        start = self.step // 2
        observed[start::self.step, start::self.step] = True
        return _points(observed, valid, rng)


@dataclass(frozen=True)
class Block:
    """All but one block of `share` of the area, in the proportions of the field."""

    share: float

    is_fixed, is_symmetric = True, False

    def __str__(self) -> str:
        return f"block:{self.share:g}"

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        height, width = (max(1, round(side * self.share**0.5)) for side in valid.shape)
        top = rng.integers(valid.shape[0] - height + 1)
        left = rng.integers(valid.shape[1] - width + 1)
        observed = np.ones_like(valid)
        observed[top:top + height, left:left + width] = False
        return _points(observed, valid, rng)


@dataclass(frozen=True)
class Lines:
    """`count` whole rows, without replacement: the tracks of an instrument."""

    count: int

    is_fixed, is_symmetric = True, False

    def __str__(self) -> str:
        return f"lines:{self.count}"

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        if self.count >= len(valid):
            raise _does_not_fit(self, valid)
        observed = np.zeros_like(valid)
        observed[rng.choice(len(valid), self.count, replace=False)] = True
        return _points(observed, valid, rng)


@dataclass(frozen=True)
class Mask:
    """The same points for every field: a picture, white where observed."""

    path: str
    observed: np.ndarray

    is_fixed, is_symmetric = True, False

    def __str__(self) -> str:
        return self.path

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        if self.observed.shape != valid.shape:
            raise _does_not_fit(self, valid, "{1} x {0} pixels".format(*self.observed.shape))
        return _points(self.observed, valid, rng)


@dataclass(frozen=True)
class AnyOf:
    """One of several rules, equally often; rules named twice twice as often. The whole counts as
    symmetric: who names several rules has no direction of the grid in mind."""

    rules: tuple[Pattern, ...]

    is_fixed, is_symmetric = False, True

    def __str__(self) -> str:
        return ",".join(map(str, self.rules))

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        level = rng.random() if level is None else level
        which, level = divmod(level * len(self.rules), 1)
        return self.rules[int(which)].draw(valid, rng, level)


def parse_pattern(text: str) -> Pattern:
    """The pattern that `--observe` names (see the top of this file).

    Raises:
        UserError: unknown rule, a mask that cannot be read, or a rule that observes nothing or
            everything.
    """
    if "," in text and not os.path.isfile(text):
        return AnyOf(tuple(map(_parse_rule, text.split(","))))
    return _parse_rule(text)


def _parse_rule(text: str) -> Pattern:
    rule, colon, argument = text.partition(":")
    if not colon or rule not in _RULES:
        return _read_mask(text)
    try:
        pattern = _RULES[rule](argument)
    except ValueError:
        raise _unknown(text) from None
    if not _is_sound(pattern):
        raise UserError(
            f"--observe {text}: observes nothing or everything; shares lie between 0 and 1, the "
            "smaller one first, a grid has steps of 2 or more, lines are 1 or more"
        )
    return pattern


def _random(argument: str) -> RandomPoints:
    low, _, high = argument.partition("-")
    return RandomPoints(float(low), float(high or low))


_RULES: dict[str, Callable[[str], Pattern]] = {
    "random": _random,
    "grid": lambda argument: Grid(int(argument)),
    "block": lambda argument: Block(float(argument)),
    "lines": lambda argument: Lines(int(argument)),
}


def _is_sound(pattern: Pattern) -> bool:
    match pattern:
        case RandomPoints(low, high):
            return 0 < low <= high < 1
        case Block(share):
            return 0 < share < 1
        case Grid(step):
            return step >= 2
        case Lines(count):
            return count >= 1
    raise TypeError(pattern)


def _read_mask(text: str) -> Mask:
    if not os.path.isfile(text):
        raise _unknown(text)
    observed = read_mask(Path(text))
    if observed.all() or not observed.any():
        raise UserError(
            f"--observe {text}: the mask observes {'everything' if observed.all() else 'nothing'}; "
            "paint observed points white and the others black"
        )
    return Mask(text, observed)


def _unknown(text: str) -> UserError:
    return UserError(
        f"--observe {text}: neither a picture nor a rule; use random:0.2, random:0.05-0.5, "
        "grid:4, block:0.3, lines:8 or mask.png"
    )


def _does_not_fit(pattern: Pattern, valid: np.ndarray, has: str = "the rule") -> UserError:
    height, width = valid.shape
    return UserError(
        f"--observe {pattern}: {has} does not fit fields of {width} x {height} points; "
        "use another pattern or size"
    )


def _points(observed: np.ndarray, valid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of observed points that exist; one more or less if that is none or all."""
    points = np.flatnonzero(observed & valid)
    existing = np.flatnonzero(valid)
    if len(points) == 0:
        return rng.choice(existing, 1)
    if len(points) == len(existing):
        return np.sort(rng.choice(existing, len(existing) - 1, replace=False))
    return points
