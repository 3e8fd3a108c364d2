"""Crops a second in training: V1, V2, their canvas, a plain U-Net, and the former flow's models.

    python benchmarks/throughput.py              # three sizes, 20 minutes on one core
    python benchmarks/throughput.py --sizes quick --turns 3

The former flow, which started from independent noise and knew no canvas, is commit f7b6c33,
checked out into a temporary git worktree. Each row is a process of one thread; all take turns of a
few steps, so that whatever else the machine does hits all alike. Fields keep their closed form for
four epochs, so that a turn has steps of new fields and of known ones, which count three times as
much. A step is what training does: a batch, its closed form, forward, backward, clipping,
optimiser; crops of 32 x 32 of the photographs that come with scikit-image, 204 observations each,
in bfloat16 where the CPU multiplies it. Steps of tokens are of 16 crops with 204 queries each, on a
canvas that has learnt; those of the canvas and of the U-Net of 32 crops with all other points (the
slope: in every other step fewer).
Process time counts the work of the process alone, wall time the waiting too. Ratios are medians of
the turns' ratios.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FORMER = "f7b6c33"
HERE = Path(__file__).resolve().parents[1]
STEPS = 8  # of a turn with new fields, and as many with known ones
REUSED = 4  # epochs that a field keeps its closed form for
ASKED = dict(batch_size=16, queries=(204, 204))
SEEN = dict(batch_size=32, queries=(204, 204), sees_whole=True)  # all others or some of them
PAINTED = dict(batch_size=32, queries=(1, 1), painted=sys.maxsize)  # all other points
V1, V2 = ("train_mamba", "MAMBADiffusion"), ("train_mamba_v2", "MAMBADiffusionV2")
SIZES = {"quick": {V1: dict(d_model=128, num_layers=2),
                   V2: dict(d_model=64, perceiver_heads=4, num_layers=2, perceiver_iterations=1)},
         "small": {V1: dict(d_model=128), V2: dict(d_model=64, perceiver_heads=4)},
         "default": {V1: {}, V2: {}}}
FORMER_SIZES = SIZES | {"quick": SIZES["small"]}  # what the quick models have taken the place of
# Of the canvas: its widths, and the shares of a training; where not given the settings' own.
CANVAS = {"quick": dict(canvas_width=32, canvas_flow_width=32, canvas_first=0.6, canvas_flow=0.2)}
# Rows: which tree, which model, how it learns, crops a step.
ROWS = {
    "V1, former flow": ("former", V1, "former", ASKED["batch_size"]),
    "V2, former flow": ("former", V2, "former", ASKED["batch_size"]),
    "V1 without a canvas, AdamW": ("present", V1, "bare", ASKED["batch_size"]),
    "V2 without a canvas, AdamW": ("present", V2, "bare", ASKED["batch_size"]),
    "V1, tokens": ("present", V1, "tokens", ASKED["batch_size"]),
    "V2, tokens": ("present", V2, "tokens", ASKED["batch_size"]),
    "canvas of both: where the flow starts": ("present", V2, "canvas", PAINTED["batch_size"]),
    "canvas of both: slope": ("present", V2, "flow", SEEN["batch_size"]),
    "U-Net": ("present", None, "unet", PAINTED["batch_size"]),
}


# --- in the process of a tree --------------------------------------------------------------------


def network_of(kind: tuple[str, str], sizes: dict, **more):
    from importlib import import_module

    module, name = kind
    return getattr(import_module(module), name)(**sizes[kind], **more)


def canvas_of(size: str, *names: str) -> dict[str, float]:
    """Settings of the canvas, as they are for a size."""
    from sparsefield.train.config import TrainingConfig

    return {name: CANVAS.get(size, {}).get(name, getattr(TrainingConfig, name)) for name in names}


def present_steps(kind: tuple[str, str], size: str, way: str) -> Callable[[int], None]:
    """The step of a number. Ways: "bare", tokens without a canvas, by AdamW; "tokens", on a canvas
    of its width for that size; "canvas" and "flow", what it learns before them."""
    import torch
    from sparsefield.train.pairs import Pairs, canvas_loss, flow_loss, slope_loss

    from sparsefield.flow.path import draw_angles
    from sparsefield.train.optimise import Optimiser

    bare, paints = way == "bare", way == "canvas"
    widths = canvas_of(size, "canvas_width", "canvas_flow_width")
    model = network_of(kind, SIZES[size], **({} if bare else widths))
    optimiser = Optimiser(model, "adamw" if bare else "muon", 1e-5, 0.01)
    asked = {"bare": ASKED, "tokens": ASKED | {"sees_whole": True}, "canvas": PAINTED,
             "flow": SEEN}[way]
    batches = open_batches(**asked, draw_angles=draw_angles)
    pairs = Pairs(model, 32, 32, torch.device("cpu"))
    loss_of = {"canvas": canvas_loss, "flow": flow_loss}.get(way, slope_loss)

    def step(number: int) -> None:
        batch = batches[number]
        pair = pairs(batch, with_draws=not paints)
        learn(model, optimiser, lambda: loss_of(model, batch, pair).mean())

    return step


def former_steps(kind: tuple[str, str], size: str) -> Callable[[int], None]:
    import torch

    from sparsefield import flow

    model = network_of(kind, FORMER_SIZES[size])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    batches = open_batches(**ASKED, draw_times=flow.draw_times)

    def step(number: int) -> None:
        batch = batches[number]
        learn(model, optimiser, lambda: flow.velocity_loss(model, batch).mean())

    return step


def unet_steps() -> Callable[[int], None]:
    sys.path.insert(0, str(HERE / "benchmarks"))
    from peer_unet import Peer, arguments

    from sparsefield.flow.path import draw_angles

    peer = Peer(arguments(["--pictures", "1"]))
    batches = open_batches(**PAINTED, draw_angles=draw_angles)

    def step(number: int) -> None:
        peer.step(batches[number], 1e-5)

    return step


def learn(model, optimiser, loss: Callable) -> None:
    """Forward in bfloat16 where it is fast, backward, clipping, the optimiser's step."""
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = any(getattr(torch.cpu, check, bool)() for check in checks)
    with torch.autocast("cpu", torch.bfloat16, enabled=fast):
        value = loss()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


