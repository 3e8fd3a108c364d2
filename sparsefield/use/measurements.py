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
from sparsefield.use.globe import refuse_exchanged
from sparsefield.use.pictures import measure_picture
from sparsefield.use.points import Measurements, clean
from sparsefield.use.tables import Table, read_table

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
    noise: str | None = None,
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
        extent: x0 x1 y0 y1, default the smallest rectangle around the points.
        x, y, value: of tables: names of columns, or their numbers from 1.
        missing: numbers or words that mean: not measured. Without it a number that looks like it
            is refused; ("none",) takes all numbers as they are.
        noise: of tables: the column of the noise's sd; default one of the name noise_sd.
        lonlat: of points: x and y are degrees of longitude and latitude.
        seed: of rules that draw points.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(source)
    if source != "-":
        _require_input(path)
    numbers, words = parse_missing(missing)
    suffix = path.suffix.lower()
    if source != "-" and suffix in PICTURES:
        if extent is not None:
            raise UserError("--extent is for scattered points: a picture has its pixels")
        if x is not None or y is not None or value is not None:
            raise UserError(f"{source}: --x, --y and --value choose columns of a table, and this "
                            "is a picture")
        if lonlat or noise is not None:
            raise UserError(f"{source}: --lonlat and a column for --noise_sd are for lists of "
                            "points, and this is a picture")
        return measure_picture(path, channels, mask, observe, seed, numbers)
    if mask or observe:
        raise UserError(f"{source}: --mask and --observe choose pixels of a picture; in a list of "
                        "measurements every point is known")
    try:
        if suffix == ".npz":
            if any(column is not None for column in (x, y, value, noise)):
                raise UserError(f"{source}: --x, --y, --value and --noise_sd choose columns of a "
                                "table; an .npz has coords, values and, if any, noise_sd")
            found = _read_npz(path)
        else:
            found = read_table(source, x, y, value, [*words, *(missing or [])], noise)
    except PermissionError:
        raise UserError(f"{source}: no permission to read it; chmod +r or choose another") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None
    if found.on_globe and not lonlat:
        if x is None and y is None:
            refuse_exchanged(source, found.coords)
        log.info("%s: x and y are longitude and latitude; --lonlat measures distances on the globe",
                 source)
    cleaned = clean(source, found.coords, found.values, found.names, extent, numbers, found.noise,
                    lonlat)
    return replace(cleaned, units=found.units)


def _require_input(path: Path) -> None:
    try:
        require_file(path)
    except UserError as error:
        problem = str(error).removeprefix(f"{path}: ").removesuffix("; check the path")
        problem = problem.replace("no such file", "does not exist")
        raise UserError(f"{path} {problem}: {GIVE}") from None
    refuse_foreign(path, GIVE)


def _read_npz(path: Path) -> Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"coords", "values"} - set(file.files)
            if missing:
                raise UserError(f"{path}: holds no array {' and no '.join(sorted(missing))}; "
                                "coords is (M, 2), values (M,) or (M, C)")
            coords, values = file["coords"], file["values"]
            noise = file["noise_sd"] if "noise_sd" in file.files else None
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
