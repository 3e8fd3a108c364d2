"""A mixture of many kinds of field for a model of any quantity: its files, and how good a model is.

    python benchmarks/mixture.py make --files debs --out mixture
    DATA=mixture/mixture_train.npz DATA_VAL=mixture/mixture_val.npz STANDARDISE=1 \\
        SAVE_DIR=runs/fields VALUE_RANGE="-40 40" ./run_mamba_v2_training.sh
    python benchmarks/mixture.py score --data mixture/mixture_test.npz bundled \\
        fields=runs/fields/mamba_v2_best.pth
    python benchmarks/mixture.py draw

`make` cuts crops of 32 x 32 of mean 0 and sd 1, equally many of each kind. No place, time,
photograph or simulation is in two of the three files; fault, sea surface and salinity are in the
test alone. Files are looked for by name in folders: etopo5.cdf, monthly_navy_winds.cdf,
coads_climatology.cdf and levitus_climatology.cdf of Debian's ferret-datasets (docs/fields.md), and
natural32_train.npz and natural32_val.npz, crops of photographs, else those inside scikit-image are
cut. A kind without its file is left out. `score` compares with kriging at hidden points of test
fields, with paired 95 % intervals over fields.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
import torch
from matplotlib import cbook
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

from common import ROOT, describe_machine, table

sys.path.insert(0, str(ROOT))

from sparsefield import cli, load, progress
from sparsefield.data import parse_pattern
from sparsefield.data.arrays import read_array
from sparsefield.data.batches import Measured
from sparsefield.data.crops import COAST, FAULT, PHOTOS, Picture, random_box
from sparsefield.data.netcdf import read_fields
from sparsefield.data.tracer import SPIN_UP, Turbulence
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate.cases import spread
from sparsefield.evaluate.metrics import evaluate_samples, paired_bootstrap
from sparsefield.gaussian.kernels import FEATURES, Kernel, Waves
from sparsefield.place import grid_coords
from sparsefield.use.predict import Reconstructor

SIDE = 32
PARTS = ("train", "val", "test")
HELD = {"val": 24, "test": 64}  # crops of each kind
LEAST_SD = 0.02  # of a crop, in the sd of what it is cut from: flatter ones show rounding
MOST_GAPS = 0.4  # share of a crop that may not exist; to learn from, none
TRIES = 10_000  # in a row to find a crop
TOGETHER = 4  # Gaussian fields of one kernel, crops of one moment
THIN = 8  # of fields to validate and test on, every so many are taken
RESULTS = Path(__file__).with_suffix(".json")
PATTERNS = ("random:0.05", "random:0.1", "random:0.2", "clusters:0.1")
PANELS = 5  # beside each other in the picture
SAMPLES = 20  # fewer cannot state 90 %

Source = Callable[[np.random.Generator], Iterator[np.ndarray]]  # fields (SIDE, SIDE) without end
Folders = list[Path]

# --- what is cut from grids -----------------------------------------------------------------------


def crops(grids: Iterable[np.ndarray], gaps: float = MOST_GAPS) -> Source:
    """Crops of any of the grids (H, W) at random scales, with so many gaps at most."""
    grids = list(grids)
    least = LEAST_SD * float(np.nanstd(np.concatenate([grid.ravel() for grid in grids])))
    pictures = [Picture(np.stack([np.nan_to_num(grid - np.nanmean(grid)), ~np.isnan(grid)], -1))
                for grid in grids]

    def source(rng: np.random.Generator) -> Iterator[np.ndarray]:
        tries = 0
        while (tries := tries + 1) < TRIES:
            picture = pictures[rng.integers(len(pictures))]
            box = random_box(rng, picture.height, picture.width, SIDE)
            total, share = np.moveaxis(picture.crop(box, SIDE), -1, 0)
            field = np.where(share > 0.5, total / np.maximum(share, 0.5), np.nan)
            if np.isnan(field).mean() <= gaps and np.nanstd(field) > least:
                tries = 0
                yield field
        raise UserError("hardly any crop of a grid has values everywhere; are the files those of "
                        "the package?")

    return source


def find(folders: Folders, name: str) -> Path:
    """A file by its name. Raises FileNotFoundError."""
    for path in (path for folder in folders for path in sorted(folder.rglob(name))):
        return path
    raise FileNotFoundError(f"{name} is not there (Debian package ferret-datasets)")


def variable(folders: Folders, file: str, name: str) -> np.ndarray:
    """(steps, y, x), NaN where there is none."""
    return read_fields(find(folders, file), [name]).values[..., 0]


def terrain(file: tuple[str, str]) -> np.ndarray:
    return np.asarray(cbook.get_sample_data(file[0])[file[1]], dtype=np.float64)


def photographs(folders: Folders) -> list[Source]:
    try:
        learnt, held = (read_array(find(folders, f"natural32_{part}.npz"))[0].mean(axis=-1)
                        for part in PARTS[:2])
        parts = learnt, *np.array_split(held, 2)
    except FileNotFoundError:
        folder = Path(skimage.data.__file__).parent
        parts = ([np.asarray(Image.open(folder / name).convert("L"), dtype=float)
                  for name in PHOTOS[part]] for part in PARTS)
    return [crops(part) for part in parts]


def relief(folders: Folders) -> list[Source]:
    """From 60 degrees south to north: 0 to 240, 240 to 298, 299 to 360 degrees east."""
    earth = variable(folders, "etopo5.cdf", "ROSE")[0, 360:1800]
    return [crops([*np.array_split(earth[:, :2880], 7, axis=1), terrain(COAST)]),
            crops([earth[:, 2884:3580]]), crops([earth[:, 3584:]])]


def winds(folders: Folders) -> list[Source]:
    """Nine years, one, one, each with columns of its own; to learn from also the Pacific."""
    navy = [variable(folders, "monthly_navy_winds.cdf", name)[:, 6:67] for name in ("UWND", "VWND")]
    pacific = [grid for name in ("UWND", "VWND", "WSPD")
               for grid in variable(folders, "coads_climatology.cdf", name)[:, 15:75, 45:80]]
    return [crops([*pacific, *(grid for wind in navy for grid in wind[:108, :, :80])], 0.0),
            crops(grid for wind in navy for grid in wind[108:120, :, 80:112]),
            crops(grid for wind in navy for grid in wind[120:, :, 112:])]


def pressure(folders: Folders) -> list[Source]:
    """Of the Pacific, the Indian Ocean, the Atlantic. Air temperature and humidity of the file look
    like the sea surface, and are left out."""
    level = variable(folders, "coads_climatology.cdf", "SLP")[:, 5:85]
    return [crops(level[..., 45:125], 0.0), crops(level[..., 8:44]), crops(level[..., 128:180])]


def sea_surface(folders: Folders) -> list[Source]:
    """Without the Pacific, from which winds and pressure are learnt."""
    sst = variable(folders, "coads_climatology.cdf", "SST")[:, 5:85]
    return [crops([*sst[..., 8:44], *sst[..., 128:180]])]


# --- what is simulated ----------------------------------------------------------------------------


def turbulence(which: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Vorticity (0) or tracer (1) of flows of any age."""
    while True:
        flow = Turbulence(2 * SIDE, rng)
        for age in range(4 * SPIN_UP):
            flow.advance()
            if age > SPIN_UP // 3 and age % 8 == 0:
                square = np.fft.irfft2(flow.state[which])
                for start in rng.integers(2 * SIDE, size=(TOGETHER, 2)):
                    yield np.roll(square, tuple(start), axis=(0, 1))[:SIDE, :SIDE]


