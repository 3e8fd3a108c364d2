"""A reconstructed field as files: numbers, pictures, CSV, NetCDF with CF attributes, GeoTIFF."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sparsefield.data.netcdf import GEOTIFF
from sparsefield.data.pictures import ORIENTATION
from sparsefield.evaluate.plots import MISSING, as_png, plt
from sparsefield.use import globe
from sparsefield.use.field import MOST_SAMPLES, Field
from sparsefield.use.grids import Asked, Frame, Grid
from sparsefield.use.points import Measurements

if TYPE_CHECKING:
    from rasterio import Affine
    from rasterio.crs import CRS

log = logging.getLogger("sparsefield")

PRECISION = "%.12g"  # a small sd beside a large mean, metres of large northings
REGULAR = 1e-3  # of a step, by which the axes of a GeoTIFF may vary
MOST_SHOWN = 0.99  # share of the cells whose sd the colours resolve
LONGEST = 10  # sides of a map whose axes have one scale
SCALES = {"10m": 15.0, "50m": 90.0, "110m": np.inf}  # of Natural Earth, for so many degrees
NAMES = ("field.npz", "field.html", "mean.png", "reconstruction.png", "field.csv", "field.nc",
         "field.tif", *(f"sample_{k + 1}.png" for k in range(MOST_SAMPLES)))  # all that can be


def contents(
    field: Field, given: Measurements, asked: Asked, units: str | None, source: str = ""
) -> dict[str, bytes]:
    """Everything that a reconstruction leaves, by name; units: of the values; source: the file that
    they come from, whose georeference a picture gets back."""
    names = given.names or tuple(f"value_{c + 1}" for c in range(field.mean.shape[2]))
    shown = field if given.is_picture else growing(field)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, coords=field.coords, mean=field.mean, sd=field.sd, samples=field.samples)
    files = {"field.npz": buffer.getvalue(), "mean.png": picture(shown.mean, given),
             "reconstruction.png": overview(shown, given, asked, units, names[0])}
    for k, sample in enumerate(shown.samples):
        files[f"sample_{k + 1}.png"] = picture(sample, given)
    data = dataset(field, asked.grid, names, units)
    if given.is_picture:
        if placed := _georeference(source, given, asked):
            files["field.tif"] = _as_geotiff(data, *placed, units)
        return files
    x, y = asked.grid.names
    table = data.drop_dims("realization").to_dataframe([y, x]).reset_index()
    table = table[[x, y, *table.columns[2:]]]
    files["field.csv"] = table.to_csv(index=False, float_format=PRECISION, na_rep="nan").encode()
    files["field.nc"] = bytes(data.to_netcdf(engine="scipy"))
    if (found := geotiff(data, asked.grid, units)) is not None:
        files["field.tif"] = found
    return files


def growing(field: Field) -> Field:
    """The same with x and y growing along its axes."""
    order = np.ix_(np.argsort(field.coords[:, 0, 1]), np.argsort(field.coords[0, :, 0]))
    gaussian = field.gaussian and field.gaussian._replace(
        mean=field.gaussian.mean[order], sd=field.gaussian.sd[order])
    return replace(field, coords=field.coords[order], mean=field.mean[order], sd=field.sd[order],
                   samples=field.samples[:, *order], gaussian=gaussian, grid=None)


# --- numbers --------------------------------------------------------------------------------------


def dataset(
    field: Field, grid: Grid, names: Sequence[str], units: str | None
) -> xarray.Dataset:
    """Mean, sd and samples of every channel on (y, x), by the CF conventions 1.8."""
    x, y = grid.names
    said = {"units": units} if units else {}
    variables = {}
    for c, (name, prefix) in enumerate(zip(names, _prefixes(names), strict=True)):
        variables[f"{prefix}mean"] = ((y, x), field.mean[..., c], {
            "long_name": f"posterior mean of {name}", "cell_methods": "realization: mean", **said})
        variables[f"{prefix}sd"] = ((y, x), field.sd[..., c], {
            "long_name": f"posterior standard deviation of {name}",
            "cell_methods": "realization: standard_deviation", **said})
        variables[f"{prefix}samples"] = (("realization", y, x), field.samples[..., c], {
            "long_name": f"posterior samples of {name}", **said})
    number = np.arange(len(field.samples), dtype=np.int32) + 1
    axes = {x: (x, grid.x, {"axis": "X", **grid.attributes[0]}, {"_FillValue": None}),
            y: (y, grid.y, {"axis": "Y", **grid.attributes[1]}, {"_FillValue": None}),
            "realization": ("realization", number, {"standard_name": "realization",
                                                    "long_name": "number of the sample"})}
    return xarray.Dataset(variables, axes, {
        "Conventions": "CF-1.8", "title": "field reconstructed from sparse measurements",
        "source": field.how})


def _prefixes(names: Sequence[str]) -> list[str]:
    """Of the variables of each channel: none where there is one channel."""
    if len(names) == 1:
        return [""]
    plain = [re.sub(r"[^A-Za-z0-9]", "_", name) for name in names]
    return [f"{name}_" if name[:1].isalpha() and plain.count(name) == 1 else f"value_{k + 1}_"
            for k, name in enumerate(plain)]


def geotiff(data: xarray.Dataset, grid: Grid, units: str | None) -> bytes | None:
    """A band of every mean and sd, north up; None without rioxarray or even steps."""
    if importlib.util.find_spec("rioxarray") is None:
        return None
    from rasterio.transform import from_bounds

    for axis in (grid.x, grid.y):
        steps = np.abs(np.diff(axis))
        if len(steps) and np.ptp(steps) > REGULAR * steps.mean():
            log.info("no field.tif: the steps of the grid are uneven")
            return None
    x, y = grid.names
    x0, x1, y0, y1 = grid.extent
    return _as_geotiff(data.sortby(x).sortby(y, ascending=False),
                       from_bounds(x0, y0, x1, y1, len(grid.x), len(grid.y)),
                       "EPSG:4326" if grid.is_global else None, units)


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
                shrunk = -(-max(file.shape) // max(given.shape))  # where `measure_picture` reduced
                rows, columns = (shrunk * old / new for old, new in zip(
                    given.shape, asked.shape, strict=True))
                return file.transform * file.transform.scale(columns, rows), file.crs
    return None


def _as_geotiff(
    data: xarray.Dataset, transform: Affine, crs: CRS | str | None, units: str | None
) -> bytes:
    """Means and sds of (y, x), from the first row down."""
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
        if units:
            with rasterio.open(path, "r+") as file:
                file.units = (units,) * file.count
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


def aspect_of(frame: Frame, extent: Sequence[float]) -> float | None:
    """How many units of x are as long as one of y, on a globe in the middle of an extent; None
    where the map would be a sliver."""
    across, along = globe.scales(extent) if frame.lonlat else frame.scaled_by
    x0, x1, y0, y1 = extent
    ratio = across / along * (y1 - y0) / (x1 - x0)
    return across / along if 1 / LONGEST <= ratio <= LONGEST else None


def degrees_east(x: float) -> str:
    """A longitude, however it was turned."""
    return f"{(x + 180) % 360 - 180:.6g}°"


def coast_lines(extent: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes (P,) of the coasts in an extent, lines apart by NaN: of Natural
    Earth, by cartopy, which downloads them once. Without it, or them, there are none."""
    parts = [np.empty((0, 2))]
    if importlib.util.find_spec("cartopy") is not None:
        from cartopy.io import shapereader

        width = extent[1] - extent[0]
        scale = next(name for name, widest in SCALES.items() if width <= widest)
        try:
            path = shapereader.natural_earth(scale, "physical", "coastline")
        except OSError as error:
            log.info("no coast lines: cartopy cannot have them (%s)", error)
        else:
            found = shapereader.Reader(path).geometries()
            lines = [np.asarray(line.coords)[:, :2] for whole in found
                     for line in getattr(whole, "geoms", [whole])]
            parts += [part for turn in (-360, 0, 360) for line in lines
                      for part in _within(line + (turn, 0), extent)]
    joined = np.concatenate([np.vstack([part, [[np.nan, np.nan]]]) for part in parts])
    return joined[1:, 0], joined[1:, 1]


