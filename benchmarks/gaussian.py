"""The Gaussian answer: time by observations and queries, memory, and beside other packages.

    python benchmarks/gaussian.py                       # all tables, about 5 minutes on two cores
    python benchmarks/gaussian.py --tables batch        # some: batch, observations, queries, others
    pip install pykrige gstools                         # optional: their rows

A field is 32 x 32 with 204 observed pixels unless a table says otherwise; elsewhere places are
uniform over the square. Random fields of three channels, values of unit size. Rows of a table take
turns; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from common import (
    ROOT,
    describe_machine,
    interleave,
    memory_in_a_process_of_its_own,
    milliseconds,
    print_added_memory,
    ratio,
    table,
)
from torch import Tensor

sys.path.insert(0, str(ROOT))

from sparsefield.gaussian import ONE_KERNEL, Kernel, Posterior, condition, draws
from sparsefield.gaussian.kernels import NUGGET
from sparsefield.place import grid_coords

BATCH, OBSERVED = 16, 204
OBSERVATIONS = (10, 50, 204, 500, 1000, 2000, 10_000, 100_000)
QUERIES = (1024, 10_000, 100_000, 1_000_000)
LARGE = 1000.0  # sides of the square: an exponential variogram so long is a straight line within

Answer = tuple[np.ndarray, np.ndarray]  # mean and sd, (N,)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def field_at(coords: Tensor, channels: int) -> Tensor:
    """A random field at (B, M, 2): (B, M, C)."""
    numbers = draws.standard_normal(generators(len(coords)), draws.FEATURES, channels)
    return torch.stack([torch.cat([draws.features(Kernel(1.2), part) @ n
                                   for part in at.split(10_000)])
                        for at, n in zip(coords, numbers)])


def pictures() -> tuple[Tensor, Tensor, Tensor]:
    """BATCH fields: observed places (B, M, 2), values (B, M, 3), and the other places (B, N, 2)."""
    order = torch.stack([torch.randperm(1024, generator=g) for g in generators(BATCH)])
    at = grid_coords(32, 32)[order]
    return at[:, :OBSERVED], field_at(at[:, :OBSERVED], 3), at[:, OBSERVED:]


def scattered(count: int, channels: int) -> tuple[Tensor, Tensor]:
    coords = torch.rand(1, count, 2, generator=generators(1)[0])
    return coords, field_at(coords, channels)


def answer(coords: Tensor, values: Tensor, queries: Tensor, **settings) -> None:
    condition(coords, values, **settings).at(queries)


def print_batch(rounds: int) -> None:
    """What the fields of a training batch cost."""
    coords, values, queries = pictures()
    noise_sd = torch.full_like(values, 0.1)
    posterior = condition(coords, values)
    noise = posterior.noise(queries)
    runs = {
        "fit": partial(condition, coords, values),
        "fit and answer": partial(answer, coords, values, queries),
        "fit and answer, one kernel": partial(answer, coords, values, queries, kernels=ONE_KERNEL),
        "fit and answer, with noise": partial(answer, coords, values, queries, noise_sd=noise_sd),
        "first draw": lambda: posterior.noise(queries)(generators(BATCH)),
        "each further draw": lambda: noise(generators(BATCH)),
    }
    found = interleave(runs, rounds)
    table([f"{BATCH} fields at once, {OBSERVED} observations, {queries.shape[1]} queries",
           "ms for a field"],
          [[name, milliseconds([s / BATCH for s in seconds])] for name, seconds in found.items()])


def one_field(observations: int, queries: int) -> dict[str, Callable[[], object]]:
    """What is done with one field, by name."""
    coords, values = scattered(observations, 3)
    side = round(queries**0.5)
    at = grid_coords(side, side)[None]
    posterior = condition(coords, values)
    noise = posterior.noise(at)
    return {"fit": partial(condition, coords, values), "answer": partial(posterior.at, at),
            "first draw": lambda: posterior.noise(at)(generators(1)),
            "further draw": lambda: noise(generators(1)),
            "all": lambda: whole(coords, values, at)}


def whole(coords: Tensor, values: Tensor, at: Tensor) -> None:
    posterior = condition(coords, values)
    posterior.at(at)
    posterior.noise(at)(generators(1))


def print_sizes(name: str, sizes: list[tuple[int, int]], rounds: int) -> None:
    rows = []
    for size in sizes:
        runs = one_field(*size)
        runs["answer"]()  # leave-one-out errors are kept
        found = interleave({part: run for part, run in runs.items() if part != "all"}, rounds)
        memory = memory_in_a_process_of_its_own("--memory_of", *map(str, size))
        rows.append([f"{size[0]:,}", f"{size[1]:,}", *map(milliseconds, found.values()), memory])
    table([f"by {name}: observations", "queries", "fit, ms", "answer, ms", "first draw, ms",
           "further draw, ms", "peak MiB of all"], rows)


def print_memory(observations: int, queries: int) -> None:
    one_field(50, 64)["all"]()  # code is loaded
    coords, values = scattered(observations, 3)
    side = round(queries**0.5)
    print_added_memory(partial(whole, coords, values, grid_coords(side, side)[None]))


def ours(coords: np.ndarray, values: np.ndarray, queries: np.ndarray) -> Posterior:
    return condition(torch.tensor(coords)[None], torch.tensor(values)[None, :, None],
                     kernels=ONE_KERNEL)


def krige_ours(coords: np.ndarray, values: np.ndarray, queries: np.ndarray) -> Answer:
    posterior = ours(coords, values, queries)
    found = posterior.at(torch.tensor(queries)[None])
    return found.mean[0, :, 0].numpy(), found.sd[0, :, 0].numpy()


def packages() -> dict[str, Callable[..., Answer]]:
    """Kriging by optional packages, of a given amplitude, with a note for each that is missing."""
    found = {}
    try:
        from pykrige.ok import OrdinaryKriging

        def pykrige(amplitude2, coords, values, queries) -> Answer:
            made = OrdinaryKriging(*coords.T, values, variogram_model="power",
                                   variogram_parameters=[amplitude2, 1.0, NUGGET * amplitude2])
            mean, variance = made.execute("points", *queries.T)
            return mean.data, variance.data**0.5

        found["PyKrige, power"] = pykrige
    except ImportError as error:
        print(f"note: no row for PyKrige ({error})\n")
    try:
        import gstools

        def gstools_krige(amplitude2, coords, values, queries) -> Answer:
            model = gstools.Exponential(dim=2, var=amplitude2 * LARGE, len_scale=LARGE,
                                        nugget=NUGGET * amplitude2)
            made = gstools.krige.Ordinary(model, coords.T, values, exact=True, pseudo_inv=False)
            mean, variance = made(queries.T, return_var=True)
            return mean, variance**0.5

        found[f"GSTools, exponential of length {LARGE:g}"] = gstools_krige
    except ImportError as error:
        print(f"note: no row for GSTools ({error})\n")
    return found


def print_others(rounds: int) -> None:
    """The same points and the same straight variogram: gamma = amplitude (|h| + nugget)."""
    methods = packages()
    rng = np.random.default_rng(0)
    for count, queries in [(204, 820), (1000, 10_000), (2000, 10_000)]:
        coords, values = (x[0].double().numpy() for x in scattered(count, 1))
        given = coords, values[:, 0], rng.random((queries, 2)).astype(np.float32).astype(float)
        amplitude2 = float(ours(*given).fit.amplitude2)
        runs = {"this package, one kernel": partial(krige_ours, *given)}
        runs |= {name: partial(method, amplitude2, *given) for name, method in methods.items()}
        runs["this package, fitted, with local amplitude"] = partial(
            answer, *(torch.tensor(x).reshape(1, len(x), -1) for x in given))
        mean, sd = runs["this package, one kernel"]()
        found, rows = interleave(runs, rounds), []
        for name, seconds in found.items():
            difference = ["", ""]
            if name in methods:
                their_mean, their_sd = runs[name]()
                difference = [f"{np.abs((their_mean - mean) / sd).max():.1e}",
                              f"{np.abs(their_sd / sd - 1).max():.1e}"]
            rows.append([name, milliseconds(seconds),
                         ratio(seconds, found["this package, one kernel"]), *difference])
        table([f"{count:,} observations, {queries:,} queries", "ms", "of the first row",
               "means differ by, sd", "sd differ by"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["batch", "observations", "queries", "others"]
    parser.add_argument("--tables", nargs="+", default=every, choices=every)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory_of", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print_memory(*given.memory_of)
        return
    print(describe_machine() + "\n")
    if "batch" in given.tables:
        print_batch(given.rounds)
    if "observations" in given.tables:
        print_sizes("observations", [(count, 1024) for count in OBSERVATIONS], given.rounds)
    if "queries" in given.tables:
        print_sizes("queries", [(OBSERVED, count) for count in QUERIES], given.rounds)
    if "others" in given.tables:
        print_others(given.rounds)


if __name__ == "__main__":
    main()
