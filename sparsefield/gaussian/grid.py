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
    promising,
    scores,
    screened_on,
    weights,
)
from sparsefield.gaussian.kernels import (
    BANK,
    TIMED,
    WAVES,
    Kernel,
    Waves,
    candidates,
    grid_roots,
    isotropic,
)
from sparsefield.gaussian.kriging import (
    Factored,
    Kriged,
    Mixture,
    Sites,
    answered_at_once,
    closeness,
    full_precision,
    local_amplitude,
)
from sparsefield.gaussian.threads import one_thread
from sparsefield.place import Domain, Frames, grid_coords

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
    """Some kernels of a mask: factored, at the places, and `precision` (U, M)."""

    sites: Sites
    kriged: Kriged
    precision: Tensor

    def change(self, white: Tensor) -> Tensor:
        """What whitened contrasts (U, M - 1, F) add to the level at the places: (U, P + L, F)."""
        return (white.mT @ self.kriged.whitened).mT  # as rows: a CPU multiplies them faster


class _Mask:
    """Observed points (M,) of places (P + L, 2), factored under the kernels that fields need.

    Attributes:
        near: (P + L, M), see `closeness`. some, few: points on which kernels are screened, and
            these factored; None on a GPU, which is not to be waited for.
    """

    def __init__(self, bank: tuple[Kernel, ...], places: Tensor, observed: Tensor,
                 spacing: float):
        self.places, self.observed = places, observed
        coords = places[observed]
        self.coords, self.kernels = coords, candidates(bank, len(observed))
        self.each: dict[int, Factored] = {}
        self.near = closeness(places, coords, spacing)
        self.some = None if coords.is_cuda else screened_on(self.kernels, coords)
        self.few = None if self.some is None else Sites.of(self.kernels, coords[self.some])
        self._parts: dict[tuple[int, ...], _Part] = {}

    def sites(self, rows: Sequence[int]) -> Sites:
        """Under some of the kernels, factored when first needed."""
        if missing := [k for k in rows if k not in self.each]:
            made = Sites.of(tuple(self.kernels[k] for k in missing), self.coords)
            self.each.update(zip(missing, made.one_by_one(), strict=True))
        return Sites(tuple(self.kernels[k] for k in rows),
                     [([i], self.each[k]) for i, k in enumerate(rows)])

    def screened(self, values: Tensor) -> tuple[list[int], Tensor | None]:
        """The kernels that may have weight for fields (n, M, C): R of them, and for which field
        each may, (n, R); None: for all."""
        if self.some is None or self.few is None:
            return list(range(len(self.kernels))), None
        score = scores(self.few, _whitened(self.few, values[:, self.some]))
        may = torch.zeros_like(score, dtype=torch.bool).scatter_(1, promising(score), True)
        rows = may.any(dim=0).nonzero()[:, 0]
        return rows.tolist(), may[:, rows]

    def parts(self, rows: list[int], weight: Tensor) -> list[tuple[slice, _Part]]:
        """Those of the kernels `rows` with weight (n, R) for any field, and which: on a CPU one by
        one, each brought to the places when first needed; on a GPU all of them in one."""
        if weight.is_cuda:
            return [(slice(0, len(rows)), self._part(tuple(rows)))]
        return [(slice(r, r + 1), self._part((rows[r],)))
                for r in weight.any(dim=0).nonzero()[:, 0].tolist()]

    def _part(self, rows: tuple[int, ...]) -> _Part:
        if rows not in self._parts:
            sites, places = self.sites(rows), [self.places]
            if not self.places.is_cuda:
                places = self.places.split(answered_at_once(len(rows) * len(self.observed)))
            pieces = zip(*(sites.krige(piece) for piece in places), strict=True)
            kriged = Kriged(*(torch.cat(column, dim=-1) for column in pieces))
            self._parts[rows] = _Part(sites, kriged, sites.precision())
        return self._parts[rows]

    @property
    def bytes(self) -> int:
        """Of what is large: grows as kernels are brought to the places."""
        brought = sum(part.kriged.whitened.nbytes for part in self._parts.values())
        factors = 2 * sum(each.lower.nbytes for each in self.each.values())  # and their inverses
        return factors + self.near.nbytes + brought