def _within(line: np.ndarray, extent: Sequence[float]) -> list[np.ndarray]:
    """The parts of a line (P, 2) in an extent, each with the point beyond its ends."""
    x0, x1, y0, y1 = extent
    inside = ((line >= (x0, y0)) & (line <= (x1, y1))).all(axis=1)
    kept = inside.copy()
    kept[1:] |= inside[:-1]
    kept[:-1] |= inside[1:]
    ends = np.flatnonzero(np.diff(np.pad(kept, 1).astype(int))).reshape(-1, 2)
    return [line[start:end] for start, end in ends]


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
    field: Field, given: Measurements, asked: Asked, units: str | None, name: str
) -> bytes:
    """PNG of measurements, posterior mean, sd and two samples, in the units of the input: RGB of
    pictures in colour, whose sd is the mean over the colours, else the first channel, of a name.

    Args:
        field: with x and y growing, but of pictures y downward.
    """
    x0, x1, y0, y1 = asked.extent if given.is_picture else asked.grid.extent
    edges = (x0, x1, y1, y0) if given.is_picture else (x0, x1, y0, y1)
    aspect = aspect_of(asked.frame, (x0, x1, y0, y1))
    ratio = (aspect or 1) * (y1 - y0) / (x1 - x0)
    is_rgb = given.is_picture and field.mean.shape[2] == 3
    style = {"extent": edges, "origin": "upper" if given.is_picture else "lower",
             "interpolation": "nearest"}
    low, high = limits_of(given)
    colours = {} if is_rgb else {
        "vmin": low, "vmax": high, "cmap": "gray" if given.value_range else "viridis"}

    def shown(values: np.ndarray) -> np.ndarray:
        return _unit(values, given) if is_rgb else values[..., 0]

    coast = coast_lines((x0, x1, y0, y1)) if asked.frame.lonlat else ([], [])
    figure, axes = plt.subplots(
        1, 5, figsize=(15, 2.6 * np.clip(ratio, 0.3, 3) + 0.6), sharex=True, sharey=True,
        layout="constrained",
    )
    axes[0].scatter(*given.coords.T, c=shown(given.values), linewidths=0, **colours,
                    s=np.clip(6000 / len(given.coords), 1, 25),
                    marker="s" if given.is_picture else "o")
    for axis, values in zip(axes[[1, 3, 4]], [field.mean, *field.samples[:2]], strict=True):
        image = axis.imshow(shown(values), **style, **colours)
    sd = field.sd.mean(axis=2) if is_rgb else field.sd[..., 0]
    most = np.nanquantile(sd, MOST_SHOWN) or None
    spread = axes[2].imshow(sd, cmap="magma", vmin=0, vmax=most, **style)
    which = "" if is_rgb or field.mean.shape[2] == 1 else f" of {name}"
    for axis, title in zip(axes, (f"{len(given.coords):,} measurements{which}", "posterior mean",
                                  "sd", "sample 1", "sample 2"), strict=True):
        axis.set_facecolor(MISSING)
        axis.set_title(title, fontsize=10)
        axis.set_aspect(aspect or "auto")
        axis.plot(*coast, color="black", linewidth=0.5)
    axes[0].set(xlim=edges[:2], ylim=edges[2:])
    if asked.frame.lonlat:
        axes[0].xaxis.set_major_locator(MaxNLocator(4))
        axes[0].xaxis.set_major_formatter(lambda x, _: degrees_east(x))
        axes[0].yaxis.set_major_formatter("{x:.6g}°")
    _colour_bar(spread, axes[2], units, "max" if most and np.nanmax(sd) > 1.1 * most else "neither")
    if not is_rgb:
        _colour_bar(image, axes[4], units)
    return as_png(figure)


def _colour_bar(image: AxesImage, axis: Axes, units: str | None, extend: str = "neither") -> None:
    """Beside a panel and as high as it."""
    bar = axis.figure.colorbar(image, cax=axis.inset_axes([1.04, 0, 0.06, 1]), extend=extend)
    bar.set_label(f"in {units}" if units else "")
