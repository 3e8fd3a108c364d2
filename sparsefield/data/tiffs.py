"""TIFF files: the numbers of their first page as they stand in the file, and what its tags say."""

from __future__ import annotations

import logging
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from sparsefield.data.raster import check_size

# It warns of no-data values that the type of a file cannot hold: no point has them.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, GDAL_NODATA = 274, 42113  # tags; in the latter geographers name what means: no value
INKS = (PHOTOMETRIC.SEPARATED, PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB, PHOTOMETRIC.ITULAB)
# Numbers that are no shades: Pillow makes colours of them.
CONVERTED = (PHOTOMETRIC.PALETTE, PHOTOMETRIC.YCBCR, *INKS)
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2  # what a band beside the colours is; 1, 2: opacity
# What tifffile raises on broken files, and where it lacks a codec.
_UNREADABLE = (tifffile.TiffFileError, ImportError, ValueError, TypeError, LookupError,
               RuntimeError, OSError, struct.error, zlib.error)


@dataclass(frozen=True)
class Page:
    """The first page of a file, not yet turned upright.

    Attributes:
        colours: (H, W, 1) or (H, W, 3), of the file's type; None: Pillow reads it as well.
        opacity: (H, W) in [0, 1], or None.
        nodata: the number that means: no value, as `colours` or Pillow show it, or None.
        orientation: as in EXIF.
        is_palette: whether the numbers of the file are places in a list of colours.
    """

    colours: np.ndarray | None
    opacity: np.ndarray | None
    nodata: float | None
    orientation: int
    is_palette: bool

    def is_missing(self, numbers: np.ndarray) -> np.ndarray:
        """(H, W) bool: whether all of (H, W, C) are the number that means: no value."""
        if self.nodata is None:
            return np.zeros(numbers.shape[:2], bool)
        return (numbers == self.nodata).all(axis=2)


def is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in BEGINNINGS


def read_page(path: Path) -> Page:
    """The first page of a TIFF.

    Raises:
        ValueError, or another error of decoders: broken, more pixels than Pillow's limit, bands
            that are no colours, or of a kind that neither tifffile nor Pillow reads as it is.
    """
    try:
        with tifffile.TiffFile(path) as file:
            page = next(iter(file.pages), None)
            if page is None or page.dtype is None or 0 in page.shaped:
                raise ValueError("a TIFF without numbers that can be read")
            check_size(page.imagewidth, page.imagelength)
            colours, opacity = _decode(page)
            return Page(colours, opacity, _nodata(page), page.tags.valueof(ORIENTATION, 1),
                        page.photometric == PHOTOMETRIC.PALETTE)
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from None


def _decode(page: tifffile.TiffPage) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Colours and opacity, see `Page`."""
    if page.photometric in CONVERTED or page.bitspersample < 8:
        return None, None
    try:
        bands = _bands(page)
    except _UNREADABLE as error:
        if _is_right_in_pillow(page):
            return None, None
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            raise ValueError(f"{page.dtype} in a compression that is not known here, {error}: save "
                             "it without compression, or pip install imagecodecs") from None
        raise
    return _colours(page, bands)


def _bands(page: tifffile.TiffPage) -> np.ndarray:
    """(H, W, N), N may be 1."""
    if page.imagedepth != 1:
        raise ValueError(f"a volume of {page.imagedepth} layers: save one of them")
    stored = page.asarray(squeeze=False)[:, 0]  # (1, H, W, N), or (N, H, W, 1) band by band
    return np.concatenate(list(stored), axis=2) if len(stored) > 1 else stored[0]


def _is_right_in_pillow(page: tifffile.TiffPage) -> bool:
    """Whether Pillow, which knows more codecs, reads all bits of each band where they belong."""
    samples, extras = page.samplesperpixel, [int(extra) for extra in page.extrasamples]
    is_rgb, is_by_band = page.photometric == PHOTOMETRIC.RGB, page.planarconfig == 2
    if samples == 1:
        return page.dtype in (np.uint8, np.uint16, np.int16, np.int32, np.float32)
    if page.dtype == np.uint8:
        return is_rgb or (samples == 2 and not is_by_band)
    return (is_rgb and page.dtype == np.uint16 and not is_by_band and samples <= 4
            and PREMULTIPLIED not in extras)


def _colours(page: tifffile.TiffPage, bands: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 1 or 3) and (H, W) opacity, if any, of (H, W, N)."""
    if bands.dtype.kind not in "uif":
        raise ValueError(f"numbers of type {bands.dtype}")
    first, extras = _layout(page, bands.shape[2])
    colours = bands[..., :first]
    if page.photometric == PHOTOMETRIC.MINISWHITE and bands.dtype == np.uint8:
        colours = 255 - colours
    which = next((k for k, extra in enumerate(extras) if extra != UNSPECIFIED), None)
    if which is None:
        return colours, None
    top = np.iinfo(bands.dtype).max if bands.dtype.kind in "ui" else 1
    opacity = np.clip(bands[..., first + which] / top, 0, 1)
    if extras[which] == PREMULTIPLIED:
        colours = _straight(colours, bands[..., first + which, None], top)
    return colours, opacity


def _layout(page: tifffile.TiffPage, bands: int) -> tuple[int, list[int]]:
    """How many of the bands are shades or colours, and what each of the others is.

    Beside what is said to be colours, others are left out, as near infrared; without that word
    they might as well be what is to be read.
    """
    extras = [int(extra) for extra in page.extrasamples]
    if page.photometric == PHOTOMETRIC.RGB:
        return 3, extras or [STRAIGHT] * (bands - 3)
    extras = extras or [UNSPECIFIED] * (bands - 1)
    first = 3 if extras[:2] == [UNSPECIFIED] * 2 else 1  # many programs write colours like that
    extras = extras[first - 1:]
    is_bytes_beside_grey = first == 1 and extras == [UNSPECIFIED] and page.dtype == np.uint8
    if len(extras) > 1 or (extras == [UNSPECIFIED] and not is_bytes_beside_grey):
        raise ValueError(f"{bands} bands, and nothing says that they are grey or red, green and "
                         "blue, with or without opacity: save a file of those that are")
    return first, extras


def _straight(colours: np.ndarray, alpha: np.ndarray, top: float) -> np.ndarray:
    """Colours that were stored multiplied with opacity, alpha (H, W, 1) of top."""
    straight = colours * float(top) / np.where(alpha > 0, alpha, top)
    if colours.dtype not in (np.uint8, np.uint16):
        return straight
    return np.clip(np.floor(straight), 0, top).astype(colours.dtype)


def _nodata(page: tifffile.TiffPage) -> float | None:
    """The number that means: no value, rounded to the type of the file; None if it has none."""
    text = str(page.tags.valueof(GDAL_NODATA, "")).strip("\0 ").replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None
    if page.photometric in INKS or not np.isfinite(value):  # NaN is no value anyhow
        return None
    if page.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return page.dtype.type(value)
    if not value.is_integer() or abs(value) > 2**64:
        return None
    number = int(text) if text.lstrip("+-").isdigit() else int(value)
    is_shade = page.dtype.kind in "bu" and page.photometric != PHOTOMETRIC.PALETTE
    return _as_shade(page, number) if is_shade and page.bitspersample <= 8 else number


def _as_shade(page: tifffile.TiffPage, number: int) -> int:
    """0 is black and 255 white, also where 1, 2 or 4 bits stand in the file, or black is 1."""
    shade = number * 255 // (2**page.bitspersample - 1)
    return 255 - shade if page.photometric == PHOTOMETRIC.MINISWHITE else shade
