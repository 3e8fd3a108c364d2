"""Dropout whose masks belong to places in the global batch, not to a process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefield.hashed import STRIDE, happens


class SlotDropout:
    """Draws the masks of all dropouts of a model, each field's from a seed of its own.

    Every `nn.Dropout` and `nn.Dropout2d` (of whole channels) that drops anything is replaced. Its
    masks are then the same in one process and in several, on any device, and however a batch is cut
    into parts.
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

    def seed(self, seeds: Tensor) -> None:
        """Before a part of a batch: a seed for each of its fields (B,) int64."""
        self.state = seeds

    def mask(self, x: Tensor, p: float) -> Tensor:
        """What x (B, ...) is multiplied by: 0 with probability p, else 1 / (1 - p).

        Raises:
            ValueError: not as many fields as seeds.
        """
        if len(x) != len(self.state):
            raise ValueError(f"{len(x)} fields, but {len(self.state)} seeds")
        self.state = self.state + STRIDE  # the next dropout's
        kept = happens(self.state, x[0].numel(), 1 - p)
        return (kept / (1 - p)).to(x.dtype).view(x.shape)


class _Dropout(nn.Module):
    def __init__(self, p: float, slots: SlotDropout, whole_channels: bool):
        super().__init__()
        self.p, self.slots, self.whole_channels = p, slots, whole_channels

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.slots.mask(x[..., :1, :1] if self.whole_channels else x, self.p)
