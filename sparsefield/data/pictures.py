"""Reading one picture file, whatever is in it: the one reader of all commands."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sparsefield.data.files import BROKEN, one_line, refuse_foreign, require_file
from sparsefield.errors import UserError

if TYPE_CHECKING:
    from tifffile import TiffPage

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L
ORIENTATION = 0x0112  # of EXIF, and of TIFF
GDAL_METADATA, GDAL_NODATA = 42112, 42113  # tags of GeoTIFFs
TURNS = {  # orientation -> how to come from there to upright
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90,
}


@dataclass(frozen=True)
class Raster:
    """A picture, upright.

    Attributes:
        values: (H, W, 1) grey or (H, W, 3) colour, uint8, or float with every bit of the file.
        white: 255; 65535 for colours of 16 bits; 1 for colours as floats; None where grey values
            are measurements of a scale that the file does not tell (16 bits, floats).
        known: (H, W) bool: not transparent, and a number.
    """

    values: np.ndarray
    white: float | None
    known: np.ndarray

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
        if channels > self.channels:
            values = values.repeat(3, axis=2)
        elif channels < self.channels and self.is_8_bit:
            values = np.asarray(Image.fromarray(values).convert("L"))[..., None]
        elif channels < self.channels:
            values = (values @ np.array(GREY_WEIGHTS, values.dtype))[..., None]
        return replace(self, values=values)

    def without(self, missing: np.ndarray) -> Raster:
        """`missing`, (H, W) bool, is not known either."""
        values = self.values
        if not self.is_8_bit:
            values = np.where(missing[..., None], np.nan, values)
        return replace(self, values=values, known=self.known & ~missing)

    def seen_through(self, opacity: np.ndarray, on_white: bool) -> Raster:
        """Seen on white paper, or else not known where opacity (H, W) is below a half."""
        if not on_white or self.white is None:
            return self.without(opacity < 0.5)
        share = opacity[..., None]
        seen = self.values * share + self.white * (1 - share)
        seen = np.round(seen) if self.is_8_bit else seen
        return replace(self, values=seen.astype(self.values.dtype))

    def turned(self, orientation: int | None) -> Raster:
        """From an orientation as EXIF counts them to upright."""
        if (turn := TURNS.get(orientation)) is None:
            return self
        return Raster(np.ascontiguousarray(turn(self.values)), self.white, turn(self.known))

    def reduced(self, factor: int) -> Raster:
        """Blocks of factor x factor become their mean over the points that are known."""
        if factor <= 1:
            return self
        known = self.known[..., None]
        weight = _block_means(known.astype(np.float32), factor)
        if known.all():
            values = _block_means(self.values, factor)
        else:
            values = _block_means(np.where(known, self.values, 0).astype(np.float32), factor)
            values = values / np.maximum(weight, 1e-6)
            values = np.round(values).astype(np.uint8) if self.is_8_bit else values
        return Raster(values, self.white, weight[..., 0] >= 0.5)


def _block_means(values: np.ndarray, factor: int) -> np.ndarray:
    values = values if values.dtype == np.uint8 else values.astype(np.float32)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(values, 2, 0)]
    return np.stack([np.asarray(plane.reduce(factor)) for plane in planes], axis=2)


def read_picture(path: Path, on_white: bool = False) -> Raster:
    """The picture of a file, or of an .npy of (H, W) or (H, W, C) with 1, 3 or 4 (RGBA) channels.

    Upright by its EXIF orientation. No-data values, SCALE and OFFSET of a GeoTIFF are applied. What
    is transparent is seen on white paper, or else not known.

    Raises:
        UserError: no file, no permission, broken, no picture, several frames or pages, or more
            pixels than Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    require_file(path)
    refuse_foreign(path, "pictures are PNG, JPEG, TIFF, WebP, BMP, GIF or .npy")
    try:
        if path.suffix.lower() == ".npy":
            return _of_array(np.load(path, allow_pickle=False), on_white)
        with path.open("rb") as file:
            is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        return (_read_tiff if is_tiff else _read_by_pillow)(path, on_white)
    except (*BROKEN, Image.DecompressionBombError) as error:
        reason = one_line(error)
        if "allow_pickle" in reason:
            reason = "objects, or no .npy at all: save one array of numbers"
        raise UserError(f"{path}: no readable picture ({reason})") from None


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool: what is known, and half as bright as the brightest pixel or more, so that true
    may be 255, 65535, 1 or -1. See `read_picture`."""
    raster = read_picture(path).with_channels(1)
    grey = np.abs(raster.values[..., 0].astype(np.float64))
    return raster.known & (grey > 0) & (grey >= np.nanmax(grey, initial=0) / 2)


def _check_size(width: int, height: int) -> None:
    """Raises ValueError above Pillow's limit; Pillow only warns up to twice of it."""
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ValueError(f"{width} x {height} pixels are more than Pillow's limit")


