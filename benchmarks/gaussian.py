"""The Gaussian answer: time by observations and queries, memory, and beside other packages.

    python benchmarks/gaussian.py                       # all tables, about 5 minutes on two cores
    python benchmarks/gaussian.py --tables batch        # some: batch, observations, queries, others
    python benchmarks/gaussian.py --tables before --before ../before      # beside another checkout
    pip install pykrige gstools                         # optional: their rows

Places are uniform over the unit square; random fields of three channels, values of unit size. Rows
of a table take turns; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import (
    ROOT,
    Checkout,
    describe_machine,
    interleave,
    memory_in_a_process_of_its_own,
    milliseconds,
    print_added_memory,
    ratio,
    table,
)

sys.path.insert(0, str(ROOT))

from sparsefield.gaussian import ONE_KERNEL, condition
from sparsefield.place import grid_coords

BATCH, OBSERVED = 16, 204
OBSERVATIONS = (10, 50, 204, 500, 1000, 2000, 10_000, 100_000)
QUERIES = (1024, 10_000, 100_000, 1_000_000)
LARGE = 1000.0  # sides: an exponential variogram so long is a straight line within the square
NUGGET = 1e-4


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def places(fields: int, count: int) -> Tensor:
    return torch.stack([torch.rand(count, 2, generator=g) for g in generators(fields)])


def values_at(coords: Tensor, channels: int = 3) -> Tensor:
    """Sums of plane waves, rougher than a trend and smoother than noise: (B, M, C)."""
    generator = torch.Generator().manual_seed(0)
    waves = 20 * torch.randn(2, 64, channels, generator=generator)
    phase = torch.einsum("bmd,dkc->bmkc", coords, waves)
    return torch.cos(phase + 6.3 * torch.rand(64, channels, generator=generator)).mean(2) * 6


def print_batch(rounds: int) -> None:
    """What the fields of a training batch cost, without sharing a mask."""
    coords, queries = places(BATCH, OBSERVED), places(BATCH, 820)
    values = values_at(coords)
    posterior = condition(coords, values)
    noise = posterior.noise(queries)
    runs = {
        "fit": partial(condition, coords, values),
        "fit and answer": lambda: condition(coords, values).at(queries),
        "fit and answer, one kernel":
            lambda: condition(coords, values, kernels=ONE_KERNEL).at(queries),
        "fit and answer, with noise":
            lambda: condition(coords, values, torch.full_like(values, 0.1)).at(queries),
        "first draw": lambda: posterior.noise(queries)(generators(BATCH)),
        "each further draw": lambda: noise(generators(BATCH)),
    }
    found = interleave(runs, rounds)
    table([f"{BATCH} fields at once, {OBSERVED} observations, 820 queries", "ms for a field"],
          [[name, milliseconds([s / BATCH for s in seconds])] for name, seconds in found.items()])


def print_before(before: Path, rounds: int) -> None:
    """The same by two checkouts, which take turns."""
    coords, queries = places(BATCH, OBSERVED), places(BATCH, 820)
    values, grid = values_at(coords), grid_coords(32, 32)
    masks = torch.stack([torch.randperm(1024, generator=g)[:OBSERVED].sort()[0]
                         for g in generators(BATCH)])
    on_grid = values_at(grid[masks])
    tasks = {
        "one field, 1,024 places": ("closed_form", (coords[:1], values[:1], grid[None])),
        f"{BATCH} fields, 820 places each": ("closed_form", (coords, values, queries)),
        f"training, {BATCH} fields, a mask each": ("training_batch", (masks, on_grid)),
        f"training, {BATCH} fields, one mask": (
            "training_batch", (masks[:1], values_at(grid[masks[:1]]).expand_as(on_grid))),
    }
    rows = []
    for name, (function, args) in tasks.items():
        both = [Checkout(path, function) for path in (before, ROOT)]
        found = [[checkout(*args) for checkout in both] for _ in range(rounds + 1)][1:]
        for key in ("seconds", "first", "further"):
            if key in found[0][0]:
                old, new = ([float(each[i][key]) for each in found] for i in (0, 1))
                rows.append([name + ("" if key == "seconds" else f": {key} batch"),
                             milliseconds(old), milliseconds(new), ratio(new, old)])
    table([f"{OBSERVED} observations of 3 channels", "before, ms", "now, ms", "now / before"], rows)


def one_field(observations: int, queries: int) -> dict[str, Callable[[], object]]:
    """What is done with one field, by name."""
    coords = places(1, observations)
    values, side = values_at(coords), round(queries**0.5)
    at = grid_coords(side, side)[None]
    posterior = condition(coords, values)
    noise = posterior.noise(at)
    return {"fit": partial(condition, coords, values), "answer": partial(posterior.at, at),
            "first draw": lambda: posterior.noise(at)(generators(1)),
            "further draw": lambda: noise(generators(1))}


def print_sizes(name: str, sizes: list[tuple[int, int]], rounds: int) -> None:
    rows = []
    for size in sizes:
        runs = one_field(*size)
        runs["answer"]()  # leave-one-out errors are kept
        found = interleave(runs, rounds)
        memory = memory_in_a_process_of_its_own("--memory_of", *map(str, size))
        rows.append([f"{size[0]:,}", f"{size[1]:,}", *map(milliseconds, found.values()), memory])
    table([f"by {name}: observations", "queries", "fit, ms", "answer, ms", "first draw, ms",
           "further draw, ms", "peak MiB of all"], rows)


def print_memory(observations: int, queries: int) -> None:
    def all_of(size: tuple[int, int]) -> None:
        for run in one_field(*size).values():
            run()

    all_of((50, 64))  # code is loaded
    print_added_memory(partial(all_of, (observations, queries)))


def packages(amplitude2: float) -> dict[str, Callable[..., np.ndarray]]:
    """Kriging means by optional packages, with a note for each that is missing."""
    found: dict[str, Callable[..., np.ndarray]] = {}
    try:
        from pykrige.ok import OrdinaryKriging

        found["PyKrige, power"] = lambda coords, values, queries: OrdinaryKriging(
            *coords.T, values, variogram_model="power",
            variogram_parameters=[amplitude2, 1.0, NUGGET * amplitude2],
        ).execute("points", *queries.T)[0].data
    except ImportError as error:
        print(f"note: no row for PyKrige ({error})\n")
    try:
        import gstools

        model = gstools.Exponential(dim=2, var=amplitude2 * LARGE, len_scale=LARGE,
                                    nugget=NUGGET * amplitude2)
        found[f"GSTools, exponential of length {LARGE:g}"] = lambda coords, values, queries: (
            gstools.krige.Ordinary(model, coords.T, values, exact=True, pseudo_inv=False)(
                queries.T, return_var=False))
    except ImportError as error:
        print(f"note: no row for GSTools ({error})\n")
    return found


def ours(coords: Tensor, values: Tensor, queries: Tensor, **settings: object) -> np.ndarray:
    return condition(coords, values, **settings).at(queries).mean[0, :, 0].numpy()


def print_others(rounds: int) -> None:
    """The same points and the same straight variogram: gamma = amplitude (|h| + nugget)."""
    others = packages(1.0)
    for count, asked in [(204, 820), (1000, 10_000), (2000, 10_000)]:
        coords, queries = places(1, count), places(1, asked)
        values = values_at(coords, 1)
        given = [x[0].double().numpy() for x in (coords, values[..., 0], queries)]

        means = {name: method(*given) for name, method in others.items()}
        one_kernel = partial(ours, coords, values, queries, kernels=ONE_KERNEL)
        runs: dict[str, Callable[[], object]] = {
            "this package, one kernel": one_kernel,
            "this package": partial(ours, coords, values, queries)}
        runs |= {name: partial(method, *given) for name, method in others.items()}
        found, reference = interleave(runs, rounds), one_kernel()
        table([f"{count:,} observations, {asked:,} queries", "ms", "of the first row",
               "means differ by at most"],
              [[name, milliseconds(seconds), ratio(seconds, found["this package, one kernel"]),
                f"{np.abs(means[name] - reference).max():.1e}" if name in means else ""]
               for name, seconds in found.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["batch", "observations", "queries", "others"]
    parser.add_argument("--tables", nargs="+", default=every, choices=[*every, "before"])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory_of", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print_memory(*given.memory_of)
        return
    print(describe_machine() + "\n")
    if given.before:
        print_before(given.before, given.rounds)
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
