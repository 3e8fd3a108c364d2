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
    combine,
    krige,
    leave_one_out,
    local_amplitude,
)
from sparsefield.gaussian.draws import grid_root
from sparsefield.gaussian.fit import (
    Factored,
    Fit,
    factor,
    fit_factored,
    full_precision,
    hypotheses_for,
)
from sparsefield.gaussian.kernels import BANK

KEPT = 48  # layouts


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

    def __init__(self, grid: Tensor, observed: Tensor, values: Tensor):
        self.grid, self.coords = grid, grid[observed][None]
        self.factored = factor(hypotheses_for(values, None, BANK), self.coords)
        self.on_grid: dict[int, Kriged] = {}

    def kriged(self, kernels: list[int]) -> Kriged:
        """Of some hypotheses, each computed once."""
        for kernel in kernels:
            if kernel not in self.on_grid:
                one = self.factored.take(torch.tensor([[kernel]], device=self.grid.device))
                self.on_grid[kernel] = krige(one, self.grid[None])
        found = [self.on_grid[kernel] for kernel in kernels]
        return Kriged(torch.cat([k.whitened for k in found], dim=1),
                      torch.cat([k.variance for k in found], dim=1))


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
            places = self._places(layout, observed, values[None])
            fit = fit_factored(places.factored, values[None])
            kriged = places.kriged(fit.factored.hypotheses.kernel[0].tolist())
            answer, loo = combine(fit, kriged), leave_one_out(fit)
            amplitude = local_amplitude(
                self.grid[None], places.coords, loo.surprise, len(observed) ** -0.5
            )
            z_0 = self._draw(fit, kriged, observed, seed)
        return GridAnswer(answer.mean[0], (answer.sd * amplitude)[0],
                          (answer.spread * amplitude)[0], loo.sd[0], loo.surprise[0], z_0)

    def _places(self, layout: int, observed: Tensor, values: Tensor) -> _Layout:
        if layout < 0:
            return _Layout(self.grid, observed, values)
        if layout not in self.layouts:
            self.layouts[layout] = _Layout(self.grid, observed, values)
            if len(self.layouts) > KEPT:
                self.layouts.popitem(last=False)
        self.layouts.move_to_end(layout)
        return self.layouts[layout]

    def _draw(self, fit: Fit, kriged: Kriged, observed: Tensor, seed: int) -> Tensor:
        """A prior field minus its own kriging (Matheron), of unit variance: (P, C)."""
        factored: Factored = fit.factored
        kernel = factored.hypotheses.kernels[int(factored.hypotheses.kernel[0, 0])]
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(len(self.grid), fit.values.shape[2], generator=generator)
        together = fit.channels[0, 0].double()
        sd = together.diagonal().sqrt()
        root = torch.linalg.cholesky(together / (sd[:, None] * sd)).float()
        field = (root @ numbers.to(self.grid).mT @ grid_root(kernel, self.height, self.width)
                 .to(self.grid)).mT                                       # (P, C)
        at_observed = field[observed]
        shift = (at_observed[1:] - at_observed[:1]).to(factored.lower)
        white = torch.linalg.solve_triangular(factored.lower[0, 0], shift, upper=False)
        known = at_observed[:1] + (white.mT @ kriged.whitened[0, 0]).mT.float()
        return (field - known) / kriged.variance[0, 0, :, None].sqrt().float()
