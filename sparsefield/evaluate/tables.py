"""What both evaluations share: settings, one table behind their reports, JSON files and charts, and
the folder that they are written into.

The table (pandas) has a row for each picture that a method made, and these columns:

    kind      "mean" (posterior mean), "sample", "calibrated" (samples with the spread of their
              model's calibration), "baseline", or "sweep" (samples, by steps)
    method    "V1", "V2", a sampler, "mean", or a baseline
    training  0; 1, 2, ... for the further checkpoints of --v1_seeds and --v2_seeds
    rows      of the field asked for, its resolution
    steps     of the sampler; 0 for what takes none
    picture   index in the test part
    how, nfe, seconds, members    the method in words; evaluations and seconds of a field or sample;
              samples of each picture
    psnr ...  a column for each number of `Cases.numbers`; NaN where it is not defined

A *summary* is {how, nfe, seconds, members, mean, median, sd, ...} of one method, where mean, median
and sd are {metric: number} over pictures.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sparsefield.data import Data, Pattern, Scale, parse_pattern
from sparsefield.errors import UserError, require_seed
from sparsefield.evaluate import metrics
from sparsefield.evaluate.calibration import METHOD, describe
from sparsefield.evaluate.cases import Cases, Outcome, open_test_data
from sparsefield.scan import describe_backend

Summary = dict[str, Any]

SAMPLE_BELOW_MEAN = 10 * math.log10(2)  # dB: a draw of the posterior has twice the MSE of its mean
ABOUT = ["how", "nfe", "seconds", "members"]
KEYS = ["kind", "method", "training", "rows", "steps", "picture"]
ENOUGH_PICTURES = 64  # for choosing a sampler

BLOCKS = {  # what the blocks of the comparison show: title, unit, decimals, is more better
    "psnr": ("PSNR", " dB", 2, True), "ssim": ("SSIM", "", 4, True),
    "mse": ("MSE", "", 6, False), "mae": ("MAE", "", 5, False),
    "crps": ("CRPS (of all samples, at hidden points)", "", 5, False),
    "speckle_0.10": ("Speckle, threshold 0.10", "", 5, False),
    "flat_hf": ("flat_hf (grain in flat areas)", "", 5, False),
}
KINDS = {"mean": "posterior mean", "sample": "sample", "calibrated": "calibrated sample"}
HOPES = {"psnr": "+3 to +5 dB", "ssim": "+0.05 to +0.07", "speckle_0.10": "70 to 80 %",
         "seconds": "at most +14 %"}  # of V2
COLUMNS = {  # of all text tables, in their order: title, decimals
    "psnr": ("PSNR", 2), "psnr_sd": ("sd", 2), "psnr_median": ("median", 2),
    "expected_psnr": ("mean-3.01", 2), "ssim": ("SSIM", 4), "mse": ("MSE", 5), "mae": ("MAE", 5),
    "crps": ("CRPS", 5), "coverage_50": ("in 50%", 3), "coverage_90": ("in 90%", 3),
    "coverage_90_4x4": ("4x4", 3), "coverage_90_8x8": ("8x8", 3),
    "coverage_90_luminance": ("lumin.", 3), "spread_error": ("spr/err", 2),
    "speckle_0.05": ("spk 0.05", 5), "speckle_0.10": ("spk 0.10", 5),
    "speckle_0.20": ("spk 0.20", 5), "missed_0.10": ("missed .10", 5), "flat_hf": ("flat_hf", 5),
    "psnr_base": ("base", 2), "nfe": ("NFE", 0), "seconds": ("s/field", 4),
}
NOTE_ON_PSNR = (
    "mean-3.01: PSNR of the posterior mean less 3.01 dB, where draws of an exact posterior lie. A "
    "PSNR above\nit is under-dispersion, not quality."
)
NOTE_ON_SAMPLES = (
    "in 50%, in 90%: share of the truth in the intervals of {intervals}, for\nhidden points; 4x4, "
    "8x8, lumin.: in 90%, for means of blocks and the mean over channels. spr/err: rms spread,\n"
    "corrected for the number of samples, over rms error of their mean (1 if calibrated). PSNR, "
    "SSIM, MSE, MAE,\nspk, missed, flat_hf: of the first sample. missed .10: values that stand out "
    "in the truth and not in the\nsample; an exact sample has as much spk 0.10: more is grain, "
    "less is smoothing."
)

# --- settings and files --------------------------------------------------------------------------


@dataclass
class EvaluationConfig:
    """Settings that both evaluations have."""

    data: str | None = None
    """What to test on, when it is not the test part of what was trained on."""
    data_test: str | None = None
    """An .npz file to test on, all of its pictures."""
    observe: str = "random:0.2"
    """Which points are observed."""
    seed: int = 0
    """Of observations, noise and bootstrap."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    save_dir: str = ""
    """Folder for the report and the pictures: new, empty, or of an earlier evaluation."""
    overwrite: bool = False
    """Write into save_dir also where it holds other files."""

    def pattern(self, *positive: str) -> Pattern:
        """Which points are observed. Raises UserError for this, the seed, or a number below 1."""
        require_seed(self.seed)
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        return parse_pattern(self.observe)

    def open(
        self, checkpoint: dict[str, Any], files: Iterable[str], *paths: str
    ) -> tuple[Data, OutputFolder]:
        """The data to test on, and the folder for `files`; `paths` of checkpoints are read."""
        data = open_test_data(checkpoint, self.data, self.data_test)
        return data, OutputFolder(self.save_dir, "--save_dir", files,
                                  [*paths, self.data, self.data_test], self.overwrite)


