"""Closed-form answers of many fields on one grid, whose observed points return.

Nearly all of the work of kriging depends on places alone. A layout of observations that many fields
share is factored once, and each hypothesis is brought to the grid when a field first needs it. What
depends on values is computed field by field, so that nothing depends on which fields come together.

Symbols: M observations, C channels, P points of the grid, L further places, T draws, K kernels of
the bank, R hypotheses with weight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.gaussian.answer import (
    amplitude_around,
    answer_of,
    closeness,
    krige,
    left_out,
    precisions,
)
from sparsefield.gaussian.draws import grid_root, standard_normal
from sparsefield.gaussian.factor import Hypotheses, factor, full_precision
from sparsefield.gaussian.fit import (
    Mixture,
    choose,
    correlation_root,
    covariance_of_channels,
    restricted_likelihood,
)
from sparsefield.gaussian.kernels import BANK, without_directions

KEPT = 36  # layouts: those in use and a few before
KEPT_BYTES = 1 << 31  # of them, and at least one


class GridAnswer(NamedTuple):
    """One field: mean, sd (P + L, C) and spread (P + L, 1) on all P grid points and L further ones,
    leave-one-out sd and surprise (M, C), and draws z_0 (T, P, C) in half precision."""

    mean: Tensor
    sd: Tensor
    spread: Tensor
    loo_sd: Tensor
    surprise: Tensor
    draws: Tensor


class _Brought(NamedTuple):
    """One hypothesis about a layout, on the whole grid.

    Attributes:
        inverse: (M - 1, M - 1), L^-1. precision: (M,), see `answer.precisions`.
        whitened: (P, M - 1) float32, rows L^-1 c. variance: (P,), relative to the amplitude.
    """

    inverse: Tensor
    precision: Tensor
    whitened: Tensor
    variance: Tensor


class Layout:
    """Observed points (M,) of a grid, the first of the places asked for, factored under every
    kernel."""

    def __init__(self, grid: Tensor, observed: Tensor):
        self.grid, self.coords = grid, grid[observed][None]
        self.kernels = without_directions(BANK, len(observed))
        self.factored = factor(Hypotheses.every(self.kernels, 1, grid.device), self.coords)
        self.log_det = self.factored.log_det()                            # (K,)
        self.near = closeness(grid[None], self.coords, len(observed) ** -0.5)[0]  # (P, M)
        self.on_grid: dict[int, _Brought] = {}

    def bring(self, kernel: int) -> _Brought:
        """A hypothesis on the grid, computed when first asked for."""
        if kernel not in self.on_grid:
            one = self.factored.take(torch.tensor([kernel], device=self.grid.device))
            kriged = krige(one, self.grid[None])
            self.on_grid[kernel] = _Brought(
                one.inverse[0], precisions(one.inverse)[0],
                kriged.whitened[0].mT.float().contiguous(), kriged.variance[0],
            )
        return self.on_grid[kernel]

    @property
    def bytes(self) -> int:
        """Of what is large: grows as hypotheses are brought to the grid."""
        brought = sum(one.whitened.nbytes for one in self.on_grid.values())
        return self.factored.inverse.nbytes + self.near.nbytes + brought


class GridPosteriors:
    """The fitted posterior of fields on a grid of height x width pixels, a field at a time: what is
    computed for one does not depend on the others."""

    def __init__(self, height: int, width: int, grid: Tensor):
        self.height, self.width, self.grid = height, width, grid
        self.layouts: OrderedDict[int, Layout] = OrderedDict()

    @torch.no_grad()
    def __call__(
        self, layout: int, observed: Tensor, values: Tensor, seeds: Sequence[int],
        further: Tensor | None = None,
    ) -> GridAnswer:
        """The closed form of one field.

        Args:
            layout: equal numbers promise equal `observed` and `further`; -1: not shared.
            observed: (M,) int64. values: (M, C) in [-1, 1]. seeds: T, of the draws.
            further: (L, 2) places off the grid.
        """
        with full_precision(values.device):
            places = self._places(layout, observed, further)
            mixture, white = fit(places, values[None])
            brought = [places.bring(kernel) for kernel in mixture.hypotheses.kernel.tolist()]
            answer = answer_of(
                mixture,
                torch.stack([one.whitened @ w.to(one.whitened) for one, w in zip(brought, white)]),
                torch.stack([one.variance for one in brought]),
            )
            loo = left_out(
                mixture,
                torch.stack([one.inverse.mT @ w.to(one.inverse) for one, w in zip(brought, white)]),
                torch.stack([one.precision for one in brought]),
            )
            amplitude = amplitude_around(places.near[None], loo.surprise)
            heaviest = int(mixture.heaviest_rows()[0])
            draws = self._draws(mixture, heaviest, brought[heaviest], observed, seeds)
        return GridAnswer(answer.mean[0], (answer.sd * amplitude)[0],
                          (answer.spread * amplitude)[0], loo.sd[0], loo.surprise[0], draws.half())

    def _places(self, layout: int, observed: Tensor, further: Tensor | None) -> Layout:
        everywhere = self.grid if further is None else torch.cat([self.grid, further])
        if layout < 0:
            return Layout(everywhere, observed)
        if layout not in self.layouts:
            room = KEPT_BYTES - sum(each.bytes for each in self.layouts.values())
            while self.layouts and (room < 0 or len(self.layouts) >= KEPT):
                _, oldest = self.layouts.popitem(last=False)
                room += oldest.bytes
            self.layouts[layout] = Layout(everywhere, observed)
        self.layouts.move_to_end(layout)
        return self.layouts[layout]

    def _draws(
        self, mixture: Mixture, row: int, one: _Brought, observed: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """Prior fields minus their own kriging (Matheron), of unit variance: (T, P, C)."""
        root = correlation_root(mixture.channels[row])                    # (C, C)
        count, channels = len(self.grid), len(root)
        if not seeds:
            return root.new_empty(0, count, channels)
        kernel = mixture.hypotheses.kernels[int(mixture.hypotheses.kernel[row])]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        numbers = standard_normal(generators, count, channels).to(self.grid).mT   # (T, C, P)
        of_grid = grid_root(kernel, self.height, self.width).to(self.grid)
        fields = (root @ numbers).flatten(0, 1) @ of_grid.mT              # (T C, P)
        known = fields[:, observed].mT                                    # (M, T C)
        white = one.inverse @ (known[1:] - known[:1]).to(one.inverse)     # (M - 1, T C)
        kriged = known[:1] + one.whitened[:count] @ white.float()         # (P, T C)
        error = (fields.mT - kriged) / one.variance[:count, None].sqrt().float()
        return error.mT.unflatten(0, (len(seeds), channels)).mT


def fit(place: Layout, values: Tensor) -> tuple[Mixture, Tensor]:
    """Hypotheses with weight about a field (1, M, C); the field whitened by them (R, M - 1, C)."""
    white = place.factored.whiten(values)                                 # (K, M - 1, C)
    rows, weight = choose(restricted_likelihood(white[None], place.log_det[None]))
    white = white[rows]
    hypotheses = Hypotheses.every(place.kernels, 1, values.device).take(rows)
    return Mixture(hypotheses, weight.to(white), covariance_of_channels(white), values), white
