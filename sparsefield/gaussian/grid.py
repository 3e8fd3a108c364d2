"""The posterior of many fields on one grid, whose observed points return: for training.

Nearly all of the work of kriging depends on places alone. A mask, the observed points that many
fields share, is factored once and kept, and its fields are answered together.

Symbols: n fields of a mask, M observations, C channels, P points of the grid, L further places,
K kernels, U of them in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield import hashed
from sparsefield.gaussian.fit import (
    correlation_root,
    covariance_of_channels,
    one_thread,
    scores,
    weights,
)
from sparsefield.gaussian.kernels import BANK, candidates, grid_roots
from sparsefield.gaussian.kriging import (
    Kriged,
    Mixture,
    Sites,
    closeness,
    full_precision,
    local_amplitude,
)
from sparsefield.place import Domain, grid_coords

KEPT = 36  # masks: those in use and a few before
KEPT_BYTES = 1 << 31  # of them, and at most KEPT_SHARE of a GPU
KEPT_SHARE = 1 / 8


class GridAnswer(NamedTuple):
    """The posterior of B fields at the P pixel centres and L further places.

    Attributes:
        mean, sd: (B, P + L, C). spread: (B, P + L, 1), see sparsefield.gaussian.Answer.
        loo_sd, loo_z: (B, M, C), see sparsefield.gaussian.LeaveOneOut.
        draws: (B, P, C), z of one draw of each; empty if none were wanted.
    """

    mean: Tensor
    sd: Tensor
    spread: Tensor
    loo_sd: Tensor
    loo_z: Tensor
    draws: Tensor


class _Part(NamedTuple):
    """Some kernels of a mask: which, factored, at the places, and `precision` (U, M)."""

    rows: slice
    sites: Sites
    kriged: Kriged
    precision: Tensor

    def change(self, white: Tensor) -> Tensor:
        """What whitened contrasts (U, M - 1, F) add to the level at the places: (U, P + L, F)."""
        return (white.mT @ self.kriged.whitened).mT  # as rows: a CPU multiplies them faster


class _Mask:
    """Observed points (M,) of places (P + L, 2), factored under every kernel.

    Attributes:
        near: (P + L, M), see `closeness`.
    """

    def __init__(self, places: Tensor, observed: Tensor, spacing: float):
        self.places, self.observed = places, observed
        coords = places[observed]
        self.sites = Sites.of(candidates(BANK, len(observed)), coords)
        self.near = closeness(places, coords, spacing)
        self._parts: dict[int, _Part] = {}

    def parts(self, weight: Tensor) -> list[_Part]:
        """The kernels with weight (n, K) for any field: on a CPU one by one, each brought to the
        places when first needed. On a GPU, which is not to be waited for, all of them in one."""
        if weight.is_cuda:
            return [self._part(0, weight.shape[1])]
        return [self._part(k, 1) for k in weight.any(dim=0).nonzero()[:, 0].tolist()]

    def _part(self, first: int, count: int) -> _Part:
        if first not in self._parts:
            rows = range(first, first + count)
            sites = self.sites.take(list(rows))
            self._parts[first] = _Part(slice(rows.start, rows.stop), sites,
                                       sites.krige(self.places), sites.precision())
        return self._parts[first]

    @property
    def bytes(self) -> int:
        """Of what is large: grows as kernels are brought to the places."""
        brought = sum(part.kriged.whitened.nbytes for part in self._parts.values())
        factors = 2 * sum(part.lower.nbytes for _, part in self.sites.parts)  # and their inverses
        return factors + self.near.nbytes + brought


class GridPosterior:
    """The fitted posterior of fields on a grid of height x width pixels: what `condition` gives,
    and a draw of each by Matheron's rule, whose prior comes from a root of its covariance.

    A pure function of what it is called with; a field depends on the others by rounding alone.
    """

    def __init__(self, height: int, width: int, device: torch.device):
        self.height, self.width = height, width
        self.grid = grid_coords(height, width, device)
        self.domain = Domain.of_grid(height, width)
        self.masks: OrderedDict[int, _Mask] = OrderedDict()
        self.most_bytes = float(KEPT_BYTES)
        if device.type == "cuda":
            _, total = torch.cuda.mem_get_info(device)
            self.most_bytes = min(KEPT_BYTES, KEPT_SHARE * total)

    @torch.no_grad()
    def __call__(
        self, mask_ids: Sequence[int], observed: Tensor, values: Tensor,
        seeds: Tensor | None = None, cells: Tensor | None = None,
    ) -> GridAnswer:
        """The closed form of B fields.

        Args:
            mask_ids: B; equal numbers promise equal `observed` and `cells`, also between calls; -1:
                not shared. observed: (B, M) int64, indices of pixels. values: (B, M, C).
            seeds: (B,) int64 of the draws; None: none. cells: (B, L, 2), further places.
        """
        groups: dict[Hashable, list[int]] = {}
        for b, number in enumerate(mask_ids):
            groups.setdefault(number if number >= 0 else (number, b), []).append(b)
        rows: dict[int, tuple[Tensor, ...]] = {}
        with full_precision(values.device), one_thread():
            for fields in groups.values():
                b = fields[0]
                mask = self._mask(mask_ids[b], observed[b], None if cells is None else cells[b])
                own = torch.stack([values[b] for b in fields])
                drawn = None if seeds is None else torch.stack([seeds[b] for b in fields])
                answers = zip(*self._answer(mask, own, drawn), strict=True)
                rows.update(zip(fields, answers, strict=True))
        self._forget(set(mask_ids))
        return GridAnswer(*(torch.stack(column) for column in
                            zip(*(rows[b] for b in range(len(values))), strict=True)))

    def _mask(self, number: int, observed: Tensor, cells: Tensor | None) -> _Mask:
        if number in self.masks:
            self.masks.move_to_end(number)
            return self.masks[number]
        places = self.grid if cells is None else torch.cat([self.grid, cells.to(self.grid)])
        made = _Mask(places, observed, self.domain.spacing(len(observed)))
        if number >= 0:
            self.masks[number] = made
        return made

    def _forget(self, used: set[int]) -> None:
        """Drop masks that are not in use, the oldest first, until the others have room."""
        total = sum(mask.bytes for mask in self.masks.values())
        for number in [number for number in self.masks if number not in used]:
            if len(self.masks) <= KEPT and total <= self.most_bytes:
                return
            total -= self.masks.pop(number).bytes

    def _answer(self, mask: _Mask, values: Tensor, seeds: Tensor | None) -> GridAnswer:
        """Of n fields of a mask: values (n, M, C), seeds (n,)."""
        count = len(values)
        columns = mask.sites.whiten(values.movedim(0, 1).flatten(1))      # (K, M - 1, n C)
        white = _by_field(columns, count)                                 # (n, K, M - 1, C)
        weight = weights(scores(mask.sites, white)).to(values)
        every = Mixture(weight, covariance_of_channels(mask.sites, white))
        parts = mask.parts(weight)
        mixture = Mixture(*(_of(parts, x) for x in every))                # (n, U) of them
        change = torch.cat([part.change(columns[part.rows]) for part in parts])
        weighed = torch.cat([part.sites.weigh(columns[part.rows]) for part in parts])
        answer = mixture.answer(values[:, :1], _by_field(change, count),
                                torch.cat([part.kriged.variance for part in parts]))
        loo = mixture.leave_one_out(values, _by_field(weighed, count),
                                    torch.cat([part.precision for part in parts]))
        answer = answer.scaled(
            local_amplitude(mask.near, loo.z, every.rough(mask.sites.kernels)))
        drawn = values[:, :0] if seeds is None else self._draws(mask, every, seeds)
        return GridAnswer(*answer, loo.sd, loo.z, drawn)

    def _draws(self, mask: _Mask, mixture: Mixture, seeds: Tensor) -> Tensor:
        """Prior fields under the heaviest kernel of each minus their own kriging (Matheron), of
        unit variance: (n, P, C)."""
        points, count, channels = len(self.grid), len(seeds), mixture.channels.shape[-1]
        first = mixture.weight.argmax(dim=1, keepdim=True)
        heaviest = Mixture(torch.zeros_like(mixture.weight).scatter(1, first, 1.0),
                           mixture.channels)
        root = correlation_root(heaviest.mean(heaviest.channels))         # (n, C, C)
        numbers = hashed.normal(seeds, points * channels).view(count, points, channels) @ root.mT
        columns = numbers.movedim(0, 1).flatten(1)                        # (P, n C)
        parts, errors = mask.parts(heaviest.weight), []
        for part in parts:
            roots = grid_roots(part.sites.kernels, self.height, self.width, self.grid.device)
            fields = (columns.mT @ roots.mT).mT                           # (U, P, n C)
            known = fields[:, mask.observed]
            kriged = known[:, :1] + part.change(part.sites.whiten(known))
            sd = part.kriged.variance[:, :points, None].sqrt()
            errors.append((fields - kriged[:, :points]) / sd)
        chosen = Mixture(*(_of(parts, x) for x in heaviest))
        return chosen.mean(_by_field(torch.cat(errors), count))


def _by_field(x: Tensor, count: int) -> Tensor:
    """(U, m, n C) to (n, U, m, C)."""
    return x.unflatten(2, (count, -1)).permute(2, 0, 1, 3)


def _of(parts: list[_Part], x: Tensor) -> Tensor:
    """Of all kernels (n, K, ...) those of the parts (n, U, ...)."""
    return torch.cat([x[:, part.rows] for part in parts], dim=1)
