"""Square crops of pictures of any size, shrunk by exact area averages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsefield.data.scale import Scale


@dataclass(frozen=True)
class Box:
    """A square of a picture, in pixels: rows top ... top + side, columns left ... left + side."""

    top: int
    left: int
    side: int


def random_box(
    rng: np.random.Generator, height: int, width: int, smallest: int, largest: int
) -> Box:
    """A box with log-uniform side in [smallest, largest], anywhere inside a picture."""
    side = round(smallest * (largest / smallest) ** rng.random())
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
        self.height = height
        self.width = width
        kind = np.uint32 if pixels.dtype == np.uint8 else np.float64
        self.sums = np.zeros((height + 1, width + 1, channels), dtype=kind)
        np.cumsum(pixels, axis=0, dtype=kind, out=self.sums[1:, 1:])
        np.cumsum(self.sums, axis=1, out=self.sums)

    def random_box(self, rng: np.random.Generator, smallest: int) -> Box:
        """A box with a side between `smallest` and the whole short side."""
        largest = min(self.height, self.width)
        return random_box(rng, self.height, self.width, smallest, largest)

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
    """Crops of a few pictures held in memory; see `base.Split`.

    Training example i is a random crop of picture i mod len(pictures), with sides from
    `image_size` (so that nothing is ever enlarged) to the picture's short side, log-uniform: as
    many octaves of detail as of overview. Frozen examples are given as (picture, box).
    """

    has_gaps, is_symmetric = False, True

    def __init__(
        self, pictures: list[Picture], frozen: list[tuple[int, Box]], length: int,
        image_size: int, scale: Scale,
    ):
        self.pictures = pictures
        self.frozen = frozen
        self.length = length
        self.image_size = image_size
        self.scale = scale

    def __len__(self) -> int:
        return self.length

    def training_example(self, index: int, rng: np.random.Generator) -> np.ndarray:
        picture = self.pictures[index % len(self.pictures)]
        box = picture.random_box(rng, self.image_size)
        return self.scale.to_inside(picture.crop(box, self.image_size))

    def example(self, index: int) -> np.ndarray:
        picture, box = self.frozen[index]
        return self.scale.to_inside(self.pictures[picture].crop(box, self.image_size))

    def high_resolution(self, index: int, size: int) -> np.ndarray | None:
        picture, box = self.frozen[index]
        if box.side < size:
            return None
        return self.scale.to_inside(self.pictures[picture].crop(box, size))
