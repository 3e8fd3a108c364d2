"""From V1 as described to V2, one part after the other: docs/waterfall.png and its table.

    python benchmarks/waterfall.py train --data natural32_train.npz --data_val natural32_val.npz
    python benchmarks/waterfall.py score             # also of natural32_val alone: --sets val
    python benchmarks/waterfall.py draw              # the table, and docs/waterfall.png

Every rung is a training by the project's own command, on the same crops in the same order, in a
folder of its own under --out, but for the last three, which are one training: without its flow,
without its tokens, and whole; run again, `train` continues it. `score` measures the kept weights on
pictures that no training saw: the test half of the validation file and test crops of `photos`. What
is scored is stored in benchmarks/waterfall.json with its commit, and `draw` shows what is there;
a rung that is not there is "not measured". Seconds are of the training, of whatever else ran.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import ROOT, describe_machine, run_training, table, validations
from experiments import COMMON, V1, V2

sys.path.insert(0, str(ROOT))

from scripts.ship import without_flow
from sparsefield.data import Split, parse_pattern
from sparsefield.evaluate.calibration import METHOD, fit_spread, pool
from sparsefield.evaluate.cases import Cases, open_test_data, spread
from sparsefield.evaluate.metrics import paired_bootstrap, widen
from sparsefield.model.checkpoint import build_model, load_checkpoint
from sparsefield.model.field import FieldModel, GaussianModel

STORED = ROOT / "benchmarks/waterfall.json"
PICTURE = ROOT / "docs/waterfall.png"
NOISE = "--prior none --unet_width 0"
RUNGS = {
    "V1 as described": f"{V1} {NOISE}",
    "with a residual": f"{V1} {NOISE} --cross_attention_residual True",
    "two ways and perceiver: V2 as described": f"{V2} {NOISE}",
    "fitted posterior as start": f"{V2} --prior fitted --unet_width 0",
    "grid U-Nets for mean and sd": "",
    "grid U-Net for the flow": "",
    "tokens: V2 complete": f"{V2} --prior fitted --unet_width 48 --flow_unet_width 48",
}
*_, STARTS, FLOWS, COMPLETE = RUNGS  # the first two are parts of the last, which trains them
KRIGING = "fitted kriging, no training"
SETS = {"val": (160, 40), "photos": (64, 24)}  # pictures of which the mean is scored, and samples
MEMBERS = 20
OF_MEAN = ("psnr", "ssim")
OF_SAMPLES = (*OF_MEAN, "crps", "speckle_0.10", "missed_0.10", "coverage_90", "variance",
              "squared_error")


def folder_of(rung: str, given: argparse.Namespace) -> Path:
    words = "".join(c if c.isalnum() else "_" for c in (rung if RUNGS[rung] else COMPLETE))
    return given.out / f"{words}_{given.epochs}_{given.seed}"


def train(given: argparse.Namespace) -> None:
    """Train the rungs that are not at their end. Ends the program if one fails."""
    for rung in dict.fromkeys(rung if RUNGS[rung] else COMPLETE for rung in given.rungs):
        script, *flags = RUNGS[rung].split()
        folder = folder_of(rung, given)
        line = [sys.executable, str(ROOT / script), *COMMON.split(), *flags, "--data", given.data,
                "--epochs", str(given.epochs), "--seed", str(given.seed), "--save_dir", str(folder)]
        line += ["--data_val", given.data_val] if given.data_val else []
        run_training(rung, line, folder)


def score(given: argparse.Namespace) -> None:
    """Measure what is trained and not stored, and store it."""
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always"], capture_output=True,
                            text=True).stdout.strip()
    for rung in given.rungs:
        folder = folder_of(rung, given)
        for path in folder.glob("*_best.safetensors"):
            checkpoint = load_checkpoint(path)
            model = build_model(without_flow(checkpoint) if rung == STARTS else checkpoint)
            more = {"points": 0} if rung == FLOWS else {}  # no tokens
            where = {"commit": commit, "machine": describe_machine()}
            crops = checkpoint["config"]["epochs"] * checkpoint["data"]["sizes"][0]
            about = {**where, "crops": crops,
                     "parameters": sum(p.numel() for p in model.parameters()),
                     "minutes": round(validations(folder)[-1]["minutes"], 1)}
            for name in given.sets:
                test = open_test_data(checkpoint, None if name == "val" else name).test
                for key, scored, words, how in (
                    (f"{KRIGING}|{name}", GaussianModel(), where, {}),
                    (f"{rung}|{given.epochs}|{given.seed}|{name}", model, about, more),
                ):
                    if key not in stored:
                        stored[key] = {**words, **measure(scored, test, *SETS[name], **how)}
                        STORED.write_text(json.dumps(stored, indent=1) + "\n")
                        print(key, summary(stored[key]), flush=True)


def measure(model: FieldModel | GaussianModel, test: Split, pictures: int, sampled: int,
            **sampler: int) -> dict:
    """{kind: {metric: [a number of each picture]}} of the mean, of samples, and of samples whose
    spread was fitted on the other half of the sampled pictures."""
    cases = Cases(test, parse_pattern("random:0.2"), spread(range(len(test)), pictures))
    means = cases.numbers(cases.sample(model, method="mean", **sampler))
    some = cases.subset(spread(range(len(cases)), sampled))
    raw = some.sample(model, draws=MEMBERS, method=METHOD, bar="samples", **sampler)
    halves = [range(0, len(some), 2), range(1, len(some), 2)]
    fitted = list(raw.draws)
    for own, other in (halves, halves[::-1]):
        samples, truth = pool([raw.draws[k] for k in other], [some[k] for k in other])
        factor = [fit_spread(samples[:, c::some.channels], truth[c::some.channels])
                  for c in range(some.channels)]
        for k in own:
            fitted[k] = np.clip(widen(raw.draws[k], factor), 0, 1)
    found = {"mean": (means, OF_MEAN), "sample": (some.numbers(raw), OF_SAMPLES),
             "calibrated": (some.numbers(replace(raw, draws=fitted)), OF_SAMPLES)}
    return {"how": raw.how, **{kind: {metric: [round(row[metric], 6) for row in rows]
                                      for metric in metrics}
                               for kind, (rows, metrics) in found.items()}}


def summary(found: dict) -> dict[str, dict[str, float]]:
    """{kind: {metric: mean over pictures}}, with spread over error."""
    result = {}
    for kind in ("mean", "sample", "calibrated"):
        result[kind] = {name: float(np.mean(numbers)) for name, numbers in found[kind].items()}
        if kind != "mean":
            of = result[kind]
            of["spread_error"] = (of.pop("variance") / of.pop("squared_error")) ** 0.5
    return result


# --- the table and the picture -------------------------------------------------------------------


def draw(given: argparse.Namespace) -> None:
    """The table of every set, and docs/waterfall.png of the first."""
    stored = json.loads(STORED.read_text())
    for name in given.sets:
        rungs = {rung: stored.get(f"{rung}|{given.epochs}|{given.seed}|{name}") for rung in RUNGS}
        rows, before = [], None
        for rung, found in {KRIGING: stored.get(f"{KRIGING}|{name}"), **rungs}.items():
            rows.append(row(rung, found, before))
            before = found if rung != KRIGING else None
        print(f"\n{name}: {given.epochs} epochs, seed {given.seed}\n")
        table(["", "mean: PSNR, SSIM", "over the row above, dB", "sample: PSNR, SSIM", "CRPS",
               "in 90 %", "spread / error", "speckle, missed", "calibrated: CRPS, speckle",
               "minutes"], rows)
    chart(stored, given)


def row(name: str, found: dict | None, before: dict | None) -> list[str]:
    if found is None:
        return [name, "not measured", *[""] * 8]
    mean, sample, calibrated = summary(found).values()
    return [name, f"{mean['psnr']:.2f}, {mean['ssim']:.3f}",
            "" if before is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain(found, before)),
            f"{sample['psnr']:.2f}, {sample['ssim']:.3f}", f"{sample['crps']:.4f}",
            f"{sample['coverage_90']:.0%}", f"{sample['spread_error']:.2f}",
            f"{sample['speckle_0.10']:.4f}, {sample['missed_0.10']:.4f}",
            f"{calibrated['crps']:.4f}, {calibrated['speckle_0.10']:.4f}",
            "" if name == KRIGING else f"{found['minutes']:.0f}"]


def gain(found: dict, before: dict, metric: str = "psnr") -> tuple[float, float, float]:
    """Of the posterior mean over another's, with the paired 95 % interval."""
    return paired_bootstrap(np.subtract(found["mean"][metric], before["mean"][metric]))


