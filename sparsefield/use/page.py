"""A reconstructed field as one page to look at: maps, a section, and whether to believe it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from matplotlib.ticker import MaxNLocator

from sparsefield.evaluate import html
from sparsefield.evaluate.metrics import LEVEL, largest_coverage
from sparsefield.use import blocks, globe
from sparsefield.use.export import MOST_SHOWN, aspect_of, extent_of, growing, limits_of
from sparsefield.use.field import Field
from sparsefield.use.grids import Asked
from sparsefield.use.holdout import Score, verdict
from sparsefield.use.points import Measurements

MOST_NUMBERS = 3_500_000  # in all maps and samples: 9 MB of the page, plotly is 5 MB
MOST_SAMPLES, ENOUGH_SAMPLES = 40, 8
MOST_POINTS, ALL_POINTS = 1500, 30_000  # drawn on a map, and on those of all times
MOST_FRAMES = 60  # at which the slider of time stops
EDGES = np.linspace(-4, 4, 17)  # of classes of residuals, in sd


def field_page(
    field: Field, given: Measurements, asked: Asked, *, limits: Sequence[float] = (),
    words: Sequence[tuple[str, str]] = (), source: str = "",
    scores: dict[str, list[Score]] | None = None,
) -> bytes:
    """The page.

    Args:
        limits: of which the probability to be above is shown. words: what was done, as terms and
            texts. source: of the measurements, for the title. scores: of hidden measurements, of
            all channels together ("") or by their names.
    """
    shown = field if given.is_picture else growing(field)
    extent, lonlat = extent_of(given, asked), asked.frame.lonlat
    is_rgb = given.is_picture and len(field.names) == 3
    every = -(-len(shown.mean) // MOST_FRAMES) if field.has_frames else 1
    frames = _frames(shown, given, every)
    step, count = _thinning(len(frames) * len(field.names), frames[0].field.samples.shape,
                            len(limits))
    part = np.s_[::step, ::step]
    level = LEVEL if field.gaussian else min(LEVEL, largest_coverage(len(field.samples)))
    axes = ("x", "y") if given.is_picture else asked.grid.names
    clustered = blocks.clustering(asked.frame, given.coords) is not None
    tops = [float(np.nanquantile(sd, MOST_SHOWN)) or 1.0 for sd in np.moveaxis(field.sd, -1, 0)]
    about = "colours" if is_rgb else ", ".join(field.names)
    return html.page(f"{about} from {source}", "sparsefield.use", "field.html", {
        "summary": _summary(field, given, limits),
        "thinned": _thinned(step, count, len(field.samples), every,
                            sum(len(frame.points) for frame in frames), len(given.coords)),
        "x": shown.coords[0, ::step, 0], "y": shown.coords[::step, 0, 1], "extent": extent,
        "axes": axes, "units": field.units or "", "lonlat": lonlat, "is_picture": given.is_picture,
        "aspect": aspect_of(asked, extent), "ticks": _ticks(extent) if lonlat else {},
        "rgb": (given.value_range or (0.0, 255.0)) if is_rgb else None,
        "unit_of_length": asked.frame.unit_of_length, "level": level,
        "limits": limits, "words": words,
        "coast": dict(zip("xy", globe.coasts(extent) if lonlat else ([], []), strict=True)),
        "holdout": scores and _tables(scores, field.units),
        "frames": [{"label": frame.label, "points": _points(field, given, frame.points),
                    "channels": [_channel(frame.field, given, c, limits, part, count, level,
                                          clustered, tops[c]) for c in range(len(field.names))]}
                   for frame in frames],
    })


class _Frame(NamedTuple):
    """The field at one time, or without time, and which measurements are shown with it."""

    label: str
    field: Field
    points: np.ndarray


def _frames(field: Field, given: Measurements, every: int) -> list[_Frame]:
    if not field.has_frames:
        count = len(given.coords)
        return [_Frame("", field, _some(np.arange(count), MOST_POINTS))]
    assert field.times is not None and given.times is not None
    which, shown = field.times.nearest(given.times.values), range(0, len(field.mean), every)
    most = min(MOST_POINTS, ALL_POINTS // len(shown))
    return [_Frame(field.times.labels()[k], field.frame(k), _some(np.flatnonzero(which == k), most))
            for k in shown]


def _some(points: np.ndarray, most: int) -> np.ndarray:
    """At most so many of points (M,), evenly."""
    return points[np.linspace(0, len(points) - 1, min(len(points), most)).astype(int)]


def _points(field: Field, given: Measurements, some: np.ndarray) -> dict[str, Any]:
    residuals = field.checks and field.checks.residuals
    return {"x": given.coords[some, 0], "y": given.coords[some, 1], "values": given.values[some].T,
            "residuals": None if residuals is None else residuals[some].T}


def _channel(
    field: Field, given: Measurements, c: int, limits: Sequence[float],
    part: tuple[slice, slice], count: int, level: float, clustered: bool, top: float,
) -> dict[str, Any]:
    """What the page shows of one channel; top: the sd that is brightest."""
    mean, sd = field.mean[part][..., c], field.sd[part][..., c]
    unit = f" {field.units}" if field.units else ""
    maps = [
        {"name": "mean", "z": html.packed(mean), "colours": "Viridis",
         "caption": "The best guess at every place."},
        {"name": "sd", "z": html.packed(sd), "colours": "Cividis",
         "limits": [0, top],
         "caption": "How far off the mean typically is: small near measurements."},
    ]
    for limit in limits:
        above = field.probability_above(limit)[part][..., c]
        maps.append({
            "name": f"probability above {limit:g}{unit}", "z": html.packed(100 * above),
            "colours": "BlueOrange", "limits": [0, 100], "unit": "%", "lines": [5, 50, 95],
            "caption": "Orange: above the limit, blue: below, white: undecided. Lines at 5, 50 and "
                       "95 %."})
    low, high = (field.quantile((1 + side * level) / 2)[part][..., c] for side in (-1, 1))
    checks = field.checks
    return {
        "name": field.names[c], "maps": maps, "low": html.packed(low), "high": html.packed(high),
        "samples": [html.packed(sample[part][..., c]) for sample in field.samples[:count]],
        "limits": limits_of(given, c),
        "residuals": checks and _residuals(checks.residuals[:, c], clustered),
        "variogram": checks and checks.variograms[c]._asdict(),
    }


def _thinning(fields: int, shape: tuple[int, ...], probabilities: int) -> tuple[int, int]:
    """Every how many-th row and column is shown of samples (K, H, W, C), and how many of them;
    fields: in all, of channels and times."""
    samples, rows, columns, _ = shape
    for step in itertools.count(1):
        cells = -(-rows // step) * -(-columns // step) * fields
        room = MOST_NUMBERS // cells - (4 + probabilities)
        if room >= min(samples, ENOUGH_SAMPLES) or cells <= fields:
            return step, max(1, min(samples, room, MOST_SAMPLES))
    raise AssertionError


def _thinned(
    step: int, shown: int, samples: int, every: int, points: int, measurements: int
) -> str:
    """What the page leaves out, in words."""
    nth, of_times = (f"every {n}{'nd' if n == 2 else 'rd' if n == 3 else 'th'}"
                     for n in (step, every))
    parts = [
        f"{nth} row and column is shown" if step > 1 else "",
        f"{of_times} time" if every > 1 else "",
        f"{shown} of {samples} samples" if shown < samples else "",
        f"{points:,} of {measurements:,} measurements" if points < measurements else ""]
    said = ", ".join(filter(None, parts))
    return f"To keep this page small: {said}. The other files hold all." if said else ""


def _residuals(z: np.ndarray, clustered: bool) -> dict[str, Any]:
    """Histogram of leave-one-out residuals (M,), and what it tells."""
    density, _ = np.histogram(np.clip(z, EDGES[0], EDGES[-1]), EDGES, density=True)
    inside = float(np.mean(np.abs(z) < scipy.special.ndtri((1 + LEVEL) / 2)))
    return {"middles": (EDGES[1:] + EDGES[:-1]) / 2, "density": density, "words": (
        f"Each of the {len(z):,} measurements was predicted from all others: {inside:.0%} lie in "
        f"their {LEVEL:.0%} interval. Far fewer would mean that the sd is too small."
        + " These measurements are clustered, which flatters: add --holdout 0.2 --holdout_by "
          "blocks." * clustered)}


def _tables(scores: dict[str, list[Score]], units: str | None) -> list[dict[str, Any]]:
    """Of hold-out validation, one for each channel that was scored on its own."""
    unit = f" ({units})" if units else ""
    return [{"name": name, "head": ["method", f"RMSE{unit}", f"CRPS{unit}", "in 90 % intervals"],
             "rows": [[score.name, f"{score.rmse:.4g}", f"{score.crps:.4g}",
                       "–" if score.covered is None else f"{score.covered:.0%}"]
                      for score in part],
             "verdict": verdict(part)} for name, part in scores.items()]


def _ticks(extent: Sequence[float]) -> dict[str, Any]:
    """Of longitudes that cross the 180th meridian."""
    x0, x1 = extent[:2]
    if x0 >= -180 and x1 <= 180:
        return {}
    values = MaxNLocator(5).tick_values(x0, x1)
    return {"tickvals": values, "ticktext": [f"{globe.east(x):.6g}°" for x in values]}


def _summary(field: Field, given: Measurements, limits: Sequence[float]) -> list[str]:
    """What the field is, and where limits are exceeded, in words."""
    unit = f" {field.units}" if field.units else ""
    *frames, rows, columns, _ = field.mean.shape
    lines = [f"{len(given.coords):,} measurements, {rows} x {columns} cells"
             + "".join(f", {count} times" for count in frames) + "."]
    areas = np.broadcast_to(field.areas, field.mean.shape[:-1])
    for c, name in enumerate(field.names):
        mean, sd = field.mean[..., c], field.sd[..., c]
        lines.append(f"{name}: mean {np.nanmean(mean):.4g}{unit}, typical sd "
                     f"{np.sqrt(np.nanmean(sd**2)):.2g}{unit}.")
        for limit in limits:
            above = field.probability_above(limit)[..., c]
            known = np.isfinite(above)
            sure, not_sure = (float(np.average(part[known], weights=areas[known]))
                              for part in (above >= 0.95, (above > 0.05) & (above < 0.95)))
            lines.append(f"Above {limit:g}{unit}: almost surely (95 % or more) on {sure:.0%} of "
                         f"the area, almost surely not on {1 - sure - not_sure:.0%}, undecided on "
                         f"{not_sure:.0%}.")
    return lines
