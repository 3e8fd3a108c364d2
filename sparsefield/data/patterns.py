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

    text: str
    low: float
    high: float

    is_symmetric = True

    @property
    def is_fixed(self) -> bool:
        return self.low == self.high

    def __str__(self) -> str:
        return self.text

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        points = np.flatnonzero(valid)
        share = self.low
        if not self.is_fixed:
            level = rng.random() if level is None else level
            share *= (self.high / self.low) ** level
        count = min(max(int(share * len(points)), 1), len(points) - 1)
        return np.sort(rng.choice(points, count, replace=False, shuffle=False))


@dataclass(frozen=True)
class Shape:
    """A grid, a block, lines or a mask: what is observed wherever a point exists.

    Attributes:
        argument: step of the grid, share of the area in the block (in the proportions of the
            field), number of lines, or (H, W) bool of the mask.
    """

    text: str
    rule: str
    argument: int | float | np.ndarray

    is_fixed, is_symmetric = True, False

    def __str__(self) -> str:
        return self.text

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        points = np.flatnonzero(self._observed(valid.shape, rng) & valid)
        existing = np.flatnonzero(valid)
        if len(points) == 0:
            return rng.choice(existing, 1)
        if len(points) == len(existing):
            return np.sort(rng.choice(existing, len(existing) - 1, replace=False))
        return points

    def _observed(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        observed = np.zeros(shape, dtype=bool)
        match self.rule:
            case "grid" if self.argument <= min(shape):
                every = slice(self.argument // 2, None, self.argument)
                observed[every, every] = True
            case "lines" if self.argument < shape[0]:
                observed[rng.choice(shape[0], self.argument, replace=False)] = True
            case "block":
                height, width = (max(1, round(side * self.argument**0.5)) for side in shape)
                top = rng.integers(shape[0] - height + 1)
                left = rng.integers(shape[1] - width + 1)
                observed[:] = True
                observed[top:top + height, left:left + width] = False
            case "mask" if self.argument.shape == shape:
                observed = self.argument
            case _:
                has = "the rule" if self.rule != "mask" else "{1} x {0} pixels".format(
                    *self.argument.shape)
                raise UserError(f"--observe {self}: {has} does not fit fields of {shape[1]} x "
                                f"{shape[0]} points; use another pattern or size")
        return observed


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
    if os.path.isfile(text):
        return Shape(text, "mask", _read_mask(text))
    rule, _, argument = text.partition(":")
    try:
        match rule:
            case "random":
                low, _, high = argument.partition("-")
                pattern = RandomPoints(text, float(low), float(high or low))
                is_sound = 0 < pattern.low <= pattern.high < 1
            case "block":
                pattern = Shape(text, rule, float(argument))
                is_sound = 0 < pattern.argument < 1
            case "grid" | "lines":
                pattern = Shape(text, rule, int(argument))
                is_sound = pattern.argument >= (2 if rule == "grid" else 1)
            case _:
                raise ValueError
    except ValueError:
        raise UserError(
            f"--observe {text}: neither a picture nor a rule; use random:0.2, random:0.05-0.5, "
            "grid:4, block:0.3, lines:8 or mask.png"
        ) from None
    if not is_sound:
        raise UserError(
            f"--observe {text}: observes nothing or everything; shares lie between 0 and 1, the "
            "smaller one first, a grid has steps of 2 or more, lines are 1 or more"
        )
    return pattern


def _read_mask(text: str) -> np.ndarray:
    observed = read_mask(Path(text))
    if observed.all() or not observed.any():
        raise UserError(
            f"--observe {text}: the mask observes {'everything' if observed.all() else 'nothing'}; "
            "paint observed points white and the others black"
        )
    return observed
