"""The one evaluation protocol: which points of which field are observed, frozen for good."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from sparsefield.data.patterns import Pattern
from sparsefield.data.scale import Split
from sparsefield.data.streams import Purpose, generator


class FrozenCase(TypedDict):
    truth: np.ndarray     # (H, W, C) float32 in [-1, 1], NaN where no point exists
    observed: np.ndarray  # (M,) int64, sorted indices i * W + j
    noise_seed: int       # seed of the noise of every sampler on this case


def frozen_case(split: Split, index: int, pattern: Pattern, eval_seed: int) -> FrozenCase:
    """Field `index` with its observations.

    For one grid and pattern they depend on (eval_seed, index) alone, never on the model, the
    batch or the number of cases. random:0.2 observes int(0.2 * existing points).
    """
    rng = generator(eval_seed, Purpose.FROZEN_CASE, index)
    noise_seed = int(rng.integers(2**63))
    truth = split.example(index)
    observed = pattern.draw(~np.isnan(truth[..., 0]), rng)
    return FrozenCase(truth=truth, observed=observed, noise_seed=noise_seed)
