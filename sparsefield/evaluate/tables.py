"""One table behind the reports, JSON files and charts of both evaluations.

The table (pandas) has a row for each picture that a method made, and these columns:

    kind      "mean" (posterior mean), "sample", "calibrated" (samples with the spread of their
              model's calibration), "baseline", "mean of samples", or "sweep" (samples, by steps)
    method    "V1", "V2", a sampler, "mean", or a baseline
    training  0; 1, 2, ... for the further checkpoints of --v1_seeds and --v2_seeds
    rows      of the field asked for, its resolution
    steps     of the sampler; 0 for what takes none
    picture   index in the test part
    how, nfe, seconds, members    the method in words; evaluations and seconds of a field or sample;
              samples of each picture
    psnr ...  a column for each number of `Cases.numbers`; NaN where it is not defined

`summarise` turns rows of one resolution into {kind: {method: {how, nfe, seconds, members, mean,
median, sd, ...}}}, where mean, median and sd are {metric: number} over pictures.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sparsefield.data import Data, Scale
from sparsefield.evaluate import metrics
from sparsefield.evaluate.calibration import SETTINGS, describe, widen
from sparsefield.evaluate.cases import Cases, Outcome
from sparsefield.evaluate.outputs import EvaluationConfig
from sparsefield.scan import describe_backend

SAMPLE_BELOW_MEAN = 10 * math.log10(2)  # dB: a draw of the posterior has twice the MSE of its mean
ABOUT = ["how", "nfe", "seconds", "members"]
KEYS = ["kind", "method", "training", "rows", "steps", "picture"]
ENOUGH_PICTURES = 64  # for choosing a sampler

BLOCKS = {  # what the blocks of the comparison show: title, unit, decimals, is more better
    "psnr": ("PSNR", " dB", 2, True), "ssim": ("SSIM", "", 4, True),
    "ssim_default": ("SSIM (scikit-image's default window)", "", 4, True),
    "mse": ("MSE", "", 6, False), "mae": ("MAE", "", 5, False),
    "crps": ("CRPS (of all samples, at hidden points)", "", 5, False),
    "speckle_0.05": ("Speckle, threshold 0.05", "", 5, False),
    "speckle_0.10": ("Speckle, threshold 0.10", "", 5, False),
    "speckle_0.20": ("Speckle, threshold 0.20", "", 5, False),
    "flat_hf": ("flat_hf (grain in flat areas)", "", 5, False),
}
AT_EQUAL_CALIBRATION = ("psnr", "crps", "speckle_0.10", "flat_hf")
COLUMNS = {  # of all tables, in their order: title, decimals
    "psnr": ("PSNR", 2), "psnr_sd": ("sd", 2), "psnr_median": ("median", 2),
    "expected_psnr": ("mean-3.01", 2), "ssim": ("SSIM", 4), "ssim_default": ("SSIM-def", 4),
    "mse": ("MSE", 5), "mae": ("MAE", 5), "crps": ("CRPS", 5), "coverage_90": ("points", 3),
    "coverage_90_4x4": ("4x4", 3), "coverage_90_8x8": ("8x8", 3),
    "coverage_90_luminance": ("lumin.", 3), "in 50%": ("in 50%", 3), "in 90%": ("in 90%", 3),
    "spread_error": ("spr/err", 2), "spread": ("spread", 4), "skill": ("skill", 4),
    "correlation": ("corr.", 2), "speckle_0.05": ("spk 0.05", 5), "speckle_0.10": ("spk 0.10", 5),
    "speckle_0.20": ("spk 0.20", 5), "missed_0.10": ("missed .10", 5), "flat_hf": ("flat_hf", 5),
    "psnr_base": ("base", 2), "parameters": ("parameters", 0), "gflop": ("GFLOP per NFE", 2),
    "gflop_mean": ("GFLOP mean", 2), "gflop_sample": ("GFLOP sample", 1), "nfe": ("NFE", 0),
    "seconds": ("s/field", 4),
}
OF_SAMPLES_ALONE = ("expected_psnr", "crps", "spread_error", "missed_0.10",
                    *(name for name in COLUMNS if name.startswith("coverage")))
SEED_ROWS = {  # kind and metric: title, decimals
    ("mean", "psnr"): ("posterior mean: PSNR, dB", 3),
    ("mean", "ssim"): ("posterior mean: SSIM", 4),
    ("sample", "psnr"): ("sample: PSNR, dB", 3), ("sample", "crps"): ("CRPS", 5),
    ("sample", "speckle_0.10"): ("speckle, threshold 0.10", 5),
    ("sample", "flat_hf"): ("flat_hf (grain in flat areas)", 5),
}
NOTE_ON_PSNR = (
    "mean-3.01: PSNR of the posterior mean less 3.01 dB, where draws of an exact posterior lie. A "
    "PSNR above\nit is under-dispersion, not quality."
)
NOTE_ON_SAMPLES = (
    "points, 4x4, 8x8, lumin.: share of the truth in the {interval} interval, for\nhidden points, "
    "means of blocks and the mean over channels. spr/err: rms spread, corrected for the number\n"
    "of samples, over rms error of their mean (1 if calibrated). PSNR, SSIM, MSE, MAE, spk, missed,"
    "\nflat_hf: of the first sample. missed .10: values that stand out in the truth and not in the "
    "sample; an\nexact sample has as much spk 0.10: more is grain, less is smoothing."
)

# --- the table -----------------------------------------------------------------------------------


def rows_of(
    cases: Cases, outcome: Outcome, kind: str, method: str, training: int = 0, steps: int = 0
) -> pd.DataFrame:
    """The rows of one method, a picture each."""
    about = pd.DataFrame({
        "kind": kind, "method": method, "training": training, "rows": outcome.rows, "steps": steps,
        "picture": [case.index for case in cases], "how": outcome.how, "nfe": outcome.nfe,
        "seconds": outcome.seconds, "members": len(outcome.draws[0]),
    })
    return about.join(pd.DataFrame(cases.numbers(outcome)))


def metric_columns(table: pd.DataFrame) -> list[str]:
    """The columns that are numbers about pictures."""
    return [name for name in table.columns if name not in (*KEYS, *ABOUT)]


def summarise(table: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """{kind: {method: summary}} of rows of one resolution and training; see the file's docstring.

    Of samples also `expected_psnr`, that of their posterior mean less 3.01 dB, and `spread_error`,
    the root of mean variance over mean squared error.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    numbers = metric_columns(table)
    for (kind, method), part in table.groupby(["kind", "method"], sort=False):
        values = part[numbers]
        summary = part[ABOUT].iloc[0].to_dict() | {
            "mean": values.mean().to_dict(), "median": values.median().to_dict(),
            "sd": values.std().to_dict(),
        }
        if "variance" in values and values["variance"].notna().any():
            summary["spread_error"] = metrics.spread_error_ratio(
                values["variance"], values["squared_error"])
        result.setdefault(str(kind), {})[str(method)] = summary
    for kind in ("sample", "calibrated"):
        for method, summary in result.get(kind, {}).items():
            of_mean = (result.get("mean", {}).get(method) or result.get("baseline", {}).get(method)
                       or result.get("mean", {}).get("mean"))
            if of_mean is not None:
                summary["expected_psnr"] = of_mean["mean"].get("psnr", math.nan) - SAMPLE_BELOW_MEAN
    return result


