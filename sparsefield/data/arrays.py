"""Data sets of arrays: (N, H, W, C) or (N, H, W), uint8 or float, NaN where no point exists."""

from __future__ import annotations

import hashlib
import logging
import os
import pickletools
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsefield.data.files import (
    BROKEN,
    lone_extreme,
    one_line,
    refuse_foreign,
    require_file,
    tell_of_classes,
)
from sparsefield.data.overlaps import hashes, middle, mixed, tell_of_overlaps, whole_hashes
from sparsefield.data.scale import (
    SEARCHED,
    Data,
    Scale,
    check_inside,
    given_range,
    in_three,
    pixel_scale,
    require_units,
    tell_of_spikes,
    tell_of_values,
    wide_enough,
)
from sparsefield.errors import UserError

log = logging.getLogger(__name__)

MAPPED_BYTES = 2**28  # a larger .npy stays on disk and is mapped into memory
CHUNK_BYTES = 2**22  # how much of an array is surveyed at a time
LEAST_SHARE = 0.5  # of the points of a tile that exist
MOST_FROZEN = 256  # tiles of validation and of test
SEEN_FOR_CLASSES = 16  # fields of training
MOST_SEARCHED = 100  # fields of validation, and of test, for pixels of training fields
TRIES = 8  # to find a tile for training


@dataclass(frozen=True)
class Part:
    """Fields `first` to `last` of an array, which came from `source`."""

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
    """Fields of an array, or tiles of them, decoded one at a time; see `scale.Split`.

    Example i is a whole field, or a tile at a fixed place; a training example is the field, or a
    tile anywhere in it of which at least half of the points exist.

    Args:
        places: (n, 3), the field, top and left of each example, or of the first frame of each
            sequence. tile: (h, w) of all. frames: of a sequence. times: (N,) of the fields of the
            part; None: even.
        contents: a hash of each field that is not flat, see `overlaps.whole_hashes`.
    """

    def __init__(
        self, part: Part, scale: Scale, places: np.ndarray, tile: tuple[int, int], *,
        is_symmetric: bool, has_gaps: bool, contents: frozenset[int], frames: int = 1,
        times: np.ndarray | None = None,
    ):
        self.part, self.scale, self.places, self.tile = part, scale, places, tile
        self.contents = contents
        self.is_symmetric, self.has_gaps = is_symmetric, has_gaps
        self.frames, self.times = frames, times
        self.room = np.subtract(part.fields(0, 1).shape[1:3], tile) + 1

    def __len__(self) -> int:
        return len(self.places) * self.frames

    def time(self, index: int) -> float:
        sequence, frame = divmod(index, self.frames)
        if self.times is None:
            return float(frame)
        first = int(self.places[sequence, 0])
        own = self.times[first : first + self.frames]
        return float((own[frame] - own[0]) / max(np.diff(own).mean(), np.finfo(float).tiny))

    def example(self, index: int) -> np.ndarray:
        sequence, frame = divmod(index, self.frames)
        return self._cut(*self.places[sequence].tolist())[frame]

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        sequence, frame = divmod(index, self.frames)
        for _ in range(TRIES if max(self.room) > 1 else 0):
            found = self._cut(int(self.places[sequence, 0]), *map(int, rng.integers(self.room)))
            if np.isnan(found[..., 0]).mean(axis=(1, 2)).max() <= 1 - LEAST_SHARE:
                return found[frame]
        return self.example(index)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        return None

    def _cut(self, field: int, top: int, left: int) -> np.ndarray:
        """A sequence, (T, h, w, C)."""
        values = self.part.fields(field, field + self.frames)
        values = values[:, top:top + self.tile[0], left:left + self.tile[1]]
        inside = self.scale.to_inside(values)
        if self.has_gaps:
            inside[np.isnan(inside).any(axis=-1)] = np.nan
        return inside


def _places(
    part: Part, size: tuple[int, int] | None, most: int | None, frames: int
) -> np.ndarray:
    """(n, 3): field, top and left of whole fields, or of tiles side by side, of which half of the
    points exist; of these at most so many, evenly from all. Of sequences those of the first frame:
    any frame that enough others follow, or where there is a `most`, every T-th."""
    count = len(part) - frames + 1
    if count < 1:
        raise UserError(f"{part.source}: a part of {len(part)} fields holds no sequence of "
                        f"{frames}; choose a smaller TIME, or name data to validate and to test on")
    firsts = np.arange(0, count, frames if most else 1)
    if size is None:
        return firsts[:, None] * [1, 0, 0]
    exists = ~np.isnan(part.fields(0, len(part))).any(axis=-1)
    tops, lefts = (range(0, exists.shape[k + 1] - size[k] + 1, size[k]) for k in range(2))
    shares = np.stack([exists[:, top:top + size[0], left:left + size[1]].mean(axis=(1, 2))
                       for top in tops for left in lefts], axis=1)
    shares = np.min([shares[firsts + k] for k in range(frames)], axis=0)
    field, tile = np.nonzero(shares >= LEAST_SHARE)
    field = firsts[field]
    if len(field) == 0:
        raise UserError(f"{part.source}: no tile of {size[0]} x {size[1]} points of which half "
                        "exist; choose a smaller --image_size, or another variable")
    row, column = np.divmod(tile, len(lefts))
    found = np.stack([field, row * size[0], column * size[1]], axis=1)
    chosen = np.linspace(0, len(found) - 1, min(len(found), most or len(found))).round()
    return found[chosen.astype(int)]


