"""A picture in memory: its values, which of them are known, and what is transparent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L
TURNS = {  # EXIF's orientation -> how to come from there to upright
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90,
}


@dataclass(frozen=True)
class Raster:
    """A picture, upright.

    Attributes:
        values: (H, W, 1) grey or (H, W, 3) colour, uint8, or float with every bit of the file.
        white: 255; 65535 for colours of 16 bits; None where grey values are measurements of a
            scale that the file does not tell (16 bits, floats).
        known: (H, W) bool: not transparent, and a number; None if all are.
        opacity: (H, W) in [0, 1], None if all is opaque.
    """

    values: np.ndarray
    white: float | None
    known: np.ndarray | None = None
    opacity: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[:2]

    @property
    def channels(self) -> int:
        return self.values.shape[2]

    @property
    def is_8_bit(self) -> bool:
        return self.values.dtype == np.uint8

    def with_channels(self, channels: int) -> Raster:
        """Grey (1) or in colour (3)."""
        values = self.values
        if channels == 3 and self.channels == 1:
            values = values.repeat(3, axis=2)
        elif channels == 1 and self.channels == 3 and self.is_8_bit:
            values = np.asarray(Image.fromarray(values).convert("L"))[..., None]
        elif channels == 1 and self.channels == 3:
            values = (values @ np.array(GREY_WEIGHTS, values.dtype))[..., None]
        return Raster(values, self.white, self.known, self.opacity)

    def turned(self, orientation: int | None) -> Raster:
        """From an orientation as EXIF counts them to upright."""
        turn = TURNS.get(orientation)
        if turn is None:
            return self
        layers = (None if layer is None else np.ascontiguousarray(turn(layer))
                  for layer in (self.values, self.known, self.opacity))
        values, known, opacity = layers
        return Raster(values, self.white, known, opacity)

    def on_white(self) -> Raster:
        """What is transparent seen on white paper; what is opaque without a value stays unknown."""
        if self.opacity is None or self.white is None:
            return self
        share = self.opacity[..., None]
        blended = self.values * share + self.white * (1 - share)
        values = np.round(blended).astype(np.uint8) if self.is_8_bit else blended
        known = self.known | (self.opacity < 0.5)
        return Raster(values.astype(self.values.dtype), self.white, None if known.all() else known)

    def reduced(self, factor: int) -> Raster:
        """Blocks of factor x factor become their mean over the points that are known."""
        if factor == 1:
            return self
        if self.known is None:
            return Raster(_block_means(self.values, factor), self.white)
        weight = _block_means(self.known[..., None].astype(np.float32), factor)
        known = weight[..., 0] >= 0.5
        sums = _block_means(
            np.where(self.known[..., None], self.values, 0).astype(np.float32), factor)
        values = sums / np.maximum(weight, 1e-6)
        values = np.round(values).astype(np.uint8) if self.is_8_bit else values
        opacity = None if self.opacity is None else _block_means(
            self.opacity[..., None].astype(np.float32), factor)[..., 0]
        return Raster(values, self.white, known, opacity)


def check_size(width: int, height: int) -> None:
    """Raises ValueError above Pillow's limit; Pillow itself only warns up to twice of it."""
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ValueError(f"{width} x {height} pixels are more than Pillow's limit")


def _block_means(values: np.ndarray, factor: int) -> np.ndarray:
    if values.dtype == np.uint8:
        picture = Image.fromarray(values.squeeze(2) if values.shape[2] == 1 else values)
        return np.asarray(picture.reduce(factor)).reshape(
            -(-values.shape[0] // factor), -(-values.shape[1] // factor), -1)
    planes = [np.asarray(Image.fromarray(plane.astype(np.float32)).reduce(factor))
              for plane in np.moveaxis(values, 2, 0)]
    return np.stack(planes, axis=2)
