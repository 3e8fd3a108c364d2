"""Timing side by side: what every benchmark here shares."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
STATUS = Path("/proc/self/status")
PATIENCE = 10.0    # seconds: what takes longer is run once


def interleave(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, after one run to warm up. A round runs all of them, one after the other,
    so that whatever else the machine does hits all alike and ratios hold.
    """
    seconds = {name: [stopwatch(run)] for name, run in runs.items()}
    quick = {name: run for name, run in runs.items() if seconds[name][0] < PATIENCE}
    for name in quick:
        seconds[name].clear()
    for _ in range(rounds):
        for name, run in quick.items():
            seconds[name].append(stopwatch(run))
    return seconds


def stopwatch(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def milliseconds(seconds: list[float]) -> str:
    """Median and range."""
    middle, low, high = (1000 * f(seconds) for f in (statistics.median, min, max))
    digits = 0 if middle >= 100 else 1
    if len(seconds) == 1:
        return f"{middle:,.{digits}f} (once)"
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def ratio(over: list[float], under: list[float]) -> str:
    """Median of the rounds' ratios; of what is run once, the first round's."""
    found = statistics.median(a / b for a, b in zip(over, under, strict=False))
    return f"{found:,.0f} ×" if found >= 20 else f"{found:.2f} ×"


def memory_in_a_process_of_its_own(*arguments: str) -> str:
    """What the running script prints for these arguments: elsewhere freed memory would be reused,
    and not be seen.
    """
    if not STATUS.exists():
        return "only on Linux"
    command = [sys.executable, sys.argv[0], *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def print_added_memory(run: Callable[[], object]) -> None:
    """MiB of resident memory that `run` needs at its peak beyond what was there."""
    Path("/proc/self/clear_refs").write_text("5")    # the peak starts from here
    before = _status("VmRSS")
    run()
    print(f"{_status('VmHWM') - before:,.0f}")


def _status(key: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def validations(folder: Path) -> list[dict]:
    """What a training logged at its validations, from its metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "val_psnr" in record]


def describe_machine() -> str:
    """CPU, threads, versions and commit, in one line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return (f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"commit {commit or 'unknown'}")


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for row in [head, ["---"] * len(head), *rows]:
        print_row(row)
    print(flush=True)


def print_row(cells: list[str]) -> None:
    """Print one line of a Markdown table at once, for tables whose rows take long."""
    print("| " + " | ".join(cells) + " |", flush=True)
