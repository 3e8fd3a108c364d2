"""V1 against V2: the numbers and the words of the comparison."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sparsefield.evaluate import seeds
from sparsefield.evaluate.baselines import BASELINES
from sparsefield.evaluate.calibration import SETTINGS, describe
from sparsefield.evaluate.cases import Cases, Outcome
from sparsefield.evaluate.cost import count_flops
from sparsefield.evaluate.report import (
    cell,
    describe_variant,
    environment_lines,
    expect_psnr,
    in_words,
    paired,
    percent,
    recalibrated,
    sample_table,
    scale_line,
    summarise,
)
from sparsefield.model.field import FieldModel, GaussianModel

MEAN: dict[str, Any] = {"method": "mean"}
HIGHER_IS_BETTER = {  # what the blocks of the report show: title, unit, decimals
    "psnr": ("PSNR", " dB", 2),
    "ssim": ("SSIM", "", 4),
    "ssim_default": ("SSIM (scikit-image's default window)", "", 4),
}
LOWER_IS_BETTER = {
    "mse": ("MSE", "", 6),
    "mae": ("MAE", "", 5),
    "crps": ("CRPS (of all samples, at hidden points)", "", 5),
    "speckle_0.05": ("Speckle, threshold 0.05", "", 5),
    "speckle_0.10": ("Speckle, threshold 0.10", "", 5),
    "speckle_0.20": ("Speckle, threshold 0.20", "", 5),
    "flat_hf": ("flat_hf (grain in flat areas)", "", 5),
}
AT_EQUAL_CALIBRATION = ("psnr", "crps", "speckle_0.10", "flat_hf")  # blocks of that section


# --- numbers -------------------------------------------------------------------------------------


def compare(
    cases: Cases,
    models: dict[str, FieldModel],
    checkpoints: dict[str, dict[str, Any]],
    sampler: dict[str, Any],
    ensemble: int,
    seed: int,
    further: Sequence[dict[str, FieldModel]] = (),
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Evaluate V1, V2 and the baselines.

    Args:
        sampler: `method` and options of the samples. ensemble: samples of each case.
        seed: of the bootstrap. further: pairs of other seeds of training.
    Returns:
        what the report says, and fields of every case of both means and the best baseline.
    """
    total = (1 + ensemble) * 2 * len(cases) * (1 + len(further))
    with tqdm(total=total, unit="picture", file=sys.stderr) as bar:
        for model in models.values():
            cases.warm_up(model)
        outcomes = draw(cases, models, sampler, ensemble, bar)
        others = [summaries_of(draw(cases, pair, sampler, ensemble, bar), cases)
                  for pair in further]
    outcomes["calibrated"] = {}
    gaussian = cases.sample(GaussianModel(), draws=ensemble, **sampler)
    for name, outcome in outcomes["sample"].items():
        fitted = checkpoints[name].get("calibration")
        if fitted and ensemble > 1:
            outcomes["calibrated"][name] = recalibrated(outcome, cases, fitted["spread"])
    summaries = summaries_of(outcomes, cases)
    for kind in ("sample", "calibrated"):
        for name, summary in summaries[kind].items():
            expect_psnr(summary, summaries["mean"][name])
    interpolated = {name: cases.interpolate(name) for name in BASELINES}
    baselines = {name: summarise(outcome, cases.numbers(outcome))
                 for name, outcome in interpolated.items()}
    draws = summarise(gaussian, cases.numbers(gaussian))
    expect_psnr(draws, baselines["kriging, fitted"])
    best = max(baselines, key=lambda name: baselines[name]["mean"]["psnr"])
    fields = {"V1": outcomes["mean"]["V1"].fields, "V2": outcomes["mean"]["V2"].fields,
              best: interpolated[best].fields}
    results = {
        "models": {name: describe_model(checkpoints[name], models[name], cases)
                   for name in models},
        "calibrated_by": {"sampler": sampler, "fitted_with": SETTINGS},
        **summaries,
        "differences": {kind: paired(found["V1"], found["V2"], seed)
                        for kind, found in summaries.items() if len(found) == 2},
        "baselines": baselines,
        "draws": {"kriging, fitted": draws},  # of the closed form alone
    }
    if others:
        results["seeds"] = seeds.over_seeds([summaries, *others])
    return results, fields


