"""Square crops of pictures: photographs and elevation models inside other packages, and folders."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sparsefield import progress
from sparsefield.data.files import classes, lone_extreme
from sparsefield.data.overlaps import middle, mixed, some_hashes, tell_of_overlaps, whole_hashes
from sparsefield.data.pictures import Raster, read_picture
from sparsefield.data.scale import (
    SEARCHED,
    Data,
    Scale,
    check_inside,
    given_range,
    in_three,
    pixel_scale,
    tell_of_spikes,
    tell_of_values,
    wide_enough,
)
from sparsefield.errors import UserError
from sparsefield.hashed import Purpose, generator

log = logging.getLogger(__name__)

# --- crops ----------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A square of a picture, in pixels: rows top ... top + side, columns left ... left + side."""

    top: int
    left: int
    side: int


def random_box(rng: np.random.Generator, height: int, width: int, smallest: int) -> Box:
    """A box anywhere in a picture, its side log-uniform from `smallest` to the short side: as many
    octaves of detail as of overview, and nothing is ever enlarged."""
    side = round(smallest * (min(height, width) / smallest) ** rng.random())
    return Box(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side)


class Picture:
    """A picture that gives the area average of any square at any size in O(size^2).

    Kept as a summed-area table (Crow 1984): T[i, j] is the sum of the pixels above row i and left
    of column j. Between pixel corners it is bilinear in (i, j), so that sums over boxes with
    fractional corners are exact as well.

    Args:
        pixels: (H, W, C) uint8, at most 2^24 pixels (the sums are uint32), or float.
    """

    def __init__(self, pixels: np.ndarray):
        self.height, self.width, channels = pixels.shape
        kind = np.uint32 if pixels.dtype == np.uint8 else np.float64
        self.sums = np.zeros((self.height + 1, self.width + 1, channels), dtype=kind)
        np.cumsum(pixels, axis=0, dtype=kind, out=self.sums[1:, 1:])
        np.cumsum(self.sums, axis=1, out=self.sums)

    def crop(self, box: Box, size: int) -> np.ndarray:
        """(size, size, C) float64: the mean of the box over each of size^2 cells."""
        channels = self.sums.shape[2]
        # Corner k of the cells lies at k * side / size pixels: a whole part and a fraction.
        whole, rest = np.divmod(np.arange(size + 1) * box.side, size)
        part = (rest / size)[:, None]
        corners = np.concatenate([whole, np.minimum(whole + 1, box.side)])
        index = (box.top + corners)[:, None] * (self.width + 1) + box.left + corners
        sums = self.sums.reshape(-1, channels).take(index, axis=0)   # (2 (size + 1))^2 C
        # Interpolate and difference down, then right; channels ride along in the flat rows.
        rows = _cell_sums(sums.astype(np.float64).reshape(len(corners), -1), part)
        columns = rows.reshape(size, len(corners), channels).transpose(1, 0, 2)
        columns = _cell_sums(columns.reshape(len(corners), -1), part)
        means = columns.reshape(size, size, channels) * (size / box.side) ** 2
        return np.ascontiguousarray(means.transpose(1, 0, 2))


