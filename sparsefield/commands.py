"""The commands of an installed package; in a checkout they are the scripts of the same name.

Imports take seconds, and `sparsefield.cli.run`, which turns Ctrl-C into one line and code 130,
comes after them: this module is light, and sees to it that Ctrl-C is no defect before, either.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from types import TracebackType


def end_in_one_line_on_interrupt() -> None:
    """From here on, Ctrl-C that nobody else takes care of is one line and exit code 130."""
    others = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            others(kind, error, traceback)
            return
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    sys.excepthook = hook


def _run(module: str) -> int:
    end_in_one_line_on_interrupt()
    main = importlib.import_module(module).main
    return importlib.import_module("sparsefield.cli").run(main)


train_v1 = functools.partial(_run, "train_mamba")
train_v2 = functools.partial(_run, "train_mamba_v2")
compare = functools.partial(_run, "eval_v1_vs_v2")
multiscale = functools.partial(_run, "eval_sde_multiscale")
reconstruct = functools.partial(_run, "reconstruct")
