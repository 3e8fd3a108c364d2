"""Samples of the former flow beside those of the present one: what starting from a field is worth.

    python benchmarks/former.py --data_test natural32_val.npz                # about 15 minutes
    python benchmarks/former.py --data_test natural32_val.npz --pictures 16 --draws 6

The former flow is commit f7b6c33 with the weights that came with it: it started from independent
noise around the kriging of one kernel, and knew no canvas. It is checked out into a temporary git
worktree and run there; the same fields are observed at the same points, and its fields are scored
by the present code. Both go by Heun's rule; the former took 20 steps by default (an hour here:
`--former_steps 4 20`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, describe_machine, table
from throughput import FORMER, former_tree

WEIGHTS = "checkpoints_mamba_v2/mamba_v2_best.pth"


def draw_formerly(tree: Path, fields: Path, steps: int, count: int, target: Path) -> None:
    """In a process of its own: `count` samples (n, K, H W, C) in [-1, 1] of the former model."""
    sys.path.insert(0, str(tree))
    import torch
    from sparsefield.checkpoint import load_model  # of the former tree
    from sparsefield.samplers import sample

    from sparsefield.place import grid_coords

    model, _ = load_model(tree / WEIGHTS)
    seen = np.load(fields)
    coords, values = (torch.from_numpy(seen[name]) for name in ("coords", "values"))
    grid = grid_coords(*seen["shape"]).expand(len(coords), -1, -1)
    draws, start = [], time.process_time()
    for seed in range(count):
        seeds = [count * k + seed for k in range(len(coords))]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = sample(model, grid, coords, values, seeds=seeds, num_steps=steps)
        draws.append(found.values.float().numpy())
    np.savez(target, draws=np.stack(draws, axis=1),
             seconds=(time.process_time() - start) / (count * len(coords)))


def former_outcomes(cases, given: argparse.Namespace) -> dict:
    """{steps: outcome} of the former model."""
    from sparsefield.data.scale import to_unit
    from sparsefield.evaluate.baselines import keep_observations
    from sparsefield.evaluate.cases import Outcome

    found = {}
    with former_tree() as tree, tempfile.TemporaryDirectory() as folder:
        fields = Path(folder) / "fields.npz"
        np.savez(fields, coords=np.stack([case.coords.numpy() for case in cases]),
                 values=np.stack([case.values.numpy() for case in cases]),
                 shape=cases.shape(cases.rows))
        for steps in given.former_steps:
            target = Path(folder) / f"{steps}.npz"
            subprocess.run([sys.executable, __file__, "--former", str(tree), str(fields),
                            str(steps), str(given.draws), str(target)], check=True)
            drawn = np.load(target)
            fields_of = [
                np.stack([keep_observations(
                    to_unit(one).reshape(case.truth.shape).astype(np.float32),
                    case.coords.numpy(), to_unit(case.values.numpy())) for one in own])
                for case, own in zip(cases, drawn["draws"])
            ]
            found[steps] = Outcome(fields_of, cases.rows, 2 * steps - 1, float(drawn["seconds"]),
                                   f"heun, {steps} steps")
    return found


def row(name: str, cases, outcome, seconds: float) -> list[str]:
    from sparsefield.evaluate import uncertainty

    numbers = cases.numbers(outcome)

    def mean(key: str) -> float:
        return float(np.nanmean([one[key] for one in numbers]))

    inside = ", ".join(f"{100 * mean(key):.0f}" for key in (
        "coverage_90", "coverage_90_4x4", "coverage_90_8x8", "coverage_90_luminance"))
    ratio = uncertainty.spread_error_ratio(
        *([one[key] for one in numbers] for key in ("variance", "squared_error"))
    )
    return [name, f"{mean('crps'):.4f}", f"{ratio:.2f}", f"{inside} %", f"{mean('psnr'):.2f}",
            f"{mean('speckle_0.10'):.4f}, {mean('missed_0.10'):.4f}", f"{mean('flat_hf'):.4f}",
            f"{seconds:.3f}"]


def compare(given: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    import torch

    from sparsefield.data import open_data, parse_pattern
    from sparsefield.evaluate.cases import Cases, spread
    from sparsefield.model.checkpoint import build_model, load_checkpoint
    from sparsefield.model.field import GaussianModel

    torch.set_num_threads(1)
    data = open_data(given.data_test, val=given.data_test, test=given.data_test)
    cases = Cases(data.test, parse_pattern("random:0.2"),
                  spread(range(len(data.test)), given.pictures))
    print(f"{len(cases)} pictures of {data.name}, {given.draws} samples of each; "
          f"{describe_machine()}\n")
    rows = [row(f"former V2 ({FORMER}), {outcome.how}", cases, outcome, outcome.seconds)
            for outcome in former_outcomes(cases, given).values()]
    gaussian, present = GaussianModel(), build_model(load_checkpoint(given.checkpoint))
    settings = [("kriging, fitted: its draws", gaussian, 1)]
    settings += [(f"present V2, heun, {steps} steps", present, steps) for steps in given.steps]
    for name, model, steps in settings:
        start = time.process_time()
        outcome = cases.sample(model, draws=given.draws, method="heun", num_steps=steps)
        seconds = (time.process_time() - start) / (len(cases) * given.draws)
        rows.append(row(name, cases, outcome, seconds))
    table(["", "CRPS", "spread / error",
           "in 90 % intervals: points, 4 × 4, 8 × 8, luminance", "PSNR of a sample",
           "speckle, missed above 0.10", "grain", "seconds of a core a sample"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_test", default="photos")
    parser.add_argument("--checkpoint", default="shipped")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--former_steps", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--former", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.former:
        tree, fields, steps, count, target = given.former
        draw_formerly(Path(tree), Path(fields), int(steps), int(count), Path(target))
    else:
        compare(given)


if __name__ == "__main__":
    main()
