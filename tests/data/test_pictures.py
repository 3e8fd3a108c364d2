"""Pictures and masks of every kind: which pixels are known, and what their values are."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from sparsefield.data import open_data, parse_pattern
from sparsefield.data.pictures import read_mask, read_picture
from sparsefield.errors import UserError
from sparsefield.use.read import read_measurements

ORIENTATION, METADATA, NODATA = 0x0112, 42112, 42113
RNG = np.random.default_rng(0)
RAMP = np.linspace(1000, 2250, 24 * 20).reshape(24, 20)
COLOURS = RNG.random((24, 20, 3))
DEEP_COLOURS = (COLOURS * 65535).astype(np.uint16)
TURNS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
         5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
         7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}


@pytest.fixture
def measured(tmp_path):
    """measured(name, ...): (H, W, C) of a file, with NaN where nothing is known."""
    def measure(name, channels=3, **options):
        found = read_measurements(str(tmp_path / name), channels=channels, **options)
        field = np.full((*found.shape, found.values.shape[1]), np.nan)
        column, row = np.floor(found.coords.T).astype(int)
        field[row, column] = found.values
        return field

    return measure


def write_tiff(path, array, tags=(), **options):
    """A TIFF of grey numbers or colours, with tags (number, type, value)."""
    kind = "rgb" if array.ndim == 3 and array.shape[2] >= 3 else "minisblack"
    tifffile.imwrite(path, array, **{"metadata": None, "photometric": kind, "extratags": [
        (number, form, int(form == "H"), value, True) for number, form, value in tags]} | options)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["png", "lzw.tif"])
def test_transparency_is_turned_with_the_picture(tmp_path, measured, orientation, kind):
    pixels = RNG.integers(0, 256, (12, 20, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:5, :, 3] = 0
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = orientation
    image.save(tmp_path / f"a.{kind}", exif=image.getexif(),
               **({"compression": "tiff_lzw"} if kind == "lzw.tif" else {}))
    field, upright = measured(f"a.{kind}"), TURNS[orientation](pixels)
    known = upright[..., 3] > 0
    np.testing.assert_array_equal(np.isnan(field[..., 0]), ~known)
    np.testing.assert_array_equal(field[known], upright[..., :3][known])


@pytest.mark.parametrize("orientation, channels", [(5, 1), (6, 3), (8, 1)])
def test_tiffs_that_pillow_does_not_know_are_turned(tmp_path, measured, orientation, channels):
    array = 1000 * COLOURS[..., :channels]
    array[:5] = -9999
    write_tiff(tmp_path / "a.tif", array.squeeze(),
               [(ORIENTATION, "H", orientation), (NODATA, "s", "-9999")])
    field = measured("a.tif")
    array[:5] = np.nan
    np.testing.assert_array_equal(field, TURNS[orientation](array))


# --- more than 8 bits -----------------------------------------------------------------------------


def by_pillow(path, array):
    Image.fromarray(array).save(path)


def by_band(path, array):
    """Colours with one band after the other."""
    tifffile.imwrite(path, np.moveaxis(array, 2, 0), photometric="rgb", planarconfig="separate")


@pytest.mark.parametrize("name, array, write", [
    ("u2.png", RAMP.astype(np.uint16), by_pillow), ("u2.tif", RAMP.astype(np.uint16), by_pillow),
    ("i2.tif", RAMP.astype(np.int16) - 1500, write_tiff), ("f8.tif", RAMP / 7, write_tiff),
    ("u2.npy", RAMP.astype(np.uint16), np.save), ("rgb.tif", DEEP_COLOURS, write_tiff),
    ("bands.tif", DEEP_COLOURS, by_band), ("rgb.npy", COLOURS, np.save),
])
def test_every_bit_of_a_picture_is_read(tmp_path, measured, name, array, write):
    write(tmp_path / name, array)
    field = measured(name, observe="random:0.5")
    array = array.reshape(24, 20, -1)
    known = ~np.isnan(field[..., 0])
    assert known.sum() == 240 and field.shape == array.shape
    np.testing.assert_array_equal(field[known], array[known].astype(float))


@pytest.mark.parametrize("dtype, nodata", [(np.int16, -9999), (np.uint8, 255)])
def test_scale_and_offset_of_a_geotiff_are_applied(tmp_path, dtype, nodata):
    array = (np.arange(480) % 250).astype(dtype).reshape(24, 20)
    array[0] = nodata
    items = "".join(f'<Item name="{role.upper()}" sample="0" role="{role}">{value}</Item>'
                    for role, value in (("scale", 0.01), ("offset", -50)))
    write_tiff(tmp_path / "a.tif", array, [
        (METADATA, "s", f"<GDALMetadata>{items}</GDALMetadata>"), (NODATA, "s", str(nodata))])
    values = read_picture(tmp_path / "a.tif").values[..., 0]
    assert np.isnan(values[0]).all()
    np.testing.assert_allclose(values[1:], array[1:] * 0.01 - 50)


@pytest.mark.parametrize("dtype, nodata", [(np.uint8, 0), (np.int16, -9999)])
def test_each_band_has_its_own_scale_and_offset(tmp_path, dtype, nodata):
    array = RNG.integers(1, 250, (24, 20, 3)).astype(dtype)
    array[0] = nodata
    items = "".join(f'<Item name="{role.upper()}" sample="{band}" role="{role}">{value}</Item>'
                    for band, role, value in [(0, "scale", 0.1), (0, "offset", -5), (2, "scale", 2)]
                    )
    write_tiff(tmp_path / "a.tif", array, [
        (METADATA, "s", f"<GDALMetadata>{items}</GDALMetadata>"), (NODATA, "s", str(nodata))])
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_allclose(picture.values[1:], array[1:] * [0.1, 1, 2] + [-5, 0, 0])
    assert np.isnan(picture.values[0]).all() and picture.white is None


@pytest.mark.parametrize("dtype, extra", [
    (np.uint8, "unspecified"), (np.uint8, "unassalpha"), (np.uint8, "assocalpha"),
    (np.uint16, "unspecified"), (np.uint16, "unassalpha"),
])
def test_a_fourth_band_is_opacity_where_a_tiff_says_so(tmp_path, dtype, extra):
    top = np.iinfo(dtype).max
    array = RNG.integers(0, top, (24, 20, 4), dtype, endpoint=True)
    array[..., 3] = top
    array[3:9, :, 3] = 0
    write_tiff(tmp_path / "a.tif", array, extrasamples=[extra])
    picture = read_picture(tmp_path / "a.tif")
    known = picture.known
    np.testing.assert_array_equal(known, (array[..., 3] > 0) | (extra == "unspecified"))
    np.testing.assert_array_equal(picture.values[known], array[..., :3][known])
    assert picture.white == top


def png16(channels: int) -> bytes:
    """A PNG of 16 bits (Pillow writes grey only)."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))

    header = struct.pack(">IIBBBBB", 20, 24, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = (b"\0" + np.full(20 * channels, 300, ">u2").tobytes()) * 24
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_and_opacity_of_sixteen_bits_are_refused_in_a_png(tmp_path, channels):
    (tmp_path / "a.png").write_bytes(png16(channels))
    with pytest.raises(UserError, match=r"a\.png: .*more than 8 bits: save it as TIFF"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("shape, options, words", [
    ((8, 8, 4), {"dtype": np.uint16, "photometric": "rgb", "extrasamples": ["assocalpha"]},
     "multiplied by opacity"),
    *[((24, 20, n), {"dtype": np.float32, "photometric": "minisblack", "planarconfig": "contig"},
       f"{n} bands, and nothing says") for n in (2, 4, 5)],
])
def test_bands_that_are_no_colours_are_refused(tmp_path, shape, options, words):
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, options.pop("dtype")), **options)
    with pytest.raises(UserError, match=rf"a\.tif: .*{words}"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("array, write", [
    (DEEP_COLOURS, by_band), (RAMP, write_tiff), (RAMP.astype(np.int8), write_tiff)])
def test_what_pillow_reads_otherwise_is_not_left_to_it(tmp_path, monkeypatch, array, write):
    """tifffile without a package for LZW; Pillow has no 64 bits and halves deep colours."""
    def lacks(page, **_):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    write(tmp_path / "a.tif", array)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lacks)
    with pytest.raises(UserError, match="save it without compression, or pip install"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("kind, compression", [("1", "group4")] + [
    (kind, compression) for kind in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
    for compression in ("raw", "tiff_adobe_deflate", "tiff_lzw", "packbits", "jpeg")
    if compression != "jpeg" or kind not in "1P"
])
def test_kinds_of_tiff_show_what_pillow_shows(tmp_path, kind, compression):
    image = Image.fromarray((255 * COLOURS).astype(np.uint8)).convert(kind)
    image.save(tmp_path / "a.tif", compression=compression)
    shown = np.asarray(Image.open(tmp_path / "a.tif").convert(
        "L" if kind in ("1", "L", "LA") else "RGB")).reshape(24, 20, -1)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").values, shown)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif", "float tif"])
