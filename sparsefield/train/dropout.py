"""Dropout whose masks belong to places in the global batch, not to a process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

STRIDE = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
FACTORS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
BITS = 24


class SlotDropout:
    """Draws the masks of all dropouts of a model, each field's from a seed of its own.

    Every `nn.Dropout` and `nn.Dropout2d` (of whole channels) that drops anything is replaced. Its
    masks are then the same in one process and in several, on any device, and however a batch is cut
    into parts. They come from a hash of (seed, which dropout, element), for all fields at once: a
    generator for each field would be a call for each, which a GPU has no time for.
    """

    def __init__(self, model: nn.Module):
        self.state = torch.zeros(0, dtype=torch.long)  # (B,)
        self.found = [
            (parent, name, child) for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, (nn.Dropout, nn.Dropout2d)) and child.p > 0
        ]
        for parent, name, child in self.found:
            whole = isinstance(child, nn.Dropout2d)
            setattr(parent, name, _Dropout(child.p, self, whole_channels=whole))
        if self.found:  # here, since only who trains should wait for the compiler's import
            self.mask = torch.compiler.disable(self.mask)

    def seed(self, seeds: Sequence[int], device: torch.device) -> None:
        """Before a part of a batch: one seed for each of its fields."""
        if self.found:
            self.state = torch.tensor(seeds, device=device)

    def mask(self, x: Tensor, p: float) -> Tensor:
        """What x (B, ...) is multiplied by: 0 with probability p, else 1 / (1 - p).

        Raises:
            ValueError: not as many fields as seeds.
        """
        if len(x) != len(self.state):
            raise ValueError(f"{len(x)} fields, but {len(self.state)} seeds")
        self.state = self.state + STRIDE  # the next dropout's
        own = scrambled(self.state)                                       # (B,)
        element = torch.arange(1, x[0].numel() + 1, device=x.device)
        bits = scrambled(own[:, None] + element * STRIDE) & ((1 << BITS) - 1)
        return ((bits >= p * (1 << BITS)) / (1 - p)).to(x.dtype).view(x.shape)


def scrambled(x: Tensor) -> Tensor:
    """Numbers (...) int64 whose bits look random, another for each x (Steele et al. 2014,
    "Fast splittable pseudorandom number generators", figure 16)."""
    for shift, factor in FACTORS:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> places) & ((1 << (64 - places)) - 1)


class _Dropout(nn.Module):
    def __init__(self, p: float, slots: SlotDropout, whole_channels: bool):
        super().__init__()
        self.p, self.slots, self.whole_channels = p, slots, whole_channels

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.slots.mask(x[..., :1, :1] if self.whole_channels else x, self.p)
