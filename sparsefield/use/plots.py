"""Pictures of a reconstruction, in the units of the input."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sparsefield.evaluate.plots import MISSING, as_png, plt
from sparsefield.use import globe
from sparsefield.use.points import Measurements
from sparsefield.use.predict import Field

MOST_SHOWN = 0.99  # share of the cells whose sd the colours tell apart


def limits_of(given: Measurements) -> tuple[float, float]:
    """What is drawn darkest and brightest: of a picture as in it, else what was measured."""
    if given.value_range is not None:
        return given.value_range
    low, high = float(given.values[:, 0].min()), float(given.values[:, 0].max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def picture(values: np.ndarray, given: Measurements) -> bytes:
    """PNG of a field (H, W, C), x and y growing, cell by cell; y up, but for pictures.

    RGB of pictures in colour, else the first channel: in grey of pictures.
    """
    low, high = limits_of(given)
    values = values if given.downward else values[::-1]
    unit = np.nan_to_num(np.clip((values - low) / (high - low), 0, 1), nan=0.5)
    if values.shape[2] == 3 and given.is_picture:
        pixels = unit
    elif given.is_picture:
        pixels = unit[..., 0]
    else:
        pixels = plt.get_cmap("viridis")(unit[..., 0])[..., :3]
        pixels[np.isnan(values[..., 0])] = MISSING
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def reconstruction(
    field: Field, given: Measurements, unit: str | None, lonlat: bool = False, name: str = ""
) -> bytes:
    """PNG of measurements, posterior mean, sd and two samples, in the units of the input.

    RGB of pictures in colour, whose sd is the mean over the colours; else the first channel.

    Args:
        field: with x and y growing, but of pictures y downward. unit: of the values.
        lonlat: whether x and y are degrees: drawn as long as they are in the middle.
        name: of the first channel.
    """
    x0, x1, y0, y1 = given.extent
    edges = (x0, x1, y1, y0) if given.downward else (x0, x1, y0, y1)
    is_square = given.is_picture or 0.1 <= (y1 - y0) / (x1 - x0) <= 10  # else a sliver
    stretch = 1 / globe.shrinkage(given.extent) if lonlat else 1.0
    style = {"extent": edges, "origin": "upper" if given.downward else "lower",
             "interpolation": "nearest", "aspect": stretch if is_square else "auto"}
    is_rgb = given.is_picture and field.mean.shape[2] == 3
    colours, shown = _colours(given, is_rgb)
    tall = np.clip(stretch * (y1 - y0) / (x1 - x0), 0.3, 3) if is_square else 1
    figure, axes = plt.subplots(
        1, 5, figsize=(15, 2.6 * tall + 0.6), sharex=True, sharey=True, layout="constrained"
    )
    size = max(1.0, min(25.0, 6000 / len(given.coords)))
    which = "" if is_rgb or field.mean.shape[2] == 1 else f" of {name}"
    titles = [f"{len(given.coords):,} measurements{which}", "posterior mean", "sd", "sample 1",
              "sample 2"]
    for axis, title in zip(axes, titles):
        axis.set_facecolor(MISSING)
        axis.set_title(title, fontsize=10)
    axes[0].scatter(*given.coords.T, c=shown(given.values), s=size,
                    marker="s" if given.is_picture else "o", linewidths=0, **colours)
    for axis, values in zip(axes[[1, 3, 4]], [field.mean, *field.samples[:2]]):
        image = axis.imshow(shown(values), **style, **colours)
    sd = field.sd.mean(axis=2) if is_rgb else field.sd[..., 0]
    most = np.nanquantile(sd, MOST_SHOWN) or None
    spread = axes[2].imshow(sd, cmap="magma", vmin=0, vmax=most, **style)
    for axis in axes:
        axis.set_aspect(style["aspect"])
    axes[0].set(xlim=edges[:2], ylim=edges[2:])
    if lonlat:
        axes[0].xaxis.set_major_locator(MaxNLocator(4))
        axes[0].xaxis.set_major_formatter(lambda x, _: degrees((x + 180) % 360 - 180, "EW"))
        axes[0].yaxis.set_major_formatter(lambda y, _: degrees(y, "NS"))
    is_cut = most and np.nanmax(sd) > 1.1 * most
    _colour_bar(spread, axes[2], unit, "max" if is_cut else "neither")
    if not is_rgb:
        _colour_bar(image, axes[4], unit)
    return as_png(figure)


def _colours(
    given: Measurements, is_rgb: bool
) -> tuple[dict[str, object], Callable[[np.ndarray], np.ndarray]]:
    """Arguments for matplotlib, and what turns values (..., C) into what it draws with them."""
    low, high = limits_of(given)
    if is_rgb:
        return {}, lambda values: np.clip((values - low) / (high - low), 0, 1)
    is_grey = given.is_picture and given.value_range
    return ({"vmin": low, "vmax": high, "cmap": "gray" if is_grey else "viridis"},
            lambda values: values[..., 0])


def _colour_bar(image: AxesImage, axis: Axes, unit: str | None, extend: str = "neither") -> None:
    """Beside a panel and as high as it."""
    bar = axis.figure.colorbar(image, cax=axis.inset_axes([1.04, 0, 0.06, 1]), extend=extend)
    bar.set_label(f"in {unit}" if unit else "")


def degrees(angle: float, sides: str) -> str:
    """Such as 120°W, of sides EW or NS."""
    number = f"{abs(angle):.6g}"
    return f"{number}°{sides[int(angle < 0)] if number not in ('0', '180') else ''}"
