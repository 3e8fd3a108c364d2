"""scripts/crops.py: crops of photographs at many scales."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsefield import cli
from sparsefield.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/crops.py"


@pytest.fixture
def crops(monkeypatch):
    """The script as a module, found by the processes that it starts, too."""
    spec = importlib.util.spec_from_file_location("crops", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "crops", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        noise = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((400, 300)).save(tmp_path / f"{name}.png")
    Image.new("RGB", (400, 300), "red").save(tmp_path / "flat.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.jpg")
    (tmp_path / "words.txt").write_text("no picture")
    return tmp_path


def images(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["images"]


def test_crops_of_a_folder(crops, folder):
    wanted = ["--count", "5", "--flat", "0"]
    crops.main([str(folder), str(folder / "one.npz"), *wanted])
    found = images(folder / "one.npz")
    assert found.shape == (10, 32, 32, 3) and found.dtype == np.uint8  # none of flat and small
    assert found.mean(axis=3).std(axis=(1, 2)).min() >= crops.FLAT_SD
    crops.main([str(folder), str(folder / "two.npz"), *wanted])
    assert np.array_equal(images(folder / "two.npz"), found)
    crops.main([str(folder), str(folder / "more.npz"), *wanted, "--seed", "1", "--with",
                str(folder / "one.npz")])
    more = images(folder / "more.npz")
    assert len(more) == 20 and np.array_equal(more[:10], found)
    assert not np.array_equal(more[10:], found)


def test_a_crop_is_a_part_of_its_picture_brought_down(crops):
    """Of a slope, whose scale a crop's own slope tells."""
    slope = np.linspace(0, 255, 400).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(slope[None, :, None], (300, 400, 3)).copy())
    rng = np.random.default_rng(0)
    for crop in crops.crops_of(picture, 20, 32, (56, 300), 1.0, rng):
        step = (float(crop[:, -2].mean()) - float(crop[:, 1].mean())) / 29
        assert 255 / 310 < step < 255 / 54


@pytest.mark.parametrize("arguments, words", [
    (["nowhere", "x.npz"], "no such folder"), ([".", "x.npz", "--seed", "-1"], "whole number"),
    ([".", "x.npz", "--sides", "30", "10"], "least and most"),
    ([".", "x.txt"], "written as .npz"),
    ([".", "nowhere/x.npz"], "folder that is there"),
    ([".", "x.npz", "--count", "0"], "at least 1"),
    ([".", "x.npz", "--with", "b.png"], "array `images`"),
])
def test_bad_input_is_one_line(crops, folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    assert cli.run(lambda: crops.main(arguments)) == 2
    assert words in capsys.readouterr().err


def test_a_broken_picture_is_named(crops, folder, capsys):
    (folder / "c.jpg").write_bytes(b"\xff\xd8\xff")
    assert cli.run(lambda: crops.main([str(folder), str(folder / "x.npz")])) == 2
    assert "c.jpg" in capsys.readouterr().err


def test_deep_pictures_are_refused(crops, tmp_path):
    Image.fromarray(np.full((40, 40), 20_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png: not of 8 bits a colour"):
        crops.main([str(tmp_path), str(tmp_path / "one.npz"), "--count", "2"])
