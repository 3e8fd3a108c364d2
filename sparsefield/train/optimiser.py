"""What turns gradients into steps: Muon for the matrices inside, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import nn

BETAS = (0.9, 0.99)
# What stands at the ends of a network, where a matrix is a table of inputs or outputs rather than a
# map between hidden features.
ENDS = ("input_proj", "query_proj", "decoder", "time_embedding")


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon is for it: a matrix between hidden features."""
    return parameter.ndim == 2 and not name.startswith(ENDS) and not name.endswith("A_log")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and filters decay; biases, norms, the scan's A_log, D, attention widths do not."""
    return parameter.ndim > 1 and not name.endswith("A_log")


class Optimiser:
    """All parameters of a model, each in one group, and one learning rate for them.

    Muon (Jordan et al. 2024) makes the update of a matrix orthogonal. Scaled to the size of AdamW's
    (Liu et al. 2025, "Muon is scalable", section 2.2) both go with the same rate.

    Args:
        kind: "muon", or "adamw" for all parameters. rate: of the first step.
        weight_decay: of what `is_decayed`.
    """

    def __init__(self, model: nn.Module, kind: str, rate: float, weight_decay: float):
        hidden, decayed, free = [], [], []
        for name, parameter in model.named_parameters():
            if kind == "muon" and is_hidden(name, parameter):
                hidden.append(parameter)
            else:
                (decayed if is_decayed(name, parameter) else free).append(parameter)
        groups = [{"params": decayed, "weight_decay": weight_decay},
                  {"params": free, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
        ]
        if hidden:
            self.parts.append(torch.optim.Muon(
                hidden, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ))

    @property
    def rate(self) -> float:
        """Learning rate of the last step that was taken, or is being taken."""
        return self.parts[0].param_groups[0]["lr"]

    @rate.setter
    def rate(self, rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if it is the state of other parameters or another kind."""
        if len(state["parts"]) != len(self.parts):
            raise ValueError("the state of another kind of optimiser")
        for part, own in zip(self.parts, state["parts"]):
            part.load_state_dict(own)
