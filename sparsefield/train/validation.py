"""What training looks at between epochs: frozen pictures, honest numbers beside the simple ways."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from sparsefield.data import Batch, Pattern, Split
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Cases, evaluating, spread
from sparsefield.flow.path import END
from sparsefield.train.pairs import Pairs, slope_loss

EVAL_SEED = 0
SHOWN_BASELINES = ("constant mean", "linear", "kriging, one kernel", "kriging, fitted")
MEAN = {"method": "mean"}  # how a posterior mean is computed


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
        """Numbers per picture of the posterior mean, and the loss at a frozen angle."""
        if not len(self.cases):
            return []
        losses = self.losses(model)
        numbers = self._numbers(self.cases.sample(model, **MEAN).fields)
        return [{"loss": loss, **found} for loss, found in zip(losses, numbers)]

    def _numbers(self, fields: list[np.ndarray]) -> list[dict[str, float]]:
        return [{"psnr": metrics.psnr(x, case.truth), "ssim": metrics.ssim_wang(x, case.truth),
                 "mse": metrics.mse(x, case.truth)} for x, case in zip(fields, self.cases)]

    @torch.no_grad()
    def losses(self, model: nn.Module) -> list[float]:
        """Of each case, at a frozen angle, at the points that were not observed."""
        pairs = Pairs(model, *self.cases.shape(self.cases.rows), self.cases.device)
        losses = [math.nan] * len(self.cases)
        for group in self.cases.groups():
            batch = self._batch(group)
            with evaluating(model):
                found = slope_loss(model, batch, pairs(batch)).mean(dim=(1, 2)).tolist()
            for k, loss in zip(group, found):
                losses[k] = loss
        return losses

    def _batch(self, which: list[int]) -> Batch:
        queries, input_coords, input_values = self.cases.stack(which)
        cases = [self.cases[k] for k in which]
        rngs = [np.random.default_rng([EVAL_SEED, case.index, 1]) for case in cases]
        index = [np.flatnonzero(case.asked(self.cases.rows)) for case in cases]
        values = [case.inside.reshape(-1, case.inside.shape[2])[own]
                  for case, own in zip(cases, index)]
        parts = {
            "input_index": np.stack([case.observed for case in cases]),
            "query_index": np.stack(index),
            "x_1": np.stack(values),
            "draws": np.array([rng.integers(2**63) for rng in rngs]),
            "turn": np.zeros(len(cases), dtype=np.int64),
            "layout": np.full(len(cases), -1),
            "field": np.full(len(cases), -1),
            "symmetry": np.zeros(len(cases), dtype=np.int64),
            "answered": np.stack([np.arange(len(own)) for own in index]),
            "theta": np.array([END * rng.random() for rng in rngs], dtype=np.float32),
        }
        tensors = {name: torch.from_numpy(part).to(self.cases.device)
                   for name, part in parts.items()}
        return Batch(input_coords=input_coords, input_values=input_values, query_coords=queries,
                     **tensors)


def mean_numbers(results: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every number over the pictures where it is defined."""
    return {name: metrics.average([r[name] for r in results]) for name in results[0]}
