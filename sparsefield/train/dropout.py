"""Dropout whose masks belong to places in the global batch, not to a process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SlotDropout:
    """Draws the masks of all dropouts of a model, each field's from a generator of its own.

    Every `nn.Dropout` and `nn.Dropout2d` (of whole channels) that drops anything is replaced. Its
    masks are then the same in one process and in several, and however a batch is cut into parts.
    """

    def __init__(self, model: nn.Module):
        self.generators: list[torch.Generator] = []
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
            self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def mask(self, x: Tensor, p: float) -> Tensor:
        """What x (B, ...) is multiplied by: 0 with probability p, else 1 / (1 - p)."""
        masks = torch.empty_like(x)
        for mask, generator in zip(masks, self.generators, strict=True):
            mask.bernoulli_(1 - p, generator=generator)
        return masks.div_(1 - p)


class _Dropout(nn.Module):
    def __init__(self, p: float, slots: SlotDropout, whole_channels: bool):
        super().__init__()
        self.p, self.slots, self.whole_channels = p, slots, whole_channels

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.slots.mask(x[..., :1, :1] if self.whole_channels else x, self.p)
