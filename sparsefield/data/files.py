"""Checks of input: which files can be read, numbers that may mean something else."""

from __future__ import annotations

import logging
import os
import re
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")

# Endings of files that nothing here reads: what they are, and the way out.
_FOREIGN = {
    ".xlsx .xls .xlsm .ods": "a spreadsheet, which is not read here; save the sheet as CSV",
    ".heic .heif": "an HEIC picture, which is not read here; convert it to PNG or JPEG",
    ".dng .cr2 .cr3 .nef .arw": "a camera's raw file; develop it to TIFF or PNG",
    ".h5 .hdf5 .hdf .zarr .grib .grib2 .grb": "HDF5, Zarr or GRIB; save its arrays as .npz or .nc",
    ".shp .gpkg .geojson .kml .json .xml": "no table of rows and columns; export its points as CSV",
    ".mat .rds .rdata .feather": "another program's own format; export it as CSV or .npz",
    ".pkl .pickle .pt .pth .joblib .safetensors":
        "a file of Python objects or weights; save its arrays as .npz",
    ".zip .tar .tgz .7z .rar": "an archive; unpack it and name the file inside",
}
# How files begin that are no text, whatever their names say.
_BEGINNINGS = {
    b"PK\x03\x04": "an archive or a spreadsheet", b"\x89HDF": "NetCDF or HDF5", b"CDF": "NetCDF",
    b"PAR1": "Parquet (name it .parquet)", b"\x93NUMPY": "an array (name it .npy)",
    b"\x89PNG": "a PNG picture (name it .png)", b"\xff\xd8\xff": "a JPEG picture (name it .jpg)",
    b"GRIB": "GRIB",
}
# What readers raise on files that are broken or not what their name says.
BROKEN = (OSError, ValueError, TypeError, EOFError, LookupError, OverflowError, RuntimeError,
          MemoryError, SyntaxError, ImportError, tokenize.TokenError, struct.error,
          zipfile.BadZipFile, zlib.error, tarfile.TarError)


def one_line(error: BaseException) -> str:
    """What it says, or its name."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def are_one(path: str, other: str) -> bool:
    """Whether two paths, however they are spelled, lead to one file or folder that is there."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def require_file(path: Path) -> None:
    """Raises UserError unless it is a regular file, since a pipe or device would be waited for,
    that may be read."""
    try:
        if path.is_file():
            path.open("rb").close()
            return
        what = ("is a folder" if path.is_dir() else
                "is a pipe or a device, not a file" if path.exists() else "no such file")
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    raise UserError(f"{path}: {what}; check the path")


def refuse_foreign(path: Path, instead: str) -> None:
    """Raises UserError for a file of a kind that nothing here reads."""
    for endings, kind in _FOREIGN.items():
        if path.suffix.lower() in endings.split():
            raise UserError(f"{path}: {kind} ({instead})")


def kind_by_beginning(content: bytes) -> str | None:
    """What a file is, in words, by how it begins; None if nothing is known of it."""
    return next((kind for start, kind in _BEGINNINGS.items() if content.startswith(start)), None)


# --- not measured ---------------------------------------------------------------------------------

# The ends of integers. Numbers of nines (-9999, -99.9) and beyond HUGE (1e20, 1e30, 9.97e36) too.
CODES = {-32768, -32767, 32767, -2147483648, 2147483647, 65535, 4294967295}
HUGE = 1e15


def lone_extreme(values: np.ndarray, is_axis: bool = False) -> float | None:
    """The smallest or largest of values (N,) where it is a code that may mean: not measured; None
    if neither is. NaN is left out.

    A code counts farther from all others than they spread; negative nines (-999) also where
    nothing else is negative or where they repeat, unless values are coordinates (`is_axis`), which
    repeat: on a grid -99 is a longitude.
    """
    values = values[np.isfinite(values)]
    for extreme in (values.min(initial=np.inf), values.max(initial=-np.inf)):
        others = values[values != extreme]
        if len(others) == 0:
            return None
        is_far = np.abs(others - extreme).min() > np.ptp(others)
        repeats = len(values) - len(others) > 1 and not is_axis
        if (is_code(extreme) and is_far) or (
            extreme < 0 and _is_nines(extreme) and (repeats or others.min() >= 0)
        ):
            return float(extreme)
    return None


def is_code(value: float) -> bool:
    """Whether programs use this number for: no value."""
    return abs(value) >= HUGE or value in CODES or _is_nines(value)


def _is_nines(value: float) -> bool:
    return bool(re.fullmatch(r"-99(\.9+)?|-?999+(\.9+)?", f"{value:.10g}"))


