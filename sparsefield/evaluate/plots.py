"""Pictures of trainings and evaluations, as PNG. The only file here that imports matplotlib.

Fields are (H, W, C) in [0, 1]. RGB is drawn in its own colours; of other fields the first channel,
in colours from the lowest to the highest value of their truth; points without a value in grey. Maps
whose first row is the southernmost (`Data.rows_up`) are drawn north up.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sparsefield.data import Data, Scale
from sparsefield.data.scale import to_unit
from sparsefield.evaluate import metrics, tables

if TYPE_CHECKING:
    from sparsefield.evaluate.cases import Case, Cases

MISSING = (0.5, 0.5, 0.5)  # grey: no value there
DPI = 120
LEAST_SPAN = 1e-3  # of the range, between the darkest and the brightest colour
ERROR_LIMIT = 0.3  # of the error maps, the same in every row, so that rows can be compared
SPREAD_LIMIT = 0.2
SHOWN_DRAWS = 4
DASHES = (":", "-.", "--", (0, (1, 4)), (0, (5, 1, 1, 1, 1, 1)))  # of references
CHART_METRICS = {"psnr": "PSNR in dB\n(higher", "ssim": "SSIM\n(higher",
                 "mae": "mean absolute error\n(lower", "speckle_0.10": "speckle (0.10)\n(lower",
                 "flat_hf": "grain in flat areas\n(lower"}
QUALITY = {"psnr": "PSNR in dB (samples above the red line\nare too narrow)",
           "ssim": "SSIM (higher is better,\nat equal spread)",
           "speckle_0.10": "speckle (0.10) (lower is better,\nat equal spread)",
           "crps": "CRPS (lower is better)"}
COSTS = {"nfe": "evaluations of the model", "seconds": "seconds per field"}
STAGES = {"start": "start: error of its mean and sd", "flow": "flow: squared error of the velocity"}


class Row(NamedTuple):
    """A row of a sheet: truth (of `rows` rows, if not as observed) and observations of a case, then
    fields in the colours of that truth, and errors (H, W, 1) on a scale of their own."""

    label: str
    case: Case
    fields: Sequence[np.ndarray]
    errors: Sequence[np.ndarray] = ()
    rows: int = 0


# --- fields ---------------------------------------------------------------------------------------


def show(axis: Axes, field: np.ndarray, rows_up: bool = False, **limits: Any) -> None:
    """Draw a field without ticks, points as they are."""
    colours: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1, **limits}
    if field.shape[2] == 3:
        pixels = np.where(np.isnan(field), MISSING, np.clip(field, 0, 1))
    else:
        pixels = np.ma.masked_invalid(field[..., 0])
    axis.imshow(pixels, interpolation="nearest", origin="lower" if rows_up else "upper", **colours)
    axis.set(facecolor=MISSING, xticks=[], yticks=[])


def limits_of(truth: np.ndarray) -> dict[str, float]:
    """What is drawn darkest and brightest beside a truth: black and white of RGB, else its ends."""
    if truth.shape[2] == 3:
        return {"vmin": 0.0, "vmax": 1.0}
    low, high = float(np.nanmin(truth[..., 0])), float(np.nanmax(truth[..., 0]))
    return {"vmin": low, "vmax": max(high, low + LEAST_SPAN)}


def value_bar(figure: Figure, axes: Any, scale: Scale, limits: dict[str, float]) -> None:
    """Beside `axes`, what the colours of `show` mean in the units of the data."""
    low, high = scale.value_range[0]
    darkest, brightest = (low + limits[end] * (high - low) for end in ("vmin", "vmax"))
    name = "value" if scale.channels == 1 else f"channel 1 of {scale.channels}"
    unit = f" in {scale.unit(0)}" if scale.unit(0) else ""
    figure.colorbar(plt.cm.ScalarMappable(Normalize(darkest, brightest), "viridis"), ax=axes,
                    shrink=0.9, aspect=15, label=name + unit)


def sheet(
    rows: Sequence[Row], titles: Sequence[str], data: Data, title: str = "",
    error_name: str = "absolute error", limit: float = ERROR_LIMIT,
) -> bytes:
    """PNG of rows, `titles` above their fields and errors. Each has a colour bar for its fields,
    unless they are RGB; all errors have one, of shares of the range of the row's colours."""
    titles = ["truth", "observed", *titles]
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(1.85 * len(titles) + 0.9, 1.9 * len(rows) + 0.9),
        squeeze=False, layout="constrained",
    )
    is_rgb = rows[0].case.truth.shape[2] == 3
    for line, row in zip(axes, rows, strict=True):
        truth = row.case.truth
        limits, first_error = limits_of(truth), len(titles) - len(row.errors)
        shown = [row.case.truths.get(row.rows or len(truth)),
                 observed_only(to_unit(row.case.noisy), row.case.observed), *row.fields]
        for axis, field in zip(line[:first_error], shown, strict=True):
            if field is None:
                axis.text(0.5, 0.5, "no truth\nof this size", ha="center", va="center")
                axis.set(xticks=[], yticks=[])
            else:
                show(axis, field, data.rows_up, **limits)
        if not is_rgb:
            value_bar(figure, line[:first_error], data.scale, limits)
        for axis, error in zip(line[first_error:], row.errors, strict=True):
            shares = error / (limits["vmax"] - limits["vmin"])
            show(axis, shares, data.rows_up, cmap="magma", vmax=limit)
        line[0].set_ylabel(row.label, fontsize=9)
    for axis, name in zip(axes[0], titles, strict=True):
        axis.set_title(name, fontsize=10)
    if rows[0].errors:
        figure.colorbar(
            plt.cm.ScalarMappable(Normalize(0, limit), "magma"),
            ax=axes[:, -len(rows[0].errors):], extend="max", shrink=0.6, aspect=30,
            label=f"{error_name}, share of the range{'' if is_rgb else ' of the truth'}",
        )
    figure.suptitle(title, fontsize=11)
    return as_png(figure)


