"""Draws from the posterior: what the observations leave open.

Symbols: B fields, M observations, N queries, C channels, F features, S draws of all fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsefield.gaussian import draws
from sparsefield.gaussian.factor import full_precision
from sparsefield.gaussian.kernels import Kernel
from sparsefield.gaussian.solvers import (
    ErrorsFromAll,
    ErrorsFromNearest,
    FromAll,
    FromNearest,
)
from sparsefield.gaussian.watch import part_done

KEPT_NUMBERS = 1 << 26  # in what is kept for further draws at the same queries


@dataclass(frozen=True)
class Measured:
    """What draws need to know of the fields that were observed.

    Attributes:
        coords: (B, M, D). kernels: the heaviest of each. noise_sd: (B, M), relative to the
            amplitude, or None. channel_root: (B / folded, C, C), makes channels go together.
        folded: channels that are fields of their own, next to each other in B.
    """

    coords: Tensor
    kernels: list[Kernel]
    noise_sd: Tensor | None
    channel_root: Tensor
    folded: int

    def waves(self, points: Tensor) -> list[draws.Waves]:
        """Of every field, at (B, n, 2)."""
        return [draws.Waves(kernel, x) for kernel, x in zip(self.kernels, points)]


Operators = tuple[list[draws.Waves], ErrorsFromAll | ErrorsFromNearest]


def summed(waves: list[draws.Waves], numbers: Tensor) -> Tensor:
    """Random fields (B, s, n) of numbers (B, s, F)."""
    return torch.stack([each.fields(mine) for each, mine in zip(waves, numbers)])


class PosteriorNoise:
    """Draws of z with answer.mean + answer.sd * z from the posterior: Matheron's rule.

    A draw of the prior minus its own kriging is a draw of the error (Journel & Huijbregts 1978;
    Wilson et al. 2020, equation 4). Of unit variance at every point, correlated between points like
    the heaviest hypothesis and between channels like the field; 0 at an observation.

    Args:
        pieces: the queries (B, n, 2), in parts that memory holds.
        variogram: that of the first field, in words.
    """

    def __init__(self, measured: Measured, solver: FromAll | FromNearest, pieces: list[Tensor],
                 variogram: str):
        self.measured, self.solver, self.pieces = measured, solver, pieces
        self.variogram = variogram
        queries = sum(piece.shape[0] * piece.shape[1] for piece in pieces)
        self.keep = queries * (measured.coords.shape[1] + draws.FEATURES) <= KEPT_NUMBERS
        self._kept: dict[int, Operators] = {}

    @torch.no_grad()
    def __call__(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One draw a generator: (S, N, C).

        Args:
            generators: one for each field, or any number where there is a single field.
        """
        measured = self.measured
        fields, channels = measured.channel_root.shape[:2]
        device = measured.coords.device
        count = 2 * draws.WAVES + measured.coords.shape[2]
        numbers = draws.standard_normal(generators, count, channels).to(device)
        numbers = numbers.unflatten(0, (fields, -1))                      # (fields, d, F, C)
        with full_precision(device):
            numbers = numbers @ measured.channel_root[:, None].mT         # channels go together
            numbers = self._by_field(numbers)                             # (B, s, F)
            observed = summed(self._observed_waves, numbers)              # (B, s, M)
            if measured.noise_sd is not None:
                noise = draws.standard_normal(generators, observed.shape[2], channels).to(device)
                noise = self._by_field(noise.unflatten(0, (fields, -1)))
                observed = observed + noise * measured.noise_sd[:, None]
            found = []
            for i in range(len(self.pieces)):
                waves, errors = self._operators(i)
                found.append(errors(summed(waves, numbers), observed))
                part_done()
        return self._by_draw(torch.cat(found, dim=2))

    def _by_field(self, x: Tensor) -> Tensor:
        """(fields, draws, n, C) to (B, s, n): draws and the channels that are not folded in s."""
        x = x.unflatten(3, (self.measured.folded, -1)).permute(0, 3, 1, 4, 2)
        return x.flatten(2, 3).flatten(0, 1)

    def _by_draw(self, x: Tensor) -> Tensor:
        """(B, s, n) to (S, n, C): undoes it."""
        fields, channels = self.measured.channel_root.shape[:2]
        x = x.unflatten(0, (fields, self.measured.folded))
        x = x.unflatten(2, (-1, channels // self.measured.folded))
        x = x.permute(0, 2, 4, 1, 3)                # (fields, folded, d, c, n) to d, n, folded, c
        return x.flatten(3, 4).flatten(0, 1)

    @cached_property
    def _observed_waves(self) -> list[draws.Waves]:
        return self.measured.waves(self.measured.coords)

    def _operators(self, i: int) -> Operators:
        """Waves at a piece of the queries, and what makes errors of them there."""
        if i in self._kept:
            return self._kept[i]
        operators = self.measured.waves(self.pieces[i]), self.solver.errors(self.pieces[i])
        if self.keep:
            self._kept[i] = operators
        return operators
