"""Photographs, arrays, training batches and frozen cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsefield.data import frozen_case, open_data, parse_pattern
from sparsefield.data.folder import Box, Picture
from sparsefield.errors import UserError


@pytest.fixture(scope="module")
def photos():
    return open_data("photos", image_size=16)


@pytest.fixture
def numbered(tmp_path):
    """60 fields of 6 x 8 in which every value tells its field and its point."""
    field = np.arange(60)[:, None, None, None]
    point = np.arange(48).reshape(6, 8, 1)
    images = np.concatenate([field + 0 * point, point + 0 * field], axis=-1)  # two: never flipped
    path = tmp_path / "numbered.npz"
    np.savez(path, images=images.astype(np.uint8))
    return open_data(str(path))


def test_crop_is_the_exact_area_average():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 2)).astype(np.uint8)
    for box, size in ((Box(3, 5, 7), 3), (Box(0, 10, 20), 8), (Box(4, 0, 12), 4)):
        square = pixels[box.top:box.top + box.side, box.left:box.left + box.side]
        fine = square.repeat(size, axis=0).repeat(size, axis=1).astype(float)
        cells = fine.reshape(size, box.side, size, box.side, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(Picture(pixels).crop(box, size), cells, atol=1e-9)


def test_photos_split_by_picture_and_repeat(photos):
    shapes = [[(p.height, p.width) for p in s.pictures] for s in (photos.train, photos.test)]
    assert shapes == [[(512, 512), (872, 1000), (512, 512), (500, 741), (1411, 1411)],
                      [(300, 451), (427, 640)]]
    again = open_data("photos", image_size=16)
    assert again.fingerprint == photos.fingerprint
    for i in (0, 7, len(photos.val) - 1):
        np.testing.assert_array_equal(again.val.example(i), photos.val.example(i))
    other = open_data("photos", image_size=16, seed=1)
    assert not np.array_equal(other.val.example(0), photos.val.example(0))
    assert photos.val.example(0).dtype == np.float32


def test_observations_are_the_area_average_of_the_high_resolution_truth(photos):
    for i in range(6):
        truth = photos.test.high_resolution(i, 128)
        assert photos.test.high_resolution(i, 256) is not None or i % 2
        if truth is not None:
            cells = truth.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
            np.testing.assert_allclose(photos.test.example(i), cells, atol=1e-5)
    assert any(photos.test.high_resolution(i, 256) is None for i in range(1, 20, 2))


def test_photos_of_another_size_refused():
    with pytest.raises(UserError, match="8 to 256"):
        open_data("photos", image_size=512)


def test_array_splits_are_blocks_that_never_meet(numbered):
    seen = [
        {round((s.example(i)[0, 0, 0] + 1) * 127.5) for i in range(len(s))}
        for s in (numbered.train, numbered.val, numbered.test)
    ]
    assert seen == [set(range(54)), {54, 55, 56}, {57, 58, 59}]


def test_describe_is_plain(numbered):
    described = numbered.describe()
    assert described["sizes"] == [54, 3, 3] and described["channels"] == 2
    assert torch.equal(torch.tensor(described["value_range"]), torch.tensor([[0.0, 255.0]] * 2))


def test_frozen_cases_depend_on_seed_and_index_alone(photos):
    pattern = parse_pattern("random:0.2")
    cases = [frozen_case(photos.val, i, pattern, 5) for i in range(4)]
    again = frozen_case(photos.val, 2, pattern, 5)
    np.testing.assert_array_equal(again["observed"], cases[2]["observed"])
    assert again["noise_seed"] == cases[2]["noise_seed"]
    assert len({case["noise_seed"] for case in cases}) == 4
    assert all(len(case["observed"]) == int(0.2 * 256) for case in cases)
    assert all((np.diff(case["observed"]) > 0).all() for case in cases)
    np.testing.assert_array_equal(  # the same grid of other pictures
        frozen_case(photos.test, 2, pattern, 5)["observed"], cases[2]["observed"]
    )


def test_random_pattern_is_uniform():
    pattern = parse_pattern("random:0.25")
    rng = np.random.default_rng(0)
    draws = [pattern.draw(np.ones((4, 5), bool), rng) for _ in range(4000)]
    share = np.bincount(np.concatenate(draws), minlength=20) / 4000
    np.testing.assert_allclose(share, 0.25, atol=5 * (0.25 * 0.75 / 4000) ** 0.5)