def _cell_sums(sums: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Table rows at the whole corners, then at the next ones -> sums between corners."""
    whole, after = np.split(sums, 2)
    return np.diff(whole + (after - whole) * part, axis=0)


class CropSplit:
    """Crops of a few pictures held in memory; see `scale.Split`.

    Training example i is a random crop of picture i mod len(pictures), see `random_box`. Frozen
    examples are given as (picture, box).
    """

    has_gaps, is_symmetric = False, True

    def __init__(
        self, pictures: list[Picture], frozen: list[tuple[Picture, Box]], length: int,
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
        return None if box.side < size else self.scale.to_inside(picture.crop(box, size))


# --- photographs and elevation models inside other packages ---------------------------------------

# Colour photographs inside the scikit-image wheel, split by picture. Licences, from its own notes:
# astronaut and hubble_deep_field NASA, public domain; rocket SpaceX, public domain; retina
# (M. Haeggstroem), coffee (R. Michetti) and chelsea (S. van der Walt) CC0; ihc no known copyright
# restrictions; motorcycle_left Middlebury stereo data 2014 (Scharstein et al.), for research.
PHOTOS = {
    "train": ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
              "retina.jpg"),
    "val": ("coffee.png",),
    "test": ("chelsea.png", "rocket.jpg"),
}
# In an epoch about as many as the pictures hold disjoint 32 x 32 squares at the middle scale.
PHOTO_CROPS, FROZEN_PHOTOS = 2048, 256
LARGE_SIDE = 256  # every second frozen crop has at least this side, for the truth at 256 x 256

# Elevations in metres inside the matplotlib wheel, 344 x 403 points of 3 arc seconds around a fault
# in Tennessee and 91 x 120 points of 2 arc minutes around Vancouver Island. Split by columns, from
# west to east: no place of the test is in training. Between the parts of the fault 3 are left out.
FAULT, COAST = ("jacksboro_fault_dem.npz", "elevation"), ("topobathy.npz", "topo")
TERRAIN = {
    "train": ((FAULT, 0, 257), (COAST, 0, 84)),
    "val": ((FAULT, 260, 330),),
    "test": ((FAULT, 333, 403), (COAST, 84, 120)),
}
TERRAIN_CROPS, FROZEN_TERRAIN, LARGEST_TERRAIN = 512, 64, 64


def open_photos(image_size: int, seed: int) -> Data:
    """The photographs, cropped at random scales and shrunk to image_size.

    Frozen crops with an even index have a side of at least LARGE_SIDE, so that `high_resolution`
    gives their truth; the others are of any scale, like the training crops.

    Raises:
        UserError: image_size is not in 8 ... LARGE_SIDE, or the wheel came without its pictures.
    """
    import skimage.data

    if not 8 <= image_size <= LARGE_SIDE:
        raise UserError(
            f"image size {image_size}: the photographs can be cut at 8 to {LARGE_SIDE} pixels")
    folder = Path(skimage.data.__file__).parent
    paths = [[folder / name for name in names] for names in PHOTOS.values()]
    digest = hashlib.sha256(f"{image_size} {seed} {PHOTO_CROPS}".encode())
    for path in itertools.chain(*paths):
        if not path.exists():
            raise UserError(f"{path} is missing: reinstall scikit-image from its wheel, or choose "
                            "other --data")
        digest.update(path.read_bytes())
    parts = [[Picture(np.asarray(Image.open(path).convert("RGB"))) for path in part]
             for part in paths]
    splits = _crop_splits(parts, image_size, pixel_scale(3), seed, PHOTO_CROPS, FROZEN_PHOTOS,
                          large=LARGE_SIDE)
    return Data("photos", image_size, image_size, pixel_scale(3), digest.hexdigest(), *splits)


def open_terrain(image_size: int, seed: int) -> Data:
    """Elevations, cropped at random scales and averaged to image_size. Frozen crops overlap.

    Raises:
        UserError: image_size is not in 8 ... LARGEST_TERRAIN, or no sample data in the wheel.
    """
    from matplotlib import cbook

    if not 8 <= image_size <= LARGEST_TERRAIN:
        raise UserError(f"image size {image_size}: the elevation models can be cut at 8 to "
                        f"{LARGEST_TERRAIN} points")
    try:
        grids = {(file, name): np.asarray(cbook.get_sample_data(file)[name], dtype=np.float64)
                 for file, name in (FAULT, COAST)}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: matplotlib came without its sample data; "
                        "reinstall it from its wheel, or choose other --data") from None
    columns = " ".join(map(str, TERRAIN.values()))
    digest = hashlib.sha256(f"{image_size} {seed} {columns}".encode())
    for grid in grids.values():
        digest.update(grid.tobytes())
    elevations = np.concatenate([grid.ravel() for grid in grids.values()])
    scale = Scale(((float(elevations.min()), float(elevations.max())),), "m")
    parts = [[Picture(grids[name][:, first:last, None]) for name, first, last in areas
              if min(len(grids[name]), last - first) >= image_size] for areas in TERRAIN.values()]
    splits = _crop_splits(parts, image_size, scale, seed, TERRAIN_CROPS, FROZEN_TERRAIN, first=3)
    return Data("terrain", image_size, image_size, scale, digest.hexdigest(), *splits)


def _crop_splits(
    parts: Sequence[list[Picture]], image_size: int, scale: Scale, seed: int, in_epoch: int,
    in_test: int, *, first: int = 0, large: int = 0,
) -> list[CropSplit]:
    """Training, validation and test crops; frozen ones are a pure function of (seed, index).

    Args:
        first: number of the stream of random numbers of the first part. large: the least side of
            every second frozen crop.
    """
    splits = []
    for number, pictures in enumerate(parts, start=first):
        frozen = []
        for index in range(in_test):
            rng = generator(seed, Purpose.FROZEN_CROP, number, index)
            picture = pictures[(index // 2 if large else index) % len(pictures)]
            smallest = image_size if index % 2 else large or image_size
            frozen.append((picture, random_box(rng, picture.height, picture.width, smallest)))
        length = in_test if splits else in_epoch
        splits.append(CropSplit(pictures, frozen, length, image_size, scale))
    return splits


# --- folders --------------------------------------------------------------------------------------

# Training crops come from a copy of the picture reduced to a short side of 4 to 8 times the crop,
# so that scales differ by two octaves or more. The copies of a folder live in memory up to a size.
WORKING_SIDE = 4
CACHE_BYTES = 2 * 2**30
HELD_OUT_NAMES = {"val", "valid", "validation", "dev", "test"}  # of sub-folders beside train
READ_AGAIN, LEAST_MAPS = 8, 0.2  # pictures of validation, and of test; share of maps of classes
LIKE_FRAMES = 0.5  # of the sd of a picture, in which neighbours differ
LARGEST_SIDE = 4096  # of the centre square that truth comes from; sums over more overflow uint32


@dataclass(frozen=True)
class Found:
    """A picture that was read once and will do.

    Attributes:
        scene: the sub-folder that it lies in, directly or below; "" outside of all.
        working: (h, w, C) uint8 or float, the reduced copy; None: read again at each use.
        digest: hash of the pixels as a model sees them. whole, squares: hashes of the reduced copy
            and of parts, see `overlaps.whole_hashes` and `some_hashes`.
        low, high: of the reduced copy. white: see `pictures.Raster`.
    """

    path: Path
    scene: str
    working: np.ndarray | None
    digest: bytes
    whole: int | bytes
    squares: np.ndarray
    channels: int
    white: float | None
    low: float
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
        found = self.found[index]
        pixels = found.working
        if pixels is None:
            picture = read_picture(found.path, on_white=True).with_channels(self.scale.channels)
            pixels = _working_copy(picture, self.image_size)
        box = random_box(rng, *pixels.shape[:2], self.image_size)
        return self._shrunk(pixels, box, self.image_size)

    def example(self, index: int) -> np.ndarray:
        return self.high_resolution(index, self.image_size)

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        picture = read_picture(self.found[index].path, on_white=True)
        picture = picture.reduced(-(-min(picture.shape) // LARGEST_SIDE))
        (height, width), side = picture.shape, min(picture.shape)
        if side < size:
            return None
        box = Box((height - side) // 2, (width - side) // 2, side)
        return self._shrunk(picture.with_channels(self.scale.channels).values, box, size)

    def _shrunk(self, pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
        square = pixels[box.top:box.top + box.side, box.left:box.left + box.side]
        return self.scale.to_inside(Picture(square).crop(Box(0, 0, box.side), size))


def _working_copy(picture: Raster, image_size: int) -> np.ndarray:
    return picture.reduced(min(picture.shape) // (WORKING_SIDE * image_size)).values


def open_folder(
    folder: Path, *, image_size: int = 32, channels: int | None = None,
    val: Path | None = None, test: Path | None = None, split_by: str | None = None,
    value_range: Sequence[float] | None = None, units: str | None = None,
) -> Data:
    """The pictures in a folder and its subfolders; linked ones are followed, each folder once.

    Every picture goes to training (90 %), validation or test (5 % each) by a hash of its pixels,
    so that files added later move no other, and equal pictures, also flipped or turned, stay
    together whatever their files are. With `split_by` "folder" each sub-folder goes there whole, by
    a hash of its name. Folders `val` and `test` may hold these splits instead; see
    `scale.in_three`. Grey pictures alone make one channel.

    Pictures of 8 bits a channel keep 0 and 255 as their range. Of others (16 bits, floats) every
    bit counts: the range is 0 to 65535 for colours, and otherwise that of the training pictures,
    unless `value_range` (low, high) says it.

    Broken files, files that are none (pipes, devices), and pictures with fewer than `image_size`
    pixels a side, are skipped and named once in the log.

    Raises:
        UserError: no folder, no permission, train and val in it, fewer than three different usable
            pictures (or sub-folders, or pictures outside of them), no picture in a split's own
            folder, grey and colour pictures mixed without `channels` (1 or 3), or 8 bits mixed with
            more.
    """
    if image_size < 8:
        raise UserError(f"image size {image_size}: use at least 8")
    how = partial(_read, image_size=image_size, channels=channels, has_codes=value_range is None)
    read = [path and _read_folder(path, how) for path in (folder, val, test)]
    _refuse_mixed([found for of_folder in read for found in of_folder or ()])
    parts = in_three(*read, _by_scene if split_by else _by_digest)
    if split_by:
        log.info("split by folder: %s", ", ".join(
            f"{name} {len({picture.scene for picture in part})} folders of {len(part)} pictures"
            for name, part in zip(("training", "validation", "test"), parts, strict=True)))
    learnt = {picture.whole for picture in parts[0]}
    leaks = sum(picture.whole in learnt for picture in (*parts[1], *parts[2]))
    if folder == val == test:
        pass  # nothing is trained
    elif leaks:
        log.warning("WARNING: %d pictures to validate or to test on are training pictures, too",
                    leaks)
    else:
        _tell_by_pixels(str(val or test or folder), parts)
        _tell_of_frames(str(val or test or folder), parts)
    scale = Scale((_range_of(folder, parts[0], value_range),) * parts[0][0].channels, units)
    of_source: dict[Path, list[Found]] = {}
    for source, part in zip((folder, val or folder, test or val or folder), parts, strict=True):
        of_source.setdefault(source, []).extend(part)
    for source, found in of_source.items():
        check_inside(str(source), *_extremes(found), scale, value_range is not None)
    fingerprint = hashlib.sha256(f"{image_size} {[len(part) for part in parts]}".encode())
    for picture in itertools.chain(*parts):
        fingerprint.update(picture.digest)
    return Data(folder.resolve().name, image_size, image_size, scale, fingerprint.hexdigest(),
                *(FolderSplit(part, image_size, scale) for part in parts))


def _tell_by_pixels(source: str, parts: Sequence[list[Found]]) -> None:
    """Log overlaps with training pictures, and maps of classes, by some of those held out, of which
    all pixels are read again."""
    held = [found for part in parts[1:] for found in part[::-(-len(part) // READ_AGAIN)]]
    seen = [middle(read_picture(found.path, on_white=True).with_channels(found.channels).values)
            for found in held]
    tell_of_overlaps(source, seen, [found.squares for found in parts[0]])
    maps = [found.path for found, field in zip(held, seen, strict=True) if classes(field[None])]
    if len(maps) > LEAST_MAPS * len(held):
        log.warning("WARNING: %s: %d of %d pictures that were looked at, such as %s, may be maps "
                    "of classes, of which means say nothing: leave masks out, or give 0 and 1 for "
                    "each class instead", source, len(maps), len(held), maps[0])


def _tell_of_frames(source: str, parts: Sequence[list[Found]]) -> None:
    """Log where most pictures that are held out look like the one before or after them, by name,
    that is trained on: frames of a film."""
    learnt, alike = {found.path for found in parts[0]}, set()
    ordered = sorted(itertools.chain(*parts), key=lambda found: found.path)
    for pair in itertools.pairwise(ordered):
        held = [found.path for found in pair if found.path not in learnt]
        one, other = (found.working for found in pair)
        if len(held) == 1 and one is not None and other is not None and (
            one.shape == other.shape
            and np.std(one.astype(float) - other) < LIKE_FRAMES * np.std(one)
        ):
            alike.update(held)
    if len(alike) > (len(ordered) - len(learnt)) / 2:
        log.warning("WARNING: %s: %d of %d pictures to validate or to test on look like the one "
                    "before or after them, which is trained on (frames of a film?), and scores "
                    "will be too good: give each scene a sub-folder, and split_by folder", source,
                    len(alike), len(ordered) - len(learnt))


def _range_of(
    folder: Path, training: list[Found], given: Sequence[float] | None
) -> tuple[float, float]:
    """Of the values of all channels, which training exchanges."""
    if given is not None:
        bounds, *others = set(given_range(given, training[0].channels))
        if others:
            raise UserError("--value_range: training exchanges the channels of pictures; give "
                            "one lo hi for all")
        return bounds
    if training[0].white is not None:
        return 0.0, float(training[0].white)
    low, high = _extremes(training)
    kept = [picture.working.ravel() for picture in training if picture.working is not None]
    if kept:
        step = -(-sum(map(len, kept)) // SEARCHED)
        some = np.concatenate([values[::step] for values in kept])
        tell_of_spikes(str(folder), some[:, None], low, high)
        tell_of_values(str(folder), some[:, None])
    return wide_enough(low.item(), high.item())


def _extremes(part: list[Found]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest value, (1,) each."""
    return (np.array([min(picture.low for picture in part)]),
            np.array([max(picture.high for picture in part)]))


def _read_folder(folder: Path, how: Callable[..., Found | str]) -> list[Found]:
    """The usable pictures of a folder, by path; what is skipped is logged."""
    paths, skipped = _picture_files(folder)
    found, cached = [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(partial(how, folder), paths)
        for path in progress.over(paths, f"reading {folder}", "file"):
            result = next(results)
            if isinstance(result, str):
                skipped[path] = result
                continue
            cached += result.working.nbytes
            found.append(result if cached <= CACHE_BYTES else replace(result, working=None))
    reasons = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:10])
    if not found:
        why = f"skipped {len(skipped)}: {reasons}" if skipped else "it holds no picture files"
        raise UserError(f"{folder}: no usable picture ({why})")
    if skipped:
        log.warning("%s: skipped %d of %d: %s%s", folder, len(skipped), len(skipped) + len(found),
                    reasons, "; and more" if len(skipped) > 10 else "")
    return found


