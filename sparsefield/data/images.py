"""Reading one picture file, whatever is in it: the one reader of all commands."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from sparsefield.data import tiffs
from sparsefield.data.files import refuse_foreign, require_file
from sparsefield.data.raster import Raster, check_size
from sparsefield.errors import UserError

# What decoders raise on files that are broken or not what their name says.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)
ORIENTATION = 0x0112
# Pillow's ways to unpack 16 bits a channel keep one byte of two; the other way keeps the other.
_TWO_READINGS = {
    colours + here: (colours + first, colours + second)
    for colours in ("RGB", "RGBX", "RGBA")
    for here, first, second in ((";16B", ";16B", ";16L"), (";16L", ";16L", ";16B"),
                                (";16N", ";16L", ";16B"))
}


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
    """The picture, upright."""
    if not tiffs.is_tiff(path):
        return _by_pillow(path, reduced_to)
    page = tiffs.read_page(path)
    if page.colours is not None:
        raster = _of_numbers(page.colours, page.is_missing(page.colours))
        raster = _seen_through(raster, page.opacity)
    else:
        raster = _by_pillow(path)
        numbers = _places_in_palette(path) if page.is_palette else raster.values
        raster = _without(raster, page.is_missing(numbers))
    return raster.turned(page.orientation)


def _by_pillow(path: Path, reduced_to: int | None = None) -> Raster:
    """The picture, upright but for a TIFF."""
    with Image.open(path) as image:
        check_size(*image.size)
        if reduced_to:  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough
            times = reduced_to / min(image.size)
            image.draft(None, tuple(ceil(side * times) for side in image.size))
        _leave_as_stored(image)
        raster = _sixteen_bit_colours(path, image)
        if raster is None:
            is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
            raster = _grey_numbers(image) if is_deep else _eight_bits(image)
        return raster.turned(image.getexif().get(ORIENTATION))


def _leave_as_stored(image: Image.Image) -> None:
    """A TIFF's orientation is for who has all of it."""
    if image.format == "TIFF":
        # Pillow 13 turns TIFFs itself as it loads them, and scrambles those without compression.
        image.tag_v2.pop(ORIENTATION, None)
        image.getexif().pop(ORIENTATION, None)
        image._size = image._tile_size


def _places_in_palette(path: Path) -> np.ndarray:
    """(H, W, 1): places in the list of colours of a TIFF."""
    with Image.open(path) as image:
        _leave_as_stored(image)
        return np.asarray(image).reshape(*image.size[::-1], -1)[..., :1]


def _without(raster: Raster, missing: np.ndarray) -> Raster:
    """`missing`, (H, W) bool, is not known either."""
    if not missing.any():
        return raster
    known = ~missing if raster.known is None else raster.known & ~missing
    values = raster.values
    if not raster.is_8_bit:
        values = np.where(missing[..., None], np.nan, values)
    return replace(raster, values=values, known=known)


def _seen_through(raster: Raster, opacity: np.ndarray | None) -> Raster:
    """What is transparent, opacity (H, W) below a half, is not known either."""
    if opacity is None or (opacity == 1).all():
        return raster
    opaque = opacity >= 0.5
    known = opaque if raster.known is None else raster.known & opaque
    return replace(raster, known=known, opacity=opacity)


def _eight_bits(image: Image.Image) -> Raster:
    is_grey = image.mode in ("1", "L", "LA", "La")
    if not image.has_transparency_data:
        values = np.asarray(image.convert("L" if is_grey else "RGB"))
        return Raster(values.reshape(*values.shape[:2], -1), 255)
    layers = np.asarray(image.convert("RGBA"))
    raster = Raster(layers[..., :1 if is_grey else 3], 255)
    return _seen_through(raster, layers[..., 3] / 255)


def _grey_numbers(image: Image.Image) -> Raster:
    """Modes I and F: measurements, such as heights or temperatures, as they stand in the file."""
    numbers = np.asarray(image)[..., None]
    raster = Raster(numbers.astype(np.float64 if image.mode == "I" else np.float32), None)
    missing = np.isin(numbers, [image.info.get("transparency", np.nan)]) | ~np.isfinite(numbers)
    return _without(raster, missing[..., 0])


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
        both = bytes_[..., ::2] * 256 + bytes_[..., 1::2]
        return _seen_through(Raster(both[..., :1], 65535), both[..., 1] / 65535)
    if raw not in _TWO_READINGS:
        return None
    high, low = (_bytes(path, image.mode, way) for way in _TWO_READINGS[raw])
    values = high * 256 + low
    raster = Raster(values[..., :3], 65535)
    return _seen_through(raster, values[..., 3] / 65535) if values.shape[2] == 4 else raster


def _bytes(path: Path, mode: str, raw: str) -> np.ndarray:
    """One byte of each channel as float32, by unpacking the file in a way of our choice."""
    with Image.open(path) as image:
        image._mode = mode
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
            for tile in image.tile
        ]
        _leave_as_stored(image)
        return np.asarray(image).astype(np.float32)


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
    check_size(array.shape[1], array.shape[0])
    raster = _of_numbers(array[..., :3])
    if array.shape[2] < 4:
        return raster
    alpha = array[..., 3]
    if raster.white is None or np.nanmin(alpha) < 0 or np.nanmax(alpha) > raster.white:
        raise ValueError("four channels that are no red, green, blue and opacity")
    return _seen_through(raster, alpha / raster.white)


def _of_numbers(numbers: np.ndarray, missing: np.ndarray | None = None) -> Raster:
    """The picture in numbers of any type, (H, W, 1) or (H, W, 3), but for `missing`, (H, W) bool.

    What is NaN or infinite is not known either.
    """
    missing = np.zeros(numbers.shape[:2], bool) if missing is None else missing
    if numbers.dtype == np.uint8:
        return _without(Raster(numbers, 255), missing)
    missing = missing | ~np.isfinite(numbers).all(axis=2)
    is_coloured = numbers.shape[2] == 3
    white = 65535 if numbers.dtype == np.uint16 and is_coloured else None
    if numbers.dtype.kind == "f" and is_coloured:
        there = numbers[~missing]
        is_share = there.min(initial=0) >= 0 and there.max(initial=0) <= 1
        white = 1 if is_share else None  # the custom for colours in floats
    is_short = numbers.dtype.itemsize <= 2 or numbers.dtype == np.float32
    values = numbers.astype(np.float32 if is_short else np.float64)
    return _without(Raster(values, white), missing)
