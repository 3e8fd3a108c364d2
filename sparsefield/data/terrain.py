"""The embedded elevation models: two files inside the matplotlib wheel, in metres.

jacksboro_fault_dem.npz, 344 x 403 points of 3 arc seconds around a fault in Tennessee (matplotlib's
example of shaded relief), and topobathy.npz, 91 x 120 points of 2 arc minutes of land and sea
around Vancouver Island. Split by place, from west to east: no place of the test is in training.
"""

from __future__ import annotations

import hashlib

import numpy as np

from sparsefield.data.base import Data
from sparsefield.data.pictures import Box, CropSplit, Picture
from sparsefield.data.scale import Scale
from sparsefield.data.streams import Purpose, generator
from sparsefield.errors import UserError

FAULT, COAST = ("jacksboro_fault_dem.npz", "elevation"), ("topobathy.npz", "topo")
# Columns of each file that belong to a part. Between those of the fault 3 are left out.
TRAIN = ((FAULT, 0, 257), (COAST, 0, 84))
VAL = ((FAULT, 260, 330),)
TEST = ((FAULT, 333, 403), (COAST, 84, 120))
LARGEST = 64
CROPS_PER_EPOCH = 512
FROZEN_CROPS = 64


def open_terrain(image_size: int = 32, seed: int = 0) -> Data:
    """Elevations cropped at random scales and averaged to image_size, flipped and turned in
    training.

    Validation and test are 64 frozen crops each, a pure function of (seed, index), from image_size
    points to the width of their part; they overlap.

    Raises:
        UserError: image_size is not in 8 ... 64, or the wheel came without its sample data.
    """
    if not 8 <= image_size <= LARGEST:
        raise UserError(f"image size {image_size}: the elevation models can be cut at 8 to "
                        f"{LARGEST} points")
    grids = {name: _read(*name) for name in (FAULT, COAST)}
    low, high = (float(f([f(grid) for grid in grids.values()])) for f in (np.min, np.max))
    scale = Scale(((low, high),), "m")

    def split(areas: tuple, length: int, number: int) -> CropSplit:
        pieces = [grids[name][:, first:last] for name, first, last in areas]
        pictures = [Picture(piece[..., None]) for piece in pieces if min(piece.shape) >= image_size]
        frozen = [_frozen_crop(pictures, image_size, seed, number, i) for i in range(FROZEN_CROPS)]
        return CropSplit(pictures, frozen, length, image_size, scale)

    digest = hashlib.sha256(f"{image_size} {seed} {TRAIN} {VAL} {TEST}".encode())
    for grid in grids.values():
        digest.update(grid.tobytes())
    return Data("terrain", image_size, image_size, scale, digest.hexdigest(),
                train=split(TRAIN, CROPS_PER_EPOCH, 3), val=split(VAL, FROZEN_CROPS, 4),
                test=split(TEST, FROZEN_CROPS, 5))


def _read(file: str, name: str) -> np.ndarray:
    """(H, W) float64, in metres."""
    from matplotlib import cbook

    try:
        return np.asarray(cbook.get_sample_data(file)[name], dtype=np.float64)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: matplotlib came without its sample data; reinstall it "
                        "from its wheel, or choose other --data") from None


def _frozen_crop(
    pictures: list[Picture], image_size: int, seed: int, split: int, index: int
) -> tuple[int, Box]:
    rng = generator(seed, Purpose.FROZEN_CROP, split, index)
    which = index % len(pictures)
    return which, pictures[which].random_box(rng, image_size)
