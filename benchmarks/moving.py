"""Fields that move: the table of docs/time.md.

    python benchmarks/moving.py                                    # the tracer, simulated
    python benchmarks/moving.py --ozone debs/usr/lib/R/site-library/fields/data/ozone2.rda \\
        --pm10 debs/usr/lib/R/site-library/spacetime/data/air.rda \\
        --winds $FERRET/monthly_navy_winds.cdf                     # pip install rdata gstools

Ozone (r-cran-fields) and PM10 (r-cran-spacetime): the first DAYS days that are long enough, of
stations; winds: 132 months of the North Atlantic, of whose cells a tenth is known. Hidden are a
fifth of the values, stretches of eight times, or whole places. GSTools: ordinary kriging with an
exponential variogram fitted along x, y and time, from at most MOST values. EOF: iterated singular
value decomposition (Beckers & Rixen 2003), its rank by 3 % of the values that are hidden from it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common import ROOT, describe_machine, table

sys.path.insert(0, str(ROOT))

from sparsefield import load
from sparsefield.data.netcdf import read_dataset
from sparsefield.data.tracer import sequences
from sparsefield.use import holdout
from sparsefield.use.blocks import stretches_of
from sparsefield.use.grids import Asked, Frame
from sparsefield.use.holdout import FRAME_BY_FRAME, Fold, Forecast, Method
from sparsefield.use.points import Measurements, bounds
from sparsefield.use.times import Times

DAYS = 40
MOST = 2500  # values that GSTools kriges from
SHARE, LENGTH = 0.2, "8"
ATLANTIC = (280, 350, 15, 65)  # degrees east, and north
RANKS = range(1, 9)


def series(places: np.ndarray, values: np.ndarray) -> Measurements:
    """Measurements of values (T, P), NaN where there are none, at places (P, 2)."""
    t, p = np.nonzero(np.isfinite(values))
    return Measurements(places[p], values[t, p][:, None], times=Times(t.astype(float)))


def tracer(share: float, count: int) -> list[Fold]:
    """Of each sequence a share of the cells at each time, others each time; all else is hidden."""
    rng, folds = np.random.default_rng(0), []
    for frames in sequences(count):
        steps, size, _ = frames.shape
        cells = np.stack(np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2), axis=-1)
        whole = series(cells.reshape(-1, 2), frames.reshape(steps, -1).astype(float))
        known = np.concatenate([rng.permutation(size**2) < share * size**2 for _ in range(steps)])
        hidden = whole.of(~known)
        folds.append(Fold(whole.of(known), hidden, holdout.places_of(hidden)))
    return folds


def of_r(path: Path) -> dict[str, np.ndarray]:
    """Arrays and lists of an .rda, by rdata: it fails on dimensions with names, as in `air`."""
    import rdata

    try:
        return dict(rdata.read_rda(path))
    except TypeError:
        node, found = rdata.parser.parse_file(path).object, {}
        while node.tag is not None:
            name = node.tag.referenced_object or node.tag
            found[name.value.value.decode()] = node.value[0]
            node = node.value[1]
        convert = rdata.conversion.SimpleConverter().convert
        return {"places": np.asarray(convert(found["stations"]).coords),
                "values": np.asarray(found["air"].value[0] if isinstance(
                    found["air"].value, tuple) else found["air"].value)}


def ozone(path: Path) -> Measurements:
    found = of_r(path)["ozone2"]
    return series(np.asarray(found["lon.lat"]), np.asarray(found["y"])[:DAYS])


def pm10(path: Path) -> Measurements:
    found = of_r(path)
    values = found["values"].reshape(len(found["places"]), -1, order="F").T
    start = int(np.isfinite(values).sum(axis=1).argmax()) // DAYS * DAYS
    return series(found["places"], values[start : start + DAYS])


def winds(path: Path) -> Measurements:
    data = read_dataset(path)["UWND"]
    x0, x1, y0, y1 = ATLANTIC
    part = data.sel(FNOCX=slice(x0, x1), FNOCY=slice(y0, y1))
    values = np.where(np.random.default_rng(0).uniform(size=part.shape) < 0.1, part.values, np.nan)
    places = np.stack(np.meshgrid(part["FNOCX"], part["FNOCY"]), axis=-1).reshape(-1, 2)
    return series(places, values.reshape(len(values), -1).astype(float))


# --- peers ----------------------------------------------------------------------------------------


def gstools(given: Measurements, places: np.ndarray) -> Forecast:
    import gstools as gs

    some = np.random.default_rng(0).permutation(len(given.coords))[:MOST]
    at = np.column_stack([given.coords, given.times.values])
    low, spans = at.min(axis=0), np.ptp(at, axis=0)
    at, asked = ((part - low) / spans for part in (at[some], places))
    values = given.values[some, 0]
    bins = np.linspace(0, 0.5, 13)
    middles, found = gs.vario_estimate(at.T, values, bins, direction=np.eye(3),
                                       angles_tol=np.pi / 6, sampling_size=1500, sampling_seed=0)
    model = gs.Exponential(dim=3, var=values.var(), len_scale=0.2)
    model.fit_variogram(middles, found, nugget=True)
    krige = gs.krige.Ordinary(model, at.T, values, pseudo_inv=False)
    mean, variance = krige(asked.T)
    return Forecast(mean[:, None], sd=np.sqrt(np.maximum(variance, 1e-12))[:, None])


def eof(given: Measurements, places: np.ndarray) -> Forecast:
    """Of times x places; a column without a value, or a row, is the mean."""
    there, column = np.unique(np.concatenate([given.coords, places[:, :2]]), axis=0,
                              return_inverse=True)
    when, row = np.unique(np.concatenate([given.times.values, places[:, -1]]), return_inverse=True)
    known = np.arange(len(column)) < len(given.coords)
    level = given.values.mean()
    matrix = np.full((len(when), len(there)), np.nan)
    matrix[row[known], column[known]] = given.values[:, 0] - level
    is_known = np.isfinite(matrix)
    tested = is_known & (np.random.default_rng(0).uniform(size=matrix.shape) < 0.03)

    def filled(rank: int, seen: np.ndarray) -> np.ndarray:
        whole = np.where(seen, matrix, 0.0)
        for _ in range(60):
            u, s, v = np.linalg.svd(whole, full_matrices=False)
            whole = np.where(seen, matrix, (u[:, :rank] * s[:rank]) @ v[:rank])
        return whole

    best = min(RANKS, key=lambda rank: float(
        ((filled(rank, is_known & ~tested) - matrix)[tested] ** 2).mean()))
    return Forecast((level + filled(best, is_known)[row[~known], column[~known]])[:, None])


# --- tables ---------------------------------------------------------------------------------------


def methods_for(given: Measurements, lonlat: bool) -> dict[str, Method]:
    extent = bounds("places", given.coords)
    asked = Asked(given.coords, extent, Frame.of(given, extent, lonlat=lonlat))
    made = holdout.all_methods(load("none", "cpu"), given, asked, transform=None, find_noise=False)
    made.pop("constant")
    peers: dict[str, Method] = {"EOF": eof}
    if importlib.util.find_spec("gstools"):
        peers["GSTools"] = gstools
    return made | peers


def row(name: str, folds: list[Fold], lonlat: bool, unit: float = 1.0) -> list[str]:
    """RMSE in units of `unit` of each method, and how many values this holds in its intervals."""
    scores = {score.name: score for score in holdout.compare_folds(
        methods_for(folds[0].kept, lonlat), folds)}
    this = next(iter(scores.values()))
    cells = [f"{score.rmse / unit:.3g}" if (score := scores.get(method)) else "not measured"
             for method in (this.name, FRAME_BY_FRAME, "linear in time", "EOF", "GSTools")]
    print(f"{name}: {holdout.verdict(list(scores.values()))}; "
          + ", ".join(f"{score.name} {score.seconds:.0f} s" for score in scores.values()))
    return [name, *cells, f"{this.covered:.1%}"]


def hidden_in(name: str, given: Measurements) -> list[list[str]]:
    stretches = stretches_of(given.times, SHARE, 0, LENGTH)
    cases = {"scattered": holdout.by_points(given, SHARE, 0),
             "eight times": holdout.by_blocks(given, stretches),
             "whole places": holdout.by_points(given, SHARE, 0, whole=True)}
    return [row(f"{name}, {case}", folds, True) for case, folds in cases.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    readers: dict[str, Callable[[Path], Measurements]] = {
        "ozone": ozone, "pm10": pm10, "winds": winds}
    for name in readers:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--observed", type=int, nargs="*", default=[2, 5, 10], help="per cent")
    given = parser.parse_args()
    print(describe_machine() + "\n")
    rows = []
    for percent in given.observed:
        folds = tracer(percent / 100, given.sequences)
        sd = np.sqrt(np.mean([fold.hidden.values.var() for fold in folds]))
        rows.append(row(f"tracer, {percent} %", folds, False, sd))
    for name, read in readers.items():
        if path := getattr(given, name):
            rows += hidden_in(name, read(path))
    print()
    table(["RMSE", "this", "frame by frame", "linear in time", "EOF", "GSTools",
           "in 90 % intervals"], rows)


if __name__ == "__main__":
    main()