def test_stacks_are_refused_and_in_folders_counted(tmp_path, caplog, kind):
    pages = np.stack([RAMP / 10, RAMP / 20, RAMP / 5]).astype(np.uint8)
    path, what = tmp_path / f"stack.{kind.split()[-1]}", "pages" if "tif" in kind else "frames"
    if kind == "float tif":
        tifffile.imwrite(path, pages.astype(float), photometric="minisblack")
    else:
        first, *others = map(Image.fromarray, pages)
        first.save(path, save_all=True, append_images=others)
    with pytest.raises(UserError, match=f"it holds 3 {what}: save each"):
        read_picture(path)
    for k in range(4):
        Image.fromarray(pages[0] + np.uint8(k)).save(tmp_path / f"{k}.png")
    data = open_data(str(tmp_path), image_size=16)
    assert sum(map(len, (data.train, data.val, data.test))) == 4
    assert "skipped 1 of 5" in caplog.text and f"it holds 3 {what}" in caplog.text


def test_overviews_and_masks_are_no_further_pages(tmp_path):
    page = (RAMP / 10).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(page, photometric="minisblack")
        file.write(page[::2, ::2], subfiletype=1, photometric="minisblack")
        file.write(page > 150, subfiletype=4, photometric="mask")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").values[..., 0], page)


