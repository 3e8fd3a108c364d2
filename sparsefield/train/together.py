"""Closed forms of a whole batch at once, for a GPU (sparsefield.train.pairs: field by field)."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sparsefield.data import Batch
from sparsefield.data.batches import COUNTS
from sparsefield.data.symmetries import TURNS, Symmetry
from sparsefield.gaussian.stacked import StackedPosteriors
from sparsefield.hashed import scrambled
from sparsefield.model.canvas import lookouts, sketch
from sparsefield.model.field import ClosedForm
from sparsefield.place import grid_coords

AT_ONCE = 128  # fields, which take 4 MB each while they are answered


class Together:
    """`together(batch)` for batches whose fields all have shared layouts. Layouts of equally many
    points lie together; the numbers of points in use are at most COUNTS."""

    def __init__(self, model: nn.Module, height: int, width: int, device: torch.device):
        self.model, self.shape, self.device = model, (height, width), device
        self.of_counts: OrderedDict[int, OfCount] = OrderedDict()

    def __call__(self, batch: Batch, with_draws: bool) -> tuple[ClosedForm, Tensor]:
        """The closed form, and draws z_0 (B, N, C), empty if none are wanted."""
        count = batch.input_index.shape[1]
        if count not in self.of_counts:
            if len(self.of_counts) == COUNTS:
                self.of_counts.popitem(last=False)
            side = self.model.lattice_side(count)
            self.of_counts[count] = OfCount(self.shape, side, self.device)
        self.of_counts.move_to_end(count)
        return self.of_counts[count](batch, with_draws)


class OfCount:
    """The same for layouts of equally many points, on a lattice of `side` cells a side, None: no
    lattice. Fields are answered as they are in the data; what a batch shows of them is turned
    afterwards."""

    def __init__(self, shape: tuple[int, int], side: int | None, device: torch.device):
        self.shape, self.side, self.device = shape, side, device
        further = None
        if side is not None and shape != (side, side):
            further = partial(lookouts, side=side)
        self.posteriors = StackedPosteriors(*shape, grid_coords(*shape, device), further)
        turns = TURNS if shape[0] == shape[1] else TURNS // 2
        self.points = self._stacked([Symmetry(k, *shape, 1).source
                                     for k in range(turns)])              # (turns, P)
        self.cells = self.points
        if further is not None:
            assert side is not None
            self.cells = math.prod(shape) + self._stacked(
                [Symmetry(k, side, side, 1).source for k in range(turns)]
            )

    def __call__(self, batch: Batch, with_draws: bool) -> tuple[ClosedForm, Tensor]:
        turn = batch.symmetry % TURNS
        points = self.points[turn]                                        # (B, P)
        channels = self._channels(batch)                                  # (B, C)
        observed = points.gather(1, batch.input_index)
        values = _of_channels(batch.input_values, channels.argsort(dim=1))
        seeds = scrambled(batch.draws) + batch.turn if with_draws else None
        layouts, parts = batch.layout.tolist(), []
        for first in range(0, len(layouts), AT_ONCE):
            own = slice(first, first + AT_ONCE)
            parts.append(self.posteriors(
                layouts[own], observed[own], values[own], None if seeds is None else seeds[own]
            ))
        answer = [torch.cat(column) for column in zip(*parts)]
        *everywhere, loo_sd, surprise, draws = answer
        mean, sd, spread = (_of_channels(part, channels) for part in everywhere)
        loo_sd, surprise = (_of_channels(part, channels) for part in (loo_sd, surprise))
        asked = points.gather(1, batch.query_index)
        form = ClosedForm(*(_of_points(part, asked) for part in (mean, sd, spread)), loo_sd,
                          surprise)
        if self.side is not None:
            cells = self.cells[turn]                                      # (B, L)
            there = tuple(_of_points(part, cells) for part in (mean, sd, spread))
            form = form._replace(
                sketch=sketch(there, batch.input_coords, batch.input_values, surprise)
            )
        if not with_draws:
            return form, draws
        return form, _of_points(_of_channels(draws, channels), asked)

    def _channels(self, batch: Batch) -> Tensor:
        """(B, C), which channel of its field each channel shows: of so many orders no table."""
        count = batch.input_values.shape[2]
        return self._stacked([Symmetry(number, *self.shape, count).channels
                              for number in batch.symmetry.tolist()])

    def _stacked(self, rows: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(rows)).to(self.device)


def _of_points(x: Tensor, index: Tensor) -> Tensor:
    """(B, P, F) at (B, N)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _of_channels(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) in the order (B, C); (B, N, 1), which is of all channels, as it is."""
    return x if x.shape[2] == 1 else x.gather(2, index[:, None].expand(-1, x.shape[1], -1))
