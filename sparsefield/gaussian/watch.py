"""Long computations say how far they are, to whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_watcher: ContextVar[Callable[[], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(step: Callable[[], None]) -> Iterator[None]:
    """Within it, `step` is called after every part of an answer or a draw."""
    token = _watcher.set(step)
    try:
        yield
    finally:
        _watcher.reset(token)


def part_done() -> None:
    """A part of the work is done."""
    step = _watcher.get()
    if step is not None:
        step()