# --- points without a value -----------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype, nodata", [
    ("u1", "0"), ("i4", "-9999.0"), ("f4", "-99.9"), ("f4", "-3.4028e38"), ("f8", "nan"),
])
def test_no_data_values_of_geographers_are_unknown(tmp_path, measured, dtype, nodata, channels):
    array = RNG.integers(1, 255, (24, 20, channels)).astype(dtype)
    array[2:7] = float(nodata)
    if channels == 3 and nodata != "nan":
        array[9, 9, 0] = float(nodata)  # the other two are measured
    write_tiff(tmp_path / "a.tif", array.squeeze(), [(NODATA, "s", nodata)])
    picture = read_picture(tmp_path / "a.tif")
    known = np.ones((24, 20), bool)
    known[2:7] = False
    np.testing.assert_array_equal(picture.known, known)
    np.testing.assert_array_equal(picture.values[known], array[known])
    field = measured("a.tif", missing=("none",))
    np.testing.assert_array_equal(np.isnan(field[..., 0]), ~known)


@pytest.mark.parametrize("dtype, nodata", [
    ("u1", "-9999"), ("u1", "nan"), ("u1", "0.5"), ("u1", ""), ("i2", "1e300"), ("f4", "1e300"),
    ("f8", "none"), ("u1", "7"),
])
def test_no_data_values_that_no_point_has_change_nothing(tmp_path, dtype, nodata, capfd):
    array = RNG.integers(10, 99, (24, 20)).astype(dtype)
    write_tiff(tmp_path / "a.tif", array, [(NODATA, "s", nodata)])
    picture = read_picture(tmp_path / "a.tif")
    assert picture.known.all()
    np.testing.assert_array_equal(picture.values[..., 0], array)
    assert not any(capfd.readouterr())


