"""What both evaluations share: numbers over pictures, and how they are written down."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from sparsefield.data import Scale
from sparsefield.evaluate import metrics, uncertainty
from sparsefield.evaluate.calibration import widen
from sparsefield.evaluate.cases import Cases, Outcome
from sparsefield.scan import describe_backend

SAMPLE_BELOW_MEAN = 10 * math.log10(2)  # dB: a draw of the posterior has twice the MSE of its mean

SAMPLE_COLUMNS = {  # of `sample_table`: number, title, decimals
    "psnr": ("PSNR", 2),
    "expected_psnr": ("mean-3.01", 2),
    "crps": ("CRPS", 5),
    "coverage_90": ("points", 3),
    "coverage_90_4x4": ("4x4", 3),
    "coverage_90_8x8": ("8x8", 3),
    "coverage_90_luminance": ("lumin.", 3),
    "spread_error": ("spr/err", 2),
    "speckle_0.05": ("spk 0.05", 5),
    "speckle_0.10": ("spk 0.10", 5),
    "speckle_0.20": ("spk 0.20", 5),
    "missed_0.10": ("missed .10", 5),
    "flat_hf": ("flat_hf", 5),
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


def summarise(outcome: Outcome, numbers: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Per-image numbers of a method with mean, median and standard deviation over the images.

    Args:
        numbers: see `Cases.numbers`.
    """
    per_image = {name: [one[name] for one in numbers] for name in numbers[0]}
    summary = {
        "how": outcome.how,
        "nfe": outcome.nfe,
        "seconds_per_image": outcome.seconds,
        "members": len(outcome.draws[0]),
        "mean": {name: metrics.average(values) for name, values in per_image.items()},
        "median": {name: metrics.median(values) for name, values in per_image.items()},
        "sd": {name: metrics.deviation(values) for name, values in per_image.items()},
        "per_image": per_image,
    }
    if "variance" in per_image:
        summary["spread_error"] = uncertainty.spread_error_ratio(
            per_image["variance"], per_image["squared_error"]
        )
    return summary


def expect_psnr(sample: dict[str, Any], mean: dict[str, Any]) -> None:
    """Note in a summary of samples where its PSNR should be, given that of the posterior mean."""
    if "psnr" in mean["mean"]:
        sample["expected_psnr"] = mean["mean"]["psnr"] - SAMPLE_BELOW_MEAN


def recalibrated(outcome: Outcome, cases: Cases, spread: float) -> Outcome:
    """Samples with their distance from their mean multiplied, limited to the range again."""
    draws = [np.clip(widen(samples, spread), 0, 1) for samples in outcome.draws]
    return outcome.with_draws(draws, f"{outcome.how}, spread times {spread:.2f}")


def paired(one: dict[str, Any], other: dict[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """other - one for each metric of two summaries: per image, mean and 95 % bootstrap interval."""
    result = {}
    for name in one["per_image"]:
        difference = np.subtract(other["per_image"][name], one["per_image"][name])
        mean, low, high = metrics.paired_bootstrap(difference, seed=seed)
        result[name] = {"per_image": difference.tolist(), "mean": mean, "low": low, "high": high}
    return result


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that the numbers of time depend on."""
    names = ("torch", "numpy", "scipy", "scikit-image")
    is_cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "threads": torch.get_num_threads(),
        "scan": describe_backend(device),
    }


def plain(item: object) -> object:
    """For JSON: what is not a number becomes null."""
    if isinstance(item, dict):
        return {str(key): plain(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [plain(value) for value in item]
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


# --- words ---------------------------------------------------------------------------------------


def environment_lines(env: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    return [f"Versions:  Python {env['python']}, {versions}",
            f"Hardware:  {env['device']}, {env['threads']} threads, {env['platform']}",
            f"           {env['scan']}"]


def scale_line(data: dict[str, Any]) -> str:
    """What 0 and 1 stand for in the units of the data."""
    scale = Scale(data["value_range"], data["units"]).describe()
    return f"Values:    0 to 1 below stand for {scale}"


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


def sample_table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """Everything about samples, a row for each summary of them; single draws lack half of it."""
    members = next(iter(rows.values()))["members"]
    heads = "".join(f"{head:>11}" for head, _ in SAMPLE_COLUMNS.values())
    lines = [title, "=" * len(title), f"{'':16}{heads}{'NFE':>6}{'s/sample':>10}"]
    for name, row in rows.items():
        numbers = {**row["mean"], **{key: row[key] for key in ("spread_error", "expected_psnr")
                                     if key in row}}
        cells = "".join(cell(numbers.get(column, math.nan), digits, width=11)
                        for column, (_, digits) in SAMPLE_COLUMNS.items())
        lines.append(f"{name:16}{cells}{row['nfe']:6.0f}{row['seconds_per_image']:10.4f}")
    if members > 1:
        highest = min(uncertainty.LEVEL, uncertainty.largest_coverage(members))
        ideal = "".join(f"{highest:11.3f}" for column in SAMPLE_COLUMNS
                        if column.startswith("coverage"))
        lines.append(f"{'calibrated':16}{'':33}{ideal}{1:11.2f}")
    lines.append(NOTE_ON_PSNR)
    if members > 1:
        interval = uncertainty.interval_name(uncertainty.LEVEL, members)
        lines.append(NOTE_ON_SAMPLES.format(interval=interval))
    return "\n".join(lines)


def cell(value: float, digits: int, width: int = 10) -> str:
    """A number, or a dash for what is not defined."""
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.{digits}f}"