def observed_only(truth: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The truth at the observed points (indices i * W + j), NaN elsewhere."""
    flat = np.full_like(truth, np.nan).reshape(-1, truth.shape[2])
    flat[observed] = truth.reshape(flat.shape)[observed]
    return flat.reshape(truth.shape)


def error_map(field: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W, 1): absolute error, mean over the channels."""
    return np.abs(field - truth).mean(axis=2, keepdims=True)


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    return buffer.getvalue()


def quantile_cases(
    cases: Cases, fields: Sequence[np.ndarray], shares: Sequence[float]
) -> dict[int, float]:
    """{case: share} at quantiles of the error of some fields: shown by rule, not by looks."""
    errors = [metrics.mse(field, case.truth) for field, case in zip(fields, cases, strict=True)]
    order = np.argsort(errors, kind="stable")
    return {int(order[round(share * (len(order) - 1))]): share for share in shares}


# --- training -------------------------------------------------------------------------------------


def reconstructions(cases: Cases, columns: dict[str, Any], path: Path, data: Data) -> None:
    """A row per frozen case: truth, observations, each column, absolute error of the first one."""
    first = next(iter(columns))
    rows = [Row(f"picture {case.index}", case, [column[k] for column in columns.values()],
                [error_map(columns[first][k], case.truth)]) for k, case in enumerate(cases)]
    path.write_bytes(sheet(rows, [*columns, f"|error| of {first}"], data))


def learning_curves(
    records: Sequence[dict[str, Any]], baselines: dict[str, dict[str, float]], path: Path
) -> None:
    """Loss of each stage, in training and validation, and PSNR of the posterior mean beside the
    baselines, against steps, of the records in metrics.jsonl."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    table = pd.DataFrame(records, columns=["step", "stage", "loss", "val_loss", "val_psnr"])
    for colour, (stage, label) in enumerate(STAGES.items()):
        of_stage = table[table["stage"] == stage]
        for name, style, beside in (("loss", ".-", ""), ("val_loss", "x", ", validation")):
            losses = of_stage.dropna(subset=name)
            if len(losses):
                left.plot(losses["step"], losses[name], style, linewidth=1, color=f"C{colour}",
                          label=label + beside)
                left.legend(fontsize=8)
    checks = table.dropna(subset="val_psnr")
    right.plot(checks["step"], checks["val_psnr"], marker=".", label="model, posterior mean")
    for (name, numbers), dashes in zip(baselines.items(), itertools.cycle(DASHES), strict=False):
        right.axhline(numbers["psnr"], color="0.4", linewidth=1, linestyle=dashes, label=name)
    right.legend(fontsize=8)
    left.set(xlabel="optimiser steps", ylabel="loss",
             title="Loss of each stage (in validation it decides what is kept)")
    right.set(xlabel="optimiser steps", ylabel="PSNR in dB", title="Validation pictures")
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    path.write_bytes(as_png(figure))


# --- V1 and V2 ------------------------------------------------------------------------------------


def comparison(cases: Cases, columns: dict[str, Any], data: Data, title: str) -> bytes:
    """Truth, observations, fields of each method and errors of V1 and V2, for the cases at the
    quartiles of the error of V2, with the best and the worst."""
    shares = np.linspace(0, 1, min(5, len(cases))).tolist()
    rows = [Row(f"error of V2\n{share:.0%} quantile", cases[k],
                [fields[k] for fields in columns.values()],
                [error_map(columns[name][k], cases[k].truth) for name in ("V1", "V2")])
            for k, share in quantile_cases(cases, columns["V2"], shares).items()]
    return sheet(rows, [*columns, "|error| V1", "|error| V2"], data, title)


def improvement_chart(results: dict[str, Any], title: str) -> bytes:
    """V2 - V1 for every picture, with the mean and its interval; zero is no difference."""
    count = len(CHART_METRICS)
    figure, axes = plt.subplots(1, count, figsize=(3.1 * count, 4.2), layout="constrained")
    kinds = {"mean": "posterior mean", "sample": "sample"}
    table = results["table"].query("training == 0")
    changes = {kind: tables.difference(table, (kind, "V2"), (kind, "V1")) for kind in kinds}
    for axis, (metric, name) in zip(axes, CHART_METRICS.items(), strict=True):
        for place, kind in enumerate(kinds):
            points = changes[kind][metric].dropna()
            jitter = np.random.default_rng(0).uniform(-0.18, 0.18, len(points))
            axis.scatter(place + jitter, points, s=12, alpha=0.45, linewidths=0)
            mean, low, high = results["differences"][kind][metric].values()
            axis.errorbar(place, mean, [[mean - low], [high - mean]], fmt="D", color="black",
                          capsize=6, linewidth=2)
        axis.axhline(0, color="0.3", linewidth=1)
        axis.set_xticks(range(len(kinds)), kinds.values(), fontsize=9)
        axis.set_xlim(-0.5, len(kinds) - 0.5)
        axis.set_title(f"{name} is better for V2)", fontsize=10)
        axis.tick_params(axis="y", labelsize=9)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("V2 − V1, one point per picture", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return as_png(figure)


# --- samplers and resolutions ---------------------------------------------------------------------


def resolutions(cases: Cases, fields: dict[int, dict[str, Any]], data: Data) -> bytes:
    """A row per resolution of one case: truth of that size, observations, each method; the case
    is that of the median error of the first method at the observed resolution.

    Args:
        fields: {resolution: {method: fields of all cases}}, the observed resolution among them.
    """
    methods = list(fields[cases.rows])
    k = next(iter(quantile_cases(cases, fields[cases.rows][methods[0]], [0.5])))
    rows = [Row(" x ".join(map(str, cases.shape(resolution))), cases[k],
                [made[method][k] for method in methods], rows=resolution)
            for resolution, made in fields.items()]
    titles = ["posterior mean" if method == "mean" else method for method in methods]
    return sheet(rows, titles, data, f"Test picture {cases[k].index}: the median of {len(cases)} "
                 f"by error of {methods[0]}")


def performance(results: dict[str, Any], about: str) -> bytes:
    """Quality of samples against evaluations and against seconds, at the observed resolution.

    One curve per sampler over the steps that were compared, or one point without such a sweep;
    the posterior mean and all baselines are references where they have the number.
    """
    observed = results["data"]["height"]
    table = results["table"].query(f"rows == {observed}")
    numbers = [name for name in QUALITY if name in table and table[name].notna().any()]
    of_methods = table.groupby(["kind", "method", "steps"], sort=False)[
        [*numbers, *COSTS]].mean().reset_index()
    is_reference = of_methods["kind"] == "baseline"
    references = of_methods[is_reference].set_index("method")
    drawn = of_methods[~is_reference & (of_methods["kind"] != "calibrated")]
    drawn = drawn.drop_duplicates(["method", "steps"]).sort_values("nfe")
    samples = results["summary"][str(observed)].get("sample", {})
    figure, axes = plt.subplots(
        len(COSTS), len(numbers), figsize=(3.7 * len(numbers), 7.4), sharey="col", squeeze=False,
        layout="constrained",
    )
    for axis, (cost, name) in zip(axes.flat, itertools.product(COSTS, numbers), strict=True):
        for colour, (method, part) in enumerate(drawn.groupby("method")):
            part = part.dropna(subset=name)
            axis.plot(part[cost], part[name], "*-" if method == "mean" else "o-", alpha=0.8,
                      color=f"C{colour}", label="posterior mean" if method == "mean" else method)
        values = references[name].dropna().items()
        for (reference, value), dashes in zip(values, itertools.cycle(DASHES), strict=False):
            axis.axhline(value, color="0.4", linestyle=dashes, label=reference)
        if name == "psnr" and samples:
            axis.axhline(next(iter(samples.values()))["expected_psnr"], color="tab:red",
                         linewidth=1, label="mean − 3.01 dB")
        axis.set(xscale="log", xlabel=COSTS[cost], title=QUALITY[name])
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)))
    figure.suptitle(f"Samples, posterior mean and interpolations: {about}", fontsize=11)
    return as_png(figure)


def diversity(cases: Cases, method: str, draws: list[np.ndarray], data: Data) -> bytes:
    """Samples of three cases (quartiles of the error of their mean), their mean, sd and error."""
    means = [samples.mean(axis=0) for samples in draws]
    count, rows = min(SHOWN_DRAWS, len(draws[0])), []
    for k, share in quantile_cases(cases, means, (0.25, 0.5, 0.75)).items():
        sd = draws[k].std(axis=0, ddof=1).mean(axis=2, keepdims=True)
        rows.append(Row(f"error: {share:.0%} quantile", cases[k], [*draws[k][:count], means[k]],
                        [sd, error_map(means[k], cases[k].truth)]))
    titles = [*(f"sample {k + 1}" for k in range(count)), f"mean of {len(draws[0])}", "sd",
              "|error of mean|"]
    return sheet(rows, titles, data, f"Samples by {method}, {cases.rows} x {cases.columns}",
                 "sd and absolute error", SPREAD_LIMIT)


def calibration(scores: dict[str, dict[str, Any]], about: str) -> bytes:
    """Rank histogram, and spread against skill, of `metrics.ensemble_scores` of each sampler."""
    figure, (ranks, curve) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for method, score in scores.items():
        count = len(score["ranks"])
        ranks.plot(np.arange(count), np.array(score["ranks"]) * count, ".-", label=method)
        curve.plot(score["bin_spread"], score["bin_skill"], ".-")
    ranks.axhline(1, color="0.3", linestyle="--", label="calibrated")
    ranks.set(xlabel="samples below the truth", ylabel="frequency, 1 if uniform", ylim=(0, None),
              title="Rank histogram")
    curve.axline((0, 0), slope=1, color="0.3", linestyle="--")
    curve.set(xlabel="spread: rms sd of the samples", ylabel="skill: rms error of their mean",
              title="Spread and skill, in ten classes of points", xlim=(0, None), ylim=(0, None))
    ranks.grid(alpha=0.3)
    curve.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(scores) + 1)
    figure.suptitle(f"Uncertainty at the points that were not observed: {about}", fontsize=11)
    return as_png(figure)