def _refuse_stack(count: int, what: str) -> None:
    """Raises ValueError for several frames or pages; layers, views and overviews are none."""
    if count > 1:
        raise ValueError(f"it holds {count} {what}: save each that you want as a picture of its "
                         "own")


# --- by Pillow ------------------------------------------------------------------------------------


def _read_by_pillow(path: Path, on_white: bool, nodata: float | None = None) -> Raster:
    """The picture, upright but for a TIFF, whose orientation is for who reads all of it."""
    with Image.open(path) as image:
        _check_size(*image.size)
        if image.format not in ("TIFF", "MPO", "PSD"):
            _refuse_stack(getattr(image, "n_frames", 1), "frames")
        if image.format == "TIFF":
            # Pillow 13 turns TIFFs as it loads them, and scrambles those without compression.
            image.tag_v2.pop(ORIENTATION, None)
            image.getexif().pop(ORIENTATION, None)
            image._size = image._tile_size
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raster = _of_numbers(np.asarray(image)[..., None],
                                 image.info.get("transparency", nodata))
        elif _is_deep(image):  # Pillow keeps one byte of two
            raise ValueError("colours or opacity of more than 8 bits: save it as TIFF")
        else:
            raster = _of_8_bits(image, on_white, nodata)
        return raster.turned(image.getexif().get(ORIENTATION))


def _is_deep(image: Image.Image) -> bool:
    stored = image.tile[0].args if image.tile else ""
    first, *_, last = stored if isinstance(stored, tuple) else (stored, 0)
    return ";16" in str(first) or (image.format == "PPM" and last > 255)


def _of_8_bits(image: Image.Image, on_white: bool, nodata: float | None) -> Raster:
    """`nodata`: what all numbers of an unknown pixel are, in a palette its place."""
    channels = 1 if image.mode in ("1", "L", "LA") else 3
    values = np.atleast_3d(image.convert("L" if channels == 1 else "RGB"))
    raster = Raster(values, 255, np.ones(values.shape[:2], bool))
    if image.has_transparency_data:
        opacity = np.asarray(image.convert("RGBA").getchannel("A")) / 255
        raster = raster.seen_through(opacity, on_white)
    if nodata is not None:
        stored = np.atleast_3d(image)[..., :channels]
        raster = raster.without((stored == nodata).all(axis=2))
    return raster


# --- TIFF: 8 bits by Pillow, the rest by tifffile -------------------------------------------------


def _read_tiff(path: Path, on_white: bool) -> Raster:
    """The only page of a TIFF, beside smaller ones and masks."""
    import tifffile

    # It warns of no-data values that the type of a file cannot hold: no point has them.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with tifffile.TiffFile(path) as file:
        page = next(iter(file.pages), None)
        if page is None or page.dtype is None or page.dtype.kind not in "buif" or 0 in page.shaped:
            raise ValueError("a TIFF without numbers that can be read")
        _refuse_stack(sum(other.shape == page.shape and not other.is_mask for other in file.pages),
                      "pages")
        _check_size(page.imagewidth, page.imagelength)
        if page.bitspersample <= 8 and page.dtype.kind in "bu":
            raster = _read_by_pillow(path, on_white, _nodata(page))
        else:
            raster = _deep_page(path, page, on_white)
        raster = _scaled(raster, page)
        for other in file.pages:
            if other.is_mask and (other.imagelength, other.imagewidth) == raster.shape:
                raster = raster.without(other.asarray().reshape(raster.shape) == 0)
        return raster.turned(page.tags.valueof(ORIENTATION, 1))


