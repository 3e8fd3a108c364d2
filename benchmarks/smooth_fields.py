"""Smooth fields measured in clusters, along transects and evenly: a table of docs/gaussian.md.

    python benchmarks/smooth_fields.py
    python benchmarks/smooth_fields.py --before ../before      # beside another checkout

Fields of known covariance on the unit square, of variance 1, at 60 places in six clusters of sd
.02, at 120 along ten transects with steps of .01, or at 80 uniform ones; scored at 150 uniform
places each. Evenly spread places show that honest intervals elsewhere cost nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist

from common import ROOT, describe_machine, errors, mean_of, table, ways

sys.path.insert(0, str(ROOT))

QUERIES = 150
COVARIANCES = {
    "exponential, .3": lambda h: np.exp(-h / 0.3),
    "Matern 3/2, .2": lambda h: (1 + 3**0.5 * h / 0.2) * np.exp(-(3**0.5) * h / 0.2),
    "Gaussian, .25": lambda h: np.exp(-((h / 0.25) ** 2)),
}


def clusters(rng: np.random.Generator) -> np.ndarray:
    middles = rng.uniform(0.1, 0.9, size=(6, 2)).repeat(10, axis=0)
    return middles + 0.02 * rng.normal(size=middles.shape)


def transects(rng: np.random.Generator) -> np.ndarray:
    start, angle = rng.uniform(size=(10, 1, 2)), rng.uniform(0, np.pi, size=10)
    ahead = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None]
    return (start + 0.01 * np.arange(12)[:, None] * ahead).reshape(-1, 2)


def evenly(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(size=(80, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--fields", type=int, default=30)
    given = parser.parse_args()
    methods, rows = ways(given.before), []
    for name, covariance in COVARIANCES.items():
        for places in (clusters, transects, evenly):
            found: dict[str, list[dict[str, float]]] = {way: [] for way in methods}
            for seed in range(given.fields):
                rng = np.random.default_rng(seed)
                observed = np.unique(places(rng).clip(0, 1), axis=0)
                at = np.concatenate([observed, rng.uniform(size=(QUERIES, 2))])
                root = np.linalg.cholesky(covariance(cdist(at, at)) + 1e-8 * np.eye(len(at)))
                field = root @ rng.normal(size=(len(at), 1))
                known, truth = field[:-QUERIES], field[-QUERIES:]
                middle, spread = known.mean(), known.std()
                task = [torch.from_numpy(x)[None] for x in
                        (observed, (known - middle) / spread, at[-QUERIES:])]
                for way, method in methods.items():
                    mean, sd = (method(*task)[key][0].numpy() for key in ("mean", "sd"))
                    found[way].append(errors(middle + spread * mean, spread * sd, truth))
            for way, scores in found.items():
                mean = mean_of(scores)
                rows.append([name, places.__name__, way, f"{mean['rmse']:.3f}",
                             f"{mean['crps']:.3f}", f"{mean['covered']:.0%}"])
    print(f"{describe_machine()}, seeds 0 to {given.fields - 1}\n")
    table(["covariance, range", "places", "", "RMSE", "CRPS", "in 90 % intervals"], rows)


if __name__ == "__main__":
    main()
