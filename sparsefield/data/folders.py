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
from sparsefield.data.images import read_image
from sparsefield.data.pictures import Box, Picture, flip, random_box
from sparsefield.data.scale import Scale, pixel_scale
from sparsefield.errors import UserError

log = logging.getLogger(__name__)

# Training crops come from a copy of the picture reduced to a short side of 4 to 8 times the crop,
# so that scales differ by two octaves or more. The copies live in memory up to this size.
WORKING_SIDE = 4
CACHE_BYTES = 2 * 2**30
# Truth at up to this many pixels comes from the file itself; sums over more overflow uint32.
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Found:
    """A picture that was read once and will do."""

    path: Path
    working: np.ndarray | None  # (h, w, C) uint8; None: read again at each use
    place: float                # in [0, 1), from the name alone: decides the split


class FolderSplit:
    """Pictures of a folder; see `base.Split`.

    Training example i is a random crop of picture i, frozen example i its centre square.
    """

    has_gaps = False

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
        return self.scale.to_inside(flip(self._shrink(pixels, box, self.image_size), rng))

    def example(self, index: int) -> np.ndarray:
        return self.scale.to_inside(self._centre(index, self.image_size))

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        centre = self._centre(index, size)
        return None if centre is None else self.scale.to_inside(centre)

    def _working(self, index: int) -> np.ndarray:
        image = read_image(self.found[index].path, WORKING_SIDE * self.image_size)
        return _pixels(image, self._mode)

    def _centre(self, index: int, size: int) -> np.ndarray | None:
        """The largest square in the middle of the file's picture, (size, size, C)."""
        image = read_image(self.found[index].path)
        image = image.reduce(-(-min(image.size) // LARGEST_SIDE))
        side = min(image.size)
        if side < size:
            return None
        box = Box((image.height - side) // 2, (image.width - side) // 2, side)
        return self._shrink(_pixels(image, self._mode), box, size)

    @property
    def _mode(self) -> str:
        return "L" if self.scale.channels == 1 else "RGB"

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

    Broken files, and pictures with fewer than `image_size` pixels a side, are skipped and named
    once in the log.

    Raises:
        UserError: no folder, no permission, fewer than three usable pictures in all, no picture
            in a split's own folder, or grey and colour pictures mixed without `channels` (1 or 3).
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
    scale = pixel_scale(read.common_channels())
    train, val_split, test_split = (FolderSplit(part, image_size, scale) for part in parts)
    return Data(
        folder.resolve().name, image_size, image_size, scale, read.digest.hexdigest(),
        train, val_split, test_split,
    )


class _Reader:
    """Reads whole folders and remembers what it met: files, channels, reasons to skip."""

    def __init__(self, image_size: int, channels: int | None):
        self.image_size = image_size
        self.mode = {None: None, 1: "L", 3: "RGB"}[channels]
        self.cached = 0
        self.examples: dict[int, Path] = {}  # channels -> a file that has so many
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

    def common_channels(self) -> int:
        if len(self.examples) > 1:
            grey, colour = self.examples[1], self.examples[3]
            raise UserError(
                f"mixed channels: {grey} is grey and {colour} is in colour; choose --channels 1 "
                "(all grey) or --channels 3 (all in colour)"
            )
        return next(iter(self.examples))

    def _read(self, path: Path) -> np.ndarray | str:
        """The working copy of a picture, or the reason why it cannot be used."""
        try:
            image = read_image(path, WORKING_SIDE * self.image_size)
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
        if min(image.size) < self.image_size:
            return f"{image.width} x {image.height} pixels, fewer than {self.image_size}"
        return _pixels(image, self.mode)

    def _keep(self, folder: Path, path: Path, pixels: np.ndarray) -> Found:
        name = path.relative_to(folder).as_posix()
        self.digest.update(f"{name} {path.stat().st_size}\n".encode())
        self.examples.setdefault(pixels.shape[2], path)
        self.cached += pixels.nbytes
        working = pixels if self.cached <= CACHE_BYTES else None
        return Found(path, working, _place(name))


def _pixels(image: Image.Image, mode: str | None) -> np.ndarray:
    """(H, W, C) uint8, in mode L or RGB if one is asked for."""
    pixels = np.asarray(image.convert(mode) if mode else image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _picture_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Files that are named like pictures, and the folders that could not be looked into."""
    Image.init()
    # PostScript is read by an external interpreter that runs what the file says.
    endings = {
        ending for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind != "EPS"
    }
    closed: dict[Path, str] = {}
    walk = os.walk(folder, onerror=lambda e: closed.update({Path(e.filename): e.strerror}))
    files = [
        Path(parent, name) for parent, _, names in walk for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in endings
    ]
    return sorted(files), closed


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
