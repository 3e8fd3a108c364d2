"""The tables of docs/fields.md: real fields and real stations, one for each data set.

    python benchmarks/fields_table.py terrain example                # inside matplotlib; docs/
    python benchmarks/fields_table.py relief sst winds --ferret debs/usr/share/ferret-vis/data
    python benchmarks/fields_table.py stations --ncarg debs/usr/share/ncarg/data/cdf
    python benchmarks/fields_table.py soil --meuse skgstat/data/samples/meuse.txt
    python benchmarks/fields_table.py terrain --checkpoint V2=runs/terrain/mamba_v2_best.pth

docs/fields.md says how to get the files. Fields are test tiles of 32 x 32 points, 20 % observed;
stations and soil are lists of which 20 % are hidden, with --seeds seeds. Scored are the hidden
values, in their units: RMSE of the mean, mean CRPS (of methods without an uncertainty the mean
absolute error), the share inside 90 % intervals, seconds of the CPU for each field. A checkpoint is
asked about the data that it was trained on alone; below the table stands by how much it differs
from fitted kriging, with a paired 95 % interval over fields.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from scipy.stats import t as student

from common import ROOT, describe_machine, table

sys.path.insert(0, str(ROOT))

from sparsefield import load
from sparsefield.data import frozen_case, open_data, parse_pattern
from sparsefield.evaluate.baselines import BASELINES
from sparsefield.gaussian import ONE_KERNEL, condition
from sparsefield.model.bundled import FIELDS
from sparsefield.place import UNIT_SQUARE, grid_coords
from sparsefield.use import holdout
from sparsefield.use.grids import Frame
from sparsefield.use.holdout import Forecast, Method, Score
from sparsefield.use.points import Measurements, bounds
from sparsefield.use.predict import Reconstructor
from sparsefield.use.read import read_measurements

UNIT = (0.0, 1.0, 0.0, 1.0)
OF_ANY = "fields, the bundled model of any quantity"


@dataclass(frozen=True)
class Case:
    """One field: what is given, what is hidden, and how places are seen.

    Attributes:
        shape: of the grid, None for stations.
    """

    given: Measurements
    hidden: Measurements
    frame: Frame
    shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Cases:
    """Those of a data set. fingerprint: of the data that models may have been trained on."""

    each: list[Case]
    units: str | None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        file: its name in the folder of an option. option: that option; both empty: embedded.
        values: variables, or the column. transform: what its values ask for. lonlat: stations on
            the globe; None: fields. part, parts: every `parts`-th test field, from `part` on.
    """

    title: str
    file: str = ""
    option: str = ""
    values: tuple[str, ...] = ()
    transform: str | None = None
    lonlat: bool | None = None
    part: int = 0
    parts: int = 1
    missing: tuple[str, ...] = ()


STATIONS = dict(file="95031812_sao.cdf", option="ncarg", lonlat=True, missing=("-9999", "-790.2"))
SOURCES = {
    "terrain": [Source("terrain, the fault: 3 arc seconds", part=0, parts=2),
                Source("terrain, the coast: 2 arc minutes", part=1, parts=2)],
    "relief": [Source("etopo5: relief of the Earth, 5 minutes", "etopo5.cdf", "ferret", ("ROSE",))],
    "sst": [Source("COADS: sea-surface temperature, 2 degrees, with gaps", "coads_climatology.cdf",
                   "ferret", ("SST",))],
    "winds": [Source("monthly navy winds, two channels, 2.5 degrees", "monthly_navy_winds.cdf",
                     "ferret", ("UWND", "VWND"))],
    "stations": [Source("stations: temperature", values=("T",), **STATIONS),
                 Source("stations: wind speed", values=("SPD",), transform="sqrt", **STATIONS),
                 Source("stations: sea-level pressure", values=("PSL",), **STATIONS)],
    "soil": [Source("meuse: zinc in the soil", "", "meuse", ("zinc",), "log", False)],
    "example": [Source("docs/stations.csv: temperature", "docs/stations.csv", "", ("temperature",),
                       None, True),
                Source("docs/stations.csv: wind speed", "docs/stations.csv", "", ("wind",), "sqrt",
                       True)],
}


# --- cases ----------------------------------------------------------------------------------------


