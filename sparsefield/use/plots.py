"""The picture of a reconstruction, in the units of the input."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparsefield.evaluate.plots import DPI, MISSING, plt
from sparsefield.use import globe
from sparsefield.use.points import Measurements
from sparsefield.use.reconstruction import Field

MOST_SHOWN = 0.99  # share of the cells whose sd the colours tell apart


def reconstruction(
    field: Field, given: Measurements, limits: tuple[float, float], unit: str | None,
    path: Path | BinaryIO, lonlat: bool = False,
) -> None:
    """Measurements, posterior mean, sd and two samples, in the units of the input.

    Args:
        lonlat: whether x and y are degrees: drawn as long as they are in the middle.
    """
    x0, x1, y0, y1 = given.extent
    edges = (x0, x1, y1, y0) if given.downward else (x0, x1, y0, y1)
    is_square = given.is_picture or 0.1 <= (y1 - y0) / (x1 - x0) <= 10  # else a sliver
    stretch = 1 / globe.shrinkage(given.extent) if lonlat else 1.0
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
        1, 5, figsize=(15, 2.6 * tall + 0.6), sharex=True, sharey=True, layout="constrained"
    )
    seen = to_unit(given.values) if is_rgb else given.values[:, 0]
    size = max(1.0, min(25.0, 6000 / len(seen)))
    for axis in axes:
        axis.set_facecolor(MISSING)
    axes[0].scatter(*given.coords.T, c=seen, s=size, marker="s" if given.is_picture else "o",
                    linewidths=0, **({} if is_rgb else colours))
    titles = [f"{len(seen):,} measurements", "posterior mean", "sd", "sample 1", "sample 2"]
    fields = [None, field.mean, None, *field.samples[:2]]
    for axis, title, values in zip(axes, titles, fields):
        axis.set_title(title, fontsize=10)
        axis.set_aspect(style["aspect"])
        if values is not None:
            image = axis.imshow(drawn(values), **style, **({} if is_rgb else colours))
    sd = field.sd.mean(axis=2)
    most = np.nanquantile(sd, MOST_SHOWN) or None
    spread = axes[2].imshow(sd, cmap="magma", vmin=0, vmax=most, **style)
    axes[0].set(xlim=edges[:2], ylim=edges[2:])
    if lonlat:
        axes[0].xaxis.set_major_formatter(lambda x, _: degrees((x + 180) % 360 - 180, "EW"))
        axes[0].yaxis.set_major_formatter(lambda y, _: degrees(y, "NS"))
    beside = [(spread, axes[2])] + ([] if is_rgb else [(image, axes[4])])
    for colour, axis in beside:  # as high as what it belongs to
        bar = figure.colorbar(colour, cax=axis.inset_axes([1.04, 0, 0.06, 1]), extend=(
            "max" if colour is spread and most and np.nanmax(sd) > 1.1 * most else "neither"))
        bar.set_label(f"in {unit}" if unit else "")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def degrees(angle: float, sides: str) -> str:
    """Such as 120°W, of sides EW or NS."""
    number = f"{abs(angle):.6g}"
    return f"{number}°{sides[int(angle < 0)] if number not in ('0', '180') else ''}"
