"""Batches for the steps of a training, whatever happens to the processes that prepare them."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from sparsefield.data import Batch, TrainingBatches
from sparsefield.errors import UserError
from sparsefield.train.stopping import ignore_interrupts

log = logging.getLogger("sparsefield")


def stream(
    batches: TrainingBatches, first: int, end: int, num_workers: int, device: torch.device
) -> Iterator[Batch]:
    """Batches of the steps first ... end - 1. Data processes that die are replaced.

    Raises:
        UserError: replacements died as well, before they delivered.
    """
    step, died_at = first, None
    while step < end:
        loader = iter(DataLoader(
            batches,
            batch_size=None,
            sampler=range(step, end),
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        ))
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
                raise UserError(
                    "processes that prepare data keep dying: the same command goes on from the "
                    "last checkpoint; NUM_WORKERS=0 prepares data in the training process"
                ) from error
            died_at = step
            log.warning("WARNING: a process that prepares data died (out of memory?); others "
                        "take over, nothing is lost")