def cases(source: Source, folder: Path, most: int, seeds: int) -> Cases:
    """Fields of the test, or as many ways to hide stations."""
    if source.lonlat is None:
        spec = str(folder / source.file) if source.file else "terrain"
        data = open_data(spec, variables=source.values or None)
        every = np.arange(source.part, len(data.test), source.parts)
        chosen = every[np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)]
        return Cases([grid_case(data, int(i)) for i in chosen], data.units, data.fingerprint)
    path = folder / source.file if source.file else folder
    given = read_measurements(str(path), channels=1, value=source.values, missing=source.missing,
                              lonlat=source.lonlat)
    units = given.units
    frame = Frame.of(given, bounds("stations", given.coords), "equal", source.lonlat)
    return Cases([Case(*holdout.split(given, 0.2, seed), frame) for seed in range(seeds)], units)


def grid_case(data, index: int) -> Case:
    """Test field `index` with a fifth of its points, in the units of the data."""
    case = frozen_case(data.test, index, parse_pattern("random:0.2"), 0)
    truth = data.to_physical(case["truth"]).reshape(-1, data.channels)
    coords = grid_coords(data.height, data.width).double().numpy()
    hidden = np.setdiff1d(np.flatnonzero(~np.isnan(truth[:, 0])), case["observed"])
    parts = [Measurements(coords[i], truth[i], units=data.units)
             for i in (case["observed"], hidden)]
    return Case(*parts, Frame(UNIT, (1.0, 1.0), False, UNIT_SQUARE), (data.height, data.width))


# --- methods --------------------------------------------------------------------------------------


def methods(
    case: Case, source: Source, trained: dict[str, Reconstructor]
) -> Iterator[tuple[str, Method]]:
    """By name, for one case."""
    seen = case.frame, UNIT if case.shape else bounds("stations", case.hidden.coords)
    settings = dict(seed=0, num_steps=4)
    kriging = partial(holdout.by_model, load("none"), *seen, **settings)
    for name, model in trained.items():
        yield name, holdout.by_model(model, *seen, **settings)
    if not case.frame.lonlat:
        of_any = partial(holdout.by_model, any_quantity(), *seen, **settings)
        yield OF_ANY, of_any()
        yield f"{OF_ANY}, noise found", of_any(find_noise=True)
    yield "fitted kriging", kriging(transform=None)
    yield "fitted kriging, noise found", kriging(transform=None, find_noise=True)
    if source.transform:
        yield f"fitted kriging, {source.transform}", kriging(transform=source.transform)
        yield (f"fitted kriging, {source.transform}, noise found",
               kriging(transform=source.transform, find_noise=True))
    yield "kriging, one kernel", one_kernel(case.frame)
    if (pykrige := holdout.pykrige(case.frame)) is not None:
        yield "PyKrige, exponential", pykrige
    if case.shape:
        yield "biharmonic", biharmonic(case.shape)
    else:
        yield "biharmonic spline", spline(case.frame)
    yield "linear", holdout.linear(case.frame)
    yield "constant", holdout.constant


@cache
def any_quantity() -> Reconstructor:
    return load(FIELDS)


def one_kernel(frame: Frame) -> Method:
    """Ordinary kriging with the variogram |h|, whatever the field."""

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        middle, spread = given.values.mean(axis=0), given.values.std(axis=0) + 1e-12
        values = torch.from_numpy((given.values - middle) / spread).float()[None]
        coords, queries = (torch.from_numpy(frame.inside(some)).float()[None]
                           for some in (given.coords, places))
        answer = condition(coords, values, kernels=ONE_KERNEL).at(queries)
        return Forecast(middle + spread * answer.mean[0].double().numpy(),
                        sd=spread * answer.sd[0].double().numpy())

    return method


def biharmonic(shape: tuple[int, int]) -> Method:
    """Biharmonic inpainting by scikit-image."""

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        low, high = given.values.min(axis=0), given.values.max(axis=0)
        span = 2 * (high - low) + 1e-12  # half of it is free, as results are limited to 0 ... 1
        unit = 0.25 + (given.values - low) / span
        field = BASELINES["biharmonic"](given.coords, unit, shape)
        columns, rows = (places * shape[::-1]).astype(int).T
        return Forecast(low + (field[rows, columns] - 0.25) * span)

    return method


def spline(frame: Frame) -> Method:
    """The biharmonic spline through scattered points of the plane (Sandwell 1987), by SciPy."""

    def method(given: Measurements, places: np.ndarray) -> Forecast:
        points, queries = (p / frame.scaled_by for p in (given.coords, places))
        found = RBFInterpolator(points, given.values, kernel="thin_plate_spline")(queries)
        return Forecast(found)

    return method


