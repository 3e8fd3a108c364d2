"""Two ways to an answer: from all observations at once, or at each place from the nearest.

Symbols: B fields, M observations, n queries, C channels, k observations that a query is answered
from: all M of them, or the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
import torch
from torch import Tensor

from sparsefield.gaussian.answer import (
    Answer,
    LeaveOneOut,
    answer,
    combine,
    krige,
    kriging_weights,
    leave_one_out,
)
from sparsefield.gaussian.factor import Factored, full_precision
from sparsefield.gaussian.fit import Fit
from sparsefield.gaussian.watch import part_done

LOCAL_NEIGHBOURS = 64
BLOCK = 2048  # queries answered together from their neighbours: bounds memory, changes nothing
HELD = 1 << 24  # numbers in the matrices of queries answered together from all observations


@dataclass(frozen=True)
class ErrorsFromAll:
    """How random fields are off their own kriging, as f_q - f_1 - (L^-1 c)' L^-1 (f_i - f_1).

    Attributes:
        inverse: (B, M - 1, M - 1), L^-1. whitened: (B, M - 1, n), L^-1 c. sd: (B, n), relative to
            the amplitude.
    """

    inverse: Tensor
    whitened: Tensor
    sd: Tensor

    def __call__(self, at_queries: Tensor, at_observed: Tensor) -> Tensor:
        """Of unit variance (B, S, n), of S fields at queries (B, S, n), observations (B, S, M)."""
        first = at_observed[:, :, :1]
        known = (at_observed[:, :, 1:] - first) @ self.inverse.mT @ self.whitened
        return (at_queries - first - known) / self.sd[:, None]


@dataclass(frozen=True)
class ErrorsFromNearest:
    """How random fields are off their own kriging, as f_q - sum of weight * f_observed.

    Attributes:
        weight: (B, n, k), of sum 1. index: (B, n, k), of which observations. sd: (B, n).
    """

    weight: Tensor
    index: Tensor
    sd: Tensor

    def __call__(self, at_queries: Tensor, at_observed: Tensor) -> Tensor:
        """Of unit variance (B, S, n), of S fields at queries (B, S, n), observations (B, S, M)."""
        known = torch.stack([(f[:, index] * weight).sum(dim=2) for f, index, weight
                             in zip(at_observed, self.index, self.weight)])
        return (at_queries - known) / self.sd[:, None]


class FromAll:
    """Exact, by one factorisation.

    Args:
        fit: of B fields. spacing: between observations, in sides of the square.
    """

    def __init__(self, fit: Fit, spacing: float):
        self.fit, self.spacing = fit, spacing
        self.at_once = max(64, HELD // max(1, len(fit.weight) * fit.values.shape[1]))

    @cached_property
    def leave_one_out(self) -> LeaveOneOut:
        return leave_one_out(self.fit)

    def answer(self, queries: Tensor) -> Answer:
        """At (B, n, 2)."""
        return answer(self.fit, queries, self.leave_one_out.surprise, self.spacing)

    @cached_property
    def _heaviest(self) -> Factored:
        return self.fit.heaviest().factored

    def errors(self, queries: Tensor) -> ErrorsFromAll:
        """Under the heaviest hypothesis, at (B, n, 2)."""
        kriged = krige(self._heaviest, queries)
        return ErrorsFromAll(self._heaviest.inverse.float(), kriged.whitened.float(),
                             kriged.variance.sqrt().float())


class FromNearest:
    """Each query from its LOCAL_NEIGHBOURS nearest observations, with what was fitted to the field.

    Args:
        fit: of B fields, to some of their observations. coords: (B, M, 2). values: (B, M, C).
        noise_variance: (B, M) or None. spacing: between observations, in sides of the square.
    """

    at_once = BLOCK

    def __init__(self, fit: Fit, coords: Tensor, values: Tensor, noise_variance: Tensor | None,
                 spacing: float):
        self.fit, self.spacing = fit, spacing
        self.coords, self.values, self.noise_variance = coords, values, noise_variance
        self.trees = [scipy.spatial.cKDTree(x.cpu().numpy()) for x in coords]

    def around(self, b: int, points: Tensor, own: Tensor | None = None) -> tuple[Fit, Tensor]:
        """The fit of field b around points (n, 2), n fields of their own, and their index (n, k).

        Args:
            own: (n,) the observation that is left out of each.
        """
        count = LOCAL_NEIGHBOURS + (own is not None)
        _, index = self.trees[b].query(points.cpu().numpy(), k=np.arange(count) + 1)
        if own is not None:
            others = index != own.cpu().numpy()[:, None]
            others[others.all(axis=1), -1] = False  # more observations at the place than these
            index = index[others].reshape(len(index), -1)
        index = torch.from_numpy(index).to(points.device)
        noise = None if self.noise_variance is None else self.noise_variance[b][index]
        return self.fit.near(b, self.coords[b][index], self.values[b][index], noise), index

    @cached_property
    def leave_one_out(self) -> LeaveOneOut:
        fields = []
        for b, coords in enumerate(self.coords):
            with full_precision(coords.device):
                parts = [self._without_itself(b, rows) for rows in
                         torch.arange(len(coords), device=coords.device).split(BLOCK)]
            fields.append([torch.cat(column) for column in zip(*parts)])
        return LeaveOneOut(*(torch.stack(column) for column in zip(*fields)))

    def _without_itself(self, b: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points, values = self.coords[b, rows], self.values[b, rows]
        fit, _ = self.around(b, points, own=rows)
        others = combine(fit, krige(fit.factored, points[:, None]))
        part_done()
        mean, variance = others.mean[:, 0], others.sd[:, 0] ** 2
        if self.noise_variance is not None:
            variance = variance + self.noise_variance[b, rows, None]
        sd = variance.sqrt()
        return mean, sd, (values - mean) / sd

    def answer(self, queries: Tensor) -> Answer:
        """At (B, n, 2)."""
        fields = []
        for b, points in enumerate(queries):
            fit, index = self.around(b, points)
            surprise = self.leave_one_out.surprise[b][index]
            here = answer(fit, points[:, None], surprise, self.spacing)
            fields.append([x[:, 0] for x in (here.mean, here.sd, here.spread)])
        return Answer(*(torch.stack(column) for column in zip(*fields)))

    def errors(self, queries: Tensor) -> ErrorsFromNearest:
        """Under the heaviest hypothesis, at (B, n, 2)."""
        fields = []
        for b, points in enumerate(queries):
            fit, index = self.around(b, points)
            factored = fit.heaviest().factored
            kriged = krige(factored, points[:, None])
            weight = kriging_weights(factored, kriged)[:, 0].float()
            fields.append((weight, index, kriged.variance[:, 0].sqrt().float()))
        return ErrorsFromNearest(*(torch.stack(column) for column in zip(*fields)))
