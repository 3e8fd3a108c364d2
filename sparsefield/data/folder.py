"""Pictures cut into square fields by exact area averages, and folders of pictures."""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from sparsefield.data.pictures import Raster, read_picture
from sparsefield.data.scale import Data, Scale, wide_enough
from sparsefield.errors import UserError

log = logging.getLogger(__name__)

# Training crops come from a copy of the picture reduced to a short side of 4 to 8 times the crop,
# so that scales differ by two octaves or more. The copies live in memory up to this size.
WORKING_SIDE = 4
CACHE_BYTES = 2 * 2**30
# Truth at up to this many pixels comes from the file itself; sums over more overflow uint32.
LARGEST_SIDE = 4096


# --- crops ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A square of a picture, in pixels: rows top ... top + side, columns left ... left + side."""

    top: int
    left: int
    side: int


def random_box(rng: np.random.Generator, height: int, width: int, smallest: int) -> Box:
    """A box anywhere in a picture, its side log-uniform from `smallest` to the short side."""
    side = round(smallest * (min(height, width) / smallest) ** rng.random())
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return Box(top, left, side)


class Picture:
    """A picture that gives the area average of any square at any size in O(size^2).

    Kept as a summed-area table (Crow 1984): T[i, j] is the sum of the pixels above row i and left
    of column j. Between pixel corners the integral of the picture is bilinear in (i, j), so that
    sums over boxes with fractional corners are exact as well.
    """

    def __init__(self, pixels: np.ndarray):
        """pixels: (H, W, C) uint8, at most 2^24 pixels (the sums are uint32), or float."""
        height, width, channels = pixels.shape
        self.height, self.width = height, width
        kind = np.uint32 if pixels.dtype == np.uint8 else np.float64
        self.sums = np.zeros((height + 1, width + 1, channels), dtype=kind)
        np.cumsum(pixels, axis=0, dtype=kind, out=self.sums[1:, 1:])
        np.cumsum(self.sums, axis=1, out=self.sums)

    def crop(self, box: Box, size: int) -> np.ndarray:
        """(size, size, C) float64: the mean of the box over each of size^2 cells."""
        channels = self.sums.shape[2]
        # Corner k of the cells lies at k * side / size pixels: a whole part and a fraction.
        whole, rest = np.divmod(np.arange(size + 1) * box.side, size)
        part = rest / size
        corners = np.concatenate([whole, np.minimum(whole + 1, box.side)])
        index = (box.top + corners)[:, None] * (self.width + 1) + box.left + corners
        sums = self.sums.reshape(-1, channels).take(index, axis=0)   # (2 (size + 1))^2 C
        # Interpolate and difference down, then right; channels ride along in the flat rows.
        rows = sums.astype(np.float64).reshape(len(corners), -1)
        rows = _cell_sums(rows, part[:, None])
        columns = rows.reshape(size, len(corners), channels).transpose(1, 0, 2)
        columns = _cell_sums(columns.reshape(len(corners), -1), part[:, None])
        means = columns.reshape(size, size, channels) * (size / box.side) ** 2
        return np.ascontiguousarray(means.transpose(1, 0, 2))


