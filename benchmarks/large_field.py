"""A field of 512 x 512 from 2,000 and from 100,000 points: time, peak memory, seams.

    python benchmarks/large_field.py                                    # the closed form, and V2
    python benchmarks/large_field.py --checkpoints none --points 2000 --resolution 256

Three channels of a random field of power 1.2 in 0 ... 255, with an edge through the middle; two
samples, Heun with 2 steps as by default. Each row runs in a process of its own, so that the peak is
its own: of that process, torch included. Process time counts the work of all threads; a second
number is wall time. Seams: the mean step between neighbouring pixels of two blocks over that of the
pairs beside them, for samples and for the mean; 1 if nothing is to be seen (pairs next to a
measured pixel are left out). The rms error of the mean is over all pixels. `closed form` is the
wall time before the first call of the network; parts are how often progress was reported.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import ROOT, describe_machine, print_row

sys.path.insert(0, str(ROOT))

SAMPLES = 2


def truth_at(coords: torch.Tensor) -> np.ndarray:
    """Values (N, 3) of about 0 ... 255 at (N, 2)."""
    from sparsefield.gaussian import Kernel
    from sparsefield.gaussian.draws import FEATURES, Waves

    generator = torch.Generator().manual_seed(0)
    waves = Waves(Kernel(1.2), coords).fields(torch.randn(3, FEATURES, generator=generator)).T
    edge = 40 * (coords[:, :1] + 0.5 * coords[:, 1:] > 0.7)
    return (100 + 40 * (waves - waves.mean(dim=0)) + edge).numpy()


def blocks_of(side: int, coords: torch.Tensor) -> torch.Tensor:
    """(H, W), which block answered each pixel, -1 for those that were measured."""
    from sparsefield.flow.blocks import block_of, cut_blocks
    from sparsefield.place import grid_coords
    from sparsefield.use.predict import block_size, which_observed

    queries = grid_coords(side, side)
    asked = torch.from_numpy(which_observed(queries, coords) < 0)
    blocks = cut_blocks(queries[asked][None], block_size(int(asked.sum()), len(coords)), 0)
    found = torch.full((len(queries),), -1)
    found[asked] = block_of(blocks)
    return found.view(side, side)


def measure(checkpoint: str, points: int, side: int) -> list[str]:
    """One row of the table."""
    from sparsefield import load
    from sparsefield.flow.blocks import jump_across_borders
    from sparsefield.place import grid_coords

    coords = torch.rand(points, 2, generator=torch.Generator().manual_seed(1))
    everything = truth_at(torch.cat([coords, grid_coords(side, side)]))
    values, truth = everything[:points], everything[points:].reshape(side, side, 3)
    model = load(checkpoint, "cpu")
    calls: list[tuple[float, int | None]] = []
    process, wall = time.process_time(), time.perf_counter()

    def progress(done: int, total: int | None) -> None:
        calls.append((time.perf_counter() - wall, total))
        if sys.stderr.isatty():
            print(f"\rpart {done} of {total}, {calls[-1][0]:.0f} s", end="", file=sys.stderr)

    field = model.reconstruct(coords.numpy(), values, side, num_samples=SAMPLES, progress=progress)
    seconds = time.process_time() - process, time.perf_counter() - wall
    block = blocks_of(side, coords)
    seams = [jump_across_borders(torch.from_numpy(np.asarray(x)), block)
             for x in (field.samples, field.mean)]
    error = np.sqrt(np.mean((field.mean - truth) ** 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    closed_form = max(t for t, total in calls if total is None)
    return [Path(checkpoint).stem, f"{points:,}", f"{side} x {side}", str(int(block.max()) + 1),
            str(len(calls)), f"{closed_form:,.0f}", f"{seconds[0]:,.0f} / {seconds[1]:,.0f}",
            f"{peak:.2f}", f"{seams[0]:.3f} / {seams[1]:.3f}", f"{error:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", nargs="+", default=["none", "shipped"])
    parser.add_argument("--points", type=int, nargs="+", default=[2000, 100_000])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("|".join(measure(given.checkpoints[0], given.points[0], given.resolution)))
        return
    print(describe_machine() + "\n")
    head = ["checkpoint", "points", "field", "blocks", "parts", "closed form, s",
            "process / wall, s", "peak, GiB", "seams: samples / mean", "rms error"]
    for cells in (head, ["---"] * len(head)):
        print_row(cells)
    for checkpoint in given.checkpoints:
        for points in given.points:
            command = [sys.executable, __file__, "--one", "--checkpoints", checkpoint, "--points",
                       str(points), "--resolution", str(given.resolution)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print_row(done.stdout.strip().split("|"))


if __name__ == "__main__":
    main()