def draw(
    cases: Cases, models: dict[str, FieldModel], sampler: dict[str, Any], ensemble: int, bar: tqdm
) -> dict[str, dict[str, Outcome]]:
    """{"mean", "sample": {V1, V2: outcome}} of a pair."""
    outcomes: dict[str, dict[str, Outcome]] = {"mean": {}, "sample": {}}
    for name, model in models.items():
        bar.set_description(f"{name}, mean")
        outcomes["mean"][name] = cases.sample(model, done=bar.update, **MEAN)
        bar.set_description(f"{name}, sample")
        outcomes["sample"][name] = cases.sample(model, draws=ensemble, done=bar.update, **sampler)
    return outcomes


def summaries_of(
    outcomes: dict[str, dict[str, Outcome]], cases: Cases
) -> dict[str, dict[str, dict[str, Any]]]:
    """The same with the numbers of `sparsefield.evaluate.report.summarise`."""
    return {kind: {name: summarise(outcome, cases.numbers(outcome))
                   for name, outcome in found.items()} for kind, found in outcomes.items()}


def describe_model(checkpoint: dict[str, Any], model: FieldModel, cases: Cases) -> dict[str, Any]:
    """What a checkpoint is, and what one evaluation of it costs on the first case."""
    height, width, channels = cases[0].truth.shape
    arguments = checkpoint["model_args"]
    return {
        "model_class": checkpoint["model_class"],
        "model_args": arguments,
        "variant": describe_variant(checkpoint["model_class"], arguments),
        "calibration": checkpoint.get("calibration"),
        "trained_on": checkpoint["data"]["name"],
        "step": checkpoint["step"],
        "epoch": checkpoint["epoch"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_evaluation": count_flops(
            model, (height, width), channels, len(cases[0].observed)
        ),
    }


# --- words ---------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    """comparison_results.txt."""
    samples = results["sample"]
    parts = [
        header(results),
        section("Posterior mean (1 evaluation, at the start)", results, "mean"),
        section(f"Sample ({samples['V2']['how']})", results, "sample"),
        calibrated_section(results),
        *([seeds.section(results["seeds"])] if "seeds" in results else []),
        table("Point estimates", {**results["mean"], **results["baselines"]}),
        sample_table("Samples (not comparable with point estimates: 3 dB lower by theory)", {
            **samples,
            **results["draws"],
            **{f"{name} calibrated": row for name, row in results["calibrated"].items()},
        }),
        cost(results),
    ]
    return "\n\n".join(parts) + "\n"


def header(results: dict[str, Any]) -> str:
    settings, data = results["settings"], results["data"]
    lines = [
        "MAMBA Diffusion: V1 against V2",
        "",
        f"Data:      {data['name']} {data['height']} x {data['width']} x {data['channels']}, "
        f"{settings['pictures']} of {data['sizes'][2]} test pictures",
        scale_line(data),
        f"Observed:  {settings['observe']}; seed {settings['seed']}",
    ]
    for name, model in results["models"].items():
        variant = f"; {model['variant']}" if model["variant"] else ""
        lines.append(f"{name}:        {model['checkpoint']} (step {model['step']}, "
                     f"trained on {model['trained_on']}{variant})")
    lines += environment_lines(results["environment"])
    for setting, (v1, v2) in results["trained_differently"].items():
        lines.append(f"NOTE: trained differently beyond the model: {setting} {v1} (V1), {v2} (V2)")
    lines.append(
        "Numbers are mean ± sd over pictures; V2 − V1 with its paired 95 % bootstrap interval.\n"
        "It takes pictures as independent: where several are crops of one photograph (all of "
        "`photos`), it is too narrow."
    )
    return "\n".join(lines)


def section(
    title: str, results: dict[str, Any], kind: str, shown: tuple[str, ...] | None = None
) -> str:
    """One block for each metric, or for those to be shown."""
    blocks = [f"{title}\n{'=' * len(title)}"]
    differences = results["differences"][kind]
    for name, (label, unit, digits) in {**HIGHER_IS_BETTER, **LOWER_IS_BETTER}.items():
        if name in differences and (shown is None or name in shown):
            blocks.append(block(label, unit, digits, results[kind], name, differences[name]))
    return "\n\n".join(blocks)


