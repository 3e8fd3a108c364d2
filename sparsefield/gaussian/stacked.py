"""Closed-form answers of many fields at once, for devices where every call costs as much as work.

The same as `sparsefield.gaussian.layouts`, whose classes go field by field: here the layouts in use
lie next to each other in memory, and a batch of fields of different layouts is answered by one
product of matrices for each step of the way. On a GPU a field then costs a hundredth of the calls;
on a CPU it would be copies alone. What rounding does to a field depends on those it comes with.

Symbols: B fields, M observations, C channels, P points of the grid, L further places, K kernels of
the bank, R hypotheses that are kept of a field.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsefield.gaussian.answer import (
    amplitude_around,
    answer_of,
    krige,
    left_out,
    precisions,
)
from sparsefield.gaussian.draws import grid_root
from sparsefield.gaussian.factor import Hypotheses, full_precision
from sparsefield.gaussian.fit import (
    Mixture,
    correlation_root,
    covariance_of_channels,
    heaviest_kernels,
    restricted_likelihood,
)
from sparsefield.gaussian.kernels import BANK
from sparsefield.gaussian.layouts import GridAnswer, Layout
from sparsefield.hashed import normal

KEPT_BYTES = 1 << 33  # of layouts, and at most KEPT_SHARE of a GPU; those of one batch always
KEPT_SHARE = 1 / 8
FIRST = 32  # layouts that there is room for at first


class StackedPosteriors:
    """The fitted posteriors of fields on a grid of height x width pixels, a batch at a time.

    Args:
        grid: (P, 2), on the device that computes. further: places off the grid (1, L, 2), given
            the observed ones (1, M, 2); None: none.
    """

    def __init__(self, height: int, width: int, grid: Tensor,
                 further: Callable[[Tensor], Tensor] | None = None):
        self.height, self.width = height, width
        self.grid, self.points, self.further = grid, len(grid), further
        self.slots: OrderedDict[int, int] = OrderedDict()  # of layouts, the oldest first
        self.stacks: tuple[Tensor, ...] = ()
        self.roots: Tensor | None = None
        self.kernels = BANK  # of which few observations can tell only some

    @torch.no_grad()
    def __call__(
        self, layouts: Sequence[int], observed: Tensor, values: Tensor,
        seeds: Tensor | None,
    ) -> GridAnswer:
        """The closed forms of B fields, each part with a first axis of them.

        Args:
            layouts: B; equal numbers promise equal `observed`, also between calls.
            observed: (B, M) int64. values: (B, M, C) in [-1, 1].
            seeds: (B,) int64, of one draw a field; None: no draws.
        """
        with full_precision(values.device):
            slot = self._slots(layouts, observed)
            inverse, log_det, precision, whitened, variance, near = self.stacks
            increments = values[:, 1:] - values[:, :1]
            white = inverse[slot] @ increments[:, None]                   # (B, K, M - 1, C)
            weight, kernel = heaviest_kernels(restricted_likelihood(white, log_det[slot]))
            each = torch.arange(len(values), device=values.device)[:, None]
            white = white[each, kernel].flatten(0, 1)                     # (B R, M - 1, C)
            chosen = (slot[:, None].expand_as(kernel).flatten(), kernel.flatten())
            field = each.expand_as(kernel).flatten()
            mixture = Mixture(Hypotheses(self.kernels, chosen[1], field),
                              weight.flatten().to(white), covariance_of_channels(white), values)
            on_places = whitened[chosen]                                  # (B R, P + L, M - 1)
            of_chosen = inverse[chosen]                                   # (B R, M - 1, M - 1)
            answer = answer_of(mixture, on_places @ white, variance[chosen])
            loo = left_out(mixture, of_chosen.mT @ white, precision[chosen])
            amplitude = amplitude_around(near[slot], loo.surprise)
            draws = answer.mean[:, :0]
            if seeds is not None:
                first = slice(None, None, kernel.shape[1])                # the heaviest of a field
                draws = self._draws(
                    mixture.channels[first], kernel[:, 0], observed, of_chosen[first],
                    on_places[first, : self.points], variance[chosen][first, : self.points], seeds,
                )
        return GridAnswer(answer.mean, answer.sd * amplitude, answer.spread * amplitude, loo.sd,
                          loo.surprise, draws)

    def _slots(self, layouts: Sequence[int], observed: Tensor) -> Tensor:
        """(B,), where in the stacks the layouts lie; new ones are factored."""
        needed = dict(zip(layouts, observed))
        for layout in needed:
            if layout in self.slots:
                self.slots.move_to_end(layout)
        for layout, points in needed.items():
            if layout not in self.slots:
                self._add(layout, points, len(needed))
        return torch.tensor([self.slots[layout] for layout in layouts], device=observed.device)

    def _add(self, layout: int, observed: Tensor, needed: int) -> None:
        """Factor a layout, at a free place or where the one not used for longest is."""
        made, slot = self._layout(observed), len(self.slots)
        room = len(self.stacks[0]) if self.stacks else 0
        most = max(needed, kept_bytes(observed.device) // sum(part.nbytes for part in made))
        if slot >= most:
            _, slot = self.slots.popitem(last=False)
        elif slot == room:
            more = min(max(FIRST, room), most - room)
            former = self.stacks or tuple(part[:0] for part in made)
            self.stacks = tuple(torch.cat([old, new.new_empty(more, *new.shape[1:])])
                                for old, new in zip(former, made))
        for stack, new in zip(self.stacks, made):
            stack[slot] = new[0]
        self.slots[layout] = slot

    def _layout(self, observed: Tensor) -> tuple[Tensor, ...]:
        """Of a layout (M,), each with a first axis of length 1 before that of the K kernels:
        L^-1 (M - 1, M - 1), log det, P_ii (M,), rows L^-1 c (P + L, M - 1) and variance (P + L,)
        of every place; and how near places are to observations (1, P + L, M)."""
        places = self.grid
        if self.further is not None:
            places = torch.cat([places, self.further(places[observed][None])[0]])
        layout = Layout(places, observed)
        self.kernels, factored = layout.kernels, layout.factored
        kriged = krige(factored, places[None])
        parts = (factored.inverse, precisions(factored.inverse), kriged.whitened.mT,
                 kriged.variance)
        inverse, precision, whitened, variance = (part[None].float() for part in parts)
        return inverse, layout.log_det[None], precision, whitened, variance, layout.near[None]

    def _draws(
        self, channels: Tensor, kernel: Tensor, observed: Tensor, inverse: Tensor,
        whitened: Tensor, variance: Tensor, seeds: Tensor,
    ) -> Tensor:
        """Prior fields minus their own kriging (Matheron), of unit variance: (B, P, C)."""
        count = channels.shape[1]
        if self.roots is None:
            self.roots = torch.stack([
                grid_root(each, self.height, self.width) for each in self.kernels
            ]).to(observed.device)                                        # (K, P, P)
        numbers = normal(seeds, self.points * count).unflatten(1, (self.points, count))
        fields = self.roots[kernel] @ (numbers @ correlation_root(channels).mT)
        known = fields.gather(1, observed[..., None].expand(-1, -1, count))  # (B, M, C)
        kriged = known[:, :1] + whitened @ (inverse @ (known[:, 1:] - known[:, :1]))
        return (fields - kriged) / variance.sqrt()[..., None]


def kept_bytes(device: torch.device) -> int:
    """How much of a device's memory layouts may take."""
    if device.type != "cuda":
        return KEPT_BYTES
    _, total = torch.cuda.mem_get_info(device)
    return min(KEPT_BYTES, int(KEPT_SHARE * total))
