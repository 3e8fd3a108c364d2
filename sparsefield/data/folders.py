"""A folder of pictures: found recursively, split by file, cropped at random scales."""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from sparsefield.data.base import Data
from sparsefield.data.images import Raster, read_picture
from sparsefield.data.pictures import Box, Picture, random_box
from sparsefield.data.scale import Scale, wide_enough
from sparsefield.errors import UserError

log = logging.getLogger(__name__)

# Training crops come from a copy of the picture reduced to a short side of 4 to 8 times the crop,
# so that scales differ by two octaves or more. The copies live in memory up to this size.
WORKING_SIDE = 4
CACHE_BYTES = 2 * 2**30
# Truth at up to this many pixels comes from the file itself; sums over more overflow uint32.
LARGEST_SIDE = 4096
# Pictures that nothing here reads: named among what was skipped, so that they are not missed.
FOREIGN_PICTURES = (".heic", ".heif")


@dataclass(frozen=True)
class Found:
    """A picture that was read once and will do."""

    path: Path
    working: np.ndarray | None  # (h, w, C) uint8 or float; None: read again at each use
    place: float                # in [0, 1), from the name alone: decides the split
    low: float                  # smallest and largest value of the working copy
    high: float


class FolderSplit:
    """Pictures of a folder; see `base.Split`.

    Training example i is a random crop of picture i, frozen example i its centre square.
    """

    has_gaps, is_symmetric = False, True

    def __init__(self, found: list[Found], image_size: int, scale: Scale):
        self.found = found
        self.image_size = image_size
        self.scale = scale

    def __len__(self) -> int:
        return len(self.found)

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        pixels = self.found[index].working
        if pixels is None:
            pixels = self._working(index)
        height, width = pixels.shape[:2]
        box = random_box(rng, height, width, self.image_size, min(height, width))
        return self.scale.to_inside(self._shrink(pixels, box, self.image_size))

    def example(self, index: int) -> np.ndarray:
        return self.scale.to_inside(self._centre(index, self.image_size))

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        centre = self._centre(index, size)
        return None if centre is None else self.scale.to_inside(centre)

    def _working(self, index: int) -> np.ndarray:
        picture = read_picture(self.found[index].path, WORKING_SIDE * self.image_size)
        return picture.on_white().with_channels(self.scale.channels).values

    def _centre(self, index: int, size: int) -> np.ndarray | None:
        """The largest square in the middle of the file's picture, (size, size, C)."""
        picture = read_picture(self.found[index].path).on_white()
        picture = picture.reduced(-(-min(picture.shape) // LARGEST_SIDE))
        height, width = picture.shape
        side = min(height, width)
        if side < size:
            return None
        box = Box((height - side) // 2, (width - side) // 2, side)
        return self._shrink(picture.with_channels(self.scale.channels).values, box, size)

    def _shrink(self, pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
        square = pixels[box.top:box.top + box.side, box.left:box.left + box.side]
        return Picture(square).crop(Box(0, 0, box.side), size)


def open_folder(
    folder: Path, *, image_size: int = 32, channels: int | None = None,
    val: Path | None = None, test: Path | None = None,
) -> Data:
    """The pictures in a folder and its subfolders.

    Every file goes to training (90 %), validation or test (5 % each) by a hash of its path inside
    the folder, so that files added later move no other. Folders `val` and `test` may hold these
    splits instead; `val` alone is halved between them. Grey pictures alone make one channel.

    Pictures of 8 bits a channel keep 0 and 255 as their range. Of others (16 bits, floats) every
    bit counts: the range is 0 to 65535 for colours, and otherwise that of the training pictures.

    Linked subfolders are followed, each folder once. Broken files, files that are none (pipes,
    devices), and pictures with fewer than `image_size` pixels a side, are skipped and named
    once in the log.

    Raises:
        UserError: no folder, no permission, fewer than three usable pictures in all, no picture
            in a split's own folder, grey and colour pictures mixed without `channels` (1 or 3), or
            8 bits mixed with more.
    """
    if image_size < 8:
        raise UserError(f"image size {image_size}: use at least 8")
    read = _Reader(image_size, channels)
    main = read.folder(folder)
    if val is None and test is None:
        parts = _by_place(main, 0.90, 0.95)
    elif test is None:
        parts = [main, *_by_place(read.folder(val), 0.5)]
    elif val is None:
        parts = [*_by_place(main, 0.95), read.folder(test)]
    else:
        parts = [main, read.folder(val), read.folder(test)]
    scale = read.common_scale(parts[0])
    train, val_split, test_split = (FolderSplit(part, image_size, scale) for part in parts)
    return Data(
        folder.resolve().name, image_size, image_size, scale, read.digest.hexdigest(),
        train, val_split, test_split,
    )


class _Reader:
    """Reads whole folders and remembers what it met: files, channels, reasons to skip."""

    def __init__(self, image_size: int, channels: int | None):
        self.image_size = image_size
        self.channels = channels
        self.cached = 0
        self.examples: dict[int, Path] = {}  # channels -> a file that has so many
        self.whites: dict[float | None, Path] = {}  # what is white -> a file in which it is
        self.digest = hashlib.sha256(str(image_size).encode())

    def folder(self, folder: Path) -> list[Found]:
        """The usable pictures of a folder, by path."""
        paths, skipped = _picture_files(folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(self._read, paths)
            bar = tqdm(results, f"reading {folder}", len(paths), disable=None, leave=False)
            found = []
            for path, result in zip(paths, bar):
                if isinstance(result, str):
                    skipped[path] = result
                else:
                    found.append(self._keep(folder, path, result))
        _report(folder, skipped, len(found))
        return found

    def common_scale(self, training: list[Found]) -> Scale:
        """The scale of all the pictures."""
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
        channels, white = next(iter(self.examples)), next(iter(self.whites))
        if white is not None:
            return Scale(((0.0, float(white)),) * channels)
        low = min(picture.low for picture in training)
        high = max(picture.high for picture in training)
        return Scale((wide_enough(low, high),) * channels)

    def _read(self, path: Path) -> Raster | str:
        """The working copy of a picture, or the reason why it cannot be used."""
        try:
            picture = read_picture(path, WORKING_SIDE * self.image_size).on_white()
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
        height, width = picture.shape
        if min(height, width) < self.image_size:
            return f"{width} x {height} pixels, fewer than {self.image_size}"
        if picture.known is not None:
            return "has points without a value; save such fields as one .npz with NaN there"
        return picture.with_channels(self.channels or picture.channels)

    def _keep(self, folder: Path, path: Path, picture: Raster) -> Found:
        name, pixels = path.relative_to(folder).as_posix(), picture.values
        self.digest.update(f"{name} {path.stat().st_size}\n".encode())
        self.examples.setdefault(picture.channels, path)
        self.whites.setdefault(picture.white, path)
        self.cached += pixels.nbytes
        working = pixels if self.cached <= CACHE_BYTES else None
        return Found(path, working, _place(name), float(pixels.min()), float(pixels.max()))


def _picture_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Files that are named like pictures, and what could not be looked into, with the reason."""
    Image.init()
    # PostScript is read by an external interpreter that runs what the file says.
    endings = {
        ending for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind != "EPS"
    }
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
            if path.suffix.lower() not in endings and path.suffix.lower() not in FOREIGN_PICTURES:
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


def _place(name: str) -> float:
    """A number in [0, 1) from a file's path inside the folder."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _by_place(found: list[Found], *cuts: float) -> list[list[Found]]:
    """Parts between the cuts, each with at least one picture if there are that many."""
    if len(found) <= len(cuts):
        raise UserError(
            f"{found[0].path.parent}: {len(found)} pictures cannot be split into "
            f"{len(cuts) + 1} parts; add pictures"
        )
    ordered = sorted(found, key=lambda picture: (picture.place, picture.path))
    places = [picture.place for picture in ordered]
    parts, end = [], len(ordered)
    for earlier, cut in reversed(list(enumerate(cuts, start=1))):
        # No later than the last picture, and with one left for each part before it.
        start = max(min(bisect_left(places, cut), end - 1), earlier)
        parts.append(ordered[start:end])
        end = start
    return [ordered[:end], *reversed(parts)]
