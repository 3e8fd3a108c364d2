"""Square crops of photographs at many scales, as an array to train on.

    python scripts/crops.py FOLDER crops.npz                  # 32 x 32, 90 of each picture
    python scripts/crops.py FOLDER crops.npz --with base.npz  # after the crops of another array

Each crop shows its picture at a scale of its own: brought down to a longer side between --sides,
the logarithm uniform, at least by 1.25, so that compression does not show. Crops that are nearly
flat are kept only in part (--flat): there is little to learn in them. The same seed gives the same
crops.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsefield import cli, progress
from sparsefield.errors import UserError, require_seed

SHRINK = 1.25
FLAT_SD = 6.0  # of grey values, of 255
KINDS = {".jpg", ".jpeg", ".png", ".webp"}


def crops_of(
    picture: Image.Image, count: int, side: int, sides: tuple[int, int], flat: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """(n, side, side, 3) uint8, n at most `count`; none of a picture that is too small."""
    short, long = sorted(picture.size)
    low, high = max(sides[0], side * long / short), min(sides[1], long / SHRINK)
    if low > high:
        return np.zeros((0, side, side, 3), np.uint8)
    found = []
    for _ in range(2 * count):
        scale = np.exp(rng.uniform(np.log(low), np.log(high))) / long
        width, height = (max(side, round(size * scale)) for size in picture.size)
        left, top = rng.integers(width - side + 1), rng.integers(height - side + 1)
        box = (left / width, top / height, (left + side) / width, (top + side) / height)
        box = tuple(part * size for part, size in zip(box, 2 * picture.size, strict=True))
        crop = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS, box=box))
        if crop.mean(axis=2).std() >= FLAT_SD or rng.random() < flat:
            found.append(crop)
        if len(found) == count:
            break
    return np.array(found, np.uint8).reshape(-1, side, side, 3)


def of_file(path: Path, number: int, given: argparse.Namespace) -> np.ndarray:
    """The crops of one picture. Raises UserError if it is none."""
    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":  # convert would cut them off at 255
                raise UserError(f"{path}: not of 8 bits a colour; convert it, or leave it out")
            whole = picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: not a picture that can be read ({error})") from error
    rng = np.random.default_rng([given.seed, number])
    return crops_of(whole, given.count, given.side, given.sides, given.flat, rng)


def gather(folder: Path, given: argparse.Namespace) -> np.ndarray:
    """All crops of the pictures of a folder, by name. Raises UserError if there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
    with ProcessPoolExecutor() as processes:
        found = processes.map(of_file, paths, range(len(paths)), [given] * len(paths))
        parts = [next(found) for _ in progress.over(paths, f"reading {folder}", "file")]
    if not sum(map(len, parts)):
        kinds = ", ".join(sorted(KINDS))
        raise UserError(f"{folder}: no pictures, or all too small; kinds: {kinds}")
    return np.concatenate(parts)


def before(path: Path, side: int) -> np.ndarray:
    """`images` of an array of crops. Raises UserError where it is none of this size."""
    try:
        with np.load(path) as file:
            images = file["images"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no .npz with an array `images`") from error
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
        raise UserError(f"{path}: images are {images.dtype} {images.shape}, not uint8 crops of "
                        f"{side} x {side} x 3")
    return images


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, help="the .npz to write")
    parser.add_argument("--with", dest="base", type=Path, help="an .npz whose crops come first")
    parser.add_argument("--count", type=int, default=90, help="crops of each picture")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--sides", type=int, nargs=2, default=(56, 420),
                        help="longer side of a picture when it is cropped, least and most")
    parser.add_argument("--flat", type=float, default=0.2, help="share of flat crops that is kept")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.target.suffix != ".npz" or not given.target.resolve().parent.is_dir():
        raise UserError(f"{given.target}: crops are written as .npz into a folder that is there")
    if min(given.count, given.side, *given.sides) < 1:
        raise UserError("--count, --side and --sides must be at least 1")
    require_seed(given.seed)
    if given.sides[0] > given.sides[1]:
        raise UserError(f"--sides {given.sides[0]} {given.sides[1]}: least and most, please")
    if not given.folder.is_dir():
        raise UserError(f"{given.folder}: no such folder")
    images = gather(given.folder, given)
    count = len(images)
    if given.base is not None:
        images = np.concatenate([before(given.base, given.side), images])
    np.savez(given.target, images=images)
    print(f"{given.target}: {len(images):,} crops, {count:,} of them from {given.folder}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
