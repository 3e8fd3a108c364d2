"""Folders of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparsefield.data import crops as data_crops
from sparsefield.data import open_data
from sparsefield.data.pictures import read_picture


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    return Image.fromarray(pixels.astype(np.uint8).squeeze())


def fill(folder, count: int, first: int = 0, **shape) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for k in range(first, first + count):
        noise(40, 50, seed=k, **shape).save(folder / f"{k:03d}.png")


def names(split) -> set[str]:
    return {found.path.name for found in split.found}


def test_added_files_move_no_other(tmp_path):
    fill(tmp_path, 60)
    before = open_data(str(tmp_path), image_size=16)
    fill(tmp_path / "more", 30, first=60)
    after = open_data(str(tmp_path), image_size=16)
    splits = ("train", "val", "test")
    kept = [names(getattr(before, s)) <= names(getattr(after, s)) for s in splits]
    assert all(kept) and before.fingerprint != after.fingerprint
    everything = [names(getattr(after, s)) for s in splits]
    assert sum(map(len, everything)) == 90 == len(set.union(*everything))
    assert len(everything[0]) > 70


def test_copies_stay_in_one_part_and_are_counted(tmp_path, caplog):
    for k in range(60):
        for kind in ("png", "bmp", "tif"):  # other bytes, the same pixels
            noise(20, 20, seed=k).save(tmp_path / f"scene{k:02d}.{kind}")
    with caplog.at_level("INFO", logger="sparsefield"):
        data = open_data(str(tmp_path), image_size=16)
    scenes = [{name[:7] for name in names(split)} for split in (data.train, data.val, data.test)]
    assert sum(map(len, scenes)) == 60 == len(set.union(*scenes))
    assert "120 of 180 pictures are copies" in caplog.text
    own = open_data(str(tmp_path), image_size=16, test=str(tmp_path))
    assert f"{len(own.train)} pictures to validate or to test on are" in caplog.text


@pytest.mark.parametrize("count", [3, 4, 10])
def test_few_pictures_still_make_three_splits(tmp_path, count):
    fill(tmp_path, count)
    data = open_data(str(tmp_path), image_size=16)
    sizes = [len(s) for s in (data.train, data.val, data.test)]
    assert min(sizes) >= 1 and sum(sizes) == count


def test_frozen_field_is_the_area_average_of_the_centre_square(tmp_path):
    fill(tmp_path, 3)
    data = open_data(str(tmp_path), image_size=8)
    pixels = np.asarray(Image.open(data.val.found[0].path)).astype(float)
    cells = pixels[:, 5:45].reshape(8, 5, 8, 5, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(data.to_physical(data.val.example(0)), cells, atol=1e-4)
    truth = data.val.high_resolution(0, 40)
    np.testing.assert_allclose(data.to_physical(truth), pixels[:, 5:45], atol=1e-4)
    assert data.val.high_resolution(0, 41) is None


def test_training_crops_shrink_but_never_enlarge(tmp_path):
    """Pixels of a one-pixel chequerboard average out unless the crop has its own size."""
    (tmp_path / "a").mkdir()
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for kind, shown in (("png", board), ("bmp", 255 - board), ("tif", board[1:, :62])):
        Image.fromarray(shown).save(tmp_path / "a" / f"a.{kind}")
    data = open_data(str(tmp_path), image_size=32)
    assert data.channels == 1
    rng = np.random.default_rng(0)
    spread = [np.ptp(data.train.training_example(0, rng)) for _ in range(60)]
    assert max(spread) == 2 and min(spread) < 0.7
    assert all(data.train.training_example(0, rng).shape == (32, 32, 1) for _ in range(5))


def test_pictures_beyond_the_cache_are_read_again(tmp_path, monkeypatch):
    fill(tmp_path, 5)
    cached = open_data(str(tmp_path), image_size=16)
    monkeypatch.setattr(data_crops, "CACHE_BYTES", 0)
    uncached = open_data(str(tmp_path), image_size=16)
    assert all(found.working is None for found in uncached.train.found)
    crops = [data.train.training_example(1, np.random.default_rng(3))
             for data in (cached, uncached)]
    np.testing.assert_array_equal(*crops)


def test_modes_become_colour_on_white(tmp_path):
    red = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    red.paste((0, 0, 255, 0), (0, 0, 32, 16))  # transparent blue above
    red.save(tmp_path / "alpha.png")
    noise(32, 32).quantize(16).save(tmp_path / "palette.gif")
    noise(32, 32).convert("CMYK").save(tmp_path / "cmyk.jpg")
    data = open_data(str(tmp_path), image_size=8)
    assert data.channels == 3
    shown = {found.path.name: (split, k) for split in (data.train, data.val, data.test)
             for k, found in enumerate(split.found)}
    split, k = shown["alpha.png"]
    field = split.example(k)
    assert (field[:4] == 1).all() and (field[4:] == [1, -1, -1]).all()


def test_broken_and_tiny_files_are_named_once_and_skipped(tmp_path, caplog):
    fill(tmp_path, 4)
    (tmp_path / "text.png").write_text("I am no picture")
    whole = (tmp_path / "000.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not looked at")
    noise(9, 50).save(tmp_path / "tiny.png")
    data = open_data(str(tmp_path), image_size=16)
    assert sum(len(s) for s in (data.train, data.val, data.test)) == 4
    assert len(caplog.records) == 1 and "skipped 4 of 8" in caplog.text
    for name in ("text.png", "cut.png", "empty.jpg", "tiny.png: 50 x 9 pixels"):
        assert name in caplog.text
    assert "notes.txt" not in caplog.text


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_mixed_by_choice(tmp_path, channels):
    fill(tmp_path / "a", 3)
    fill(tmp_path / "b", 3, channels=1)
    data = open_data(str(tmp_path), image_size=16, channels=channels)
    for split in (data.train, data.val, data.test):
        for k in range(len(split)):
            for field in (split.example(k), split.training_example(k, np.random.default_rng(0))):
                assert field.shape == (16, 16, channels)


@pytest.mark.parametrize("own", [("val", "test"), ("val",), ("test",)])
def test_folders_of_their_own_for_validation_and_test(tmp_path, own):
    counts = {"train": 5, "val": 4, "test": 2}
    for name in ("train", *own):
        fill(tmp_path / name, counts[name])
    data = open_data(str(tmp_path / "train"), image_size=16,
                     **{name: str(tmp_path / name) for name in own})
    sizes = {name: len(getattr(data, name)) for name in counts}
    assert min(sizes.values()) > 0 and sum(sizes.values()) == 5 + sum(counts[k] for k in own)
    assert sizes["train"] == 5 or "val" not in own
    assert sizes["test"] == 2 or "test" not in own


def test_a_large_transparent_picture_is_seen_on_white_too(tmp_path):
    """It is reduced before that, by its opacity as well."""
    picture = Image.new("RGBA", (900, 900), (200, 0, 0, 255))
    picture.paste((0, 0, 255, 0), (0, 0, 900, 450))
    picture.save(tmp_path / "a.png")
    seen = read_picture(tmp_path / "a.png", on_white=True).reduced(3)
    assert seen.shape == (300, 300) and seen.known.all()
    assert (seen.values[:149] == 255).all() and (seen.values[151:] == (200, 0, 0)).all()
