"""What benchmarks here share: timing side by side, the closed form of two checkouts, tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

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


def run_training(name: str, line: list[str], folder: Path) -> None:
    """Run a training's command to its end, or go on with it; its log lies beside its folder. Ends
    the program if it fails."""
    print(f"{name}: {' '.join(line[1:])}", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a") as log:
        done = subprocess.run(line, stdout=log, stderr=log, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: {name} failed, see {folder.with_suffix('.log')}")


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


def closed_form(coords: Tensor, values: Tensor, queries: Tensor, seeds: list[int] | None = None,
                simple: bool = False, **settings: object) -> dict[str, Tensor]:
    """What `sparsefield.gaussian` answers: mean and sd (B, N, C), in `seconds`, draws (S, N, C).

    Args:
        seeds: of draws. simple: with one kernel. settings: of `condition`.
    """
    from sparsefield.gaussian import ONE_KERNEL, condition

    start = time.perf_counter()
    posterior = condition(coords, values, kernels=ONE_KERNEL if simple else None, **settings)
    answer = posterior.at(queries)
    seconds = torch.tensor(time.perf_counter() - start)
    drawn = answer.mean[:0]
    if seeds:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = answer.mean + answer.sd * posterior.noise(queries)(generators)
    return {"mean": answer.mean, "sd": answer.sd, "draws": drawn, "seconds": seconds}


def training_batch(observed: Tensor, values: Tensor) -> dict[str, Tensor]:
    """Seconds of the closed forms and draws of a batch of fields of 32 x 32, as in training: the
    first of its masks, and further ones.

    Args:
        observed: (G, M), of as many masks. values: (B, M, C), of fields that take turns with them.
    """
    from sparsefield.gaussian import GridPosterior

    grid, seeds = GridPosterior(32, 32, values.device), torch.arange(len(values))
    ids = [b % len(observed) for b in range(len(values))]
    return {name: torch.tensor(stopwatch(partial(grid, ids, observed[ids], own, seeds)))
            for name, own in (("first", values), ("further", -values))}


class Checkout:
    """`closed_form`, or another function of this file, by another checkout of this project, in a
    process of its own."""

    def __init__(self, path: Path, function: str = "closed_form"):
        self.function = function
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(path)})

    def __call__(self, *args: object, **settings: object) -> dict[str, Tensor]:
        with tempfile.NamedTemporaryFile() as file:
            torch.save([self.function, args, settings], file.name)
            print(file.name, file=self.process.stdin, flush=True)
            if not self.process.stdout.readline():
                raise RuntimeError("the other checkout has failed")
            return torch.load(file.name, weights_only=True)


def ways(before: Path | None) -> dict[str, Callable[..., dict[str, Tensor]]]:
    """`closed_form` as it is and as it was in another checkout, if there is one."""
    return ({"before": Checkout(before)} if before else {}) | {"now": closed_form}


def errors(mean: np.ndarray, sd: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """MSE, CRPS and the share in 90 % intervals of Gaussian forecasts, of arrays of one shape."""
    from sparsefield.evaluate.metrics import gaussian_crps

    z = (truth - mean) / sd
    return {"mse": float(((truth - mean) ** 2).mean()), "crps": float(gaussian_crps(z, sd).mean()),
            "covered": float((np.abs(z) < ndtri(0.95)).mean())}


def mean_of(found: list[dict[str, float]]) -> dict[str, float]:
    """Of all cases, with `rmse`; what is NaN in a case is left out."""
    values = {key: np.array([each[key] for each in found]) for key in found[0]}
    mean = {key: float(x[~np.isnan(x)].mean()) if not np.isnan(x).all() else np.nan
            for key, x in values.items()}
    return mean | {"rmse": mean["mse"] ** 0.5}


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


def main() -> None:
    """Answer the requests of a `Checkout`."""
    for line in sys.stdin:
        name, args, settings = torch.load(line.strip(), weights_only=True)
        torch.save(globals()[name](*args, **settings), line.strip())
        print(flush=True)


if __name__ == "__main__":
    main()
