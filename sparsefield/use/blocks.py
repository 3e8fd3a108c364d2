"""Hold-out by spatial blocks: whether measurements are clustered, and which lie in one block.

A hidden measurement with neighbours in its cluster is an easy one. Blocks hide the neighbours, too
(Roberts et al. 2017). They are as large as it takes for a hidden measurement to be as far from the
others as the places that are asked for (Mila et al. 2022).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import scipy

from sparsefield.errors import UserError
from sparsefield.use.grids import Asked, Frame
from sparsefield.use.times import Times

CLUSTERED = 0.75  # times as near to each other as at random: a random hold-out flatters
SIZES = 1.5 ** np.arange(-3, 12)  # of blocks, in mean spacings, that are tried
FEWEST = 4  # stretches of time in a fold
MOST_PLACES = 4000  # of those asked for, whose distances are compared


class Blocks(NamedTuple):
    """Blocks of measurements, and the folds that they are hidden in.

    Attributes:
        number, fold: (M,) of each measurement. side: of a block, in units of x, on a globe in km;
            spacings: the same in mean spacings. hidden, asked: median distances to the nearest
            measurement that is kept, of hidden ones and of the places that are asked for, in these
            units.
    """

    number: np.ndarray
    fold: np.ndarray
    side: float
    spacings: float
    hidden: float
    asked: float

    def describe(self, unit: str) -> str:
        """In one line; unit: of lengths."""
        return (f"{self.number.max() + 1} blocks of {self.side:.4g} {unit} ({self.spacings:.3g} "
                f"mean spacings), hidden in {self.fold.max() + 1} folds: hidden measurements are "
                f"{self.hidden:.3g} {unit} from those that are left, the field's cells "
                f"{self.asked:.3g} from the nearest measurement (medians)")


class Stretches(NamedTuple):
    """Stretches of time, and the folds that they are hidden in.

    Attributes:
        number, fold: (M,) of each measurement. length: of a stretch, in times.
    """

    number: np.ndarray
    fold: np.ndarray
    length: int

    def describe(self) -> str:
        return (f"{self.number.max() + 1} stretches of {self.length} time(s), hidden in "
                f"{self.fold.max() + 1} folds")


def stretches_of(times: Times, share: float, seed: int, size: str | None = None) -> Stretches:
    """Equally many times in a row.

    Args:
        share: of the measurements that a fold hides, about. size: of a stretch, in times; None:
            FEWEST stretches in a fold, where there are so many times.
    Raises:
        UserError: no such share or size, or all measurements are of one stretch.
    """
    _require_share(share)
    number = np.unique(times.values, return_inverse=True)[1].reshape(-1)
    folds = round(1 / share)
    length = max(1, (number.max() + 1) // (FEWEST * folds))
    if size is not None:
        if not size.isdecimal() or int(size) < 1:
            raise UserError(f"block_size {size}: give the number of times of a stretch, such as 8")
        length = int(size)
    number = number // length
    if number.max() == 0:
        raise UserError("hold-out by times: all measurements are of one stretch; "
                        + ("give a smaller --block_size" if size else "they are of one time"))
    return Stretches(number, _folds(number, folds, seed), length)


def _require_share(share: float) -> None:
    if not 0 < share <= 0.5:
        raise UserError(f"holdout {share:g}: every block is hidden once, this share of the "
                        "measurements at a time; give at most 0.5, such as 0.2")


def clustering(frame: Frame, coords: np.ndarray) -> float | None:
    """How far nearest neighbours are, in multiples of what it is at random (Clark & Evans 1954), of
    measurements (M, 2) that are clustered: of others, which are at about 1 to 2, None."""
    points = np.unique(coords, axis=0)
    nearest = scipy.spatial.cKDTree(frame.inside(points)).query(frame.inside(points), 2)[0][:, 1]
    ratio = float(nearest.mean() / (0.5 * frame.domain.spacing(len(points))))
    score = (ratio - 1) / (0.5227 / len(points) ** 0.5)
    return ratio if ratio < CLUSTERED and score < -1.96 else None


def blocks_of(
    asked: Asked, coords: np.ndarray, share: float, seed: int, size: str | None = None
) -> Blocks:
    """Squares of a grid over the measurements (M, 2).

    Args:
        share: of the measurements that a fold hides, about. size: such as "300", in units of x, on
            a globe in km, or "4s", in mean spacings. None: that by which hidden measurements are as
            far from those that are kept as the other places asked for are from all.
    Raises:
        UserError: no such share or size, or all measurements lie in one block.
    """
    _require_share(share)
    frame, places = asked.frame, asked.frame.inside(coords)
    spacing = frame.domain.spacing(len(np.unique(coords, axis=0)))
    there = asked.places.reshape(-1, 2)
    if asked.is_far is not None:
        there = there[~asked.is_far.reshape(-1)]
    there = frame.inside(there[:: -(-len(there) // MOST_PLACES)])
    away = scipy.spatial.cKDTree(places).query(there)[0]
    distance = float(np.median(away[away > 0])) if away.any() else 0.0  # not of what is measured
    flat, unit = (coords - coords.min(axis=0)) / frame.scaled_by, frame.unit_length
    tried = []
    for side in SIZES * spacing if size is None else [_side(size, spacing, frame)]:
        number = _numbers(flat, side)
        if number.max() > 0:
            fold = _folds(number, round(1 / share), seed)
            tried.append(Blocks(number, fold, side * unit, side / spacing,
                                _apart(places, fold) * unit, distance * unit))
    if not tried:
        raise UserError(f"block_size {size}: all measurements lie in one block; give less" if size
                        else "all measurements lie in one place: they make no blocks")
    many = [one for one in tried if one.fold.max() + 1 == round(1 / share)]  # blocks for all folds
    return min(many or tried, key=lambda one: abs(
        np.log(max(one.hidden, 1e-9) / max(one.asked, 1e-9))))


def _side(size: str, spacing: float, frame: Frame) -> float:
    """Of the blocks that the user asks for, in coordinates."""
    found = re.fullmatch(r"(\d*\.?\d+(?:[eE][-+]?\d+)?)(s?)", size.strip())
    if not found or not 0 < float(found[1]) < np.inf:
        raise UserError(f"block_size {size}: give a side in {frame.unit_of_length}, such as 300, "
                        "or in mean spacings, such as 4s")
    return float(found[1]) * (spacing if found[2] else 1 / frame.unit_length)


def _numbers(flat: np.ndarray, side: float) -> np.ndarray:
    """The block of each of (M, 2), from 0; the grid lies in the middle of the points."""
    sides = flat.max(axis=0)
    cells = np.floor((flat - sides / 2) / side + np.ceil(sides / side) / 2)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _folds(number: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(M,) fold of each measurement: blocks (M,), the largest first, else in random order, each go
    to the fold that has the fewest measurements."""
    sizes = np.bincount(number)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold, filled = np.empty(len(sizes), dtype=int), np.zeros(min(count, len(sizes)), dtype=int)
    for block in order:
        fold[block] = filled.argmin()
        filled[fold[block]] += sizes[block]
    return fold[number]


def _apart(places: np.ndarray, fold: np.ndarray) -> float:
    """Median distance of a measurement to the nearest in another fold."""
    found = np.empty(len(places))
    for k in range(fold.max() + 1):
        found[fold == k] = scipy.spatial.cKDTree(places[fold != k]).query(places[fold == k])[0]
    return float(np.median(found))
