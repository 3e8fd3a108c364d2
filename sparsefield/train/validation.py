"""What training looks at between epochs: frozen pictures, honest numbers beside the simple ways."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sparsefield.data import Batch, Pattern, Split
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Cases, evaluating, spread
from sparsefield.flow.path import END
from sparsefield.model.field import ClosedForm, FieldModel
from sparsefield.train.pairs import Pair, Pairs, slope_loss

EVAL_SEED = 0
SHOWN_BASELINES = ("constant mean", "linear", "kriging, one kernel", "kriging, fitted")
MEAN = {"method": "mean"}  # how a posterior mean is computed


class Validation:
    """Fields of a validation split, evenly spread, and what training is told about them.

    Args:
        split: pictures. pattern: how they are observed. count: how many of them, at most.
        batch_size: pictures per model call. share: (rank, size), which of them are ours.
    Attributes:
        count: cases of all processes together. every: all of them. cases: ours.

    One serves models of one architecture: their closed forms are computed once.
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
        self.every = Cases(split, pattern, indices, seed=EVAL_SEED, points=points, device=device)
        self.cases = self.every.subset(range(len(indices))[rank::size])
        self.pairs: Pairs | None = None

    def baselines(self) -> dict[str, list[dict[str, float]]]:
        """Numbers per picture of the methods in SHOWN_BASELINES."""
        return {name: _numbers(self.cases, self.cases.interpolate(name).fields)
                if len(self.cases) else [] for name in SHOWN_BASELINES}

    def evaluate(self, model: nn.Module) -> list[dict[str, float]]:
        """Numbers per picture of the posterior mean, and the loss at a frozen angle."""
        results: list[dict[str, float]] = [{} for _ in self.cases]
        for group in self.cases.groups():
            pair, losses = self._losses(model, group)
            some = self.cases.subset(group)
            mean = some.sample(cast(FieldModel, Answered(model, pair.form)), **MEAN)
            for k, loss, numbers in zip(group, losses, _numbers(some, mean.fields)):
                results[k] = {"loss": loss, **numbers}
        return results

    @torch.no_grad()
    def _losses(self, model: nn.Module, group: list[int]) -> tuple[Pair, list[float]]:
        """What cases start from; the loss of each at a frozen angle, at the points that were not
        observed."""
        if self.pairs is None:
            self.pairs = Pairs(model, *self.cases.shape(self.cases.rows), self.cases.device)
        batch = self._batch(group)
        with evaluating(model):
            pair = self.pairs(batch)
            return pair, slope_loss(model, batch, pair).mean(dim=(1, 2)).tolist()

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
            "field": np.array([case.index for case in cases]),
            "symmetry": np.zeros(len(cases), dtype=np.int64),
            "answered": np.stack([np.arange(len(own)) for own in index]),
            "theta": np.array([END * rng.random() for rng in rngs], dtype=np.float32),
        }
        tensors = {name: torch.from_numpy(part).to(self.cases.device)
                   for name, part in parts.items()}
        return Batch(input_coords=input_coords, input_values=input_values, query_coords=queries,
                     **tensors)


class Answered:
    """A model whose closed form of one batch is at hand: for means, which draw nothing."""

    def __init__(self, model: nn.Module, form: ClosedForm):
        self.model, self.form = model, form

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *given: Any) -> Tensor:
        slope: Tensor = self.model(*given)
        return slope

    def closed_form(self, *points: Tensor) -> tuple[ClosedForm, None]:
        return self.form, None


def _numbers(cases: Cases, fields: list[np.ndarray]) -> list[dict[str, float]]:
    return [{"psnr": metrics.psnr(x, case.truth), "ssim": metrics.ssim_wang(x, case.truth),
             "mse": metrics.mse(x, case.truth)} for x, case in zip(fields, cases)]


def mean_numbers(results: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every number over the pictures where it is defined."""
    return {name: metrics.average([r[name] for r in results]) for name in results[0]}