def test_points_without_a_value_are_unknown(tmp_path, measured):
    values = RAMP.copy()
    values[4:9] = np.nan
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(measured("a.npy")[..., 0], values)
    np.save(tmp_path / "b.npy", np.nan_to_num(values, nan=-9999))
    with pytest.raises(UserError, match="-9999 stands there 100 times"):
        measured("b.npy", observe="random:0.2")
    assert np.isnan(measured("b.npy", missing=("-9999",))).sum() == 100


@pytest.mark.parametrize("array, words", [
    (np.zeros((3, 24, 20)), "channels first"), (np.zeros((24, 20, 5)), "1, 3 or 4"),
    (np.zeros(7), "shape"), (np.zeros((50, 3)), "rows of x, y, value?"),
    (np.zeros((4, 4), complex), "complex128"), (np.array([[None]]), "objects"),
    (np.zeros((0, 4)), r"shape \(0, 4\)"), (np.full((4, 4), np.nan), "no pixel has a value"),
])
def test_arrays_that_are_no_pictures(tmp_path, measured, array, words):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=words):
        measured("a.npy", observe="random:0.2")


# --- what else lies in a folder -------------------------------------------------------------------


def test_folders_of_mixed_depths_are_refused(tmp_path):
    for k in range(3):
        by_pillow(tmp_path / f"deep{k}.png", RAMP.astype(np.uint16))
        by_pillow(tmp_path / f"plain{k}.png", (RAMP / 10).astype(np.uint8))
    with pytest.raises(UserError, match=r"mixed depths: .*deep0\.png and .*plain0\.png"):
        open_data(str(tmp_path), image_size=16)


def test_links_are_followed_and_pipes_are_not_waited_for(tmp_path, caplog):
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for place, names in ((folder, "ab"), (elsewhere, "cd")):
        place.mkdir()
        for name in names:
            Image.new("RGB", (40, 40), (ord(name), 0, 0)).save(place / f"{name}.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "e.heic").write_bytes(b"....ftypheic")
    data = open_data(str(folder), image_size=16)
    found = [f.path for split in (data.train, data.val, data.test) for f in split.found]
    assert sorted(path.name for path in found) == ["a.png", "b.png", "c.png", "d.png"]
    for name in ("pipe.png: is a pipe", "broken.png: no such file", "e.heic"):
        assert name in caplog.text


@pytest.mark.parametrize("read", [
    open_data, parse_pattern, lambda path: read_measurements(path, channels=3, observe="grid:2"),
    lambda path: read_measurements(path.replace("pipe.png", "a.png"), channels=3, mask=path),
])
def test_pipes_are_refused_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="pipe"):
        read(str(tmp_path / "pipe.png"))


# --- masks ----------------------------------------------------------------------------------------