def open_array(
    path: Path, *, val: Path | None = None, test: Path | None = None,
    value_range: Sequence[float] | None = None, units: str | None = None, frames: int = 1,
) -> Data:
    """The fields of a file: 90 % training, 5 % validation, 5 % test, in the order of the file.

    Blocks rather than a shuffle, because neighbours in a file often show the same thing (crops of
    one picture, days of one season), and a neighbour in training would make the test too easy.
    Files `val` and `test` replace them, see `scale.in_three`.

    Raises:
        UserError: as `read_array` and `array_data` do, or too few fields to split.
    """
    fields, named_units = read_array(path)
    parts: list[Part | None] = [_part(path, fields)]
    for file in (val, test):
        found, own_units = read_array(file) if file else (None, None)
        require_units(str(file), own_units, str(path), None if units else named_units)
        parts.append(None if found is None else _part(file, found))
    return array_data(path.name, in_three(*parts, cut), value_range, units or named_units,
                      frames=frames)


def array_data(
    name: str, parts: Sequence[Part], value_range: Sequence[float] | None = None,
    units: str | None = None, *, tile: tuple[int, int] | None = None, rows_up: bool = False,
    frames: int = 1, times: Sequence[np.ndarray | None] = (None, None, None),
) -> Data:
    """Training, validation and test fields that are in memory, or mapped into it.

    NaN in any channel marks a point that does not exist. Three channels of uint8 are pictures:
    training shows them flipped, turned and with channels exchanged. Others are shown as they are.

    Args:
        value_range: see `given_range`; by default 0 and 255 for uint8, and otherwise the smallest
            and largest training value of each channel.
        tile: (h, w), whole fields by default; see `ArraySplit`. rows_up: see `Data`.
        frames, times: of sequences, see `ArraySplit`.
    Raises:
        UserError: wrong rank or type, zero size, infinities, whole fields with fewer than two
            points, parts of different shape, values far outside the range.
    """
    for part in parts:
        _check_array(part)
        if tile is None:
            _check_alike(part, parts[0])
    surveys = [_survey(part, is_whole=tile is None) for part in parts]
    *shape, channels = parts[0].fields(0, 1).shape[1:]
    is_uint8 = parts[0].array.dtype == np.uint8
    if value_range is not None:
        bounds = given_range(value_range, channels)
    elif is_uint8:
        bounds = pixel_scale(channels).value_range
    else:
        bounds = tuple(map(wide_enough, surveys[0].low.tolist(), surveys[0].high.tolist()))
        for part in parts:
            _refuse_codes(part)
        some = np.concatenate([f.reshape(-1, channels) for _, f in _searched(parts[0])])
        tell_of_spikes(parts[0].source, some, surveys[0].low, surveys[0].high)
        tell_of_values(parts[0].source, some)
    tell_of_classes(parts[0].source, np.stack([
        middle(field) for _, field in _searched(parts[0], SEEN_FOR_CLASSES)]))
    scale = Scale(bounds, units)
    for source in dict.fromkeys(part.source for part in parts):
        own = [survey for part, survey in zip(parts, surveys, strict=True) if part.source == source]
        check_inside(source, np.fmin.reduce([survey.low for survey in own]),
                     np.fmax.reduce([survey.high for survey in own]), scale,
                     value_range is not None)
    learnt, *held_out = (survey.fields for survey in surveys)
    leaks = learnt & frozenset.union(*held_out)
    if len({survey.digest for survey in surveys}) == 1:
        pass  # nothing is trained
    elif leaks:
        log.warning("WARNING: %s: %d different fields to validate or to test on are training "
                    "fields, too, perhaps flipped or turned: leave copies out", parts[0].source,
                    len(leaks))
    else:
        some = [field for part in parts[1:] for _, field in _searched(part, MOST_SEARCHED)]
        source = " and ".join(dict.fromkeys(part.source for part in parts[1:]))
        tell_of_overlaps(source, some, surveys[0].squares)
    size, limits = tile or tuple(shape), (None, MOST_FROZEN, MOST_FROZEN)
    splits = [ArraySplit(part, scale, _places(part, tile, most, frames), size,
                         is_symmetric=is_uint8 and channels == 3, has_gaps=survey.has_gaps,
                         contents=survey.fields, frames=frames, times=own)
              for part, survey, most, own in zip(parts, surveys, limits, times, strict=True)]
    content = "".join(survey.digest for survey in surveys) + (str(tile) if tile else "")
    content += f" {frames} frames" if frames > 1 else ""
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    return Data(name, *size, scale, fingerprint, *splits, rows_up)


