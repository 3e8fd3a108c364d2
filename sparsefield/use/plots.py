"""The picture of a reconstruction, in the units of the input."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparsefield.evaluate.plots import DPI, MISSING, plt
from sparsefield.use.points import Measurements
from sparsefield.use.reconstruction import Field


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
