"""The ladders of docs/experiments.md: one change each, same data and seed, in one table.

    python benchmarks/experiments.py start --data train.npz --data_val val.npz
    python benchmarks/experiments.py tokens --start_from .../start_first/mamba_v2_best.pth
    python benchmarks/experiments.py tokens --rows V2 "no Mamba"                # some rows only

Rows of `start` train the grid U-Nets for mean and sd alone, those of `tokens` what follows, on one
start that they share. Each row is a training by the project's own command in a folder of its own;
run again, it continues, and finished rows are only read. The last averaged weights are scored on
the same frozen pictures, the first of the validation; differences come with paired 95 % bootstrap
intervals. Nothing is chosen on these pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from common import ROOT, describe_machine, run_training, table, validations

sys.path.insert(0, str(ROOT))

from sparsefield.data import parse_pattern
from sparsefield.evaluate.cases import Cases, open_test_data
from sparsefield.evaluate.metrics import paired_bootstrap
from sparsefield.model.checkpoint import load_checkpoint, load_model

COMMON = ("--batch_size 32 --lr 2e-3 --warmup 100 --eval_every 1 --eval_pictures 64 "
          "--visualize_every 100000 --save_every 1 --keep_last 1")
START = ("train_mamba_v2.py --start_share 1 --flow_unet_width 0 --d_model 16 --num_layers 0 "
         "--perceiver_iterations 0 --perceiver_heads 2 --neighbours 0")
TOKENS = "--batch_size 16 --queries_min 128 --queries_max 384"
V2 = f"train_mamba_v2.py --d_model 64 --num_layers 8 --perceiver_heads 4 {TOKENS}"
V1 = ("train_mamba.py --d_model 128 --num_layers 6 --prior fitted --flow_unet_width 48 "
      f"{TOKENS}")
BARE = "--unet_width 0"
# What each row adds to the first; of a setting given twice the last counts.
LADDERS = {
    "start": {"first": START} | {name: f"{START} {flags}" for name, flags in {
        "AdamW": "--optimiser adamw", "no dropout": "--unet_dropout 0",
        "width 32": "--unet_width 32", "width 64": "--unet_width 64", "LR 1e-3": "--lr 1e-3",
        "LR 4e-3": "--lr 4e-3", "batch 16": "--batch_size 16", "batch 64": "--batch_size 64",
    }.items()},
    "tokens": {"V2": V2} | {name: f"{V2} {flags}" for name, flags in {
        "no Mamba": "--num_layers 0",
        "attention in place of Mamba": "--num_layers 0 --perceiver_iterations 6",
        "no perceiver": "--perceiver_iterations 0",
        "all layers forward": "--two_way False",
        "queries do not attend to each other": "--query_self_attention False",
        "one curve": "--order hilbert",
        "no nearest observations": "--neighbours 0",
        "attention without distance": "--distance_attention False",
        "no grid U-Net": BARE, "no grid U-Net, no prior": f"{BARE} --prior none",
    }.items()} | {
        "V1": V1, "V1 with a residual": f"{V1} --cross_attention_residual True",
        "V1, no grid U-Net, no prior": f"{V1} {BARE} --prior none",
    },
}


def train(name: str, command: str, folder: Path, given: argparse.Namespace) -> None:
    """Run a row's training to its end, or continue it. Ends the program if it fails."""
    script, *flags = command.split()
    line = [sys.executable, str(ROOT / script), *COMMON.split(), *flags, "--data", given.data,
            "--epochs", str(given.epochs), "--seed", str(given.seed), "--save_dir", str(folder)]
    if given.data_val:
        line += ["--data_val", given.data_val]
    if given.ladder == "tokens" and BARE not in command:
        theirs = load_checkpoint(given.start_from)["model_args"]
        line += ["--start_from", str(given.start_from),
                 "--unet_width", str(theirs.get("unet_width", 0))]
    run_training(name, line, folder)


def score(folder: Path, given: argparse.Namespace) -> dict:
    """Numbers of each picture, of the posterior mean and of one sample, with the last weights."""
    model, checkpoint = load_model(next(folder.glob("*_latest.pth")))
    split = open_test_data(checkpoint, None).val
    cases = Cases(split, parse_pattern("random:0.2"), range(min(given.pictures, len(split))))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mean": cases.numbers(cases.sample(model, method="mean")),
        "sample": cases.numbers(cases.sample(model, method="heun", num_steps=given.num_steps)),
        "kriging": cases.numbers(cases.interpolate("kriging, fitted")),
    }


def difference(one: list[dict], other: list[dict]) -> str:
    pairs = np.array([a["psnr"] - b["psnr"] for a, b in zip(one, other, strict=True)])
    mean, low, high = paired_bootstrap(pairs)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def row(name: str, found: dict, first: dict) -> list[str]:
    def average(kind: str, metric: str) -> float:
        return float(np.mean([numbers[metric] for numbers in found[kind]]))

    last = found["curve"][-1]
    return [name, f"{found['parameters']:,}",
            f"{average('mean', 'psnr'):.2f} dB, {average('mean', 'ssim'):.4f}",
            difference(found["mean"], found["kriging"]),
            "" if found is first else difference(found["mean"], first["mean"]),
            f"{last['minutes']:.1f}", f"{last['val_loss']:.4f}",
            f"{average('sample', 'psnr'):.2f} dB", f"{average('sample', 'speckle_0.10'):.4f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ladder", choices=list(LADDERS))
    parser.add_argument("--rows", nargs="+", help="some rows (default: all)")
    parser.add_argument("--start_from", type=Path, help="the start that rows of `tokens` share")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--data", default="photos")
    parser.add_argument("--data_val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=160, help="scored at the end")
    parser.add_argument("--num_steps", type=int, default=2, help="Heun steps of a sample")
    parser.add_argument("--out", type=Path, default=Path("experiments"))
    given = parser.parse_args()
    every = LADDERS[given.ladder]
    if unknown := set(given.rows or []) - set(every):
        parser.error(f"no such rows: {', '.join(unknown)}; choose from: {'; '.join(every)}")
    if given.ladder == "tokens" and given.start_from is None:
        parser.error("--start_from: whose start the rows share")
    results: dict[str, dict] = {}
    for name in given.rows or every:
        folder = given.out / f"{given.ladder}_{name}".replace(" ", "_").replace(",", "")
        folder.parent.mkdir(parents=True, exist_ok=True)
        train(name, every[name], folder, given)
        scores = folder / "scores.json"
        if not scores.exists():
            scores.write_text(json.dumps(score(folder, given)))
        results[name] = {**json.loads(scores.read_text()), "curve": validations(folder)}
    print(f"{given.data}, {given.epochs} epochs, seed {given.seed}, {describe_machine()}\n")
    first = next(iter(results.values()))
    table(["row", "parameters", "posterior mean: PSNR, SSIM", "over kriging, dB",
           "over the first row, dB", "minutes", "loss of the last stage", "sample: PSNR",
           "sample: speckle"], [row(name, found, first) for name, found in results.items()])


if __name__ == "__main__":
    main()
