"""Measurements that carry names: a pandas DataFrame of points, or an xarray DataArray with gaps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from sparsefield.data.files import parse_missing, tell_of_classes, without
from sparsefield.data.netcdf import (
    ENDINGS,
    ZARR,
    Stored,
    axis_of,
    describe,
    find,
    grid_axes,
    is_longitude,
    is_time,
    lazily,
    units_of,
)
from sparsefield.errors import UserError
from sparsefield.use import globe
from sparsefield.use.grids import ARRAY, GLOBAL, LARGEST, Grid, Labelled
from sparsefield.use.points import Measurements, clean, noise_of, real_array
from sparsefield.use.read import Columns, are_degrees, number_or_column, tell_of_globe
from sparsefield.use.times import of_axis, require_frames

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

log = logging.getLogger("sparsefield")

FRAME = "the DataFrame"  # in messages


def read(
    data: Any, x: str | None, y: str | None, value: str | Sequence[str] | None, covariates: Any,
    times: Any, settings: Mapping[str, Any], is_closed_form: bool,
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
    if is_array and data.ndim in (2, 3):
        if covariates is not None:
            raise UserError(f"covariates are for a DataFrame, not for {ARRAY}")
        found = of_array(ARRAY, data, x, y, times, *options)
        if found.is_full and not (_is_auto(options[0]) or np.any(options[0])):
            raise UserError(f"{ARRAY} {describe(data)} has no gap: what is to be filled is NaN")
    else:
        if is_array:
            value = value or str(data.name)
            data = _as_frame(data, value)
        found = _of_frame(data, x, y, value, covariates, times, *options)
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
    covariates: str | Sequence[str] | None, times: Any, noise_sd: Any,
    missing: Sequence[float] | None, lonlat: bool | None,
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
    if times is not None and not isinstance(times, str):
        raise UserError(f"times of {FRAME}: give the name of a column")
    column = noise_sd if isinstance(noise_sd, str) and not _is_auto(noise_sd) else None
    columns = Columns(FRAME, frame)
    found = columns.measurements(x, y, value, column, noise_sd is None or column is not None,
                                 lonlat, covariates, times)
    if noise_sd is not None and not isinstance(noise_sd, str):
        if hasattr(noise_sd, "reindex") and not noise_sd.index.equals(frame.index):
            raise UserError(f"noise_sd and {FRAME} have other indexes: give the name of a column, "
                            "or noise_sd.to_numpy() in the order of the rows")
        found = replace(found, noise=noise_of(noise_sd, len(frame)))
    lonlat = are_degrees(columns.axis_names[1]) if lonlat is None else lonlat
    return Labelled(clean(FRAME, found, missing, lonlat), lonlat, names=columns.axis_names)


def of_array(
    source: str, array: DataArray, x: str | None, y: str | None, time: str | None, noise_sd: Any,
    missing: Sequence[float] | None, lonlat: bool | None,
) -> Labelled:
    """The known cells of an array of two dimensions, or three, one of which is time."""
    if isinstance(noise_sd, str) and not _is_auto(noise_sd):
        raise UserError(f"noise_sd {noise_sd!r}: give a number or auto for {source}")
    marked, on_x, on_y = with_axes(source, array, x, y, time)
    names = str(on_x.name), str(on_y.name)
    if max(on_x.size, on_y.size) > LARGEST:
        raise UserError(f"{source} {describe(array)}: at most {LARGEST} rows and columns can be "
                        "filled; take a part, or coarsen it")
    times = None
    for dim in map(str, set(array.dims) - set(names)):
        if is_time(marked[dim]) and dim not in array.coords:
            raise UserError(f"{source} {describe(array)}: axis {dim} has no values: give it some")
        if not is_time(marked[dim]):
            raise UserError(f"{source} {describe(array)}: {dim} is no time axis; say which is "
                            "one, or take one step of the others with .isel")
        times = of_axis(source, array[dim])
        require_frames(f"{source}: {dim}", array.sizes[dim])
    if lonlat is None:
        system = array.coords["spatial_ref"].attrs if "spatial_ref" in array.coords else {}
        lonlat = is_longitude(on_x) or are_degrees(names[1]) or (  # as rioxarray says it
            str(system.get("crs_wkt", "")).startswith(("GEOGCS", "GEOGCRS")))
    elif lonlat:
        globe.refuse_rotated(source, ", ".join(names))
    grid = Grid(on_x.values.astype(float), on_y.values.astype(float), names,
                GLOBAL if lonlat else ({}, {}))
    values = real_array(source, array.transpose(..., on_y.name, on_x.name).values)
    values = without(values.reshape(-1, len(grid.places.reshape(-1, 2)), 1), missing)
    tell_of_classes(source, values.reshape(-1, len(grid.y), len(grid.x), 1))
    frames, cells = np.nonzero(np.isfinite(values[..., 0]))
    is_exact = noise_sd is None or (not _is_auto(noise_sd) and not np.any(noise_sd))
    noise = None if is_exact or _is_auto(noise_sd) else noise_of(noise_sd, len(frames))
    found = clean(source, Measurements(
        grid.places.reshape(-1, 2)[cells], values[frames, cells], (str(array.name),), noise,
        units_of(array), times=times and times.of(frames)), missing, lonlat)
    return Labelled(found, lonlat, like=array, grid=grid, times=times)


def with_axes(
    source: str, array: DataArray, x: str | None, y: str | None, time: str | None = None
) -> tuple[DataArray, DataArray, DataArray]:
    """An array whose axes are marked as they were chosen, and those of x and y. Raises UserError
    for a name that none has, or as `grid_axes`."""
    chosen = {name: axis for name, axis in ((x, "X"), (y, "Y"), (time, "T")) if name is not None}
    if unknown := set(chosen) - set(array.dims):
        raise UserError(f"{source} {describe(array)} has no dimension {', '.join(unknown)}")
    marked = array.assign_coords({name: array[name].assign_attrs(axis=axis)
                                  for name, axis in chosen.items()})
    return marked, *grid_axes(Path(source), marked.coords.to_dataset())


def read_grid(
    source: str, time: str | None, value: Sequence[str] | None, x: str | None, y: str | None,
    noise_sd: str | None, missing: Sequence[str] | None, lonlat: bool,
) -> Labelled | None:
    """The known cells of a variable of (y, x), or with a time axis of (time, y, x), in a NetCDF
    file or a zarr; None of files of other kinds, and of those that hold lists. Arguments as of
    reconstruct.py.

    Raises:
        UserError: which variable is meant is not clear, none has these axes, or as `of_array`.
    """
    path = Path(source)
    if path.suffix.lower() not in (*ENDINGS, ZARR):
        return None
    with lazily(path) as dataset:
        found = grid_in(path, dataset, time, value, (x, y))
    if found is None:
        return None
    chosen = Stored(path, str(found.name)).part({})
    chosen = chosen.squeeze(set(chosen.dims) - set(found.dims), drop=True)
    numbers, _ = parse_missing(missing)
    number, column = number_or_column(noise_sd)
    if column is not None:
        raise UserError(f"--noise_sd {column}: give a number or auto for {source}")
    found = of_array(source, chosen, x, y, time, number, numbers, lonlat)
    log.info("%s: %s: %s of %s cells are known", source, describe(chosen),
             f"{len(found.given.coords):,}", f"{chosen.size:,}")
    on_x, on_y = (chosen[name].astype(float) for name in found.grid.names)
    if not lonlat and (is_longitude(on_x) or are_degrees(str(on_y.name))):
        tell_of_globe(source, found.given.coords, x is not None)
    return found._replace(grid=Grid.like(source, (on_x, on_y), lonlat))


def grid_in(
    path: Path, dataset: Dataset, time: str | None, value: Sequence[str] | None,
    axes: Sequence[str | None],
) -> DataArray | None:
    """The variable of a file that is meant, without axes of one step; None of one with lists.

    Args:
        time, axes: the names of its axes, x and y, as far as they were given.
    Raises:
        UserError: which is meant is not clear, or it has other axes.
    """
    fields = {str(name): variable for name, variable in dataset.items()
              if variable.dtype.kind in "iuf" and variable.ndim > 1}
    grids = {name: variable for name, variable in fields.items()
             if (variable.ndim > 2 if time else _is_plane(variable, axes))}
    if not grids:
        is_list = any(time in variable.dims for variable in fields.values()) if time else (
            not set(value or ()) & set(fields))
        if is_list or not fields:
            return None
    named = value or list(grids)
    if grids and len(named) != 1:
        raise UserError(f"{path}: which variable? give one with --value, of "
                        f"{', '.join(map(describe, grids.values()))}")
    chosen = find(path, fields, named[0] if named else next(iter(fields)), "--value")
    if time and time not in chosen.dims:
        raise UserError(f"{path}: {describe(chosen)} has no axis {time}: give the name of its "
                        "time axis with --time; what has none needs no --time")
    chosen = chosen.squeeze([dim for dim, count in chosen.sizes.items() if count == 1
                             and axis_of(chosen[dim]) is None and dim != time], drop=True)
    if chosen.ndim != (3 if time else 2):
        raise UserError(f"{path}: {describe(chosen)}: a grid has the axes y and x, with --time "
                        "also that of time; choose one step of the others first")
    return chosen


def _is_plane(variable: DataArray, chosen: Sequence[str | None]) -> bool:
    """Whether it has two axes, x and y by the file or as they were chosen, but for single steps."""
    axes = [dim for dim, count in variable.sizes.items() if count > 1]
    return len(axes) == 2 and all(dim in chosen or axis_of(variable[dim]) for dim in axes)
