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
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch

from sparsefield.data import Scale
from sparsefield.evaluate import metrics
from sparsefield.evaluate.calibration import SETTINGS, describe, widen
from sparsefield.evaluate.cases import Cases, Outcome
from sparsefield.scan import describe_backend

SAMPLE_BELOW_MEAN = 10 * math.log10(2)  # dB: a draw of the posterior has twice the MSE of its mean
ABOUT = ["how", "nfe", "seconds", "members"]
KEYS = ["kind", "method", "training", "rows", "steps", "picture"]
ENOUGH_PICTURES = 64  # for choosing a sampler

BLOCKS = {  # what the blocks of the comparison show: title, unit, decimals, is more better
    "psnr": ("PSNR", " dB", 2, True),
    "ssim": ("SSIM", "", 4, True),
    "ssim_default": ("SSIM (scikit-image's default window)", "", 4, True),
    "mse": ("MSE", "", 6, False),
    "mae": ("MAE", "", 5, False),
    "crps": ("CRPS (of all samples, at hidden points)", "", 5, False),
    "speckle_0.05": ("Speckle, threshold 0.05", "", 5, False),
    "speckle_0.10": ("Speckle, threshold 0.10", "", 5, False),
    "speckle_0.20": ("Speckle, threshold 0.20", "", 5, False),
    "flat_hf": ("flat_hf (grain in flat areas)", "", 5, False),
}
AT_EQUAL_CALIBRATION = ("psnr", "crps", "speckle_0.10", "flat_hf")
POINT_COLUMNS = {  # number: title, decimals
    "psnr": ("PSNR", 2), "ssim": ("SSIM", 4), "ssim_default": ("SSIM-def", 4), "mse": ("MSE", 5),
    "mae": ("MAE", 5), "speckle_0.05": ("spk 0.05", 5), "speckle_0.10": ("spk 0.10", 5),
    "speckle_0.20": ("spk 0.20", 5), "flat_hf": ("flat_hf", 5),
}
SAMPLE_COLUMNS = {
    "psnr": ("PSNR", 2), "expected_psnr": ("mean-3.01", 2), "crps": ("CRPS", 5),
    "coverage_90": ("points", 3), "coverage_90_4x4": ("4x4", 3), "coverage_90_8x8": ("8x8", 3),
    "coverage_90_luminance": ("lumin.", 3), "spread_error": ("spr/err", 2),
    "speckle_0.05": ("spk 0.05", 5), "speckle_0.10": ("spk 0.10", 5),
    "speckle_0.20": ("spk 0.20", 5), "missed_0.10": ("missed .10", 5), "flat_hf": ("flat_hf", 5),
}
RESOLUTION_COLUMNS = {
    "psnr": ("PSNR", 2), "ssim": ("SSIM", 4), "mae": ("MAE", 4), "speckle_0.10": ("speckle", 4),
    "missed_0.10": ("missed", 4), "flat_hf": ("flat_hf", 4), "psnr_base": ("base", 2),
}
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
    "of samples, over rms error of their mean (1 if calibrated). PSNR, spk, missed, flat_hf: of "
    "the first sample.\nmissed .10: values that stand out in the truth and not in the sample; an "
    "exact sample has as much spk 0.10:\nmore is grain, less is smoothing."
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


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that the numbers of time depend on."""
    names = ("torch", "numpy", "scipy", "scikit-image")
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "scan": describe_backend(device),
    }


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


# --- words of both reports -----------------------------------------------------------------------


def data_lines(results: dict[str, Any]) -> list[str]:
    """Which pictures, and what 0 and 1 stand for in the units of the data."""
    data, settings = results["data"], results["settings"]
    height, width = data["height"], data["width"]
    return [
        f"Data:      {data['name']} {height} x {width} x {data['channels']}, "
        f"{len(data['test_indices'])} of {data['sizes'][2]} test pictures",
        f"Values:    0 to 1 below stand for {Scale(data['value_range'], data['units']).describe()}",
        f"Observed:  {settings['observe']} of {height} x {width}; seed {settings['seed']}",
    ]


def environment_lines(env: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    return [f"Versions:  Python {env['python']}, {versions}",
            f"Hardware:  {env['device']}, {env['threads']} threads, {env['platform']}",
            f"           {env['scan']}"]


def describe_variant(model_class: str, model_args: dict[str, Any]) -> str:
    """Which variant of a model it is, where there is more than one; else nothing."""
    if model_class != "MAMBADiffusion":
        return ""
    with_residual = bool(model_args.get("cross_attention_residual", False))
    return ("with a residual around its cross-attention" if with_residual else
            "as described, without a residual around its cross-attention")


def in_words(sampler: dict[str, Any]) -> str:
    """A sampler with its number of steps."""
    return f"{sampler['method']}, {sampler['num_steps']} steps"


def percent(change: float, of: float, sign: str = "+") -> str:
    """A change in percent of something, "undefined" where that is nothing."""
    if not of or math.isnan(change):
        return "undefined: V1 has 0" if of == 0 else "undefined"
    return f"{round(100 * change / of, 1) + 0.0:{sign}.1f}%"  # + 0.0: no -0.0


def cell(value: float, digits: int, width: int = 10) -> str:
    """A number, or a dash for what is not defined."""
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.{digits}f}"


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


def point_table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    heads = [*(head for head, _ in POINT_COLUMNS.values()), "med. PSNR", "NFE", "s/image"]
    lines = [f"{'':20}" + "".join(f"{head:>10}" for head in heads)]
    for name, row in rows.items():
        numbers = "".join(cell(row["mean"][c], digits) for c, (_, digits) in POINT_COLUMNS.items())
        lines.append(f"{name:20}{numbers}{cell(row['median']['psnr'], 2)}"
                     f"{row['nfe']:10.0f}{row['seconds']:10.4f}")
    return titled(title, *lines)


def sample_table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """Everything about samples, a row for each summary of them; single draws lack half of it."""
    members = next(iter(rows.values()))["members"]
    heads = "".join(f"{head:>11}" for head, _ in SAMPLE_COLUMNS.values())
    lines = [f"{'':16}{heads}{'NFE':>6}{'s/sample':>10}"]
    for name, row in rows.items():
        numbers = {**row["mean"], **row}
        cells = "".join(cell(numbers.get(column, math.nan), digits, width=11)
                        for column, (_, digits) in SAMPLE_COLUMNS.items())
        lines.append(f"{name:16}{cells}{row['nfe']:6.0f}{row['seconds']:10.4f}")
    if members > 1:
        highest = min(metrics.LEVEL, metrics.largest_coverage(members))
        ideal = f"{highest:11.3f}" * sum(name.startswith("coverage") for name in SAMPLE_COLUMNS)
        lines.append(f"{'calibrated':16}{'':33}{ideal}{1:11.2f}")
    lines.append(NOTE_ON_PSNR)
    if members > 1:
        lines.append(NOTE_ON_SAMPLES.format(
            interval=metrics.interval_name(metrics.LEVEL, members)))
    return titled(title, *lines)


# --- the report on V1 and V2 ---------------------------------------------------------------------


def comparison_report(results: dict[str, Any]) -> str:
    """comparison_results.txt, of the results of eval_v1_vs_v2.evaluate."""
    summary = results["summary"]
    models = {name: summary["sample"][name] for name in ("V1", "V2")}
    parts = [
        comparison_header(results),
        section("Posterior mean (1 evaluation, at the start)", results, "mean"),
        section(f"Sample ({models['V2']['how']})", results, "sample"),
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
    lines = ["MAMBA Diffusion: V1 against V2", "", *comparison_lines(results), "",
             *data_lines(results)]
    for name, model in results["models"].items():
        variant = f"; {model['variant']}" if model["variant"] else ""
        lines.append(f"{name}:        {model['checkpoint']} ({model['model_class']}, step "
                     f"{model['step']}, trained on {model['trained_on']}{variant})")
    lines += environment_lines(results["environment"])
    lines += [f"NOTE: {note}" for note in results["notes"]]
    for setting, (v1, v2) in results["trained_differently"].items():
        lines.append(f"NOTE: trained differently beyond the model: {setting} {v1} (V1), {v2} (V2)")
    lines.append(
        "Numbers are mean ± sd over pictures; V2 − V1 with its paired 95 % bootstrap interval.\n"
        "It takes pictures as independent: where several are crops of one photograph (all of "
        "`photos`), it is too narrow."
    )
    return "\n".join(lines)


def comparison_lines(results: dict[str, Any]) -> list[str]:
    """The three lines on top: V2 against V1, against what needs no training, and the samples."""
    summary, change = results["summary"], results["differences"]["mean"]["psnr"]
    best = max(summary["baseline"], key=lambda name: summary["baseline"][name]["mean"]["psnr"])
    gain = summary["mean"]["V2"]["mean"]["psnr"] - summary["baseline"][best]["mean"]["psnr"]
    return [
        better("V2", "V1", (change["mean"], change["low"], change["high"])),
        f"Its PSNR is {gain:+.2f} dB from that of the best method without training ({best}).",
        width_in_words({name: summary["sample"][name] for name in ("V1", "V2")}),
    ]


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
    lines = [f"{'':16}{'parameters':>14}{'GFLOP per evaluation':>24}{'GFLOP mean':>14}"
             f"{'GFLOP sample':>16}"]
    for name, model in results["models"].items():
        each = model["flops_per_evaluation"] / 1e9
        mean, sample = (each * results["summary"][kind][name]["nfe"] for kind in ("mean", "sample"))
        lines.append(f"{name:16}{model['parameters']:14,}{each:24.2f}{mean:14.2f}{sample:16.1f}")
    lines.append(
        "FLOP: matrix products, attention, convolutions and scans of one picture, a multiply-add "
        "counting two;\nnot elementwise operations and norms, nor what is computed once a picture "
        "(kriging, neighbours, order).\n"
        f"Seconds: {results['settings']['batch_size']} pictures together, after a warm-up."
    )
    return titled("Cost", *lines)


# --- the report on samplers and resolutions ------------------------------------------------------


def multiscale_report(results: dict[str, Any]) -> str:
    """metrics_comparison.txt, of the results of eval_sde_multiscale.evaluate."""
    rows = str(results["data"]["height"])
    parts = [multiscale_header(results)]
    for resolution in results["resolutions"]:
        parts += resolution_tables(results, resolution)
    samples = dict(results["samples"])
    again = results.get("recalibrated")
    if again:
        samples[f"{again['method']} x {again['factor']:.2f}"] = again["summary"]
    if samples:
        shape = f"{rows} x {results['data']['width']}"
        parts.append(sample_table(f"Samples at the observed resolution, {shape}", samples))
    if results["uncertainty"]:
        parts.append(uncertainty_table(results))
    if results["sweep"]:
        parts.append(sweep_table(results["sweep"]))
    parts.append(recommendation(results["table"], results["settings"]["seed"]))
    return "\n\n".join(parts) + "\n"


def multiscale_header(results: dict[str, Any]) -> str:
    settings, model = results["settings"], results["model"]
    variant = describe_variant(model["model_class"], model["model_args"])
    advice = recommendation(results["table"], settings["seed"]).splitlines()[0]
    return "\n".join([
        "MAMBA Diffusion: samplers and resolutions",
        "",
        better(model["model_class"], "kriging, fitted", results["gain_over_kriging"]),
        width_in_words(results["samples"]),
        advice,
        "",
        f"Model:     {settings['checkpoint']}, {model['model_class']}, "
        f"{model['parameters']:,} parameters, step {model['step']}"
        + (f"; {variant}" if variant else ""),
        *data_lines(results),
        *environment_lines(results["environment"]),
        "Numbers are mean ± sd over pictures; base: PSNR of the result averaged down to the "
        "observed\nresolution; mean-3.01: where the PSNR of exact samples lies, see below. Seconds "
        f"are for one field,\nwith as many together as {settings['points']} points allow.",
    ])


def resolution_tables(results: dict[str, Any], resolution: str) -> list[str]:
    rows, found = results["data"]["height"], results["resolutions"][resolution]
    shape = " x ".join(str(int(resolution) // rows * results["data"][side])
                       for side in ("height", "width"))
    truth = "against the real pictures of that size" if found["truth"] else (
        "no truth of that size in the data: only averages over cells are scored")
    summary = results["summary"][resolution]
    points = {**summary["mean"], **summary["baseline"],
              **{f"mean of {results['settings']['ensemble']} {name}": row
                 for name, row in summary.get("mean of samples", {}).items()}}
    parts = [f"{shape}: {truth}\n" + "=" * 72, resolution_table("Point estimates", points)]
    if "sample" in summary:
        parts.append(resolution_table(
            "Samples (3 dB below a posterior mean by theory: never compare the two)",
            summary["sample"]))
    return parts


def resolution_table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    first = next(iter(rows.values()))
    columns = [c for c in RESOLUTION_COLUMNS if not math.isnan(first["mean"].get(c, math.nan))]
    expected = not math.isnan(first.get("expected_psnr", math.nan))
    heads = "".join(f"{RESOLUTION_COLUMNS[c][0]:>16}" for c in columns)
    lines = [title, f"  {'':24}{heads}{'mean-3.01' if expected else '':>{11 * expected}}"
             f"{'NFE':>7}{'s/field':>10}"]
    for name, row in rows.items():
        cells = "".join(f"{with_sd(row, c, RESOLUTION_COLUMNS[c][1]):>16}" for c in columns)
        if expected:
            cells += cell(row["expected_psnr"], 2, 11)
        lines.append(f"  {name:24}{cells}{row['nfe']:7.0f}{row['seconds']:10.3f}")
    lines += [f"  {name}: {row['how']}" for name, row in rows.items() if row["how"] != name]
    return "\n".join(lines)


def with_sd(row: dict[str, Any], name: str, digits: int) -> str:
    return f"{cell(row['mean'][name], digits, 0)} ± {cell(row['sd'][name], digits, 0)}"


def uncertainty_table(results: dict[str, Any]) -> str:
    count, scores = results["settings"]["ensemble"], results["uncertainty"]
    top = next(iter(scores.values()))["attainable"]
    levels = "".join(f"{'in ' + level:>10}" for level in top)
    lines = [
        f"Uncertainty: {count} samples per picture, at the points that were not observed",
        "=" * 72,
        f"  {'':12}{'CRPS':>10}{levels}{'spread':>10}{'skill':>10}{'ratio':>8}{'corr.':>8}",
    ]
    again = results.get("recalibrated")
    if again:
        scores = scores | {f"{again['method']} x {again['factor']:.2f}": again["scores"]}
    for method, score in scores.items():
        inside = "".join(f"{share:10.1%}" for share in score["coverage"].values())
        lines.append(
            f"  {method:12}{score['crps']:10.5f}{inside}{score['spread']:10.4f}"
            f"{score['skill']:10.4f}{score['spread'] / score['skill']:8.2f}"
            f"{score['correlation']:8.2f}"
        )
    ideal = "".join(f"{level:10.1%}" for level in top.values())
    lines.append(f"  {'calibrated':12}{'':10}{ideal}{'':20}{1:8.2f}")
    names = ", ".join(metrics.interval_name(level, count) for level in metrics.LEVELS)
    lines.append("  spread: rms sd of the samples; skill: rms error of their mean; corr.: of the "
                 f"two, over points.\n  in ...: share of the truth inside the central interval of "
                 f"{names}.")
    if again:
        lines.append(f"  {again['method']} x ...: {describe(again['fitted'])};\n"
                     f"  fitted to samples by {in_words(SETTINGS)}.")
    return "\n".join(lines)


def sweep_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """{method, num_steps, nfe, seconds, spread_error, psnr, ...} of the kind "sweep"."""
    entries = []
    for (steps, method), part in table[table["kind"] == "sweep"].groupby(
            ["steps", "method"], sort=False):
        own = summarise(part)["sweep"][method]
        entries.append({"method": method, "num_steps": int(steps), "nfe": own["nfe"],
                        "seconds": own["seconds"], "spread_error": own["spread_error"],
                        **own["mean"]})
    return entries


def sweep_table(entries: Sequence[dict[str, Any]]) -> str:
    lines = ["Steps of the samplers, at the observed resolution", "=" * 72,
             f"  {'':12}{'steps':>7}{'NFE':>7}{'PSNR':>9}{'SSIM':>9}{'speckle':>9}{'CRPS':>10}"
             f"{'in 90%':>9}{'spr/err':>9}{'s/field':>10}"]
    for e in sorted(entries, key=lambda e: e["method"]):
        lines.append(
            f"  {e['method']:12}{e['num_steps']:7}{e['nfe']:7.0f}{e['psnr']:9.2f}{e['ssim']:9.4f}"
            f"{e['speckle_0.10']:9.4f}{e['crps']:10.5f}{e['coverage_90']:9.1%}"
            f"{e['spread_error']:9.2f}{e['seconds']:10.3f}"
        )
    return "\n".join(lines)


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
