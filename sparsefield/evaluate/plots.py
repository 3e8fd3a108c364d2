"""Pictures of a training, and what all pictures share.

Fields are (H, W, C) in [0, 1] unless said otherwise.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sparsefield.data.scale import Scale

if TYPE_CHECKING:
    from sparsefield.evaluate.cases import Cases

MISSING = (0.5, 0.5, 0.5)  # grey: no value there
__all__ = ["DPI", "MISSING", "limits_of", "observed_only", "plt", "show", "span", "value_bar",
           "whole"]

DPI = 120
LEAST_SPAN = 1e-3  # of the range, between the darkest and the brightest colour


def to_rgb(field: np.ndarray) -> np.ndarray:
    """What `imshow` takes: RGB as it is, else the first channel; NaN is drawn in grey."""
    if field.shape[2] == 3:
        return np.where(np.isnan(field), MISSING, np.clip(field, 0, 1))
    return np.ma.masked_invalid(field[..., 0])


def show(axis: Axes, field: np.ndarray, **limits: Any) -> None:
    """Draw a field without ticks, points as they are."""
    style: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1, **limits}
    axis.set_facecolor(MISSING)
    axis.imshow(to_rgb(field), interpolation="nearest", **style)
    axis.set_xticks([])
    axis.set_yticks([])


def limits_of(truth: np.ndarray) -> dict[str, float]:
    """What is drawn darkest and brightest beside a truth: black and white of RGB, else its ends."""
    if truth.shape[2] == 3:
        return {"vmin": 0.0, "vmax": 1.0}
    low, high = float(np.nanmin(truth[..., 0])), float(np.nanmax(truth[..., 0]))
    return {"vmin": low, "vmax": max(high, low + LEAST_SPAN)}


def span(limits: dict[str, float]) -> float:
    """Of colours, as a share of the range of the data."""
    return limits["vmax"] - limits["vmin"]


def whole(scale: Scale) -> str:
    """What errors divided by `span` are shares of, in words."""
    return "the range" if scale.channels == 3 else "the range of the truth"


def value_bar(figure: Figure, axes: Any, scale: Scale, limits: dict[str, float]) -> None:
    """Beside `axes`, what the colours of `show` mean in the units of the data; none for RGB."""
    if scale.channels == 3:
        return
    low, high = scale.value_range[0]
    darkest, brightest = (low + limits[end] * (high - low) for end in ("vmin", "vmax"))
    name = "value" if scale.channels == 1 else f"channel 1 of {scale.channels}"
    colours = plt.cm.ScalarMappable(Normalize(darkest, brightest), "viridis")
    label = f"{name} in {scale.unit(0)}" if scale.unit(0) else name
    figure.colorbar(colours, ax=axes, shrink=0.9, aspect=15, label=label)


def observed_only(truth: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The truth at the observed points (indices i * W + j), NaN elsewhere."""
    flat = np.full_like(truth, np.nan).reshape(-1, truth.shape[2])
    flat[observed] = truth.reshape(flat.shape)[observed]
    return flat.reshape(truth.shape)


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    return buffer.getvalue()


# --- training -------------------------------------------------------------------------------------


def reconstructions(cases: Cases, columns: dict[str, list[np.ndarray]], path: Path) -> None:
    """A row per frozen case: truth, observations, each column, absolute error of the first one.

    Fields that are no pictures in the colours of their own truth, errors as shares of its range.
    """
    titles = ["truth", "observed", *columns, f"|error| of {next(iter(columns))}"]
    figure, axes = plt.subplots(
        len(cases), len(titles), figsize=(2 * len(titles), 2.05 * len(cases) + 0.4),
        squeeze=False, layout="constrained",
    )
    for row, case in enumerate(cases):
        truth = case.truth
        fields = [column[row] for column in columns.values()]
        limits = limits_of(truth)
        show(axes[row, 0], truth, **limits)
        show(axes[row, 1], observed_only(truth, case.observed), **limits)
        for axis, field in zip(axes[row, 2:], fields):
            show(axis, field, **limits)
        error = np.abs(fields[0] - truth).mean(axis=2, keepdims=True) / span(limits)
        show(axes[row, -1], error, cmap="magma", vmax=0.3)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def learning_curves(
    records: Sequence[dict[str, Any]],
    baselines: dict[str, dict[str, float]],
    path: Path,
    painted: int = 0,
) -> None:
    """Training loss, and PSNR of the posterior mean beside the baselines, against steps.

    Args:
        painted: the steps up to this one taught the canvas, whose loss is another.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    checks = [(r["step"], r["val_psnr"]) for r in records if "val_psnr" in r]
    parts = {"canvas: its errors, in sd of kriging": [x for x in losses if x[0] <= painted],
             "squared error of the slope": [x for x in losses if x[0] > painted]}
    for (name, part), color in zip(parts.items(), ("tab:orange", "tab:blue"), strict=True):
        if part:
            left.plot(*zip(*part), color=color, marker=".", linewidth=1, label=name)
    left.set(xlabel="optimiser steps", ylabel="training loss", title="What is learnt from")
    if losses:
        left.legend(fontsize=8)
    if checks:
        right.plot(*zip(*checks), color="tab:blue", marker=".", label="model, posterior mean")
    styles = itertools.cycle((":", "-.", "--", "-"))
    for (name, numbers), style in zip(baselines.items(), styles):
        right.axhline(numbers["psnr"], color="0.4", linewidth=1, linestyle=style, label=name)
    right.set(xlabel="optimiser steps", ylabel="PSNR in dB", title="Validation pictures")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
