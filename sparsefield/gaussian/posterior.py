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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsefield.gaussian import draws
from sparsefield.gaussian.answer import (
    Answer,
    Kriged,
    LeaveOneOut,
    combine,
    inverse_factor,
    krige,
    leave_one_out,
    local_amplitude,
)
from sparsefield.gaussian.fit import (
    Factored,
    Fit,
    factor,
    fit,
    full_precision,
    whiten,
)
from sparsefield.gaussian.kernels import BANK, Kernel
from sparsefield.gaussian.neighbours import nearest

DENSE_POINTS = 2000
NOISY_FIT_POINTS = 500  # with noise many more hypotheses are tried
LOCAL_NEIGHBOURS = 64
BLOCK = 4096  # queries answered together: bounds memory, changes nothing
KEPT_WEIGHTS = 1 << 26  # kriging weights that are kept for further draws of the same queries

Generators = Sequence[torch.Generator]


@torch.no_grad()
def condition(
    coords: Tensor,
    values: Tensor,
    noise_sd: Tensor | None = None,
    kernels: tuple[Kernel, ...] = BANK,
) -> Posterior:
    """Fit a Gaussian field to observations.

    Args:
        coords: (B, M, 2) in sides of the unit square, M from 1 on.
        values: (B, M, C), of about unit size. noise_sd: (B, M, C) of the noise in them, in their
            units; channels are then fitted each on its own. None: the values are exact.
        kernels: the bank; ONE_KERNEL for kriging that is not fitted.
    """
    fields, _, channels = values.shape
    noise_variance = None
    if noise_sd is not None:
        coords = coords.repeat_interleave(channels, dim=0)
        values = values.mT.flatten(0, 1)[..., None]
        noise_variance = noise_sd.mT.flatten(0, 1).to(values) ** 2
    with torch.autocast(coords.device.type, enabled=False), full_precision():
        return Posterior(coords.float(), values.float(), noise_variance, kernels,
                         channels // values.shape[2])


class Posterior:
    """A fitted Gaussian field for each of B sets of observations; made by `condition`.

    With noise, fields and channels are one batch dimension, fields first, inside of it.
    """

    def __init__(
        self, coords: Tensor, values: Tensor, noise_variance: Tensor | None,
        kernels: tuple[Kernel, ...], folded: int,
    ):
        self.coords, self.values, self.noise_variance = coords, values, noise_variance
        self.folded = folded  # channels within the batch dimension
        self.spacing = coords.shape[1] ** -0.5
        self.is_dense = coords.shape[1] <= DENSE_POINTS
        most = DENSE_POINTS if noise_variance is None else NOISY_FIT_POINTS
        some = evenly(coords.shape[1], most, coords.device)
        of_some = None if noise_variance is None else noise_variance[:, some]
        self.fit = fit(coords[:, some], values[:, some], of_some, kernels)
        if self.is_dense and len(some) < coords.shape[1]:
            self.fit = self.local(torch.arange(len(coords)), coords, values, noise_variance)

    @property
    def fields(self) -> int:
        return len(self.coords) // self.folded

    def describe(self, field: int = 0) -> str:
        """The fitted variogram of a field (with noise: of its first channel) in words."""
        return self.fit.describe(field * self.folded)

    def local(
        self, field: Tensor, coords: Tensor, values: Tensor, noise_variance: Tensor | None
    ) -> Fit:
        """The fit, brought to other observations: (n,) which field, (n, k, 2), (n, k, C), (n, k)."""
        tried = self.fit.factored.hypotheses
        kernel, amplitude2, noise = tried.kernel[field], None, None
        if noise_variance is not None:
            amplitude2 = tried.amplitude2[field]
            noise = noise_variance[:, None] / amplitude2[..., None]
        factored = factor(type(tried)(tried.kernels, kernel, amplitude2, noise), coords)
        white = whiten(factored, values)
        return Fit(factored, self.fit.weight[field].to(white), self.fit.channels[field].to(white),
                   white, values)

    def around(self, field: int, points: Tensor, skip_self: bool) -> tuple[Fit, Tensor, Tensor]:
        """The fit at the nearest observations of each point of one field, and which they are.

        Returns:
            a fit of n fields, index (n, k) and distance (n, k).
        """
        index, distance = nearest(points, self.coords[field], LOCAL_NEIGHBOURS + skip_self)
        index, distance = index[:, skip_self:], distance[:, skip_self:]
        noise = None if self.noise_variance is None else self.noise_variance[field][index]
        which = torch.full((len(points),), field, device=index.device)
        near = self.coords[field][index], self.values[field][index], noise
        return self.local(which, *near), index, distance

    @cached_property
    @torch.no_grad()
    def _loo(self) -> LeaveOneOut:
        """In the batch dimension of the fit."""
        with full_precision():
            if self.is_dense:
                return leave_one_out(self.fit)
            fields = []
            for b, (coords, values) in enumerate(zip(self.coords, self.values)):
                parts = []
                for part in range(0, len(coords), BLOCK):
                    here = slice(part, part + BLOCK)
                    local, _, _ = self.around(b, coords[here], skip_self=True)
                    answer = combine(local, krige(local.factored, coords[here, None]))
                    sd = answer.sd[:, 0]
                    if self.noise_variance is not None:
                        sd = (sd**2 + self.noise_variance[b, here, None]).sqrt()
                    parts.append((answer.mean[:, 0], sd, (values[here] - answer.mean[:, 0]) / sd))
                fields.append([torch.cat(column) for column in zip(*parts)])
            return LeaveOneOut(*(torch.stack(column) for column in zip(*fields)))

    @property
    def leave_one_out(self) -> LeaveOneOut:
        """What the others say of every observation: each (B, M, C)."""
        loo = self._loo
        return LeaveOneOut(*(self.unfold(x) for x in (loo.mean, loo.sd, loo.surprise)))

    @torch.no_grad()
    def at(self, queries: Tensor) -> Answer:
        """Mean and sd (B, N, C), and spread of the means (B, N, 1), at queries (B, N, 2)."""
        parts = [combine_locally(self, piece) for piece in self.pieces(queries)]
        mean, sd, spread = (torch.cat(x, dim=1) for x in zip(*parts))
        spread = spread if self.folded == 1 else self.unfold(spread).mean(dim=2, keepdim=True)
        return Answer(self.unfold(mean), self.unfold(sd), spread)

    def noise(self, queries: Tensor) -> PosteriorNoise:
        """Draws at queries (B, N, 2) of what the observations leave open."""
        return PosteriorNoise(self, queries)

    def pieces(self, queries: Tensor) -> Iterator[Tensor]:
        """Queries (B, n, 2) in parts that memory holds, in the batch dimension of the fit."""
        folded = queries.repeat_interleave(self.folded, dim=0).to(self.coords)
        held = max(1, len(folded) * self.coords.shape[1] * self.fit.weight.shape[1])
        size = BLOCK if not self.is_dense else max(64, (1 << 26) // held)
        return iter(folded.split(size, dim=1))

    def unfold(self, x: Tensor) -> Tensor:
        """(B C, n, 1) to (B, n, C), where channels are folded."""
        return x if self.folded == 1 else x[..., 0].unflatten(0, (-1, self.folded)).mT

    def channel_root(self) -> Tensor:
        """(B, C, C): times independent channels those that go together like the field's."""
        if self.folded == 1:
            together = self.fit.channels[:, 0].double()
        else:  # each has its own variogram, amplitude and noise
            white = self.fit.white[:, 0, :, 0].unflatten(0, (-1, self.folded)).double()
            eye = torch.eye(self.folded, dtype=white.dtype, device=white.device)
            together = white @ white.mT + self.fit.values.shape[1] * 0.05 * eye
        sd = together.diagonal(dim1=1, dim2=2).sqrt()
        return torch.linalg.cholesky(together / (sd[:, :, None] * sd[:, None])).float()


def evenly(count: int, most: int, device: torch.device) -> Tensor:
    """Indices of all, or of `most` at random: (n,) in ascending order."""
    if count <= most:
        return torch.arange(count, device=device)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(count, generator=generator)[:most].sort().values.to(device)


def combine_locally(posterior: Posterior, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sd and spread at one piece of the queries, the sd by how much the field varies there."""
    surprise = posterior._loo.surprise
    with full_precision():
        if posterior.is_dense:
            answer = combine(posterior.fit, krige(posterior.fit.factored, queries))
            amplitude = local_amplitude(queries, posterior.coords, surprise, posterior.spacing)
            return answer.mean, answer.sd * amplitude, answer.spread * amplitude
        fields = []
        for b, points in enumerate(queries):
            local, index, _ = posterior.around(b, points, skip_self=False)
            answer = combine(local, krige(local.factored, points[:, None]))
            amplitude = local_amplitude(
                points[:, None], posterior.coords[b][index], surprise[b][index], posterior.spacing
            )
            fields.append((answer.mean[:, 0], (answer.sd * amplitude)[:, 0],
                           (answer.spread * amplitude)[:, 0]))
        return tuple(torch.stack(column) for column in zip(*fields))


@dataclass(frozen=True)
class Weights:
    """How one field's errors follow from its observations: f_q - sum of weight * f_observed.

    Attributes:
        weight: (N, k), of sum 1. index: (N, k) which observations; None: all of them, in order.
        sd: (N, 1), of the error relative to the amplitude.
    """

    weight: Tensor
    index: Tensor | None
    sd: Tensor

    def residual(self, at_queries: Tensor, at_observed: Tensor) -> Tensor:
        """(S, N, C) of (S, N, C) and (S, M, C), of unit variance."""
        if self.index is None:
            known = self.weight @ at_observed
        else:
            near = at_observed[:, self.index]                             # (S, N, k, C)
            known = (self.weight[..., None] * near).sum(dim=2)
        return (at_queries - known) / self.sd


def kriging_weights(factored: Factored, kriged: Kriged) -> Tensor:
    """(B, N, M) of the first hypothesis."""
    others = inverse_factor(factored.lower[:, 0]).mT @ kriged.whitened[:, 0]   # (B, M - 1, N)
    return torch.cat([1 - others.sum(dim=1, keepdim=True), others], dim=1).mT


class PosteriorNoise:
    """Draws of z with answer.mean + answer.sd * z from the posterior: Matheron's rule.

    A draw of the prior minus its own kriging is a draw of the error (Journel & Huijbregts 1978;
    Wilson et al. 2020, equation 4). Of unit variance at every point, correlated between points like
    the heaviest hypothesis and between channels like the field; 0 at an observation.
    """

    def __init__(self, posterior: Posterior, queries: Tensor):
        self.posterior, self.queries = posterior, queries
        heaviest = posterior.fit.factored.hypotheses
        self.kernels = [heaviest.kernels[k] for k in heaviest.kernel[:, 0].tolist()]
        self.root = posterior.channel_root()
        size = queries.shape[1] * min(posterior.coords.shape[1], LOCAL_NEIGHBOURS)
        self.kept: list | None = None
        if posterior.is_dense:
            size = queries.shape[1] * posterior.coords.shape[1]
        if len(queries) * (size + queries.shape[1] * draws.FEATURES) <= KEPT_WEIGHTS:
            self.kept = list(self._operators())

    @torch.no_grad()
    def _operators(self) -> Iterator[list[tuple[Tensor, Weights]]]:
        """For every piece of the queries and field: waves at the queries, and weights."""
        posterior = self.posterior
        for piece in posterior.pieces(self.queries):
            operators = []
            heaviest = posterior.fit.heaviest
            with full_precision():
                if posterior.is_dense:
                    kriged = krige(heaviest.factored, piece)
                    weight = kriging_weights(heaviest.factored, kriged).float()
                    sd = kriged.variance[:, 0, :, None].sqrt().float()
                    weights = [Weights(w, None, s) for w, s in zip(weight, sd)]
                else:
                    weights = []
                    for b, points in enumerate(piece):
                        local, index, _ = posterior.around(b, points, skip_self=False)
                        local = local.heaviest
                        kriged = krige(local.factored, points[:, None])
                        weight = kriging_weights(local.factored, kriged)[:, 0].float()
                        sd = kriged.variance[:, 0].sqrt().float()
                        weights.append(Weights(weight, index, sd))
            for b, points in enumerate(piece):
                operators.append((draws.features(self.kernels[b], points), weights[b]))
            yield operators

    @cached_property
    def _at_observed(self) -> list[Tensor]:
        return [draws.features(kernel, coords)
                for kernel, coords in zip(self.kernels, self.posterior.coords)]

    @torch.no_grad()
    def __call__(self, generators: Generators) -> Tensor:
        """One draw a generator: (S, N, C).

        Args:
            generators: one for each field, or any number where there is a single field.
        """
        posterior = self.posterior
        channels = self.root.shape[1]
        device = posterior.coords.device
        shared = posterior.fields == 1
        numbers = draws.coefficients(generators, channels).to(device)     # (S, F, C)
        numbers = numbers @ self.root.mT                                  # of their own field
        errors = self._measurement_errors(generators, channels)
        pieces = []
        for operators in self.kept if self.kept is not None else self._operators():
            columns = []
            for b, (waves, weights) in enumerate(operators):
                field, channel = divmod(b, posterior.folded)
                mine = slice(None) if shared else slice(field, field + 1)
                of = slice(channel, channel + 1) if posterior.folded > 1 else slice(None)
                own = numbers[mine, :, of]                                # (S, F, c)
                observed = self._at_observed[b] @ own
                if errors is not None:
                    observed = observed + errors[b][:, None] * self._errors[mine, :, of]
                columns.append(weights.residual(waves @ own, observed))
            if posterior.folded > 1:
                folded = posterior.folded
                columns = [torch.cat(columns[i : i + folded], dim=2)
                           for i in range(0, len(columns), folded)]
            pieces.append(torch.cat(columns, dim=0))
        return torch.cat(pieces, dim=1)

    def _measurement_errors(self, generators: Generators, channels: int) -> Tensor | None:
        """Draw what the measurements' noise was, for the first hypothesis: sd (B C, M)."""
        noise = self.posterior.fit.factored.hypotheses.noise
        if noise is None:
            return None
        count = self.posterior.coords.shape[1]
        self._errors = torch.stack(
            [torch.randn(count, channels, generator=g) for g in generators]
        ).to(noise.device)
        amplitude2 = self.posterior.fit.factored.hypotheses.amplitude2[:, :1]
        return (self.posterior.noise_variance / amplitude2).sqrt().float()


NoiseSource = Callable[[Generators], Tensor]
