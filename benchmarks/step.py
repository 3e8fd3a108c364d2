"""Whole training steps of the default V2, and a reconstruction: time, shares, memory.

    python benchmarks/step.py                     # all tables, about 2 minutes on two cores
    python benchmarks/step.py --tables shares     # some: steps, shares, batches

16 pictures, 204 observations and 204 queries each; a step is preparation (kriging, canvas,
neighbours, order), forward, backward, clipping and the optimiser. A painted step, of the first part
of a training, teaches the canvas alone, at all 820 other points. The reconstruction asks for the
posterior mean of one picture at all 1,024 points from 204. Ways take turns within a round; ratios
are medians of the rounds' ratios. Random weights: cost does not depend on what they are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from common import (
    ROOT,
    describe_machine,
    interleave,
    memory_in_a_process_of_its_own,
    milliseconds,
    print_added_memory,
    ratio,
    table,
)
from torch.profiler import profile

sys.path.insert(0, str(ROOT))

from sparsefield.train.pairs import Pairs, canvas_loss, slope_loss

from sparsefield.data import Batch
from sparsefield.flow.sampling import sample
from sparsefield.device import has_fast_bfloat16
from sparsefield.place import grid_coords
from sparsefield.train.config import TrainingConfig
from sparsefield.train.optimise import Optimiser
from train_mamba_v2 import MAMBADiffusionV2

POINTS = 204
# The first group that an operator's name contains a word of.
GROUPS = {
    "scan": ("selective_scan",),
    "convolution and SiLU": ("causal_conv", "convolution", "silu"),
    "attention": ("attention",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn"),
    "casts and copies": ("copy_", "_to_copy", "aten::cat", "aten::gather", "aten::scatter"),
    "norms, GELU": ("layer_norm", "gelu"),
    "kriging, neighbours, order": ("cholesky", "cdist", "topk", "sort", "triangular"),
    "optimiser, clipping": ("adamw", "lerp", "_foreach", "vector_norm"),
}


def make_batch(size: int, queries: int = POINTS) -> Batch:
    """Fields of 32 x 32 that share one layout of observations, as in training."""
    torch.manual_seed(0)
    order, grid = torch.randperm(1024), grid_coords(32, 32)
    observed, queried = (part.sort().values.expand(size, -1)
                         for part in (order[:POINTS], order[POINTS : POINTS + queries]))
    return Batch(
        input_index=observed,
        input_coords=grid[observed],
        input_values=torch.rand(size, POINTS, 3) * 2 - 1,
        query_index=queried,
        query_coords=grid[queried],
        x_1=torch.rand(size, queries, 3) * 2 - 1,
        draws=torch.arange(size),
        turn=torch.zeros(size, dtype=torch.long),
        layout=torch.zeros(size, dtype=torch.long),
        field=torch.full((size,), -1),  # none comes again: its closed form is computed
        symmetry=torch.zeros(size, dtype=torch.long),
        answered=torch.arange(POINTS).expand(size, -1),
        theta=torch.rand(size),
    )


class Training:
    """A model and its optimiser; calling it takes a step."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = MAMBADiffusionV2(canvas_width=TrainingConfig.canvas_width,
                                      canvas_flow_width=TrainingConfig.canvas_flow_width)
        self.optimiser = Optimiser(self.model, TrainingConfig.optimiser, 1e-5, 0.01)
        self.pairs = Pairs(self.model, 32, 32, torch.device("cpu"))

    def __call__(
        self, batch: Batch, bfloat16: bool, backend: str = "auto", paints: bool = False
    ) -> None:
        os.environ["SCAN"] = backend
        pair = self.pairs(batch, with_draws=not paints)
        loss_of = canvas_loss if paints else slope_loss
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of(self.model, batch, pair).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()


def reconstruct(model: MAMBADiffusionV2, bfloat16: bool) -> None:
    batch = make_batch(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        sample(model, grid_coords(32, 32)[None], batch.input_coords, batch.input_values,
               seeds=[[0]], method="mean")


def ways(bfloat16: bool, size: int = 16) -> dict[str, Callable[[], None]]:
    training, batch, dense = Training(), make_batch(size), make_batch(size, 1024 - POINTS)
    painted = partial(training, dense, paints=True)
    return {
        "step, float32, scan in PyTorch": partial(training, batch, False, "torch"),
        "step, float32": partial(training, batch, False),
        **({"step, bfloat16": partial(training, batch, True)} if bfloat16 else {}),
        "painted step, float32": partial(painted, bfloat16=False),
        **({"painted step, bfloat16": partial(painted, bfloat16=True)} if bfloat16 else {}),
        "reconstruction 32 × 32, float32": partial(reconstruct, training.model, False),
        **({"reconstruction 32 × 32, bfloat16": partial(reconstruct, training.model, True)}
           if bfloat16 else {}),
    }


def compare_steps(bfloat16: bool, rounds: int) -> None:
    runs = ways(bfloat16)
    found = interleave(runs, rounds)
    rows = []
    for name in runs:
        kind = name.split(",")[0]
        rows.append([name, milliseconds(found[name]),
                     ratio(found[name], found[f"{kind}, float32"]),
                     memory_in_a_process_of_its_own("--memory_of", name)])
    table(["default V2", "ms", "of float32", "memory it adds, MiB"], rows)


def shares(run: Callable[[], None]) -> dict[str, float]:
    """Milliseconds by group of operators, each operator without those that it calls."""
    run()
    with profile() as recorded:
        run()
    found = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in recorded.key_averages():
        name = event.key.lower()
        group = next((group for group, words in GROUPS.items()
                      if any(word in name for word in words)), "everything else")
        found[group] += event.self_cpu_time_total / 1000
    return found


def compare_shares(bfloat16: bool) -> None:
    found = {name: shares(run) for name, run in ways(bfloat16).items() if "PyTorch" not in name}
    rows = [[group, *(f"{parts[group]:,.0f} ({parts[group] / sum(parts.values()):.0%})"
                      for parts in found.values())] for group in [*GROUPS, "everything else"]]
    table(["ms (share)", *found], rows)


def compare_batches(bfloat16: bool, rounds: int) -> None:
    training, sizes = Training(), (1, 4, 16, 64)
    runs = {size: partial(training, make_batch(size), bfloat16) for size in sizes}
    found = interleave(runs, rounds)
    rows = [[str(size), milliseconds(found[size]),
             ratio([s * 16 / size for s in found[size]], found[16])] for size in sizes]
    precision = "bfloat16" if bfloat16 else "float32"
    table([f"batch (step, {precision})", "ms", "cost of a picture, of batch 16"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["steps", "shares", "batches"]
    parser.add_argument("--tables", nargs="+", default=every, choices=every)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    bfloat16 = has_fast_bfloat16()
    if given.memory_of:
        ways(bfloat16, size=1)[given.memory_of]()    # code is loaded
        print_added_memory(ways(bfloat16)[given.memory_of])
        return
    print(f"{describe_machine()}; medians (ranges) of {given.rounds} rounds")
    print("" if bfloat16 else "no rows for bfloat16: this CPU does not multiply it in hardware\n")
    if "steps" in given.tables:
        compare_steps(bfloat16, given.rounds)
    if "shares" in given.tables:
        compare_shares(bfloat16)
    if "batches" in given.tables:
        compare_batches(bfloat16, given.rounds)


if __name__ == "__main__":
    main()
