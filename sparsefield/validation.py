"""What training looks at between epochs: frozen pictures, honest numbers beside the simple ways."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from sparsefield import flow
from sparsefield.coords import grid_coords
from sparsefield.data import Batch, FrozenCase, Pattern, Split, frozen_case
from sparsefield.evaluate import metrics
from sparsefield.evaluate.baselines import BASELINES, keep_observations
from sparsefield.samplers import noise_seed, sample

EVAL_SEED = 0
SHOWN_BASELINES = ("constant mean", "linear", "kriging")
MEAN_DRAWS = 4  # evaluations at t = 0 that a posterior mean averages


def grid_case(case: FrozenCase) -> dict[str, Tensor]:
    """A frozen case as tensors: coordinates and values of its observations, and its queries.

    Returns:
        query_index (N,) of the grid points that exist, query_coords (N, 2), x_1 (N, C),
        input_coords (M, 2), input_values (M, C); values in [-1, 1].
    """
    height, width, channels = case["truth"].shape
    flat = torch.from_numpy(np.ascontiguousarray(case["truth"])).reshape(-1, channels)
    coords = grid_coords(height, width)
    exists = (~flat.isnan().any(dim=1)).nonzero()[:, 0]
    observed = torch.as_tensor(case["observed"])
    return {
        "query_index": exists,
        "query_coords": coords[exists],
        "x_1": flat[exists],
        "input_coords": coords[observed],
        "input_values": flat[observed],
    }


def to_picture(values: Tensor, case: FrozenCase, tensors: dict[str, Tensor]) -> np.ndarray:
    """Values (N, C) in [-1, 1] at the queries of a case as (H, W, C) in [0, 1], NaN elsewhere."""
    picture = torch.full(case["truth"].shape, float("nan")).flatten(0, 1)
    picture[tensors["query_index"]] = (values.cpu().float() + 1) / 2
    inputs = (tensors["input_values"] + 1) / 2
    field = picture.reshape(case["truth"].shape).numpy()
    return keep_observations(field, tensors["input_coords"].numpy(), inputs.numpy())


class Validation:
    """Frozen validation cases of a split, and what the simple methods make of them.

    Args:
        split: pictures. pattern: how they are observed. count: how many of them, at most.
        batch_size: pictures per model call. share: (rank, size), which of them are ours.
    Attributes:
        count: cases of all processes together.
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
        self.count = min(count, len(split))
        self.indices = range(self.count)[rank::size]
        self.cases = [frozen_case(split, i, pattern, EVAL_SEED) for i in self.indices]
        self.tensors = [grid_case(case) for case in self.cases]
        self.truths = [(case["truth"] + 1) / 2 for case in self.cases]
        self.batch_size, self.device = batch_size, device

    def baselines(self) -> dict[str, list[dict[str, float]]]:
        """Numbers per picture of the methods in SHOWN_BASELINES."""
        return {name: [self._baseline(BASELINES[name], k) for k in range(len(self.cases))]
                for name in SHOWN_BASELINES}

    def _baseline(self, method, k: int) -> dict[str, float]:
        inputs = (self.tensors[k]["input_values"] + 1) / 2
        field = method(
            self.tensors[k]["input_coords"].numpy(), inputs.numpy(), self.truths[k].shape[:2]
        )
        return _numbers(field, self.truths[k])

    def evaluate(self, model: nn.Module) -> list[dict[str, float]]:
        """Numbers per picture of the posterior mean, and the velocity loss at a frozen time."""
        results = [{} for _ in self.cases]
        for group in self._batches():
            losses = self._velocity_losses(model, group)
            means = self.reconstruct(model, group, method="mean", num_draws=MEAN_DRAWS)
            for k, loss, mean in zip(group, losses, means):
                results[k] = {"velocity_loss": loss, **_numbers(mean, self.truths[k])}
        return results

    def reconstruct(self, model: nn.Module, group: list[int], **sampler) -> list[np.ndarray]:
        """Pictures (H, W, C) in [0, 1] of some cases, by a sampler and its options."""
        batch = self._stack(group)
        seeds = [noise_seed(EVAL_SEED, self.indices[k]) for k in group]
        result = sample(
            model,
            batch["query_coords"],
            batch["input_coords"],
            batch["input_values"],
            seeds=seeds,
            **sampler,
        )
        return [to_picture(v, self.cases[k], self.tensors[k]) for k, v in zip(group, result.values)]

    def ensemble(self, model: nn.Module, k: int, draws: range, **sampler) -> list[np.ndarray]:
        """Samples of case k as pictures (H, W, C) in [0, 1], one for each number in `draws`."""
        batch = self._stack([k] * len(draws))
        points = [batch[name] for name in ("query_coords", "input_coords", "input_values")]
        seeds = [noise_seed(EVAL_SEED, self.indices[k], 2, draw) for draw in draws]
        result = sample(model, *points, seeds=seeds, **sampler)
        return [to_picture(values, self.cases[k], self.tensors[k]) for values in result.values]

    @torch.no_grad()
    def _velocity_losses(self, model: nn.Module, group: list[int]) -> list[float]:
        """At the points that were not observed, which are those that training asks for."""
        places = self._stack(group)
        hidden = torch.stack([self._hidden(k) for k in group]).to(self.device)
        for name in ("query_coords", "x_1"):
            index = hidden[..., None].expand(-1, -1, places[name].shape[2])
            places[name] = places[name].gather(1, index)
        rngs = [np.random.default_rng([EVAL_SEED, self.indices[k], 1]) for k in group]
        t = np.array([rng.random() for rng in rngs], dtype=np.float32)
        shape = places["x_1"].shape[1:]
        noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])
        batch = Batch(**places, x_0=self._tensor(noise), t=self._tensor(t))
        return flow.velocity_loss(model, batch).mean(dim=(1, 2)).tolist()

    def _hidden(self, k: int) -> Tensor:
        """Which of the queries of case k are not observed: (N - M,), or all if all are observed."""
        observed = torch.as_tensor(self.cases[k]["observed"])
        hidden = (~torch.isin(self.tensors[k]["query_index"], observed)).nonzero()[:, 0]
        return hidden if len(hidden) else torch.arange(len(self.tensors[k]["query_index"]))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _stack(self, group: list[int]) -> dict[str, Tensor]:
        names = ("query_coords", "x_1", "input_coords", "input_values")
        return {n: torch.stack([self.tensors[k][n] for k in group]).to(self.device) for n in names}

    def _batches(self) -> list[list[int]]:
        """Cases with equally many points, in groups of at most batch_size."""
        by_shape = defaultdict(list)
        for k, tensors in enumerate(self.tensors):
            by_shape[len(tensors["query_coords"]), len(tensors["input_coords"])].append(k)
        size = self.batch_size
        return [ks[i : i + size] for ks in by_shape.values() for i in range(0, len(ks), size)]


def mean_numbers(results: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every number over the pictures."""
    return {name: float(np.mean([r[name] for r in results])) for name in results[0]}


def _numbers(field: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {name: function(field, truth) for name, function in (
        ("psnr", metrics.psnr), ("ssim", metrics.ssim_wang), ("mse", metrics.mse))}
