"""Boxes that cut places into tiles of few observations each, whatever places are asked for.

Symbols: M observations, N queries, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

AROUND = 4  # times as many observations as wanted are looked at, those nearest to a box's middle
FAR = 0.25  # of those that a box is answered from: one of each box, to see across gaps


class Cut(NamedTuple):
    """Space on two sides of coords[axis] = at; each side a Cut or the number of a box."""

    axis: int
    at: float
    below: Cut | int
    above: Cut | int


Tree = tuple[np.ndarray, scipy.spatial.cKDTree]  # observations, and what finds the nearest of them


class Boxes:
    """Observations cut in halves along their longest side, until no part has more than `most`.

    Attributes:
        own: which observations lie in each box. box: (M,), in which box each lies.
    Args:
        coords: (M, D), M >= 1. Observations at one place are never cut apart.
    """

    def __init__(self, coords: Tensor, most: int):
        self.coords, self.most = coords, most
        self.own: list[Tensor] = []
        self._near: dict[tuple[int, int], Tensor] = {}
        self.root = self._cut(torch.arange(len(coords), device=coords.device))
        self.box = torch.empty(len(coords), dtype=torch.int64, device=coords.device)
        for number, rows in enumerate(self.own):
            self.box[rows] = number
        self.places = coords.cpu().numpy()
        self.all = self._tree(np.arange(len(coords)))
        self.first = self._tree(np.array([int(rows[0]) for rows in self.own]))

    def _tree(self, rows: np.ndarray) -> Tree:
        return rows, scipy.spatial.cKDTree(self.places[rows])

    def _cut(self, rows: Tensor) -> Cut | int:
        places = self.coords[rows]
        low, high = places.amin(dim=0), places.amax(dim=0)
        axis = int((high - low).argmax())
        along = places[:, axis]
        below = along <= along.median()
        if bool(below.all()):
            below = along < along.median()  # the median is the highest
        if len(rows) <= self.most or not bool(below.any()):
            self.own.append(rows)
            return len(self.own) - 1
        at = float(along[below].double().max() + along[~below].double().min()) / 2
        return Cut(axis, at, self._cut(rows[below]), self._cut(rows[~below]))

    def of(self, places: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each box that holds any of places (N, D), and which, box after box."""
        def sort(node: Cut | int, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
            if len(rows) == 0:
                return
            if not isinstance(node, Cut):
                yield node, rows
                return
            below = places[rows, node.axis].double() <= node.at
            yield from sort(node.below, rows[below])
            yield from sort(node.above, rows[~below])

        return sort(self.root, torch.arange(len(places), device=places.device))

    def size(self, number: int, count: int) -> int:
        """How many observations `nearest` finds."""
        return min(len(self.coords), max(count, 2 * len(self.own[number])))

    def nearest(self, number: int, count: int) -> Tensor:
        """Which observations a box is answered from, in their order, `count` in all or as many as
        there are: its own, the nearest among the first of each box, up to a share FAR, and then the
        nearest of all. A place between clusters or tracks is so answered from all around it."""
        if (number, count) not in self._near:
            self._near[number, count] = self._around(number, count)
        return self._near[number, count]

    def _around(self, number: int, count: int) -> Tensor:
        """See `nearest`, which keeps it."""
        own, count = self.own[number].cpu().numpy(), self.size(number, count)
        far = self._nearest(own, self.first, max(1, int(FAR * count)))
        chosen = np.union1d(own, far)
        near = self._nearest(own, self.all, count)
        near = near[~np.isin(near, chosen)][: count - len(chosen)]
        return torch.from_numpy(np.sort(np.concatenate([chosen, near]))).to(self.box)

    def _nearest(self, own: np.ndarray, among: Tree, count: int) -> np.ndarray:
        """`count` of those among, or all, the nearest to the box of the own ones first."""
        rows, tree = among
        low, high = self.places[own].min(axis=0), self.places[own].max(axis=0)
        some = min(len(rows), AROUND * count)
        _, index = tree.query((low + high) / 2, k=np.arange(some) + 1)
        near = np.sort(rows[index])
        places = self.places[near]
        away = np.square(places - places.clip(low, high)).sum(axis=1)
        return near[away.argsort(kind="stable")[:count]]
