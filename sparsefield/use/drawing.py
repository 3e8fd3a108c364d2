"""Mean and samples as a model sees them: of what was measured exactly nothing is asked."""

from __future__ import annotations

import numpy as np
import scipy
import torch
from torch import Tensor

from sparsefield.data.streams import noise_seed
from sparsefield.device import has_fast_bfloat16
from sparsefield.evaluate.calibration import widen
from sparsefield.flow.sampling import POINTS, Progress, sample
from sparsefield.use.field import Answer
from sparsefield.use.trained import TrainedModel

INPUTS = 400  # observations that a block sees, twice those of a training field at 32 x 32
SAME_PLACE = 1e-6  # sides of the square


def draw(
    model: TrainedModel, queries: Tensor, places: Tensor, values: Tensor,
    noise: np.ndarray | None, *, num_samples: int, num_steps: int, seed: int,
    progress: Progress | None = None, clip: bool = False,
) -> Answer:
    """Mean and samples at queries; sd is that of the draws that the flow starts from.

    Exact measurements are put in where a query is one, and not asked for.

    Args:
        queries: (N, 2), on a globe (N, 3). places: (M, 2) or (M, 3) of values (M, C), float32.
        noise: (M, C) sd of the noise in the values; None: they are exact.
        clip: nothing lies outside of -1 ... 1.
    """
    known = np.full(len(queries), -1) if noise is not None else which_observed(queries, places)
    asked = np.flatnonzero(known < 0)
    samples = np.empty((num_samples, len(queries), values.shape[1]), dtype=np.float32)
    mean, sd = samples[0].copy(), np.zeros(samples.shape[1:])
    samples[:, known >= 0] = mean[known >= 0] = values.numpy()[known[known >= 0]]
    if not len(asked):
        return Answer(mean, sd, samples, "every cell is a measured point")
    device = model.device
    parts = [part[None].to(device) for part in (queries[asked], places, values)]
    result = sample(
        model.network, *parts,
        seeds=[[noise_seed(seed, 0, k) for k in range(1, num_samples + 1)]], num_steps=num_steps,
        noise_sd=None if noise is None else torch.from_numpy(noise)[None].float().to(device),
        block_size=block_size(len(asked), len(places)),
        most_inputs=None if model.is_closed_form else INPUTS, clip=False,
        bfloat16=device.type == "cpu" and has_fast_bfloat16(), progress=progress,
    )
    mean[asked], sd[asked] = result.mean[0].cpu().numpy(), result.start_sd[0].cpu().numpy()
    samples[:, asked] = widen(result.values[0].cpu().numpy(), model.spread)
    if clip:
        samples, mean = samples.clip(-1, 1), mean.clip(-1, 1)
    how = "draws of the closed form" if model.is_closed_form else result.how
    return Answer(mean, sd, samples, how, result.variogram)


def which_observed(queries: Tensor, places: Tensor) -> np.ndarray:
    """(N,) index of the observation at each query, -1 where there is none."""
    tree = scipy.spatial.cKDTree(places.numpy())
    index = tree.query(queries.numpy(), distance_upper_bound=SAME_PLACE)[1]
    return np.where(index < len(places), index, -1)


def block_size(points: int, observed: int) -> int:
    """Queries to answer together so that they and their halo lie among about INPUTS / 2 points."""
    if observed <= INPUTS:
        return POINTS
    return min(POINTS, max(64, points * INPUTS // (3 * observed)))
