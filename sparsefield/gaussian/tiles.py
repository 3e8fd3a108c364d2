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


Tree = tuple[Tensor, scipy.spatial.cKDTree]  # observations, and what finds the nearest of them


class Boxes:
    """Observations cut in halves along their longest side, until no part has more than `most`.

    Attributes:
        own: which observations lie in each box.
    Args:
        coords: (M, D), M >= 1. Observations at one place are never cut apart.
    """

    def __init__(self, coords: Tensor, most: int):
        self.coords, self.most = coords, most
        self.own: list[Tensor] = []
        self._near: dict[tuple[int, int], Tensor] = {}
        self.root = self._cut(torch.arange(len(coords), device=coords.device))
        first = torch.stack([rows[0] for rows in self.own])
        self.all, self.first = self._tree(torch.arange(len(coords)).to(first)), self._tree(first)

    def _tree(self, rows: Tensor) -> Tree:
        return rows, scipy.spatial.cKDTree(self.coords[rows].cpu().numpy())

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

    def number(self, place: Tensor) -> int:
        """The box of a place (D,)."""
        node = self.root
        while isinstance(node, Cut):
            node = node.below if float(place[node.axis]) <= node.at else node.above
        return node

    def of(self, places: Tensor) -> list[Tensor]:
        """Which of places (N, D) lie in each box that holds any, box after box."""
        def sort(node: Cut | int, rows: Tensor) -> Iterator[Tensor]:
            if len(rows) == 0:
                return
            if not isinstance(node, Cut):
                yield rows
                return
            below = places[rows, node.axis].double() <= node.at
            yield from sort(node.below, rows[below])
            yield from sort(node.above, rows[~below])

        return list(sort(self.root, torch.arange(len(places), device=places.device)))

    def nearest(self, number: int, count: int) -> Tensor:
        """Which observations a box is answered from, in their order, `count` in all or as many as
        there are: its own, the nearest among the first of each box, up to a share FAR, and then the
        nearest of all. A place between clusters or tracks is so answered from all around it."""
        if (number, count) not in self._near:
            self._near[number, count] = self._around(number, count)
        return self._near[number, count]

    def _around(self, number: int, count: int) -> Tensor:
        """See `nearest`, which keeps it."""
        own = self.own[number]
        count = min(len(self.coords), max(count, 2 * len(own)))
        far = self._nearest(own, self.first, max(1, int(FAR * count)))
        near = self._nearest(own, self.all, count)
        near = near[~torch.isin(near, torch.cat([own, far]))]
        chosen = torch.cat([own, far]).unique()
        return torch.cat([chosen, near[: count - len(chosen)]]).sort().values

    def _nearest(self, own: Tensor, among: Tree, count: int) -> Tensor:
        """`count` of those among, or all, the nearest to the box of the own ones first."""
        rows, tree = among
        low, high = self.coords[own].amin(dim=0), self.coords[own].amax(dim=0)
        some = min(len(rows), AROUND * count)
        _, index = tree.query(((low + high) / 2).cpu().numpy(), k=np.arange(some) + 1)
        near = rows[torch.from_numpy(index).to(rows)].sort().values
        away = (self.coords[near] - self.coords[near].clamp(low, high)).square().sum(dim=1)
        return near[away.argsort(stable=True)[:count]]
