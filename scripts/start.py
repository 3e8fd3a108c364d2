"""Start a training with the settings of the environment; the runners hand over to this.

    EPOCHS=200 LR=1e-3 python scripts/start.py train_mamba_v2 training.log [flags]

Every field of the script's Config is a variable of the same name in capitals; a flag overrides its
variable. NPROC or NNODES start torchrun. The log gets a line that marks the start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsefield import cli
from sparsefield.commands import end_in_one_line_on_interrupt
from sparsefield.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
HISTORIC = {"PERCEIVER_ITER": "PERCEIVER_ITERATIONS"}
RENAMED = {"CANVAS_WIDTH": "UNET_WIDTH", "CANVAS_DROPOUT": "UNET_DROPOUT",
           "CANVAS_FLOW_WIDTH": "FLOW_UNET_WIDTH", "CANVAS_FIRST": "START_SHARE",
           "CANVAS_FROM": "START_FROM"}
GONE = ("CANVAS_FLOW",)
PATHS = ("DATA", "DATA_VAL", "DATA_TEST", "DATA_DIR", "SAVE_DIR", "INIT_FROM", "INIT_FROM_V1",
         "START_FROM", "CANVAS_FROM", "OBSERVE")
NO_PATHS = ("photos", "terrain", "tracer", "cifar10", "bundled", "shipped", "fields")  # nor "a:b"
SWITCH = {**dict.fromkeys(("1", "true", "yes", "on"), "True"),
          **dict.fromkeys(("0", "false", "no", "off"), "False")}


def flags_of(fields: Iterable[dataclasses.Field], variables: Mapping[str, str]) -> list[str]:
    """Command-line flags for the variables that are settings. Warns of old and misspelt names.

    Raises:
        UserError: a switch is neither on nor off.
    """
    types = {field.name.upper(): str(field.type) for field in fields}
    flags = []
    for given, value in variables.items():
        name = given if given in types else HISTORIC.get(given, RENAMED.get(given, given))
        if not value or name == "LOG_FILE":  # LOG names the log
            continue
        if name not in types:
            warn_of(given, types)
            continue
        if name != given and given in RENAMED:
            print(f"note: {given} is called {name} now", file=sys.stderr)
        flags += [f"--{name.lower()}", *words(given, value, types[name])]
    return flags


def words(name: str, value: str, kind: str) -> list[str]:
    """The value as it stands on a command line."""
    if kind.startswith("tuple"):
        return value.split()
    if kind != "bool":
        return [value]
    if value.lower() not in SWITCH:
        raise UserError(f"{name}={value}: give 1, true, yes or on, or 0, false, no or off")
    return [SWITCH[value.lower()]]


def warn_of(name: str, known: Iterable[str]) -> None:
    if name in GONE:
        print(f"note: {name} is no setting any more and is ignored", file=sys.stderr)
    elif near := difflib.get_close_matches(name, known, n=1, cutoff=0.9):
        print(f"warning: {name} is no setting and is ignored: did you mean {near[0]}?",
              file=sys.stderr)


def absolute_paths(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, with paths that mean the caller's folder also when read from another one."""
    return {name: os.path.abspath(value)
            if name in PATHS and value and value not in NO_PATHS and ":" not in value else value
            for name, value in variables.items()}


def in_variables(text: str, names: Iterable[str]) -> str:
    """A line about settings, as flags or as name=value, in the words of who typed variables."""
    any_of = "|".join(names)
    text = re.sub(rf"--({any_of})\b(?! (\d|\S+: ))", lambda found: found[1].upper(), text)
    return re.sub(rf"(?<![\w-])(?:--({any_of}) |({any_of})=)",
                  lambda found: f"{(found[1] or found[2]).upper()}=", text)


def check_values(config: type, arguments: list[str]) -> None:
    """Raises UserError for values of another kind, in one line where the parser draws a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli.parse(config, arguments, "")
    except SystemExit:
        lines = [line.strip("│ ") for line in said.getvalue().splitlines()[1:]]
        reason = itertools.takewhile(lambda line: not line.startswith("─"), lines)
        raise UserError(f"{' '.join(reason)} (--help explains all settings)") from None


def check(variables: Mapping[str, str], log: str) -> None:
    """Raises UserError for counts that are none, and for a log that is a file of the data."""
    for name in ("NPROC", "NNODES"):
        if not variables.get(name, "1").isdecimal() or int(variables.get(name, "1")) < 1:
            raise UserError(f"{name}={variables[name]}: give a whole number of at least 1")
    if "NNODES" in variables and not variables.get("RDZV_ENDPOINT"):
        raise UserError("set RDZV_ENDPOINT=host:port with NNODES")
    for name in PATHS:
        path = variables.get(name, "")
        if os.path.isfile(path) and os.path.exists(log) and os.path.samefile(path, log):
            raise UserError(f"LOG={log} is the file of {name}: name another log")


def mark_start(log: str) -> None:
    """Write the line that begins this run's part of the log."""
    with open(log, "a") as file:
        file.write(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n")


def run_ranks(command: list[str], variables: Mapping[str, str]) -> int:
    """torchrun in a session of its own: it would end its ranks at a signal, so they get it."""
    each, machines = variables.get("NPROC", "1"), variables.get("NNODES")
    where = ["--standalone"] if machines is None else [
        "--nnodes", machines, "--rdzv_backend", "c10d",
        "--rdzv_endpoint", variables["RDZV_ENDPOINT"],
        "--rdzv_id", variables.get("RDZV_ID", "sparsefield")]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(each))))
    torchrun = subprocess.Popen(
        [sys.executable, "-u", "-m", "torch.distributed.run", *where, "--nproc_per_node", each,
         *command], stdin=subprocess.DEVNULL, start_new_session=True)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in children(torchrun.pid) or [torchrun.pid]:
            os.kill(process, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    return torchrun.wait()


def children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    if listed.exists():
        return [int(child) for child in listed.read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def main() -> None:
    module, log, *more = sys.argv[1:]
    away = Path.cwd() != ROOT
    variables = {name: value for name, value in os.environ.items() if value}
    if away:
        variables = absolute_paths(variables)
    check(variables, log)
    dry = "--dry_run" in more
    if not dry:
        mark_start(log)
    script = importlib.import_module(module)
    fields = dataclasses.fields(script.Config)
    cli.rephrase = functools.partial(in_variables, names=[field.name for field in fields])
    flags = flags_of(fields, variables)
    check_values(script.Config, [*flags, *more])
    if away and "--save_dir" not in [*flags, *more]:
        flags += ["--save_dir", str(ROOT / script.Config.save_dir)]
    if not dry and ("NNODES" in variables or variables.get("NPROC", "1") != "1"):
        sys.exit(run_ranks([str(ROOT / f"{module}.py"), *flags, *more], variables))
    script.main([*flags, *more])


if __name__ == "__main__":
    end_in_one_line_on_interrupt()
    sys.exit(cli.run(main))
