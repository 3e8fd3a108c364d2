"""Small honest experiments: one change each, same data, steps and seed, in one table.

    python benchmarks/experiments.py                           # all rows: V1, V2, V2 without a part
    python benchmarks/experiments.py --rows V2 "V2, no prior"  # some rows only
    python benchmarks/experiments.py --epochs 24 --data pictures.npz --data_val more.npz

Each row is a training by the project's own command in a folder of its own; started again, it goes
on, and finished rows are only read. Then the last averaged weights of all rows are scored on the
same frozen pictures of the validation split. Differences come with paired 95 % bootstrap intervals.
Nothing is chosen on these pictures: the weights are those of the last step, not the best ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sparsefield.data import parse_pattern  # noqa: E402
from sparsefield.evaluate.cases import Cases, spread  # noqa: E402
from sparsefield.evaluate.metrics import paired_bootstrap  # noqa: E402
from sparsefield.evaluate.opening import open_test_data  # noqa: E402
from sparsefield.model.checkpoint import load_model  # noqa: E402

# The settings of the quick run (scripts/quick.sh); each row changes one thing of the first.
COMMON = (
    "--batch_size 16 --lr 1e-3 --warmup 50 --zero_share 0.5 --queries_min 128 --queries_max 256"
)
V2 = "train_mamba_v2.py --d_model 64 --num_layers 2 --perceiver_iterations 1 --perceiver_heads 4"
V1 = "train_mamba.py --d_model 128 --num_layers 2 --heads 4"
ROWS = {
    "V2": V2,
    "V1": V1,
    "V1, residual around the cross-attention": f"{V1} --cross_attention_residual True",
    "V2, no prior": f"{V2} --prior none",
    "V1, no prior": f"{V1} --prior none",
    "V1, residual, no prior": f"{V1} --cross_attention_residual True --prior none",
    "V2, no nearest observations": f"{V2} --neighbours 0",
    "V2, attention without distance": f"{V2} --distance_attention False",
    "V2, all layers forward": f"{V2} --two_way False",
    "V2, queries do not attend to each other": f"{V2} --query_self_attention False",
    "V2, two iterations": V2.replace("iterations 1", "iterations 2"),
    "V2, order: raster": f"{V2} --order raster",
    "V2, order: concatenated": f"{V2} --order concat",
    "V2, 4 layers": V2.replace("num_layers 2", "num_layers 4"),
    "V2, d_model 128": V2.replace("d_model 64", "d_model 128"),
    "V2, LR 1e-4": f"{V2} --lr 1e-4",
    "V2, LR 3e-3": f"{V2} --lr 3e-3",
}


def train(name: str, command: str, folder: Path, settings: argparse.Namespace) -> None:
    """Run a row's training to its end, or go on with it. Stops the program if it fails."""
    script, *flags = command.split()
    line = [sys.executable, str(ROOT / script), *COMMON.split(), *flags,
            "--data", settings.data, "--epochs", str(settings.epochs), "--eval_every", "2",
            "--eval_pictures", "64", "--visualize_every", "100000", "--save_every", "2",
            "--keep_last", "1", "--seed", str(settings.seed), "--save_dir", str(folder)]
    if settings.data_val:
        line += ["--data_val", settings.data_val]
    print(f"{name}: {' '.join(line[1:])}", file=sys.stderr, flush=True)
    with open(folder.with_suffix(".log"), "a") as log:
        done = subprocess.run(line, stdout=log, stderr=log, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: {name} failed, see {folder.with_suffix('.log')}")


def curve(folder: Path) -> list[dict]:
    """Validations of a run, from its metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "val_psnr" in record]


def score(folder: Path, settings: argparse.Namespace) -> dict:
    """Numbers per picture of the posterior mean and of one sample, with the last weights."""
    latest = next(folder.glob("*_latest.pth"))
    model, checkpoint = load_model(latest)
    split = open_test_data(checkpoint, None).val
    cases = Cases(split, parse_pattern("random:0.2"), spread(range(len(split)), settings.pictures))
    mean = cases.sample(model, method="mean")
    drawn = cases.sample(model, method="heun", num_steps=settings.num_steps)
    kriging = cases.interpolate("kriging, fitted")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step": checkpoint["step"],
        "mean": cases.numbers(mean),
        "sample": cases.numbers(drawn),
        "kriging": cases.numbers(kriging),
    }


def difference(one: list[dict], other: list[dict], metric: str, decimals: int) -> str:
    pairs = np.array([a[metric] - b[metric] for a, b in zip(one, other)])
    mean, low, high = paired_bootstrap(pairs)
    return f"{mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]"


def average(numbers: list[dict], metric: str) -> float:
    return float(np.mean([one[metric] for one in numbers]))


def table(rows: dict[str, dict]) -> str:
    """Markdown: every row beside kriging and beside the first row."""
    first = next(iter(rows.values()))
    lines = [
        "| row | parameters | posterior mean: PSNR, SSIM | PSNR over kriging, dB "
        "| PSNR over the first row, dB | sample: PSNR | sample: speckle | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        mean, drawn = row["mean"], row["sample"]
        lines.append(
            f"| {name} | {row['parameters']:,} | {average(mean, 'psnr'):.2f} dB, "
            f"{average(mean, 'ssim'):.4f} | {difference(mean, row['kriging'], 'psnr', 3)} | "
            + ("" if row is first else difference(mean, first["mean"], "psnr", 3))
            + f" | {average(drawn, 'psnr'):.2f} dB | {average(drawn, 'speckle_0.10'):.4f} "
            f"| {row['curve'][-1]['minutes']:.1f} |"
        )
    return "\n".join(lines)


def curves(rows: dict[str, dict]) -> str:
    """Markdown: PSNR of the posterior mean against steps, as the trainings saw it."""
    steps = [record["step"] for record in next(iter(rows.values()))["curve"]]
    lines = ["| row | " + " | ".join(f"{step} steps" for step in steps) + " |",
             "|---" * (len(steps) + 1) + "|"]
    for name, row in rows.items():
        values = " | ".join(f"{record['val_psnr']:.2f}" for record in row["curve"])
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="some rows (default: all)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--data", default="photos")
    parser.add_argument("--data_val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=128, help="scored at the end")
    parser.add_argument("--num_steps", type=int, default=10, help="Heun steps of a sample")
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    settings = parser.parse_args()
    unknown = set(settings.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such rows: {', '.join(unknown)}; choose from: {'; '.join(ROWS)}")

    results = {}
    for name in settings.rows:
        folder = settings.out / name.replace(" ", "_").replace(",", "").replace(":", "")
        folder.parent.mkdir(parents=True, exist_ok=True)
        train(name, ROWS[name], folder, settings)
        scores = folder / "scores.json"
        if not scores.exists() or json.loads(scores.read_text())["step"] < curve(folder)[-1]["step"]:
            scores.write_text(json.dumps(score(folder, settings)))
        results[name] = {**json.loads(scores.read_text()), "curve": curve(folder)}
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    print(f"{settings.data}, {settings.epochs} epochs, seed {settings.seed}, commit {commit}, torch "
          f"{torch.__version__}, {os.cpu_count()} cores, {settings.pictures} validation pictures\n")
    print(table(results), curves(results), sep="\n\n")


if __name__ == "__main__":
    main()
