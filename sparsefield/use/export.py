"""A reconstructed field as files: numbers, pictures, CSV, NetCDF with CF attributes, GeoTIFF."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy

from sparsefield.use import plots
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
    files = {"field.npz": npz(field), "mean.png": plots.picture(field.mean, given)}
    for k, sample in enumerate(field.samples):
        files[f"sample_{k + 1}.png"] = plots.picture(sample, given)
    seen = given if given.is_picture else replace(given, extent=grid.extent)
    files["reconstruction.png"] = plots.reconstruction(field, seen, units, lonlat)
    if given.is_picture:
        return files
    names = plots.channel_names(field, given)
    files["field.csv"] = csv(field, grid, names)
    files["field.nc"] = netcdf(field, grid, names, units)
    found = geotiff(field, grid, names, units)
    return files if found is None else files | {"field.tif": found}


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
    buffer = io.BytesIO()
    file = scipy.io.netcdf_file(buffer, "w")
    file.Conventions = "CF-1.8"
    file.title = "field reconstructed from sparse measurements"
    file.source = field.how
    x_name, y_name = grid.names
    step = slice(None, None, -1 if grid.downward else 1)
    for axis, name, values, own in zip("XY", grid.names, (grid.x, grid.y[step]), grid.attributes):
        file.createDimension(name, len(values))
        _variable(file, name, "d", (name,), values, axis=axis, **own)
    file.createDimension("realization", len(field.samples))
    _variable(file, "realization", "i", ("realization",), np.arange(len(field.samples)) + 1,
              standard_name="realization", long_name="number of the sample")
    kind = "d" if field.samples.nbytes < MOST_BYTES else "f"
    said = {"units": units} if units else {}
    said["coordinates"] = f"{y_name} {x_name}"
    for c, (name, prefix) in enumerate(zip(names, _prefixes(names))):
        _variable(file, f"{prefix}mean", "d", (y_name, x_name), field.mean[step, :, c],
                  long_name=f"posterior mean of {name}", cell_methods="realization: mean", **said)
        _variable(file, f"{prefix}sd", "d", (y_name, x_name), field.sd[step, :, c],
                  long_name=f"posterior standard deviation of {name}",
                  cell_methods="realization: standard_deviation", **said)
        _variable(file, f"{prefix}samples", kind, ("realization", y_name, x_name),
                  field.samples[:, step, :, c], long_name=f"posterior samples of {name}", **said)
    file.flush()
    return buffer.getvalue()


def _variable(
    file: scipy.io.netcdf_file, name: str, kind: str, dims: tuple[str, ...], values: np.ndarray,
    **attributes: object,
) -> None:
    variable = file.createVariable(name, kind, dims)
    variable[:] = values
    if len(dims) > 1:
        variable._FillValue = np.array(np.nan, kind)[()]
    for key, value in attributes.items():
        setattr(variable, key, value.encode("utf-8") if isinstance(value, str) else value)


def geotiff(field: Field, grid: Grid, names: Sequence[str], units: str | None) -> bytes | None:
    """Bands of mean and sd of every channel, north up; None without rasterio or even steps."""
    try:
        import rasterio
        from rasterio.transform import from_bounds
    except ImportError:
        return None
    for axis in (grid.x, grid.y):
        steps = np.diff(axis)
        if len(steps) and np.ptp(steps) > REGULAR * steps.mean():
            log.info("no field.tif: the steps of the grid are uneven")
            return None
    x0, x1, y0, y1 = grid.extent
    height, width, channels = field.mean.shape
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", height=height, width=width, count=2 * channels,
                         dtype="float64", compress="deflate",
                         crs="EPSG:4326" if grid.is_global else None,
                         transform=from_bounds(x0, y0, x1, y1, width, height)) as file:
            for c, name in enumerate(names):
                for k, (what, values) in enumerate((("mean", field.mean), ("sd", field.sd))):
                    band = 2 * c + k + 1
                    file.write(values[::-1, :, c], band)
                    file.set_band_description(band, f"{name} {what}")
                    if units:
                        file.set_band_unit(band, units)
        return memory.read()
