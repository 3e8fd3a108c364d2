"""A person's own measurements, from a picture, a table or an array, in the units that they have."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsefield.data.files import parse_missing, refuse_foreign, refuse_lone_extreme, require_file
from sparsefield.data.patterns import parse_pattern
from sparsefield.data.pictures import read_mask, read_picture
from sparsefield.errors import UserError
from sparsefield.use.globe import WIDEST, refuse_exchanged
from sparsefield.use.points import (
    LARGEST,
    MOST_POINTS,
    Measurements,
    Table,
    clean,
    noise_of,
    real_array,
)

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
    decimal: str = ".",
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
        extent: x0 x1 y0 y1 of the field, default the smallest rectangle around the points; with
            lonlat x1 may be below x0, across the 180th meridian.
        x, y, value: of tables: names of columns, or their numbers from 1.
        missing: numbers or words that mean: not measured. Without it a number that looks like it
            is refused; ("none",) takes all numbers as they are.
        noise_sd: of the noise in the values: a number, in their units; of tables: a column, by its
            name; default one of the name noise_sd. auto: it is to be found. With a number or auto
            none is read.
        decimal: of tables: what stands before decimals, "." or ",".
        lonlat: of points: x and y are degrees of longitude and latitude.
        seed: of rules that draw points.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(source)
    if source != "-":
        if not path.exists():
            raise UserError(f"{path} does not exist: {GIVE}")
        require_file(path)
        refuse_foreign(path, GIVE)
    number, column = _number_or_column(noise_sd)
    numbers, words = parse_missing(missing)
    if source != "-" and path.suffix.lower() in PICTURES:
        if extent is not None:
            raise UserError("--extent is for scattered points: a picture has its pixels")
        if lonlat or any(given is not None for given in (x, y, value, column)):
            raise UserError(f"{source}: --x, --y, --value, --lonlat and a column for --noise_sd "
                            "are for lists of points, and this is a picture")
        given = measure_picture(path, channels, mask, observe, seed, numbers)
    else:
        if mask or observe:
            raise UserError(f"{source}: --mask and --observe choose pixels of a picture; in a list "
                            "of measurements every point is known")
        found = _read_points(source, x, y, value, [*words, *(missing or [])], column,
                             noise_sd is None or column is not None, decimal)
        if found.on_globe and not lonlat:
            _tell_of_globe(source, found.coords, x is not None or y is not None)
        if lonlat and extent is not None and extent[1] < extent[0]:
            extent = (extent[0], extent[1] + WIDEST, *extent[2:])
        given = clean(source, found.coords, found.values, found.names, extent, numbers,
                      found.noise, lonlat, found.units)
    if number is None:
        return given
    return replace(given, noise=noise_of(number, len(given.coords)) if number else None)


def _number_or_column(noise_sd: str | None) -> tuple[float | None, str | None]:
    """The flag as a number, or as the name of a column."""
    if noise_sd is None or noise_sd == "auto":
        return None, None
    try:
        return float(noise_sd), None
    except ValueError:
        return None, noise_sd


def _read_points(
    source: str, x: str | None, y: str | None, value: Sequence[str] | None,
    missing: Sequence[str], noise: str | None, reads_noise: bool, decimal: str,
) -> Table:
    try:
        if Path(source).suffix.lower() != ".npz":
            from sparsefield.use.tables import read_table  # pandas: pictures need not wait for it

            return read_table(source, x, y, value, missing, noise, reads_noise, decimal)
        if any(column is not None for column in (x, y, value, noise)):
            raise UserError(f"{source}: --x, --y, --value and --noise_sd choose columns of a "
                            "table; an .npz has coords, values and, if any, noise_sd")
        return _read_npz(Path(source), reads_noise)
    except PermissionError:
        raise UserError(f"{source}: no permission to read it; chmod +r or choose another") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None


def _tell_of_globe(source: str, coords: np.ndarray, axes_are_chosen: bool) -> None:
    """Say what names of longitude and latitude allow; raises UserError where they are exchanged."""
    if not axes_are_chosen:
        refuse_exchanged(source, coords)
    if np.ptp(coords[:, 0]) > WIDEST / 2:
        log.warning("WARNING: %s: longitudes span %.4g degrees of a plane; around the globe they "
                    "may be near to each other: --lonlat", source, np.ptp(coords[:, 0]))
    else:
        log.info("%s: x and y are longitude and latitude; --lonlat measures distances on the globe",
                 source)


def _read_npz(path: Path, reads_noise: bool) -> Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("coords", "values", "noise_sd")
                      if name in file.files}
    except PermissionError:
        raise
    except (ValueError, OSError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile,
            zipfile.LargeZipFile) as error:
        raise UserError(f"{path}: no readable .npz of numbers ({error})") from None
    if lacking := {"coords", "values"} - set(arrays):
        raise UserError(f"{path}: holds no array {' and no '.join(sorted(lacking))}; coords is "
                        "(M, 2), values (M,) or (M, C)")
    arrays = {name: real_array(f"{path}: {name}", array) for name, array in arrays.items()}
    coords, values = arrays["coords"], arrays["values"]
    noise = arrays.get("noise_sd") if reads_noise else None
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or coords.shape != (len(values), 2) or values.shape[1] == 0:
        raise UserError(f"{path}: coords {coords.shape} and values {values.shape} must be of "
                        "shapes (M, 2) and (M,) or (M, C): a row for each point")
    if noise is not None and noise.shape != (len(values),):
        raise UserError(f"{path}: noise_sd {noise.shape} must be a number for each point: "
                        f"({len(values)},)")
    return Table(coords, values, (), noise)


NOTHING_TOLD = ("nothing says which pixels are known: give --mask mask.png (white: known), a "
                "picture with transparent pixels, or --observe random:0.2 to try")


def measure_picture(
    path: Path, channels: int, mask: str | None, observe: str | None, seed: int,
    missing: Sequence[float] | None = None,
) -> Measurements:
    """The known pixels of a picture.

    Pixels that are transparent, NaN, or of a value in `missing` are never known; of the others,
    those that `mask` shows in white or `observe` chooses, or all.

    Args:
        channels: 1 or 3 turns pictures of 8 bits a channel grey or coloured. Grey pictures of
            more bits stay one channel, of the numbers in the file.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    if mask and observe:
        raise UserError("--mask and --observe both say what is known: give one of them")
    picture = read_picture(path)
    if picture.channels == 3 and channels not in (1, 3):
        raise UserError(f"{path}: the model's fields have {channels} channels and a picture has 1 "
                        "or 3: give an .npz with coords and values")
    if picture.is_8_bit or picture.channels > channels:
        picture = picture.with_channels(min(channels, 3) if channels in (1, 3) else 1)
    chosen = None
    if mask:
        chosen = read_mask(Path(mask))
        if chosen.shape != picture.shape:
            raise UserError("--mask {}: is {} x {} pixels, {} is {} x {}: make them equal".format(
                mask, *chosen.shape[::-1], path, *picture.shape[::-1]))
    elif observe and max(picture.shape) > LARGEST:
        factor = -(-max(picture.shape) // LARGEST)
        picture = picture.reduced(factor)
        log.info("%s is large: reduced %d times to %d x %d", path, factor, *picture.shape[::-1])
    there = np.ones(picture.shape, bool) if picture.known is None else picture.known
    if missing:
        there = there & ~np.isin(picture.values, missing).all(axis=2)
    elif missing is None and picture.white is None:
        refuse_lone_extreme(str(path), picture.values[there].reshape(-1))
    points = _points(path, there, chosen, mask, observe, seed)
    rows, columns = np.divmod(points, picture.shape[1])
    height, width = picture.shape
    return Measurements(
        np.stack([columns + 0.5, rows + 0.5], axis=1),
        picture.values[rows, columns].astype(np.float64),
        (0.0, float(width), 0.0, float(height)),
        (height, width),
        ("red", "green", "blue") if picture.channels == 3 else ("grey",),
        downward=True,
        value_range=None if picture.white is None else (0.0, float(picture.white)),
    )


def _points(
    path: Path, there: np.ndarray, chosen: np.ndarray | None, mask: str | None,
    observe: str | None, seed: int,
) -> np.ndarray:
    """(M,) int64: the pixels that are known."""
    if not there.any():
        raise UserError(f"{path}: no pixel has a value: all are transparent or missing")
    if observe and there.sum() == 1:
        raise UserError(f"{path}: a single pixel has a value, and --observe {observe} hides some: "
                        "give a larger picture")
    if observe:
        return parse_pattern(observe).draw(there, np.random.default_rng(seed))
    if chosen is None and there.all():
        raise UserError(f"{path}: {NOTHING_TOLD}")
    known = there if chosen is None else there & chosen
    points = np.flatnonzero(known)
    if len(points) == 0:
        raise UserError(f"{mask}: no pixel is known; paint known pixels white in the mask")
    if len(points) > MOST_POINTS:
        every = "every pixel is known, nothing is to be reconstructed; and " if known.all() else ""
        raise UserError(f"{path}: {every}{len(points):,} known pixels, at most {MOST_POINTS:,} can "
                        "be used: make the picture smaller, or fewer pixels white in the mask")
    return points
