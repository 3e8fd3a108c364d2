"""Data sets of arrays: (N, H, W, C) or (N, H, W), uint8 or float, NaN where no point exists."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from sparsefield.data.files import lone_extreme, refuse_foreign, require_file
from sparsefield.data.scale import Data, Scale, given_range, pixel_scale, wide_enough
from sparsefield.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
HELD_OUT = 0.05  # share of one array that becomes validation, and again test
MAPPED_BYTES = 2**28  # a larger .npy stays on disk and is mapped into memory
CHUNK_BYTES = 2**25  # how much of an array is surveyed at a time
SEARCHED = 2**22  # how many values, of fields spread over an array, are searched for -9999
# What numpy and zipfile raise on files that are broken or not what their name says.
_BROKEN = (
    OSError, ValueError, EOFError, LookupError, RuntimeError, MemoryError, SyntaxError,
    tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)


@dataclass(frozen=True)
class Part:
    """Fields `first` to `last` of an array, and where it came from."""

    source: str
    array: np.ndarray
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def fields(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, H, W, C), counted from `first`."""
        rows = np.asarray(self.array[self.first + start:min(self.first + stop, self.last)])
        return rows if rows.ndim == 4 else rows[..., None]

    def __getstate__(self) -> dict[str, object]:
        """A mapped array goes to a worker process as its path, not as its content."""
        mapped = isinstance(self.array, np.memmap)
        return self.__dict__ | ({"array": Path(self.array.filename)} if mapped else {})

    def __setstate__(self, state: dict[str, object]) -> None:
        if isinstance(state["array"], Path):
            state["array"] = np.load(state["array"], mmap_mode="r", allow_pickle=False)
        self.__dict__.update(state)


class ArraySplit:
    """Fields of an array, decoded one at a time; see `scale.Split`."""

    def __init__(self, part: Part, scale: Scale, *, is_symmetric: bool, has_gaps: bool):
        self.part, self.scale = part, scale
        self.is_symmetric, self.has_gaps = is_symmetric, has_gaps

    def __len__(self) -> int:
        return len(self.part)

    def example(self, index: int) -> np.ndarray:
        inside = self.scale.to_inside(self.part.fields(index, index + 1)[0])
        if self.has_gaps:
            inside[np.isnan(inside).any(axis=-1)] = np.nan
        return inside

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        return self.example(index)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        return None


def open_array(
    path: Path, *, val: Path | None = None, test: Path | None = None,
    value_range: Sequence[float] | None = None, units: str | None = None,
) -> Data:
    """The fields of a file, in the order of the file: 90 % training, 5 % validation, 5 % test.

    Blocks rather than a shuffle, because neighbours in a file often show the same thing (crops of
    one picture, days of one season), and a neighbour in training would make the test too easy.
    Files `val` and `test`, or arrays `train`, `val` and `test` in one .npz, replace them; `val`
    alone is halved between validation and test. See `read_arrays` for the names.

    Raises:
        UserError: as `read_arrays` and `array_data` do, or too few fields to split.
    """
    arrays, named_units = read_arrays(path)
    if "images" not in arrays and val is None and test is None:
        parts = [_part(path, arrays[name]) for name in SPLITS]
    else:
        main = _part(path, arrays["images" if "images" in arrays else "train"])
        parts = _split(main, val and _only_part(val), test and _only_part(test))
    return array_data(path.name, parts, value_range, units or named_units)


def array_data(
    name: str, parts: Sequence[Part], value_range: Sequence[float] | None = None,
    units: str | None = None,
) -> Data:
    """Training, validation and test fields that are in memory, or mapped into it.

    NaN in any channel marks a point that does not exist. What becomes -1 and 1 is `value_range`
    (lo hi, or lo hi for each channel); without it 0 and 255 for uint8, and otherwise the smallest
    and largest training value of each channel. Three channels of uint8 are pictures: training
    shows them flipped, turned and with channels exchanged. Others are shown as they are.

    Raises:
        UserError: wrong rank or type, zero size, infinities, fields with fewer than two points,
            parts of different shape, values far outside the range.
    """
    for part in parts:
        _check_array(part)
        _check_alike(part, parts[0])
    surveys = [_survey(part) for part in parts]
    first_field = parts[0].fields(0, 1)[0]
    height, width, channels = first_field.shape
    is_uint8 = first_field.dtype == np.uint8
    if value_range is not None:
        bounds = given_range(value_range, channels)
    elif is_uint8:
        bounds = pixel_scale(channels).value_range
    else:
        bounds = tuple(map(wide_enough, surveys[0].low.tolist(), surveys[0].high.tolist()))
        for part in parts:
            refuse_codes(part, "mark points that do not exist with NaN")
    scale = Scale(bounds, units)
    for part, survey in zip(parts, surveys, strict=True):
        check_inside(part.source, survey.low, survey.high, scale, warns=value_range is not None)
    train, val, test = (
        ArraySplit(part, scale, is_symmetric=is_uint8 and channels == 3, has_gaps=survey.has_gaps)
        for part, survey in zip(parts, surveys, strict=True)
    )
    fingerprint = hashlib.sha256("".join(survey.digest for survey in surveys).encode())
    return Data(name, height, width, scale, fingerprint.hexdigest(), train, val, test)


