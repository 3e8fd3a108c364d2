"""What a training step learns from: the closed form of every field of a batch, and both ends of its
path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefield.model.field import ClosedForm
from sparsefield.coords import grid_coords
from sparsefield.data import Batch
from sparsefield.device import has_float64
from sparsefield.flow import path
from sparsefield.gaussian.layouts import GridPosteriors

LARGEST_GRID = 48 * 48  # pixels; beyond, a draw by waves is cheaper than a root of the covariance


class Pair(NamedTuple):
    """The closed form of a batch, and the ends z_0 and z_1 (B, N, C) of its paths."""

    form: ClosedForm
    z_0: Tensor
    z_1: Tensor


class Pairs:
    """`pairs(batch)` for a model; a pure function of the batch, whatever was asked before."""

    def __init__(self, model: nn.Module, height: int, width: int, device: torch.device):
        self.model = model
        self.on_grid = None
        is_small = height * width <= LARGEST_GRID
        if model.prior != "none" and is_small and has_float64(device):
            grid = grid_coords(height, width, device)
            self.on_grid = GridPosteriors(height, width, grid)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Pair:
        if self.on_grid is None:
            form, noise = self.model.closed_form(
                batch.query_coords, batch.input_coords, batch.input_values
            )
            z_0 = noise([torch.Generator().manual_seed(s) for s in batch.seed.tolist()])
        else:
            form, z_0 = self._on_grid(batch)
        return Pair(form, z_0, (batch.x_1 - form.mean) / form.sd)

    def _on_grid(self, batch: Batch) -> tuple[ClosedForm, Tensor]:
        fields = []
        jobs = zip(batch.layout.tolist(), batch.input_index, batch.input_values,
                   batch.seed.tolist(), batch.query_index)
        for layout, observed, values, seed, queried in jobs:
            mean, sd, spread, loo_sd, surprise, z_0 = self.on_grid(layout, observed, values, seed)
            fields.append((mean[queried], sd[queried], spread[queried], loo_sd, surprise,
                           z_0[queried]))
        *form, z_0 = (torch.stack(column) for column in zip(*fields))
        return ClosedForm(*form), z_0


def slope_loss(model, batch: Batch, pair: Pair, forward=None) -> Tensor:
    """Squared error of F (B, N, C): its mean is the training loss; about 1 for the closed form.

    Args:
        model: see FieldModel. forward: the model as wrapped for training, if it is.
    """
    prepared = model.prepare(
        pair.form, batch.query_coords, batch.input_coords, batch.input_values
    )
    z = path.seen(path.interpolate(pair.z_0, pair.z_1, batch.theta), batch.theta)
    slope = (forward or model)(z, batch.theta, prepared)
    return (slope - path.target(pair.z_0, pair.z_1, batch.theta)) ** 2
