"""The embedded data set: colour photographs that ship inside the scikit-image wheel.

Split by picture. Licences, from scikit-image's own notes: astronaut and hubble_deep_field NASA,
public domain; rocket SpaceX, public domain; retina (M. Haeggstroem), coffee (R. Michetti) and
chelsea (S. van der Walt) CC0; ihc no known copyright restrictions; motorcycle_left Middlebury
stereo data 2014 (Scharstein et al.), shipped for research. motorcycle_right shows the same scene
as motorcycle_left and is left out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from sparsefield.data.base import Data
from sparsefield.data.pictures import Box, CropSplit, Picture
from sparsefield.data.scale import pixel_scale
from sparsefield.data.streams import Purpose, generator
from sparsefield.errors import UserError

TRAIN = (
    "astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg",
)
VAL = ("coffee.png",)
TEST = ("chelsea.png", "rocket.jpg")

# The crops of an epoch: about as many as the pictures hold disjoint 32 x 32 squares at the
# middle (geometric mean) scale, and 32 steps of the default batch, which logs read well.
CROPS_PER_EPOCH = 2048
FROZEN_CROPS = 256
# Every second frozen crop has at least this side, so that the truth at 256 x 256 is real.
LARGE_SIDE = 256


def open_photos(image_size: int = 32, seed: int = 0) -> Data:
    """The photographs, cropped at random scales and shrunk to image_size.

    Validation and test are 256 frozen crops each, a pure function of (seed, index). Crops with
    an even index have a side of at least 256 px, so that `high_resolution` gives their truth at
    every size up to 256; the others are of any scale, like the training crops.

    Raises:
        UserError: image_size is not in 8 ... 256, or the wheel came without its pictures.
    """
    if not 8 <= image_size <= LARGE_SIDE:
        raise UserError(
            f"image size {image_size}: the photographs can be cut at 8 to {LARGE_SIDE} pixels"
        )
    folder = Path(skimage.data.__file__).parent
    scale = pixel_scale(3)

    def split(names: tuple[str, ...], length: int, first: int) -> CropSplit:
        pictures = [_read(folder / name) for name in names]
        frozen = [
            _frozen_crop(pictures, image_size, seed, first, i) for i in range(FROZEN_CROPS)
        ]
        return CropSplit(pictures, frozen, length, image_size, scale)

    return Data(
        name="photos",
        height=image_size,
        width=image_size,
        scale=scale,
        fingerprint=_fingerprint(folder, image_size, seed),
        train=split(TRAIN, CROPS_PER_EPOCH, 0),
        val=split(VAL, FROZEN_CROPS, 1),
        test=split(TEST, FROZEN_CROPS, 2),
    )


def _read(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            return Picture(np.asarray(image.convert("RGB")))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: reinstall scikit-image from its wheel, or choose other --data"
        ) from None


def _frozen_crop(
    pictures: list[Picture], image_size: int, seed: int, split: int, index: int
) -> tuple[int, Box]:
    rng = generator(seed, Purpose.FROZEN_CROP, split, index)
    which = index // 2 % len(pictures)
    smallest = LARGE_SIDE if index % 2 == 0 else image_size
    return which, pictures[which].random_box(rng, smallest)


def _fingerprint(folder: Path, image_size: int, seed: int) -> str:
    digest = hashlib.sha256(f"{image_size} {seed} {CROPS_PER_EPOCH}".encode())
    for name in TRAIN + VAL + TEST:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
