"""How far a training is, and what follows from that alone.

One integer counts: completed optimiser steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.errors import UserError
from sparsefield.train.config import TrainingConfig

PATIENCE = 20  # non-finite steps in a row after which training gives up


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


class Progress:
    """How far training is: what must survive a restart besides weights and optimiser.

    The sums of an epoch stay on the device, so that no step waits for them.
    """

    def __init__(self, device: torch.device):
        self.step = 0
        self.best_loss = math.inf  # of the stage that the training is in
        self.best: dict[str, float] = {}  # its validation
        self.best_of = 0  # validation pictures
        self.best_stage = ""
        self.validation: dict[str, float] = {}  # the newest
        self.seconds = 0.0
        self.start_ends = -1  # the last step of stage "start", as last planned
        names = ("loss", "grad_norm", "steps", "skipped", "skipped_in_a_row")
        self.sums = {name: torch.zeros((), device=device) for name in names}

    def state_dict(self) -> dict:
        return {**vars(self), "sums": {name: float(sum_) for name, sum_ in self.sums.items()}}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state["sums"].items():
            self.sums[name].fill_(value)
        vars(self).update({**state, "sums": self.sums})

    def forget_best_unless(self, pictures: int, is_there: bool) -> bool:
        """The best so far counts on the same validation pictures alone, and if its weights are
        there. Returns whether one was forgotten."""
        forgets = math.isfinite(self.best_loss) and not (is_there and self.best_of == pictures)
        if forgets:
            self.best_loss, self.best = math.inf, {}
        self.best_of = pictures
        return forgets

    def note_validation(self, numbers: dict[str, float], stage: str) -> bool:
        """Whether a validation is the best so far of the last stage that has taken a step: by the
        loss of that stage, which tells nothing of the other."""
        self.validation = numbers
        if stage != self.best_stage:
            self.best_loss, self.best_stage = math.inf, stage
        is_best = numbers["loss"] < self.best_loss
        if is_best:
            self.best_loss, self.best = numbers["loss"], numbers
        return is_best

    def record(self, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Count a step; of a skipped one only that it was skipped."""
        taken = 1 - skipped
        self.sums["loss"] += loss.nan_to_num(0, 0, 0) * taken
        self.sums["grad_norm"] += norm.nan_to_num(0, 0, 0) * taken
        self.sums["steps"] += taken
        self.sums["skipped"] += skipped
        self.sums["skipped_in_a_row"] = (self.sums["skipped_in_a_row"] + 1) * skipped

    def close_epoch(self) -> dict[str, float]:
        """Means over the epoch, and the steps skipped since the start; the next epoch begins."""
        sums = {name: float(sum_) for name, sum_ in self.sums.items()}
        for name in ("loss", "grad_norm", "steps"):
            self.sums[name].zero_()
        steps = max(sums["steps"], 1)
        return {"loss": sums["loss"] / steps, "grad_norm": sums["grad_norm"] / steps,
                "skipped": int(sums["skipped"])}

    def give_up_when_stuck(self) -> None:
        """Raises UserError when PATIENCE steps in a row were not finite (checked as often)."""
        if self.step % PATIENCE == 0 and self.sums["skipped_in_a_row"] >= PATIENCE:
            raise UserError(
                f"the loss was not finite for {PATIENCE} steps in a row, up to step {self.step}: "
                "lower LR, or look for extreme values in the data; checkpoints are as they were"
            )
