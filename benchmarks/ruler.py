"""What the code gives, and what commit ca94615 (`before-core`) gave: quality, quick run, seconds.

    python benchmarks/ruler.py --val natural32_val.npz                    # quality
    python benchmarks/ruler.py --quick                                    # the quick run, minutes
    python benchmarks/ruler.py --val natural32_val.npz --before /tmp/before --only seconds

Quality: the bundled V1 and V2 and fitted kriging on the first 160 pictures, and 20 samples of 24 of
them. Seconds, of one thread: a training of the quick models' size and a reconstruction of a
photograph, of both checkouts in turn, three rounds; ratios are medians of the rounds'. All of it
goes to benchmarks/ruler.json; a part that is not measured keeps its last record.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import ROOT, describe_machine, table

STORED = ROOT / "benchmarks/ruler.json"
V1 = "checkpoints_mamba/mamba_with_v2_start.safetensors"
METHODS = {"V1": "V1", "V2": "V2", "kriging, fitted": "kriging"}
QUALITY = {"mean": ("psnr", "ssim"), "sample": ("crps", "coverage_90", "speckle_0.10")}
RUNS = {"mean": "--num_samples 160 --ensemble 1 --num_steps 1",
        "sample": "--num_samples 24 --ensemble 20"}
QUICK_SIZE = ("--d_model 64 --num_layers 2 --perceiver_iterations 1 --perceiver_heads 4 "
              "--batch_size 32 --queries_min 128 --queries_max 256 --zero_share 0.5 --epochs 3 "
              "--eval_every 3 --save_every 3 --eval_pictures 8 --visualize_every 100 --device cpu")
WIDTHS = {"unet_width": "--unet_width 32 --flow_unet_width 32 --start_share 0.6",
          "canvas_width": "--canvas_width 32 --canvas_flow_width 32 --canvas_first 0.6 "
                          "--canvas_flow 0.2"}


def run(root: Path, *words: str, **variables: str) -> str:
    """Standard output of a command of a checkout; its errors are shown."""
    return subprocess.run(words, cwd=root, check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"} | variables).stdout


def quality(val: Path, folder: Path) -> dict[str, dict[str, float]]:
    """{method: {metric: mean over the pictures}}."""
    data = folder / "first.npz"
    np.savez(data, images=np.load(val)["images"][:160])
    found: dict[str, dict[str, float]] = {name: {} for name in METHODS.values()}
    for kind, flags in RUNS.items():
        out = folder / kind
        run(ROOT, sys.executable, "eval_v1_vs_v2.py", "--v1_checkpoint", V1, "--v2_checkpoint",
            "bundled", "--data_test", str(data), "--save_dir", str(out), *flags.split())
        results = json.loads((out / "comparison_results.json").read_text())
        for name, short in METHODS.items():
            means = means_of(results, kind, name)
            found[short] |= {metric: means[metric] for metric in QUALITY[kind]}
    return found


def means_of(results: dict, kind: str, method: str) -> dict[str, float]:
    """Of the posterior means, or of samples, of a method; kriging's mean is a baseline."""
    kinds = results["summary"]
    return (kinds[kind].get(method) or kinds["baseline"][method])["mean"]


def quick(folder: Path) -> float:
    """PSNR, in dB, of the last validation of the quick run."""
    said = run(ROOT, "./run_mamba_v2_training.sh", QUICK="1", SAVE_DIR=str(folder / "run"),
               LOG=str(folder / "quick.log"), OMP_NUM_THREADS=str(os.cpu_count()))
    return float(re.findall(r"posterior mean ([\d.]+) dB", said)[-1])


def training_seconds(root: Path, data: Path, folder: Path) -> float:
    """Of a step, data included; without start, validation and end."""
    settings = (root / "sparsefield/train/config.py").read_text()
    widths = next(flags for name, flags in WIDTHS.items() if f"    {name}:" in settings)
    run(root, sys.executable, "train_mamba_v2.py", *QUICK_SIZE.split(), *widths.split(),
        "--data", str(data), "--save_dir", str(folder))
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    timed = [r for r in records if "samples_per_s" in r]
    steps = np.diff([0, *(r["step"] for r in timed)])
    return float(np.average([32 / r["samples_per_s"] for r in timed], weights=steps))


def reconstruction_seconds(root: Path, photo: Path, folder: Path) -> float:
    start = time.perf_counter()
    run(root, sys.executable, "reconstruct.py", str(photo), "--observe", "random:0.2",
        "--out", str(folder))
    return time.perf_counter() - start


def seconds(val: Path, before: Path, folder: Path, rounds: int = 3) -> dict[str, list[float]]:
    """{what: [before, now, median ratio]}."""
    from PIL import Image
    from skimage.data import astronaut

    photo = folder / "photo.png"
    Image.fromarray(astronaut()).resize((96, 96)).save(photo)
    data = folder / "few.npz"
    np.savez(data, images=np.load(val)["images"][:256])
    works = {"training step": (training_seconds, data),
             "reconstruct.py, 96 x 96": (reconstruction_seconds, photo)}
    found = {}
    for name, (work, given) in works.items():
        pairs = [[work(root, given, folder / f"{name} {i} {k}")
                  for k, root in enumerate((before, ROOT))] for i in range(rounds)]
        old, new = (statistics.median(part) for part in zip(*pairs, strict=True))
        found[name] = [old, new, statistics.median(b / a for a, b in pairs)]
    return found


def show(stored: dict) -> None:
    """Tables of what is stored."""
    now, tag = stored["now"], stored["before-core"]
    if "quality" in now:
        metrics = [metric for part in QUALITY.values() for metric in part]
        table(["method", *metrics], [
            [name, *(f"{tag['quality'][name][m]:.5f} → "
                     f"{now['quality'][name][m]:.5f}" for m in metrics)]
            for name in METHODS.values()])
    if "quick" in now:
        print(f"quick run: {tag['quick']} → {now['quick']} dB\n")
    if "seconds" in now:
        table(["seconds", "before", "now", "ratio"],
              [[name, *(f"{x:.3f}" for x in row)] for name, row in now["seconds"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val", type=Path, help="natural32_val.npz")
    parser.add_argument("--before", type=Path, help="a checkout of the tag, for seconds")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["quality", "seconds"])
    given = parser.parse_args()
    stored = json.loads(STORED.read_text())
    now = stored["now"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.val and given.only != "seconds":
            now["quality"] = quality(given.val, folder)
        if given.quick:
            now["quick"] = quick(folder)
        if given.val and given.before and given.only != "quality":
            now["seconds"] = seconds(given.val, given.before.resolve(), folder)
    now["machine"] = describe_machine()
    STORED.write_text(json.dumps(stored, indent=1) + "\n")
    show(stored)


if __name__ == "__main__":
    main()