def _read(
    folder: Path, path: Path, *, image_size: int, channels: int | None, has_codes: bool
) -> Found | str:
    """A picture, or the reason why it cannot be used."""
    try:
        picture = read_picture(path, on_white=True)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    height, width = picture.shape
    if min(height, width) < image_size:
        return f"{width} x {height} pixels, fewer than {image_size}"
    if not picture.known.all():
        return "has points without a value; save such fields as one .npz with NaN there"
    if picture.white is None and has_codes:
        for values in np.moveaxis(picture.values, 2, 0):
            if (code := lone_extreme(values)) is not None:
                return (f"holds {code:.10g}, which means: not measured; save such fields as one "
                        ".npz with NaN there, or say with --value_range low high that it was "
                        "measured")
    picture = picture.with_channels(channels or picture.channels)
    digest = hashlib.sha256(f"{picture.values.shape} {picture.values.dtype}".encode())
    digest.update(np.ascontiguousarray(picture.values))
    pixels = _working_copy(picture, image_size)
    scene = next(iter(path.relative_to(folder).parent.parts), "")
    (whole,) = whole_hashes(mixed(pixels.sum(axis=2, keepdims=True)[None])).tolist()
    return Found(path, scene, pixels, digest.digest(), whole or digest.digest(),
                 some_hashes(picture.values), picture.channels, picture.white,
                 float(pixels.min()), float(pixels.max()))