# --- tables ---------------------------------------------------------------------------------------


def measure(
    source: Source, folder: Path, most: int, seeds: int, models: dict[str, Reconstructor]
) -> None:
    """Print the table of one data set, and the differences from kriging."""
    there = cases(source, folder, most, seeds)
    every = there.each
    trained = {name: model for name, model in models.items() if there.fingerprint is not None
               and model.checkpoint["data"].get("fingerprint") == there.fingerprint}
    found: dict[str, list[Score]] = {}
    for case in every:
        for score in holdout.compare(dict(methods(case, source, trained)), case.given, case.hidden,
                                     time.process_time):
            found.setdefault(score.name, []).append(score)
    observed, hidden = (np.mean([len(getattr(case, part).coords) for case in every])
                        for part in ("given", "hidden"))
    kind = "fields" if source.lonlat is None else "ways to hide a fifth"
    print(f"**{source.title}**: {len(every)} {kind}, {observed:.0f} points given and {hidden:.0f} "
          f"hidden in each\n")
    unit = f", {there.units}" if there.units else ""
    table(["method", f"RMSE{unit}", f"CRPS{unit}", "in 90 % intervals", "seconds"],
          [row(name, scores, len(every)) for name, scores in found.items()])
    overlap = 0.0 if source.lonlat is None else float(hidden / observed)
    for name, model in trained.items():
        size = sum(p.numel() for p in model.network.parameters())
        print(f"{name}: {size:,} parameters, {model.checkpoint['step']:,} steps.")
    for name in (*trained, OF_ANY):
        if name in found:
            print(difference(name, found[name], found["fitted kriging"], overlap) + "\n")


def row(name: str, scores: list[Score], count: int) -> list[str]:
    rmse = np.sqrt(np.mean([score.rmse**2 for score in scores]))
    crps, seconds = (np.mean([getattr(score, key) for score in scores])
                     for key in ("crps", "seconds"))
    covered = "–" if scores[0].covered is None else (
        f"{np.mean([score.covered for score in scores]):.1%}")
    failed = f" (no answer in {count - len(scores)})" if len(scores) < count else ""
    return [name + failed, f"{rmse:.4g}", f"{crps:.4g}", covered, f"{seconds:.2f}"]


def difference(
    name: str, scores: list[Score], kriging: list[Score], overlap: float
) -> str:
    """In words, with a 95 % interval by Student's t.

    Args:
        overlap: 0 for fields of their own; for ways to hide points of one field, which share most
            of them, hidden over given points (Nadeau & Bengio 2003, "Inference for the
            Generalization Error", the corrected resampled t test).
    """
    change = np.array([a.crps - b.crps for a, b in zip(scores, kriging, strict=True)])
    count, error = len(change), np.inf
    if count > 1:
        error = student.ppf(0.975, count - 1) * change.std(ddof=1) * (1 / count + overlap) ** 0.5
    verdict = ("better than" if change.mean() + error < 0 else
               "worse than" if change.mean() - error > 0 else "not better than")
    low, high = change.mean() - error, change.mean() + error
    return (f"{name} is {verdict} fitted kriging: CRPS {change.mean():+.4g} "
            f"({low:+.4g} to {high:+.4g}).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SOURCES)
    for name, what in (("ferret", "folder of ferret-datasets' .cdf"),
                       ("ncarg", "folder of libncarg-data's .cdf"), ("meuse", "meuse.txt")):
        parser.add_argument(f"--{name}", type=Path, help=what)
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--fields", type=int, default=32, help="test tiles of each data set")
    parser.add_argument("--seeds", type=int, default=5, help="ways to hide stations")
    config = parser.parse_args()
    if any("=" not in given for given in config.checkpoint):
        parser.error("--checkpoint: give NAME=PATH, such as V2=runs/terrain/mamba_v2_best.pth")
    models = {name: load(path) for name, path in
              (given.split("=", 1) for given in config.checkpoint)}
    print(describe_machine(), "\n")
    for name in config.sets:
        for source in SOURCES[name]:
            folder = getattr(config, source.option) if source.option else ROOT
            if folder is None:
                parser.error(f"{name} needs --{source.option}; docs/fields.md says how to get it")
            measure(source, folder, config.fields, config.seeds, models)


if __name__ == "__main__":
    main()
