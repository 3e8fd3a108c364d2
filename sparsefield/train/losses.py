"""What a training step learns from: the closed form of every field, draws of it, and two losses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsefield.data import Batch, Pattern, Split, frozen_case
from sparsefield.data.scale import frames_of, time_of
from sparsefield.device import has_float64
from sparsefield.flow import path
from sparsefield.gaussian import condition
from sparsefield.gaussian.grid import GridAnswer, GridPosterior
from sparsefield.hashed import normal
from sparsefield.model.blocks import take
from sparsefield.model.field import ClosedForm, FieldModel
from sparsefield.model.grid_unet import LEAST_SCALE, grid_features
from sparsefield.place import Domain, Frames, Observed, grid_coords

FARTHEST = 10.0  # sd; a larger error counts as one of this size, for the sd and the flow
LARGEST_GRID = 48 * 48  # pixels; beyond, a draw by waves is cheaper than a root of the covariance
SCALE_SEQUENCES = 16  # that the scale of time is found from
LEAST_TIME_SCALE = 1e-3  # sides a step; at 0, repeats at a place could not be told apart


class Known(NamedTuple):
    """What is known of the fields of a batch before a network is asked."""

    observed: Observed
    form: ClosedForm  # at the queries
    z_0: Tensor       # (B, N, C), the draws that paths start from; (B, 0, C) if none were wanted

    def part(self, rows: slice) -> Known:
        """Some of the fields."""
        return Known(self.observed.part(rows), self.form.part(rows), self.z_0[rows])


class ClosedForms:
    """`forms(batch)` of fields on a grid, for a model: a function of the batch alone."""

    def __init__(self, model: FieldModel, height: int, width: int, device: torch.device):
        self.model, self.domain = model, Domain.of_grid(height, width)
        self.shape = (height, width)
        self.grid, self.in_time = None, model.time > 1 and model.time_start == "spacetime"
        if model.prior != "none" and height * width <= LARGEST_GRID and has_float64(device):
            self.grid = GridPosterior(height, width, device, model.time if self.in_time else 1,
                                      model.time_scale)

    @torch.no_grad()
    def __call__(self, batch: Batch, with_draws: bool = True) -> Known:
        is_noisy = batch.noise_sd.any(dim=1)  # only fields without noise can share a factored mask
        if not is_noisy.any() or is_noisy.all():
            return self._alike(batch, with_draws)
        rows = [which.nonzero()[:, 0] for which in (is_noisy, ~is_noisy)]
        parts = [self._alike(batch.part(own), with_draws) for own in rows]
        back = torch.cat(rows).argsort()
        form = ClosedForm(*(None if column[0] is None else torch.cat(column)[back]
                            for column in zip(*(part.form[:5] for part in parts), strict=True)))
        return Known(self._observed(batch), form, torch.cat([part.z_0 for part in parts])[back])

    def _observed(self, batch: Batch) -> Observed:
        noise_sd = None
        if batch.noise_sd.any():
            noise_sd = batch.noise_sd[:, None].to(batch.input_values).expand_as(batch.input_values)
        return Observed(batch.input_coords, batch.input_values, noise_sd, self.domain, self.domain,
                        frames=Frames(self.model.time, batch.times))

    def _alike(self, batch: Batch, with_draws: bool) -> Known:
        """Of fields that all have noise, or none."""
        observed = self._observed(batch)
        is_even = not self.in_time or not bool(observed.frames.log_steps(batch.times).any())
        if self.grid is not None and observed.noise_sd is None and is_even:
            return self._on_grid(self.grid, observed, batch, with_draws)
        form = self.model.closed_form(observed, batch.query_coords)
        if not with_draws:
            return Known(observed, form, form.mean[:, :0])
        if self.model.prior == "none":
            z_0 = normal(batch.draws, batch.x_1[0].numel()).view_as(batch.x_1)
        else:
            assert form.noise is not None
            z_0 = form.noise([torch.Generator().manual_seed(seed)
                              for seed in batch.draws.tolist()])
        return Known(observed, form, z_0)

    def _on_grid(
        self, grid: GridPosterior, observed: Observed, batch: Batch, with_draws: bool
    ) -> Known:
        lattice, pixels = self.model.lattice(observed), self.shape[0] * self.shape[1]
        cells = None
        if lattice is not None and lattice[:2] != self.shape:
            cells = lattice.cell_queries(batch.input_coords)
        seeds = batch.draws if with_draws else None
        if self.in_time:
            answer = _of_sequences(grid, observed.frames, batch, seeds, cells, pixels)
        else:
            answer = grid(batch.mask_id.tolist(), batch.input_index, batch.input_values, seeds,
                          cells)
        features = None
        if lattice is not None:
            there = slice(0 if cells is None else pixels, None)
            features = grid_features(
                (answer.mean[:, there], answer.sd[:, there], answer.spread[:, there]),
                observed, answer.loo_z, lattice)
        form = ClosedForm(take(answer.mean, batch.query_index), take(answer.sd, batch.query_index),
                          answer.loo_sd, answer.loo_z, features)
        z_0 = take(answer.draws, batch.query_index) if with_draws else answer.draws
        return Known(observed, form, z_0)


def _of_sequences(
    grid: GridPosterior, frames: Frames, batch: Batch, seeds: Tensor | None, cells: Tensor | None,
    pixels: int,
) -> GridAnswer:
    """The posterior of sequences, frame by frame: the answer as that of single fields."""
    even = Frames(frames.count)
    ids = batch.mask_id.view(-1, frames.count)
    keys = [-1 if -1 in own else tuple(own) for own in ids.tolist()]
    frame = torch.arange(frames.count, device=batch.input_index.device).repeat(len(ids))
    index = batch.input_index + pixels * frame[:, None]                   # (B, M), of T P points
    found = grid(keys, frames.joined(index[..., None])[..., 0], frames.joined(batch.input_values),
                 None if seeds is None else seeds[:: frames.count],
                 None if cells is None else even.in_time(cells))
    at_pixels, at_cells = ([x[:, part] for x in found[:3]] for part in (
        slice(frames.count * pixels), slice(frames.count * pixels, None)))
    answer = [torch.cat([even.apart(x), even.apart(y)], dim=1)
              for x, y in zip(at_pixels, at_cells, strict=True)]
    return GridAnswer(*answer, *(even.apart(x) for x in found[3:]))


def time_scale(split: Split, pattern: Pattern) -> float:
    """How many sides of the domain a step between frames counts as: the median of what the
    restricted likelihood finds for some training sequences."""
    frames, found = frames_of(split), []
    every = range(0, len(split), frames)
    for first in every[:: max(1, len(every) // SCALE_SEQUENCES)][:SCALE_SEQUENCES]:
        places, values = [], []
        for index in range(first, first + frames):
            case = frozen_case(split, index, pattern, eval_seed=0)
            height, width, channels = case["truth"].shape
            coords = grid_coords(height, width)[torch.from_numpy(case["observed"])]
            places.append(F.pad(coords, (0, 1), value=time_of(split, index)))
            values.append(case["truth"].reshape(-1, channels)[case["observed"]])
        known = torch.from_numpy(np.concatenate(values))
        known = (known - known.mean()) / known.std().clamp_min(LEAST_SCALE)
        posterior = condition(torch.cat(places)[None], known[None], covariates=1, timed=True,
                              domain=Domain.of_grid(height, width))
        found.append(posterior.uses()[0].scale)
    return max(float(np.median(found)), LEAST_TIME_SCALE)


def start_loss(model: FieldModel, batch: Batch, known: Known) -> Tensor:
    """What stage "start" learns from, (B, N, C): how far the mean is off, in sd of the closed form,
    and the negative log-likelihood of the sd around that mean.

    Far errors count linearly for the mean (Charbonnier et al. 1994) and as FARTHEST for the sd:
    where the closed form's is far too small, a square would let one field in thousands decide.
    """
    start = model.start(known.form, known.observed, batch.query_coords)
    error = (batch.x_1 - start.mean) / known.form.sd
    log_scale = (start.sd / known.form.sd).log()
    narrowed = error.detach().clamp(-FARTHEST, FARTHEST) * (-log_scale).exp()
    far = 2 * ((1 + error**2).sqrt() - 1)
    return far + log_scale + 0.5 * narrowed**2


def velocity_loss(model: FieldModel, batch: Batch, known: Known) -> Tensor:
    """What stage "flow" learns from: the squared error of F (B, n, C), about 1 where F = 0. What
    the flow starts from learns nothing from it, and no path leads farther than FARTHEST."""
    state = model.encode(known.observed, batch.query_coords, form=known.form,
                         answered=batch.answered)
    z_1 = ((batch.x_1 - state.mean) / state.sd).clamp(-FARTHEST, FARTHEST)
    z = path.seen(path.interpolate(known.z_0, z_1, batch.theta), batch.theta)
    target = path.target(known.z_0, z_1, batch.theta)
    return (model.velocity(z, batch.theta, state) - take(target, batch.answered)) ** 2
