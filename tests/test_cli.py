"""The edges of every command: closed pipes, interrupts, memory that does not suffice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefield import cli

ROOT = Path(__file__).parents[1]
SPEAKS = """
import pathlib, sys
from sparsefield import cli
def main():
    cli.log_to()
    for _ in range(20_000):
        cli.log.info("Höhe in °C")
    pathlib.Path(sys.argv[1]).write_text("done")
    print("Höhe in °C" * 10_000)
sys.exit(cli.run(main))
"""


@pytest.mark.parametrize("encoding, closed", [("ascii", False), ("utf-8", True)])
def test_closed_pipes_and_ascii_terminals(tmp_path, encoding, closed):
    """The work is done although nobody listens, or listens in another alphabet."""
    process = subprocess.Popen([sys.executable, "-c", SPEAKS, tmp_path / "file"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding=encoding,
                               env={**os.environ, "PYTHONIOENCODING": encoding})
    if closed:
        process.stdout.close()
        process.stdout = None
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == "" and (tmp_path / "file").read_text() == "done"
    assert closed or (r"H\xf6he in \xb0C" if encoding == "ascii" else "Höhe in °C") in said


def test_interrupted_while_it_is_imported():
    code = ("import os, signal, sys; sys.argv = ['x']; from sparsefield import commands; "
            "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell may ignore it
            "commands.end_in_one_line_on_interrupt(); os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    for name in ("reconstruct", "train_mamba", "train_mamba_v2", "eval_v1_vs_v2",
                 "eval_sde_multiscale"):
        text = (ROOT / f"{name}.py").read_text()
        assert 0 < text.index("\n    end_in_one_line_on_interrupt()") < text.index("import sys")


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_memory_that_does_not_suffice_is_one_line(error, capsys):
    def main():
        raise error

    assert cli.run(main) == 2
    assert capsys.readouterr().err.startswith("error: out of memory")
    with pytest.raises(RuntimeError, match="a defect"):
        cli.run(lambda: (_ for _ in ()).throw(RuntimeError("a defect")))
