"""A field of 512 x 512 from 2,000, 52,000 and 100,000 points: time and peak memory.

    python benchmarks/large_field.py                        # SciPy's splines, the closed form, V2
    python benchmarks/large_field.py --checkpoints none --points 2000 --resolution 256
    python benchmarks/large_field.py --photograph           # the closed form, step by step

Three channels of a rough random field in about 0 ... 255, with an edge through the middle; two
samples, Heun with 2 steps as by default; of RBFInterpolator(neighbors=64) the mean alone, and of
`mean` that of V2, from the network, without the checks of `reconstruct`. Each row
runs in a process of its own, so that the peak is its own, torch included. Process time counts the
work of all threads. `closed form` is the wall time before the first call of the network; the error
is over all pixels. Seams between blocks are tested in tests/flow/test_seams.py.
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
from scipy.interpolate import RBFInterpolator

from common import ROOT, describe_machine, print_row, table

sys.path.insert(0, str(ROOT))

SAMPLES = 2
RBF, MEAN = "rbf", "mean"
PHOTOGRAPH = 512  # pixels a side


def truth_at(coords: torch.Tensor) -> np.ndarray:
    """Values (N, 3) of about 0 ... 255 at (N, 2): plane waves, the faster the weaker."""
    generator = torch.Generator().manual_seed(0)
    speed = 2 ** (7 * torch.rand(256, generator=generator))
    angle, phase = 6.2832 * torch.rand(2, 256, generator=generator)
    waves = torch.stack([torch.cos(angle), torch.sin(angle)]) * speed
    weights = torch.randn(256, 3, generator=generator) * speed[:, None] ** -0.6
    fields = torch.cat([torch.cos(part @ waves + phase) @ weights for part in coords.split(10_000)])
    edge = 40 * (coords[:, :1] + 0.5 * coords[:, 1:] > 0.7)
    return (100 + 10 * fields + edge).numpy()


def measure(checkpoint: str, points: int, side: int) -> list[str]:
    """One row of the table."""
    from sparsefield import load
    from sparsefield.device import has_fast_bfloat16
    from sparsefield.flow.sampling import sample
    from sparsefield.place import grid_coords
    from sparsefield.use.predict import INPUTS

    coords = torch.rand(points, 2, generator=torch.Generator().manual_seed(1))
    grid = grid_coords(side, side)
    values, truth = truth_at(coords), truth_at(grid).reshape(side, side, 3)
    model = None
    if checkpoint != RBF:
        model = load("bundled" if checkpoint == MEAN else checkpoint, "cpu")
    calls: list[tuple[float, int | None]] = []
    process, wall = time.process_time(), time.perf_counter()

    def progress(done: int, total: int | None) -> None:
        calls.append((time.perf_counter() - wall, total))

    if model is None:
        found = RBFInterpolator(coords.numpy(), values, neighbors=64)(grid.numpy())
        mean = found.reshape(truth.shape)
    elif checkpoint == MEAN:
        inside = torch.from_numpy(values).float()[None] / 127.5 - 1
        found = sample(model.network, grid[None], coords[None], inside, seeds=[[0]], method="mean",
                       points=0, most_inputs=INPUTS, clip=False, bfloat16=has_fast_bfloat16())
        mean = (found.mean[0].numpy().reshape(truth.shape) + 1) * 127.5
    else:
        mean = model.reconstruct(coords.numpy(), values, side, num_samples=SAMPLES,
                                 progress=progress).mean
    seconds = time.process_time() - process, time.perf_counter() - wall
    error = np.sqrt(np.mean((mean - truth) ** 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    closed_form = max((t for t, total in calls if total == calls[0][1]), default=0.0)
    return [Path(checkpoint).stem, f"{points:,}", f"{side} x {side}", f"{closed_form:,.0f}",
            f"{seconds[0]:,.0f} / {seconds[1]:,.0f}", f"{peak:.2f}", f"{error:.2f}"]


def photograph() -> list[list[str]]:
    """Seconds of the closed form's steps on a picture of which 20 % of the pixels are known, three
    times."""
    from skimage import data, transform

    from sparsefield.gaussian import condition
    from sparsefield.place import grid_coords

    picture = transform.resize(data.astronaut(), (PHOTOGRAPH, PHOTOGRAPH)).reshape(-1, 3)
    pixels, grid = torch.from_numpy(picture).float() * 2 - 1, grid_coords(PHOTOGRAPH, PHOTOGRAPH)
    mixed = torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))
    known, hidden = (part.sort().values for part in mixed.split(
        [len(grid) // 5, len(grid) - len(grid) // 5]))
    rows = []
    for _ in range(3):
        times = [time.perf_counter()]
        posterior = condition(grid[known][None], pixels[known][None])
        times.append(time.perf_counter())
        answer = posterior.at(grid[hidden][None])
        times.append(time.perf_counter())
        posterior.noise(grid[hidden][None])(
            [torch.Generator().manual_seed(k) for k in range(SAMPLES)])
        times.append(time.perf_counter())
        square = (answer.mean[0].clamp(-1, 1) - pixels[hidden]).square().sum() / pixels.numel()
        rows.append([f"{step:.2f}" for step in np.diff(times)]
                    + [f"{10 * np.log10(4 / float(square)):.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", nargs="+", default=[RBF, "none", MEAN, "bundled"])
    parser.add_argument("--points", type=int, nargs="+", default=[2000, 52_000, 100_000])
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--photograph", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("|".join(measure(given.checkpoints[0], given.points[0], given.resolution)))
        return
    print(describe_machine() + "\n")
    if given.photograph:
        table(["fit, s", "mean and sd, s", "two samples, s", "PSNR, dB"], photograph())
        return
    head = ["checkpoint", "points", "field", "closed form, s", "process / wall, s", "peak, GiB",
            "rms error"]
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
