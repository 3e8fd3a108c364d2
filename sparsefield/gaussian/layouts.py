"""Closed-form answers of many fields on one grid, whose observed points return.

Nearly all of the work of kriging depends on places alone. A layout of observations that many fields
share is factored once, and each hypothesis is brought to the grid when a field first needs it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.gaussian.answer import (
    Kriged,
    amplitude_around,
    closeness,
    combine,
    krige,
    leave_one_out,
)
from sparsefield.gaussian.draws import grid_root, standard_normal
from sparsefield.gaussian.factor import Factored, Hypotheses, factor, full_precision
from sparsefield.gaussian.fit import Fit, correlation_root, fit_factored
from sparsefield.gaussian.kernels import BANK

KEPT = 36  # layouts: those in use and a few before


class GridAnswer(NamedTuple):
    """One field: mean, sd (P + L, C) and spread (P + L, 1) on all P grid points and L further ones,
    leave-one-out sd and surprise (M, C), and draws z_0 (T, P, C) in half precision."""

    mean: Tensor
    sd: Tensor
    spread: Tensor
    loo_sd: Tensor
    surprise: Tensor
    draws: Tensor


class _Layout:
    """Observed points (M,) of a grid, the first of the places asked for, factored."""

    def __init__(self, places: Tensor, observed: Tensor):
        self.grid, self.coords = places, places[observed][None]
        self.factored = factor(Hypotheses.every(BANK, 1, places.device), self.coords)
        self.near = closeness(places[None], self.coords, len(observed) ** -0.5)
        self.on_grid: dict[int, tuple[Factored, Kriged]] = {}

    def bring(self, kernel: int) -> tuple[Factored, Kriged]:
        """One hypothesis, and what it makes of the grid, computed when first asked for."""
        if kernel not in self.on_grid:
            one = self.factored.take(torch.tensor([kernel], device=self.grid.device))
            self.on_grid[kernel] = one, krige(one, self.grid[None])
        return self.on_grid[kernel]

    def fit(self, values: Tensor) -> tuple[Fit, Kriged]:
        """The fit to values (1, M, C), and what its hypotheses make of the grid."""
        fit = fit_factored(self.factored, values)
        brought = [self.bring(kernel) for kernel in fit.hypotheses.kernel.tolist()]
        # Where cached_property keeps it: krige has computed these, leave_one_out need not again.
        fit.factored.__dict__["inverse"] = torch.cat([one.inverse for one, _ in brought])
        return fit, Kriged(torch.cat([kriged.whitened for _, kriged in brought]),
                           torch.cat([kriged.variance for _, kriged in brought]))


class GridPosteriors:
    """The fitted posterior of fields on a grid of height x width pixels, a layout at a time."""

    def __init__(self, height: int, width: int, grid: Tensor):
        self.height, self.width, self.grid = height, width, grid
        self.layouts: OrderedDict[int, _Layout] = OrderedDict()

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
        with torch.autocast(values.device.type, enabled=False), full_precision():
            places = self._places(layout, observed, further)
            fit, kriged = places.fit(values[None])
            answer, loo = combine(fit, kriged), leave_one_out(fit)
            amplitude = amplitude_around(places.near, loo.surprise)
            draws = self._draws(fit, kriged, observed, seeds)
        return GridAnswer(answer.mean[0], (answer.sd * amplitude)[0],
                          (answer.spread * amplitude)[0], loo.sd[0], loo.surprise[0], draws.half())

    def _places(self, layout: int, observed: Tensor, further: Tensor | None) -> _Layout:
        everywhere = self.grid if further is None else torch.cat([self.grid, further])
        if layout < 0:
            return _Layout(everywhere, observed)
        if layout not in self.layouts:
            self.layouts[layout] = _Layout(everywhere, observed)
            if len(self.layouts) > KEPT:
                self.layouts.popitem(last=False)
        self.layouts.move_to_end(layout)
        return self.layouts[layout]

    def _draws(
        self, fit: Fit, kriged: Kriged, observed: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """Prior fields minus their own kriging (Matheron), of unit variance: (T, P, C)."""
        count, channels = len(self.grid), fit.values.shape[2]
        if not seeds:
            return fit.values.new_empty(0, count, channels)
        kernel = BANK[int(fit.hypotheses.kernel[0])]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        numbers = standard_normal(generators, count, channels).to(self.grid).mT   # (T, C, P)
        root = grid_root(kernel, self.height, self.width).to(self.grid)
        fields = (correlation_root(fit.channels[0]) @ numbers).flatten(0, 1) @ root  # (T C, P)
        at_observed = fields[:, observed]                                 # (T C, M)
        shift = (at_observed[:, 1:] - at_observed[:, :1]).to(fit.factored.lower)
        white = torch.linalg.solve_triangular(fit.factored.lower[0], shift.mT, upper=False)
        known = at_observed[:, :1] + (white.mT @ kriged.whitened[0, :, :count]).float()
        sd = kriged.variance[0, :count].sqrt().float()                    # (P,)
        return ((fields - known) / sd).unflatten(0, (len(seeds), channels)).mT
