"""The edges of every command: settings in, one clear line and an exit code out."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

import tyro

from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")

# What allocators and libraries say when memory is full, where it is no exception of its own.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED",
                 "std::bad_alloc")
Settings = TypeVar("Settings")

rephrase: Callable[[str], str] = str  # of lines for people: the runners say variables for flags


def parse(
    settings: type[Settings], arguments: list[str] | None, description: str, switches: bool = False
) -> Settings:
    """Settings of a dataclass type from the command line (`arguments`, or that of the process).

    Every field is a flag of its name, its docstring the help; with `switches` a bool needs no True.
    A wrong flag or value prints one message and exits with code 2. Which flags were given stands in
    the attribute `given` of the result. Raises UserError for a list without a value.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    marker = tyro.conf.FlagCreatePairsOff if switches else tyro.conf.FlagConversionOff
    parsed = tyro.cli(
        settings,
        args=arguments,
        description=description,
        config=(marker, tyro.conf.HelptextFromCommentsOff),
        use_underscores=True,
    )
    parsed.given = frozenset(flag[2:].partition("=")[0].replace("-", "_") for flag in arguments
                             if flag.startswith("--"))
    for name in sorted(parsed.given):
        if getattr(parsed, name, None) == ():
            raise UserError(f"--{name}: give one value or more, or leave it out")
    return parsed


class _Rephrased(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return rephrase(super().format(record))


class Console(logging.StreamHandler):
    """Log lines for people. When nobody reads any more (`| head`), the work goes on in silence."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            silence(self.stream)
        else:
            super().handleError(record)


def silence(stream: TextIO) -> None:
    """What is still written to a stream goes nowhere."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def log_to(console: bool = True, file: str | None = None) -> None:
    """Send log lines to standard output and, with `file`, to the end of that file too."""
    handlers: list[logging.Handler] = [Console(sys.stdout)] if console else []
    if file:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    log.handlers.clear()
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        handler.setFormatter(_Rephrased("%(message)s"))
        log.addHandler(handler)


def run(main: Callable[[], None]) -> int:
    """Call `main` and return the process's exit code.

    A `UserError` becomes one line on standard error (and in the log file) and code 2, so does
    memory that is not enough; Ctrl-C one line and code 130. Output into a pipe that was closed is
    dropped. Anything else is a defect of ours and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without the letter shows its code
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _report(f"error: {error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _report("error: out of memory: ask for less (samples, resolution, points, or data)")
        return 2
    except BrokenPipeError:
        silence(sys.stdout)
        silence(sys.stderr)
    except KeyboardInterrupt:
        _report("interrupted")
        return 130
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch or a device says that its memory does not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY))


def _report(line: str) -> None:
    line = rephrase(" ".join(line.splitlines()))
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        silence(sys.stderr)
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.makeLogRecord({"msg": line}))
