"""A reconstructed field as files: numbers, pictures, CSV, NetCDF with CF attributes, GeoTIFF."""

from __future__ import annotations

import importlib.util
import io
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray

from sparsefield.use.grids import Grid
from sparsefield.use.points import Measurements
from sparsefield.use.predict import MOST_SAMPLES, Field

log = logging.getLogger("sparsefield")

PRECISION = "%.12g"  # a small sd beside a large mean, metres of large northings
MOST_BYTES = 1 << 31  # of a variable in a classic NetCDF file
REGULAR = 1e-3  # of a step, by which the axes of a GeoTIFF may vary
NAMES = ("field.npz", "mean.png", "reconstruction.png", "field.csv", "field.nc", "field.tif",
         *(f"sample_{k + 1}.png" for k in range(MOST_SAMPLES)))  # all that `contents` can give


def contents(
    field: Field, grid: Grid, given: Measurements, units: str | None, lonlat: bool
) -> dict[str, bytes]:
    """Everything that a reconstruction leaves, by name.

    Args:
        grid: the axes of the field. units: of the values. lonlat: x and y are degrees.
    """
    from sparsefield.use import plots  # matplotlib

    seen = given if given.is_picture else replace(given, extent=grid.extent)
    shown = field if given.is_picture else _growing(field)
    names = given.names or tuple(f"value_{c + 1}" for c in range(field.mean.shape[2]))
    files = {"field.npz": npz(field), "mean.png": plots.picture(shown.mean, given)}
    for k, sample in enumerate(shown.samples):
        files[f"sample_{k + 1}.png"] = plots.picture(sample, given)
    files["reconstruction.png"] = plots.reconstruction(shown, seen, units, lonlat, names[0])
    if given.is_picture:
        return files
    files["field.csv"] = csv(field, grid, names)
    files["field.nc"] = netcdf(field, grid, names, units)
    if (found := geotiff(field, grid, names, units)) is not None:
        files["field.tif"] = found
    return files


def _growing(field: Field) -> Field:
    """The same with x and y growing along its axes."""
    order = np.ix_(np.argsort(field.coords[:, 0, 1]), np.argsort(field.coords[0, :, 0]))
    return replace(field, coords=field.coords[order], mean=field.mean[order], sd=field.sd[order],
                   samples=field.samples[:, *order])


def npz(field: Field) -> bytes:
    """coords, mean, sd and samples, as they stand in `Field`."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, coords=field.coords, mean=field.mean, sd=field.sd, samples=field.samples
    )
    return buffer.getvalue()


def csv(field: Field, grid: Grid, names: Sequence[str]) -> bytes:
    """A row for each cell: x, y, and mean and sd of every channel."""
    columns = [field.coords.reshape(-1, 2)]
    head = list(grid.names)
    for c, prefix in enumerate(_prefixes(names)):
        columns += [field.mean[..., c].reshape(-1, 1), field.sd[..., c].reshape(-1, 1)]
        head += [f"{prefix}mean", f"{prefix}sd"]
    text = io.StringIO()
    np.savetxt(text, np.concatenate(columns, axis=1), delimiter=",", fmt=PRECISION,
               header=",".join(head), comments="")
    return text.getvalue().encode()


def _prefixes(names: Sequence[str]) -> list[str]:
    """Of the variables of each channel: none where there is one channel."""
    if len(names) == 1:
        return [""]
    plain = ["".join(c if c.isascii() and c.isalnum() else "_" for c in name) for name in names]
    unique = [name if plain.count(name) == 1 and name else f"{name}_{k + 1}"
              for k, name in enumerate(plain)]
    return [f"{name if name[0].isalpha() else 'value_' + name}_" for name in unique]


def netcdf(field: Field, grid: Grid, names: Sequence[str], units: str | None) -> bytes:
    """Classic NetCDF by the CF conventions 1.8: mean, sd and samples, each on (y, x)."""
    (x, y), (of_x, of_y) = grid.names, grid.attributes
    said = {"units": units} if units else {}
    kind = np.float64 if field.samples.nbytes < MOST_BYTES else np.float32
    variables = {}
    for c, (name, prefix) in enumerate(zip(names, _prefixes(names))):
        variables[f"{prefix}mean"] = ((y, x), field.mean[..., c].astype(np.float64), {
            "long_name": f"posterior mean of {name}", "cell_methods": "realization: mean", **said})
        variables[f"{prefix}sd"] = ((y, x), field.sd[..., c].astype(np.float64), {
            "long_name": f"posterior standard deviation of {name}",
            "cell_methods": "realization: standard_deviation", **said})
        variables[f"{prefix}samples"] = (
            ("realization", y, x), field.samples[..., c].astype(kind),
            {"long_name": f"posterior samples of {name}", **said})
    number = np.arange(len(field.samples), dtype=np.int32) + 1
    axes = {x: (x, grid.x, {"axis": "X", **of_x}), y: (y, grid.y, {"axis": "Y", **of_y}),
            "realization": ("realization", number, {"standard_name": "realization",
                                                    "long_name": "number of the sample"})}
    data = xarray.Dataset(variables, axes, {
        "Conventions": "CF-1.8", "title": "field reconstructed from sparse measurements",
        "source": field.how})
    for axis in (x, y):
        data[axis].encoding["_FillValue"] = None
    return bytes(data.to_netcdf(engine="scipy"))


def geotiff(field: Field, grid: Grid, names: Sequence[str], units: str | None) -> bytes | None:
    """Bands of mean and sd of every channel, north up; None without rioxarray or even steps."""
    if importlib.util.find_spec("rioxarray") is None:
        return None
    import rasterio
    import rioxarray  # noqa: F401 (the accessor rio)

    for axis in (grid.x, grid.y):
        steps = np.abs(np.diff(axis))
        if len(steps) and np.ptp(steps) > REGULAR * steps.mean():
            log.info("no field.tif: the steps of the grid are uneven")
            return None
    field = _growing(field)
    bands = np.stack([part[::-1, :, c] for c in range(len(names))
                      for part in (field.mean, field.sd)])
    labels = tuple(f"{name} {what}" for name in names for what in ("mean", "sd"))
    array = xarray.DataArray(bands.astype(np.float64), dims=("band", "y", "x"),
                             attrs={"long_name": labels})
    array = array.rio.write_transform(_transform(grid)).rio.write_nodata(np.nan)
    if grid.is_global:
        array = array.rio.write_crs("EPSG:4326")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "field.tif"
        array.rio.to_raster(path, compress="deflate")
        if units:
            with rasterio.open(path, "r+") as file:
                file.units = (units,) * len(labels)
        return path.read_bytes()


def _transform(grid: Grid) -> object:
    """From columns and rows, north up, to x and y."""
    from rasterio.transform import from_bounds

    x0, x1, y0, y1 = grid.extent
    return from_bounds(x0, y0, x1, y1, len(grid.x), len(grid.y))
