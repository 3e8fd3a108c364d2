"""The ladder: one change each, same data and seed, equal samples and equal minutes, in one table.

    python benchmarks/experiments.py canvas --data train.npz --data_val val.npz   # the first part
    python benchmarks/experiments.py tokens --canvas_from .../canvas_canvas/mamba_v2_best.pth
    python benchmarks/experiments.py tokens --rows V2 "V2, no Mamba"              # some rows only

The rows of `canvas` train the canvas alone, those of `tokens` what comes after it, on one canvas
that they share (or, in rows that say so, without one). Each row is a training by the project's own
command in a folder of its own; started again, it goes on, and finished rows are only read. Then the
last averaged weights of all rows are scored on the same frozen pictures, the first of the
validation. Differences come with paired 95 % bootstrap intervals. Nothing is chosen on these
pictures: the weights are those of the last step. The column of equal minutes holds what a row's
training had seen of itself when the quickest row ended, its learning rate not yet down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from common import ALONE, ROOT, validations

sys.path.insert(0, str(ROOT))

from sparsefield.data import parse_pattern
from sparsefield.evaluate.cases import Cases, open_test_data
from sparsefield.evaluate.metrics import paired_bootstrap
from sparsefield.model.checkpoint import load_checkpoint, load_model

COMMON = "--batch_size 32 --lr 2e-3 --warmup 100"
TOKENS = "--batch_size 16 --queries_min 128 --queries_max 384"
V2 = f"train_mamba_v2.py --d_model 64 --num_layers 8 --perceiver_heads 4 {TOKENS}"
V1 = f"train_mamba.py --d_model 128 --num_layers 6 {TOKENS}"
BARE, RESIDUAL = "--canvas_width 0", "--cross_attention_residual True"
# Each row changes one thing of the first; of a setting given twice the last counts.
LADDERS = {
    "canvas": {
        "canvas": ALONE,
        "AdamW": f"{ALONE} --optimiser adamw",
        "no dropout": f"{ALONE} --canvas_dropout 0",
        "width 32": f"{ALONE} --canvas_width 32",
        "width 64": f"{ALONE} --canvas_width 64",
        "LR 1e-3": f"{ALONE} --lr 1e-3",
        "LR 4e-3": f"{ALONE} --lr 4e-3",
        "batch 16": f"{ALONE} --batch_size 16",
        "batch 64": f"{ALONE} --batch_size 64",
    },
    "tokens": {
        "V2": V2,
        "V2, no Mamba": f"{V2} --num_layers 0",
        "V2, attention in place of Mamba": f"{V2} --num_layers 0 --perceiver_iterations 6",
        "V2, no perceiver": f"{V2} --perceiver_iterations 0",
        "V2, all layers forward": f"{V2} --two_way False",
        "V2, queries do not attend to each other": f"{V2} --query_self_attention False",
        "V2, one curve": f"{V2} --order hilbert",
        "V2, no nearest observations": f"{V2} --neighbours 0",
        "V2, attention without distance": f"{V2} --distance_attention False",
        "V1": V1,
        "V1, residual around the cross-attention": f"{V1} {RESIDUAL}",
        "V2, no canvas": f"{V2} {BARE}",
        "V2, no canvas, no Mamba": f"{V2} {BARE} --num_layers 0",
        "V2, no canvas, no perceiver": f"{V2} {BARE} --perceiver_iterations 0",
        "V2, no canvas, AdamW": f"{V2} {BARE} --optimiser adamw",
        "V2, no canvas, no prior": f"{V2} {BARE} --prior none",
        "V1, no canvas": f"{V1} {BARE}",
        "V1, no canvas, residual": f"{V1} {BARE} {RESIDUAL}",
        "V1, no canvas, no prior": f"{V1} {BARE} --prior none",
        "V1, no canvas, residual, no prior": f"{V1} {BARE} {RESIDUAL} --prior none",
    },
}


def train(name: str, command: str, folder: Path, settings: argparse.Namespace) -> None:
    """Run a row's training to its end, or go on with it. Stops the program if it fails."""
    script, *flags = command.split()
    line = [sys.executable, str(ROOT / script), *COMMON.split(), *flags,
            "--data", settings.data, "--epochs", str(settings.epochs), "--eval_every", "1",
            "--eval_pictures", "64", "--visualize_every", "100000", "--save_every", "1",
            "--keep_last", "1", "--seed", str(settings.seed), "--save_dir", str(folder)]
    if settings.data_val:
        line += ["--data_val", settings.data_val]
    if settings.ladder == "tokens" and "--canvas_width 0" not in command:
        theirs = load_checkpoint(settings.canvas_from)["model_args"]
        line += ["--canvas_from", str(settings.canvas_from), "--canvas_flow", "0"]
        for width in ("canvas_width", "canvas_flow_width"):
            line += [f"--{width}", str(theirs.get(width, 0))]
    print(f"{name}: {' '.join(line[1:])}", file=sys.stderr, flush=True)
    with open(folder.with_suffix(".log"), "a") as log:
        done = subprocess.run(line, stdout=log, stderr=log, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: {name} failed, see {folder.with_suffix('.log')}")


def score(folder: Path, settings: argparse.Namespace) -> dict:
    """Numbers per picture of the posterior mean and of one sample, with the last weights."""
    latest = next(folder.glob("*_latest.pth"))
    model, checkpoint = load_model(latest)
    split = open_test_data(checkpoint, None).val
    cases = Cases(split, parse_pattern("random:0.2"), range(min(settings.pictures, len(split))))
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
    minutes = min(row["curve"][-1]["minutes"] for row in rows.values())
    lines = [
        "| row | parameters | posterior mean: PSNR, SSIM | PSNR over kriging, dB "
        f"| PSNR over the first row, dB | minutes | in training after {minutes:.1f} minutes, dB "
        "| loss of the slope | sample: PSNR | sample: speckle |",
        "|---" * 10 + "|",
    ]
    for name, row in rows.items():
        mean, drawn = row["mean"], row["sample"]
        then = [point["val_psnr"] for point in row["curve"] if point["minutes"] <= 1.02 * minutes]
        lines.append(
            f"| {name} | {row['parameters']:,} | {average(mean, 'psnr'):.2f} dB, "
            f"{average(mean, 'ssim'):.4f} | {difference(mean, row['kriging'], 'psnr', 3)} | "
            + ("" if row is first else difference(mean, first["mean"], "psnr", 3))
            + f" | {row['curve'][-1]['minutes']:.1f} | {then[-1]:.2f} "
            f"| {row['curve'][-1]['val_loss']:.3f} "
            f"| {average(drawn, 'psnr'):.2f} dB | {average(drawn, 'speckle_0.10'):.4f} |"
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
    parser.add_argument("ladder", choices=list(LADDERS))
    parser.add_argument("--rows", nargs="+", help="some rows (default: all)")
    parser.add_argument("--canvas_from", type=Path, help="the canvas of the rows of `tokens`")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--data", default="photos")
    parser.add_argument("--data_val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=160, help="scored at the end")
    parser.add_argument("--num_steps", type=int, default=4, help="Heun steps of a sample")
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    settings = parser.parse_args()
    every = LADDERS[settings.ladder]
    names = settings.rows or list(every)
    if unknown := set(names) - set(every):
        parser.error(f"no such rows: {', '.join(unknown)}; choose from: {'; '.join(every)}")
    if settings.ladder == "tokens" and settings.canvas_from is None:
        parser.error("--canvas_from: which canvas the rows share, the best of a training of one")

    results = {}
    for name in names:
        folder = settings.out / f"{settings.ladder}_{name}".replace(" ", "_").replace(",", "")
        folder.parent.mkdir(parents=True, exist_ok=True)
        train(name, every[name], folder, settings)
        curve = validations(folder)
        scores, last = folder / "scores.json", curve[-1]["step"]
        if not scores.exists() or json.loads(scores.read_text())["step"] < last:
            scores.write_text(json.dumps(score(folder, settings)))
        results[name] = {**json.loads(scores.read_text()), "curve": curve}
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    print(f"{settings.data}, {settings.epochs} epochs, seed {settings.seed}, commit {commit}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{settings.pictures} validation pictures\n")
    print(table(results), curves(results), sep="\n\n")


if __name__ == "__main__":
    main()
