"""What a training is validated on between epochs: frozen pictures, beside simple methods."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparsefield.data import Batch, Pattern, Split
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Cases, evaluating, spread
from sparsefield.flow.path import END
from sparsefield.model.field import FieldModel, State
from sparsefield.place import Observed
from sparsefield.train.losses import ClosedForms, Known, start_loss, velocity_loss

EVAL_SEED = 0
SHOWN_BASELINES = ("constant mean", "linear", "kriging, one kernel", "kriging, fitted")
MEAN = {"method": "mean"}  # how a posterior mean is computed


class _Group(NamedTuple):
    """Cases that are computed together."""

    which: list[int]
    batch: Batch
    known: Known


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
        self._groups: list[_Group] = []

    def baselines(self) -> dict[str, list[dict[str, float]]]:
        """Numbers per picture of the methods in SHOWN_BASELINES."""
        return {name: _numbers(self.cases, self.cases.interpolate(name).fields)
                if len(self.cases) else [] for name in SHOWN_BASELINES}

    def evaluate(self, model: FieldModel, stage: str) -> list[dict[str, float]]:
        """Numbers per picture of the posterior mean, and the loss of a stage with a frozen draw at
        a frozen angle, at the points that were not observed."""
        loss_of = start_loss if stage == "start" else velocity_loss
        results: list[dict[str, float]] = [{} for _ in self.cases]
        for which, batch, known in self.groups(model):
            with evaluating(model), torch.no_grad():
                losses = loss_of(model, batch, known).mean(dim=(1, 2)).tolist()
            some = self.cases.subset(which)
            mean = some.sample(_WithForm(model, known), **MEAN)
            for k, loss, numbers in zip(which, losses, _numbers(some, mean.fields), strict=True):
                results[k] = {"loss": loss, **numbers}
        return results

    def groups(self, model: FieldModel) -> list[_Group]:
        """All cases with their closed forms, made once."""
        if not self._groups:
            forms = ClosedForms(model, *self.cases.shape(self.cases.rows), self.cases.device)
            batches = [(which, self._batch(which)) for which in self.cases.groups()]
            self._groups = [_Group(which, batch, forms(batch)) for which, batch in batches]
        return self._groups

    def _batch(self, which: list[int]) -> Batch:
        queries, input_coords, input_values = self.cases.stack(which)
        cases = [self.cases[k] for k in which]
        rngs = [np.random.default_rng([EVAL_SEED, case.index, 1]) for case in cases]
        index = [np.flatnonzero(case.asked(self.cases.rows)) for case in cases]
        values = [case.inside.reshape(-1, case.inside.shape[2])[own]
                  for case, own in zip(cases, index, strict=True)]
        parts = {
            "input_index": np.stack([case.observed for case in cases]),
            "query_index": np.stack(index),
            "x_1": np.stack(values),
            "draws": np.array([rng.integers(2**63) for rng in rngs]),
            "mask_id": np.full(len(cases), -1),
            "answered": np.stack([np.arange(len(own)) for own in index]),
            "theta": np.array([END * rng.random() for rng in rngs], dtype=np.float32),
        }
        tensors = {name: torch.from_numpy(part) for name, part in parts.items()}
        return Batch(input_coords=input_coords, input_values=input_values, query_coords=queries,
                     **tensors).to(self.cases.device)


class _WithForm(nn.Module):
    """A model for which the closed form of one batch is at hand."""

    def __init__(self, model: FieldModel, known: Known):
        super().__init__()
        self.model, self.known = model, known

    def encode(self, observed: Observed, queries: Tensor, **settings: Any) -> State:
        return self.model.encode(self.known.observed, queries, form=self.known.form, **settings)

    def velocity(self, *given: Any) -> Tensor:
        return self.model.velocity(*given)


def _numbers(cases: Cases, fields: list[np.ndarray]) -> list[dict[str, float]]:
    return [{"psnr": metrics.psnr(x, case.truth), "ssim": metrics.ssim_wang(x, case.truth),
             "mse": metrics.mse(x, case.truth)} for x, case in zip(fields, cases, strict=True)]


def mean_numbers(results: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every number over the pictures where it is defined."""
    return {name: metrics.average([r[name] for r in results]) for name in results[0]}
