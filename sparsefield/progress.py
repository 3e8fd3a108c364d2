"""How far work is: parts that are counted, and what a person sees of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
LINE_SECONDS = 30  # between lines where no terminal shows a bar


class Count:
    """Called after each part of the work that is done; passes on how many of how many.

    Args:
        tell: called as tell(parts done, parts in all so far as they are known, or None).
    """

    def __init__(self, tell: Callable[[int, int | None], None] | None = None):
        self.tell, self.done = tell, 0
        self.total: int | None = None

    def expect(self, parts: int) -> None:
        """So many are left of what is known by now."""
        self.total = self.done + parts

    def __call__(self) -> None:
        self.done += 1
        if self.tell is not None:
            self.tell(self.done, self.total)


class _Lines:
    """A file for tqdm: every state that it shows becomes a line of its own on standard error."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass


def bar(
    what: str, total: int | None = None, unit: str = "part", is_shown: bool = True, **more: float
) -> tqdm[NoReturn]:
    """A tqdm bar on a terminal; elsewhere a line with the time left, every LINE_SECONDS."""
    from tqdm import tqdm  # which programs that show nothing need not wait for

    shown = {"total": total, "desc": what, "unit": unit, "leave": False, "disable": not is_shown}
    if sys.stderr.isatty():
        return tqdm(**shown, dynamic_ncols=True, **more)
    more = {"delay": LINE_SECONDS, **more}
    line = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} gone, {remaining} left"
    return tqdm(**shown, file=_Lines(), bar_format=line, miniters=1, mininterval=LINE_SECONDS,
                **more)


def over(items: Sequence[Item], what: str, unit: str) -> Iterator[Item]:
    """The items, with a bar of how many are done."""
    with bar(what, len(items), unit) as shown:
        for item in items:
            yield item
            shown.update()


@contextmanager
def phases(*names: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function for `Count` that shows one bar after the other, in turn: of each number of parts.

    What goes before the first part does not count as time that parts take.
    """
    turn, begun, shown = cycle(names), time.monotonic(), bar("", is_shown=False)

    def tell(done: int, total: int | None) -> None:
        nonlocal shown
        if shown.total != total or done < shown.n:
            shown.close()
            is_late = time.monotonic() - begun > LINE_SECONDS
            shown = bar(next(turn), total, initial=done, **({"delay": 0} if is_late else {}))
        shown.update(done - shown.n)

    try:
        yield tell
    finally:
        shown.close()