# --- reading --------------------------------------------------------------------------------------


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The fields in a file, and their units if it names them.

    Returns:
        {"images": array} from an .npy, or from an .npz with an array of that name or with one
        array only; {"train": ..., "val": ..., "test": ...} from an .npz that has these.
    Raises:
        UserError: no permission, broken, of another kind, more than memory holds, or object
            arrays (nothing in a file is ever executed).
    """
    require_file(path)
    refuse_foreign(path, "fields are .npz or .npy, or a folder of pictures")
    try:
        mode = "r" if path.stat().st_size > MAPPED_BYTES else None
        loaded = np.load(path, mmap_mode=mode, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}, None
        with loaded as archive:
            _check_fits_memory(path)
            names = [name for name in archive.files if name != "units"]
            units = str(archive["units"]) if "units" in archive.files else None
            if set(SPLITS) <= set(names):
                return {name: archive[name] for name in SPLITS}, units
            if "images" in names or len(names) == 1:
                return {"images": archive["images" if "images" in names else names[0]]}, units
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r or choose another") from None
    except _BROKEN as error:
        reason = f"broken or cut off ({' '.join(str(error).split())}); copy it again"
        if "Object arrays" in reason:
            reason = "holds an object array; fields must be one array of numbers of one shape"
        elif "pickle" in reason:
            reason = "no .npy or .npz file, whatever its name says"
        raise UserError(f"{path}: {reason}") from None
    raise UserError(f"{path}: which array holds the fields? name it `images` (found: "
                    f"{', '.join(names) or 'none'})")


def _check_fits_memory(path: Path) -> None:
    """An archive that unpacks to more than the machine has would end in a crash."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if unpacked > memory / 2:
        raise UserError(
            f"{path}: unpacks to {unpacked / 2**30:.1f} GiB of {memory / 2**30:.1f} GiB of memory; "
            "save the array as .npy, which is read from disk as needed"
        )


# --- splitting ------------------------------------------------------------------------------------


def _part(path: Path, array: np.ndarray) -> Part:
    return Part(str(path), array, 0, len(array) if array.ndim else 0)


def _only_part(path: Path) -> Part:
    arrays, _ = read_arrays(path)
    if "images" not in arrays:
        raise UserError(f"{path}: holds three splits already; name it as --data alone")
    return _part(path, arrays["images"])


def _split(main: Part, val: Part | None, test: Part | None) -> list[Part]:
    if val and test:
        return [main, val, test]
    if val:
        return [main, *cut(val, 0.5)]
    if test:
        return [*cut(main, HELD_OUT), test]
    return cut(main, HELD_OUT, HELD_OUT)


def cut(part: Part, *shares: float) -> list[Part]:
    """Blocks: what remains, then blocks of these shares, each of at least one field.

    Raises:
        UserError: too few fields for that.
    """
    sizes = [max(1, int(share * len(part))) for share in shares]
    if len(part) <= sum(sizes):
        _check_array(part)  # a wrong shape is the better explanation
        raise UserError(
            f"{part.source}: {len(part)} fields cannot be split into {len(shares) + 1} parts; add "
            "fields, or name other files to validate and test on"
        )
    edges = [part.first, *np.cumsum([part.last - sum(sizes), *sizes]).tolist()]
    return [Part(part.source, part.array, *pair) for pair in pairwise(edges)]


# --- checks ---------------------------------------------------------------------------------------


