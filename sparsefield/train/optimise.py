"""What turns gradients into steps: stages, learning rates, Muon and AdamW, averaging, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sparsefield.hashed import STRIDE, happens
from sparsefield.train.config import TrainingConfig

BETAS = (0.9, 0.99)
# What stands at the ends of a network, where a matrix is a table of inputs or outputs rather than a
# map between hidden features.
ENDS = ("input_proj", "query_proj", "decoder", "time_embedding")


class Stages(NamedTuple):
    """The steps at which the two stages end: "start", in which the grid U-Nets learn the mean and
    sd that the flow starts from, and "flow", in which they stay as they are and the flow learns."""

    start: int
    end: int

    @classmethod
    def of(cls, config: TrainingConfig, total: int) -> Stages:
        has_start = config.unet_width and config.start_from is None
        return cls(round(config.start_share * total) if has_start else 0, total)

    def name(self, step: int) -> str:
        """Of the stage that a step is in."""
        return "start" if step < self.start else "flow"

    def around(self, step: int) -> tuple[int, int]:
        """First step of the stage that a step is in, and its end."""
        return (0, self.start) if step < self.start else (self.start, self.end)


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Of a step of a stage of `total`: linear warm-up to `peak` over `warmup` steps, at most a
    fifth of the stage, then half a cosine to zero (Loshchilov & Hutter 2017, SGDR)."""
    warmup = min(warmup, total // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def averaging_decay(count: int, decay: float) -> float:
    """Decay of the moving average after `count` updates: short at first, so short runs work too."""
    return min(decay, (1 + count) / (10 + count))


def averaged(model: nn.Module, decay: float, step: Callable[[], int]) -> AveragedModel:
    """The moving average of a model's weights."""
    def update(old: list[Tensor], new: list[Tensor], _: object) -> None:
        torch._foreach_lerp_(old, new, 1 - averaging_decay(step(), decay))

    return AveragedModel(model, multi_avg_fn=update)


class Optimiser:
    """All parameters of a model, each in one group, and one learning rate for them.

    Muon (Jordan et al. 2024) makes the update of a matrix orthogonal, here scaled to the size of
    AdamW's (Liu et al. 2025, "Muon is scalable", section 2.2).

    Args:
        kind: "muon" for the matrices between hidden features, or "adamw" for all parameters.
        rate: of the first step.
        weight_decay: of matrices and filters, not of biases, norms, the scan's A_log and D.
    """

    def __init__(self, model: nn.Module, kind: str, rate: float, weight_decay: float):
        hidden, decayed, free = [], [], []
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or name.endswith("A_log"):
                free.append(parameter)
            elif kind == "muon" and parameter.ndim == 2 and not name.startswith(ENDS):
                hidden.append(parameter)
            else:
                decayed.append(parameter)
        groups = [{"params": decayed, "weight_decay": weight_decay},
                  {"params": free, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)]
        if hidden:
            self.parts.append(torch.optim.Muon(
                hidden, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))

    @property
    def rate(self) -> float:
        """Learning rate of the newest step."""
        return self.parts[0].param_groups[0]["lr"]

    @rate.setter
    def rate(self, rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        """Take the step, and forget the gradients."""
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError for the state of other parameters or another kind."""
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


class SlotDropout:
    """Replaces every `nn.Dropout` and `nn.Dropout2d` (of whole channels) of a model. A field's mask
    follows from a seed of its own: the same on any device, in any number of processes or parts."""

    def __init__(self, model: nn.Module):
        self.state = torch.zeros(0, dtype=torch.long)  # (B,)
        found = [(parent, name, child) for parent in model.modules()
                 for name, child in parent.named_children()
                 if isinstance(child, (nn.Dropout, nn.Dropout2d)) and child.p > 0]
        for parent, name, child in found:
            setattr(parent, name, _Dropout(child.p, self, isinstance(child, nn.Dropout2d)))
        if found:  # here, since only who trains should wait for the compiler's import
            self.mask = torch.compiler.disable(self.mask)

    def seed(self, seeds: Tensor) -> None:
        """Before a part of a batch: a seed for each of its fields (B,) int64."""
        self.state = seeds

    def mask(self, x: Tensor, p: float) -> Tensor:
        """What x (B, ...) is multiplied by: 0 with probability p, else 1 / (1 - p)."""
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
