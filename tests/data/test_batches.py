"""Photographs, splits, frozen cases; training batches as a function of seed, step and slot."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from sparsefield.data import TrainingBatches, frozen_case, open_data, parse_pattern
from sparsefield.data.batches import COUNTS, MASKS, RENEWED, augmented
from sparsefield.data.crops import Box, Picture
from sparsefield.data.scale import LEAST_SD, STANDARD, standardised
from sparsefield.errors import UserError
from sparsefield.place import grid_coords

QUERIES = (5, 40)


def zeros_and_uniform(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.where(rng.random(size) < 0.2, 0.0, rng.random(size))


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


def batches(
    split, seed=3, batch_size=8, pattern="random:0.2", noise="0", **others
) -> TrainingBatches:
    return TrainingBatches(
        split, parse_pattern(pattern, noise), seed=seed, batch_size=batch_size, queries=QUERIES,
        draw_angles=zeros_and_uniform, **others,
    )


def test_batch_holds_the_values_at_its_points(numbered):
    batch = batches(numbered.train)[2]
    for coords, values in ((batch.input_coords, batch.input_values),
                           (batch.query_coords, batch.x_1)):
        j, i = (coords * 8 - 0.5).round().long().unbind(-1)  # in units of the longer side
        point = ((values[..., 1] + 1) * 127.5).round().long()
        assert torch.equal(i * 8 + j, point)
        assert torch.equal(grid_coords(6, 8)[point], coords)
    assert batch.input_coords.shape == (8, 9, 2)  # int(0.2 * 48)
    assert torch.equal(grid_coords(6, 8)[batch.input_index], batch.input_coords)
    assert torch.equal(grid_coords(6, 8)[batch.query_index], batch.query_coords)
    for b in range(8):
        observed = set(map(tuple, batch.input_coords[b].tolist()))
        queried = set(map(tuple, batch.query_coords[b].tolist()))
        assert len(queried) == batch.query_coords.shape[1]
        # 39 points are unobserved: an observed one may fill up only if 40 are asked for.
        assert len(observed & queried) == max(0, len(queried) - 39)


def test_batch_is_a_function_of_seed_and_step(numbered):
    used = batches(numbered.train)
    for step in range(5):
        used[step]
    for again in (batches(numbered.train), pickle.loads(pickle.dumps(used))):
        assert all(map(torch.equal, used[7], again[7]))
    assert not torch.equal(used[7].theta, batches(numbered.train, seed=4)[7].theta)
    assert len({used[step].x_1.shape[1] for step in range(20)}) > 5


def mask_of_each(used, steps: int) -> dict[int, list[int]]:
    """The observed points of every mask that was used, which never change."""
    by_mask = {}
    for step in range(steps):
        pairs = zip(used[step].mask_id.tolist(), used[step].input_index.tolist(), strict=True)
        for mask_id, observed in pairs:
            assert by_mask.setdefault(mask_id, observed) == observed
            assert mask_id < step // RENEWED + MASKS or not used.pattern.is_fixed
    return by_mask


def test_fields_share_masks_that_are_renewed(numbered):
    masks = mask_of_each(batches(numbered.train, batch_size=32), 40)
    assert len(set(map(tuple, masks.values()))) > 30


def test_where_the_number_of_points_varies_steps_take_turns_among_a_few(numbered):
    used, steps = batches(numbered.train, batch_size=32, pattern="random:0.1-0.9"), COUNTS * RENEWED
    counts = [used[step].input_index.shape[1] for step in range(2 * steps)]
    for first in (0, steps):
        era = counts[first:first + steps]
        assert era == era[:COUNTS] * RENEWED
    assert len(set(counts)) > COUNTS
    masks = mask_of_each(used, 2 * steps)
    assert len(masks) == 2 * MASKS and len(set(map(tuple, masks.values()))) > 50


def test_pictures_are_shown_in_all_their_symmetries(photos):
    field = photos.train.training_example(0, np.random.default_rng(0))
    shown = {augmented(field, np.random.default_rng(seed)).tobytes() for seed in range(400)}
    assert len(shown) == 8 * 6  # turns and flips, orders of the channels
    for seed in range(10):
        other = augmented(field, np.random.default_rng(seed))
        np.testing.assert_allclose(np.sort(other.ravel()), np.sort(field.ravel()))
        neighbours = np.abs(np.diff(other, axis=0)).sum(), np.abs(np.diff(other, axis=1)).sum()
        expected = np.abs(np.diff(field, axis=0)).sum(), np.abs(np.diff(field, axis=1)).sum()
        np.testing.assert_allclose(sorted(neighbours), sorted(expected), rtol=1e-5)


@pytest.mark.parametrize("kind", ["photos", "numbered"])
def test_two_ranks_share_the_batch_of_one(kind, request):
    train = request.getfixturevalue(kind).train
    whole = batches(train)[11]
    halves = [batches(train, rank=r, world_size=2)[11] for r in range(2)]
    for name in whole._fields:
        joined = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(getattr(whole, name), joined)


def test_batch_must_divide_among_processes(numbered):
    with pytest.raises(UserError, match="multiple of 3"):
        batches(numbered.train, world_size=3)


def test_each_epoch_visits_every_field_once(numbered):
    made = batches(numbered.train)
    order = [made.field_of(step, slot) for step in range(27) for slot in range(8)]
    epochs = np.array(order).reshape(4, 54)
    assert all(sorted(epoch) == list(range(54)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


# --- photographs, splits, frozen cases ------------------------------------------------------------


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
    described = numbered.describe()
    assert described["sizes"] == [54, 3, 3] and described["value_range"] == [[0.0, 255.0]] * 2


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


# --- standardised fields --------------------------------------------------------------------------


def test_standardised_fields_are_seen_by_their_measurements_alone(tmp_path):
    rng = np.random.default_rng(0)
    fields = np.cumsum(rng.normal(size=(40, 8, 8, 1)), axis=1).astype(np.float32)
    seen = []
    for name, values in (("a", fields), ("b", 250 + 8 * fields)):
        np.savez(tmp_path / f"{name}.npz", images=values)
        data = standardised(open_data(str(tmp_path / f"{name}.npz")))
        assert data.value_range == ((-STANDARD, STANDARD),) and data.describe()["is_standard"]
        case = frozen_case(data.val, 1, parse_pattern("random:0.2"), 0)
        seen.append((batches(data.train, pattern="random:0.2-0.4")[5], case))
    for batch, case in seen:
        measured = case["truth"].reshape(-1, 1)[case["observed"]]
        for values in (*batch.input_values.numpy(), measured):
            np.testing.assert_allclose(values.mean(), 0, atol=1e-5)
            np.testing.assert_allclose(values.std(), 1 / STANDARD, rtol=1e-4)
    np.testing.assert_allclose(seen[0][0].x_1, seen[1][0].x_1, atol=1e-4)
    np.testing.assert_allclose(seen[0][1]["truth"], seen[1][1]["truth"], atol=1e-4)


def test_standardised_fields_have_either_sign_and_flat_measurements_are_no_fault(tmp_path):
    peaked = np.exp(np.arange(64) / 9).reshape(1, 8, 8, 1).repeat(40, axis=0)
    np.savez(tmp_path / "a.npz", images=peaked)
    split = standardised(open_data(str(tmp_path / "a.npz"))).train
    peaks = [field.max() > -field.min() for step in range(4) for field in batches(split)[step].x_1]
    field = split.example(0)
    turned = {augmented(field, np.random.default_rng(seed))[0, 0, 0] for seed in range(40)}
    assert len(turned) == 4 and 0.2 < np.mean(peaks) < 0.8
    for points in ([3], [3, 4]):  # one value has no spread; two neighbours hardly any
        pattern, rng = parse_pattern("random:0.2"), np.random.default_rng(0)
        seen = pattern.measure(field, np.array(points), rng, standard=True).truth
        assert np.isfinite(seen).all() and np.abs(seen).max() < 2 / LEAST_SD


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_standard", [False, True])
def test_noise_is_in_what_is_measured_and_half_of_the_fields_have_none(photos, is_standard):
    train = open_data("photos", image_size=16).train
    train.is_standard = is_standard
    exact, noisy, again = (batches(train, batch_size=32, noise=noise, starting=99)[5]
                           for noise in ("0", "0-0.3", "0-0.3"))
    assert all(map(torch.equal, noisy, again))
    has = noisy.noise_sd.any(dim=1)
    assert 8 <= has.sum() <= 24 and not exact.noise_sd.any()
    for name in exact._fields:  # to the last bit
        assert torch.equal(getattr(exact, name)[~has], getattr(noisy, name)[~has]), name
    for name in ("input_index", "mask_id", "draws", "answered", "theta"):
        assert torch.equal(getattr(exact, name), getattr(noisy, name)), name
    clean, sd = exact.input_values[has], noisy.noise_sd[has][:, None]
    measured = noisy.input_values[has]
    if is_standard:
        torch.testing.assert_close(measured.std(dim=1, correction=0),
                                   torch.full((len(clean), 3), 1 / STANDARD))
        scale = (1 / STANDARD**2 - noisy.noise_sd[has] ** 2).sqrt() * STANDARD  # of the clean
        clean = clean * scale[:, None]
    error = (measured - clean) / sd
    assert error.std() == pytest.approx(1, abs=0.1)
    share = sd[:, 0] / clean.std(dim=1, correction=0)
    assert share.max() < 0.33 and share.min() < 0.1 and share.std() > 0.04
    for b in has.nonzero()[:, 0].tolist():  # the field without noise, there, too
        both = np.isin(noisy.query_index[b], noisy.input_index[b])
        assert 0.05 < both.mean() < 0.4
    known = torch.full((32, 256, 3), torch.nan).scatter_(
        1, noisy.query_index[..., None].expand(-1, -1, 3), noisy.x_1)[has]
    again = known.gather(1, noisy.input_index[has][..., None].expand(-1, -1, 3))
    off = (again - measured) / sd
    assert off[off.isfinite()].std() == pytest.approx(1, abs=0.1)


def test_noise_of_a_frozen_case_depends_on_its_seed_and_field_alone(photos):
    def error(observe: str, seed: int, noise: str = "0.05-0.2") -> np.ndarray:
        case = frozen_case(photos.test, 2, parse_pattern(observe, noise), seed)
        return (case["noisy"] - case["truth"]) / case["noise_sd"]

    first = error("random:0.2", 5)
    np.testing.assert_allclose(error("random:0.4", 5), first, atol=1e-3)
    np.testing.assert_allclose(error("random:0.2", 5, "0.3"), first, atol=1e-3)
    assert np.abs(error("random:0.2", 6) - first).max() > 2
    for text in ("0.3-0.1", "-0.1", "1.5", "loud"):
        with pytest.raises(UserError, match=f"--noise {text}: give its sd"):
            parse_pattern("random:0.2", text)
