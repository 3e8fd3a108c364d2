"""Fields to validate or to test on that are cut out of what was trained on."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
from PIL import Image
from scipy.ndimage import gaussian_filter

from sparsefield.data import open_data

WORDS = "hold the same pixels as training fields"


def smooth(seed: int) -> np.ndarray:
    """A field of 120 x 130, float32."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(120, 130)), 2)
    return (field / field.std() + 10).astype(np.float32)


def crops(field: np.ndarray, step: int, first: int = 0) -> np.ndarray:
    """(n, 24, 24), side by side or overlapping."""
    return np.stack([field[top:top + 24, left:left + 24] for top in range(first, 97, step)
                     for left in range(first, 97, step)])


@pytest.mark.parametrize("seed, is_said", [(0, True), (1, False)])
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_arrays_of_shifted_crops(tmp_path, caplog, seed, is_said, kind):
    for name, own, first in (("a", 0, 0), ("b", seed, 5)):
        np.savez(tmp_path / name, images=(20 * crops(smooth(own), 24, first)).astype(kind))
    data = open_data(str(tmp_path / "a.npz"), val=str(tmp_path / "b.npz"))
    assert len(data.train) == 25 and not ("WARNING" in caplog.text and not is_said)
    assert (f"b.npz: 16 of 16 fields to validate or to test on that were searched {WORDS}"
            in caplog.text) == is_said


def test_a_sea_that_is_alike_everywhere_is_no_overlap(tmp_path, caplog):
    """So are masks, which have edges."""
    fields = np.stack([smooth(k) for k in range(40)])
    fields[:, 20:80, :50], fields[:, :20] = 9.5, np.arange(130) > 60
    np.save(tmp_path / "a.npy", fields)
    open_data(str(tmp_path / "a.npy"))
    assert WORDS not in caplog.text


def test_a_region_of_the_map_that_was_trained_on(tmp_path, caplog):
    field = xarray.DataArray(np.stack([smooth(k) for k in range(6)]), name="t",
                             dims=("time", "y", "x"))
    field.to_netcdf(tmp_path / "a.nc", engine="scipy")
    open_data(str(tmp_path / "a.nc"))
    assert "WARNING" not in caplog.text
    field[:, 30:80, 10:60].to_netcdf(tmp_path / "b.nc", engine="scipy")
    open_data(str(tmp_path / "a.nc"), val=str(tmp_path / "b.nc"), test=str(tmp_path / "b.nc"))
    assert f"b.nc: 12 of 12 fields to validate or to test on that were searched {WORDS}" in (
        caplog.text)


@pytest.mark.parametrize("step, is_said", [(12, True), (24, False)])
def test_a_folder_of_overlapping_patches(tmp_path, caplog, step, is_said):
    for k, patch in enumerate(crops(smooth(0), step)):
        Image.fromarray((20 * patch).astype(np.uint8)).save(tmp_path / f"{k}.png")
    open_data(str(tmp_path), image_size=16)
    assert (WORDS in caplog.text) == is_said


def turned(field: np.ndarray) -> list[np.ndarray]:
    return [field, field[::-1], np.rot90(field)]


def test_fields_that_are_flipped_or_turned_are_copies(tmp_path, caplog):
    fields = np.stack([smooth(k)[:24, :24] for k in range(20)])
    for name, more in (("a", fields), ("b", fields + 1e-3), ("dry", np.zeros_like(fields))):
        copies = np.stack([turned(own)[k % 3] for k, own in enumerate(more)])
        np.save(tmp_path / f"{name}.npy", np.concatenate([fields, copies]))
        open_data(str(tmp_path / f"{name}.npy"))
        assert ("training fields, too, perhaps flipped or turned" in caplog.text) == (name == "a")
        caplog.clear()


def test_pictures_that_are_flipped_or_turned_stay_together(tmp_path, caplog):
    for k in range(30):
        for name, picture in zip("abc", turned((20 * smooth(k)).astype(np.uint8)), strict=True):
            Image.fromarray(picture).save(tmp_path / f"{k}_{name}.png")
    with caplog.at_level("INFO", logger="sparsefield"):
        data = open_data(str(tmp_path), image_size=16)
    parts = [{found.path.name[:-6] for found in split.found}
             for split in (data.train, data.val, data.test)]
    assert sum(map(len, parts)) == 30 and "60 of 90 pictures are copies" in caplog.text


@pytest.mark.parametrize("shift, is_said", [(1, True), (9, False)])
def test_frames_of_a_film_are_said(tmp_path, caplog, shift, is_said):
    film = (20 * gaussian_filter(np.random.default_rng(0).normal(size=(400, 40)), 3) + 10) * 12
    for k in range(40):
        frame = film[shift * k:][:32, :32] + np.random.default_rng(k).normal(size=(32, 32))
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(tmp_path / f"frame{k:02d}.png")
    open_data(str(tmp_path), image_size=16)
    assert ("(frames of a film?)" in caplog.text) == is_said
