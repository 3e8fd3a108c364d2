"""Many small matrices on a CPU, where threads that share a matrix wait longer than they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import starmap
from typing import Any, TypeVar

import torch

from sparsefield.progress import Count

T = TypeVar("T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, PyTorch computes on one thread of the CPU: ten times as fast on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_threads(
    function: Callable[..., T], given: Sequence[tuple[Any, ...]], device: torch.device,
    done: Count | None = None,
) -> Iterator[T]:
    """function(*arguments) of all that are given, in their order, without gradients.

    On a CPU as many at a time as PyTorch has threads, each on one thread; the results do not depend
    on their number.

    Args:
        done: called after each.
    """
    before = torch.get_num_threads()
    threads = before if device.type == "cpu" else 1
    run = torch.no_grad()(function)
    try:
        with ThreadPoolExecutor(max(1, min(threads, len(given))), initializer=torch.set_num_threads,
                                initargs=(1,)) as pool:
            each = pool.map(run, *zip(*given, strict=True)) if threads > 1 else starmap(run, given)
            for result in each:
                if done is not None:
                    done()
                yield result
    finally:
        torch.set_num_threads(before)  # else threads that begin later would have one
