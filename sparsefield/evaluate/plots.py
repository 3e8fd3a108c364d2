"""Every picture that the project draws. Fields are (H, W, C) in [0, 1] unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from sparsefield.data.scale import Scale  # noqa: E402

if TYPE_CHECKING:
    from sparsefield.evaluate.cases import Cases
    from sparsefield.use.points import Measurements
    from sparsefield.use.reconstruction import Field

MISSING = (0.5, 0.5, 0.5)  # grey: no value there
DPI = 120


def to_rgb(field: np.ndarray) -> np.ndarray:
    """What `imshow` takes: RGB as it is, else the first channel; NaN is drawn in grey."""
    if field.shape[2] == 3:
        return np.where(np.isnan(field), MISSING, np.clip(field, 0, 1))
    return np.ma.masked_invalid(field[..., 0])


def show(axis: plt.Axes, field: np.ndarray, **limits) -> None:
    """Draw a field without ticks, points as they are."""
    limits = {"cmap": "viridis", "vmin": 0, "vmax": 1} | limits
    axis.set_facecolor(MISSING)
    axis.imshow(to_rgb(field), interpolation="nearest", **limits)
    axis.set_xticks([])
    axis.set_yticks([])


def value_bar(figure: plt.Figure, axes, scale: Scale) -> None:
    """Beside `axes`, what the colours of `show` mean in the units of the data; none for RGB."""
    if scale.channels == 3:
        return
    low, high = scale.value_range[0]
    name = "value" if scale.channels == 1 else f"channel 1 of {scale.channels}"
    colours = plt.cm.ScalarMappable(plt.Normalize(low, high), "viridis")
    label = f"{name} in {scale.unit(0)}" if scale.unit(0) else name
    figure.colorbar(colours, ax=axes, shrink=0.6, aspect=30, label=label)


def observed_only(truth: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The truth at the observed points (indices i * W + j), NaN elsewhere."""
    flat = np.full_like(truth, np.nan).reshape(-1, truth.shape[2])
    flat[observed] = truth.reshape(flat.shape)[observed]
    return flat.reshape(truth.shape)


# --- training -------------------------------------------------------------------------------------


def reconstructions(cases: Cases, columns: dict[str, list[np.ndarray]], path: Path) -> None:
    """A row per frozen case: truth, observations, each column, absolute error of the first one."""
    titles = ["truth", "observed", *columns, f"|error| of {next(iter(columns))}"]
    figure, axes = plt.subplots(
        len(cases), len(titles), figsize=(2 * len(titles), 2.05 * len(cases) + 0.4),
        squeeze=False, layout="constrained",
    )
    for row, case in enumerate(cases):
        truth = case.truth
        fields = [column[row] for column in columns.values()]
        show(axes[row, 0], truth)
        show(axes[row, 1], observed_only(truth, case.observed))
        for axis, field in zip(axes[row, 2:], fields):
            show(axis, field)
        error = np.abs(fields[0] - truth).mean(axis=2, keepdims=True)
        show(axes[row, -1], error, cmap="magma", vmax=0.3)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def learning_curves(
    records: Sequence[dict], baselines: dict[str, dict[str, float]], path: Path
) -> None:
    """Training loss, and PSNR of the posterior mean beside the baselines, against steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
    checks = [(r["step"], r["val_psnr"]) for r in records if "val_psnr" in r]
    if losses:
        left.plot(*zip(*losses), color="tab:blue", linewidth=1)
    left.set(xlabel="optimiser steps", ylabel="training loss", title="Squared error of the slope")
    if checks:
        right.plot(*zip(*checks), color="tab:blue", marker=".", label="model, posterior mean")
    for (name, numbers), style in zip(baselines.items(), (":", "-.", "--")):
        right.axhline(numbers["psnr"], color="0.4", linestyle=style, label=name)
    right.set(xlabel="optimiser steps", ylabel="PSNR in dB", title="Validation pictures")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


# --- reconstruction -------------------------------------------------------------------------------


def reconstruction(
    field: Field, given: Measurements, limits: tuple[float, float], unit: str | None,
    path: Path | BinaryIO, stretch: float = 1.0,
) -> None:
    """Measurements, posterior mean, sd and two samples, in the units of the input.

    Args:
        stretch: how long a unit of y is drawn, in units of x; on a globe a degree of latitude is
            longer than one of longitude.
    """
    x0, x1, y0, y1 = given.extent
    edges = (x0, x1, y1, y0) if given.downward else (x0, x1, y0, y1)
    is_square = given.is_picture or 0.1 <= (y1 - y0) / (x1 - x0) <= 10  # else a sliver
    style = {"extent": edges, "origin": "upper" if given.downward else "lower",
             "interpolation": "nearest", "aspect": stretch if is_square else "auto"}
    colours = {"vmin": limits[0], "vmax": limits[1],
               "cmap": "gray" if given.is_picture and given.value_range else "viridis"}
    is_rgb = given.is_picture and field.mean.shape[2] == 3

    def drawn(values: np.ndarray) -> np.ndarray:
        return to_unit(values) if is_rgb else values[..., 0]

    def to_unit(values: np.ndarray) -> np.ndarray:
        return np.clip((values - limits[0]) / (limits[1] - limits[0]), 0, 1)

    tall = np.clip(stretch * (y1 - y0) / (x1 - x0), 0.3, 3) if is_square else 1
    figure, axes = plt.subplots(
        1, 5, figsize=(15, 2.6 * tall + 1), sharex=True, sharey=True, layout="constrained"
    )
    seen = to_unit(given.values) if is_rgb else given.values[:, 0]
    marker = max(1.0, min(25.0, 6000 / len(seen)))
    for axis in axes:
        axis.set_facecolor(MISSING)
    axes[0].scatter(*given.coords.T, c=seen, s=marker, marker="s", linewidths=0,
                    **({} if is_rgb else colours))
    titles = [f"{len(seen):,} measurements", "posterior mean", "sd", "sample 1", "sample 2"]
    fields = [None, field.mean, None, *field.samples[:2]]
    for axis, title, values in zip(axes, titles, fields):
        axis.set_title(title, fontsize=10)
        axis.set_aspect(style["aspect"])
        if values is not None:
            image = axis.imshow(drawn(values), **style, **({} if is_rgb else colours))
    spread = axes[2].imshow(field.sd.mean(axis=2), cmap="magma", vmin=0, **style)
    axes[0].set(xlim=edges[:2], ylim=edges[2:])
    label = f"in {unit}" if unit else ""
    figure.colorbar(spread, ax=axes[2], shrink=0.8, label=label)
    if not is_rgb:
        figure.colorbar(image, ax=axes[4], shrink=0.8, label=label)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
