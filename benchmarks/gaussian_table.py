"""The table of docs/gaussian.md: kriging with one kernel against kriging fitted to the field.

    python benchmarks/gaussian_table.py                              # photos and elevation models
    python benchmarks/gaussian_table.py --pictures val.npz --workers 2
    python benchmarks/gaussian_table.py --fields 8 --observed 20     # a first look

Fields are 32 x 32. `--pictures` is an .npz with `images` (n, 32, 32, 3) uint8. Elevation comes from
two files inside matplotlib, cut at fixed places. The observed pixels of field i depend on the seed
and i alone. Printed is one row for each data set, share of observed pixels and method:

- one kernel: variogram |h|, one sd for all channels, noise independent from value to value;
- fitted: sparsefield.gaussian as it is, correlated between points and channels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import matplotlib.cbook
import numpy as np
import torch
from common import ROOT, describe_machine, table
from torch import Tensor

sys.path.insert(0, str(ROOT))

from sparsefield.data import open_data
from sparsefield.evaluate import metrics
from sparsefield.evaluate.metrics import coverage
from sparsefield.gaussian import ONE_KERNEL, Posterior, condition
from sparsefield.gaussian.answer import combine, krige
from sparsefield.gaussian.kernels import NUGGET
from sparsefield.place import grid_coords

SIDE = 32
DRAWS = 39  # the range from the second to the last but one is a 90 % interval
ELEVATION = {"jacksboro_fault_dem.npz": ("elevation", 32), "topobathy.npz": ("topo", 16)}
GRID = grid_coords(SIDE, SIDE)


@dataclass(frozen=True)
class Fields:
    """Truths of one kind.

    Attributes:
        truth: (n, 32, 32, C); elevation has a range of one in every field.
        metres: (n,) that one is worth; None: pictures, whose values lie in [0, 1].
    """

    name: str
    truth: np.ndarray
    metres: np.ndarray | None = None


def data_sets(pictures: str | None, most: int) -> Iterator[Fields]:
    if pictures:
        images = np.load(pictures)["images"][:most]
        yield Fields("pictures", images / 255)
    photos = open_data("photos").val
    yield Fields("photos", np.stack([photos.example(i) for i in range(min(most, 128))]) / 2 + 0.5)
    for file, (name, stride) in ELEVATION.items():
        whole = matplotlib.cbook.get_sample_data(file)[name].astype(float)
        tops, lefts = (range(0, size - SIDE + 1, stride) for size in whole.shape)
        crops = np.stack([whole[i : i + SIDE, j : j + SIDE, None] for i in tops for j in lefts])
        metres = np.ptp(crops[:most], axis=(1, 2, 3))
        yield Fields(file, crops[:most] / metres[:, None, None, None], metres)


@dataclass(frozen=True)
class Forecast:
    """What a method says of the hidden values of one field, in the units of the truth.

    Attributes:
        mean: (N, C). draws: (K, N, C). nll: of the hidden values together, nats per value.
    """

    mean: np.ndarray
    draws: np.ndarray
    nll: float


@torch.no_grad()
def one_kernel(coords: Tensor, values: Tensor, queries: Tensor, truth: Tensor,
               generators: list[torch.Generator]) -> Forecast:
    """Independent noise of one sd for all channels. Coordinates (n, 2) and values (n, C)."""
    fit = condition(coords[None], values[None], kernels=ONE_KERNEL).fit
    answer = combine(fit, krige(fit.factored, queries[None]))
    mean = answer.mean[0]
    sd = answer.sd[0].square().mean(dim=1, keepdim=True).sqrt().expand_as(mean)
    z = torch.stack([torch.randn(mean.shape, generator=g) for g in generators])
    nll = log_density_loss((truth - mean) / sd, sd, torch.eye(len(mean)), torch.eye(mean.shape[1]))
    return Forecast(mean.numpy(), (mean + sd * z).numpy(), nll)


@torch.no_grad()
def fitted(coords: Tensor, values: Tensor, queries: Tensor, truth: Tensor,
           generators: list[torch.Generator]) -> Forecast:
    """All that the package has. Coordinates (n, 2) and values (n, C)."""
    posterior = condition(coords[None], values[None])
    answer = posterior.at(queries[None])
    mean, sd = answer.mean[0], answer.sd[0]
    z = posterior.noise(queries[None])(generators)
    covariance = error_covariance(posterior, queries)
    between_channels = posterior.fit.heaviest().channels[0]
    nll = log_density_loss((truth - mean) / sd, sd, correlation(covariance),
                           correlation(between_channels))
    return Forecast(mean.numpy(), (mean + sd * z).numpy(), nll)


def error_covariance(posterior: Posterior, queries: Tensor) -> Tensor:
    """(N, N) between the errors of the heaviest kernel, from the increments, as draws have it."""
    factored = posterior.fit.heaviest().factored
    queries = queries[None].double()
    tried, first = factored.hypotheses, factored.coords[:, :1].double()
    gamma = tried.variogram(queries, queries)[0]
    gamma += NUGGET * (gamma > 0)
    to_first = tried.variogram(queries, first)[0] + NUGGET                # (N, 1)
    whitened = krige(factored, queries).whitened[0].double()
    return to_first + to_first.T - gamma - whitened.T @ whitened


def correlation(covariance: Tensor) -> Tensor:
    sd = covariance.diagonal().sqrt()
    return (covariance / sd[:, None] / sd).double()


def log_density_loss(z: Tensor, sd: Tensor, points: Tensor, channels: Tensor) -> float:
    """Negative log density per value of sd * z, z (N, C) correlated between points and channels."""
    count, width = z.shape
    points, channels = (torch.linalg.cholesky(x.double()) for x in (points, channels))
    white = torch.linalg.solve_triangular(points, z.double(), upper=False)
    white = torch.linalg.solve_triangular(channels, white.T, upper=False)
    log_det = (width * points.diagonal().log().sum() + count * channels.diagonal().log().sum()
               + sd.double().log().sum())
    return float((white.square().sum() / 2 + log_det) / (count * width) + np.log(2 * np.pi) / 2)


METHODS = {"one kernel": one_kernel, "fitted": fitted}


def score(fields: Fields, observed: int, seed: int, index: int) -> dict[str, dict[str, float]]:
    """Scores of every method on one field, by name."""
    torch.set_num_threads(1)
    truth = fields.truth[index]
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(seed + index))
    count = observed * SIDE * SIDE // 100
    known, hidden = order[:count], order[count:]
    flat = torch.from_numpy(truth).float().flatten(0, 1)                  # (1024, C)
    middle, scale = 0.5, 0.5
    if fields.metres is not None:  # to about unit size, by what is observed
        middle, scale = float(flat[known].mean()), float(flat[known].std())
    inside = (flat - middle) / scale
    found = {}
    for name, method in METHODS.items():
        generators = [torch.Generator().manual_seed(1000 * index + k) for k in range(DRAWS)]
        said = method(GRID[known], inside[known], GRID[hidden], inside[hidden], generators)
        answers = np.tile(truth, (1 + DRAWS, 1, 1, 1))
        answers.reshape(1 + DRAWS, SIDE * SIDE, -1)[:, hidden] = middle + scale * np.concatenate(
            [said.mean[None], said.draws])
        if fields.metres is None:
            answers = answers.clip(0, 1)
        found[name] = judge(answers[0], answers[1:], truth, hidden.numpy())
        found[name]["nll"] = said.nll + np.log(scale)
        if fields.metres is not None:
            found[name]["rmse"] *= fields.metres[index]
            found[name]["crps"] *= fields.metres[index]
            found[name]["nll"] += np.log(fields.metres[index])
    return found


def judge(mean: np.ndarray, draws: np.ndarray, truth: np.ndarray, hidden: np.ndarray) -> dict:
    """Of a mean (H, W, C) and draws (K, H, W, C), in units of the truth."""
    pooled = partial(values_at, hidden=hidden)
    draws_there, truth_there = pooled(draws), pooled(truth[None])[0]
    luminance, luminance_truth = draws_there.mean(axis=2), truth_there.mean(axis=1)
    return {
        "psnr": metrics.psnr(mean, truth),
        "rmse": metrics.mse(mean, truth) ** 0.5,
        "crps": metrics.crps(draws_there[:, :, None], truth_there[:, None]),
        "points": coverage(draws_there.reshape(DRAWS, -1), truth_there.reshape(-1), 0.9),
        "4 x 4": block_coverage(draws, truth, 4),
        "8 x 8": block_coverage(draws, truth, 8),
        "channels": coverage(luminance, luminance_truth, 0.9),
        "speckle": metrics.speckle(draws[0], truth, 0.10),
        "grain": metrics.flat_hf(draws[0], truth),
    }


def values_at(fields: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """(K, N, C) of (K, H, W, C)."""
    return fields.reshape(len(fields), SIDE * SIDE, -1)[:, hidden]


def block_coverage(draws: np.ndarray, truth: np.ndarray, size: int) -> float:
    def means(fields: np.ndarray) -> np.ndarray:
        parts = fields.reshape(len(fields), SIDE // size, size, SIDE // size, size, -1)
        return parts.mean(axis=(2, 4)).reshape(len(fields), -1)

    return coverage(means(draws), means(truth[None])[0], 0.9)


def row(fields: Fields, observed: int, method: str, found: list[dict[str, float]]) -> list[str]:
    scores = {name: np.array([each[name] for each in found]) for name in found[0]}
    mean = {name: values.mean() for name, values in scores.items() if name != "grain"}
    if fields.metres is None:
        error = f"{mean['psnr']:.2f} / {np.median(scores['psnr']):.2f} dB"
        crps, channels = f"{mean['crps']:.4f}", f"{mean['channels']:.0%}"
    else:
        error = f"{mean['rmse']:.2f} / {np.median(scores['rmse']):.2f} m"
        crps, channels = f"{mean['crps']:.2f} m", "–"
    covered = [f"{mean[name]:.0%}" for name in ("points", "4 x 4", "8 x 8")]
    return [f"{fields.name}, {len(found)}", f"{observed} %", method, error, crps,
            f"{mean['nll']:.2f}", *covered, channels,
            f"{mean['speckle']:.3f}", f"{np.nanmean(scores['grain']):.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", help=".npz with images (n, 32, 32, 3) uint8")
    parser.add_argument("--fields", type=int, default=160, help="of each data set at most")
    parser.add_argument("--observed", type=int, nargs="+", default=[10, 20, 40], help="per cent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    print(f"{describe_machine()}, seed {given.seed}\n")
    rows = []
    with ProcessPoolExecutor(given.workers) as pool:
        for fields in data_sets(given.pictures, given.fields):
            for observed in given.observed:
                work = partial(score, fields, observed, given.seed)
                found = list(pool.map(work, range(len(fields.truth)), chunksize=4))
                rows += [row(fields, observed, method, [each[method] for each in found])
                         for method in METHODS]
                print(f"{fields.name}, {observed} %", file=sys.stderr, flush=True)
    table(["fields", "observed", "kriging", "error of the mean: mean / median", "CRPS", "NLL",
           "points", "4 x 4 means", "8 x 8 means", "channel mean", "speckle(.10)", "grain"], rows)


if __name__ == "__main__":
    main()