def random_kernel(rng: np.random.Generator, smooth: bool) -> Kernel:
    """One of any family; smooth: without edges of its own."""
    shape = {"ratio": rng.choice([1.0, rng.uniform(1, 3)]), "angle": rng.uniform(0, np.pi)}
    family, reach = rng.random(), 0.05 * 16 ** rng.random()
    if not smooth and family < 0.4:
        return Kernel(rng.uniform(0.5, 1.95), None, **shape)
    if family > 0.85:
        return Kernel(math.inf, max(reach, 0.1), **shape)
    return Kernel(rng.uniform(1.5 if smooth else 0.4, 2.5), reach, **shape)


def gaussian(rng: np.random.Generator, smooth: bool = False) -> Iterator[np.ndarray]:
    """Of mean 0 and sd 1."""
    coords = grid_coords(SIDE, SIDE).double()
    while True:
        numbers = torch.from_numpy(rng.normal(size=(TOGETHER, FEATURES))).float()
        for field in Waves(random_kernel(rng, smooth), coords).fields(numbers).double().numpy():
            yield ((field - field.mean()) / field.std()).reshape(SIDE, SIDE)


def exponential(rng: np.random.Generator) -> Iterator[np.ndarray]:
    for field in gaussian(rng):
        yield np.exp(rng.uniform(0.4, 1.5) * field)


