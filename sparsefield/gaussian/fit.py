"""Which Gaussian field the observations come from: restricted likelihood over a bank of variograms.

Without noise the amplitude of a variogram is known in closed form. With noise it is not: a kernel
is tried with a ladder of amplitudes, and has the likelihood of them all and their mean.

Symbols: B fields, M observations, C channels, K kernels, R kept hypotheses, each about one field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsefield.gaussian.factor import Factored, Hypotheses, factor
from sparsefield.gaussian.kernels import Kernel, without_directions

KEPT = 4  # kernels that answer at most; the others have no weight
LEAST_WEIGHT = 0.02
PRIOR_AMPLITUDE2 = 0.05  # worth one observation, so that one point alone has an uncertainty
LADDER = 3.0 ** -torch.arange(-1.0, 8.0)  # amplitudes tried with noise, by that without any
DISTANT = 128  # observations, at most, that tell how far they lie apart
LEAST_DISTANCE = 0.01  # mean gamma between observations below which they tell no amplitude
AT_ONCE = 1 << 25  # numbers in the matrices that are factored together


@dataclass(frozen=True)
class Mixture:
    """Which hypotheses answer for each field, and how large the field is under them.

    Attributes:
        hypotheses: R of them, one to KEPT for a field, heaviest first.
        weight: (R,), of sum 1 over those of a field.
        channels: (R, C, C) covariance between channels: the field's is that times gamma.
        values: (B, M, C), as given.
    """

    hypotheses: Hypotheses
    weight: Tensor
    channels: Tensor
    values: Tensor

    @property
    def amplitude2(self) -> Tensor:
        """(R, C), of every channel."""
        return self.channels.diagonal(dim1=1, dim2=2)

    def heaviest_rows(self) -> Tensor:
        """(B,), which hypothesis of each field is the heaviest."""
        every = torch.arange(len(self.values), device=self.weight.device)
        return torch.searchsorted(self.hypotheses.field, every)

    def mix(self, x: Tensor) -> Tensor:
        """Weighted mean over the hypotheses of each field: (R, n, C) to (B, n, C)."""
        mean = x.new_zeros(len(self.values), *x.shape[1:])
        return mean.index_add_(0, self.hypotheses.field, self.weight[:, None, None] * x)


@dataclass(frozen=True)
class Fit(Mixture):
    """The Gaussian field of each batch element, as its observations have chosen it.

    Attributes:
        factored: the observed places under the R hypotheses.
        white: (R, M - 1, C) increments of the values, whitened.
    """

    factored: Factored
    white: Tensor

    def heaviest(self) -> Fit:
        """The same with one hypothesis for each field."""
        rows = self.heaviest_rows()
        factored = self.factored.take(rows)
        return Fit(factored.hypotheses, torch.ones_like(self.weight[rows]), self.channels[rows],
                   self.values, factored, self.white[rows])

    def at_all(self, coords: Tensor, values: Tensor, noise_variance: Tensor | None) -> Fit:
        """The same hypotheses for the same fields, on other observations of theirs."""
        return self._on(torch.arange(len(self.weight)), self.hypotheses.field, coords, values,
                        noise_variance)

    def near(
        self, field: int, coords: Tensor, values: Tensor, noise_variance: Tensor | None
    ) -> Fit:
        """The hypotheses about one field, on n subsets of its observations: a fit of n fields.

        Args:
            coords: (n, k, 2). values: (n, k, C). noise_variance: (n, k) or None.
        """
        mine = (self.hypotheses.field == field).nonzero()[:, 0]
        which = torch.arange(len(coords), device=mine.device).repeat_interleave(len(mine))
        return self._on(mine.repeat(len(coords)), which, coords, values, noise_variance)

    def _on(self, rows: Tensor, field: Tensor, coords: Tensor, values: Tensor,
            noise_variance: Tensor | None) -> Fit:
        factored = factor(replace(self.hypotheses.take(rows), field=field), coords, noise_variance)
        white = factored.whiten(values)
        return Fit(factored.hypotheses, self.weight[rows].to(white),
                   self.channels[rows].to(white), values, factored, white)

    def describe(self, field: int = 0) -> str:
        """The fitted variogram in words: the kernels with weight, the heaviest first."""
        if self.values.shape[1] == 1:
            return "one point: nothing to fit, isotropic variograms of several powers alike"
        mine = self.hypotheses.field == field
        kernels, weights = self.hypotheses.kernel[mine].tolist(), self.weight[mine].tolist()
        return "; ".join(f"{self.hypotheses.kernels[kernel].describe()} ({weight:.0%})"
                         for kernel, weight in zip(kernels, weights))


def fit(coords: Tensor, values: Tensor, noise_variance: Tensor | None,
        kernels: tuple[Kernel, ...]) -> Fit:
    """The best Gaussian field for observations.

    Args:
        coords: (B, M, 2) in sides of the unit square, M >= 1.
        values: (B, M, C), of about unit size.
        noise_variance: (B, M) of the noise in the values, with C = 1; None: there is none.
    """
    kernels = without_directions(kernels, coords.shape[1])
    every = Hypotheses.every(kernels, len(coords), coords.device)
    if noise_variance is not None:
        score, amplitude2 = climb(every, coords, values, noise_variance)
        rows, weight = choose(score)
        chosen = replace(every.take(rows), amplitude2=amplitude2.flatten()[rows])
        return _fit(factor(chosen, coords, noise_variance), weight, values)
    if coords.shape[1] ** 2 * len(every.kernel) <= AT_ONCE:
        factored = factor(every, coords)
        white = factored.whiten(values)
        rows, weight = choose(scores(factored, white).unflatten(0, (len(values), -1)))
        return _fit(factored.take(rows), weight, values, white[rows])
    rows, weight = choose(score_all(every, coords, values))
    return _fit(factor(every.take(rows), coords), weight, values)


def _fit(
    chosen: Factored, weight: Tensor, values: Tensor, white: Tensor | None = None
) -> Fit:
    white = chosen.whiten(values) if white is None else white
    if chosen.hypotheses.amplitude2 is None:
        channels = covariance_of_channels(white)
    else:
        eye = torch.eye(values.shape[2]).to(white)
        channels = chosen.hypotheses.amplitude2[:, None, None].to(white) * eye
    return Fit(chosen.hypotheses, weight.to(white), channels, values, chosen, white)


def covariance_of_channels(white: Tensor) -> Tensor:
    """(R, C, C) of whitened increments (R, M - 1, C), at the best amplitude of every channel."""
    eye = torch.eye(white.shape[2]).to(white)
    return (white.mT @ white + PRIOR_AMPLITUDE2 * eye) / (white.shape[1] + 1)


def scores(factored: Factored, white: Tensor) -> Tensor:
    """Restricted log likelihood of each hypothesis: (R,) float64."""
    return restricted_likelihood(white, factored.log_det(), factored.hypotheses.amplitude2)


def restricted_likelihood(
    white: Tensor, log_det: Tensor, amplitude2: Tensor | None = None
) -> Tensor:
    """Restricted log likelihood of hypotheses, up to a constant: (...,) float64.

    PRIOR_AMPLITUDE2 counts as the square of one observation more.

    Args:
        white: (..., M - 1, C) whitened increments. log_det: (...,) of their covariance, float64.
        amplitude2: (...,), or None for the best value of each.
    """
    count = white.shape[-2] + 1
    square = white.double().square().sum(dim=-2).mean(dim=-1) + PRIOR_AMPLITUDE2
    if amplitude2 is None:  # that of one observation more is left out, as in any case alike
        return -((count - 1) * (square / count).log() + log_det) / 2
    return -(square / amplitude2 + count * amplitude2.log() + log_det) / 2


def score_all(hypotheses: Hypotheses, coords: Tensor, values: Tensor,
              noise_variance: Tensor | None = None) -> Tensor:
    """Scores (B, K) of all kernels, in parts that memory holds."""
    parts = torch.arange(len(hypotheses.kernel), device=coords.device)
    found = []
    for rows in parts.split(max(1, AT_ONCE // coords.shape[1] ** 2)):
        factored = factor(hypotheses.take(rows), coords, noise_variance)
        found.append(scores(factored, factored.whiten(values)))
    return torch.cat(found).unflatten(0, (len(values), -1))


def climb(hypotheses: Hypotheses, coords: Tensor, values: Tensor,
          noise_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Likelihood of each kernel over the LADDER of amplitudes, and its expected amplitude.

    Returns:
        score and amplitude2, both (B, K) float64.
    """
    some = coords[:, :: -(-coords.shape[1] // DISTANT)]
    apart = hypotheses.variogram(some, some).mean(dim=(1, 2)).clamp_min(LEAST_DISTANCE)
    variance = values.var(dim=(1, 2), correction=0)[hypotheses.field]
    level = variance / apart + PRIOR_AMPLITUDE2 / coords.shape[1]         # (B K,)
    tried = level.double()[:, None] * LADDER.to(level)                    # (B K, A)
    score = torch.stack([
        score_all(replace(hypotheses, amplitude2=amplitude2), coords, values, noise_variance)
        for amplitude2 in tried.T
    ], dim=2)                                                             # (B, K, A)
    expected = (score.softmax(dim=2) * tried.view_as(score)).sum(dim=2)
    return score.logsumexp(dim=2), expected


def correlation_root(covariance: Tensor) -> Tensor:
    """(..., C, C) float32: times independent numbers of unit variance those that go together."""
    covariance = covariance.double()
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return torch.linalg.cholesky(covariance / (sd[..., :, None] * sd[..., None, :])).float()


def heaviest_kernels(score: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, R), of sum 1, some 0, and the kernels (B, R) that they are of, heaviest first.

    Args:
        score: (B, K), R = min(K, KEPT).
    """
    weight, kernel = score.softmax(dim=1).topk(min(KEPT, score.shape[1]), dim=1)
    weight = weight * (weight >= weight[:, :1].clamp(max=LEAST_WEIGHT))
    return weight / weight.sum(dim=1, keepdim=True), kernel


def choose(score: Tensor) -> tuple[Tensor, Tensor]:
    """Which hypotheses answer, and with what weights.

    Args:
        score: (B, K).
    Returns:
        rows into (B K,), by field and heaviest first, and weights (R,).
    """
    weight, kernel = heaviest_kernels(score)
    fields, kernels = score.shape
    rows = kernel + kernels * torch.arange(fields, device=kernel.device)[:, None]
    return rows[weight > 0], weight[weight > 0]
