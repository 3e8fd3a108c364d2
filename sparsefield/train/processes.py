"""What a training in several processes needs: ranks, processes that prepare data, and signals."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparsefield.data import Batch, TrainingBatches
from sparsefield.device import pick_device
from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")

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
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))  # which keeps its order in memory

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
    """Join the processes that torchrun started, or be the only one. Raises UserError if the device
    ("auto", "cpu", "cuda", "cuda:1", "mps") is not there."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if size > 1 and chosen.type == "cuda" and ":" in device:
        raise UserError(f"device={device!r} is one GPU, for {size} processes: use DEVICE=cuda")
    if chosen.type == "cuda":  # TF32 outside of autocast; kriging asks for float32 itself
        torch.set_float32_matmul_precision("high")
    if size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


def stream(
    batches: TrainingBatches, first: int, end: int, num_workers: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of the steps first ... end - 1. Data processes that die are replaced; raises
    UserError if replacements die before they deliver."""
    step, died_at = first, None
    while step < end:
        loader = iter(DataLoader(batches, batch_size=None, sampler=range(step, end),
                                 num_workers=num_workers, pin_memory=device.type == "cuda",
                                 worker_init_fn=ignore_interrupts))
        if num_workers:  # PyTorch would raise anywhere in a step; here a death shows on waiting
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in loader:
                yield batch.to(device)
                step += 1
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            if died_at == step:
                raise UserError("processes that prepare data keep dying: the same command goes on "
                                "from the last checkpoint; NUM_WORKERS=0 prepares data in the "
                                "training process") from error
            died_at = step
            log.warning("WARNING: a process that prepares data died (out of memory?); others "
                        "take over, nothing is lost")


class StopRequest:
    """Within it, SIGTERM, SIGHUP or Ctrl-C ask to stop after the current step; a second at once.

    Where torchrun `launched` the process, its death is a request, too. It passes on signals that
    the rank has often got already: what follows within ECHO seconds is the same request.
    """

    ECHO = 5.0

    def __init__(self, launched: bool = False):
        self.launcher = os.getppid() if launched else None
        self.asked_at: float | None = None

    def __enter__(self) -> StopRequest:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup: outlive the terminal
            numbers.append(signal.SIGHUP)
        self.earlier = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to stop after this step."""
        orphaned = self.launcher is not None and os.getppid() != self.launcher
        return self.asked_at is not None or orphaned

    def _ask(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            log.info("stopping after this step (once more: at once)")
        elif self.launcher is None or now - self.asked_at > self.ECHO:
            raise KeyboardInterrupt


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: let the training alone decide what it means."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