class OutputFolder:
    """A folder that is missing, empty, or holds only hidden files and those that a command writes.

    Args:
        flag: how the user chose the folder, for messages. names: of all files that the command can
            write. inputs: files that are never written. overwrite: other files may be there.
        pattern: of the names of further files that it can write, a regular expression.
    Raises:
        UserError: the folder holds something else, or an input, or cannot be made.
    """

    def __init__(
        self, path: str | Path, flag: str, names: Iterable[str],
        inputs: Iterable[str | Path | None] = (), overwrite: bool = False, pattern: str = "",
    ):
        self.path, self.flag, self.names = Path(path), flag, set(names)
        self.pattern = pattern
        read = {Path(given).resolve() for given in inputs if given}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            there = sorted(self.path.iterdir())
        except OSError as error:
            raise self._cannot(error) from None
        for file in there:
            if self._is_ours(file) and file.resolve() in read:
                raise UserError(f"{file} is an input and would be overwritten: choose another "
                                f"folder with {flag}")
            if not (self._is_ours(file) or file.name.startswith(".") or overwrite):
                raise UserError(f"{flag} {path} holds files that this command does not write "
                                f"({file.name}): choose another folder, or add --overwrite")

    def write(self, files: dict[str, bytes]) -> None:
        """Write all files or none, and delete those of an earlier run that are not among them.

        All are on the disk, in a folder of their own, before the first is replaced. UserError if
        the disk is full, or the folder cannot be written.
        """
        try:
            with tempfile.TemporaryDirectory(prefix=".new_", dir=self.path) as new:
                for name, content in files.items():
                    with open(Path(new, name), "wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                for name in files:
                    os.replace(Path(new, name), self.path / name)
            for old in list(self.path.iterdir()):
                if self._is_ours(old) and old.name not in files:
                    old.unlink()
        except OSError as error:
            raise self._cannot(error) from None

    def _is_ours(self, file: Path) -> bool:
        is_named = file.name in self.names or re.fullmatch(self.pattern, file.name)
        return bool(is_named) and file.is_file()

    def _cannot(self, error: OSError) -> UserError:
        return UserError(f"{self.flag} {self.path}: {error.strerror or error}; choose another "
                         "folder")


def as_json(results: dict[str, Any]) -> str:
    """Strict JSON: what is not a number is null, a table a list of records."""
    def plain(item: Any) -> object:
        is_table = isinstance(item, pd.DataFrame)
        return item.drop(columns="how").to_dict("records") if is_table else item.item()

    found = json.loads(json.dumps(results, default=plain), parse_constant=lambda name: None)
    return json.dumps(found, indent=1, allow_nan=False)


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


def summarise(table: pd.DataFrame) -> dict[str, dict[str, Summary]]:
    """{kind: {method: summary}} of rows of one resolution and training; in a sweep the steps are
    part of the name. Of samples also `expected_psnr`, that of their posterior mean less 3.01 dB,
    and `spread_error`, the root of mean variance over mean squared error."""
    result: dict[str, dict[str, Summary]] = {}
    for (kind, method, steps), part in table.groupby(["kind", "method", "steps"], sort=False):
        numbers = part[_metrics(table)].agg(["mean", "median", "std"]).rename({"std": "sd"})
        summary = part[ABOUT].iloc[0].to_dict() | numbers.to_dict("index")
        if summary["members"] > 1 and "variance" in numbers:
            variance, squared_error = numbers.loc["mean", ["variance", "squared_error"]]
            summary["spread_error"] = float(np.sqrt(variance / squared_error))
        name = f"{method}, {steps}" if kind == "sweep" else method
        result.setdefault(kind, {})[name] = summary
    means = result.get("baseline", {}) | result.get("mean", {})
    for kind in ("sample", "calibrated", "sweep"):
        for method, summary in result.get(kind, {}).items():
            of_mean = means.get(method) or means.get("mean")
            if of_mean is not None:
                summary["expected_psnr"] = of_mean["mean"].get("psnr", math.nan) - SAMPLE_BELOW_MEAN
    return result


def difference(
    table: pd.DataFrame, one: tuple[str, str], other: tuple[str, str]
) -> pd.DataFrame:
    """Every number of one (kind, method) less that of another, by picture, of rows of one
    resolution and training."""
    by_method = table.set_index(["kind", "method", "picture"]).sort_index()[_metrics(table)]
    return by_method.loc[one] - by_method.loc[other]


def compare_pairs(
    table: pd.DataFrame, seed: int, other: str = "V1"
) -> dict[str, dict[str, dict[str, float]]]:
    """{kind: {metric: {mean, low, high}}} of V2 - another: mean and paired 95 % bootstrap
    interval."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for kind, own in table[table["method"].isin([other, "V2"])].groupby("kind", sort=False):
        if own["method"].nunique() == 2:
            result[kind] = {
                metric: dict(zip(("mean", "low", "high"),
                                 metrics.paired_bootstrap(changes, seed=seed), strict=True))
                for metric, changes in difference(own, (kind, "V2"), (kind, other)).items()}
    return result


def over_trainings(table: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """{kind: {metric: {V1, V2, V2 - V1: {each, mean, sd}}}}: how numbers vary between trainings."""
    result: dict[str, dict[str, dict[str, Any]]] = {"mean": {}, "sample": {}}
    for kind, of_metrics in result.items():
        own = table[table["kind"].eq(kind) & table["method"].isin(["V1", "V2"])]
        for metric in own.columns.intersection(list(BLOCKS)):
            each = own.groupby(["training", "method"])[metric].mean().unstack()
            each["V2 - V1"] = each["V2"] - each["V1"]
            of_metrics[metric] = {
                name: {"each": column.tolist(), "mean": column.mean(), "sd": column.std()}
                for name, column in each.items()
            }
    return result


def _metrics(table: pd.DataFrame) -> pd.Index:
    return table.columns.difference(KEYS + ABOUT, sort=False)


def about(config: EvaluationConfig, data: Data, cases: Cases) -> dict[str, dict[str, Any]]:
    """Settings, data, and the versions and hardware that seconds depend on."""
    device = cases.device
    environment = {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-image")},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "scan": describe_backend(device),
    }
    return {"settings": asdict(config) | {"pictures": len(cases)}, "environment": environment,
            "data": data.describe() | {"test_indices": [case.index for case in cases]}}


def starts_from_noise(model: dict[str, Any]) -> bool:
    """Whether a checkpoint, or what `describe_model` says of it, has no fitted posterior."""
    return bool(model["model_args"].get("prior") == "none")


def describe_model(checkpoint: dict[str, Any], model: nn.Module, path: str) -> dict[str, Any]:
    """What a checkpoint is, in plain types."""
    return {key: checkpoint[key] for key in ("model_class", "model_args", "step", "epoch")} | {
        "checkpoint": path, "calibration": checkpoint.get("calibration"),
        "trained_on": checkpoint["data"]["name"], "observe": checkpoint["config"].get("observe"),
        "learnt": checkpoint.get("learnt", checkpoint["step"] > 0),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


# --- parts of both reports -----------------------------------------------------------------------


def header(title: str, top: Sequence[str], results: dict[str, Any], models: dict[str, Any],
           notes: Sequence[str]) -> str:
    """What a report begins with: its findings, then models, data, versions and hardware."""
    data, settings, env = (results[key] for key in ("data", "settings", "environment"))
    height, width = data["height"], data["width"]
    untrained = [f"{name} learnt nothing: its weights are no better than before its first step."
                 for name, model in models.items() if not model["learnt"]]
    otherwise = [f"NOTE: {name} was trained with --observe {model['observe']}"
                 for name, model in models.items() if model["observe"] != settings["observe"]]
    lines = [
        title, "", *untrained, *top, "",
        f"Data:      {data['name']} {height} x {width} x {data['channels']}, "
        f"{len(data['test_indices'])} of {data['sizes'][2]} test pictures",
        f"Values:    0 to 1 below stand for {Scale(data['value_range'], data['units']).describe()}",
        f"Observed:  {settings['observe']} of {height} x {width}; seed {settings['seed']}",
    ]
    for name, model in models.items():
        residual = ("; with a residual around its cross-attention"
                    if model["model_args"].get("cross_attention_residual") else "")
        lines.append(f"{name + ': ':11}{model['checkpoint']} ({model['model_class']}, "
                     f"{model['parameters']:,} parameters, step {model['step']}, trained on "
                     f"{model['trained_on']}{residual})")
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    return "\n".join([
        *lines, f"Versions:  Python {env['python']}, {versions}",
        f"Hardware:  {env['device']}, {env['threads']} threads, {env['platform']}; {env['scan']}",
        *otherwise, *notes, NOTE_ON_PSNR,
    ])


def titled(title: str, *parts: str) -> str:
    return "\n".join([title, "=" * len(title), *parts])


def better(name: str, than: str, change: tuple[float, float, float]) -> str:
    """A line for the top of a report, of PSNR differences: mean and 95 % interval."""
    mean, low, high = change
    if math.isnan(low):
        return f"{name} − {than}: {mean:+.2f} dB (one picture: no interval)."
    half = (high - low) / 2
    size = f"{abs(mean):.2f} ± {half:.2f} dB"
    if low <= 0 <= high or abs(mean) <= half:
        return f"{name} and {than} cannot be told apart: they differ by {size} (posterior mean)."
    return f"{name} is {size} {'better' if mean > 0 else 'worse'} than {than} (posterior mean)."


def width_in_words(samples: dict[str, Summary]) -> str:
    """A line for the top of a report: are samples too narrow or too wide?"""
    parts = [f"of {name} {abs(round(100 * (ratio - 1)))} % too {'narrow' if ratio < 1 else 'wide'}"
             for name, summary in samples.items()
             if not math.isnan(ratio := summary.get("spread_error", math.nan))]
    if not parts:
        return "Whether the samples are too narrow: that takes two or more of a picture."
    return f"Samples {', '.join(parts)} (spread over error)."


def lines_of(summaries: dict[str, Summary], **more: dict[str, float]) -> str:
    """Numbers under the titles of COLUMNS, a row for each name, then `more`; a dash for what is not
    defined. A column that no row has is left out."""
    rows = {name: row | row["mean"] | {f"psnr_{number}": row[number].get("psnr")
                                       for number in ("sd", "median")}
            for name, row in summaries.items()}
    frame = pd.DataFrame.from_dict(rows | more, orient="index").reindex(columns=list(COLUMNS))
    frame = frame.dropna(axis="columns", how="all")
    return frame.to_string(header=[COLUMNS[name][0] for name in frame], na_rep="-", formatters={
        name: f"{{:,.{COLUMNS[name][1]}f}}".format for name in frame})


def method_table(title: str, summaries: dict[str, Summary]) -> str:
    """A row for each method, how it was done, and what calibrated samples would have."""
    notes = [f"{name}: {row['how']}" for name, row in summaries.items() if row["how"] != name]
    members = max(row["members"] for row in summaries.values())
    if members < 2:
        return titled(title, lines_of(summaries), *notes)
    highest = metrics.largest_coverage(members)
    calibrated = {name: min(0.5 if name == "coverage_50" else 0.9, highest)
                  for name in COLUMNS if name.startswith("coverage")}
    for name, row in summaries.items():
        own = [share for key, share in row["mean"].items() if "_90_channel" in key]
        if own:
            notes.append(f"{name}: in 90%, by channel: {metrics.by_channel(own, '.3f')}")
    notes.append(NOTE_ON_SAMPLES.format(intervals=" and ".join(
        metrics.interval_name(level, members) for level in (0.5, 0.9))))
    return titled(title, lines_of(summaries, calibrated={"spread_error": 1} | calibrated), *notes)


def samples_table(title: str, kinds: dict[str, dict[str, Summary]]) -> str:
    """The `method_table` of samples as drawn, and with the spread of a calibration."""
    return method_table(title, kinds["sample"] | {
        f"{name} calibrated": row for name, row in kinds.get("calibrated", {}).items()})


# --- the report on V1 and V2 ---------------------------------------------------------------------


def comparison_report(results: dict[str, Any]) -> str:
    """comparison_results.txt, of the results of eval_v1_vs_v2.evaluate."""
    summary = results["summary"]
    return "\n\n".join([
        comparison_header(results),
        blocks("Posterior mean (1 evaluation, at the start)", results, "mean"),
        blocks(f"Sample ({sampled(summary['sample'])})", results, "sample"),
        blocks("Sample, after each model's own calibrated spread", results, "calibrated"),
        *([beside_section(results["beside"])] if results["beside"] else []),
        calibration_lines(results),
        *([seeds_section(results["seeds"])] if "seeds" in results else []),
        method_table("Point estimates", {**summary["mean"], **summary["baseline"]}),
        samples_table("Samples (not comparable with point estimates: 3 dB lower by theory)",
                      summary),
    ]) + "\n"


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


def sampled(samples: dict[str, Summary]) -> str:
    """How V1 and V2 drew their samples."""
    of_v1, of_v2 = (samples[name]["how"] for name in ("V1", "V2"))
    return of_v2 if of_v1 == of_v2 else f"V1: {of_v1}; V2: {of_v2}"


def blocks(title: str, results: dict[str, Any], kind: str) -> str:
    """A block for each metric that is defined for this kind."""
    parts, hoped = [titled(title)], {}
    if starts_from_noise(results["models"]["V1"]):  # V1 as its user knows it
        hoped = {metric: f"; hoped for: {hope}" for metric, hope in HOPES.items()}
    for metric, (label, unit, digits, is_gain) in BLOCKS.items():
        interval = results["differences"].get(kind, {}).get(metric, {"mean": math.nan})
        if math.isnan(interval["mean"]):
            continue
        rows = {name: results["summary"][kind][name] for name in ("V1", "V2")}
        change, low, high = (f"{interval[end]:+.{digits}f}" for end in ("mean", "low", "high"))
        of = rows["V1"]["mean"][metric]
        parts.append("\n  ".join([
            f"{label}:",
            *(f"{name}: {row['mean'][metric]:.{digits}f} ± {row['sd'][metric]:.{digits}f}{unit}"
              for name, row in rows.items()),
            (f"Improvement: {change}{unit} ({percent(interval['mean'], of)})" if is_gain else
             f"Reduction: {percent(-interval['mean'], of, sign='')}") + hoped.get(metric, ""),
            f"V2 − V1: {change} [{low}, {high}]{unit}",
        ]))
    if kind == "sample":
        of_v1, of_v2 = (results["summary"][kind][name]["seconds"] for name in ("V1", "V2"))
        parts.append(f"Seconds of a sample:\n  V1: {of_v1:.3f} s\n  V2: {of_v2:.3f} s "
                     f"({percent(of_v2 - of_v1, of_v1)})" + hoped.get("seconds", ""))
    return "\n\n".join(parts)


def beside_section(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """V2 against the V1 that starts where it does."""
    lines = ["V1 + start has V2's fitted posterior and grid U-Nets: what V2 gains on it is what "
             "its tokens are worth."]
    for kind, of_metrics in found.items():
        parts = []
        for metric in ("psnr", "ssim", "crps", "speckle_0.10"):
            (label, unit, digits, _), change = BLOCKS[metric], of_metrics.get(metric)
            if change and not math.isnan(change["mean"]):
                mean, low, high = (f"{change[end]:+.{digits}f}" for end in ("mean", "low", "high"))
                parts.append(f"{label.split(' (')[0]} {mean} [{low}, {high}]{unit}")
        lines.append(f"V2 − V1 + start, {KINDS[kind]}: {'; '.join(parts)}")
    return titled("Beside them: V1 with V2's start", *lines)


def percent(change: float, of: float, sign: str = "+") -> str:
    """A change in percent of something, "undefined" where that is nothing."""
    if of == 0:
        return "undefined: V1 has 0"
    return f"{round(100 * change / of, 1) + 0.0:{sign}.1f}%"  # + 0.0: no -0.0


def calibration_lines(results: dict[str, Any]) -> str:
    """How each model's spread was fitted."""
    lines = [f"{name}: {describe(model['calibration'])}" if model["calibration"] else
             f"{name}: not calibrated (its training has not come to its end)"
             for name, model in results["models"].items()]
    sampler, steps = results["settings"]["sampler"], results["settings"]["num_steps"]
    if sampler != METHOD or steps is not None:
        lines.append(f"NOTE: the spread was fitted to samples by {METHOD} with each model's own "
                     f"number of steps; these are by {sampler}, {steps or 'as many'} steps")
    return "\n".join(lines)


def seeds_section(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """How V1, V2 and their difference vary from seed to seed."""
    lines = []
    for kind, metric in ((kind, metric) for kind, rows in found.items() for metric in rows):
        label, unit, digits, _ = BLOCKS[metric]
        rows = found[kind][metric]
        each = [f"{value:+.{digits + 1}f}" for value in rows["V2 - V1"]["each"]]
        parts = [f"{name} {row['mean']:.{digits + 1}f} ± {row['sd']:.{digits + 1}f}"
                 for name, row in rows.items()]
        if not math.isnan(rows["V2 - V1"]["mean"]):
            lines.append(f"{kind}, {label}{unit}: {'; '.join(parts)} ({', '.join(each)})")
    return titled(f"Over {len(each)} seeds of training (mean ± sd between seeds; first the pair "
                  "above)", *lines)


# --- the report on samplers and resolutions ------------------------------------------------------


def multiscale_report(results: dict[str, Any]) -> str:
    """metrics_comparison.txt, of the results of eval_sde_multiscale.evaluate."""
    settings, model, data = results["settings"], results["model"], results["data"]
    observed = results["summary"][str(data["height"])]
    advice = recommendation(results["table"], settings["seed"])
    top = [better(model["model_class"], "kriging, fitted", results["gain_over_kriging"]),
           width_in_words(observed.get("sample", {})), advice.splitlines()[0]]
    notes = ["Numbers are means over pictures, sd that of PSNR; base: PSNR of the result averaged "
             "down to the\nobserved resolution. Seconds are for one field, with as many together "
             f"as {settings['points']} points allow."]
    if "calibrated" in observed:
        fitted, steps = model["calibration"], settings["num_steps"]
        notes.append(f"Calibrated: {describe(fitted)}" + (
            "." if fitted.get("num_steps", steps) == steps else
            f", with {fitted['num_steps']} steps; these samples take {steps}."))
    parts = [header("MAMBA Diffusion: samplers and resolutions", top, results, {"Model": model},
                    notes)]
    for rows, kinds in results["summary"].items():
        shape = f"{rows} x {int(rows) // data['height'] * data['width']}"
        has_truth = not math.isnan(kinds["mean"]["mean"]["mean"].get("psnr", math.nan))
        truth = "against the real pictures of that size" if has_truth else (
            "no truth of that size in the data: only averages over cells are scored")
        parts.append(method_table(f"Point estimates, {shape}: {truth}",
                                  kinds["mean"] | kinds["baseline"]))
        if "sample" in kinds:
            parts.append(samples_table(f"Samples, {shape} (3 dB below a posterior mean by theory: "
                                       "never compare the two)", kinds))
        if "sweep" in kinds:
            parts.append(titled(f"Steps of the samplers, {shape}",
                                lines_of(dict(sorted(kinds["sweep"].items())))))
    return "\n\n".join([*parts, advice]) + "\n"


def recommendation(table: pd.DataFrame, seed: int) -> str:
    """Which sampler is best by CRPS, or why that cannot be said."""
    samples = table[table["kind"] == "sample"]
    scored = samples.dropna(subset="crps") if "crps" in samples else samples.iloc[:0]
    if scored["method"].nunique() < 2:
        return "No sampler is recommended: that takes the CRPS of two or more."
    scores = scored.pivot(index="picture", columns="method", values="crps")
    if len(scores) < ENOUGH_PICTURES:
        return (f"No sampler is recommended: {len(scores)} pictures are too few to choose one, at "
                f"least {ENOUGH_PICTURES} are needed (--num_samples).")
    best = str(scores.mean().idxmin())
    lines, tied = [], [best]
    for name in scores.columns.drop(best):
        mean, low, high = metrics.paired_bootstrap(scores[name] - scores[best], seed=seed)
        lines.append(f"  {name} − {best}: {mean:+.5f} [{low:+.5f}, {high:+.5f}]")
        if low <= 0:
            tied.append(str(name))
    cheapest = scored.groupby("method")["seconds"].first()[tied].idxmin()
    verdict = f"Recommended by CRPS on {len(scores)} pictures: {cheapest}"
    if len(tied) > 1:
        verdict += f", the fastest of those not told apart ({', '.join(tied)})"
    return "\n".join([f"{verdict}.", "  differences of CRPS with paired 95 % intervals:", *lines])