def _check_array(part: Part) -> None:
    shape, kind = part.array.shape, part.array.dtype
    wanted = "fields must be (N, H, W) or (N, H, W, C)"
    if kind.kind not in "uif":
        raise UserError(f"{part.source}: values of type {kind}; fields must be uint8 or float")
    if len(shape) not in (3, 4):
        raise UserError(f"{part.source}: shape {shape}; {wanted}")
    if 0 in shape:
        raise UserError(f"{part.source}: shape {shape} holds nothing; {wanted}")
    if len(shape) == 3 and shape[2] <= 4:
        raise UserError(f"{part.source}: shape {shape} looks like one picture; {wanted}")
    if len(shape) == 4 and shape[1] <= 4 < shape[3]:
        turned = shape[0], *shape[2:], shape[1]
        raise UserError(f"{part.source}: shape {shape} has its channels first, (N, C, H, W); "
                        f"{wanted}: numpy.moveaxis(fields, 1, -1) makes it {turned}")


def _check_alike(part: Part, first: Part) -> None:
    ours, theirs = part.fields(0, 1)[0], first.fields(0, 1)[0]
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise UserError(
            f"{part.source}: fields of {ours.shape} {ours.dtype}, but those of {first.source} are "
            f"{theirs.shape} {theirs.dtype}; sizes, channels and types must not be mixed"
        )


@dataclass(frozen=True)
class _Survey:
    """What one pass over every value found."""

    low: np.ndarray   # (C,) float64
    high: np.ndarray  # (C,)
    has_gaps: bool
    digest: str


def _survey(part: Part) -> _Survey:
    """Raises UserError for infinite values and fields with fewer than two points."""
    lows, highs, has_gaps, digest = [], [], False, hashlib.sha256()
    step = max(1, CHUNK_BYTES // part.fields(0, 1).nbytes)
    for start in range(0, len(part), step):
        fields = part.fields(start, start + step)
        digest.update(np.ascontiguousarray(fields))
        # Over the fields first: that runs along memory, a few channels do not.
        for found, extreme in ((lows, np.fmin), (highs, np.fmax)):
            found.append(extreme.reduce(extreme.reduce(fields), axis=(0, 1)).astype(np.float64))
        if fields.dtype.kind != "f":
            continue
        missing = np.isnan(fields).any(axis=-1)
        has_gaps |= bool(missing.any())
        infinite = np.isinf(fields).any(axis=(1, 2, 3))
        if infinite.any():
            where = part.first + start + int(infinite.argmax())
            raise UserError(f"{part.source}: field {where} holds infinite values; mark gaps with "
                            "NaN")
        points = missing[0].size - np.count_nonzero(missing, axis=(1, 2))
        if points.min() < 2:
            where = part.first + start + int(points.argmin())
            what = "one point only" if points.min() else "no points: all is NaN"
            raise UserError(f"{part.source}: field {where} has {what}; leave it out")
    return _Survey(np.fmin.reduce(lows), np.fmax.reduce(highs), has_gaps, digest.hexdigest())


def refuse_codes(part: Part, way_out: str) -> None:
    """Raises UserError where a number stands for points that do not exist, such as -9999."""
    count = max(1, SEARCHED // part.fields(0, 1).size)
    for start in np.unique(np.linspace(0, len(part) - 1, count).astype(int)).tolist():
        field = part.fields(start, start + 1)[0]
        for values in field.reshape(-1, field.shape[-1]).T.astype(np.float64):
            code = lone_extreme(values, codes_only=True)
            if code is not None:
                raise UserError(
                    f"{part.source}: {code:.10g} stands {int((values == code).sum())} times in "
                    f"field {part.first + start}, far from all other values; {way_out}, or say "
                    "with --value_range low high that it was measured")


def check_inside(
    source: str, low: np.ndarray, high: np.ndarray, scale: Scale, warns: bool
) -> None:
    """Refuse values, from low to high (C,), far outside a scale: they have another unit.

    Args:
        warns: whether values that are a little outside are logged.
    Raises:
        UserError: a channel leaves its range by more than the width of that.
    """
    lows, highs = np.asarray(scale.value_range).T
    outside = np.maximum(lows - low, high - highs) / (highs - lows)
    extent = f"{source}: values from {low.min():g} to {high.max():g}"
    if outside.max() > 1:
        raise UserError(
            f"{extent} lie far outside {scale.describe()}: convert the units, mark points that do "
            "not exist with NaN, or widen it with --value_range"
        )
    if warns and outside.max() > 1e-6:  # more than rounding to float32
        log.warning("%s leave the value range %s: reconstructions are clipped to it",
                    extent, scale.describe())
