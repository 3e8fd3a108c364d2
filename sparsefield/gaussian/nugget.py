"""How much noise observations have, where nobody says: by restricted likelihood.

Noise is tried at a ladder of levels. A level has the likelihood of all isotropic kernels and their
amplitudes at it (sparsefield.gaussian.fit.climb), and the best level is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefield.gaussian.factor import Hypotheses, full_precision, one_thread
from sparsefield.gaussian.fit import climb
from sparsefield.gaussian.kernels import NOISY_BANK

POINTS = 300  # observations that are looked at, at most
LEVELS = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)  # sd of the values
LEAST = 0.03  # of the sd of the values; less cannot be told from none
FEW = 10  # observations, below which nothing is told


@torch.no_grad()
def estimate_noise(coords: Tensor, values: Tensor, relative: Tensor) -> float:
    """The sd of the noise in values of one channel, 0 where it cannot be told from none.

    Args:
        coords: (M, D) in sides of the square. values: (M,). relative: (M,), by which the noise of
            each observation differs, as 1/2 for the mean of four.
    """
    if len(values) < FEW or float(values.std()) == 0:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(values), generator=generator)[:POINTS]
    coords, relative = coords[None, some], relative[some].float()
    spread = float(values[some].std())
    unit = ((values[some] - values[some].mean()) / spread)[None, :, None].float()
    kernels = tuple(kernel for kernel in NOISY_BANK if kernel.ratio == 1)
    every = Hypotheses.every(kernels, 1, coords.device)
    scores = []
    with full_precision(coords.device), one_thread():
        for level in LEVELS:
            score, _ = climb(every, coords, unit, (level * relative[None]).square())
            scores.append(float(score.logsumexp(dim=1)))
    best = LEVELS[max(range(len(LEVELS)), key=scores.__getitem__)]
    return best * spread if best >= LEAST else 0.0
