"""What hold-out says of clustered measurements, and what is true: the table of docs/stations.md.

    python benchmarks/clusters.py

Kriging from 8 clusters: of 12 stations each, next to 8 stations drawn at random from
docs/stations.csv, and of 15 places of sd .03 in simulated fields. It is scored by hold-out at
random, by hold-out in blocks, and truly: at all other stations, and everywhere in the field.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np
import torch

from common import ROOT, describe_machine, table

sys.path.insert(0, str(ROOT))

from sparsefield import load
from sparsefield.gaussian import kernels
from sparsefield.use import globe, holdout
from sparsefield.use.blocks import blocks_of
from sparsefield.use.grids import what_is_asked
from sparsefield.use.points import Measurements
from sparsefield.use.read import read_measurements

CLUSTERS = 8
Case = tuple[Measurements, Measurements]  # what is measured, and what is true elsewhere


def stations(rng: np.random.Generator) -> Case:
    every = read_measurements(str(ROOT / "docs/stations.csv"), channels=1, lonlat=True,
                              value=["temperature"])
    places = globe.on_sphere(every.coords)
    middles = places[rng.choice(len(places), CLUSTERS, replace=False)]
    is_near = (places @ middles.T).argsort(axis=0).argsort(axis=0) >= len(places) - 12
    return every.of(is_near.any(axis=1)), every.of(~is_near.any(axis=1))


def simulated(kernel: kernels.Kernel) -> Callable[[np.random.Generator], Case]:
    def case(rng: np.random.Generator) -> Case:
        middles = rng.uniform(0.1, 0.9, size=(CLUSTERS, 2)).repeat(15, axis=0)
        coords = np.concatenate([(middles + 0.03 * rng.normal(size=middles.shape)).clip(0, 1),
                                 rng.uniform(size=(500, 2))])
        waves = kernels.features(kernel, torch.from_numpy(coords)).numpy()
        values = waves @ rng.normal(size=(waves.shape[1], 1))
        count = len(middles)
        return (Measurements(coords[:count], values[:count]),
                Measurements(coords[count:], values[count:]))

    return case


CASES = {"stations, temperature": stations,
         "Matern 3/2, range .2": simulated(kernels.Kernel(1.5, 0.2)),
         "Matern 5/2, range .2": simulated(kernels.Kernel(2.5, 0.2))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    model, rows = load("none"), []
    for name, make in CASES.items():
        found: dict[str, list[holdout.Score]] = {}
        for seed in range(given.seeds):
            known, others = make(np.random.default_rng(seed))
            (x0, y0), (x1, y1) = others.coords.min(axis=0), others.coords.max(axis=0)
            known, asked = what_is_asked(known, lonlat=make is stations, extent=(x0, x1, y0, y1))
            blocks = blocks_of(asked, known.coords, 0.2, seed)
            kriging = holdout.by_model(model, asked.frame, asked.extent, separately=True)
            for way, folds in {
                "random hold-out": holdout.by_points(known, 0.2, seed),
                "blocks": holdout.by_blocks(known, blocks),
                "the truth": [holdout.Fold(known, others, np.arange(len(others.coords)))],
            }.items():
                found.setdefault(way, []).append(
                    holdout.compare_folds({"kriging": kriging}, folds)[0])
        for way, scores in found.items():
            rows.append([name, way, f"{np.mean([score.rmse for score in scores]):.2f}",
                         f"{np.mean([score.crps for score in scores]):.2f}",
                         f"{np.mean([score.covered for score in scores]):.0%}"])
    print(f"{describe_machine()}, seeds 0 to {given.seeds - 1}\n")
    table(["field", "scored by", "RMSE", "CRPS", "in 90 % intervals"], rows)


if __name__ == "__main__":
    main()
