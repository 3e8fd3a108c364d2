"""What training looks at between epochs: frozen pictures, honest numbers beside the simple ways."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from sparsefield import flow
from sparsefield.coords import grid_coords
from sparsefield.data import Batch, Pattern, Split
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Case, Cases, evaluating, spread

EVAL_SEED = 0
SHOWN_BASELINES = ("constant mean", "linear", "kriging")
MEAN = {"method": "mean", "num_draws": 4}  # how a posterior mean is computed


class Validation:
    """Fields of a validation split, evenly spread, and what training is told about them.

    Args:
        split: pictures. pattern: how they are observed. count: how many of them, at most.
        batch_size: pictures per model call. share: (rank, size), which of them are ours.
    Attributes:
        count: cases of all processes together. cases: ours.
    """

    def __init__(
        self,
        split: Split,
        pattern: Pattern,
        count: int,
        batch_size: int,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
    ):
        rank, size = share
        indices = spread(range(len(split)), count)
        self.count = len(indices)
        points = batch_size * math.prod(split.example(0).shape[:2])
        self.cases = Cases(
            split, pattern, indices[rank::size], seed=EVAL_SEED, points=points, device=device
        )

    def baselines(self) -> dict[str, list[dict[str, float]]]:
        """Numbers per picture of the methods in SHOWN_BASELINES."""
        return {name: self._numbers(self.cases.interpolate(name).fields) if len(self.cases) else []
                for name in SHOWN_BASELINES}

    def evaluate(self, model: nn.Module) -> list[dict[str, float]]:
        """Numbers per picture of the posterior mean, and the velocity loss at a frozen time."""
        if not len(self.cases):
            return []
        losses = self.velocity_losses(model)
        numbers = self._numbers(self.cases.sample(model, **MEAN).fields)
        return [{"velocity_loss": loss, **found} for loss, found in zip(losses, numbers)]

    def _numbers(self, fields: list[np.ndarray]) -> list[dict[str, float]]:
        return [{"psnr": metrics.psnr(x, case.truth), "ssim": metrics.ssim_wang(x, case.truth),
                 "mse": metrics.mse(x, case.truth)} for x, case in zip(fields, self.cases)]

    @torch.no_grad()
    def velocity_losses(self, model: nn.Module) -> list[float]:
        """Of each case, at the points that were not observed: those that training asks for."""
        losses = [math.nan] * len(self.cases)
        for group in self.cases.groups():
            which = [k for k, _ in group]
            with evaluating(model):
                found = flow.velocity_loss(model, self._batch(which)).mean(dim=(1, 2)).tolist()
            for k, loss in zip(which, found):
                losses[k] = loss
        return losses

    def _batch(self, which: list[int]) -> Batch:
        _, input_coords, input_values = self.cases.stack(which)
        hidden = [_hidden(self.cases[k]) for k in which]
        rngs = [np.random.default_rng([EVAL_SEED, self.cases[k].index, 1]) for k in which]
        times = np.array([rng.random() for rng in rngs], dtype=np.float32)
        noise = [rng.standard_normal(x.shape, dtype=np.float32)
                 for rng, (_, x) in zip(rngs, hidden)]
        parts = [
            torch.stack([coords for coords, _ in hidden]),
            torch.from_numpy(np.stack(noise)),
            torch.stack([values for _, values in hidden]),
            torch.from_numpy(times),
        ]
        return Batch(input_coords, input_values, *(part.to(self.cases.device) for part in parts))


def _hidden(case: Case) -> tuple[Tensor, Tensor]:
    """Coordinates and values in [-1, 1] of what was not observed (or of all, if all was)."""
    coords = grid_coords(*case.inside.shape[:2])
    values = torch.from_numpy(case.inside).flatten(0, 1)
    exists = torch.from_numpy(case.exists(len(case.inside)).ravel())
    hidden = exists.clone()
    hidden[torch.as_tensor(case.observed)] = False
    chosen = hidden if hidden.any() else exists
    return coords[chosen], values[chosen]


def mean_numbers(results: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every number over the pictures where it is defined."""
    return {name: metrics.average([r[name] for r in results]) for name in results[0]}