def _deep_page(path: Path, page: TiffPage, on_white: bool) -> Raster:
    """Numbers of more than 8 bits, every bit: grey, or colours with or without opacity."""
    is_rgb, bands = page.photometric.name == "RGB", page.samplesperpixel
    if page.imagedepth != 1 or not (bands in (3, 4) if is_rgb else bands in (1, 3)):
        raise ValueError(f"{bands} bands, and nothing says that they are grey or red, green and "
                         "blue, with or without opacity: save a file of those that are")
    if not is_rgb and page.photometric.name not in ("MINISBLACK", "MINISWHITE"):
        raise ValueError(f"{page.photometric.name} of more than 8 bits: save it as RGB")
    extra = int(page.extrasamples[0]) if page.extrasamples else 2  # 0: no opacity, near infrared
    if bands == 4 and extra == 1:
        raise ValueError("colours of more than 8 bits multiplied by opacity: save them as they are")
    nodata = _nodata(page)
    try:
        stored = page.asarray(squeeze=False)[:, 0]  # (1, H, W, N), or (N, H, W, 1) band by band
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        if bands > 1 or page.dtype not in (np.uint16, np.int16, np.int32, np.float32):
            raise ValueError(f"{page.dtype} in a compression that is not known here, {error}: save "
                             "it without compression, or pip install imagecodecs") from None
        return _read_by_pillow(path, on_white, nodata)  # which knows more compressions
    numbers = np.concatenate(list(stored), axis=2)
    raster = _of_numbers(numbers[..., :3], nodata)
    if bands < 4 or extra == 0:
        return raster
    top = np.iinfo(numbers.dtype).max if numbers.dtype.kind in "ui" else 1
    return raster.seen_through(np.clip(numbers[..., 3] / top, 0, 1), on_white)


def _nodata(page: TiffPage) -> np.generic | None:
    """The number that means: no value, in the type of the file; None if no point can have it."""
    text = str(page.tags.valueof(GDAL_NODATA, "")).strip("\0 ").replace(",", ".")
    try:
        number = np.float64(text)
    except ValueError:
        return None
    with np.errstate(all="ignore"):
        stored = number.astype(page.dtype)
    return stored if page.dtype.kind == "f" or stored == number else None


def _scaled(raster: Raster, page: TiffPage) -> Raster:
    """Numbers by the SCALE and OFFSET of each band, which GDAL keeps in XML."""
    text = page.tags.valueof(GDAL_METADATA, "").strip("\0 ")
    terms = np.repeat([[1.0], [0.0]], page.samplesperpixel, axis=1)
    for item in ElementTree.fromstring(text or "<a/>"):
        if (role := item.get("role")) in ("scale", "offset"):
            terms[("scale", "offset").index(role), int(item.get("sample", 0))] = float(item.text)
    scale, offset = terms[:, :raster.channels]
    if (scale == 1).all() and (offset == 0).all():
        return raster
    values = raster.values.astype(float) * scale + offset
    return replace(raster, values=values, white=None).without(~raster.known)


# --- numbers --------------------------------------------------------------------------------------


def _of_numbers(numbers: np.ndarray, nodata: float | None = None) -> Raster:
    """The picture in numbers of any type, (H, W, 1) or (H, W, 3); what is not finite is unknown."""
    known = np.isfinite(numbers).all(axis=2)
    if nodata is not None:
        known &= (numbers != nodata).any(axis=2)
    white = None
    if numbers.dtype == np.uint8:
        return Raster(numbers, 255, known)
    if numbers.shape[2] == 3 and numbers.dtype == np.uint16:
        white = 65535
    elif numbers.shape[2] == 3 and numbers.dtype.kind == "f":
        there = numbers[known]  # the custom for colours in floats is 0 to 1
        white = 1 if there.min(initial=0) >= 0 and there.max(initial=0) <= 1 else None
    is_short = numbers.dtype.itemsize <= 2 or numbers.dtype == np.float32
    values = numbers.astype(np.float32 if is_short else np.float64)
    return Raster(values, white, known).without(~known)


def _of_array(array: np.ndarray, on_white: bool) -> Raster:
    """The picture in an array: see `read_picture`."""
    if array.ndim == 2 and array.shape[1] in (3, 4) and len(array) > 2 * array.shape[1]:
        raise ValueError(f"shape {array.shape}: rows of x, y, value? save those as CSV, or as .npz "
                         "with coords and values")
    shape = array.shape if array.ndim != 2 else (*array.shape, 1)
    if array.dtype.kind not in "buif" or len(shape) != 3 or 0 in shape or shape[2] not in (1, 3, 4):
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype}: give numbers of "
                         "(H, W), or (H, W, C) with 1, 3 or 4 channels (not channels first)")
    array = array.reshape(shape)
    _check_size(array.shape[1], array.shape[0])
    raster = _of_numbers(array[..., :3])
    if array.shape[2] < 4:
        return raster
    alpha = array[..., 3]
    if raster.white is None or np.nanmin(alpha) < 0 or np.nanmax(alpha) > raster.white:
        raise ValueError("four channels that are no red, green, blue and opacity")
    return raster.seen_through(alpha / raster.white, on_white)
