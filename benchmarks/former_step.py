"""A training step beside that of the former flow, which started from independent noise.

    python benchmarks/former_step.py                  # both sizes, some minutes on one core
    python benchmarks/former_step.py --sizes small --turns 3

Commit f7b6c33 is checked out into a temporary git worktree. Two processes of one thread, one for
each tree, take turns of 8 steps each, so that whatever else the machine does hits both alike.
A step is the closed form, forward, backward, clipping and AdamW, for 16 crops of 32 x 32 of the
photographs that come with scikit-image, 204 observations and 204 queries each, in bfloat16 where
the CPU multiplies it; batches are made beforehand. Process time counts the work of the process
alone, wall time the waiting too. Ratios are medians of the turns' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

FORMER = "f7b6c33"
HERE = Path(__file__).resolve().parents[1]
STEPS = 8  # of a turn: as many as a layout of observations more is brought in for
BEFORE = 32  # steps whose closed form is made beforehand, as if training had gone on for long
SIZES = {"small": dict(d_model=64, perceiver_heads=4), "default": {}}


# --- in the process of a tree --------------------------------------------------------------------


def present_steps(model) -> tuple[Callable[[int], object], Callable]:
    """Batch by number, and the loss of one."""
    import torch

    from sparsefield.flow.path import draw_angles
    from sparsefield.train.pairs import Pairs, slope_loss

    batches = open_batches(draw_angles=draw_angles)
    pairs = Pairs(model, 32, 32, torch.device("cpu"))
    for step in range(BEFORE):
        pairs(batches[step])
    return batches, lambda batch, amp: within(amp, slope_loss, model, batch, pairs(batch))


def former_steps(model) -> tuple[Callable[[int], object], Callable]:
    from sparsefield import flow

    batches = open_batches(draw_times=flow.draw_times)
    return batches, lambda batch, amp: within(amp, flow.velocity_loss, model, batch)


def within(amp, function: Callable, *arguments):
    with amp:
        return function(*arguments).mean()


def open_batches(**draw):
    from sparsefield.data import TrainingBatches, open_data, parse_pattern

    return TrainingBatches(open_data("photos", image_size=32).train, parse_pattern("random:0.2"),
                           seed=0, batch_size=16, queries=(204, 204), **draw)


def work(tree: str, kind: str, size: str) -> None:
    """Take a turn for each line on standard input; print its (process, wall) seconds a step."""
    sys.path.insert(0, tree)
    import torch

    from train_mamba_v2 import MAMBADiffusionV2

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MAMBADiffusionV2(**SIZES[size])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = any(getattr(torch.cpu, check, bool)() for check in checks)
    amp = partial(torch.autocast, "cpu", torch.bfloat16, enabled=fast)
    batches, loss_of = {"present": present_steps, "former": former_steps}[kind](model)

    def step(batch) -> None:
        loss_of(batch, amp()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    done = BEFORE
    for _ in sys.stdin:
        ready = [batches[done + k] for k in range(STEPS)]
        done += STEPS
        process, wall = time.process_time(), time.perf_counter()
        for batch in ready:
            step(batch)
        print(json.dumps([(time.process_time() - process) / STEPS,
                          (time.perf_counter() - wall) / STEPS]), flush=True)


# --- in the process that compares ----------------------------------------------------------------


@contextmanager
def former_tree() -> Iterator[Path]:
    """The former commit in a folder, within the block."""
    git = ["git", "-C", str(HERE), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "former"
        subprocess.run([*git, "add", "--detach", str(path), FORMER], check=True,
                       capture_output=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def start(tree: Path, kind: str, size: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "--tree", str(tree), "--kind", kind, "--sizes", size],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )


def take_turn(process: subprocess.Popen) -> tuple[float, float]:
    process.stdin.write("\n")
    process.stdin.flush()
    return tuple(json.loads(process.stdout.readline()))


def compare(former: Path, size: str, turns: int) -> None:
    """Print the table of one size of model."""
    trees = {"former": former, "present": HERE}
    processes = {kind: start(tree, kind, size) for kind, tree in trees.items()}
    try:
        for process in processes.values():  # code is loaded and compiled
            take_turn(process)
        seconds = {kind: [] for kind in trees}
        for _ in range(turns):
            for kind, process in processes.items():
                seconds[kind].append(take_turn(process))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for k, clock in enumerate(("process", "wall")):
        before, now = ([turn[k] for turn in seconds[kind]] for kind in trees)
        ratios = sorted(b / a for a, b in zip(before, now))
        print(f"{size:8} {clock:8} former {statistics.median(before):.3f} s, present "
              f"{statistics.median(now):.3f} s, ratio {statistics.median(ratios):.3f} "
              f"({ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tree", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tree:
        work(given.tree, given.kind, given.sizes[0])
        return
    with former_tree() as former:
        for size in given.sizes:
            compare(former, size, given.turns)


if __name__ == "__main__":
    main()
