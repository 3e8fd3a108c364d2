"""Reading one picture file, whatever is in it: the one reader of all commands."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparsefield.data.files import refuse_foreign, require_file
from sparsefield.errors import UserError

# What decoders raise on files that are broken or not what their name says.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L
GDAL_NODATA = 42113  # the TIFF tag in which geographers name the value of missing points
ORIENTATION = 0x0112
TURNS = {  # orientation -> how to come from there to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
# Pillow's ways to unpack 16 bits a channel keep one byte of two; the other way keeps the other.
_TWO_READINGS = {
    "RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
    "RGB;16L": ("RGB;16L", "RGB;16B"), "RGBA;16L": ("RGBA;16L", "RGBA;16B"),
    "RGB;16N": ("RGB;16L", "RGB;16B"), "RGBA;16N": ("RGBA;16L", "RGBA;16B"),
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

    def on_white(self) -> Raster:
        """What is transparent seen on white paper; nothing is unknown then but NaN."""
        if self.opacity is None or self.white is None:
            return self
        share = self.opacity[..., None]
        blended = self.values * share + self.white * (1 - share)
        values = np.round(blended).astype(np.uint8) if self.is_8_bit else blended
        return Raster(values.astype(self.values.dtype), self.white)

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
        return Raster(values, self.white, known)


def read_picture(path: Path, reduced_to: int | None = None) -> Raster:
    """The picture of a file, or of an .npy of (H, W) or (H, W, C) with 1, 3 or 4 (RGBA) channels.

    Upright by its EXIF orientation, of several frames the first. With `reduced_to`, the result
    may be smaller than the file, by a whole factor, but its short side is no less than
    `reduced_to` unless the file's is.

    Raises:
        UserError: no file, no permission, broken, no picture, or more pixels than Pillow's limit
            (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    require_file(path)
    refuse_foreign(path, "pictures are PNG, JPEG, TIFF, WebP, BMP, GIF or .npy")
    try:
        raster = _of_array(_load_npy(path)) if path.suffix.lower() == ".npy" else _decode(
            path, reduced_to)
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r or choose another") from None
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: no readable picture ({reason})") from None
    return raster.reduced(max(1, min(raster.shape) // reduced_to)) if reduced_to else raster


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool: what is white in a picture, and not transparent. See `read_picture`.

    Of a mask that is nowhere as bright as grey, with two values only (0 and 1, say), the higher
    one counts as white. NaN is not known.
    """
    raster = read_picture(path).with_channels(1)
    grey = raster.values[..., 0]
    brightest = np.nanmax(grey, initial=0)
    white = 255 if raster.is_8_bit else next(w for w in (1, 255, 65535, np.inf) if brightest <= w)
    known = grey >= white / 2
    if not known.any() and len(np.unique(grey)) == 2:
        known = grey == brightest
    return known if raster.known is None else known & raster.known


# --- decoding -------------------------------------------------------------------------------------


def _decode(path: Path, reduced_to: int | None) -> Raster:
    try:
        with Image.open(path) as image:
            _check_size(*image.size)
            if reduced_to:  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough
                times = reduced_to / min(image.size)
                image.draft(None, tuple(ceil(side * times) for side in image.size))
            deep = _sixteen_bit_colours(path, image)
            if deep is not None:
                return deep
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return _grey_numbers(image)
            return _eight_bits(_upright(image))
    except UnidentifiedImageError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
    import tifffile  # comes with scikit-image; knows more kinds of TIFF (64 bits, float colours)

    try:
        return _of_array(tifffile.imread(path, key=0))
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from None


def _check_size(width: int, height: int) -> None:
    # Pillow itself only warns between its limit and twice its limit.
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ValueError(f"{width} x {height} pixels are more than Pillow's limit")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says."""
    exif = image.getexif()
    turn = TURNS.get(exif.get(ORIENTATION))
    if turn is not None and image.format == "TIFF":
        # Pillow 13 turns TIFFs itself as it loads them, and scrambles those without compression.
        image.tag_v2.pop(ORIENTATION, None)
        exif.pop(ORIENTATION, None)
        image._size = image._tile_size
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Raster:
    is_grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        values = np.asarray(image.convert("L" if is_grey else "RGB"))
        return Raster(values.reshape(*values.shape[:2], -1), 255)
    layers = np.asarray(image.convert("RGBA"))
    return _with_alpha(layers[..., :1 if is_grey else 3], layers[..., 3], 255)


def _with_alpha(values: np.ndarray, alpha: np.ndarray, white: float) -> Raster:
    if (alpha == white).all():
        return Raster(values, white)
    return Raster(values, white, alpha >= white / 2, alpha / white)


def _grey_numbers(image: Image.Image) -> Raster:
    """Modes I and F: measurements, such as heights or temperatures, as they stand in the file."""
    missing = [image.info["transparency"]] if "transparency" in image.info else []
    named = getattr(image, "tag_v2", {}).get(GDAL_NODATA)
    if named is not None:
        missing.append(float(str(named).strip("\0 ")))
    values = np.asarray(_upright(image))
    values = values.astype(np.float64 if image.mode == "I" else np.float32)
    return _numbers(np.where(np.isin(values, missing), np.nan, values)[..., None], None)


def _sixteen_bit_colours(path: Path, image: Image.Image) -> Raster | None:
    """Colours, and grey with transparency, of which Pillow would keep 8 bits; None for others."""
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    if image.format == "PPM" and image.mode == "RGB" and isinstance(arguments, tuple) and (
        arguments[-1] > 255
    ):
        raise ValueError("more than 8 bits a channel in a PPM: save it as PNG or TIFF")
    if raw == "LA;16B":  # its four bytes a pixel are as many as those of 8-bit RGBA
        bytes_ = _bytes(path, "RGBA", "RGBA")
        return _with_alpha(bytes_[..., :1] * 256 + bytes_[..., 1:2],
                           bytes_[..., 2] * 256 + bytes_[..., 3], 65535)
    if raw not in _TWO_READINGS:
        return None
    high, low = (_bytes(path, image.mode, way) for way in _TWO_READINGS[raw])
    values = high * 256 + low
    if values.shape[2] == 4:
        return _with_alpha(values[..., :3], values[..., 3], 65535)
    return Raster(values, 65535)


def _bytes(path: Path, mode: str, raw: str) -> np.ndarray:
    """One byte of each channel as float32, by unpacking the file in a way of our choice."""
    with Image.open(path) as image:
        image._mode = mode
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
            for tile in image.tile
        ]
        return np.asarray(_upright(image)).astype(np.float32)


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError("objects, or no .npy at all: save one array of numbers") from None


def _of_array(array: np.ndarray) -> Raster:
    """The picture in an array: see `read_picture`."""
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype}: give numbers of "
                         "(H, W), or (H, W, C) with 1, 3 or 4 channels")
    if array.ndim == 2 and array.shape[1] in (3, 4) and len(array) > 2 * array.shape[1]:
        raise ValueError(f"shape {array.shape}: rows of x, y, value? save those as CSV, or as .npz "
                         "with coords and values")
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] not in (1, 3, 4):
        first = " (channels first? move them last)" if array.shape[0] in (1, 3, 4) else ""
        raise ValueError(f"shape {array.shape}: the last axis holds the channels, 1, 3 or 4{first}")
    _check_size(array.shape[1], array.shape[0])
    if array.dtype == np.uint16 and array.shape[2] >= 3:
        white = 65535
    elif array.dtype == np.uint8:
        white = 255
    else:
        white = None
        if array.dtype.kind == "f" and array.shape[2] >= 3 and (
            np.nanmin(array) >= 0 and np.nanmax(array) <= 1
        ):
            white = 1  # the custom for colours in floats
    if array.dtype != np.uint8:
        array = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
    if array.shape[2] == 4:
        if white is None:
            raise ValueError("four channels that are no red, green, blue and opacity")
        return _with_alpha(array[..., :3], array[..., 3], white)
    return Raster(array, white) if white == 255 else _numbers(array, white)


def _numbers(values: np.ndarray, white: float | None) -> Raster:
    known = np.isfinite(values).all(axis=2)
    return Raster(values, white, None if known.all() else known)


def _block_means(values: np.ndarray, factor: int) -> np.ndarray:
    if values.dtype == np.uint8:
        picture = Image.fromarray(values.squeeze(2) if values.shape[2] == 1 else values)
        return np.asarray(picture.reduce(factor)).reshape(
            -(-values.shape[0] // factor), -(-values.shape[1] // factor), -1)
    planes = [np.asarray(Image.fromarray(plane.astype(np.float32)).reduce(factor))
              for plane in np.moveaxis(values, 2, 0)]
    return np.stack(planes, axis=2)