def calibrated_section(results: dict[str, Any]) -> str:
    """Samples of equal calibration: what is left of V2 − V1 is not one of spread."""
    title = "Sample, after each model's own calibrated spread"
    lines = [f"{name}: {describe(model['calibration'])}" if model["calibration"] else
             f"{name}: not calibrated (its training has not come to its end)"
             for name, model in results["models"].items()]
    sampler, fitted_with = (results["calibrated_by"][key] for key in ("sampler", "fitted_with"))
    if sampler != fitted_with:
        lines.append(f"NOTE: the spread was fitted to samples by {in_words(fitted_with)}, these "
                     f"are by {in_words(sampler)}")
    about = "\n".join(lines)
    if "calibrated" not in results["differences"]:
        return f"{title}\n{'=' * len(title)}\n\n{about}"
    return section(title, results, "calibrated", AT_EQUAL_CALIBRATION) + f"\n\n{about}"


def block(
    label: str, unit: str, digits: int, found: dict[str, Any], name: str, difference: dict[str, Any]
) -> str:
    v1, change = found["V1"]["mean"][name], difference["mean"]
    if math.isnan(change):
        return f"{label}:\n  undefined for these pictures"
    lines = [f"{label}:"]
    for model in ("V1", "V2"):
        mean, sd = found[model]["mean"][name], found[model]["sd"][name]
        lines.append(f"  {model}: {mean:.{digits}f} ± {sd:.{digits}f}{unit}")
    if name in HIGHER_IS_BETTER:
        lines.append(f"  Improvement: {change:+.{digits}f}{unit} ({percent(change, v1)})")
    else:
        lines.append(f"  Reduction: {percent(-change, v1, sign='')}")
    medians = (f"{model} {found[model]['median'][name]:.{digits}f}" for model in ("V1", "V2"))
    lines += [f"  V2 − V1: {change:+.{digits}f} [{difference['low']:+.{digits}f}, "
              f"{difference['high']:+.{digits}f}]{unit}",
              f"  Medians: {', '.join(medians)}{unit}"]
    if name == "speckle_0.10":
        own = (f"{m} {found[m]['mean']['missed_0.10']:.{digits}f}" for m in ("V1", "V2"))
        lines.append(f"  The truth's own that are missed (as much, for an exact sample): "
                     f"{', '.join(own)}")
    if name == "psnr" and "expected_psnr" in found["V1"]:
        expected = (f"{model} {found[model]['expected_psnr']:.2f}" for model in ("V1", "V2"))
        lines.append(f"  Mean − 3.01 dB: {', '.join(expected)}{unit}")
    return "\n".join(lines)


def table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    columns = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 4), "ssim_default": ("SSIM-def", 4),
               "mse": ("MSE", 5), "mae": ("MAE", 5), "speckle_0.05": ("spk 0.05", 5),
               "speckle_0.10": ("spk 0.10", 5), "speckle_0.20": ("spk 0.20", 5),
               "flat_hf": ("flat_hf", 5)}
    heads = [*(head for head, _ in columns.values()), "med. PSNR", "NFE", "s/image"]
    lines = [title, "=" * len(title), f"{'':16}" + "".join(f"{head:>10}" for head in heads)]
    for name, row in rows.items():
        numbers = "".join(cell(row["mean"][c], digits) for c, (_, digits) in columns.items())
        lines.append(f"{name:16}{numbers}{cell(row['median']['psnr'], 2)}"
                     f"{row['nfe']:10.0f}{row['seconds_per_image']:10.4f}")
    return "\n".join(lines)


def cost(results: dict[str, Any]) -> str:
    lines = ["Cost", "====", f"{'':16}{'parameters':>14}{'GFLOP per evaluation':>24}"
             f"{'GFLOP mean':>14}{'GFLOP sample':>16}"]
    for name, model in results["models"].items():
        each = model["flops_per_evaluation"] / 1e9
        mean, sample = (each * results[kind][name]["nfe"] for kind in ("mean", "sample"))
        lines.append(f"{name:16}{model['parameters']:14,}{each:24.2f}{mean:14.2f}{sample:16.1f}")
    lines.append(
        "FLOP: matrix products, attention, convolutions and scans of one picture, a multiply-add "
        "counting two;\nnot elementwise operations and norms, nor what is computed once a picture "
        "(kriging, neighbours, order).\n"
        f"Seconds: {results['settings']['batch_size']} pictures together, after a warm-up."
    )
    return "\n".join(lines)