LEFT = np.zeros((8, 10), bool)
LEFT[:, :5] = True
WHITE = np.full((8, 10), 255, np.uint8)
MASKS = {
    "white is known.png": LEFT * WHITE,
    "half as bright as white.png": np.where(LEFT, 128, 60).astype(np.uint8),
    "zeros and ones.png": LEFT.astype(np.uint8),
    "16 bits.png": LEFT.astype(np.uint16) * 65535,
    "255 in 16 bits.tif": LEFT.astype(np.uint16) * 255,
    "floats of 0 and 1.tif": LEFT.astype(np.float32),
    "an array with NaN.npy": np.where(LEFT, 1.0, np.nan),
    "-1 is true.npy": -LEFT.astype(np.int16),
    "grey and transparent.png": np.stack([WHITE, LEFT * WHITE], -1),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(tmp_path, measured, name):
    path = tmp_path / name
    (np.save if path.suffix == ".npy" else by_pillow)(path, MASKS[name])
    np.testing.assert_array_equal(read_mask(path), LEFT)
    np.testing.assert_array_equal(parse_pattern(str(path)).rules[0].argument, LEFT)
    Image.new("RGB", (10, 8), "red").save(tmp_path / "a.png")
    known = ~np.isnan(measured("a.png", mask=str(path))[..., 0])
    np.testing.assert_array_equal(known, LEFT)


def test_what_is_transparent_is_known_by_no_mask_and_no_rule(tmp_path, measured):
    by_pillow(tmp_path / "a.png", np.stack([WHITE, LEFT * WHITE], -1))
    by_pillow(tmp_path / "mask.png", WHITE)
    for options in ({"mask": str(tmp_path / "mask.png")}, {"observe": "random:0.5"}):
        known = ~np.isnan(measured("a.png", **options)[..., 0])
        assert known.any() and not known[:, 5:].any()


def test_large_pictures_are_averaged_over_what_is_known(tmp_path, measured):
    pixels = np.full((1200, 8, 4), 100, np.uint8)
    pixels[..., 3] = 255
    pixels[1::2] = (255, 255, 255, 0)
    pixels[600:] = (7, 7, 7, 0)
    by_pillow(tmp_path / "a.png", pixels)
    field = measured("a.png", observe="random:0.9")
    assert field.shape == (600, 4, 3) and np.isnan(field[300:]).all()
    assert set(np.unique(field[:300][~np.isnan(field[:300])])) == {100}


@pytest.mark.parametrize("rule", ["random:0.5", "grid:2", "block:0.5", "lines:1"])
def test_of_a_single_pixel_none_can_be_hidden(tmp_path, measured, rule):
    np.save(tmp_path / "a.npy", [[3.0]])
    with pytest.raises(UserError, match=r"a\.npy: a single pixel has a value"):
        measured("a.npy", observe=rule)


def test_a_picture_with_opaque_pixels_alone_needs_a_mask(tmp_path, measured):
    Image.new("RGBA", (8, 8), (1, 2, 3, 200)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="nothing says which pixels are known"):
        measured("a.png")
    assert read_picture(tmp_path / "a.png").values.max() == 3  # not seen on white


def classes(count: int, kind: str) -> Image.Image:
    noise = np.random.default_rng(0).normal(size=(count, 40, 50))
    labels = gaussian_filter(noise, (0, 3, 3)).argmax(axis=0).astype(np.uint8)
    image = Image.fromarray(labels)
    if kind == "palette":
        image.putpalette(np.random.default_rng(2).integers(0, 256, 30).astype(np.uint8).tobytes())
    return image


@pytest.mark.parametrize("count, kind, is_said", [
    (5, "palette", True), (5, "grey", True), (2, "grey", False), (0, "photograph", False)])
def test_maps_of_classes_are_said(tmp_path, caplog, count, kind, is_said):
    (tmp_path / "many").mkdir()
    for k in range(6):
        image = (classes(count, kind) if count else
                 Image.open(Path(skimage.data.__file__).with_name("astronaut.png"))
                 .crop((100, 100, 200, 200)).quantize(64))
        image.rotate(60 * k).save(tmp_path / "many" / f"{k}.png")
    said = f"{count} values or colours, in patches"
    open_data(str(tmp_path / "many"))
    assert ("may be maps of classes" in caplog.text) == is_said
    caplog.clear()
    read_measurements(str(tmp_path / "many/0.png"), channels=3, observe="random:0.2")
    assert (said in caplog.text) == is_said


@pytest.mark.parametrize("ending, is_said", [("jpg", True), ("png", False)])
def test_holes_in_a_jpeg_are_said_to_have_edges(tmp_path, caplog, ending, is_said):
    pixels = RNG.integers(50, 250, (24, 20)).astype(np.uint8)
    pixels[5:12, 5:12] = 0
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
    read_measurements(str(tmp_path / f"a.{ending}"), channels=1, missing=("0",))
    assert ("JPEG changes values" in caplog.text) == is_said
