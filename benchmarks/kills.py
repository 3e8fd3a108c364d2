"""Kill a training at random moments, again and again; what it ends as must not differ by a bit.

    python benchmarks/kills.py              # 50 kills of a tiny training, some minutes on one core
    python benchmarks/kills.py --kills 5 --seed 3

A training is started, gets SIGKILL after a random time, and is started again by the same command,
until it has been killed so often; then it may end. Its folder must equal that of an undisturbed
training: model, averaged weights, optimiser, chosen best, numbered checkpoints, logged numbers.
It saves and validates after every second step, so that most kills hit a file being written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from sparsefield.model.checkpoint import load_checkpoint

EPOCHS = 40
FILES = ("mamba_v2_latest.pth", "mamba_v2_best.pth", "mamba_v2_best.safetensors",
         *(f"mamba_v2_epoch_{epoch:04d}.pth" for epoch in range(EPOCHS - 4, EPOCHS + 1)))
TIMED = {"minutes", "samples_per_s", "data_wait", "memory_mb", "seconds", "save_dir"}


def train(folder: Path, data: Path) -> None:
    """The command; what it prints goes to a file beside the folder."""
    from train_mamba_v2 import main

    torch.set_num_threads(1)
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    main([
        "--data", str(data), "--save_dir", str(folder), "--device", "cpu",
        "--d_model", "16", "--num_layers", "2", "--perceiver_iterations", "1",
        "--perceiver_heads", "2", "--neighbours", "4", "--dropout", "0.1",
        "--batch_size", "8", "--queries_min", "8", "--queries_max", "16", "--eval_pictures", "2",
        "--epochs", str(EPOCHS), "--eval_every", "1", "--save_every", "1",
        "--visualize_every", "1000", "--warmup", "2", "--lr", "1e-3",
    ])


def write_data(path: Path) -> None:
    """Twenty 8 x 8 pictures of ramps: two steps of 8 an epoch."""
    rng = np.random.default_rng(0)
    ramps = rng.integers(0, 255, (20, 1, 1, 3)) * np.linspace(0.2, 1, 8)[None, :, None, None]
    np.savez(path, images=np.broadcast_to(ramps, (20, 8, 8, 3)).astype(np.uint8))


def plain(item: object) -> object:
    """Without times and folders; tensors as their bits, so that == compares all."""
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items() if key not in TIMED}
    if isinstance(item, (list, tuple)):
        return [plain(value) for value in item]
    if isinstance(item, torch.Tensor):
        return item.contiguous().flatten().view(torch.uint8).numpy().tobytes(), tuple(item.shape)
    return item


def content(folder: Path) -> dict[str, object]:
    """All that a training leaves, comparable."""
    records = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "numbered": sorted(path.name for path in folder.glob("*_epoch_*.pth")),
        "metrics.jsonl": [plain(json.loads(line)) for line in records],
        **{name: plain(load_checkpoint(folder / name)) for name in FILES},
    }


def where(folder: Path) -> str:
    """What a killed training was doing, as far as its folder tells."""
    half = list(folder.glob(".*.tmp"))
    return f"writing {half[0].name.split('.')[1]}" if half else "between writes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    context = multiprocessing.get_context("forkserver")  # imports once, not at every start
    context.set_forkserver_preload(["train_mamba_v2"])
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data.npz")
        write_data(data)
        folders = {name: Path(scratch, name) for name in ("undisturbed", "killed")}

        started = time.monotonic()
        undisturbed = context.Process(target=train, args=(folders["undisturbed"], data))
        undisturbed.start()
        undisturbed.join()
        seconds = time.monotonic() - started
        print(f"undisturbed: {EPOCHS} epochs in {seconds:.0f} s", flush=True)

        kills, moments, folder = 0, Counter(), folders["killed"]
        while True:
            process = context.Process(target=train, args=(folder, data))
            process.start()
            if kills < options.kills:
                process.join(rng.uniform(0, 3 * seconds / options.kills) + 0.02 * seconds)
            else:
                process.join()
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
            moments[where(folder)] += 1
        if process.exitcode:
            print(folder.with_suffix(".log").read_text()[-2000:])
            return 1
        print(f"{kills} kills: {dict(moments)}")
        left = [path.name for path in folder.glob(".*.tmp")]
        first, second = (content(path) for path in folders.values())
        differing = [name for name in first if first[name] != second[name]] + left
    print(f"NOT the same: {', '.join(differing)}" if differing else
          f"the same to the last bit: {', '.join(first)}")
    return bool(differing) or kills < options.kills


if __name__ == "__main__":
    sys.exit(main())
