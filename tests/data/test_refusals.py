"""Bad input: one clear line each, and exit code 2."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsefield import cli
from sparsefield.data import frozen_case, open_data, parse_pattern


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """refused(words, ...) asserts that opening these data ends with a line that has the words."""
    monkeypatch.chdir(tmp_path)

    def check(call: Callable[[], object], *words: str) -> None:
        assert cli.run(call) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        for word in words:
            assert word in lines[0], lines[0]

    return check


def opened(spec: str, **options) -> Callable[[], object]:
    return lambda: open_data(spec, **options)


def with_pattern(text: str) -> Callable[[], object]:
    return lambda: frozen_case(open_data("terrain", image_size=16).val, 0, parse_pattern(text), 0)


@pytest.fixture
def nobody():
    """nobody(): no longer root, who may read everything."""
    own = os.geteuid()
    yield lambda: os.seteuid(65534 if own == 0 else own)
    os.seteuid(own)


@pytest.mark.parametrize("spec", ["nowhere.npz", "nowhere", "photo", "cifar100"])
def test_missing_path(refused, spec):
    refused(opened(spec), spec, "photos, terrain, tracer, cifar10")
    refused(opened("x" * 5000), "too long")
    np.savez("a.npz", images=np.zeros((30, 5, 6), np.uint8))
    refused(opened("a.npz", val="b.npz"), "b.npz", "no such file")


ARRAYS = {
    "rank 2": (np.zeros((30, 6)), "shape (30, 6)"),
    "one picture": (np.zeros((40, 50, 3), np.uint8), "looks like one picture"),
    "channels first": (np.zeros((30, 3, 8, 8), np.uint8), "channels first"),
    "many channels first": (np.zeros((30, 6, 8, 8)), "channels first"),
    "no fields": (np.zeros((0, 6, 6)), "not empty"),
    "bool": (np.zeros((30, 6, 6), bool), "bool"),
    "text": (np.full((30, 6, 6), "a"), "uint8 or float"),
    "object": (np.array([[[None] * 6] * 6] * 30), "object array"),
    "all NaN": (np.full((30, 6, 6), np.nan), "field 0", "fewer than two points"),
    "one of NaN": (np.where(np.arange(30)[:, None, None] == 17, np.nan, np.ones((30, 6, 6))),
                   "field 17"),
    "infinite": (np.where(np.arange(30)[:, None, None] == 29, np.inf, np.ones((30, 6, 6))),
                 "field 29", "infinite"),
    "two fields": (np.zeros((2, 6, 6), np.uint8), "2 fields cannot be split"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(refused, name):
    array, *words = ARRAYS[name]
    np.savez("bad.npz", images=array)
    refused(opened("bad.npz"), "bad.npz", *words)


def test_unclear_which_array(refused):
    np.savez("two.npz", a=np.zeros((30, 6, 6)), b=np.zeros((30, 6, 6)))
    refused(opened("two.npz"), "two.npz", "`images`", "a, b")


@pytest.mark.parametrize("shape", [(30, 6, 6, 1), (30, 5, 6, 3)])
def test_mixed_channels_and_sizes(refused, shape):
    np.savez("train.npz", images=np.zeros((30, 6, 6, 3), np.uint8))
    np.savez("val.npz", images=np.zeros(shape, np.uint8))
    refused(opened("train.npz", val="val.npz"), "val.npz", "must not be mixed")


@pytest.mark.parametrize(
    "value_range, word",
    [((0, 0.1), "widen"), ((5, 1), "below"), ((0, np.inf), "finite"), ((0, 1, 2), "lo hi"),
     ((0, 1, 0, 1), "lo hi"), ((), "lo hi")],
)
def test_value_range(refused, value_range, word):
    np.save("f.npy", np.linspace(0, 1, 30 * 36).reshape(30, 6, 6))
    refused(opened("f.npy", value_range=value_range), "--value_range", word)


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_cut_off_and_misnamed_arrays(refused, ending):
    np.savez("a.npz", images=np.random.default_rng(0).random((30, 6, 6)))
    np.save("a.npy", np.random.default_rng(0).random((30, 6, 6)))
    file = Path(f"a.{ending}")
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    spoilt = [whole[:len(whole) - 100], whole[:len(whole) // 2], whole[:40], b"", b"some text",
              b"\x89PNG\r\n\x1a\n" * 20]
    for content in [*spoilt, bytes(damaged)] if ending == "npz" else spoilt:
        file.write_bytes(content)
        refused(opened(str(file)), str(file))


def test_archive_larger_than_memory(refused):
    """60 TB that an archive's directory promises."""
    np.savez("a.npz", images=np.zeros((30, 6, 6)))
    content = Path("a.npz").read_bytes()
    with zipfile.ZipFile("a.npz") as archive:
        size = archive.infolist()[0].file_size
    promised = content.rfind(struct.pack("<I", size), content.find(b"PK\x01\x02"))
    Path("a.npz").write_bytes(
        content[:promised] + struct.pack("<I", 0xFFFFFFFE) + content[promised + 4:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}.get)
        refused(opened("a.npz"), "4.0 GiB", ".npy")


