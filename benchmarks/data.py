"""How long training waits for its data: per source, against a real step of the default V2.

    python benchmarks/data.py                        # all kinds of data, no workers
    python benchmarks/data.py --workers 2 --steps 20 --device cuda

Every kind is made here, at 32 x 32: the embedded photographs, 2,000 arrays of pictures, 2,000
one-channel fields with gaps, and a folder of 40 JPEG files of 1200 x 900, kept in memory and read
again each time. `make` is the median of one batch made alone in this process; `wait` is what the
loop waited for the loader, as a share of the time of wait and step together, over all steps but
the first. The goal is 5 % at most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsefield.train.pairs import Pairs, slope_loss

from sparsefield.data import (
    Batch,
    Data,
    TrainingBatches,
    folders,
    open_data,
    parse_pattern,
)
from sparsefield.flow.path import draw_angles
from sparsefield.train.optimise import Optimiser
from train_mamba_v2 import Config, MAMBADiffusionV2


def make_arrays(path: Path) -> str:
    pictures = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    np.savez(path / "pictures.npz", images=pictures)
    return str(path / "pictures.npz")


def make_fields(path: Path) -> str:
    fields = np.random.default_rng(0).normal(size=(2000, 32, 32)).astype(np.float32)
    fields[:, :8, :12] = np.nan
    np.savez(path / "fields.npz", images=fields)
    return str(path / "fields.npz")


def make_folder(path: Path) -> str:
    rng = np.random.default_rng(0)
    (path / "folder").mkdir()
    for k in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8))
        coarse.resize((1200, 900)).save(path / "folder" / f"{k}.jpg", quality=90)
    return str(path / "folder")


def open_uncached_folder(spec: str) -> Data:
    limit, folders.CACHE_BYTES = folders.CACHE_BYTES, 0
    try:
        return open_data(spec)
    finally:
        folders.CACHE_BYTES = limit


def sources(path: Path) -> dict[str, Data]:
    folder = make_folder(path)
    return {
        "photos": open_data("photos"),
        "array": open_data(make_arrays(path)),
        "fields with gaps": open_data(make_fields(path)),
        "folder": open_data(folder),
        "folder beyond memory": open_uncached_folder(folder),
    }


def batches_of(data: Data, config: Config) -> TrainingBatches:
    return TrainingBatches(
        data.train, parse_pattern(config.observe), seed=0, batch_size=config.batch_size,
        queries=(config.queries_min, config.queries_max), draw_angles=draw_angles,
    )


def step_of(data: Data, config: Config, device: str) -> Callable[[Batch], None]:
    """One optimiser step of the default model, finished when it returns."""
    torch.manual_seed(0)
    model: nn.Module = MAMBADiffusionV2(channels=data.channels).to(device)
    optimiser = Optimiser(model, config.optimiser, config.lr, config.weight_decay)
    pairs = Pairs(model, data.height, data.width, torch.device(device))

    def step(batch: Batch) -> None:
        batch = Batch(*(tensor.to(device) for tensor in batch))
        pair = pairs(batch)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = slope_loss(model, batch, pair).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        loss.item()

    return step


def seconds_to_make(batches: TrainingBatches, count: int = 20) -> float:
    times = []
    for step in range(count):
        start = time.perf_counter()
        batches[step]
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def wait_and_step(
    batches: TrainingBatches, step: Callable[[Batch], None], steps: int, workers: int
) -> tuple[float, float]:
    """Seconds that a step waits for data, and computes; means without the first step."""
    loader = iter(DataLoader(
        batches, batch_size=None, sampler=range(steps + 1), num_workers=workers
    ))
    waited, computed = [], []
    for _ in range(steps + 1):
        start = time.perf_counter()
        batch = next(loader)
        received = time.perf_counter()
        step(batch)
        waited.append(received - start)
        computed.append(time.perf_counter() - received)
    return statistics.mean(waited[1:]), statistics.mean(computed[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", help="names of the first column")
    given = parser.parse_args()
    config = Config()
    print(f"batch {config.batch_size}, {given.workers} workers, {given.device}, "
          f"{torch.get_num_threads()} threads")
    print("| data | make, ms | wait, ms | step, ms | wait |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as path:
        for name, data in sources(Path(path)).items():
            if given.only and name not in given.only:
                continue
            batches = batches_of(data, config)
            make = seconds_to_make(batches)
            step = step_of(data, config, given.device)
            wait, compute = wait_and_step(batches, step, given.steps, given.workers)
            share = wait / (wait + compute)
            print(f"| {name} | {make * 1e3:.1f} | {wait * 1e3:.1f} | {compute * 1e3:.0f} "
                  f"| {share:.2%} |", flush=True)


if __name__ == "__main__":
    main()
