"""The table of docs/gaussian.md: kriging with one kernel against kriging fitted to the field.

    python benchmarks/gaussian_table.py                              # photos and terrain
    python benchmarks/gaussian_table.py --pictures val.npz --observed 20
    python benchmarks/gaussian_table.py --fields 8 --observed 20     # a first look

Fields are 32 x 32; the observed pixels of field i depend on the seed and i alone. `one kernel` has
the variogram |h|, one sd for all channels and noise that is independent from value to value;
`fitted` is sparsefield.gaussian as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from common import ROOT, describe_machine, table
from torch import Tensor

sys.path.insert(0, str(ROOT))

from sparsefield.data import open_data, parse_pattern
from sparsefield.data.scale import to_unit
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Case, Cases
from sparsefield.gaussian import ONE_KERNEL, condition
from sparsefield.place import Domain, grid_coords

DRAWS = 39
COVERED = ("coverage_90", "coverage_90_4x4", "coverage_90_8x8")


def generators(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + k) for k in range(DRAWS)]


def answers(case: Case, queries: Tensor, fitted: bool) -> tuple[Tensor, Tensor]:
    """Mean (N, C) and draws (K, N, C) at all places (N, 2)."""
    domain = Domain.of_grid(*case.truth.shape[:2])
    bank = None if fitted else ONE_KERNEL
    posterior = condition(case.coords[None], case.values[None], domain=domain, kernels=bank)
    answer, made = posterior.at(queries[None]), generators(case.index)
    if fitted:
        return answer.mean[0], answer.mean + answer.sd * posterior.noise(queries[None])(made)
    sd = answer.sd.square().mean(dim=2, keepdim=True).sqrt()
    z = torch.stack([torch.randn(answer.mean[0].shape, generator=g) for g in made])
    return answer.mean[0], answer.mean + sd * z


def score(case: Case, fitted: bool) -> dict[str, float]:
    """PSNR of the mean, and the numbers of the draws."""
    shape = case.truth.shape
    mean, draws = (to_unit(x.reshape(-1, *shape).clamp(-1, 1).numpy())
                   for x in answers(case, grid_coords(*shape[:2]), fitted))
    for field in (mean, draws):
        field.reshape(len(field), -1, shape[2])[:, case.observed] = to_unit(case.values.numpy())
    found = metrics.evaluate_samples(draws, case.truth, case.observed)
    return found | {"psnr": metrics.psnr(mean[0], case.truth),
                    "speckle": metrics.speckle(draws[0], case.truth, 0.10),
                    "grain": metrics.flat_hf(draws[0], case.truth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help=".npz with `images`, (n, 32, 32, 3) uint8")
    parser.add_argument("--fields", type=int, default=128, help="of each data set, at most")
    parser.add_argument("--observed", type=int, nargs="+", default=[10, 20, 40], help="per cent")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    splits = {name: open_data(name).val for name in ("photos", "terrain")}
    if given.pictures:
        whole = str(given.pictures)
        splits = {"pictures": open_data(whole, val=whole).val} | splits
    rows = []
    for name, split in splits.items():
        for share in given.observed:
            cases = Cases(split, parse_pattern(f"random:{share / 100}"),
                          range(min(given.fields, len(split))), seed=given.seed)
            for fitted in (False, True):
                found = [score(case, fitted) for case in cases]
                mean = {key: np.nanmean([each[key] for each in found]) for key in found[0]}
                rows.append([
                    f"{name}, {len(cases)}", f"{share} %", "fitted" if fitted else "one kernel",
                    f"{mean['psnr']:.2f} dB", f"{mean['crps']:.4f}",
                    *(f"{mean[key]:.0%}" for key in COVERED),
                    f"{mean['speckle']:.3f}", f"{mean['grain']:.3f}"])
    print(f"{describe_machine()}, seed {given.seed}\n")
    table(["fields", "observed", "kriging", "PSNR of the mean", "CRPS", "points", "4 x 4 means",
           "8 x 8 means", "speckle(.10)", "grain"], rows)


if __name__ == "__main__":
    main()
