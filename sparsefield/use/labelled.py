"""Measurements that carry names: a pandas DataFrame of points, or an xarray DataArray with gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from sparsefield.data.files import tell_of_classes, without
from sparsefield.data.netcdf import describe, grid_axes, is_longitude, units_of
from sparsefield.errors import UserError
from sparsefield.use import globe
from sparsefield.use.grids import ARRAY, GLOBAL, LARGEST, Grid, Labelled
from sparsefield.use.points import Measurements, clean, noise_of, real_array
from sparsefield.use.read import Columns, are_degrees

if TYPE_CHECKING:
    from xarray import DataArray

FRAME = "the DataFrame"  # in messages


def read(
    data: Any, x: str | None, y: str | None, value: str | Sequence[str] | None, covariates: Any,
    settings: Mapping[str, Any], is_closed_form: bool,
) -> Labelled:
    """Measurements of a DataFrame or DataArray; arguments as of `Reconstructor.reconstruct`.

    Raises:
        UserError: what is neither, or cannot be used.
    """
    options = (settings.get("noise_sd"), settings.get("missing"),
               settings.get("lonlat", None if is_closed_form else False))  # None: as names say
    is_array = hasattr(data, "dims") and not hasattr(data, "data_vars")
    if is_array:
        from xarray import decode_cf

        packed = data.to_dataset(name="of it")  # a name that no axis has
        unpacked = decode_cf(packed, decode_times=False, decode_coords=False)["of it"]
        data = unpacked.rename(data.name or "value")
        data = data.squeeze() if data.ndim > 2 else data
    if is_array and data.ndim == 2:
        if covariates is not None:
            raise UserError(f"covariates are for a DataFrame, not for {ARRAY}")
        found = _of_array(data, x, y, *options)
    else:
        if is_array:
            value = value or str(data.name)
            data = _as_frame(data, value)
        found = _of_frame(data, x, y, value, covariates, *options)
    return found._replace(settings={"noise_sd": "auto" if _is_auto(options[0]) else 0.0,
                                    "lonlat": found.lonlat})


def _is_auto(noise_sd: Any) -> bool:
    return isinstance(noise_sd, str) and noise_sd == "auto"


def _as_frame(array: DataArray, name: str) -> pandas.DataFrame:
    """Points along one dimension."""
    if array.ndim != 1:
        raise UserError(f"{ARRAY} {describe(array)}: give two dimensions, y and x, or points along "
                        "one; take one step of the others with .isel")
    frame = array.to_dataframe(name).reset_index()
    frame.attrs = {name: units_of(array)}
    return frame


def _of_frame(
    frame: pandas.DataFrame, x: str | None, y: str | None, value: str | Sequence[str] | None,
    covariates: str | Sequence[str] | None, noise_sd: Any, missing: Sequence[float] | None,
    lonlat: bool | None,
) -> Labelled:
    """The rows of a table."""
    if not isinstance(frame, pandas.DataFrame):
        raise UserError(f"{type(frame).__name__} without values: give coords and values, a pandas "
                        "DataFrame, or an xarray DataArray such as dataset['name']")
    further = [name for name in frame.index.names if name not in (None, *frame.columns)]
    if further:
        frame = frame.reset_index(further)
    value, covariates = ([names] if isinstance(names, (str, int)) else names
                         for names in (value, () if covariates is None else covariates))
    if not all(isinstance(name, str) for name in covariates):
        raise UserError(f"covariates of {FRAME}: give the names of columns")
    column = noise_sd if isinstance(noise_sd, str) and not _is_auto(noise_sd) else None
    columns = Columns(FRAME, frame)
    found = columns.measurements(x, y, value, column, noise_sd is None or column is not None,
                                 lonlat, covariates)
    if noise_sd is not None and not isinstance(noise_sd, str):
        found = replace(found, noise=noise_of(noise_sd, len(frame)))
    lonlat = are_degrees(columns.axis_names[1]) if lonlat is None else lonlat
    return Labelled(clean(FRAME, found, missing, lonlat), lonlat, names=columns.axis_names)


def _of_array(
    array: DataArray, x: str | None, y: str | None, noise_sd: Any,
    missing: Sequence[float] | None, lonlat: bool | None,
) -> Labelled:
    """The known cells of an array of two dimensions."""
    if isinstance(noise_sd, str) and not _is_auto(noise_sd):
        raise UserError(f"noise_sd {noise_sd!r}: give a number or auto for {ARRAY}")
    chosen = {name: axis for name, axis in ((x, "X"), (y, "Y")) if name is not None}
    if unknown := set(chosen) - set(array.dims):
        raise UserError(f"{ARRAY} {describe(array)} has no dimension {', '.join(unknown)}")
    marked = array.assign_coords({name: array[name].assign_attrs(axis=axis)
                                  for name, axis in chosen.items()})
    on_x, on_y = grid_axes(Path(ARRAY), marked.coords.to_dataset())
    if max(array.shape) > LARGEST:
        raise UserError(f"{ARRAY} {describe(array)}: at most {LARGEST} rows and columns can be "
                        "filled; take a part, or coarsen it")
    names = str(on_x.name), str(on_y.name)
    if lonlat is None:
        lonlat = is_longitude(on_x) or are_degrees(names[1]) or _is_geographic(array)
    elif lonlat:
        globe.refuse_rotated(ARRAY, ", ".join(names))
    grid = Grid(on_x.values.astype(float), on_y.values.astype(float), names,
                GLOBAL if lonlat else ({}, {}))
    values = real_array(ARRAY, array.transpose(on_y.name, on_x.name).values).reshape(-1, 1)
    values = without(values, missing)
    tell_of_classes(ARRAY, values.reshape(1, len(grid.y), len(grid.x), 1))
    is_there = np.isfinite(values[:, 0])
    is_exact = noise_sd is None or (not _is_auto(noise_sd) and not np.any(noise_sd))
    noise = None if is_exact or _is_auto(noise_sd) else noise_of(noise_sd, int(is_there.sum()))
    found = clean(ARRAY, Measurements(
        grid.places.reshape(-1, 2)[is_there], values[is_there], (str(array.name),),
        noise, units_of(array)), missing, lonlat)
    if is_there.all() and is_exact:
        raise UserError(f"{ARRAY} {describe(array)} has no gap: what is to be filled is NaN")
    return Labelled(found, lonlat, like=array, grid=grid)


def _is_geographic(array: DataArray) -> bool:
    """Whether the reference system that rioxarray gave it is one of degrees."""
    text = str(array.coords["spatial_ref"].attrs.get("crs_wkt", "")) if (
        "spatial_ref" in array.coords) else ""
    return text.startswith(("GEOGCS", "GEOGCRS"))