def chart(stored: dict, given: argparse.Namespace) -> None:
    """Bars from V1 to V2: PSNR of the mean with the interval of each step, and speckle."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    name = given.sets[0]
    found = {rung: stored[key] for rung in RUNGS
             if (key := f"{rung}|{given.epochs}|{given.seed}|{name}") in stored}
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), sharey=True,
                                         layout="constrained", width_ratios=(3, 2))
    levels = {rung: summary(numbers) for rung, numbers in found.items()}
    kriging = summary(stored[f"{KRIGING}|{name}"])
    last = None
    for place, (rung, numbers) in enumerate(found.items()):
        level = levels[rung]["mean"]["psnr"]
        low = level if last is None else levels[last]["mean"]["psnr"]
        left.barh(place, level - low if last else level, left=low if last else 0,
                  color="#4477aa" if level >= low else "#cc6677", height=0.6)
        words, end = f"{level:.2f} dB", max(level, low)
        if last:
            change, *ends = gain(numbers, found[last])
            bars = [[change - ends[0]], [ends[1] - change]]
            left.errorbar(level, place, xerr=bars, color="black", capsize=5)
            words, end = f"{words} ({change:+.2f})", max(end, level + ends[1] - change)
        label = {"va": "center", "fontsize": 13, "textcoords": "offset points",
                 "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
        left.annotate(words, (end, place), (10, 0), **label)
        speckle = levels[rung]["sample"]["speckle_0.10"]
        right.barh(place, 100 * speckle, color="#4477aa", height=0.6)
        right.annotate(f"{100 * speckle:.1f} %", (100 * speckle, place), (6, 0), **label)
        last = rung
    left.axvline(kriging["mean"]["psnr"], color="0.3", linestyle="--", label=KRIGING)
    right.axvline(100 * kriging["sample"]["speckle_0.10"], color="0.3", linestyle="--")
    right.axvline(100 * kriging["sample"]["missed_0.10"], color="#228833", linestyle=":",
                  label="what exact samples have, about")
    lowest = min(row["mean"]["psnr"] for row in levels.values())
    left.set_xlim(lowest - 0.6, max(row["mean"]["psnr"] for row in levels.values()) + 1.2)
    left.set_yticks(range(len(found)), [rung.replace(": ", ":\n") for rung in found], fontsize=13)
    left.invert_yaxis()
    left.set_title("posterior mean: PSNR, and what each part adds", fontsize=14)
    right.set_title("speckle of a sample: share of values", fontsize=14)
    for axis in (left, right):
        axis.tick_params(axis="x", labelsize=12)
        axis.legend(fontsize=12, loc="upper center", bbox_to_anchor=(0.5, -0.07), frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "score", "draw"])
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=list(RUNGS),
                        metavar="RUNG", help="some of them (default: all)")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--data", default="photos")
    parser.add_argument("--data_val", default=None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/waterfall")
    given = parser.parse_args()
    {"train": train, "score": score, "draw": draw}[given.step](given)


if __name__ == "__main__":
    main()