def _cell_sums(sums: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Table rows at the whole corners, then at the next ones -> sums between corners."""
    whole, after = np.split(sums, 2)
    return np.diff(whole + (after - whole) * part, axis=0)


class CropSplit:
    """Crops of a few pictures held in memory; see `scale.Split`.

    Training example i is a random crop of picture i mod len(pictures), with sides from
    `image_size` (so that nothing is ever enlarged) to the picture's short side, log-uniform: as
    many octaves of detail as of overview. Frozen examples are given as (picture, box).
    """

    has_gaps, is_symmetric = False, True

    def __init__(
        self, pictures: list[Picture], frozen: list[tuple[int, Box]], length: int,
        image_size: int, scale: Scale,
    ):
        self.pictures, self.frozen, self.length = pictures, frozen, length
        self.image_size, self.scale = image_size, scale

    def __len__(self) -> int:
        return self.length

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        picture = self.pictures[index % len(self.pictures)]
        box = random_box(rng, picture.height, picture.width, self.image_size)
        return self.scale.to_inside(picture.crop(box, self.image_size))

    def example(self, index: int) -> np.ndarray:
        return self.high_resolution(index, self.image_size)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        picture, box = self.frozen[index]
        if box.side < size:
            return None
        return self.scale.to_inside(self.pictures[picture].crop(box, size))


# --- folders --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A picture that was read once and will do."""

    path: Path
    working: np.ndarray | None  # (h, w, C) uint8 or float; None: read again at each use
    digest: bytes               # hash of the file, which decides the split
    low: float                  # smallest and largest value of the working copy
    high: float


class FolderSplit:
    """Pictures of a folder; see `scale.Split`.

    Training example i is a random crop of picture i, frozen example i its centre square.
    """

    has_gaps, is_symmetric = False, True

    def __init__(self, found: list[Found], image_size: int, scale: Scale):
        self.found, self.image_size, self.scale = found, image_size, scale

    def __len__(self) -> int:
        return len(self.found)

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        pixels = self.found[index].working
        if pixels is None:
            picture = read_picture(self.found[index].path, WORKING_SIDE * self.image_size)
            pixels = picture.on_white().with_channels(self.scale.channels).values
        box = random_box(rng, *pixels.shape[:2], self.image_size)
        return self._shrunk(pixels, box, self.image_size)

    def example(self, index: int) -> np.ndarray:
        return self.high_resolution(index, self.image_size)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        picture = read_picture(self.found[index].path).on_white()
        picture = picture.reduced(-(-min(picture.shape) // LARGEST_SIDE))
        height, width = picture.shape
        side = min(height, width)
        if side < size:
            return None
        box = Box((height - side) // 2, (width - side) // 2, side)
        return self._shrunk(picture.with_channels(self.scale.channels).values, box, size)

    def _shrunk(self, pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
        square = pixels[box.top:box.top + box.side, box.left:box.left + box.side]
        return self.scale.to_inside(Picture(square).crop(Box(0, 0, box.side), size))


def open_folder(
    folder: Path, *, image_size: int = 32, channels: int | None = None,
    val: Path | None = None, test: Path | None = None,
) -> Data:
    """The pictures in a folder and its subfolders.

    Every file goes to training (90 %), validation or test (5 % each) by a hash of its bytes, so
    that files added later move no other, and copies stay together. Folders `val` and `test` may
    hold these splits instead; `val` alone is halved between them. Grey pictures alone make one
    channel.

    Pictures of 8 bits a channel keep 0 and 255 as their range. Of others (16 bits, floats) every
    bit counts: the range is 0 to 65535 for colours, and otherwise that of the training pictures.

    Linked subfolders are followed, each folder once. Broken files, files that are none (pipes,
    devices), and pictures with fewer than `image_size` pixels a side, are skipped and named
    once in the log.

    Raises:
        UserError: no folder, no permission, fewer than three different usable pictures, no picture
            in a split's own folder, grey and colour pictures mixed without `channels` (1 or 3), or
            8 bits mixed with more.
    """
    if image_size < 8:
        raise UserError(f"image size {image_size}: use at least 8")
    read = _Reader(image_size, channels)
    main, held_out, testing = (path and read.folder(path) for path in (folder, val, test))
    read.refuse_mixed()
    if val and test:
        parts = [main, held_out, testing]
    elif val:
        parts = [main, *_by_digest(val, held_out, 0.5)]
    else:
        parts = _by_digest(folder, main, *([0.95] if test else [0.90, 0.95]))
        parts += [testing] if test else []
    scale = read.common_scale(parts[0])
    fingerprint = hashlib.sha256(f"{image_size} {[len(part) for part in parts]}".encode())
    for part in parts:
        fingerprint.update(b"".join(picture.digest for picture in part))
    return Data(folder.resolve().name, image_size, image_size, scale, fingerprint.hexdigest(),
                *(FolderSplit(part, image_size, scale) for part in parts))


class _Reader:
    """Reads whole folders and remembers what it met: files, channels, reasons to skip."""

    def __init__(self, image_size: int, channels: int | None):
        self.image_size = image_size
        self.channels = channels
        self.cached = 0
        self.examples: dict[int, Path] = {}  # channels -> a file that has so many
        self.whites: dict[float | None, Path] = {}  # what is white -> a file in which it is

    def folder(self, folder: Path) -> list[Found]:
        """The usable pictures of a folder, by path."""
        from tqdm import tqdm

        paths, skipped = _picture_files(folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(self._read, paths)
            bar = tqdm(results, f"reading {folder}", len(paths), disable=None, leave=False)
            found = []
            for path, result in zip(paths, bar, strict=True):
                if isinstance(result, str):
                    skipped[path] = result
                else:
                    found.append(self._keep(path, *result))
        _report(folder, skipped, len(found))
        return found

    def refuse_mixed(self) -> None:
        """Raises UserError for grey beside colour, and for other depths."""
        if len(self.examples) > 1:
            grey, colour = self.examples[1], self.examples[3]
            raise UserError(
                f"mixed channels: {grey} is grey and {colour} is in colour; choose --data_channels "
                "1 (all grey) or 3 (all in colour), with the runner DATA_CHANNELS"
            )
        if len(self.whites) > 1:
            one, other = list(self.whites.values())[:2]
            raise UserError(f"mixed depths: {one} and {other} do not have equally many bits a "
                            "channel; convert all to one kind")

    def common_scale(self, training: list[Found]) -> Scale:
        """The scale of all the pictures."""
        channels, white = next(iter(self.examples)), next(iter(self.whites))
        if white is not None:
            return Scale(((0.0, float(white)),) * channels)
        low = min(picture.low for picture in training)
        high = max(picture.high for picture in training)
        return Scale((wide_enough(low, high),) * channels)

    def _read(self, path: Path) -> tuple[bytes, Raster] | str:
        """The hash and the working copy of a picture, or the reason why it cannot be used."""
        try:
            picture = read_picture(path, WORKING_SIDE * self.image_size).on_white()
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
        height, width = picture.shape
        if min(height, width) < self.image_size:
            return f"{width} x {height} pixels, fewer than {self.image_size}"
        if picture.known is not None:
            return "has points without a value; save such fields as one .npz with NaN there"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        return digest, picture.with_channels(self.channels or picture.channels)

    def _keep(self, path: Path, digest: bytes, picture: Raster) -> Found:
        pixels = picture.values
        self.examples.setdefault(picture.channels, path)
        self.whites.setdefault(picture.white, path)
        self.cached += pixels.nbytes
        working = pixels if self.cached <= CACHE_BYTES else None
        return Found(path, working, digest, float(pixels.min()), float(pixels.max()))


def _picture_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Files that are named like pictures, and what could not be looked into, with the reason."""
    Image.init()
    # PostScript is read by an external interpreter that runs what the file says.
    endings = {ending for ending, kind in Image.registered_extensions().items()
               if kind in Image.OPEN and kind != "EPS"}
    endings |= {".heic", ".heif"}  # not read: named among what was skipped
    skipped: dict[Path, str] = {}
    files, seen = [], set()
    walk = os.walk(folder, followlinks=True,
                   onerror=lambda e: skipped.update({Path(e.filename): e.strerror}))
    for parent, below, names in walk:
        below.sort()
        if (real := os.path.realpath(parent)) in seen:  # a link back, or a second way to a folder
            below.clear()
            continue
        seen.add(real)
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() not in endings:
                continue
            if path.is_file():
                files.append(path)
            else:
                skipped[path] = "a pipe, a device or a link to nothing"
    return sorted(files), skipped


def _report(folder: Path, skipped: dict[Path, str], usable: int) -> None:
    reasons = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:10])
    if not usable:
        why = f"skipped {len(skipped)}: {reasons}" if skipped else "it holds no picture files"
        raise UserError(f"{folder}: no usable picture ({why})")
    if skipped:
        more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        log.warning("%s: skipped %d of %d: %s%s",
                    folder, len(skipped), len(skipped) + usable, reasons, more)


def _by_digest(folder: Path, found: list[Found], *cuts: float) -> list[list[Found]]:
    """Parts between the cuts in [0, 1), each with a picture; copies of one stay together."""
    copies: dict[bytes, list[Found]] = {}
    for picture in sorted(found, key=lambda picture: (picture.digest, picture.path)):
        copies.setdefault(picture.digest, []).append(picture)
    different = list(copies)
    if len(different) <= len(cuts):
        raise UserError(f"{folder}: {len(different)} different pictures cannot be split into "
                        f"{len(cuts) + 1} parts; add pictures")
    if len(different) < len(found):
        log.info("%s: %d of %d pictures are copies of others; copies go to one part",
                 folder, len(found) - len(different), len(found))
    places = [int.from_bytes(digest[:6]) / 2**48 for digest in different]
    edges = [len(different)]
    for earlier, cut in reversed(list(enumerate(cuts, start=1))):
        # No later than the last picture, and with one left for each part before it.
        edges.insert(0, max(min(bisect_left(places, cut), edges[0] - 1), earlier))
    return [[picture for digest in different[start:end] for picture in copies[digest]]
            for start, end in pairwise([0, *edges])]