def fronts(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Smooth fields cut at one to four levels, every second with another field on top."""
    for field, other in zip(gaussian(rng, smooth=True), gaussian(rng), strict=True):
        levels = np.quantile(field, np.sort(rng.uniform(0.1, 0.9, size=rng.integers(1, 5))))
        steps = rng.normal(size=len(levels) + 1)[np.digitize(field, levels)]
        yield steps + (rng.random() < 0.5) * rng.uniform(0.1, 0.5) * other


def patches(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Voronoi cells with a value each."""
    coords = grid_coords(SIDE, SIDE).numpy()
    while True:
        count = round(math.exp(rng.uniform(math.log(4), math.log(60))))
        nearest = cKDTree(rng.random((count, 2))).query(coords)[1]
        yield rng.normal(size=count)[nearest].reshape(SIDE, SIDE)


GRIDDED: dict[str, Callable[[Folders], list[Source]]] = {
    "photographs": photographs, "relief": relief, "winds": winds, "pressure": pressure,
    "fault": lambda folders: [crops([terrain(FAULT)])], "sea surface": sea_surface,
    "salinity": lambda folders: [crops(variable(folders, "levitus_climatology.cdf", "SALT")[
        :15, 20:160])],
}
SIMULATED: dict[str, Source] = {
    "tracer": partial(turbulence, 1), "vorticity": partial(turbulence, 0), "gaussian": gaussian,
    "exponential": exponential, "fronts": fronts, "patches": patches,
}
KINDS = (*GRIDDED, *SIMULATED)


# --- make -----------------------------------------------------------------------------------------


def take(source: Iterator[np.ndarray], count: int, step: int) -> np.ndarray:
    """Every `step`-th field that is not flat, (count, SIDE, SIDE, 1) float32, standardised."""
    fields = (field for field in source if np.nanstd(field) > 1e-6)
    return np.stack([(field - np.nanmean(field)) / np.nanstd(field)
                     for field in islice(fields, 0, count * step, step)],
                    dtype=np.float32, casting="same_kind")[..., None]


def make(given: argparse.Namespace) -> None:
    require_seed(given.seed)
    for folder in given.files:
        if not folder.is_dir():
            raise UserError(f"--files {folder}: no such folder")
    if given.crops < len(KINDS):
        raise UserError(f"--crops {given.crops}: give at least {len(KINDS)}")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {given.out}: {error.strerror}; give another folder") from None
    sources: dict[str, list[Source]] = {}
    for name in KINDS:
        try:
            sources[name] = GRIDDED[name](given.files) if name in GRIDDED else [SIMULATED[name]] * 3
        except FileNotFoundError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
    learnt = [name for name, of in sources.items() if len(of) == 3 and name not in given.without]
    made: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
    tasks = [(part, name) for part in PARTS for name in (sources if part == "test" else learnt)]
    for part, name in progress.over(tasks, "crops", "kind"):
        k = PARTS.index(part)
        fields = sources[name][min(k, len(sources[name]) - 1)](
            np.random.default_rng([given.seed, k, KINDS.index(name)]))
        made[part][name] = (take(fields, HELD[part], THIN) if part in HELD else
                            take(fields, -(-given.crops // len(learnt)), 1))
    for part, of_kind in made.items():
        path, counts = given.out / f"mixture_{part}.npz", list(map(len, of_kind.values()))
        np.savez(path, images=np.concatenate(list(of_kind.values())),
                 kind=np.repeat(list(of_kind), counts))
        print(f"{path}: {sum(counts):,} crops of {', '.join(of_kind)}")


# --- score ----------------------------------------------------------------------------------------


def scores(
    model: Reconstructor, measured: Measured, observed: np.ndarray, finds_noise: bool
) -> dict[str, float]:
    """Of a field (SIDE, SIDE, 1) from some of its points; with noise at these, too."""
    tokens = False if getattr(model.network, "has_flow_unet", False) else None
    noise_sd = "auto" if finds_noise else float(measured.noise_sd[0])
    answer = model.reconstruct(grid_coords(SIDE, SIDE).double().numpy()[observed],
                               measured.noisy.reshape(-1, 1)[observed], (SIDE, SIDE),
                               extent=(0, 1, 0, 1), num_samples=SAMPLES, noise_sd=noise_sd,
                               tokens=tokens, missing=[])  # a step repeats its value
    known = observed[: 0 if noise_sd else None]
    found = evaluate_samples(answer.samples, measured.truth, known)
    error = np.delete(answer.mean - measured.truth, known)
    return {"rmse": float(np.sqrt(np.nanmean(error**2))), "crps": found["crps"],
            "covered": found["coverage_90"], "covered_4x4": found["coverage_90_4x4"]}


def score(given: argparse.Namespace) -> None:
    try:
        with np.load(given.data, allow_pickle=False) as file:
            images, kinds = file["images"], file["kind"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"--data {given.data}: no mixture_test.npz of `make`") from None
    if not given.json.absolute().parent.is_dir():
        raise UserError(f"--json {given.json}: its folder is not there")
    models = {"kriging": load("none")}
    for text in given.checkpoints:
        name, _, path = text.rpartition("=")
        name = name or Path(path).parent.name or path
        if name in models:
            raise UserError(f"{text}: there is another {name}; give NAME=PATH")
        models[name] = load(path)
    chosen = [name for name in dict.fromkeys(kinds.tolist()) if name in (given.kinds or KINDS)]
    patterns = {text + (f", noise {noise}" if noise != "0" else ""): parse_pattern(text, noise)
                for noise in given.noise for text in given.observe}
    tasks, rows = [(kind, text) for kind in chosen for text in patterns], []
    for kind, text in progress.over(tasks, "scores", "kind and pattern"):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in models}
        for i in spread(np.flatnonzero(kinds == kind), given.fields):
            exists = ~np.isnan(images[i, ..., 0])
            observed = patterns[text].draw(exists, np.random.default_rng(i))
            measured = patterns[text].measure(images[i], observed, np.random.default_rng((i, 1)))
            for name, model in models.items():
                found[name].append(scores(model, measured, observed, given.find_noise))
        rows += [{"kind": kind, "observed": text, "method": name, "fields": len(each),
                  **compared(each, found["kriging"])} for name, each in found.items()]
    given.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=0))
    print(f"{describe_machine()}, {given.fields} fields of each kind\n")
    tell(rows)


def compared(each: list[dict[str, float]], kriging: list[dict[str, float]]) -> dict[str, object]:
    """Means over fields, and by how much RMSE and CRPS differ from kriging's, with intervals."""
    numbers: dict[str, object] = {key: float(np.nanmean([one[key] for one in each]))
                                  for key in each[0]}
    for key in ("rmse", "crps"):
        ours, theirs = (np.array([one[key] for one in some]) for some in (each, kriging))
        numbers[f"{key}_change"] = paired_bootstrap((ours - theirs) / theirs.mean())
    return numbers


def tell(rows: list[dict]) -> None:
    """One table for each pattern, in per cent of kriging's CRPS and RMSE."""
    for text in dict.fromkeys(row["observed"] for row in rows):
        shown: dict[str, dict[str, str]] = {}
        changes: dict[str, list[float]] = {}
        for row in (row for row in rows if row["observed"] == text):
            crps, low, high = (100 * number for number in row["crps_change"])
            shown.setdefault(row["kind"], {})[row["method"]] = (
                f"{row['crps']:.3f}" if row["method"] == "kriging" else
                f"{crps:+.1f} ({low:+.1f} to {high:+.1f}), {100 * row['rmse_change'][0]:+.1f}"
            ) + f"; {row['covered']:.0%}, {row['covered_4x4']:.0%}"
            changes.setdefault(row["method"], []).append(crps)
        print(f"**{text}**: CRPS of kriging; of others CRPS and RMSE against it, %; in 90 %: "
              "points, 4 x 4 means\n")
        table(["kind", *changes], [
            *([kind, *cells.values()] for kind, cells in shown.items()),
            ["mean", *(f"{np.mean(crps):+.1f}" for crps in changes.values())]])


# --- draw -----------------------------------------------------------------------------------------


def draw(given: argparse.Namespace) -> None:
    """A dot and an interval for each kind and method."""
    if not given.json.exists():
        raise UserError(f"{given.json}: not there; run `score` first")
    rows = pd.DataFrame(json.loads(given.json.read_text())["rows"])
    kinds, texts = rows["kind"].unique().tolist(), rows["observed"].unique()
    columns = min(len(texts), PANELS)
    lines = -(-len(texts) // columns)
    figure = Figure((3 * columns + 1, 4 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    axes = grid.ravel()[: len(texts)]
    for axis in grid.ravel()[len(texts) :]:
        axis.remove()
    for axis, text in zip(axes, texts, strict=True):
        axis.axvline(0, color="0.5", linewidth=0.8)
        methods = rows[(rows["observed"] == text) & (rows["method"] != "kriging")].groupby("method")
        for number, (method, own) in enumerate(methods):
            mean, low, high = 100 * np.array(own["crps_change"].tolist()).T
            places = own["kind"].map(kinds.index) + 0.6 * (number + 1) / (len(methods) + 1) - 0.3
            axis.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", markersize=3,
                          linewidth=1, label=method)
        axis.set(title=text, xlabel="CRPS against kriging, %")
    axes[0].set_yticks(range(len(kinds)), kinds)
    axes[0].invert_yaxis()
    axes[-1].legend()
    figure.savefig(given.out, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="write mixture_train.npz, _val.npz and _test.npz")
    one.add_argument("--files", type=Path, nargs="+", default=[], help="folders to look in")
    one.add_argument("--out", type=Path, required=True, help="folder to write to")
    one.add_argument("--crops", type=int, default=12000, help="to train on, of all kinds together")
    one.add_argument("--without", nargs="+", default=[], choices=KINDS, metavar="KIND",
                     help="kinds that are in the test alone")
    one.add_argument("--seed", type=int, default=0)
    one = commands.add_parser("score", help="checkpoints beside kriging")
    one.add_argument("checkpoints", nargs="+", metavar="NAME=PATH",
                     help="or a path; bundled: the picture weights, some seconds a field")
    one.add_argument("--data", type=Path, required=True, help="mixture_test.npz")
    one.add_argument("--fields", type=int, default=32, help="of each kind")
    one.add_argument("--kinds", nargs="+", choices=KINDS, metavar="KIND", help="default: all")
    one.add_argument("--observe", nargs="+", default=PATTERNS)
    one.add_argument("--noise", nargs="+", default=["0"], metavar="SHARE",
                     help="its sd, in sd of the measured values; kriging is told it, too")
    one.add_argument("--find_noise", action="store_true", help="how much noise is not told")
    one.add_argument("--json", type=Path, default=RESULTS)
    one = commands.add_parser("draw", help="a picture of what `score` found")
    one.add_argument("--json", type=Path, default=RESULTS)
    one.add_argument("--out", type=Path, default=ROOT / "docs/fields_model.png")
    given = parser.parse_args(arguments)
    {"make": make, "score": score, "draw": draw}[given.command](given)


if __name__ == "__main__":
    sys.exit(cli.run(main))