# --- reading --------------------------------------------------------------------------------------


def read_array(path: Path) -> tuple[np.ndarray, str | None]:
    """The fields in an .npy, or in an .npz as `images` or as its only array; and its `units`.

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
            return loaded, None
        with loaded as archive:
            _check_fits_memory(path)
            names = [name for name in archive.files if name != "units"]
            units = str(archive["units"]) if "units" in archive.files else None
            if "images" in names or len(names) == 1:
                return archive["images" if "images" in names else names[0]], units
    except BROKEN as error:
        reason = f"broken or cut off ({one_line(error)}); copy it again"
        if "Object arrays" in reason:
            reason = "holds an object array; fields must be one array of numbers of one shape"
        elif "pickle" in reason:
            reason = "no .npy or .npz file, whatever its name says"
        raise UserError(f"{path}: {reason}") from None
    raise UserError(f"{path}: which array holds the fields? name it `images`, and give others as "
                    f"--data_val, --data_test (found: {', '.join(names) or 'none'})")


def _check_fits_memory(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if unpacked > memory / 2:
        raise UserError(
            f"{path}: unpacks to {unpacked / 2**30:.1f} GiB of {memory / 2**30:.1f} GiB of memory; "
            "save the array as .npy, which is read from disk as needed")


def _part(path: Path, array: np.ndarray) -> Part:
    return Part(str(path), array, 0, len(array) if array.ndim else 0)


def cut(part: Part, *shares: float) -> list[Part]:
    """What remains, then blocks of these shares, each of at least one field. Raises UserError for
    too few fields."""
    sizes = [max(1, int(share * len(part))) for share in shares]
    if len(part) <= sum(sizes):
        _check_array(part)  # a wrong shape is the better explanation
        raise UserError(f"{part.source}: {len(part)} fields cannot be split into "
                        f"{len(shares) + 1} parts; add fields, or name files to validate and test "
                        "on")
    edges = [part.first, *np.cumsum([part.last - sum(sizes), *sizes]).tolist()]
    return [Part(part.source, part.array, *pair) for pair in pairwise(edges)]


# --- checks ---------------------------------------------------------------------------------------


def _check_array(part: Part) -> None:
    shape, kind = part.array.shape, part.array.dtype
    wanted = "fields must be (N, H, W) or (N, H, W, C)"
    if kind.kind not in "uif":
        raise UserError(f"{part.source}: values of type {kind}; fields must be uint8 or float")
    if len(shape) not in (3, 4) or 0 in shape:
        raise UserError(f"{part.source}: shape {shape}; {wanted}, not empty")
    if len(shape) == 3 and shape[2] <= 4:
        raise UserError(f"{part.source}: shape {shape} looks like one picture; {wanted}")
    if len(shape) == 4 and (shape[1] <= 4 < shape[3] or shape[1] < shape[2] == shape[3]):
        raise UserError(f"{part.source}: shape {shape} has its channels first; {wanted}: "
                        "numpy.moveaxis(fields, 1, -1)")


def _check_alike(part: Part, first: Part) -> None:
    ours, theirs = part.fields(0, 1)[0], first.fields(0, 1)[0]
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise UserError(
            f"{part.source}: fields of {ours.shape} {ours.dtype}, but those of {first.source} are "
            f"{theirs.shape} {theirs.dtype}; sizes, channels and types must not be mixed")


class _Survey(NamedTuple):
    low: np.ndarray   # (C,) float64
    high: np.ndarray  # (C,)
    has_gaps: bool
    digest: str
    fields: frozenset[int]  # a hash of each, see `overlaps.whole_hashes`
    squares: list[np.ndarray]


def _survey(part: Part, is_whole: bool) -> _Survey:
    """What one pass over every value finds. Raises UserError for infinite values and, if fields
    are seen whole, for fewer than two points in one."""
    lows, highs, has_gaps, digest, each, squares = [], [], False, hashlib.sha256(), [], []
    step = max(1, CHUNK_BYTES // part.fields(0, 1).nbytes)
    for start in range(0, len(part), step):
        fields = part.fields(start, start + step)
        digest.update(np.ascontiguousarray(fields))
        bits = mixed(fields)
        each += whole_hashes(bits).tolist()
        squares.append(hashes(bits))
        # Over the fields first: that runs along memory, a few channels do not.
        for found, extreme in ((lows, np.fmin), (highs, np.fmax)):
            found.append(extreme.reduce(extreme.reduce(fields), axis=(0, 1)).astype(np.float64))
        if fields.dtype.kind != "f":
            continue
        missing = np.isnan(fields).any(axis=-1)
        has_gaps |= bool(missing.any())
        infinite = np.isinf(fields).any(axis=(1, 2, 3))
        few = (~missing).sum(axis=(1, 2)) < 2
        for is_bad, what in ((infinite, "holds infinite values; mark gaps with NaN"),
                             (few & is_whole, "has fewer than two points; leave it out")):
            if is_bad.any():
                where = part.first + start + int(is_bad.argmax())
                raise UserError(f"{part.source}: field {where} {what}")
    return _Survey(np.fmin.reduce(lows), np.fmax.reduce(highs), has_gaps, digest.hexdigest(),
                   frozenset(each) - {0}, squares)


def _refuse_codes(part: Part) -> None:
    """Raises UserError where a number stands for points that do not exist, such as -9999."""
    for start, field in _searched(part):
        for values in field.reshape(-1, field.shape[-1]).T.astype(np.float64):
            code = lone_extreme(values)
            if code is not None:
                raise UserError(
                    f"{part.source}: {code:.10g} stands {int((values == code).sum())} times in "
                    f"field {part.first + start}; mark points that do not exist with NaN (in "
                    "NetCDF as _FillValue), or say with --value_range low high that it was "
                    "measured")


def _searched(part: Part, most: int = SEARCHED) -> Iterator[tuple[int, np.ndarray]]:
    """Number and (H, W, C) of some fields, `most` at most, spread over the array."""
    count = max(1, min(most, SEARCHED // part.fields(0, 1).size))
    for start in np.unique(np.linspace(0, len(part) - 1, count).astype(int)).tolist():
        yield start, part.fields(start, start + 1)[0]


# --- CIFAR-10 -------------------------------------------------------------------------------------

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/"
# The standard archives (Krizhevsky 2009); the first is what is downloaded when neither is there.
CIFAR10_SHA256 = {
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}
CIFAR10_HELD_OUT = 0.1  # share of the training pictures, in shuffled order: validation


def open_cifar10(folder: Path | None = None, url: str = CIFAR10_URL) -> Data:
    """45,000 training, 5,000 validation and 10,000 test pictures, from an archive in a folder (by
    default the user's cache), downloaded into it if there is none.

    Raises:
        UserError: no archive and no network, or an archive that is broken or of another kind.
    """
    import pooch

    folder = folder or Path(pooch.os_cache("sparsefield"))
    archives = [folder / name for name in CIFAR10_SHA256 if (folder / name).is_file()]
    archive = archives[0] if archives else _download(folder, url)
    try:
        batches = _read_batches(archive)
        training = np.concatenate([batches[name] for name in sorted(batches) if "data" in name])
        test = batches["test_batch"]
    except BROKEN as error:
        raise UserError(f"{archive}: no CIFAR-10 archive, or cut off ({one_line(error)}); delete "
                        "it, and it is downloaded again") from None
    return array_data("cifar10", [*cut(_part(archive, training), CIFAR10_HELD_OUT),
                                  _part(archive, test)])


def _read_batches(archive: Path) -> dict[str, np.ndarray]:
    """Name without ending -> (n, 32, 32, 3) uint8, of all batches in the archive.

    A picture is 3,072 bytes: red, green, blue, each row by row. A binary batch has a byte for the
    class before each picture; a pickled one has all pictures in its longest string, which is found
    without executing the pickle.
    """
    batches = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name)
            if not (member.isfile() and name.stem.startswith(("data_batch_", "test_batch"))):
                continue
            content = tar.extractfile(member).read()
            if name.suffix == ".bin":
                rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3073)[:, 1:]
            else:
                strings = (s for _, s, _ in pickletools.genops(content) if isinstance(s, str))
                rows = np.frombuffer(max(strings, key=len).encode("latin-1"), dtype=np.uint8)
            planes = rows.reshape(-1, 3, 32, 32)
            batches[name.stem] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return batches


def _download(folder: Path, url: str) -> Path:
    import pooch

    name, checksum = next(iter(CIFAR10_SHA256.items()))
    try:
        return Path(pooch.retrieve(url + name, f"sha256:{checksum}", name, folder,
                                   progressbar=sys.stderr.isatty()))
    except (OSError, ValueError) as error:  # those of requests are OSErrors
        raise UserError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({one_line(error)}): put "
            f"{CIFAR10_URL}{name} (sha256 {checksum}) there, or name its folder with --data_dir"
        ) from None
