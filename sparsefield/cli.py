"""The edges of every command: settings in, one clear line and an exit code out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro

from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")
Settings = TypeVar("Settings")


def parse(settings: type[Settings], arguments: list[str] | None, description: str) -> Settings:
    """Settings of a dataclass type from the command line (`arguments`, or that of the process).

    Every field is a flag of its name, its docstring the help. A wrong flag or value prints one
    message and exits with code 2.
    """
    return tyro.cli(
        settings,
        args=arguments,
        description=description,
        config=(tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff),
        use_underscores=True,
    )


def log_to(console: bool = True, file: str | None = None) -> None:
    """Send log lines to standard output and, with `file`, to the end of that file too."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if console else []
    if file:
        handlers.append(logging.FileHandler(file))
    log.handlers.clear()
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


def output_folder(path: str) -> Path:
    """The folder that a command writes to, made when missing. Raises UserError if that fails."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"save_dir={folder} cannot be made ({error.strerror}): choose another folder"
        ) from error
    return folder


def run(main: Callable[[], None]) -> int:
    """Call `main` and return the process's exit code.

    A `UserError` becomes one line on standard error (and in the log file) and code 2; Ctrl-C one
    line and code 130. Anything else is a defect of ours and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        _report(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _report("interrupted")
        return 130
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.makeLogRecord({"msg": line}))