def bomb(path: str, side: int = 50_000) -> None:
    """A PNG of a few kilobytes that says that it unpacks to gigabytes."""
    Image.new("RGB", (1, 1)).save(path)
    content = Path(path).read_bytes()
    header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    Path(path).write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header))
                           + content[33:])


FOLDERS = {
    "no pictures": ({}, ["no picture files"]),
    "two pictures": ({"a.png": "RGB", "b.bmp": "RGB"}, ["2 different pictures cannot be split"]),
    "mixed channels": ({"a.png": "RGB", "b.bmp": "RGB", "c.png": "L", "d.bmp": "L"}, [
        "mixed channels", "a.png", "c.png", "--data_channels 1 (all grey) or 3", "DATA_CHANNELS"]),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(refused, name):
    pictures, words = FOLDERS[name]
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("no picture")
    for file, mode in pictures.items():
        Image.new(mode, (40, 40), "red" if file[0] in "ac" else 0).save(f"folder/{file}")
    refused(opened("folder"), "folder", *words)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_folder_of_unusable_pictures(refused):
    Path("bad").mkdir()
    Path("bad/text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save("bad/tiny.png")
    bomb("bad/bomb.png")
    bomb("bad/smaller.png", side=10_000)  # Pillow alone would only warn
    words = "skipped 4", "bomb.png", "smaller.png", "limit", "tiny.png: 8 x 8"
    refused(opened("bad"), *words)


def test_no_permission(refused, nobody, tmp_path):
    Path("closed").mkdir()
    Image.new("RGB", (40, 40)).save("closed/a.png")
    np.save("closed.npy", np.zeros((30, 6, 6)))
    Image.new("L", (16, 16)).save("closed_mask.png")
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    for path in ("closed", "closed.npy", "closed_mask.png"):
        Path(path).chmod(0)
    nobody()
    for path in ("closed", "closed/a.npz", "closed.npy"):
        refused(opened(path), path, "Permission denied")
    refused(lambda: parse_pattern("closed_mask.png"), "closed_mask.png", "Permission denied")


@pytest.mark.parametrize("text, word", [
    ("random:0", "nothing or everything"), ("random:1", "nothing or everything"),
    ("random:0.5-0.2", "smaller one first"), ("random:nan", "nothing or everything"),
    ("random:", "random:0.2"), ("random", "neither"), ("grid:1", "steps of 2"),
    ("grid:2.5", "neither"), ("random:0.2,block:1.5", "block:1.5"), ("random:0.2,", "neither"),
    ("grid:17", "does not fit"), ("lines:0", "1 or more"), ("lines:16", "does not fit"),
    ("block:1", "nothing or everything"), ("block:-0.1", "nothing or everything"),
    ("nowhere.png", "neither"), ("", "neither"), ("spiral:3", "neither"),
])
def test_patterns(refused, text, word):
    refused(with_pattern(text), "--observe", word)


@pytest.mark.parametrize("write, words", [
    (Image.new("L", (16, 16), 0).save, ["nothing"]),
    (Image.new("L", (16, 16), 255).save, ["everything"]),
    (Image.linear_gradient("L").resize((20, 16)).save, ["20 x 16", "16 x 16"]),
    (lambda path: Path(path).write_text("no picture"), ["no readable picture"]), (bomb, ["limit"]),
])
def test_masks(refused, write, words):
    write("mask.png")
    refused(with_pattern("mask.png"), "mask.png", *words)