def _picture_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Files that are named like pictures, and what could not be looked into, with the reason."""
    Image.init()
    # PostScript is read by an external interpreter that runs what the file says.
    endings = {ending for ending, kind in Image.registered_extensions().items()
               if kind in Image.OPEN and kind != "EPS"}
    endings |= {".npy", ".heic", ".heif"}  # the latter are not read: named among what was skipped
    skipped: dict[Path, str] = {}
    files, seen = [], set()
    for parent, below, names in os.walk(
        folder, followlinks=True,
        onerror=lambda error: skipped.update({Path(error.filename): error.strerror}),
    ):
        if (real := os.path.realpath(parent)) in seen:  # a link back, or a second way to a folder
            below.clear()
            continue
        seen.add(real)
        below.sort()
        held_out = HELD_OUT_NAMES & set(map(str.lower, below))
        if held_out and "train" in map(str.lower, below):
            raise UserError(f"{parent}: train and {' and '.join(sorted(held_out))} would be mixed: "
                            "give --data .../train --data_val .../val --data_test .../test (with "
                            "the runner DATA, DATA_VAL, DATA_TEST)")
        files += [Path(parent, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in endings]
    return sorted(files), skipped


def _refuse_mixed(found: list[Found]) -> None:
    """Raises UserError for grey beside colour, and for other depths."""
    of_channels = {picture.channels: picture.path for picture in reversed(found)}
    of_white = {picture.white: picture.path for picture in reversed(found)}
    if len(of_channels) > 1:
        raise UserError(
            f"mixed channels: {of_channels[1]} is grey and {of_channels[3]} is in colour; choose "
            "--data_channels 1 (all grey) or 3 (all in colour), with the runner DATA_CHANNELS")
    if len(of_white) > 1:
        raise UserError(f"mixed depths: {' and '.join(sorted(map(str, of_white.values())))} do "
                        "not have equally many bits a channel; convert all to one kind")


def _by_digest(found: list[Found], *shares: float) -> list[list[Found]]:
    """What remains, then parts of these shares, by digest; equal pictures, also flipped or turned,
    stay together."""
    digests: dict[int | bytes, bytes] = {}
    for picture in found:
        digests[picture.whole] = min(picture.digest, digests.get(picture.whole, picture.digest))
    copies = _grouped(found, lambda picture: digests[picture.whole])
    different = len(copies)
    if different <= len(shares):
        raise UserError(f"{found[0].path.parent}: {different} different pictures cannot be split "
                        f"into {len(shares) + 1} parts; add pictures")
    if different < len(found):
        log.info("%d of %d pictures are copies of others, perhaps flipped or turned; copies go to "
                 "one part", len(found) - different, len(found))
    return _cut(copies, *shares)


def _by_scene(found: list[Found], *shares: float) -> list[list[Found]]:
    """What remains, then parts of these shares of the sub-folders, by hashes of their names."""
    if outside := [picture.path for picture in found if not picture.scene]:
        raise UserError(f"{outside[0]}: split_by=folder, but {len(outside)} of {len(found)} "
                        "pictures lie in no sub-folder; move each into that of its scene")
    scenes = _grouped(found, lambda picture: hashlib.sha256(picture.scene.encode()).digest())
    if len(scenes) <= len(shares):
        raise UserError(f"{found[0].path}: split_by=folder, but pictures in {len(scenes)} "
                        f"sub-folder(s) cannot be split into {len(shares) + 1} parts; add folders, "
                        "leave it out, or name data to validate and test on (--data_val, "
                        "--data_test)")
    return _cut(scenes, *shares)


def _grouped(found: list[Found], key: Callable[[Found], bytes]) -> dict[bytes, list[Found]]:
    """By a hash that they share, in its order."""
    groups: dict[bytes, list[Found]] = {}
    for picture in sorted(found, key=lambda picture: (key(picture), picture.digest, picture.path)):
        groups.setdefault(key(picture), []).append(picture)
    return groups


def _cut(groups: dict[bytes, list[Found]], *shares: float) -> list[list[Found]]:
    """What remains, then parts of these shares, each of one group or more."""
    places = [int.from_bytes(digest[:6]) / 2**48 for digest in groups]
    edges = [len(groups)]
    for k in reversed(range(len(shares))):
        # No later than the last group, and with one left for each part before it.
        edge = bisect_left(places, 1 - sum(shares[k:]))
        edges.insert(0, max(min(edge, edges[0] - 1), k + 1))
    ordered = list(groups.values())
    return [list(itertools.chain(*ordered[start:end]))
            for start, end in itertools.pairwise([0, *edges])]
