"""A reconstructed field as files: CSV, NetCDF with CF attributes, GeoTIFF."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import netcdf_file

from sparsefield.data.netcdf import grid_axes, is_longitude
from sparsefield.errors import UserError
from sparsefield.use.points import LARGEST
from sparsefield.use.reconstruction import Field

log = logging.getLogger("sparsefield")

PRECISION = "%.7g"
REGULAR = 1e-3  # of a step, by which the axes of a GeoTIFF may vary
DEGREES = {
    "x": {"standard_name": "longitude", "units": "degrees_east"},
    "y": {"standard_name": "latitude", "units": "degrees_north"},
}


@dataclass(frozen=True)
class Grid:
    """The axes of a field.

    Attributes:
        x: (W,), y: (H,), both growing. names: of x and y. attributes: of x and y.
        downward: whether y falls in the file that the grid is like, and in those written.
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, str] = ("x", "y")
    attributes: tuple[dict[str, str], dict[str, str]] = ({}, {})
    downward: bool = False

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """x0 x1 y0 y1 of the outer sides of its cells."""
        return (*_edges(self.x), *_edges(self.y))

    @property
    def is_global(self) -> bool:
        """Whether the file that it is like has longitudes."""
        return self.attributes[0].get("units") == DEGREES["x"]["units"]


def _edges(axis: np.ndarray) -> tuple[float, float]:
    if len(axis) == 1:
        return float(axis[0]) - 0.5, float(axis[0]) + 0.5
    return (float(axis[0] - (axis[1] - axis[0]) / 2), float(axis[-1] + (axis[-1] - axis[-2]) / 2))


def grid_like(path: str) -> Grid:
    """The grid of a NetCDF file.

    Raises:
        UserError: it has none, or a side is not in 1 ... 512.
    """
    x, y = grid_axes(Path(path))
    if max(len(x.values), len(y.values)) > LARGEST:
        raise UserError(f"--grid {path}: {len(y.values)} rows and {len(x.values)} columns, at most "
                        f"{LARGEST} can be asked for; give --resolution and --extent")
    kept = tuple({key: str(v.attributes[key]) for key in ("standard_name", "units", "long_name")
                  if key in v.attributes} for v in (x, y))
    if is_longitude(x):
        kept = tuple(DEGREES[axis] | own for axis, own in zip("xy", kept))
        kept[0]["units"], kept[1]["units"] = DEGREES["x"]["units"], DEGREES["y"]["units"]
    return Grid(np.sort(x.values), np.sort(y.values), (x.name, y.name), kept,
                downward=len(y.values) > 1 and y.values[0] > y.values[1])


def grid_of(field: Field, lonlat: bool) -> Grid:
    """The axes of a field that was asked for by resolution."""
    x, y = field.coords[0, :, 0], field.coords[:, 0, 1]
    return Grid(x, y, ("lon", "lat"), (DEGREES["x"], DEGREES["y"])) if lonlat else Grid(x, y)


def written(
    field: Field, grid: Grid, names: Sequence[str], units: str | None, how: str
) -> dict[str, bytes]:
    """field.csv, field.nc and, where rasterio is installed, field.tif.

    Args:
        names: of the channels. how: the method, in words.
    """
    names = list(names) or [f"value_{c + 1}" for c in range(field.mean.shape[2])]
    files = {"field.csv": csv(field, grid, names), "field.nc": netcdf(field, grid, names, units,
                                                                      how)}
    found = geotiff(field, grid, names, units)
    return files if found is None else files | {"field.tif": found}


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


def netcdf(
    field: Field, grid: Grid, names: Sequence[str], units: str | None, how: str
) -> bytes:
    """Classic NetCDF by the CF conventions 1.8: mean, sd and samples, each on (y, x)."""
    buffer = io.BytesIO()
    file = netcdf_file(buffer, "w")
    file.Conventions = "CF-1.8"
    file.title = "field reconstructed from sparse measurements"
    file.source = how
    x_name, y_name = grid.names
    step = slice(None, None, -1 if grid.downward else 1)
    for axis, name, values, own in zip("XY", grid.names, (grid.x, grid.y[step]), grid.attributes):
        file.createDimension(name, len(values))
        _variable(file, name, "d", (name,), values, axis=axis, **own)
    file.createDimension("realization", len(field.samples))
    _variable(file, "realization", "i", ("realization",), np.arange(len(field.samples)) + 1,
              standard_name="realization", long_name="number of the sample")
    said = {"units": units} if units else {}
    said["_FillValue"] = np.float32("nan")
    said["coordinates"] = f"{y_name} {x_name}"
    for c, (name, prefix) in enumerate(zip(names, _prefixes(names))):
        _variable(file, f"{prefix}mean", "f", (y_name, x_name), field.mean[step, :, c],
                  long_name=f"posterior mean of {name}", cell_methods="realization: mean", **said)
        _variable(file, f"{prefix}sd", "f", (y_name, x_name), field.sd[step, :, c],
                  long_name=f"posterior standard deviation of {name}",
                  cell_methods="realization: standard_deviation", **said)
        _variable(file, f"{prefix}samples", "f", ("realization", y_name, x_name),
                  field.samples[:, step, :, c], long_name=f"posterior samples of {name}", **said)
    file.flush()
    return buffer.getvalue()


def _variable(file: netcdf_file, name: str, kind: str, dims: tuple[str, ...], values: np.ndarray,
              **attributes: object) -> None:
    variable = file.createVariable(name, kind, dims)
    variable[:] = values
    for key, value in attributes.items():
        setattr(variable, key, value.encode("utf-8") if isinstance(value, str) else value)


def geotiff(
    field: Field, grid: Grid, names: Sequence[str], units: str | None
) -> bytes | None:
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
    is_degrees = grid.attributes[0].get("units") == DEGREES["x"]["units"]
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", height=height, width=width, count=2 * channels,
                         dtype="float32", compress="deflate",
                         crs="EPSG:4326" if is_degrees else None,
                         transform=from_bounds(x0, y0, x1, y1, width, height)) as file:
            for c, name in enumerate(names):
                for k, (what, values) in enumerate((("mean", field.mean), ("sd", field.sd))):
                    band = 2 * c + k + 1
                    file.write(values[::-1, :, c].astype(np.float32), band)
                    file.set_band_description(band, f"{name} {what}")
                    if units:
                        file.set_band_unit(band, units)
        return memory.read()