class GridPosterior:
    """The fitted posterior of fields on a grid of height x width pixels: what `condition` gives,
    and a draw of each by Matheron's rule, whose prior comes from a root of its covariance.

    A pure function of what it is called with; a field depends on the others by rounding alone.

    Args:
        frames: T of a sequence at even times, which is then one field of T P points, frame after
            frame, and its kernels have no direction. step: sides of the domain that time counts as
            from frame to frame.
    """

    def __init__(self, height: int, width: int, device: torch.device, frames: int = 1,
                 step: float = 0.0):
        self.height, self.width, self.frames, self.step = height, width, frames, step
        self.grid = grid_coords(height, width, device)
        self.bank = BANK if frames == 1 else isotropic(TIMED)  # a direction gains nothing in time
        if frames > 1:
            self.grid = self._in_time(Frames(frames).in_time(self.grid.repeat(frames, 1, 1))[0])
        self.domain = Domain.of_grid(height, width)
        self.masks: OrderedDict[Hashable, _Mask] = OrderedDict()
        self.most_bytes = float(KEPT_BYTES)
        if device.type == "cuda":
            _, total = torch.cuda.mem_get_info(device)
            self.most_bytes = min(KEPT_BYTES, KEPT_SHARE * total)

    @torch.no_grad()
    def __call__(
        self, mask_ids: Sequence[Hashable], observed: Tensor, values: Tensor,
        seeds: Tensor | None = None, cells: Tensor | None = None,
    ) -> GridAnswer:
        """The closed form of B fields.

        Args:
            mask_ids: B; equal ones promise equal `observed` and `cells`, also between calls; -1:
                not shared. observed: (B, M) int64, indices of pixels. values: (B, M, C).
            seeds: (B,) int64 of the draws; None: none. cells: (B, L, 2), further places; of
                sequences (B, L, 3), with their time in steps.
        """
        groups: dict[Hashable, list[int]] = {}
        for b, number in enumerate(mask_ids):
            groups.setdefault(number if number != -1 else (number, b), []).append(b)
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

    def _in_time(self, places: Tensor) -> Tensor:
        """Places in space and time (N, 3) as the kernels see them (N, 4)."""
        still = torch.zeros_like(places[:, :1])
        return torch.cat([places[:, :2], still, places[:, 2:] * self.step], dim=1)

    def _mask(self, number: Hashable, observed: Tensor, cells: Tensor | None) -> _Mask:
        if number in self.masks:
            self.masks.move_to_end(number)
            return self.masks[number]
        places = self.grid
        if cells is not None:
            cells = cells.to(self.grid)
            places = torch.cat([places, self._in_time(cells) if self.frames > 1 else cells])
        made = _Mask(self.bank, places, observed, self.domain.spacing(len(observed)))
        if number != -1:
            self.masks[number] = made
        return made

    def _forget(self, used: set[Hashable]) -> None:
        """Drop masks that are not in use, the oldest first, until the others have room."""
        total = sum(mask.bytes for mask in self.masks.values())
        for number in [number for number in self.masks if number not in used]:
            if len(self.masks) <= KEPT and total <= self.most_bytes:
                return
            total -= self.masks.pop(number).bytes

    def _answer(self, mask: _Mask, values: Tensor, seeds: Tensor | None) -> GridAnswer:
        """Of n fields of a mask: values (n, M, C), seeds (n,)."""
        count, (rows, may) = len(values), mask.screened(values)
        sites = mask.sites(rows)
        columns = sites.whiten(values.movedim(0, 1).flatten(1))           # (R, M - 1, n C)
        white = _by_field(columns, count)                                 # (n, R, M - 1, C)
        score = scores(sites, white)
        weight = weights(score if may is None else score.masked_fill(~may, -torch.inf)).to(values)
        every = Mixture(weight, covariance_of_channels(sites, white))
        parts = mask.parts(rows, weight)
        mixture = Mixture(*(torch.cat([x[:, where] for where, _ in parts], dim=1)
                            for x in every))                              # (n, U) of them
        change = torch.cat([part.change(columns[where]) for where, part in parts])
        weighed = torch.cat([part.sites.weigh(columns[where]) for where, part in parts])
        answer = mixture.answer(values[:, :1], _by_field(change, count),
                                torch.cat([part.kriged.variance for _, part in parts]))
        loo = mixture.leave_one_out(values, _by_field(weighed, count),
                                    torch.cat([part.precision for _, part in parts]))
        answer = answer.scaled(local_amplitude(mask.near, loo.z, every.rough(sites.kernels)))
        drawn = values[:, :0] if seeds is None else self._draws(mask, rows, every, seeds)
        return GridAnswer(*answer, loo.sd, loo.z, drawn)

    def _draws(self, mask: _Mask, rows: list[int], mixture: Mixture, seeds: Tensor) -> Tensor:
        """Prior fields under the heaviest kernel of each minus their own kriging (Matheron), of
        unit variance: (n, P, C)."""
        points, count, channels = len(self.grid), len(seeds), mixture.channels.shape[-1]
        first = mixture.weight.argmax(dim=1, keepdim=True)
        heaviest = Mixture(torch.zeros_like(mixture.weight).scatter(1, first, 1.0),
                           mixture.channels)
        root = correlation_root(heaviest.mean(heaviest.channels))         # (n, C, C)
        size = points if self.frames == 1 else points + 2 * WAVES + self.grid.shape[1]
        numbers = hashed.normal(seeds, size * channels).view(count, size, channels) @ root.mT
        drawn = torch.empty_like(numbers[:, :points])
        for where, part in mask.parts(rows, heaviest.weight):
            mine: Tensor | slice = slice(None)
            if not seeds.is_cuda:  # those whose heaviest kernel is here
                mine = heaviest.weight[:, where].any(dim=1).nonzero()[:, 0]
            columns = numbers[mine].movedim(0, 1).flatten(1)              # (P, m C)
            fields = self._prior(part.sites.kernels, columns)             # (U, P, m C)
            known = fields[:, mask.observed]
            kriged = known[:, :1] + part.change(part.sites.whiten(known))
            errors = (fields - kriged[:, :points]) / part.kriged.variance[:, :points, None].sqrt()
            chosen = heaviest.weight[mine][:, where, None, None]          # (m, U, 1, 1)
            drawn[mine] = (chosen * _by_field(errors, len(chosen))).sum(dim=1)
        return drawn

    def _prior(self, kernels: tuple[Kernel, ...], columns: Tensor) -> Tensor:
        """Fields (U, P, F) of columns of N(0, 1): of sequences from waves, whose root would be too
        large."""
        if self.frames == 1:
            roots = grid_roots(kernels, self.height, self.width, self.grid.device)
            return (columns.mT @ roots.mT).mT
        own, waves = columns.split([len(self.grid), len(columns) - len(self.grid)])
        return torch.stack([Waves(kernel, self.grid).fields(waves.mT).mT + kernel.nugget**0.5 * own
                            for kernel in kernels])


def _by_field(x: Tensor, count: int) -> Tensor:
    """(U, m, n C) to (n, U, m, C)."""
    return x.unflatten(2, (count, -1)).permute(2, 0, 1, 3)


def _whitened(sites: Sites, values: Tensor) -> Tensor:
    """Contrasts of fields (n, M, C): (n, K, M - 1, C)."""
    return _by_field(sites.whiten(values.movedim(0, 1).flatten(1)), len(values))
