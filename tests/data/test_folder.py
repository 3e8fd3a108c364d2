"""Folders of pictures."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from sparsefield.data import crops as data_crops
from sparsefield.data import open_as_configured, open_data
from sparsefield.data.pictures import read_picture
from sparsefield.errors import UserError
from sparsefield.evaluate.cases import open_test_data
from train_mamba_v2 import Config


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


def scenes(split) -> set[str]:
    return {found.scene for found in split.found}


def test_every_sub_folder_goes_whole_to_one_part(tmp_path, caplog):
    for scene in range(20):
        fill(tmp_path / f"scene{scene}" / "left", 2, first=10 * scene)
        fill(tmp_path / f"scene{scene}" / "right", 2, first=10 * scene + 5)
    with caplog.at_level("INFO", logger="sparsefield"):
        data = open_data(str(tmp_path), image_size=16, split_by="folder")
    parts = [data.train, data.val, data.test]
    assert sum(map(len, parts)) == 80
    assert sum(len(scenes(part)) for part in parts) == 20 == len(set.union(*map(scenes, parts)))
    said = (f"training {len(scenes(data.train))} folders of {len(data.train)} pictures, "
            f"validation {len(scenes(data.val))} folders of {len(data.val)}")
    assert said in caplog.text
    each = open_data(str(tmp_path), image_size=16)
    assert each.fingerprint != data.fingerprint
    assert scenes(each.train) & scenes(each.test)  # why it is wanted
    fill(tmp_path / "scene7" / "more", 3, first=500)
    more = open_data(str(tmp_path), image_size=16, split_by="folder")
    assert scenes(more.test) == scenes(data.test) and scenes(more.val) == scenes(data.val)


def test_the_other_halves_of_split_scenes_are_not_tested_on(tmp_path):
    """A model is tested by the split that it was trained with, under another name of its folder."""
    for scene in range(8):
        fill(tmp_path / "all" / f"scene{scene}", 5, first=10 * scene)
    (tmp_path / "other").symlink_to(tmp_path / "all")
    spec = str(tmp_path / "all")
    config = asdict(Config(data=spec, image_size=16, split_by="folder"))
    data = open_as_configured(config)
    checkpoint = {"data": data.describe(), "config": config}
    tested = open_test_data(checkpoint, data=str(tmp_path / "other"))
    assert names(tested.test) == names(data.test) and tested.fingerprint == data.fingerprint
    assert len(open_test_data(checkpoint, test=str(tmp_path / "all" / "scene0")).test) == 5


def test_validation_data_stay_so_where_the_training_data_are_named_again(tmp_path):
    """A twentieth of them would else be cut off to test on, and was trained on."""
    fill(tmp_path / "all", 30)
    fill(tmp_path / "val", 6, first=100)
    config = asdict(Config(data=str(tmp_path / "all"), data_val=str(tmp_path / "val"),
                           image_size=16))
    data = open_as_configured(config)
    tested = open_test_data({"data": data.describe(), "config": config},
                            data=f"{tmp_path}/val/../all/")
    assert names(tested.test) == names(data.test) and not names(tested.test) & names(data.train)


@pytest.mark.parametrize("is_copied", [True, False])
@pytest.mark.parametrize("kind", ["folder", "array"])
def test_copies_of_what_was_trained_on_are_no_test(tmp_path, caplog, kind, is_copied):
    fill(tmp_path / "all", 30)
    fill(tmp_path / "some", 6, first=3 if is_copied else 100)
    spec, some = str(tmp_path / "all"), str(tmp_path / "some")
    if kind == "array":
        for folder in (spec, some):
            np.save(f"{folder}.npy", [np.asarray(Image.open(path))
                                      for path in sorted(Path(folder).iterdir())])
        spec, some = f"{spec}.npy", f"{some}.npy"
    config = asdict(Config(data=spec, image_size=16))
    data = open_as_configured(config)
    open_test_data({"data": data.describe(), "config": config}, test=some)
    assert (": 6 of the fields to test on are among the data that the model was trained on"
            in caplog.text) == is_copied


@pytest.mark.parametrize("files, words", [
    (("a/1", "a/2", "b/1", "b/2"), "2 sub-folder(s) cannot be split into 3 parts"),
    (("a/1", "b/1", "c/1", "4"), "1 of 4 pictures lie in no sub-folder"),
])
def test_scenes_that_cannot_be_split(tmp_path, files, words):
    for k, file in enumerate(files):
        fill((tmp_path / file).parent, 1, first=k)
    with pytest.raises(UserError, match=re.escape(words)):
        open_data(str(tmp_path), image_size=16, split_by="folder")


@pytest.mark.parametrize("name, value", [("split_by", "folder"), ("data_channels", 1)])
def test_settings_of_folders_beside_other_data_are_refused(data, name, value):
    for spec in (str(data), "photos"):
        with pytest.raises(UserError, match=f"{name}={value}: .* is no folder of pictures"):
            open_as_configured(asdict(Config(data=spec, **{name: value})))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "Validation")])
def test_a_folder_that_is_split_already_is_not_split_again(tmp_path, names):
    for k, name in enumerate(names):
        fill(tmp_path / name, 5, first=10 * k)
    with pytest.raises(UserError, match=r"train and .* would be mixed: give --data \.\.\./train"):
        open_data(str(tmp_path), image_size=16)
    (tmp_path / names[1]).rename(tmp_path / "more")
    (tmp_path / names[-1]).rename(tmp_path / "others") if len(names) > 2 else None
    assert len(open_data(str(tmp_path), image_size=16).train) > 3


def test_masks_beside_pictures_are_said(tmp_path, caplog):
    fill(tmp_path, 60)
    for k in range(60):
        patches = np.random.default_rng(k).integers(0, 9, (5, 5)).repeat(10, 0).repeat(10, 1)
        mask = Image.fromarray(patches.astype(np.uint8))
        mask.putpalette(list(range(30)))
        mask.save(tmp_path / f"mask{k:02d}.png")
    open_data(str(tmp_path), image_size=16)
    assert "may be maps of classes, of which means say nothing: leave masks out" in caplog.text


# --- pictures of other numbers than 8 bits --------------------------------------------------------


def save_floats(folder, spike: float | None = None, count: int = 30) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng(3)
    for k in range(count):
        field = rng.uniform(10, 30, (24, 24)).astype(np.float32)
        if spike is not None and k == 4:
            field[5, 5] = spike
        Image.fromarray(field).save(folder / f"{k:02d}.tif")


@pytest.mark.parametrize("spike, is_said", [(1e4, True), (60, False)])
def test_a_spike_in_a_folder_of_numbers_is_said(tmp_path, caplog, spike, is_said):
    save_floats(tmp_path, spike)
    data = open_data(str(tmp_path), image_size=24, split_by=None)
    assert data.value_range[0][1] == pytest.approx(spike)
    assert ("VALUE_RANGE" in caplog.text) == is_said
    caplog.clear()
    said = open_data(str(tmp_path), image_size=24, value_range=(0, 1e4), units="degC")
    assert said.scale.describe() == "0 to 10000 degC" and not caplog.text


def test_colours_of_few_bits_in_many_are_said(tmp_path, caplog):
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 4096, (20, 20, 3)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{k}.tif", pixels, photometric="rgb")
    open_data(str(tmp_path), image_size=16)
    assert caplog.text.count("take only 6.2 % of 0 to 65535") == 1
    caplog.clear()
    open_data(str(tmp_path), image_size=16, value_range=(0, 4095))
    assert not caplog.text


def test_arrays_beside_their_pictures_are_not_dropped(tmp_path):
    fill(tmp_path, 5)
    np.save(tmp_path / "field.npy", np.random.default_rng(0).normal(size=(40, 50)))
    with pytest.raises(UserError, match=r"mixed depths: .*field\.npy"):
        open_data(str(tmp_path), image_size=16, channels=1)


def test_other_units_and_codes_in_a_folder_of_numbers(tmp_path, caplog):
    save_floats(tmp_path / "a")
    save_floats(tmp_path / "coded", -9999)
    data = open_data(str(tmp_path / "coded"), image_size=24)
    assert "04.tif: holds -9999" in caplog.text and data.value_range[0][0] > 9
    with pytest.raises(UserError, match=r"coded: values from -9999 .* lie far outside"):
        open_data(str(tmp_path / "coded"), image_size=24, value_range=(0, 30))
    (tmp_path / "kelvin").mkdir()
    for file in (tmp_path / "a").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) + 273).save(tmp_path / "kelvin" / file.name)
    with pytest.raises(UserError, match=r"kelvin: values from .* lie far outside"):
        open_data(str(tmp_path / "a"), image_size=24, val=str(tmp_path / "kelvin"))


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
    board = (np.indices((66, 66)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for kind, shown in (("png", board), ("bmp", board[:64, :64]), ("tif", board[3:, :62])):
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
