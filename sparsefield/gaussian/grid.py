"""The posterior of many fields on one grid, whose observed points return: for training.

Nearly all of the work of kriging depends on places alone. A mask, the observed points that many
fields share, is factored once, and each kernel is brought to the grid when a field first needs it.
On a CPU fields are answered one by one, so that nothing depends on which come together. On a GPU,
where a call costs as much as its work and nothing may be waited for, many masks and all kernels are
answered by one product of matrices.

Symbols: B fields, M observations, C channels, P points of the grid, L further places, K kernels, G
masks that are answered together and n fields of each, U kernels in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield import hashed
from sparsefield.gaussian.draws import grid_root
from sparsefield.gaussian.fit import (
    correlation_root,
    covariance_of_channels,
    restricted_likelihood,
    weights,
)
from sparsefield.gaussian.kernels import BANK, candidates
from sparsefield.gaussian.kriging import (
    Mixture,
    Sites,
    closeness,
    contrast,
    full_precision,
    local_amplitude,
    of_rows,
)
from sparsefield.place import Domain, grid_coords

KEPT = 36  # masks: those in use and a few before
KEPT_BYTES = 1 << 31  # of them, and at most KEPT_SHARE of a GPU
KEPT_SHARE = 1 / 8
TOGETHER_BYTES = 1 << 29  # of the masks that a GPU answers together


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


class _OnPlaces(NamedTuple):
    """A kernel at the places, whatever the values: `whitened` (P + L, M - p) float32, `variance`
    (P + L,), and `precision` (M,) of the observations."""

    whitened: Tensor
    variance: Tensor
    precision: Tensor


class _Mask:
    """Observed points (M,) of places (P + L, 2), factored under every kernel.

    Args:
        shared: whether many fields have it.
    Attributes:
        log_det: (K,). onto_observed: A (M - p, p). onto: (P + L, p). near: (P + L, M), see
        `closeness`.
    """

    def __init__(self, places: Tensor, observed: Tensor, spacing: float, shared: bool):
        self.places, self.shared = places, shared
        coords = places[observed]
        self.kernels = candidates(BANK, len(observed))
        self.sites = Sites.of(self.kernels, coords)
        self.single = [self.sites.take([k]) for k in range(len(self.kernels))]
        self.log_det = self.sites.log_det()
        self.onto_observed = self.sites.parts[0][1].onto.float()
        self.onto = self.single[0].krige(places[:1]).onto.expand(len(places), -1)
        self.near = closeness(places, coords, spacing)
        self._on_places: dict[int, _OnPlaces] = {}

    def inverse(self, k: int) -> Tensor:
        """L^-1 (M - p, M - p) of a kernel, in the precision that it needs."""
        (_, factored), = self.single[k].parts
        return factored.inverse[0]

    def whiten(self, values: Tensor) -> Tensor:
        """L^-1 B y under all kernels, (n, K, M - p, C) of values (n, M, C), for a mask that is used
        once: without the inverses."""
        white = self.sites.whiten(values.movedim(0, 1).flatten(1))        # (K, M - p, n C)
        return white.unflatten(2, (len(values), -1)).permute(2, 0, 1, 3)

    def on_places(self, k: int) -> _OnPlaces:
        """A kernel at the places, computed when first asked for."""
        if k not in self._on_places:
            one = self.single[k]
            kriged = one.krige(self.places)
            self._on_places[k] = _OnPlaces(kriged.whitened[0].mT.contiguous(), kriged.variance[0],
                                           one.precision()[0])
        return self._on_places[k]

    @property
    def bytes(self) -> int:
        """Of what is large: grows as kernels are brought to the places."""
        brought = sum(one.whitened.nbytes for one in self._on_places.values())
        factors = 2 * sum(part.lower.nbytes for _, part in self.sites.parts)  # and their inverses
        return factors + self.near.nbytes + brought


class GridPosterior:
    """The fitted posterior of fields on a grid of height x width pixels: what `condition` gives,
    and a draw of each by Matheron's rule, whose prior comes from a root of its covariance.

    A pure function of what it is called with: on a CPU bit for bit, and field by field.
    """

    def __init__(self, height: int, width: int, device: torch.device):
        self.height, self.width = height, width
        self.grid = grid_coords(height, width, device)
        self.domain = Domain.of_grid(height, width)
        self.masks: OrderedDict[int, _Mask] = OrderedDict()
        self.most_bytes = float(KEPT_BYTES)
        self.together = device.type == "cuda"
        if self.together:
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
        with full_precision(values.device):
            masks = [self._mask(number, observed[b], None if cells is None else cells[b])
                     for b, number in enumerate(mask_ids)]
            self._forget(set(mask_ids))
            order, parts = [], []
            for some, fields in _groups(masks, self.together):
                order += fields
                index = _index(fields, values.device)
                shape = (len(some), -1)
                parts.append(self._answer(
                    some, observed[index].unflatten(0, shape),
                    values[index].unflatten(0, shape), None if seeds is None else seeds[index]))
            back = _index([order.index(b) for b in range(len(values))], values.device)
            return GridAnswer(*(torch.cat(column)[back] for column in zip(*parts)))

    def _mask(self, number: int, observed: Tensor, cells: Tensor | None) -> _Mask:
        if number in self.masks:
            self.masks.move_to_end(number)
            return self.masks[number]
        places = self.grid if cells is None else torch.cat([self.grid, cells.to(self.grid)])
        made = _Mask(places, observed, self.domain.spacing(len(observed)), number >= 0)
        if self.together:
            for k in range(len(made.kernels)):
                made.on_places(k)
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

    def _answer(
        self, masks: list[_Mask], observed: Tensor, values: Tensor, seeds: Tensor | None
    ) -> GridAnswer:
        """Of G masks with n fields each: observed (G, n, M), values (G, n, M, C), seeds (G n,)."""
        every = range(len(masks[0].kernels))
        if masks[0].shared or self.together:
            white = _whiten(masks, every, values)                         # (G, n, K, M - p, C)
        else:
            white = masks[0].whiten(values[0])[None]
        log_det = _stack([mask.log_det for mask in masks])[:, None]
        weight = weights(restricted_likelihood(white, log_det)).to(values)
        used: Sequence[int] = every
        if not self.together:
            used = weight.flatten(0, 1).amax(dim=0).nonzero()[:, 0].tolist()
            weight, white = weight[..., used], white[..., used, :, :]
        mixture = Mixture(weight, covariance_of_channels(white))

        variance, precision = (_stack([torch.stack([mask.on_places(k)[i] for k in used])
                                       for mask in masks])[:, None] for i in (1, 2))
        answer = mixture.answer(_level(masks, values), _change(masks, used, white), variance)
        loo = mixture.leave_one_out(values, _weigh(masks, used, white), precision)
        amplitude = local_amplitude(_stack([mask.near for mask in masks])[:, None], loo.z)
        drawn = values.new_empty(*values.shape[:2], 0, values.shape[3])
        if seeds is not None:
            drawn = self._draws(masks, used, mixture, observed, variance, seeds)
        return GridAnswer(*(x.flatten(0, 1) for x in (
            answer.mean, answer.sd * amplitude, answer.spread * amplitude, loo.sd, loo.z, drawn)))

    def _draws(
        self, masks: list[_Mask], used: Sequence[int], mixture: Mixture, observed: Tensor,
        variance: Tensor, seeds: Tensor,
    ) -> Tensor:
        """Prior fields minus their own kriging (Matheron), of unit variance: (G, n, P, C)."""
        heaviest = mixture.weight.argmax(dim=2)                           # (G, n)
        if not self.together:
            (first,), = heaviest.tolist()
            used, heaviest = [used[first]], torch.zeros_like(heaviest)
            mixture = Mixture(*(x[:, :, [first]] for x in mixture))
            variance = variance[:, :, [first]]
        groups, count, channels = *heaviest.shape, mixture.channels.shape[-1]
        points = len(self.grid)
        numbers = hashed.normal(seeds, points * channels).view(groups, count, 1, points, channels)
        numbers = numbers @ correlation_root(mixture.channels).mT         # (G, n, U, P, C)
        roots = [grid_root(masks[0].kernels[k], self.height, self.width, self.grid.device)
                 for k in used]
        fields = _applied(roots, numbers.permute(2, 3, 0, 1, 4).flatten(2))
        fields = fields.unflatten(2, (groups, count, channels)).permute(2, 3, 0, 1, 4)
        known = fields.gather(3, observed[:, :, None, :, None].expand(
            -1, -1, len(used), -1, channels))                             # (G, n, U, M, C)
        kriged = _level(masks, known) + _change(masks, used, _whiten(masks, used, known))
        errors = (fields - kriged[..., :points, :]) / variance[..., :points, None].sqrt()
        chosen = heaviest[..., None, None, None].expand(-1, -1, 1, points, channels)
        return errors.gather(2, chosen)[:, :, 0]


def _groups(masks: list[_Mask], together: bool) -> Iterator[tuple[list[_Mask], list[int]]]:
    """Masks that are answered together, and the fields of each in turn, equally many for all: some
    repeat their last one."""
    if not together:
        for b, mask in enumerate(masks):
            yield [mask], [b]
        return
    fields: dict[_Mask, list[int]] = {}
    for b, mask in enumerate(masks):
        fields.setdefault(mask, []).append(b)
    most = max(len(own) for own in fields.values())
    every = list(fields)
    step = max(1, TOGETHER_BYTES // every[0].bytes)
    for first in range(0, len(every), step):
        some = every[first : first + step]
        yield some, [own for mask in some
                         for own in fields[mask] + fields[mask][-1:] * (most - len(fields[mask]))]


def _index(numbers: list[int], device: torch.device) -> Tensor:
    """(n,) on a device, without waiting for it."""
    index = torch.tensor(numbers)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index


def _applied(operators: list[Tensor], x: Tensor) -> Tensor:
    """operators[i] @ x[i], float32: at once on a GPU; on a CPU one by one, and as rows, which it
    multiplies four times as fast as few columns."""
    if x.is_cuda:
        stacked = torch.stack(operators)
        return (stacked @ x.to(stacked)).float()
    rows = x.mT.contiguous()
    return torch.stack([(each.to(one) @ one.mT).float() for one, each in zip(operators, rows)]).mT


def _by_mask(operators: list[Tensor], x: Tensor) -> Tensor:
    """The operators of G masks under U kernels applied to (G, n, U, m, C)."""
    groups, count, used, _, channels = x.shape
    columns = x.permute(0, 2, 3, 1, 4).reshape(groups * used, -1, count * channels)
    result = _applied(operators, columns).unflatten(0, (groups, used))    # (G, U, m', n C)
    return result.unflatten(3, (count, channels)).permute(0, 3, 1, 2, 4)


def _whiten(masks: list[_Mask], used: Sequence[int], values: Tensor) -> Tensor:
    """L^-1 B y (G, n, U, M - p, C) of values (G, n, M, C), or (G, n, U, M, C)."""
    contrasts = contrast(_stacked([mask.onto_observed for mask in masks], values), values)
    if values.dim() == 4:
        contrasts = contrasts[:, :, None].expand(-1, -1, len(used), -1, -1)
    return _by_mask([mask.inverse(k) for mask in masks for k in used], contrasts)


def _change(masks: list[_Mask], used: Sequence[int], white: Tensor) -> Tensor:
    """What whitened contrasts add to the level at the places: (G, n, U, P + L, C)."""
    return _by_mask([mask.on_places(k).whitened for mask in masks for k in used], white)


def _weigh(masks: list[_Mask], used: Sequence[int], white: Tensor) -> Tensor:
    """P y: (G, n, U, M, C)."""
    weight = _by_mask([mask.inverse(k).mT for mask in masks for k in used], white)
    return of_rows(_stacked([mask.onto_observed for mask in masks], white), weight)


def _level(masks: list[_Mask], values: Tensor) -> Tensor:
    """What the pivots predict: (..., P + L, C) of values (..., M, C)."""
    onto = _stacked([mask.onto for mask in masks], values)
    return onto @ values[..., : onto.shape[-1], :]


def _stacked(parts: list[Tensor], like: Tensor) -> Tensor:
    """Of G masks (m, p), to be multiplied with (G, ..., M, C): (G, 1, ..., m, p)."""
    stacked = _stack(parts)
    return stacked.view(len(parts), *[1] * (like.dim() - 3), *stacked.shape[1:])


def _stack(parts: list[Tensor]) -> Tensor:
    """Beside each other; one alone is not copied."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)
