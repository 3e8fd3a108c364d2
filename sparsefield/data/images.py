"""Reading one picture file with Pillow, whatever is in it."""

from __future__ import annotations

import struct
import zlib
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sparsefield.errors import UserError

# What Pillow's decoders raise on files that are broken or not what their name says.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)


def read_image(path: Path, reduced_to: int | None = None) -> Image.Image:
    """The picture upright (EXIF) in mode L or RGB, on white where it is transparent.

    Of several frames the first counts. With `reduced_to`, the result may be smaller than the
    file, by a whole factor, but its short side is no less than `reduced_to` unless the file's is.

    Raises:
        UserError: no permission, broken, no picture, or more pixels than Pillow's limit
            (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with Image.open(path) as image:
            return _upright(image, reduced_to)
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r or choose another") from None
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: no readable picture ({reason})") from None


def _upright(image: Image.Image, reduced_to: int | None) -> Image.Image:
    width, height = image.size
    # Pillow itself only warns between its limit and twice its limit.
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ValueError(f"{width} x {height} pixels are more than Pillow's limit")
    if reduced_to:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough.
        times = reduced_to / min(width, height)
        image.draft(None, (ceil(width * times), ceil(height * times)))
    plain = _plain(ImageOps.exif_transpose(image))
    return plain.reduce(max(1, min(plain.size) // reduced_to)) if reduced_to else plain


def _plain(image: Image.Image) -> Image.Image:
    """Any mode -> L or RGB of 8 bits."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: save such values as .npy instead")
    plain_mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(plain_mode)
