"""Pictures of the multi-scale evaluation. Fields are (H, W, C) in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.ticker import LogLocator, NullFormatter

from sparsefield.data import Scale
from sparsefield.evaluate.cases import Cases
from sparsefield.evaluate.plots import (
    as_png,
    limits_of,
    observed_only,
    plt,
    show,
    span,
    value_bar,
    whole,
)

ERROR_LIMIT = 0.3
SPREAD_LIMIT = 0.2
SHOWN_DRAWS = 4
COLOURS = {"heun": "tab:blue", "euler": "tab:cyan", "sde": "tab:red", "ddim": "tab:green",
           "adaptive": "tab:purple", "mean": "black"}
MARKERS = {"heun": "o", "euler": "v", "sde": "s", "ddim": "^", "adaptive": "D", "mean": "*"}
QUALITY = {"psnr": "PSNR in dB (samples above the red line\nare too narrow)",
           "ssim": "SSIM (higher is better,\nat equal spread)",
           "speckle_0.10": "speckle (0.10) (lower is better,\nat equal spread)",
           "crps": "CRPS (lower is better)"}


def resolutions(
    cases: Cases, fields: dict[int, dict[str, list[np.ndarray]]], scale: Scale
) -> bytes:
    """A row per resolution of one case: observations, truth of that size, each method.

    The case is that of the median error of the first method: shown by rule, not by looks.

    Args:
        fields: {resolution: {method: fields of all cases}}.
        scale: of the data, for the colour bar.
    """
    methods = list(next(iter(fields.values())))
    case = _median_case(cases, fields)
    limits = limits_of(cases[case].truth)
    titles = ["observed", "truth", *methods]
    figure, axes = plt.subplots(
        len(fields), len(titles), figsize=(2.1 * len(titles) + 0.5, 2.1 * len(fields) + 0.8),
        squeeze=False, layout="constrained",
    )
    for line, (resolution, found) in zip(axes, fields.items()):
        show(line[0], observed_only(cases[case].truth, cases[case].observed), **limits)
        if resolution in cases[case].truths:
            show(line[1], cases[case].truths[resolution], **limits)
        else:
            line[1].text(0.5, 0.5, "no truth\nof this size", ha="center", va="center")
            line[1].set_axis_off()
        for axis, method in zip(line[2:], methods):
            show(axis, found[method][case], **limits)
        line[0].set_ylabel(" x ".join(map(str, cases.shape(resolution))), fontsize=10)
    for axis, title in zip(axes[0], titles):
        axis.set_title("posterior mean" if title == "mean" else title, fontsize=10)
    value_bar(figure, axes, scale, limits)
    figure.suptitle(
        f"Test picture {cases[case].index}: the median of {len(cases)} by error of {methods[0]}",
        fontsize=11,
    )
    return as_png(figure)


def _median_case(cases: Cases, fields: dict[int, dict[str, list[np.ndarray]]]) -> int:
    resolution, found = next(iter(fields.items()))
    truths = cases.truths(resolution)
    if truths is None:
        return len(cases) // 2
    errors = [np.nanmean((x - g) ** 2) for x, g in zip(next(iter(found.values())), truths)]
    return int(np.argsort(errors, kind="stable")[len(errors) // 2])


def performance(results: dict[str, Any], about: str) -> bytes:
    """Quality of samples against evaluations and against seconds, at the observed resolution.

    One curve per sampler over the steps that were compared, or one point without such a sweep;
    the posterior mean and the interpolations are references where they have the number.
    """
    panels = [name for name in QUALITY if name != "crps" or results["uncertainty"]]
    figure, axes = plt.subplots(
        2, len(panels), figsize=(3.7 * len(panels), 7.4), sharey="col", squeeze=False,
        layout="constrained",
    )
    points = _points(results)
    references = _references(results)
    expected = [row["expected_psnr"] for row in results["samples"].values()]
    for column, name in zip(axes.T, panels):
        for axis, cost in zip(column, ("nfe", "seconds")):
            for method, entries in points.items():
                known = sorted((e[cost], e[name]) for e in entries if e.get(name) is not None)
                if known:
                    axis.plot(*zip(*known), color=COLOURS[method], marker=MARKERS[method],
                              markersize=9 if method == "mean" else 6, alpha=0.8, linewidth=1.5,
                              linestyle="none" if len(known) == 1 else "-",
                              label="posterior mean" if method == "mean" else method)
            for (label, numbers), style in zip(references.items(), (":", "-.", "--")):
                if name in numbers:
                    axis.axhline(numbers[name], color="0.4", linestyle=style, label=label)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
            axis.set_xlabel({"nfe": "evaluations of the model",
                             "seconds": "seconds per field"}[cost])
            if name == "psnr" and expected:
                axis.axhline(expected[0], color="tab:red", linewidth=1, label="mean − 3.01 dB")
        column[0].set_title(QUALITY[name], fontsize=11)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)))
    figure.suptitle(f"Samples, posterior mean and interpolations: {about}", fontsize=11)
    return as_png(figure)


def _points(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """{method: [{nfe, seconds, psnr, ...}]} of the sweep and of the main table."""
    points: dict[str, list[dict[str, Any]]] = {}
    for entry in results["sweep"]:
        points.setdefault(entry["method"], []).append(entry)
    base = results["resolutions"].get(str(results["data"]["height"]), {"methods": {}})
    for method, row in base["methods"].items():
        swept = [entry["num_steps"] for entry in results["sweep"] if entry["method"] == method]
        if row["kind"] == "interpolation" or results["settings"]["num_steps"] in swept:
            continue
        crps = results["uncertainty"].get(method, {}).get("crps")
        entry = {"nfe": row["nfe"], "seconds": row["seconds_per_image"], "crps": crps}
        points.setdefault(method, []).append({**row["mean"], **entry})
    return points


def _references(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    base = results["resolutions"].get(str(results["data"]["height"]), {"methods": {}})
    return {name: row["mean"] for name, row in base["methods"].items()
            if row["kind"] == "interpolation"}


def diversity(
    cases: Cases, method: str, draws: list[np.ndarray], scale: Scale
) -> bytes:
    """Samples of three cases (quartiles of the error of their mean), their mean, sd and error."""
    errors = [np.nanmean((samples.mean(axis=0) - truth) ** 2)
              for samples, truth in zip(draws, cases.truths() or [])]
    order = np.argsort(errors, kind="stable")
    shown = {int(order[round(share * (len(order) - 1))]): share for share in (0.25, 0.5, 0.75)}
    count = min(SHOWN_DRAWS, len(draws[0]))
    titles = ["truth", "observed", *(f"sample {k + 1}" for k in range(count)),
              f"mean of {len(draws[0])}", "sd", "|error of mean|"]
    figure, axes = plt.subplots(
        len(shown), len(titles), figsize=(1.8 * len(titles) + 1.2, 1.85 * len(shown) + 1.2),
        squeeze=False, layout="constrained",
    )
    for line, (case, share) in zip(axes, shown.items()):
        samples, truth = draws[case], cases[case].truth
        average = samples.mean(axis=0)
        spread = samples.std(axis=0, ddof=1).mean(axis=2, keepdims=True)
        error = np.abs(average - truth).mean(axis=2, keepdims=True)
        limits = limits_of(truth)
        show(line[0], truth, **limits)
        show(line[1], observed_only(truth, cases[case].observed), **limits)
        for axis, field in zip(line[2:], [*samples[:count], average]):
            show(axis, field, **limits)
        show(line[-2], spread / span(limits), cmap="magma", vmax=SPREAD_LIMIT)
        show(line[-1], error / span(limits), cmap="magma", vmax=SPREAD_LIMIT)
        value_bar(figure, line[:-2], scale, limits)
        line[0].set_ylabel(f"error: {share:.0%} quantile", fontsize=9)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    colours = plt.cm.ScalarMappable(Normalize(0, SPREAD_LIMIT), "magma")
    figure.colorbar(colours, ax=axes[:, -2:], extend="max", shrink=0.8, aspect=30,
                    label=f"share of {whole(scale)}")
    figure.suptitle(f"Samples by {method}, {cases.rows} x {cases.columns}", fontsize=11)
    return as_png(figure)


def calibration(scores: dict[str, dict[str, Any]], about: str) -> bytes:
    """Rank histogram, coverage of intervals, and spread against skill of each sampler."""
    figure, (ranks, levels, curve) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    top = 0.0
    for place, (method, score) in enumerate(scores.items()):
        style = {"color": COLOURS[method], "marker": MARKERS[method], "label": method}
        count = len(score["ranks"])
        ranks.plot(np.arange(count), np.array(score["ranks"]) * count, markersize=4,
                   linewidth=1.2, alpha=0.8, **style)
        width = 0.8 / len(scores)
        spots = np.arange(len(score["coverage"])) + (place + 0.5) * width - 0.4
        levels.bar(spots, score["coverage"].values(), width, color=COLOURS[method], label=method)
        curve.plot(score["bin_spread"], score["bin_skill"], markersize=5, linewidth=1.2,
                   alpha=0.8, **style)
        top = max(top, *score["bin_spread"], *score["bin_skill"])
    ranks.axhline(1, color="0.3", linestyle="--", label="calibrated")
    ranks.set(xlabel="samples below the truth", ylabel="frequency, 1 if uniform", ylim=(0, None),
              title="Rank histogram")
    attainable = next(iter(scores.values()))["attainable"]
    for place, level in enumerate(attainable.values()):
        levels.hlines(level, place - 0.45, place + 0.45, color="0.3", linestyle="--",
                      label="calibrated" if place == 0 else None)
    levels.set_xticks(range(len(attainable)), [f"{name} interval" for name in attainable])
    levels.set(ylim=(0, 1), ylabel="share of the truth inside", title="Coverage")
    curve.plot([0, top], [0, top], color="0.3", linestyle="--", label="calibrated")
    curve.set(xlabel="spread: rms sd of the samples", ylabel="skill: rms error of their mean",
              title="Spread and skill, in ten classes of points")
    for axis in (ranks, levels, curve):
        axis.grid(alpha=0.3)
    handles, labels = ranks.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"Uncertainty at the points that were not observed: {about}", fontsize=11)
    return as_png(figure)