class Few:
    """The first `count` fields of a split."""

    def __init__(self, split, count: int):
        self._split, self._count = split, count

    def __len__(self) -> int:
        return self._count

    def __getattr__(self, name: str):
        return getattr(self._split, name)


def open_batches(batch_size: int, **more):
    """Batches of which an epoch has STEPS."""
    from sparsefield.data import TrainingBatches, open_data, parse_pattern

    few = Few(open_data("photos", image_size=32).train, STEPS * batch_size)
    return TrainingBatches(few, parse_pattern("random:0.2"), seed=0, batch_size=batch_size, **more)


def work(tree: str, row: str, size: str) -> None:
    """Take a turn for each line on standard input; print its (process, wall) seconds a step."""
    sys.path.insert(0, tree)
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, kind, way, _ = ROWS[row]
    if way == "former":
        step = former_steps(kind, size)
    elif way == "unet":
        step = unet_steps()
    else:
        step = present_steps(kind, size, way)
    for number in range(REUSED * STEPS):  # code is compiled, layouts are at hand
        if number < STEPS or number % STEPS == 0:
            step(number)
    start = REUSED * STEPS
    for _ in sys.stdin:
        new = [clocked(step, number) for number in range(start, start + STEPS)]
        known = [clocked(step, number) for number in range(start + STEPS, start + 2 * STEPS)]
        start += REUSED * STEPS
        print(json.dumps([(fresh + (REUSED - 1) * again) / REUSED for fresh, again in
                          zip(means(new), means(known))]), flush=True)


def clocked(step: Callable[[int], None], number: int) -> tuple[float, float]:
    """Process and wall seconds of a step."""
    process, wall = time.process_time(), time.perf_counter()
    step(number)
    return time.process_time() - process, time.perf_counter() - wall


def means(turn: list[tuple[float, float]]) -> list[float]:
    return [statistics.mean(clock) for clock in zip(*turn)]


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


def start(tree: Path, row: str, size: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "--tree", str(tree), "--row", row, "--sizes", size],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )


def take_turn(process: subprocess.Popen) -> tuple[float, float]:
    """(process, wall) seconds a step."""
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit("error: a row failed, its words are above")
    return tuple(json.loads(line))


def seconds_of_turns(former: Path, size: str, turns: int) -> dict[str, list[tuple[float, float]]]:
    """(process, wall) seconds a step of each row, turn by turn."""
    trees = {"former": former, "present": HERE}
    processes = {row: start(trees[tree], row, size) for row, (tree, *_) in ROWS.items()}
    try:
        for process in processes.values():  # code is loaded and compiled
            take_turn(process)
        found = {row: [] for row in ROWS}
        for _ in range(turns):
            for row, process in processes.items():
                found[row].append(take_turn(process))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def compare(former: Path, size: str, turns: int) -> None:
    """Print the table of one size of model."""
    sys.path.insert(0, str(HERE))

    found = seconds_of_turns(former, size, turns)
    print(f"\n| {size} | seconds a step: process, wall | crops a second of one core "
          "| of V2, former flow |\n" + "|---" * 4 + "|")
    crop = {row: [process / ROWS[row][3] for process, _ in found[row]] for row in ROWS}
    shares = list(canvas_of(size, "canvas_first", "canvas_flow").values())
    shares.append(1 - sum(shares))
    canvas = [seconds for row, seconds in crop.items() if row.startswith("canvas of both")]
    for model in ("V1", "V2"):
        crop[f"{model}, a whole training"] = [
            sum(map(operator.mul, shares, parts))
            for parts in zip(*canvas, crop[f"{model}, tokens"])
        ]
    for row, seconds in crop.items():
        clocks = ", ".join(f"{statistics.median(clock):.3f}" for clock in zip(*found.get(row, [])))
        ratios = sorted(a / b for a, b in zip(crop["V2, former flow"], seconds))
        print(f"| {row} | {clocks} | {1 / statistics.median(seconds):.1f} "
              f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
              flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tree", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tree:
        work(given.tree, given.row, given.sizes[0])
        return
    with former_tree() as former:
        for size in given.sizes:
            compare(former, size, given.turns)


if __name__ == "__main__":
    main()
