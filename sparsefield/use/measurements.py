"""A person's own measurements, from a picture, a table or an array, in the units that they have."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsefield.data.files import refuse_foreign, require_file
from sparsefield.data.missing import parse_missing
from sparsefield.errors import UserError
from sparsefield.use.globe import WIDEST, refuse_exchanged
from sparsefield.use.pictures import measure_picture
from sparsefield.use.points import Measurements, Table, clean, noise_of

log = logging.getLogger("sparsefield")

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif",
            ".avif", ".jp2", ".ppm", ".pgm", ".npy")
GIVE = "give a picture, a .csv, .parquet, .nc or .npz, or - for CSV on standard input"


def read_measurements(
    source: str,
    *,
    channels: int,
    mask: str | None = None,
    observe: str | None = None,
    extent: Sequence[float] | None = None,
    x: str | None = None,
    y: str | None = None,
    value: Sequence[str] | None = None,
    missing: Sequence[str] | None = None,
    noise_sd: str | None = None,
    lonlat: bool = False,
    seed: int = 0,
) -> Measurements:
    """Measurements of a file, checked and cleaned; what was left out is logged.

    Args:
        source: a picture (also .npy of (H, W) or (H, W, C)); a .csv, .tsv or .parquet with x, y
            and value columns; a NetCDF with such variables of one dimension; an .npz with `coords`
            (M, 2) and `values` (M,) or (M, C); or "-", CSV on standard input.
        channels: 1 or 3 turns pictures grey or coloured.
        mask, observe: of pictures: the points that are known, as a picture (white: known) or a
            rule; else the points that are not transparent.
        extent: x0 x1 y0 y1, default the smallest rectangle around the points; with lonlat x1 may be
            below x0, across the 180th meridian.
        x, y, value: of tables: names of columns, or their numbers from 1.
        missing: numbers or words that mean: not measured. Without it a number that looks like it
            is refused; ("none",) takes all numbers as they are.
        noise_sd: of the noise in the values: a number, in their units; of tables: a column, by its
            name; default one of the name noise_sd. auto: it is to be found. With a number or auto
            none is read.
        lonlat: of points: x and y are degrees of longitude and latitude.
        seed: of rules that draw points.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(source)
    if source != "-":
        _require_input(path)
    number, column = _number_or_column(noise_sd)
    numbers, words = parse_missing(missing)
    if source != "-" and path.suffix.lower() in PICTURES:
        _refuse_of_points(source, extent, (x, y, value), lonlat or column is not None)
        given = measure_picture(path, channels, mask, observe, seed, numbers)
    else:
        if mask or observe:
            raise UserError(f"{source}: --mask and --observe choose pixels of a picture; in a list "
                            "of measurements every point is known")
        found = _read_points(source, x, y, value, [*words, *(missing or [])], column,
                             reads_noise=noise_sd is None or column is not None)
        if found.on_globe and not lonlat:
            _tell_of_globe(source, found, x is not None or y is not None)
        if lonlat and extent is not None and extent[1] < extent[0]:
            extent = (extent[0], extent[1] + WIDEST, *extent[2:])
        given = clean(source, found.coords, found.values, found.names, extent, numbers,
                      found.noise, lonlat)
        given = replace(given, units=found.units)
    if number is None:
        return given
    return replace(given, noise=noise_of(number, len(given.coords)) if number else None)


def _number_or_column(noise_sd: str | None) -> tuple[float | None, str | None]:
    """What is said of noise as a number, or as the name of a column."""
    if noise_sd is None or noise_sd == "auto":
        return None, None
    try:
        return float(noise_sd), None
    except ValueError:
        return None, noise_sd


def _refuse_of_points(
    source: str, extent: Sequence[float] | None, columns: Sequence[object], of_lists: bool
) -> None:
    """Raises UserError for what is said of a picture and is for lists of points alone."""
    if extent is not None:
        raise UserError("--extent is for scattered points: a picture has its pixels")
    if any(column is not None for column in columns):
        raise UserError(f"{source}: --x, --y and --value choose columns of a table, and this "
                        "is a picture")
    if of_lists:
        raise UserError(f"{source}: --lonlat and a column for --noise_sd are for lists of "
                        "points, and this is a picture")


def _read_points(
    source: str, x: str | None, y: str | None, value: Sequence[str] | None,
    missing: Sequence[str], noise: str | None, reads_noise: bool,
) -> Table:
    try:
        if Path(source).suffix.lower() != ".npz":
            from sparsefield.use.tables import read_table  # pandas: pictures need not wait for it

            return read_table(source, x, y, value, missing, noise, reads_noise)
        if any(column is not None for column in (x, y, value, noise)):
            raise UserError(f"{source}: --x, --y, --value and --noise_sd choose columns of a "
                            "table; an .npz has coords, values and, if any, noise_sd")
        return _read_npz(Path(source), reads_noise)
    except PermissionError:
        raise UserError(f"{source}: no permission to read it; chmod +r or choose another") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None


def _tell_of_globe(source: str, found: Table, axes_are_chosen: bool) -> None:
    """Say what names of longitude and latitude allow; raises UserError where they are exchanged."""
    if not axes_are_chosen:
        refuse_exchanged(source, found.coords)
    if np.ptp(found.coords[:, 0]) > WIDEST / 2:
        log.warning("WARNING: %s: longitudes span %.4g degrees of a plane; around the globe they "
                    "may be near to each other: --lonlat", source, np.ptp(found.coords[:, 0]))
        return
    log.info("%s: x and y are longitude and latitude; --lonlat measures distances on the globe",
             source)


def _require_input(path: Path) -> None:
    try:
        require_file(path)
    except UserError as error:
        problem = str(error).removeprefix(f"{path}: ").removesuffix("; check the path")
        problem = problem.replace("no such file", "does not exist")
        raise UserError(f"{path} {problem}: {GIVE}") from None
    refuse_foreign(path, GIVE)


def _read_npz(path: Path, reads_noise: bool) -> Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"coords", "values"} - set(file.files)
            if missing:
                raise UserError(f"{path}: holds no array {' and no '.join(sorted(missing))}; "
                                "coords is (M, 2), values (M,) or (M, C)")
            coords, values = file["coords"], file["values"]
            noise = file["noise_sd"] if reads_noise and "noise_sd" in file.files else None
    except PermissionError:
        raise
    except (ValueError, OSError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile,
            zipfile.LargeZipFile) as error:
        raise UserError(f"{path}: no readable .npz of numbers ({error})") from None
    if values.ndim == 1:
        values = values[:, None]
    numeric = all(np.issubdtype(a.dtype, np.number) and not np.iscomplexobj(a)
                  for a in (coords, values))
    fits = coords.ndim == values.ndim == 2 and coords.shape == (len(values), 2)
    if not numeric or not fits or values.shape[1] == 0:
        raise UserError(f"{path}: coords {coords.shape} {coords.dtype} and values {values.shape} "
                        f"{values.dtype} must be real numbers of shapes (M, 2) and (M,) or (M, C): "
                        "a row for each point")
    if noise is not None and (noise.shape != (len(values),) or noise.dtype.kind not in "uif"):
        raise UserError(f"{path}: noise_sd {noise.shape} {noise.dtype} must be a number for each "
                        f"point: ({len(values)},)")
    return Table(coords.astype(np.float64), values.astype(np.float64), (),
                 None if noise is None else noise.astype(np.float64))