def refuse_lone_extreme(where: str, values: np.ndarray, is_axis: bool = False) -> None:
    """Raises UserError where the user must say whether a value was measured; see `lone_extreme`."""
    found = np.unique(values[np.isfinite(values)])
    if len(found) == 1 and is_code(found[0]) and not 0 <= found[0] < HUGE:
        raise UserError(f"{where}: all are {found[0]:.10g}, which means: not measured; if not, "
                        "give --missing none (in Python missing=[])")
    extreme = lone_extreme(values, is_axis)
    if extreme is None:
        return
    times, others, text = (values == extreme).sum(), found[found != extreme], f"{extreme:.10g}"
    raise UserError(
        f"{where}: {text} stands there {times} time{'s' if times > 1 else ''}, all others are "
        f"{others.min():.6g} to {others.max():.6g}; if it means: not measured, give --missing "
        f"{text}, if it was measured, --missing none (in Python missing=[{text}] or [])")


def without(numbers: np.ndarray, missing: Sequence[float] | None) -> np.ndarray:
    """NaN in place of the numbers that mean: not measured (equal as float32 is equal enough)."""
    if not missing:
        return numbers
    with np.errstate(over="ignore"):
        codes = np.asarray(missing, np.float64)
        is_missing = np.isin(numbers, codes) | np.isin(numbers, codes.astype(np.float32))
    return np.where(is_missing, np.nan, numbers)


def parse_missing(words: Sequence[str] | None) -> tuple[list[float] | None, list[str]]:
    """Numbers and words that mean: no value. Numbers are None where nothing was given."""
    if not words:
        return None, []
    numbers, others = [], []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            others.append(word)
    return numbers, [] if [word.lower() for word in others] == ["none"] else others


# --- numbers whose mean says little ---------------------------------------------------------------

_DIRECTION = re.compile(r"direction|azimuth|bearing|heading|(?<![a-z])(w?dir|drct|aspect)(?![a-z])")
_DEGREES = re.compile(r"(deg|degrees?|°)([ _](true|north|from[ _]north))?")
_CLASS = re.compile(r"(?<![a-z])(qc|flags?|quality|class(es)?|categor(y|ies)|land_?(cover|use)|"
                    r"types?|labels?|codes?|clusters?)(?![a-z])")
MOST_CLASSES = 64


def tell_of_no_quantity(
    where: str, name: str, units: str | None, values: np.ndarray, is_class: bool = False
) -> None:
    """Log where a mean of values says little: of directions, by their name or units, on both sides
    of north (of south, where they go from -180 to 180), and of whole numbers that are flags or
    classes, by their name or because the file says so (`is_class`)."""
    low, high = np.nanmin(values), np.nanmax(values)
    if (_DIRECTION.search(name.lower()) or _DEGREES.fullmatch((units or "").strip().lower())) and (
        any(least <= low < least + 90 and least + 270 < high <= least + 360 for least in (0, -180))
    ):
        log.warning("WARNING: %s looks like a direction, and 359 and 1 degrees are far apart here: "
                    "give its sine and cosine (or u and v) instead", where)
    if (is_class or _CLASS.search(name.lower())) and np.nanmax(np.abs(values % 1)) == 0:
        log.warning("WARNING: %s looks like flags or classes, and they are taken as quantities, "
                    "with means: choose other values, or give 0 and 1 for each class; leave out "
                    "what is flagged as bad", where)


def tell_of_classes(where: str, fields: np.ndarray) -> None:
    """Log where fields look like maps of classes; see `classes`."""
    if count := classes(fields):
        log.warning("WARNING: %s: %d values or colours, in patches: if they are classes, means of "
                    "them say nothing: give 0 and 1 for each class instead", where, count)


def classes(fields: np.ndarray) -> int:
    """How many values or colours fields (N, H, W, C) have if they look like maps of classes: few,
    whole, each alike from point to point, beside others than the next in order (0 beside 3); 0 if
    they do not."""
    if fields.dtype == np.uint8 and fields.shape[3] == 3:
        fields = fields @ np.array([[65536.0], [256.0], [1.0]])
    for values in np.moveaxis(fields, 3, 0):
        labels = np.unique(values[np.isfinite(values)])
        if not 3 <= len(labels) <= MOST_CLASSES or (labels % 1).any():
            continue
        alike, jumps = [], []
        for first, second in ((values[:, 1:], values[:, :-1]), (values[..., 1:], values[..., :-1])):
            pairs = np.stack([first, second])[:, np.isfinite(first) & np.isfinite(second)]
            one, other = np.searchsorted(labels, pairs)
            same, total = (np.bincount(which, minlength=len(labels))
                           for which in (one[one == other], one))
            alike.append((same / np.maximum(total, 1)).mean())
            jumps.append((np.abs(one - other) > 1).sum() / max((one != other).sum(), 1))
        if min(alike) > 0.5 and max(jumps) > 0.2:
            return len(labels)
    return 0