def differences_of(table: pd.DataFrame, kind: str, metric: str,
                   one: str = "V1", other: str = "V2") -> pd.Series:
    """other - one for each picture, methods of one kind."""
    of_kind = table[(table["kind"] == kind) & (table["training"] == 0)]
    wide = of_kind.pivot(index="picture", columns="method", values=metric)
    return wide[other] - wide[one]


def compare_pairs(table: pd.DataFrame, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """{kind: {metric: {mean, low, high}}} of V2 - V1: mean and paired 95 % bootstrap interval."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("mean", "sample", "calibrated"):
        of_kind = table[(table["kind"] == kind) & (table["training"] == 0)]
        if {"V1", "V2"} <= set(of_kind["method"]):
            result[kind] = {
                name: dict(zip(("mean", "low", "high"), metrics.paired_bootstrap(
                    differences_of(table, kind, name).to_numpy(), seed=seed), strict=True))
                for name in metric_columns(table)
            }
    return result


def over_trainings(table: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """{kind: {metric: {V1, V2, V2 - V1: {each, mean, sd}}}}: how numbers vary between trainings.

    An interval over pictures tells how sure a difference between two given models is; how far a
    model of another seed would lie from it only further trainings can tell.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {"mean": {}, "sample": {}}
    for kind, metric in SEED_ROWS:
        of_kind = table[table["kind"].eq(kind) & table["method"].isin(["V1", "V2"])]
        if metric in of_kind:
            each = of_kind.groupby(["training", "method"])[metric].mean().unstack()
            each["V2 - V1"] = each["V2"] - each["V1"]
            result[kind][metric] = {
                name: {"each": column.tolist(), "mean": column.mean(), "sd": column.std()}
                for name, column in each.items()
            }
    return result


def recalibrated(outcome: Outcome, factor: float) -> Outcome:
    """Samples with their distance from their mean multiplied, limited to the range again."""
    draws = [np.clip(widen(samples, factor), 0, 1) for samples in outcome.draws]
    return outcome.with_draws(draws, f"{outcome.how}, spread times {factor:.2f}")


def about(
    config: EvaluationConfig, device: torch.device, data: Data, cases: Cases
) -> dict[str, dict[str, Any]]:
    """Settings, data, and the versions and hardware that seconds depend on."""
    names = ("torch", "numpy", "scipy", "scikit-image")
    environment = {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "scan": describe_backend(device),
    }
    return {"settings": asdict(config) | {"pictures": len(cases)}, "environment": environment,
            "data": data.describe() | {"test_indices": [case.index for case in cases]}}


def as_json(results: dict[str, Any]) -> str:
    """Strict JSON: what is not a number is null, a table a list of records."""
    return json.dumps(_plain(results), indent=1, allow_nan=False)


def _plain(item: object) -> object:
    if isinstance(item, pd.DataFrame):
        return _plain(item.drop(columns="how").to_dict("records"))
    if isinstance(item, dict):
        return {str(key): _plain(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [_plain(value) for value in item]
    if isinstance(item, np.generic):
        return _plain(item.item())
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


def sweep_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """{method, num_steps, nfe, seconds, spread_error, psnr, ...} of the kind "sweep"."""
    entries = []
    for (method, steps), part in table[table["kind"] == "sweep"].groupby(["method", "steps"]):
        own = summarise(part)["sweep"][str(method)]
        entries.append({"method": method, "num_steps": int(steps), **flat(own)})
    return entries


# --- words of both reports -----------------------------------------------------------------------


def header(title: str, top: Sequence[str], results: dict[str, Any], models: dict[str, Any],
           notes: Sequence[str]) -> str:
    """What a report begins with: its findings, then models, data, versions and hardware."""
    data, settings, env = (results[key] for key in ("data", "settings", "environment"))
    height, width = data["height"], data["width"]
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    lines = [
        title, "", *top, "",
        f"Data:      {data['name']} {height} x {width} x {data['channels']}, "
        f"{len(data['test_indices'])} of {data['sizes'][2]} test pictures",
        f"Values:    0 to 1 below stand for {Scale(data['value_range'], data['units']).describe()}",
        f"Observed:  {settings['observe']} of {height} x {width}; seed {settings['seed']}",
    ]
    for name, model in models.items():
        variant = f"; {model['variant']}" if model["variant"] else ""
        lines.append(f"{name + ':':11}{model['checkpoint']} ({model['model_class']}, "
                     f"{model['parameters']:,} parameters, step {model['step']}, trained on "
                     f"{model['trained_on']}{variant})")
    return "\n".join([
        *lines, f"Versions:  Python {env['python']}, {versions}",
        f"Hardware:  {env['device']}, {env['threads']} threads, {env['platform']}; {env['scan']}",
        *notes,
    ])


def describe_model(checkpoint: dict[str, Any], model: nn.Module, path: str) -> dict[str, Any]:
    """What a checkpoint is, in plain types."""
    about = {key: checkpoint[key] for key in ("model_class", "model_args", "step", "epoch")}
    variant = ""
    if about["model_class"] == "MAMBADiffusion":
        residual = about["model_args"].get("cross_attention_residual", False)
        variant = ("with" if residual else "as described, without") + (
            " a residual around its cross-attention")
    return about | {
        "checkpoint": path, "variant": variant, "calibration": checkpoint.get("calibration"),
        "trained_on": checkpoint["data"]["name"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def in_words(sampler: dict[str, Any]) -> str:
    """A sampler with its number of steps."""
    return f"{sampler['method']}, {sampler['num_steps']} steps"


def percent(change: float, of: float, sign: str = "+") -> str:
    """A change in percent of something, "undefined" where that is nothing."""
    if not of or math.isnan(change):
        return "undefined: V1 has 0" if of == 0 else "undefined"
    return f"{round(100 * change / of, 1) + 0.0:{sign}.1f}%"  # + 0.0: no -0.0


def titled(title: str, *parts: str) -> str:
    return "\n".join([title, "=" * len(title), *parts])


def better(name: str, than: str, change: tuple[float, float, float]) -> str:
    """A line for the top of a report, of PSNR differences: mean and 95 % interval."""
    mean, low, high = change
    if math.isnan(low):
        return f"{name} − {than}: {mean:+.2f} dB (one picture: no interval)."
    size = f"{abs(mean):.2f} ± {(high - low) / 2:.2f} dB"
    if low <= 0 <= high:
        return f"{name} and {than} cannot be told apart: they differ by {size} (posterior mean)."
    return f"{name} is {size} {'better' if mean > 0 else 'worse'} than {than} (posterior mean)."


def width_in_words(samples: dict[str, dict[str, Any]]) -> str:
    """A line for the top of a report: are samples too narrow or too wide?"""
    parts = []
    for name, summary in samples.items():
        ratio = summary.get("spread_error", math.nan)
        if not math.isnan(ratio):
            share = f"{abs(round(100 * (ratio - 1)))} %"
            parts.append(f"of {name} {share} too {'narrow' if ratio < 1 else 'wide'}")
    if not parts:
        return "Whether the samples are too narrow: that takes two or more of a picture."
    return f"Samples {', '.join(parts)} (spread over error)."


def flat(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a summary by the names in COLUMNS."""
    return {**summary["mean"], "psnr_sd": summary["sd"].get("psnr"),
            "psnr_median": summary["median"].get("psnr"),
            **{name: summary[name] for name in ("spread_error", "expected_psnr", "nfe", "seconds")
               if name in summary}}


def lines_of(rows: dict[str, dict[str, Any]], leave_out: Sequence[str] = ()) -> str:
    """Numbers under the titles of COLUMNS, a row for each method; a dash for what is not defined.

    A column that no row has is left out.
    """
    frame = pd.DataFrame.from_dict(rows, orient="index")
    shown = [name for name in COLUMNS if name in frame and name not in leave_out
             and frame[name].notna().any()]
    return pd.DataFrame({
        title: [f"{value:,.{digits}f}" if pd.notna(value) else "-" for value in frame[name]]
        for name, (title, digits) in ((name, COLUMNS[name]) for name in shown)
    }, index=frame.index).to_string()


def point_table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    flat_rows = {name: flat(row) for name, row in rows.items()}
    return titled(title, lines_of(flat_rows, OF_SAMPLES_ALONE))


def sample_table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """Everything about samples, a row for each summary of them."""
    members = next(iter(rows.values()))["members"]
    shown, notes = {name: flat(row) for name, row in rows.items()}, [NOTE_ON_PSNR]
    if members > 1:
        highest = min(metrics.LEVEL, metrics.largest_coverage(members))
        covered = dict.fromkeys((n for n in COLUMNS if n.startswith("coverage")), highest)
        shown["calibrated"] = {**covered, "spread_error": 1}
        notes.append(NOTE_ON_SAMPLES.format(
            interval=metrics.interval_name(metrics.LEVEL, members)))
    return titled(title, lines_of(shown), *notes)


# --- the report on V1 and V2 ---------------------------------------------------------------------


def comparison_report(results: dict[str, Any]) -> str:
    """comparison_results.txt, of the results of eval_v1_vs_v2.evaluate."""
    summary = results["summary"]
    parts = [
        comparison_header(results),
        section("Posterior mean (1 evaluation, at the start)", results, "mean"),
        section(f"Sample ({summary['sample']['V2']['how']})", results, "sample"),
        calibrated_section(results),
        *([seeds_section(results["seeds"])] if "seeds" in results else []),
        point_table("Point estimates", {**summary["mean"], **summary["baseline"]}),
        sample_table("Samples (not comparable with point estimates: 3 dB lower by theory)", {
            **summary["sample"],
            **{f"{name} calibrated": row for name, row in summary.get("calibrated", {}).items()},
        }),
        cost(results),
    ]
    return "\n\n".join(parts) + "\n"


def comparison_header(results: dict[str, Any]) -> str:
    """With V2 against V1, V2 against what needs no training, and the samples on top."""
    summary, change = results["summary"], results["differences"]["mean"]["psnr"]
    known = {name: row["mean"]["psnr"] for name, row in summary["baseline"].items()}
    best = max(known, key=lambda name: known[name])
    gain = summary["mean"]["V2"]["mean"]["psnr"] - known[best]
    top = [
        better("V2", "V1", (change["mean"], change["low"], change["high"])),
        f"Its PSNR is {gain:+.2f} dB from that of the best method without training ({best}).",
        width_in_words({name: summary["sample"][name] for name in ("V1", "V2")}),
    ]
    notes = [f"NOTE: {note}" for note in results["notes"]]
    notes += [f"NOTE: trained differently beyond the model: {setting} {v1} (V1), {v2} (V2)"
              for setting, (v1, v2) in results["trained_differently"].items()]
    notes.append(
        "Numbers are mean ± sd over pictures; V2 − V1 with its paired 95 % bootstrap interval.\n"
        "It takes pictures as independent: where several are crops of one photograph (all of "
        "`photos`), it is too narrow."
    )
    return header("MAMBA Diffusion: V1 against V2", top, results, results["models"], notes)


def section(
    title: str, results: dict[str, Any], kind: str, shown: Iterable[str] = tuple(BLOCKS)
) -> str:
    """One block for each metric that is shown and that this kind has."""
    members = results["summary"][kind]["V1"]["members"]
    found = [name for name in shown if name in results["differences"][kind]
             and (name != "crps" or members > 1)]
    return "\n\n".join([titled(title), *(block(results, kind, name) for name in found)])


def block(results: dict[str, Any], kind: str, name: str) -> str:
    label, unit, digits, is_gain = BLOCKS[name]
    found = {model: results["summary"][kind][model] for model in ("V1", "V2")}
    difference = results["differences"][kind][name]
    change, v1 = difference["mean"], found["V1"]["mean"][name]
    if math.isnan(change):
        return f"{label}:\n  undefined for these pictures"

    def both(number: Callable[[dict[str, Any]], float], places: int = digits) -> str:
        return ", ".join(f"{model} {number(row):.{places}f}" for model, row in found.items())

    lines = [f"{label}:"]
    lines += [f"  {model}: {row['mean'][name]:.{digits}f} ± {row['sd'][name]:.{digits}f}{unit}"
              for model, row in found.items()]
    if is_gain:
        lines.append(f"  Improvement: {change:+.{digits}f}{unit} ({percent(change, v1)})")
    else:
        lines.append(f"  Reduction: {percent(-change, v1, sign='')}")
    lines += [f"  V2 − V1: {change:+.{digits}f} [{difference['low']:+.{digits}f}, "
              f"{difference['high']:+.{digits}f}]{unit}",
              f"  Medians: {both(lambda row: row['median'][name])}{unit}"]
    if name == "speckle_0.10":
        lines.append("  The truth's own that are missed (as much, for an exact sample): "
                     + both(lambda row: row["mean"]["missed_0.10"]))
    if name == "psnr" and "expected_psnr" in found["V1"]:
        lines.append(f"  Mean − 3.01 dB: {both(lambda row: row['expected_psnr'])}{unit}")
    return "\n".join(lines)


def calibrated_section(results: dict[str, Any]) -> str:
    """Samples of equal calibration: what is left of V2 − V1 is not one of spread."""
    title = "Sample, after each model's own calibrated spread"
    lines = [f"{name}: {describe(model['calibration'])}" if model["calibration"] else
             f"{name}: not calibrated (its training has not come to its end)"
             for name, model in results["models"].items()]
    sampler = {"method": results["settings"]["sampler"],
               "num_steps": results["settings"]["num_steps"]}
    if sampler != SETTINGS:
        lines.append(f"NOTE: the spread was fitted to samples by {in_words(SETTINGS)}, these "
                     f"are by {in_words(sampler)}")
    about = "\n".join(lines)
    if "calibrated" not in results["differences"]:
        return titled(title, "", about)
    return section(title, results, "calibrated", AT_EQUAL_CALIBRATION) + f"\n\n{about}"


def seeds_section(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    count = len(found["mean"]["psnr"]["V1"]["each"])
    lines = []
    for (kind, metric), (label, digits) in SEED_ROWS.items():
        rows = found[kind].get(metric)
        if rows is None or math.isnan(rows["V2 - V1"]["mean"]):
            continue
        parts = [f"{name.replace('-', '−')} {row['mean']:{'+' if '-' in name else ''}.{digits}f} ± "
                 f"{row['sd']:.{digits}f}" for name, row in rows.items()]
        each = ", ".join(f"{value:+.{digits}f}" for value in rows["V2 - V1"]["each"])
        lines.append(f"{label}: {'; '.join(parts)} ({each})")
    return titled(f"Over {count} seeds of training (mean ± sd between seeds; first the pair above)",
                  *lines)


def cost(results: dict[str, Any]) -> str:
    rows = {}
    for name, model in results["models"].items():
        each = model["flops_per_evaluation"] / 1e9
        rows[name] = {"parameters": model["parameters"], "gflop": each} | {
            f"gflop_{kind}": each * results["summary"][kind][name]["nfe"]
            for kind in ("mean", "sample")}
    return titled(
        "Cost", lines_of(rows),
        "FLOP: matrix products, attention, convolutions and scans of one picture, a multiply-add "
        "counting two;\nnot elementwise operations and norms, nor what is computed once a picture "
        "(kriging, neighbours, order).\n"
        f"Seconds: {results['settings']['batch_size']} pictures together, after a warm-up.")


# --- the report on samplers and resolutions ------------------------------------------------------


def multiscale_report(results: dict[str, Any]) -> str:
    """metrics_comparison.txt, of the results of eval_sde_multiscale.evaluate."""
    settings, model, data = results["settings"], results["model"], results["data"]
    advice = recommendation(results["table"], settings["seed"])
    top = [better(model["model_class"], "kriging, fitted", results["gain_over_kriging"]),
           width_in_words(results["samples"]), advice.splitlines()[0]]
    parts = [header("MAMBA Diffusion: samplers and resolutions", top, results, {"Model": model}, [
        "Numbers are means over pictures, sd that of PSNR; base: PSNR of the result averaged down "
        "to the\nobserved resolution. Seconds are for one field, with as many together as "
        f"{settings['points']} points allow.",
    ])]
    for resolution in results["resolutions"]:
        parts += resolution_tables(results, resolution)
    samples = dict(results["samples"])
    again = results.get("recalibrated")
    if again:
        samples[f"{again['method']} x {again['factor']:.2f}"] = again["summary"]
    if samples:
        shape = f"{data['height']} x {data['width']}"
        parts.append(sample_table(f"Samples at the observed resolution, {shape}", samples))
    if results["uncertainty"]:
        parts.append(uncertainty_table(results))
    if results["sweep"]:
        parts.append(titled("Steps of the samplers, at the observed resolution", lines_of({
            f"{entry['method']}, {entry['num_steps']}": entry for entry in results["sweep"]})))
    return "\n\n".join([*parts, advice]) + "\n"


def resolution_tables(results: dict[str, Any], resolution: str) -> list[str]:
    factor = int(resolution) // results["data"]["height"]
    shape = " x ".join(str(factor * results["data"][side]) for side in ("height", "width"))
    truth = "against the real pictures of that size" if results["resolutions"][resolution][
        "truth"] else "no truth of that size in the data: only averages over cells are scored"
    summary = results["summary"][resolution]
    points = {**summary["mean"], **summary["baseline"],
              **{f"mean of {results['settings']['ensemble']} {name}": row
                 for name, row in summary.get("mean of samples", {}).items()}}
    kinds = {"Point estimates": points,
             "Samples (3 dB below a posterior mean by theory: never compare the two)":
                 summary.get("sample", {})}
    parts = [titled(f"{shape}: {truth}")]
    for title, rows in kinds.items():
        if rows:
            hows = [f"{name}: {row['how']}" for name, row in rows.items() if row["how"] != name]
            numbers = {name: flat(row) for name, row in rows.items()}
            left_out = [name for name in OF_SAMPLES_ALONE if name not in (
                "expected_psnr", "missed_0.10")]
            parts.append("\n".join([title, lines_of(numbers, left_out), *hows]))
    return parts


def uncertainty_table(results: dict[str, Any]) -> str:
    count, scores = results["settings"]["ensemble"], dict(results["uncertainty"])
    again, notes = results.get("recalibrated"), []
    if again:
        scores[f"{again['method']} x {again['factor']:.2f}"] = again["scores"]
        notes = [f"{again['method']} x ...: {describe(again['fitted'])};",
                 f"fitted to samples by {in_words(SETTINGS)}."]
    rows = {name: {**score, "spread_error": score["spread"] / score["skill"],
                   **{f"in {level}": share for level, share in score["coverage"].items()}}
            for name, score in scores.items()}
    top = next(iter(scores.values()))["attainable"]
    rows["calibrated"] = {**{f"in {level}": share for level, share in top.items()},
                          "spread_error": 1}
    names = ", ".join(metrics.interval_name(level, count) for level in metrics.LEVELS)
    return titled(
        f"Uncertainty: {count} samples per picture, at the points that were not observed",
        lines_of(rows),
        "spread: rms sd of the samples; skill: rms error of their mean; corr.: of the two, over "
        f"points.\nin ...: share of the truth inside the central interval of {names}.", *notes)


def recommendation(table: pd.DataFrame, seed: int) -> str:
    """Which sampler is best by CRPS, or why that cannot be said."""
    samples = table[table["kind"] == "sample"]
    scored = samples.dropna(subset="crps") if "crps" in samples else samples.iloc[:0]
    scores = scored.pivot(index="picture", columns="method", values="crps") if len(scored) else (
        pd.DataFrame())
    if scores.shape[1] < 2:
        return "No sampler is recommended: that takes the CRPS of two or more."
    if len(scores) < ENOUGH_PICTURES:
        return (f"No sampler is recommended: {len(scores)} pictures are too few to choose one, at "
                f"least {ENOUGH_PICTURES} are needed (--num_samples).")
    best = str(scores.mean().idxmin())
    lines, tied = [], [best]
    for name in scores.columns.drop(best):
        mean, low, high = metrics.paired_bootstrap(
            (scores[name] - scores[best]).to_numpy(), seed=seed)
        lines.append(f"  {name} − {best}: {mean:+.5f} [{low:+.5f}, {high:+.5f}]")
        if low <= 0:
            tied.append(str(name))
    cheapest = scored.groupby("method")["seconds"].first()[tied].idxmin()
    verdict = f"Recommended by CRPS on {len(scores)} pictures: {cheapest}"
    if len(tied) > 1:
        verdict += f", the fastest of those not told apart ({', '.join(tied)})"
    return "\n".join([f"{verdict}.", "  differences of CRPS with paired 95 % intervals:", *lines])
