"""Pictures of the comparison of V1 with V2. Fields are (H, W, C) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

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

ERROR_LIMIT = 0.3  # of the error maps, the same in every row, so that rows can be compared
KINDS = {"mean": ("posterior mean", "tab:blue"), "sample": ("sample", "tab:orange")}
CHART_METRICS = {  # name: title, which sign is better for V2
    "psnr": ("PSNR in dB", "higher"),
    "ssim": ("SSIM", "higher"),
    "mae": ("mean absolute error", "lower"),
    "speckle_0.10": ("speckle (0.10)", "lower"),
    "flat_hf": ("grain in flat areas", "lower"),
}


def quantile_rows(errors: Sequence[float], rows: int = 5) -> list[tuple[float, int]]:
    """(quantile, case) at evenly spaced quantiles of the errors: shown by rule, not by looks."""
    order = np.argsort(errors, kind="stable")
    shown = min(rows, len(order))
    ranks = np.linspace(0, len(order) - 1, shown).round().astype(int)
    return [(rank / max(1, len(order) - 1), int(order[rank])) for rank in ranks]


def comparison(
    cases: Cases,
    columns: dict[str, Sequence[np.ndarray]],
    rows: Sequence[tuple[float, int]],
    title: str,
    scale: Scale,
) -> bytes:
    """A row per case: truth, observations, each method, and the error maps of V1 and V2.

    Args:
        columns: fields of every case by method; "V1" and "V2" among them.
        rows: (quantile, case) of what to show. scale: of the data, for the colour bar.
    """
    errors = [name for name in columns if name.startswith("V")]
    titles = ["truth", "observed", *columns, *(f"|error| {name}" for name in errors)]
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(1.75 * len(titles) + 0.9, 1.85 * len(rows) + 0.9),
        squeeze=False, layout="constrained",
    )
    for line, (quantile, case) in zip(axes, rows):
        truth = cases[case].truth
        limits = limits_of(truth)
        show(line[0], truth, **limits)
        show(line[1], observed_only(truth, cases[case].observed), **limits)
        for axis, fields in zip(line[2:], columns.values()):
            show(axis, fields[case], **limits)
        value_bar(figure, line[: -len(errors)], scale, limits)
        for axis, name in zip(line[2 + len(columns):], errors):
            error = np.abs(columns[name][case] - truth).mean(axis=2, keepdims=True)
            show(axis, error / span(limits), cmap="magma", vmax=ERROR_LIMIT)
        line[0].set_ylabel(f"error of V2\n{quantile:.0%} quantile", fontsize=9)
    for axis, name in zip(axes[0], titles):
        axis.set_title(name, fontsize=10)
    colours = plt.cm.ScalarMappable(Normalize(0, ERROR_LIMIT), "magma")
    figure.colorbar(
        colours, ax=axes[:, -len(errors):], extend="max", shrink=0.6, aspect=30,
        label=f"absolute error, share of {whole(scale)}",
    )
    figure.suptitle(title, fontsize=11)
    return as_png(figure)


def improvement_chart(
    differences: dict[str, dict[str, dict[str, Any]]], title: str
) -> bytes:
    """V2 - V1 for every picture, with the mean and its interval; zero is no difference.

    Args:
        differences: {"mean" | "sample": {metric: {per_image, mean, low, high}}}; None where a
            number is not defined.
    """
    figure, axes = plt.subplots(
        1, len(CHART_METRICS), figsize=(3.1 * len(CHART_METRICS), 4.2), layout="constrained"
    )
    for axis, (metric, (name, better)) in zip(axes, CHART_METRICS.items()):
        for place, (kind, (_, colour)) in enumerate(KINDS.items()):
            _difference(axis, place, differences[kind][metric], colour)
        axis.axhline(0, color="0.3", linewidth=1)
        axis.set_xticks(range(len(KINDS)), [label for label, _ in KINDS.values()], fontsize=9)
        axis.set_xlim(-0.5, len(KINDS) - 0.5)
        axis.set_title(f"{name}\n({better} is better for V2)", fontsize=10)
        axis.tick_params(axis="y", labelsize=9)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("V2 − V1, one point per picture", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return as_png(figure)


def _difference(axis: Axes, place: float, difference: dict[str, Any], colour: str) -> None:
    points = np.array([x for x in difference["per_image"] if x is not None])
    if points.size == 0:
        return
    spread = np.linspace(-0.18, 0.18, len(points)) if len(points) > 1 else np.zeros(1)
    jitter = np.random.default_rng(0).permutation(spread)
    axis.scatter(place + jitter, points, s=12, color=colour, alpha=0.45, linewidths=0)
    mean = difference["mean"]
    if difference["low"] is not None:
        reach = [[mean - difference["low"]], [difference["high"] - mean]]
        axis.errorbar(place, mean, reach, color="black", capsize=6, linewidth=2, zorder=3)
    axis.plot(place, mean, "D", color=colour, markeredgecolor="black", markersize=7, zorder=4)
