"""What covariates are worth: the tables of docs/gaussian.md about them, and docs/colours.png.

    python benchmarks/covariates.py                                # colours of the photographs
    python benchmarks/covariates.py --pictures natural32_val.npz --fields 160
    python benchmarks/covariates.py --colorado COmonthlyMet.rda    # pip install pyreadr pykrige
    python benchmarks/covariates.py --meuse meuse.txt
    python benchmarks/covariates.py --picture docs/colours.png

`drift`: the covariate is a column of the drift alone; `drift and coordinate`: the likelihood decides
what it is used for. Colours are red, green and blue of fields of 32 x 32, whose luminance (0.299 R
+ 0.587 G + 0.114 B) is known everywhere. Colorado: the highest temperature of twelve months of the
year with the most stations, height known; meuse: log zinc, distance to the river known; a fifth of
the places is hidden, several times. PyKrige: ordinary, universal (the covariate as its drift) and
regression kriging (least squares, and ordinary kriging of what is left), exponential variogram.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pandas
import torch
from common import ROOT, describe_machine, errors, mean_of, table

sys.path.insert(0, str(ROOT))

from sparsefield.data import open_data, parse_pattern
from sparsefield.data.scale import to_unit
from sparsefield.evaluate import metrics
from sparsefield.evaluate.cases import Cases
from sparsefield.gaussian import condition, design
from sparsefield.place import Domain, grid_coords
from sparsefield.use.grids import Frame

LUMINANCE = np.array([0.299, 0.587, 0.114])
KM = 111.2  # a degree on the Earth
Answer = tuple[np.ndarray, np.ndarray]  # mean and sd, (N, C)


class Case(NamedTuple):
    """Values (M, C) at coords (M, D) with covariates (M, p), and truth (N, C) to be predicted at
    queries (N, D) with covariates (N, p). side: of the domain in km, 1 where nothing is in km."""

    coords: np.ndarray
    known: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    known_there: np.ndarray
    truth: np.ndarray
    domain: Domain
    side: float = 1.0


# --- methods --------------------------------------------------------------------------------------


def ours(case: Case, use: str, found: list[tuple[float, ...]] | None = None) -> Answer:
    """By this package.

    Args:
        use: of the covariates: none, drift, or both.
        found: takes coefficient, standard error and scale of the first covariate.
    """
    columns = 0 if use == "none" else case.known.shape[1]
    middle, spread = case.values.mean(axis=0), case.values.std(axis=0) + 1e-12
    coords, queries = (torch.from_numpy(np.hstack([at, known[:, :columns]]))[None]
                       for at, known in ((case.coords, case.known),
                                         (case.queries, case.known_there)))
    scales = (0.0,) if use == "drift" else design.SCALES
    with mock.patch.object(design, "SCALES", scales):
        posterior = condition(coords, torch.from_numpy((case.values - middle) / spread)[None],
                              domain=case.domain, covariates=columns)
    if found is not None:
        chosen, (value, error) = posterior.design(), posterior.coefficients()
        unit = float(chosen.spread[case.coords.shape[1]])
        found.append((float(value[0, 0]) * spread[0], float(error[0, 0]) * spread[0],
                      chosen.scales[0] * case.side / unit))
    answer = posterior.at(queries)
    return (middle + spread * answer.mean[0].double().numpy(),
            spread * answer.sd[0].double().numpy())


def pykrige() -> dict[str, Callable[[Case], Answer]]:
    """Its methods by name; none without it."""
    try:
        from pykrige.ok import OrdinaryKriging
        from pykrige.uk import UniversalKriging
    except ImportError as error:
        print(f"note: no rows for PyKrige ({error})\n")
        return {}
    variogram = {"variogram_model": "exponential", "nlags": 20, "weight": True}

    def ordinary(case: Case) -> Answer:
        return kriged(case, case.values, OrdinaryKriging, {}, {})

    def universal(case: Case) -> Answer:
        return kriged(case, case.values, UniversalKriging,
                      {"drift_terms": ["specified"], "specified_drift": list(case.known.T)},
                      {"specified_drift_arrays": list(case.known_there.T)})

    def regression(case: Case) -> Answer:
        design, there = (np.hstack([np.ones_like(x[:, :1]), x])
                         for x in (case.known, case.known_there))
        slope = np.linalg.lstsq(design, case.values)[0]
        mean, sd = kriged(case, case.values - design @ slope, OrdinaryKriging, {}, {})
        return mean + there @ slope, sd

    def kriged(case: Case, values: np.ndarray, kind: type, given: dict, asked: dict) -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean, variance = kind(*case.coords.T[:2], values[:, 0], **variogram, **given).execute(
                "points", *case.queries.T[:2], **asked)
        return mean.data[:, None], np.sqrt(np.maximum(variance.data, 1e-12))[:, None]

    return {"PyKrige, ordinary": ordinary, "PyKrige, universal": universal,
            "PyKrige, regression": regression}


# --- stations and soil ----------------------------------------------------------------------------


def hidden_fifths(coords: np.ndarray, known: np.ndarray, values: np.ndarray, seeds: int,
                  **where: object) -> Iterator[Case]:
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(coords))
        hide, keep = np.split(order, [len(order) // 5])
        yield Case(*(x[keep] for x in (coords, known, values)),
                   *(x[hide] for x in (coords, known, values)), **where)


def colorado(path: Path, seeds: int) -> tuple[str, list[Case]]:
    """The highest temperature of a month in degC, heights in km."""
    import pyreadr

    found = pyreadr.read_r(str(path))
    years = np.asarray(found["CO.tmax"])                                  # (year, month, station)
    places, km = found["CO.loc"].to_numpy(), found["CO.elev"].to_numpy() / 1000
    _, first = np.unique(places, axis=0, return_index=True)
    year = int(np.isfinite(years).all(axis=1).sum(axis=1).argmax())
    every: list[Case] = []
    for month in years[year]:
        some = np.intersect1d(first, np.flatnonzero(np.isfinite(month)))
        frame = Frame.of(places[some], lonlat=True)
        every += hidden_fifths(frame.inside(places[some]), km[some], month[some, None], seeds,
                               domain=frame.domain, side=frame.scaled_by[1] * KM)
    which = int(found["CO.years"].to_numpy()[year, 0])
    return f"Colorado {which}, highest temperature, degC", every


def meuse(path: Path, seeds: int) -> tuple[str, list[Case]]:
    """log zinc, and the distance to the river, of 1 at most."""
    soil = pandas.read_csv(path)
    places = soil[["x", "y"]].to_numpy(float)
    frame = Frame.of(places)
    return "meuse, log zinc", list(hidden_fifths(
        frame.inside(places), soil[["dist"]].to_numpy(), np.log(soil[["zinc"]].to_numpy(float)),
        seeds, domain=frame.domain))


def print_stations(title: str, cases: list[Case]) -> None:
    chosen: list[tuple[float, ...]] = []
    methods = {"without": partial(ours, use="none"), "drift": partial(ours, use="drift"),
               "drift and coordinate": partial(ours, use="both", found=chosen), **pykrige()}
    rows = []
    for name, method in methods.items():
        mean = mean_of([errors(*method(case), case.truth) for case in cases])
        first = mean["rmse"] if not rows else first
        rows.append([name, f"{mean['rmse']:.3f}", f"{mean['rmse'] / first - 1:+.0%}",
                     f"{mean['crps']:.3f}", f"{mean['covered']:.1%}"])
    given, hidden = (np.mean([len(x) for x in each])
                     for each in ([c.values for c in cases], [c.truth for c in cases]))
    print(f"**{title}**: {len(cases)} fields, {given:.0f} places given, {hidden:.0f} hidden\n")
    table(["covariate as", "RMSE", "", "CRPS", "in 90 % intervals"], rows)
    slope, error, scale = np.array(chosen).T
    low, middle, high = np.percentile(scale, [10, 50, 90])
    print(f"drift in {np.isfinite(slope).mean():.0%}, coefficient {np.nanmedian(slope):.3g} ± "
          f"{np.nanmedian(error):.2g} for a unit (medians); a unit counts as {middle:.3g} of "
          f"distance ({low:.3g} to {high:.3g}: 10 and 90 %)\n")


# --- colours --------------------------------------------------------------------------------------


def colours(case, known: np.ndarray) -> Case:
    """Of a frozen case. known: (H, W)."""
    height, width, channels = case.inside.shape
    coords, flat = grid_coords(height, width).numpy(), known.reshape(-1, 1)
    values = case.inside.reshape(-1, channels).astype(float)
    return Case(coords[case.observed], flat[case.observed], values[case.observed],
                coords, flat, values, Domain.of_grid(height, width))


def luminance(case) -> np.ndarray:
    return case.inside @ LUMINANCE


def noise(case) -> np.ndarray:
    return np.random.default_rng(case.index).normal(size=case.inside.shape[:2])


def whole(case, answer: np.ndarray) -> np.ndarray:
    """The picture (H, W, C) in [0, 1], with the observed values."""
    answer = answer.copy()
    answer[case.observed] = case.values
    return to_unit(answer.reshape(case.inside.shape).clip(-1, 1))


METHODS = {"none": ("none", luminance), "luminance as drift": ("drift", luminance),
           "luminance as drift and coordinate": ("both", luminance), "noise": ("both", noise)}


def print_colours(split, name: str, fields: int, shares: list[int]) -> None:
    rows = []
    for share in shares:
        cases = Cases(split, parse_pattern(f"random:{share / 100}"), range(min(fields, len(split))))
        for method, (use, known) in METHODS.items():
            found, scales = [], []
            for case in cases:
                given = colours(case, known(case))
                mean, sd = ours(given, use, None if use == "none" else scales)
                hidden = np.setdiff1d(np.arange(len(mean)), case.observed)
                found.append(errors(*(x[hidden] for x in (mean, sd, given.truth)))
                             | {"psnr": metrics.psnr(whole(case, mean), case.truth)})
            mean = mean_of(found)
            first = mean if method == "none" else first
            used = [f"{np.mean([s[i] for s in picked]):.0%}" if scales else "–" for i, picked in
                    enumerate([[(np.isfinite(s[0]), s[2] > 0) for s in scales]] * 2)]
            rows.append([f"{share} %", method, f"{mean['psnr']:.2f} dB",
                         f"{mean['rmse'] / first['rmse'] - 1:+.1%}",
                         f"{mean['crps'] / first['crps'] - 1:+.1%}", f"{mean['covered']:.1%}",
                         *used])
    print(f"**colours of {name}**, {len(cases)} fields\n")
    table(["observed", "covariate", "PSNR", "RMSE", "CRPS", "in 90 % intervals", "drift in",
           "coordinate in"], rows)


def draw_colours(path: Path, chosen: list[int]) -> None:
    """Rows of docs/colours.png: truth, measured, without and with luminance."""
    import matplotlib.pyplot as plt

    split = open_data("photos", image_size=96).test
    cases = Cases(split, parse_pattern("random:0.05"), chosen)
    titles = ["truth", "measured: 5 %", "without", "grey known"]
    figure, axes = plt.subplots(4, len(cases), figsize=(2.2 * len(cases), 8.8), squeeze=False)
    for column, case in zip(axes.T, cases, strict=True):
        given = colours(case, luminance(case))
        measured = np.full_like(case.truth, 1.0).reshape(-1, 3)
        measured[case.observed] = to_unit(case.values.numpy())
        made = [whole(case, ours(given, use)[0]) for use in ("none", "both")]
        shown = [case.truth, measured.reshape(case.truth.shape), *made]
        for row, (axis, picture) in enumerate(zip(column, shown, strict=True)):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            if row > 1:
                axis.set_xlabel(f"{metrics.psnr(picture, case.truth):.1f} dB", fontsize=15)
    for axis, title in zip(axes[:, 0], titles, strict=True):
        axis.set_ylabel(title, fontsize=17)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=80)


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
        draw_colours(given.picture, [0, 2, 4, 1, 3, 5])
        return
    print(describe_machine() + "\n")
    for read, path in ((colorado, given.colorado), (meuse, given.meuse)):
        if path:
            print_stations(*read(path, given.seeds))
    if given.pictures or not (given.colorado or given.meuse):
        name = str(given.pictures or "photos")
        split = open_data(name, val=name if given.pictures else None).val
        print_colours(split, given.pictures.stem if given.pictures else name, given.fields,
                      given.observed)


if __name__ == "__main__":
    main()
