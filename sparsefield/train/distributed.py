"""One process or many: who am I, on what device, and what do we agree on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsefield.device import pick_device
from sparsefield.errors import UserError

Produced = TypeVar("Produced")


@dataclass(frozen=True)
class World:
    """This process among all: rank in [0, size), and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes files and speaks."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module) -> None:
        """The mean of the processes' gradients, in all of them, of parameters that have one."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients]) / self.size
        dist.all_reduce(together)
        parts = together.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts):
            gradient.copy_(part.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, produce: Callable[[], object]) -> object:
        """What the first process produces, in all processes."""
        item = [produce() if self.is_first else None]
        if self.size > 1:
            dist.broadcast_object_list(item, device=self.device)
        return item[0]

    def gather(self, item: object) -> list:
        """The items of all processes, by rank."""
        items = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item)
        return items

    def one_first(self, produce: Callable[[], Produced]) -> Produced:
        """What each process produces, one of each machine before the others: it may download."""
        if self.size == 1:
            return produce()
        goes_first = int(os.environ["LOCAL_RANK"]) == 0
        produced = produce() if goes_first else None
        dist.barrier()
        return produced if goes_first else produce()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def join_world(device: str) -> World:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
    Raises:
        UserError: the device is not there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if size > 1 and chosen.type == "cuda" and ":" in device:
        raise UserError(f"device={device!r} is one GPU, for {size} processes: use DEVICE=cuda")
    if chosen.type == "cuda":  # TF32 outside of autocast; kriging asks for float32 itself
        torch.set_float32_matmul_precision("high")
    if size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)
