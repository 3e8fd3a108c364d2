"""Imported first by the commands: Ctrl-C while everything else is imported is no defect either.

Imports take seconds, and `cli.run`, which turns Ctrl-C into one line and code 130, comes after.
"""

import os
import sys
from types import TracebackType

_others = sys.excepthook


def _one_line(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _others(kind, error, traceback)
        return
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _one_line
