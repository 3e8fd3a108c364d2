"""A reconstructed field as files: numbers, pictures, CSV, NetCDF with CF attributes, GeoTIFF."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sparsefield.data.netcdf import GEOTIFF, REGULAR, is_even
from sparsefield.data.pictures import ORIENTATION
from sparsefield.evaluate.plots import MISSING, as_png, plt
from sparsefield.use import globe
from sparsefield.use.field import ABOVE, MOST_SAMPLES, QUANTILE, Field, described
from sparsefield.use.grids import Asked, Grid, sides
from sparsefield.use.large import tell_of_oblong_pixels
from sparsefield.use.points import Extent, Measurements

if TYPE_CHECKING:
    from rasterio import Affine
    from rasterio.crs import CRS
    from xarray import Dataset

log = logging.getLogger("sparsefield")

PRECISION = "%.12g"  # a small sd beside a large mean, metres of large northings
MOST_SHOWN = 0.99  # share of the cells whose sd the colours resolve
LONGEST = 10  # sides of a map whose axes have one scale
NAMES = ("field.npz", "field.html", "field.gif", "field.mp4", "mean.png",
         "reconstruction.png", "field.csv", "field.nc", "field.tif",
         *(f"sample_{k + 1}.png" for k in range(MOST_SAMPLES)))
ANSWERS = rf"(?:{ABOVE}|{QUANTILE})[-+.e\d]+\.png"  # with NAMES all that `contents` can give


def contents(
    field: Field, given: Measurements, asked: Asked, source: str = "",
    above: Sequence[float] = (), quantiles: Sequence[float] = (),
) -> dict[str, bytes]:
    """Everything that a reconstruction leaves, by name.

    Args:
        source: the file of the measurements, whose georeference a picture gets back.
        above, quantiles: see `Field.answers`.
    """
    shown = field if given.is_picture else growing(field)
    when = {} if field.times is None else {"times": field.times.decoded()}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, coords=field.coords, mean=field.mean, sd=field.sd, samples=field.samples,
        **when, **field.answers(above, quantiles))
    files = {"field.npz": buffer.getvalue()}
    data = field.to_xarray(above, quantiles)
    if field.has_frames:
        return files | _of_frames(shown, given, asked) | _tables(field, data, above, quantiles)
    files |= {"mean.png": picture(shown.mean, given),
              "reconstruction.png": overview(shown, given, asked)}
    for k, sample in enumerate(shown.samples):
        files[f"sample_{k + 1}.png"] = picture(sample, given)
    for name, values in shown.answers(above, quantiles).items():
        files[f"{name}.png"] = maps(name, values, field, given, asked)
    if given.is_picture:
        if placed := _georeference(source, given, asked):
            files["field.tif"] = _as_geotiff(data, *placed)
        return files
    files |= _tables(field, data, above, quantiles)
    if not all(is_even(axis, REGULAR) for axis in (asked.grid.x, asked.grid.y)):
        log.warning("WARNING: the steps of the grid are uneven: pictures show all cells equally "
                    "wide, and there is no field.tif; the places in field.nc are right")
    elif (found := geotiff(data, asked.grid)) is not None:
        files["field.tif"] = found
    return files


def _tables(
    field: Field, data: Dataset, above: Sequence[float], quantiles: Sequence[float]
) -> dict[str, bytes]:
    table = field.to_dataframe(above, quantiles)
    if (times := field.times) is not None:
        data = data.assign_coords({times.name: times.as_variable(times.name, decoded=False)})
    return {"field.csv": table.to_csv(index=False, float_format=PRECISION, na_rep="nan").encode(),
            "field.nc": bytes(data.to_netcdf(engine="scipy"))}


def _of_frames(field: Field, given: Measurements, asked: Asked) -> dict[str, bytes]:
    """The film, and everything side by side of the time with the most measurements."""
    from sparsefield.use.film import film

    which = field.times.nearest(given.times.values)
    k = int(np.bincount(which[which >= 0], minlength=len(field.mean)).argmax())
    now = given.of(which == k)
    still = overview(field.frame(k), given, asked, now, field.times.labels()[k])
    return {"reconstruction.png": still, **film(field, given, asked)}


def growing(field: Field) -> Field:
    """The same with x and y growing along its axes."""
    rows, columns = np.argsort(field.coords[:, 0, 1]), np.argsort(field.coords[0, :, 0])

    def sort(x: np.ndarray) -> np.ndarray:                                # (..., H, W, C)
        return x[..., rows, :, :][..., columns, :]

    gaussian = field.gaussian and field.gaussian._replace(
        mean=sort(field.gaussian.mean), sd=sort(field.gaussian.sd))
    return replace(field, coords=sort(field.coords), mean=sort(field.mean), sd=sort(field.sd),
                   samples=sort(field.samples), gaussian=gaussian)


# --- numbers --------------------------------------------------------------------------------------


def geotiff(data: Dataset, grid: Grid) -> bytes | None:
    """A band of every map, north up; None without rioxarray."""
    if importlib.util.find_spec("rioxarray") is None:
        return None
    from rasterio.transform import from_bounds

    x, y = grid.names
    x0, x1, y0, y1 = grid.extent
    return _as_geotiff(data.sortby(x).sortby(y, ascending=False),
                       from_bounds(x0, y0, x1, y1, len(grid.x), len(grid.y)),
                       "EPSG:4326" if grid.is_global else None)


def _georeference(source: str, given: Measurements, asked: Asked) -> tuple[Affine, CRS] | None:
    """Where pixels that are asked for lie in a GeoTIFF; None if it does not say, or is turned."""
    if not source.lower().endswith(GEOTIFF) or importlib.util.find_spec("rioxarray") is None:
        return None
    import rasterio
    import tifffile

    with tifffile.TiffFile(source) as file:
        is_upright = file.pages.first.tags.valueof(ORIENTATION, 1) == 1
    with contextlib.suppress(OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(source) as file:
            if is_upright and not file.transform.is_identity:
                tell_of_oblong_pixels(source, file.transform, file.crs, file.height)
                shrunk = -(-max(file.shape) // max(given.shape))  # where `measure_picture` reduced
                rows, columns = (shrunk * old / new for old, new in zip(
                    given.shape, asked.shape, strict=True))
                return file.transform * file.transform.scale(columns, rows), file.crs
    return None


def _as_geotiff(data: Dataset, transform: Affine, crs: CRS | str | None) -> bytes:
    """The maps of (y, x), from the first row down."""
    import rasterio
    import rioxarray  # noqa: F401 (the accessor rio)

    bands = data.drop_dims("realization").to_dataarray("band")
    bands.attrs = {"long_name": tuple(bands["band"].values)}
    _, y, x = bands.dims
    bands = bands.drop_vars([x, y]).rio.set_spatial_dims(x, y)  # the transform says where it lies
    bands = bands.rio.write_nodata(np.nan).rio.write_transform(transform)
    if crs:
        bands = bands.rio.write_crs(crs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "field.tif"
        bands.rio.to_raster(path, compress="deflate", recalc_transform=False)
        with rasterio.open(path, "r+") as file:
            file.units = tuple(data[name].attrs.get("units", "") for name in file.descriptions)
        return path.read_bytes()


# --- pictures -------------------------------------------------------------------------------------


def limits_of(given: Measurements, channel: int = 0) -> tuple[float, float]:
    """What is drawn darkest and brightest: of a picture as in it, else what was measured."""
    if given.value_range is not None:
        return given.value_range
    low, high = float(given.values[:, channel].min()), float(given.values[:, channel].max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _unit(values: np.ndarray, given: Measurements) -> np.ndarray:
    """Values with their limits as 0 and 1."""
    low, high = limits_of(given)
    return np.clip((values - low) / (high - low), 0, 1)


def picture(values: np.ndarray, given: Measurements) -> bytes:
    """PNG of a field (H, W, C), x and y growing, cell by cell; y up, but for pictures.

    RGB of pictures in colour, else the first channel: in grey of pictures.
    """
    unit = _unit(values if given.is_picture else values[::-1], given)
    pixels = unit if given.is_picture and unit.shape[2] == 3 else unit[..., 0]
    if not given.is_picture:
        pixels = plt.get_cmap("viridis").with_extremes(bad=MISSING)(pixels)[..., :3]
    buffer = io.BytesIO()
    pixels = np.nan_to_num(pixels * 255).round().astype(np.uint8)  # black where nothing is known
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def overview(
    field: Field, given: Measurements, asked: Asked, now: Measurements | None = None,
    when: str = "",
) -> bytes:
    """PNG of measurements, posterior mean, sd and two samples, in the units of the input: RGB of
    pictures in colour, whose sd is the mean over the colours, else the first channel.

    Args:
        field: with x and y growing, but of pictures y downward. now, when: of a frame, its own
            measurements, of any number, and the title.
    """
    now = given if now is None else now
    is_rgb = given.is_picture and field.mean.shape[2] == 3
    low, high = limits_of(given)
    colours = {} if is_rgb else {
        "vmin": low, "vmax": high, "cmap": "gray" if given.value_range else "viridis"}

    def shown(values: np.ndarray) -> np.ndarray:
        return _unit(values, given) if is_rgb else values[..., 0]

    figure, axes, style = panels(5, 3.0, given, asked)
    axes[0].scatter(*now.coords.T, c=shown(now.values), linewidths=0, **colours,
                    s=size_of(len(now.coords)),
                    marker="s" if given.is_picture else "o")
    for axis, values in zip(axes[[1, 3, 4]], [field.mean, *field.samples[:2]], strict=True):
        image = axis.imshow(shown(values), **style, **colours)
    sd = field.sd.mean(axis=2) if is_rgb else field.sd[..., 0]
    most = most_of(sd)
    spread = axes[2].imshow(sd, cmap="magma", vmin=0, vmax=most, **style)
    which = "" if is_rgb or field.mean.shape[2] == 1 else f" of {field.names[0]}"
    for axis, title in zip(axes, (f"{len(now.coords):,} measurements{which}", "posterior mean",
                                  "sd", "sample 1", "sample 2"), strict=True):
        axis.set_title(title, fontsize=10)
    colour_bar(spread, axes[2], field.units,
                "max" if most and np.nanmax(sd) > 1.1 * most else "neither")
    if not is_rgb:
        colour_bar(image, axes[4], field.units)
    figure.suptitle(when)
    return as_png(figure)


def size_of(points: float) -> float:
    """Of the markers of so many measurements."""
    return float(np.clip(6000 / max(points, 1), 1, 25))


def most_of(sd: np.ndarray) -> float | None:
    """What is brightest in a map of the sd."""
    return float(np.nanquantile(sd, MOST_SHOWN)) or None


def maps(
    name: str, values: np.ndarray, field: Field, given: Measurements, asked: Asked
) -> bytes:
    """PNG of one answer of a field, a panel for each channel: probabilities in colours of 0 to 1,
    quantiles in those of the mean.

    Args:
        values: (H, W, C), with x and y growing, but of pictures y downward.
    """
    is_probability = name.startswith(ABOVE)
    low, high = (0, 1) if is_probability else limits_of(given)
    figure, axes, style = panels(values.shape[2], 5.0, given, asked)
    for c, axis in enumerate(axes):
        if not is_probability and not given.value_range:
            low, high = limits_of(given, c)
        image = axis.imshow(
            values[..., c], vmin=low, vmax=high, **style,
            cmap="gray" if given.value_range and not is_probability else "viridis")
        axis.set_title(described(name, field.names[c], field.units), fontsize=10)
        colour_bar(image, axis, None if is_probability else field.units)
    return as_png(figure)


def extent_of(given: Measurements, asked: Asked) -> Extent:
    """The outer sides of the cells of a map."""
    return asked.extent if given.is_picture else asked.grid.extent


def aspect_of(asked: Asked, extent: Extent) -> float | None:
    """How many units of x are as long as one of y, on a globe in the middle of an extent; None
    where the map would be a sliver."""
    across, along = globe.scales(extent) if asked.frame.lonlat else asked.frame.scaled_by
    width, height = sides(extent)
    is_sliver = not 1 / LONGEST <= across / along * height / width <= LONGEST
    return None if is_sliver else across / along


def panels(
    count: int, width: float, given: Measurements, asked: Asked
) -> tuple[Figure, np.ndarray, dict[str, Any]]:
    """A row of maps, each of a width in inches, and how `imshow` draws a field on them."""
    extent = extent_of(given, asked)
    x0, x1, y0, y1 = extent
    edges = (x0, x1, y1, y0) if given.is_picture else extent
    aspect = aspect_of(asked, extent)
    ratio = (aspect or 1.0) * (y1 - y0) / (x1 - x0)
    figure, axes = plt.subplots(
        1, count, figsize=(width * count, 0.87 * width * np.clip(ratio, 0.3, 3) + 0.6),
        squeeze=False, sharex=True, sharey=True, layout="constrained")
    coasts = globe.coasts(extent) if asked.frame.lonlat else ((), ())
    for axis in axes[0]:
        axis.set_facecolor(MISSING)
        axis.set_aspect(aspect or "auto")
        axis.plot(*coasts, color="black", linewidth=0.5)
    axes[0, 0].set(xlim=edges[:2], ylim=edges[2:])
    if asked.frame.lonlat:
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(4))
        axes[0, 0].xaxis.set_major_formatter(lambda x, _: f"{globe.east(x):.6g}°")
        axes[0, 0].yaxis.set_major_formatter("{x:.6g}°")
    return figure, axes[0], {
        "extent": edges, "interpolation": "nearest", "aspect": aspect or "auto",
        "origin": "upper" if given.is_picture else "lower"}


def colour_bar(image: AxesImage, axis: Axes, units: str | None, extend: str = "neither") -> None:
    """Beside a panel and as high as it."""
    bar = axis.figure.colorbar(image, cax=axis.inset_axes([1.04, 0, 0.06, 1]), extend=extend)
    bar.set_label(f"in {units}" if units else "")
