"""The one entry point: observations in, a Gaussian posterior out.

    posterior = condition(coords, values)      # fitted to the field
    answer = posterior.at(queries)             # mean, sd, spread
    noise = posterior.noise(queries)           # draws: answer.mean + answer.sd * noise(generators)

Up to DENSE_POINTS observations the answer is exact. Beyond, the field is fitted once, on so many of
its points, and every query is answered from its nearest observations. Either way the answer at a
place, and what a seed draws there, do not depend on what else is asked for.

Symbols: B fields, M observations, N queries, C channels, S draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefield.gaussian.answer import Answer, LeaveOneOut
from sparsefield.gaussian.draws import FEATURES
from sparsefield.gaussian.factor import full_precision
from sparsefield.gaussian.fit import PRIOR_AMPLITUDE2, correlation_root, fit
from sparsefield.gaussian.kernels import BANK, NOISY_BANK, Kernel
from sparsefield.gaussian.noise import Measured, PosteriorNoise
from sparsefield.gaussian.solvers import FromAll, FromNearest
from sparsefield.gaussian.watch import part_done

DENSE_POINTS = 2000
WAVES_HELD = 1 << 26  # numbers in the waves of queries that are drawn together
NOISY_FIT_POINTS = 500  # with noise many more hypotheses are tried


@torch.no_grad()
def condition(
    coords: Tensor,
    values: Tensor,
    noise_sd: Tensor | None = None,
    kernels: tuple[Kernel, ...] | None = None,
) -> Posterior:
    """Fit a Gaussian field to observations.

    Args:
        coords: (B, M, 2) in sides of the unit square, M from 1 on; or (B, M, 3) on a globe, see
            sparsefield.use.globe. Queries then have three coordinates, too.
        values: (B, M, C), of about unit size. noise_sd: (B, M, C) of the noise in them, in their
            units; channels are then fitted each on its own. None or all zero: values are exact.
        kernels: the bank; ONE_KERNEL for kriging that is not fitted. None: BANK or NOISY_BANK.
    """
    coords, values = coords.float(), values.float()
    if noise_sd is None or not bool(noise_sd.any()):
        return Posterior(coords, values, None, kernels or BANK)
    channels = values.shape[2]
    each = coords.repeat_interleave(channels, dim=0), values.mT.flatten(0, 1)[..., None]
    noise_variance = noise_sd.to(values).square().mT.flatten(0, 1)
    return Posterior(*each, noise_variance, kernels or NOISY_BANK, folded=channels)


class Posterior:
    """A fitted Gaussian field for each of B sets of observations; made by `condition`.

    With noise every channel is a field of its own inside: `folded` of them, next to each other.
    """

    def __init__(self, coords: Tensor, values: Tensor, noise_variance: Tensor | None,
                 kernels: tuple[Kernel, ...], folded: int = 1):
        self.coords, self.noise_variance, self.folded = coords, noise_variance, folded
        count = coords.shape[1]
        some = evenly(count, DENSE_POINTS if noise_variance is None else NOISY_FIT_POINTS)
        of_some = None if noise_variance is None else noise_variance[:, some]
        with full_precision(coords.device):
            self.fit = fit(coords[:, some], values[:, some], of_some, kernels)
            if len(some) < count <= DENSE_POINTS:
                self.fit = self.fit.at_all(coords, values, noise_variance)
        spacing = count**-0.5
        self.solver = (FromAll(self.fit, spacing) if count <= DENSE_POINTS else
                       FromNearest(self.fit, coords, values, noise_variance, spacing))

    def describe(self, field: int = 0) -> str:
        """The fitted variogram of a field (with noise: of its first channel) in words."""
        return self.fit.describe(field * self.folded)

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """What the others say of every observation: each (B, M, C)."""
        with torch.no_grad(), full_precision(self.coords.device):
            loo = self.solver.leave_one_out
        return LeaveOneOut(*(self._unfold(x) for x in (loo.mean, loo.sd, loo.surprise)))

    @torch.no_grad()
    def at(self, queries: Tensor) -> Answer:
        """Mean and sd (B, N, C), and spread of the means (B, N, 1), at queries (B, N, 2)."""
        with full_precision(queries.device):
            parts = []
            for piece in self._pieces(queries):
                parts.append(self.solver.answer(piece))
                part_done()
        mean, sd, spread = (self._unfold(torch.cat([getattr(part, name) for part in parts], dim=1))
                            for name in ("mean", "sd", "spread"))
        return Answer(mean, sd, spread.mean(dim=2, keepdim=True))

    @torch.no_grad()
    def noise(self, queries: Tensor) -> PosteriorNoise:
        """Draws at queries (B, N, 2) of what the observations leave open."""
        heaviest = self.fit.heaviest().hypotheses
        relative = None
        if self.noise_variance is not None:
            assert heaviest.amplitude2 is not None
            relative = (self.noise_variance / heaviest.amplitude2[:, None]).sqrt().float()
        kernels = [heaviest.kernels[k] for k in heaviest.kernel.tolist()]
        measured = Measured(self.coords, kernels, relative, self._channel_root(), self.folded)
        pieces = self._pieces(queries, most=max(64, WAVES_HELD // (len(self.coords) * FEATURES)))
        return PosteriorNoise(measured, self.solver, pieces, self.describe())

    def _pieces(self, queries: Tensor, most: int | None = None) -> list[Tensor]:
        """Queries in parts that memory holds, every channel a field where they are folded."""
        folded = queries.to(self.coords).repeat_interleave(self.folded, dim=0)
        return list(folded.split(min(self.solver.at_once, most or self.solver.at_once), dim=1))

    def _unfold(self, x: Tensor) -> Tensor:
        """(B C, n, 1) to (B, n, C), where channels are folded."""
        return x if self.folded == 1 else x[..., 0].unflatten(0, (-1, self.folded)).mT

    def _channel_root(self) -> Tensor:
        """(B, C, C): times independent channels those that go together like the field's."""
        heaviest = self.fit.heaviest()
        if self.folded == 1:
            return correlation_root(heaviest.channels)
        # Each has its own variogram, amplitude and noise.
        white = heaviest.white[..., 0].unflatten(0, (-1, self.folded)).double()
        prior = PRIOR_AMPLITUDE2 * torch.eye(self.folded).to(white)
        return correlation_root(white @ white.mT + prior)


def evenly(count: int, most: int) -> Tensor:
    """Indices of all, or of `most` at random: (n,) in ascending order."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator)[:most].sort().values
