"""Closed-form answers of many fields on one grid, whose observed points return.

Nearly all of the work of kriging depends on places alone. A layout of observations that many fields
share is factored once, and each hypothesis is brought to the grid when a field first needs it. What
depends on values is computed for the points that are asked for.

Symbols: B fields, M observations, N queries, C channels, P points of the grid, K kernels of the bank,
R hypotheses with weight, each about one field.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.gaussian.answer import (
    Answer,
    LeaveOneOut,
    amplitude_around,
    answer_of,
    closeness,
    krige,
    left_out,
    precisions,
)
from sparsefield.gaussian.draws import grid_root
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


class GridAnswer(NamedTuple):
    """Of B fields: the answer at the queries, that at the observations from the others, and a draw
    z_0 (B, N, C)."""

    answer: Answer
    leave_one_out: LeaveOneOut
    z_0: Tensor


class _Brought(NamedTuple):
    """One hypothesis about a layout, on the whole grid.

    Attributes:
        inverse: (M - 1, M - 1), L^-1. precision: (M,), see `answer.precisions`.
        whitened: (P, M - 1), rows L^-1 c. variance: (P,), relative to the amplitude.
    """

    inverse: Tensor
    precision: Tensor
    whitened: Tensor
    variance: Tensor


class _Layout:
    """Observed points (M,) of a grid with P points, factored under every kernel."""

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
                kriged.whitened[0].mT.contiguous(), kriged.variance[0],
            )
        return self.on_grid[kernel]


class GridPosteriors:
    """The fitted posteriors of fields on a grid of height x width pixels."""

    def __init__(self, height: int, width: int, grid: Tensor):
        self.height, self.width, self.grid = height, width, grid
        self.layouts: OrderedDict[int, _Layout] = OrderedDict()

    @torch.no_grad()
    def __call__(self, layouts: Sequence[int], observed: Tensor, values: Tensor,
                 seeds: Sequence[int], queried: Tensor) -> GridAnswer:
        """The closed form of every field.

        Args:
            layouts: B numbers, equal ones promise equal `observed`; -1: not shared.
            observed: (B, M) int64. values: (B, M, C) in [-1, 1]. seeds: B, of the draws.
            queried: (B, N) int64.
        """
        with full_precision(values.device):
            places = [self._places(*each) for each in zip(layouts, observed)]
            mixture, white = fit(places, values)
            pairs = zip(mixture.hypotheses.field.tolist(), mixture.hypotheses.kernel.tolist())
            brought = [(places[b].bring(kernel), queried[b]) for b, kernel in pairs]
            change = torch.stack([one.whitened.index_select(0, at) @ w.to(one.whitened)
                                  for (one, at), w in zip(brought, white)])
            variance = torch.stack([one.variance[at] for one, at in brought])
            answer = answer_of(mixture, change, variance)
            loo = left_out(
                mixture,
                torch.stack([one.inverse.mT @ w.to(one.inverse) for (one, _), w in zip(brought, white)]),
                torch.stack([one.precision for one, _ in brought]),
            )
            near = torch.stack([place.near.index_select(0, at) for place, at in zip(places, queried)])
            amplitude = amplitude_around(near, loo.surprise)
            answer = Answer(answer.mean, answer.sd * amplitude, answer.spread * amplitude)
            z_0 = self._draw(mixture, [one for one, _ in brought], seeds, observed, queried)
        return GridAnswer(answer, loo, z_0)

    def _places(self, layout: int, observed: Tensor) -> _Layout:
        if layout < 0:
            return _Layout(self.grid, observed)
        if layout not in self.layouts:
            self.layouts[layout] = _Layout(self.grid, observed)
            if len(self.layouts) > KEPT:
                self.layouts.popitem(last=False)
        self.layouts.move_to_end(layout)
        return self.layouts[layout]

    def _draw(self, mixture: Mixture, brought: list[_Brought], seeds: Sequence[int],
              observed: Tensor, queried: Tensor) -> Tensor:
        """Prior fields minus their own kriging (Matheron), of unit variance: (B, N, C)."""
        heaviest = mixture.heaviest_rows()
        prior = self._prior(mixture, heaviest, seeds)
        return torch.stack([
            _error(brought[row], prior[b], observed[b], queried[b])
            for b, row in enumerate(heaviest.tolist())
        ])

    def _prior(self, mixture: Mixture, heaviest: Tensor, seeds: Sequence[int]) -> Tensor:
        """Random fields (B, P, C), those of one kernel by one product."""
        roots = correlation_root(mixture.channels[heaviest])              # (B, C, C)
        numbers = torch.stack([_numbers(seed, roots.shape[2], len(self.grid)) for seed in seeds])
        numbers = roots @ numbers.to(self.grid)                           # (B, C, P)
        prior = torch.empty_like(numbers)
        kernels = mixture.hypotheses.kernel[heaviest]
        for kernel in kernels.unique().tolist():
            alike = (kernels == kernel).nonzero()[:, 0]
            root = grid_root(mixture.hypotheses.kernels[kernel], self.height, self.width).to(self.grid)
            prior[alike] = numbers[alike] @ root.mT
        return prior.mT


def fit(places: Sequence[_Layout], values: Tensor) -> tuple[Mixture, Tensor]:
    """Hypotheses with weight about fields (B, M, C), and the fields whitened by them (R, M - 1, C)."""
    white = torch.stack([place.factored.whiten(own[None])
                         for place, own in zip(places, values)])          # (B, K, M - 1, C)
    score = restricted_likelihood(white, torch.stack([place.log_det for place in places]))
    rows, weight = choose(score)
    white = white.flatten(0, 1)[rows]
    hypotheses = Hypotheses.every(places[0].kernels, len(places), values.device).take(rows)
    return Mixture(hypotheses, weight.to(white), covariance_of_channels(white), values), white


def _numbers(seed: int, channels: int, points: int) -> Tensor:
    """(C, P) of N(0, 1)."""
    return torch.randn(points, channels, generator=torch.Generator().manual_seed(seed)).mT


def _error(one: _Brought, prior: Tensor, observed: Tensor, queried: Tensor) -> Tensor:
    """How a field (P, C) is off its own kriging from the observed points, at the queried: (N, C)."""
    known, at = prior[observed], prior[queried]
    white = one.inverse @ (known[1:] - known[:1]).to(one.inverse)
    kriged = known[:1] + (one.whitened.index_select(0, queried) @ white).float()
    return (at - kriged) / one.variance[queried, None].sqrt().float()
