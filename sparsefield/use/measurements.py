"""A person's own measurements, from a picture, a table or an .npz, in the units that they have."""

from __future__ import annotations

import logging
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sparsefield.data.images import read_image
from sparsefield.data.patterns import parse_pattern
from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
LARGEST = 512  # rows or columns of a field that is asked for
MOST_POINTS = 100_000
X_NAMES = ("x", "lon", "longitude", "easting")
Y_NAMES = ("y", "lat", "latitude", "northing")


@dataclass(frozen=True)
class Measurements:
    """Scattered values, and the rectangle that they are about.

    Attributes:
        coords: (M, 2) float64, x and y. values: (M, C) float64.
        extent: x0, x1, y0, y1 of the rectangle.
        shape: (H, W) of the grid that they come from, None for scattered points.
        names: of the C channels. downward: whether y grows downward, as in pictures.
    """

    coords: np.ndarray
    values: np.ndarray
    extent: tuple[float, float, float, float]
    shape: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    downward: bool = False

    @property
    def is_picture(self) -> bool:
        return self.shape is not None


def read_measurements(
    source: str,
    *,
    channels: int,
    mask: str | None = None,
    observe: str | None = None,
    extent: Sequence[float] | None = None,
    seed: int = 0,
) -> Measurements:
    """Measurements of a file, checked and cleaned; what was left out is logged.

    Args:
        source: a picture; a .csv, .tsv or .parquet with x, y and value columns; an .npz with
            `coords` (M, 2) and `values` (M,) or (M, C); or "-", CSV on standard input.
        channels: 1 or 3 turns pictures grey or coloured.
        mask, observe: of pictures: the points that are known, as a picture (white: known) or a
            rule; else the points that are not transparent.
        extent: x0 x1 y0 y1, default the smallest rectangle around the points.
        seed: of rules that draw points.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(source)
    if source != "-" and not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{source} {what}: give a picture, a .csv, .parquet or .npz, or - for CSV "
                        "on standard input")
    if path.suffix.lower() in PICTURES:
        if extent is not None:
            raise UserError("--extent is for scattered points: a picture has its pixels")
        return _read_picture(path, channels, mask, observe, seed)
    if mask or observe:
        raise UserError(f"{source}: --mask and --observe choose pixels of a picture; in a list of "
                        "measurements every point is known")
    try:
        found = _read_npz(path) if path.suffix.lower() == ".npz" else _read_table(source)
    except PermissionError:
        raise UserError(f"{source}: no permission to read it") from None
    return _clean(source, *found, extent)


# --- pictures -------------------------------------------------------------------------------------


def _read_picture(
    path: Path, channels: int, mask: str | None, observe: str | None, seed: int
) -> Measurements:
    if mask and observe:
        raise UserError("--mask and --observe both say what is known: give one of them")
    if channels not in (1, 3):
        raise UserError(f"{path}: the model's fields have {channels} channels and a picture has 1 "
                        "or 3: give an .npz with coords and values")
    picture = read_image(path).convert("L" if channels == 1 else "RGB")
    known = None
    if mask:
        known = read_image(Path(mask)).convert("L")
        if known.size != picture.size:
            raise UserError("--mask {}: is {} x {} pixels, {} is {} x {}: make them equal".format(
                mask, *known.size, path, *picture.size))
        known = np.asarray(known) >= 128
    elif not observe:
        known = _opaque(path)
        if known is None:
            raise UserError(f"{path}: nothing says which pixels are known: give --mask mask.png "
                            "(white: known), a picture with transparent pixels, or --observe "
                            "random:0.2 to try")
    values = np.asarray(picture, dtype=np.float64).reshape(picture.height, picture.width, channels)
    if max(picture.size) > LARGEST and observe:
        factor = -(-max(picture.size) // LARGEST)
        picture = picture.reduce(factor)
        log.info("%s is large: reduced %d times to %d x %d", path, factor, *picture.size)
        values = np.asarray(picture, dtype=np.float64).reshape(*picture.size[::-1], channels)
    height, width, _ = values.shape
    if observe:
        everywhere = np.ones((height, width), dtype=bool)
        points = parse_pattern(observe).draw(everywhere, np.random.default_rng(seed))
    else:
        points = np.flatnonzero(known)
    if len(points) == 0:
        raise UserError(f"{mask or path}: no pixel is known; paint known pixels white in the mask")
    if len(points) > MOST_POINTS:
        raise UserError(f"{path}: {len(points):,} known pixels, at most {MOST_POINTS:,} can be "
                        "used: make the picture smaller")
    rows, columns = np.divmod(points, width)
    return Measurements(
        np.stack([columns + 0.5, rows + 0.5], axis=1),
        values[rows, columns],
        (0.0, float(width), 0.0, float(height)),
        (height, width),
        ("grey",) if channels == 1 else ("red", "green", "blue"),
        downward=True,
    )


def _opaque(path: Path) -> np.ndarray | None:
    """(H, W) bool of the pixels that are not transparent; None if none is."""
    with Image.open(path) as image:  # `read_image` has read it whole, so it is sound
        if not image.has_transparency_data:
            return None
        known = np.asarray(image.convert("RGBA"))[..., 3] >= 128
    return None if known.all() else known


# --- lists of points ------------------------------------------------------------------------------


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"coords", "values"} - set(file.files)
            if missing:
                raise UserError(f"{path}: holds no array {' and no '.join(sorted(missing))}; "
                                "coords is (M, 2), values (M,) or (M, C)")
            coords, values = file["coords"], file["values"]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path}: no readable .npz of numbers ({error})") from None
    if values.ndim == 1:
        values = values[:, None]
    numeric = all(np.issubdtype(a.dtype, np.number) and not np.iscomplexobj(a)
                  for a in (coords, values))
    fits = coords.ndim == values.ndim == 2 and coords.shape == (len(values), 2)
    if not numeric or not fits or values.shape[1] == 0:
        raise UserError(f"{path}: coords {coords.shape} and values {values.shape} must be numbers "
                        "of shapes (M, 2) and (M,) or (M, C)")
    return coords.astype(np.float64), values.astype(np.float64), ()


def _read_table(source: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    import pandas

    try:
        if source.lower().endswith((".parquet", ".pq")):
            table = pandas.read_parquet(source)
        else:
            table = pandas.read_csv(sys.stdin if source == "-" else source, header=None, sep=None,
                                    engine="python", comment="#", skip_blank_lines=True)
            table = _with_header(table)
    except ImportError:
        raise UserError(f"{source}: Parquet needs pyarrow: pip install pyarrow, or give a CSV"
                        ) from None
    except PermissionError:
        raise
    except Exception as error:  # pandas and pyarrow raise a great many kinds for a broken file
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: no readable table of x,y,value rows ({reason})") from None
    x, y = _column(table, X_NAMES, 0), _column(table, Y_NAMES, 1)
    others = [name for name in table.columns if name not in (x, y)]
    if x == y or not others:
        raise UserError(f"{source}: {len(table.columns)} column(s); give x, y and one or more "
                        "values in every row")
    numbers = table[[x, y, *others]].apply(pandas.to_numeric, errors="coerce")
    words = table[[x, y, *others]].notna() & numbers.isna()
    if words.to_numpy().any():
        row = int(words.any(axis=1).to_numpy().argmax())
        column = next(name for name in words.columns if words[name].iloc[row])
        raise UserError(f"{source}: {table[column].iloc[row]!r} in column {column!r}, measurement "
                        f"{row + 1}, is no number")
    array = numbers.to_numpy(dtype=np.float64)
    return array[:, :2], array[:, 2:], tuple(map(str, others))


def _with_header(table):
    """The first row as column names, if a word is in it."""
    import pandas

    first = table.iloc[0]
    if pandas.to_numeric(first, errors="coerce").isna()[first.notna()].any():
        table = table.iloc[1:].reset_index(drop=True)
        table.columns = [str(name).strip() for name in first]
    else:
        table.columns = ["x", "y", *(f"value {c}" for c in range(1, table.shape[1] - 1))][
            :table.shape[1]]
    return table


def _column(table, names: Sequence[str], otherwise: int) -> str:
    for column in table.columns:
        if str(column).lower() in names:
            return column
    return table.columns[min(otherwise, len(table.columns) - 1)]


def _clean(
    source: str,
    coords: np.ndarray,
    values: np.ndarray,
    names: tuple[str, ...],
    extent: Sequence[float] | None,
) -> Measurements:
    whole = np.isfinite(coords).all(axis=1) & np.isfinite(values).all(axis=1)
    if not whole.all():
        log.info("%d of %d measurements have a missing or infinite number: left out",
                 (~whole).sum(), len(whole))
    coords, values = coords[whole], values[whole]
    if len(coords) == 0:
        raise UserError(f"{source}: holds no measurement")
    if extent is None:
        extent = _bounds(coords)
    x0, x1, y0, y1 = extent
    if not (np.isfinite(extent).all() and x0 < x1 and y0 < y1):
        raise UserError(f"--extent {x0:g} {x1:g} {y0:g} {y1:g}: give x0 x1 y0 y1 with x0 < x1 and "
                        "y0 < y1")
    inside = ((coords >= (x0, y0)) & (coords <= (x1, y1))).all(axis=1)
    if not inside.any():
        raise UserError(f"{source}: all points lie outside --extent {x0:g} {x1:g} {y0:g} {y1:g}")
    if not inside.all():
        log.info("%d of %d points lie outside the extent: left out", (~inside).sum(), len(inside))
    found = Measurements(coords[inside], values[inside], (x0, x1, y0, y1), names=names)
    found = average_duplicates(found)
    if len(found.coords) > MOST_POINTS:
        raise UserError(f"{source}: {len(found.coords):,} points, at most {MOST_POINTS:,} can be "
                        "used: average neighbours, or cut the region with --extent")
    return found


def _bounds(coords: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest rectangle around points; of no width or height, as wide as the other side."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    sides = np.where(high > low, high - low, 0.0)
    grow = np.where(sides > 0, 0.0, max(sides.max(), 0.0) or 1.0) / 2
    low, high = low - grow, high + grow
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def average_duplicates(given: Measurements) -> Measurements:
    """Points closer than a millionth of the longer side become one, with the mean value."""
    x0, x1, y0, y1 = given.extent
    cell = max(x1 - x0, y1 - y0) * 1e-6
    keys = np.round((given.coords - (x0, y0)) / cell).astype(np.int64)
    _, first, which, count = np.unique(
        keys, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(keys):
        return given
    which = which.reshape(-1)
    values = np.stack([np.bincount(which, column) / count for column in given.values.T], axis=1)
    log.info("%d of %d measurements share a place with another: averaged to %d points",
             int(count[count > 1].sum()), len(keys), len(first))
    return replace(given, coords=given.coords[first], values=values)
