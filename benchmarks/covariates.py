"""What covariates are worth: the tables of docs/gaussian.md about them, and docs/colours.png.

    python benchmarks/covariates.py                                # colours of the photographs
    python benchmarks/covariates.py --pictures natural32_val.npz --fields 160
    python benchmarks/covariates.py --colorado COmonthlyMet.rda    # pip install pyreadr pykrige
    python benchmarks/covariates.py --meuse meuse.txt
    python benchmarks/covariates.py --picture docs/colours.png

`drift`: the covariate is a column of the drift alone; `drift and coordinate`: the likelihood
decides what it is used for. Colours are red, green and blue of fields of 32 x 32, whose luminance
(0.299 R + 0.587 G + 0.114 B) is known everywhere. Colorado: the highest temperature of the twelve
months of 1992, height known; meuse: log zinc, distance to the river known; a fifth of the places is
hidden, several times. PyKrige: ordinary, universal (the covariate as its drift) and
regression kriging (least squares, and ordinary kriging of what is left), exponential variogram.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas
import torch

from common import ROOT, describe_machine, errors, mean_of, table

sys.path.insert(0, str(ROOT))

from sparsefield import load
from sparsefield.data import open_data, parse_pattern
from sparsefield.data.scale import to_unit
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Case, Cases
from sparsefield.gaussian import Use, condition, design
from sparsefield.place import grid_coords
from sparsefield.use.covariates import Known
from sparsefield.use.grids import Asked, Frame
from sparsefield.use.holdout import (
    Forecast,
    Method,
    Score,
    by_model,
    compare,
    split,
    without_covariates,
)
from sparsefield.use.points import Measurements, bounds
from sparsefield.use.predict import Settings

YEAR = 1992  # with the most stations in all its months
LUMINANCE = np.array([0.299, 0.587, 0.114])


def without_coordinates():
    """Within it covariates are drift alone."""
    return mock.patch.object(design, "SCALES", (0.0,))


# --- stations and soil ----------------------------------------------------------------------------


def colorado(path: Path) -> list[Measurements]:
    """The highest temperatures of twelve months in degC, height in km."""
    import pyreadr

    found = pyreadr.read_r(str(path))
    years = np.asarray(found["CO.tmax"])                                  # (year, month, station)
    places, km = found["CO.loc"].to_numpy(), found["CO.elev"].to_numpy() / 1000
    year = int(np.flatnonzero(found["CO.years"].to_numpy()[:, 0] == YEAR)[0])
    known = Known(km, ("height",), ("km",))
    every = Measurements(places, years[year].T, known=known, units="degC")
    return [replace(every.of(np.isfinite(month)), values=month[np.isfinite(month), None])
            for month in years[year]]


def meuse(path: Path) -> list[Measurements]:
    """log zinc, and the distance to the river, which is 1 at most."""
    soil = pandas.read_csv(path)
    known = Known(soil[["dist"]].to_numpy(), ("distance",))
    return [Measurements(soil[["x", "y"]].to_numpy(float),
                         np.log(soil[["zinc"]].to_numpy(float)), known=known)]


def ours(frame: Frame) -> dict[str, Method]:
    """By this package."""
    plain, noisy = (by_model(load("none"), frame, frame.rectangle, is_found)
                    for is_found in (False, True))

    def drift(given: Measurements, places: np.ndarray) -> Forecast:
        with without_coordinates():
            return plain(given, places)

    return {"without": without_covariates(plain), "without, noise found": without_covariates(noisy),
            "drift": drift, "drift and coordinate": plain, "both, noise found": noisy}


def pykrige(frame: Frame) -> dict[str, Method]:
    """Its methods by name; none without it."""
    try:
        from pykrige.ok import OrdinaryKriging
        from pykrige.uk import UniversalKriging
    except ImportError as error:
        print(f"note: no rows for PyKrige ({error})\n")
        return {}
    variogram = {"variogram_model": "exponential", "nlags": 20, "weight": True}

    def ordinary(given: Measurements, places: np.ndarray, universal: bool = False) -> Forecast:
        kind, known, asked = OrdinaryKriging, {}, {}
        if universal:
            kind, asked = UniversalKriging, {"specified_drift_arrays": list(places[:, 2:].T)}
            known = {"drift_terms": ["specified"], "specified_drift": list(given.known.values.T)}
        points, queries = (frame.inside(p[:, :2])[:, :2] for p in (given.coords, places))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean, variance = kind(*points.T, given.values[:, 0], **variogram, **known).execute(
                "points", *queries.T, **asked)
        return Forecast(mean.data[:, None], sd=np.sqrt(np.maximum(variance.data, 1e-12))[:, None])

    def regression(given: Measurements, places: np.ndarray) -> Forecast:
        columns, there = (np.hstack([np.ones_like(x[:, :1]), x])
                          for x in (given.known.values, places[:, 2:]))
        slope = np.linalg.lstsq(columns, given.values)[0]
        left = ordinary(replace(given, values=given.values - columns @ slope), places)
        return left._replace(mean=left.mean + there @ slope)

    return {"PyKrige, ordinary": ordinary, "PyKrige, universal": partial(ordinary, universal=True),
            "PyKrige, regression": regression}


def print_stations(title: str, every: list[Measurements], lonlat: bool, seeds: int) -> None:
    found: dict[str, list[Score]] = {}
    for given in every:
        frame = Frame.of(given, bounds(title, given.coords, lonlat), "equal", lonlat)
        for seed in range(seeds):
            for score in compare(ours(frame) | pykrige(frame), *split(given, 0.2, seed)):
                found.setdefault(score.name, []).append(score)
    rmse = {name: np.mean([s.rmse**2 for s in scores]) ** 0.5 for name, scores in found.items()}
    print(f"**{title}**: {len(every)} fields of {np.mean([len(x.values) for x in every]):.0f} "
          f"places, a fifth hidden in {seeds} ways\n")
    table(["covariate as", "RMSE", "", "CRPS", "in 90 % intervals"],
          [[name, f"{rmse[name]:.3f}", f"{rmse[name] / rmse['without'] - 1:+.0%}",
            f"{np.mean([s.crps for s in scores]):.3f}",
            f"{np.mean([s.covered for s in scores]):.1%}"] for name, scores in found.items()])
    place = every[0].of(np.arange(len(every[0].coords)) == 0)
    asked = Asked(place.coords + 1e-3, frame.rectangle, frame, known=place.known.values)
    field = load("none").answer(every[0], asked, Settings(noise_sd="auto"))
    print("The first field: " + "; ".join(field.covariates) + "\n")


# --- colours --------------------------------------------------------------------------------------


def answer(case: Case, known: np.ndarray | None, is_coordinate: bool = True
           ) -> tuple[np.ndarray, np.ndarray, Use | None]:
    """Mean and sd (H W, C) of a picture of which `known` (H, W) is given, and what that is for."""
    coords, values = grid_coords(*case.inside.shape[:2]), case.values.double()
    if known is not None:
        coords = torch.cat([coords, torch.from_numpy(known).reshape(-1, 1)], dim=1)
    middle, spread = values.mean(dim=0), values.std(dim=0) + 1e-9
    with nullcontext() if is_coordinate else without_coordinates():
        posterior = condition(coords[None, case.observed], ((values - middle) / spread)[None],
                              covariates=int(known is not None))
    found = posterior.at(coords[None])
    use = None if known is None else posterior.uses()[0]
    return (middle + spread * found.mean[0]).numpy(), (spread * found.sd[0]).numpy(), use


def luminance(case: Case) -> np.ndarray:
    return case.inside @ LUMINANCE


def noise(case: Case) -> np.ndarray:
    return np.random.default_rng(case.index).normal(size=case.inside.shape[:2])


def whole(case: Case, mean: np.ndarray) -> np.ndarray:
    """The picture (H, W, C) in [0, 1], with the observed values."""
    mean = mean.copy()
    mean[case.observed] = case.values
    return to_unit(mean.reshape(case.inside.shape).clip(-1, 1))


METHODS = {"none": (lambda case: None, True), "luminance as drift": (luminance, False),
           "luminance as drift and coordinate": (luminance, True), "noise": (noise, True)}


def print_colours(split, name: str, fields: int, shares: list[int]) -> None:
    rows, first = [], {}
    for share in shares:
        cases = Cases(split, parse_pattern(f"random:{share / 100}"), range(min(fields, len(split))))
        for method, (known, is_coordinate) in METHODS.items():
            found = []
            for case in cases:
                mean, sd, use = answer(case, known(case), is_coordinate)
                hidden = np.setdiff1d(np.arange(len(mean)), case.observed)
                truth = case.inside.reshape(mean.shape)
                found.append(errors(*(x[hidden] for x in (mean, sd, truth))) | {
                    "psnr": metrics.psnr(whole(case, mean), case.truth),
                    "drift": np.nan if use is None else float(np.isfinite(use.value[0])),
                    "coordinate": np.nan if use is None else float(use.scale > 0)})
            mean = mean_of(found)
            first = mean if method == "none" else first
            rows.append([f"{share} %", method, f"{mean['psnr']:.2f} dB",
                         *(f"{mean[key] / first[key] - 1:+.1%}" for key in ("rmse", "crps")),
                         *("–" if np.isnan(mean[key]) else f"{mean[key]:.{digits}%}" for key, digits
                           in (("covered", 1), ("drift", 0), ("coordinate", 0)))])
    print(f"**colours of {name}**, {len(cases)} fields\n")
    table(["observed", "covariate", "PSNR", "RMSE", "CRPS", "in 90 % intervals", "drift in",
           "coordinate in"], rows)


def draw_colours(path: Path, chosen: list[int]) -> None:
    """Rows of docs/colours.png: truth, measured, without and with luminance."""
    import matplotlib.pyplot as plt

    split = open_data("photos", image_size=96).test
    cases = Cases(split, parse_pattern("random:0.05"), chosen)
    titles = ["truth", "measured: 5 %", "without", "grey known"]
    figure, axes = plt.subplots(4, len(cases), figsize=(2.4 * len(cases), 9.4), squeeze=False)
    for column, case in zip(axes.T, cases, strict=True):
        measured = np.full_like(case.truth, 1.0).reshape(-1, 3)
        measured[case.observed] = to_unit(case.values.numpy())
        made = [whole(case, answer(case, known)[0]) for known in (None, luminance(case))]
        shown = [case.truth, measured.reshape(case.truth.shape), *made]
        for row, (axis, picture) in enumerate(zip(column, shown, strict=True)):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            if row > 1:
                axis.set_xlabel(f"{metrics.psnr(picture, case.truth):.1f} dB", fontsize=18)
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title, fontsize=19)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--colorado", type=Path, help="COmonthlyMet.rda of r-cran-fields")
    parser.add_argument("--meuse", type=Path, help="meuse.txt of scikit-gstat")
    parser.add_argument("--pictures", type=Path, help=".npz with `images`, (n, 32, 32, 3) uint8")
    parser.add_argument("--picture", type=Path, help="draw some photographs and end")
    parser.add_argument("--fields", type=int, default=64, help="pictures, at most")
    parser.add_argument("--observed", type=int, nargs="+", default=[2, 5, 20], help="per cent")
    parser.add_argument("--seeds", type=int, default=5, help="ways to hide a fifth")
    given = parser.parse_args()
    if given.picture:
        draw_colours(given.picture, [0, 1, 2, 3, 4])
        return
    print(describe_machine() + "\n")
    if given.colorado:
        print_stations(f"Colorado {YEAR}, highest temperature in degC", colorado(given.colorado),
                       True, given.seeds)
    if given.meuse:
        print_stations("meuse, log zinc", meuse(given.meuse), False, given.seeds)
    if given.pictures or not (given.colorado or given.meuse):
        name = str(given.pictures or "photos")
        split = open_data(name, val=name if given.pictures else None).val
        print_colours(split, given.pictures.stem if given.pictures else name, given.fields,
                      given.observed)


if __name__ == "__main__":
    main()
