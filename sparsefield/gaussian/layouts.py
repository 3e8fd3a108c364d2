"""Closed-form answers of many fields on one grid, whose observed points return.

Nearly all of the work of kriging depends on places alone. A layout of observations that many fields
share is factored once, and each hypothesis is brought to the grid when a field first needs it.
"""

from __future__ import annotations

from collections import OrderedDict
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
from sparsefield.gaussian.draws import grid_root
from sparsefield.gaussian.factor import Factored, Hypotheses, factor, full_precision
from sparsefield.gaussian.fit import Fit, correlation_root, fit_factored
from sparsefield.gaussian.kernels import BANK

KEPT = 36  # layouts: those in use and a few before


class GridAnswer(NamedTuple):
    """One field: mean, sd (P, C) and spread (P, 1) on all P grid points, leave-one-out sd and
    surprise (M, C), and a draw z_0 (P, C)."""

    mean: Tensor
    sd: Tensor
    spread: Tensor
    loo_sd: Tensor
    surprise: Tensor
    z_0: Tensor


class _Layout:
    """Observed points (M,) of a grid with P points, factored."""

    def __init__(self, grid: Tensor, observed: Tensor):
        self.grid, self.coords = grid, grid[observed][None]
        self.factored = factor(Hypotheses.every(BANK, 1, grid.device), self.coords)
        self.near = closeness(grid[None], self.coords, len(observed) ** -0.5)
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
    def __call__(self, layout: int, observed: Tensor, values: Tensor, seed: int) -> GridAnswer:
        """The closed form of one field.

        Args:
            layout: equal numbers promise equal `observed`; -1: not shared. observed: (M,) int64.
            values: (M, C) in [-1, 1]. seed: of the draw.
        """
        with torch.autocast(values.device.type, enabled=False), full_precision():
            places = self._places(layout, observed)
            fit, kriged = places.fit(values[None])
            answer, loo = combine(fit, kriged), leave_one_out(fit)
            amplitude = amplitude_around(places.near, loo.surprise)
            z_0 = self._draw(fit, kriged, observed, seed)
        return GridAnswer(answer.mean[0], (answer.sd * amplitude)[0],
                          (answer.spread * amplitude)[0], loo.sd[0], loo.surprise[0], z_0)

    def _places(self, layout: int, observed: Tensor) -> _Layout:
        if layout < 0:
            return _Layout(self.grid, observed)
        if layout not in self.layouts:
            self.layouts[layout] = _Layout(self.grid, observed)
            if len(self.layouts) > KEPT:
                self.layouts.popitem(last=False)
        self.layouts.move_to_end(layout)
        return self.layouts[layout]

    def _draw(self, fit: Fit, kriged: Kriged, observed: Tensor, seed: int) -> Tensor:
        """A prior field minus its own kriging (Matheron), of unit variance: (P, C)."""
        kernel = BANK[int(fit.hypotheses.kernel[0])]
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(len(self.grid), fit.values.shape[2], generator=generator)
        root = correlation_root(fit.channels[0])
        field = (root @ numbers.to(self.grid).mT @ grid_root(kernel, self.height, self.width)
                 .to(self.grid)).mT                                       # (P, C)
        at_observed = field[observed]
        shift = (at_observed[1:] - at_observed[:1]).to(fit.factored.lower)
        white = torch.linalg.solve_triangular(fit.factored.lower[0], shift, upper=False)
        known = at_observed[:1] + (white.mT @ kriged.whitened[0]).mT.float()
        return (field - known) / kriged.variance[0, :, None].sqrt().float()
