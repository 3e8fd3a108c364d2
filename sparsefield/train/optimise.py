"""What turns gradients into steps: Muon for the matrices inside, AdamW for all else; dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefield.hashed import STRIDE, happens

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
