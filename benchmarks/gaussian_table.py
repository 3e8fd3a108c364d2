"""The table of docs/gaussian.md: kriging with one kernel against kriging fitted to the field.

    python benchmarks/gaussian_table.py                              # fault, coast, photos, tracer
    python benchmarks/gaussian_table.py relief sst winds --ferret debs/usr/share/ferret-vis/data
    python benchmarks/gaussian_table.py pictures --pictures val.npz --fields 160
    python benchmarks/gaussian_table.py fault --before ../before     # beside another checkout

Fields of 32 x 32; the observed points of field i depend on the seed and i alone. Fault and coast
are cut from the elevation models inside matplotlib, as they are; relief, sst and winds are test
tiles (fields_table.py); `tracer` is a smooth field that a random incompressible flow has carried.
`one kernel` has the variogram |h|, one sd for all channels and noise that is independent from value
to value; `now` is sparsefield.gaussian as it is. RMSE, CRPS and the share of points in 90 %
intervals are of hidden points, from mean and sd; the rest is from 39 draws of the whole field.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.cbook
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from common import ROOT, closed_form, describe_machine, errors, mean_of, table, ways

sys.path.insert(0, str(ROOT))

from fields_table import SOURCES
from sparsefield.data import open_data, parse_pattern
from sparsefield.data.scale import Scale, pixel_scale, to_unit
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Case, Cases
from sparsefield.place import grid_coords

DRAWS = 39
COVERED = ("covered", "coverage_90_4x4", "coverage_90_8x8")
SIDE = 32
TILES = {name: SOURCES[name][0] for name in ("relief", "sst", "winds")}
ELEVATION = {"fault": ("jacksboro_fault_dem.npz", "elevation", 32),
             "coast": ("topobathy.npz", "topo", 16)}


class Crops:
    """All fields of an elevation model, every `step` points, as a split."""

    def __init__(self, file: str, name: str, step: int):
        whole = matplotlib.cbook.get_sample_data(file)[name].astype(float)[..., None]
        self.scale = Scale(((whole.min(), whole.max()),), "m")
        tops, lefts = (range(0, size - SIDE + 1, step) for size in whole.shape[:2])
        self.crops = [self.scale.to_inside(whole[i : i + SIDE, j : j + SIDE])
                      for i in tops for j in lefts]

    def __len__(self) -> int:
        return len(self.crops)

    def example(self, index: int) -> np.ndarray:
        return self.crops[index]


class Tracer:
    """What an incompressible flow made of a smooth field, as fields of a split; see `example`."""

    def __init__(self, steps: int = 15):
        self.steps = steps

    def __len__(self) -> int:
        return 256

    def example(self, index: int) -> np.ndarray:
        """(SIDE, SIDE, 1): on a torus each point is followed back along the flow, a cell a step."""
        rng = np.random.default_rng(index)
        stream, start = (gaussian_filter(rng.normal(size=(SIDE, SIDE)), sigma, mode="wrap")
                         for sigma in (5, 4))
        along_y, along_x = np.gradient(np.pad(stream, 1, mode="wrap"))
        velocity = np.stack([along_x, -along_y])[:, 1:-1, 1:-1]
        velocity /= np.sqrt((velocity**2).sum(axis=0).mean())
        places = np.indices((SIDE, SIDE)).astype(float)
        for _ in range(self.steps):
            places -= [map_coordinates(v, places, order=1, mode="grid-wrap") for v in velocity]
        field = map_coordinates(start, places, order=3, mode="grid-wrap")
        return (field / np.abs(start).max())[..., None].astype(np.float32)


def opened(name: str, ferret: Path | None, pictures: Path | None) -> tuple[object, Scale]:
    """The fields of a data set, and the scale of their values."""
    if name == "tracer":
        return Tracer(), Scale(((-1.0, 1.0),))
    if name in ("photos", "pictures"):
        data = open_data("photos") if name == "photos" else open_data(
            str(pictures), val=str(pictures))
        return data.val, pixel_scale(3)
    if name in ELEVATION:
        crops = Crops(*ELEVATION[name])
        return crops, crops.scale
    source = TILES[name]
    data = open_data(str(ferret / source.file), variables=source.values)
    return data.test, data.scale


def chosen(name: str, count: int, most: int) -> list[int]:
    """Which fields: the first pictures, else evenly those of a data set."""
    if name in ("photos", "pictures"):
        return list(range(min(most, count)))
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def score(case: Case, scale: Scale, method, **settings: object) -> dict[str, float]:
    shape, queries = case.truth.shape, grid_coords(*case.truth.shape[:2])
    seeds = [1000 * case.index + k for k in range(DRAWS)]
    middle, spread = float(case.values.mean()), float(case.values.std()) + 1e-12
    found = method(case.coords[None], (case.values[None] - middle) / spread, queries[None], seeds,
                   **settings)
    mean, sd, draws = (spread * found[key].double().numpy() for key in ("mean", "sd", "draws"))
    mean, sd, draws = middle + mean[0], sd[0], middle + draws
    if settings:  # one kernel: one sd for all channels, independent noise
        sd = np.sqrt((sd**2).mean(axis=1, keepdims=True)).repeat(shape[2], axis=1)
        draws = mean + sd * np.random.default_rng(case.index).normal(size=draws.shape)
    mean[case.observed] = draws[:, case.observed] = case.values
    truth = case.inside.reshape(-1, shape[2])
    hidden = np.setdiff1d(np.flatnonzero(~np.isnan(truth[:, 0])), case.observed)
    unit = scale.to_physical(sd) - scale.to_physical(0 * sd)
    whole = to_unit(mean.reshape(shape).clip(-1, 1))
    fields = to_unit(draws.reshape(-1, *shape).clip(-1, 1))
    there = (x[hidden] for x in (scale.to_physical(mean), unit, scale.to_physical(truth)))
    return metrics.evaluate_samples(fields, case.truth, case.observed) | errors(*there) | {
        "psnr": metrics.psnr(whole, case.truth),
        "speckle": metrics.speckle(fields[0], case.truth, 0.10),
        "grain": metrics.flat_hf(fields[0], case.truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*ELEVATION, *TILES, "tracer", "photos", "pictures"]
    parser.add_argument("sets", nargs="*", default=["fault", "coast", "tracer", "photos"])
    parser.add_argument("--ferret", type=Path, help="folder of ferret-datasets' .cdf")
    parser.add_argument("--pictures", type=Path, help=".npz with `images`, (n, 32, 32, 3) uint8")
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--fields", type=int, default=120, help="of each data set, at most")
    parser.add_argument("--observed", type=int, nargs="+", default=[20], help="per cent")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in given.sets:
        if name not in names:
            parser.error(f"{name}: give some of {' '.join(names)}")
        if name in TILES and not given.ferret:
            parser.error(f"{name} needs --ferret; docs/fields.md says how to get it")
        if name == "pictures" and not given.pictures:
            parser.error("pictures needs --pictures")
    methods, rows = ways(given.before), []
    for name in given.sets:
        split, scale = opened(name, given.ferret, given.pictures)
        for share in given.observed:
            cases = Cases(split, parse_pattern(f"random:{share / 100}"),
                          chosen(name, len(split), given.fields), seed=given.seed)
            every = [("one kernel", closed_form, {"simple": True}),
                     *((way, method, {}) for way, method in methods.items())]
            for way, method, settings in every:
                mean = mean_of([score(case, scale, method, **settings) for case in cases])
                unit = f" {scale.units}" if scale.units else ""
                error = (f"{mean['psnr']:.2f} dB" if name in ("photos", "pictures") else
                         f"{mean['rmse']:.4g}{unit}")
                rows.append([
                    f"{name}, {len(cases)}", f"{share} %", way, error, f"{mean['crps']:.4g}{unit}",
                    *(f"{mean[key]:.1%}" for key in COVERED),
                    f"{mean['speckle']:.3f}", f"{mean['grain']:.3f}"])
    print(f"{describe_machine()}, seed {given.seed}\n")
    table(["fields", "observed", "kriging", "PSNR or RMSE of the mean", "CRPS", "points",
           "4 x 4 means", "8 x 8 means", "speckle(.10)", "grain"], rows)


if __name__ == "__main__":
    main()
