"""Fields in arrays: gaps, ranges, units, channels, large files."""

from __future__ import annotations

import pickle
from dataclasses import asdict

import numpy as np
import pytest
import scipy

from sparsefield.data import (
    TrainingBatches,
    arrays,
    frozen_case,
    open_as_configured,
    open_data,
    parse_pattern,
)
from sparsefield.data.files import lone_extreme
from sparsefield.errors import UserError
from train_mamba_v2 import Config


def saved(path, **contents) -> str:
    np.savez(path, **contents)
    return str(path)


@pytest.fixture
def ocean(tmp_path):
    """Forty one-channel fields in kelvin with land: more of it in some fields than in others."""
    rng = np.random.default_rng(0)
    fields = rng.uniform(270, 310, (40, 10, 14)).astype(np.float32)
    fields[:, :3, :5] = np.nan
    fields[::7, 3:8, :] = np.nan
    return open_data(saved(tmp_path / "ocean.npz", sst=fields, units=np.array("K"))), fields


def batches(split, pattern="random:0.2", **others):
    return TrainingBatches(
        split, parse_pattern(pattern), seed=0, batch_size=8, queries=(20, 200),
        draw_angles=lambda rng, size: rng.random(size), **others,
    )


def test_float_fields_get_their_range_from_training(ocean):
    data, fields = ocean
    assert (data.height, data.width, data.channels, data.units) == (10, 14, 1, "K")
    low, high = data.value_range[0]
    assert low == np.nanmin(fields[:36]) and high == np.nanmax(fields[:36])
    inside = data.train.example(3)
    assert np.nanmin(inside) >= -1 and np.nanmax(inside) <= 1
    np.testing.assert_allclose(data.to_physical(inside)[..., 0], fields[3], rtol=1e-6)


def test_gaps_are_never_observed_or_queried(ocean):
    data, fields = ocean
    for pattern in ("random:0.2", "grid:2", "lines:4", "block:0.4"):
        for step in range(6):
            batch = batches(data.train, pattern)[step]
            assert not any(tensor.isnan().any() for tensor in batch)
            assert (batch.mask_id == -1).all()  # masks are not shared
    case = frozen_case(data.test, 1, parse_pattern("random:0.2"), 0)
    valid = ~np.isnan(fields[39])
    assert valid.flat[case["observed"]].all()
    assert len(case["observed"]) == int(0.2 * valid.sum())


def test_poorest_field_sets_the_counts_for_all_ranks(ocean):
    data, fields = ocean
    whole = batches(data.train)[0]
    halves = [batches(data.train, rank=r, world_size=2)[0] for r in range(2)]
    shown = [batches(data.train).field_of(0, slot) for slot in range(8)]
    poorest = min(int((~np.isnan(fields[i])).sum()) for i in shown)
    assert whole.input_values.shape[1] == int(0.2 * poorest)
    assert whole.x_1.shape[1] <= poorest
    for name in whole._fields:
        joined = np.concatenate([getattr(half, name).numpy() for half in halves])
        np.testing.assert_array_equal(getattr(whole, name).numpy(), joined)


def test_a_gap_in_one_channel_is_a_gap_in_all(tmp_path):
    fields = np.random.default_rng(0).normal(size=(30, 6, 7, 5))
    fields[2, 1, 1, 3] = np.nan
    data = open_data(saved(tmp_path / "five.npz", images=fields))
    assert data.channels == 5 and len(data.value_range) == 5
    inside = data.train.example(2)
    assert np.isnan(inside[1, 1]).all() and np.isnan(inside).sum() == 5
    low = np.asarray(data.value_range)[:, 0]
    np.testing.assert_array_equal(low, np.nanmin(fields[:28], axis=(0, 1, 2)))


def test_value_range_for_all_or_for_each_channel(tmp_path):
    fields = np.stack([np.linspace(0, 1, 24), np.linspace(-5, 5, 24)], axis=-1)
    path = saved(tmp_path / "two.npz", images=np.tile(fields.reshape(1, 4, 6, 2), (30, 1, 1, 1)))
    data = open_data(path, value_range=(-10, 10), units="m,s")
    assert data.value_range == ((-10, 10), (-10, 10))
    assert [data.scale.unit(c) for c in range(2)] == ["m", "s"]
    assert np.abs(data.train.example(0)).max() == pytest.approx(0.5)
    data = open_data(path, value_range=(0, 1, -5, 5))
    assert data.train.example(0).min() == -1 and data.train.example(0).max() == 1


def test_a_validation_file_in_another_unit_is_refused(tmp_path):
    celsius = np.random.default_rng(0).uniform(5, 25, (30, 6, 7))
    with pytest.raises(UserError, match=r"kelvin\.npz: values from .* convert the units"):
        open_data(saved(tmp_path / "celsius.npz", images=celsius),
                  val=saved(tmp_path / "kelvin.npz", images=celsius + 273.15))
    path, other = (saved(tmp_path / f"{units}.npz", images=celsius, units=units)
                   for units in ("degC", "degF"))
    with pytest.raises(UserError, match=r"degF\.npz: in degF, .* in degC; .* --units"):
        open_data(path, val=other)
    assert open_data(path, val=other, units="degC").units == "degC"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("share, is_said", [(1, False), (1 / 255, True)])
def test_a_test_file_of_zeros_and_ones_beside_bytes_is_said(tmp_path, caplog, dtype, share,
                                                            is_said):
    fields = np.random.default_rng(0).integers(0, 256, (30, 6, 7))
    path = saved(tmp_path / "bytes.npz", images=fields.astype(dtype))
    open_data(path, test=saved(tmp_path / "t.npz", images=(fields * share).astype(dtype)))
    assert ("t.npz: values from 0 to 1 take only 0.39 %" in caplog.text) == is_said


def kelvin(change) -> np.ndarray:
    """40 fields of 16 x 20, changed."""
    fields = np.random.default_rng(0).normal(290, 5, (40, 16, 20))
    return change(fields)


def with_zeros(fields):
    fields[:, :6] = 0
    return fields


def labels(count, step=1):
    """Classes: which of some smooth random fields is the largest."""
    def change(fields):
        noise = np.random.default_rng(1).normal(size=(count, *fields.shape))
        return step * scipy.ndimage.gaussian_filter(noise, (0, 0, 2, 2)).argmax(axis=0)
    return change


def whole_numbers(high):
    """Smooth, from about -4 to 4 times so much."""
    return lambda fields: (high * scipy.ndimage.gaussian_filter(
        fields - 290, (0, 2, 2))).round().astype(np.int16)


@pytest.mark.parametrize("change, words", [
    (lambda fields: np.where(fields < 285, fields - 200, fields), ""),
    (labels(5), "5 values or colours, in patches: if they are classes"),
    (lambda fields: labels(5)(fields).astype(np.uint8), "5 values or colours, in patches"),
    (labels(12, 10), "12 values or colours, in patches"), (labels(2), ""),
    (whole_numbers(2), ""), (whole_numbers(20), ""),
    (lambda fields: np.maximum(whole_numbers(10)(fields), 0), ""),
    (with_zeros, "0 stands in 38 % of the points, all others are 2"),
    (lambda fields: with_zeros(500 + 200 * np.abs(fields - 290)), "0 stands in 38 %"),
    (lambda fields: with_zeros(fields - 290), "0 stands in 38 % of the points, between values of"),
    (lambda fields: with_zeros((np.abs(fields - 290) / 3).round()), ""),
    (lambda fields: 10 ** (fields / 5 - 58), "90.0 % of them from"),
    (lambda fields: np.tile(fields[:10], (4, 1, 1)), "4 different fields to validate"),
    (lambda fields: np.tile(fields[:1], (40, 1, 1)), "1 different fields to validate"),
    (lambda fields: fields, ""), (lambda fields: (fields > 292).astype(float), ""),
    (lambda fields: np.maximum(fields - 294, 0), ""),
])
def test_what_may_be_meant_otherwise_is_said(tmp_path, caplog, change, words):
    np.savez(tmp_path / "a.npz", images=kelvin(change))
    open_data(str(tmp_path / "a.npz"))
    assert words in caplog.text if words else not caplog.text


def test_fields_to_test_on_alone_are_no_leak(tmp_path, caplog):
    path = str(tmp_path / "a.npz")
    np.savez(path, images=kelvin(lambda fields: fields))
    open_data(path, val=path, test=path)
    assert not caplog.text
    for name in ("data_val", "data_test"):
        again = f"{tmp_path}/../{tmp_path.name}/a.npz"
        with pytest.raises(UserError, match=f"{name}=.* is the training data itself"):
            open_as_configured(asdict(Config(data=path, **{name: again})))


@pytest.mark.parametrize("spike, is_said", [(1e4, True), (200, False)])
def test_a_spike_that_hides_all_others_is_said(tmp_path, caplog, spike, is_said):
    fields = np.random.default_rng(0).uniform(5, 25, (80, 16, 16))
    fields[3, 4, 5] = spike
    open_data(saved(tmp_path / "f.npz", images=fields))
    assert ("99.9 % of them from 5.0" in caplog.text) == is_said == ("VALUE_RANGE" in caplog.text)


@pytest.mark.parametrize("code, times, low, high, asked", [
    (-999, 3, 5, 1800, True), (-99, 1, 5, 1800, True), (-99, 2, -50, 40, True),
    (-9999, 2, -5000, 1853, True), (-9999, 1, -5000, 1853, False), (-999, 2, -5000, 1853, False),
])
def test_codes_are_asked_about_whatever_the_spread(tmp_path, code, times, low, high, asked):
    """As the only negative number, or as an extreme that repeats."""
    values = np.linspace(low, high, 90).round()
    assert lone_extreme(values) is None
    values = np.concatenate([values[times:], np.full(times, code)])
    assert lone_extreme(values) == (code if asked else None)
    path = saved(tmp_path / "a.npz", images=np.tile(values.reshape(1, 9, 10), (30, 1, 1)))
    if asked:
        with pytest.raises(UserError, match=f"{code} stands .*--value_range"):
            open_data(path)
    assert len(open_data(path, value_range=(-1e4, 2e3)).train) > 1


def test_longitudes_of_a_grid_are_no_codes():
    longitudes = np.repeat(np.arange(-99.0, -69), 4)
    assert lone_extreme(longitudes, is_axis=True) is None
    assert lone_extreme(np.append(longitudes, -999), is_axis=True) == -999


def test_values_a_little_outside_their_range_are_said(tmp_path, caplog):
    path = saved(tmp_path / "f.npz", images=np.linspace(0, 1.2, 30 * 20).reshape(30, 4, 5))
    open_data(path, value_range=(0, 1))
    assert "clipped" in caplog.text and "1.2" in caplog.text


@pytest.mark.parametrize("value, kind", [(7, np.uint8), (300.0, np.float32), (1e20, np.float64)])
def test_constant_fields_stay_finite(tmp_path, value, kind):
    data = open_data(saved(tmp_path / "c.npz", images=np.full((30, 5, 6), value, kind)))
    inside = data.train.example(0)
    assert np.isfinite(inside).all() and np.ptp(inside) == 0
    np.testing.assert_allclose(data.to_physical(inside), value, rtol=1e-6)
    assert np.isfinite(batches(data.train)[0].input_values.numpy()).all()


@pytest.mark.parametrize("own, sizes", [
    (("val", "test"), [40, 4, 7]), (("test",), [38, 2, 7]), (("val",), [40, 2, 2])])
def test_splits_of_their_own(tmp_path, own, sizes):
    paths = {name: saved(tmp_path / f"{name}.npz", images=np.full((n, 5, 6), n, np.uint8))
             for name, n in (("train", 40), ("val", 4), ("test", 7))}
    data = open_data(paths["train"], **{name: paths[name] for name in own})
    assert [len(s) for s in (data.train, data.val, data.test)] == sizes
    assert round(data.to_physical(data.val.example(0)).max()) == (4 if "val" in own else 40)


def test_large_npy_is_mapped_and_travels_as_its_path(tmp_path, monkeypatch):
    fields = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
    np.save(tmp_path / "big.npy", fields)
    in_memory = open_data(str(tmp_path / "big.npy"))
    monkeypatch.setattr(arrays, "MAPPED_BYTES", 1000)
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 5000)  # 6 fields at a time
    mapped = open_data(str(tmp_path / "big.npy"))
    assert isinstance(mapped.train.part.array, np.memmap)
    assert mapped.fingerprint == in_memory.fingerprint
    fields[12, 3, 3] ^= 1
    other = open_data(saved(tmp_path / "other.npz", images=fields))
    assert other.fingerprint != mapped.fingerprint
    assert len(pickle.dumps(mapped.test)) < 2000
    copy = pickle.loads(pickle.dumps(mapped.test))
    np.testing.assert_array_equal(copy.example(2), in_memory.test.example(2))


@pytest.mark.parametrize("kind, channels, is_symmetric", [
    (np.uint8, 3, True), (np.float32, 3, False), (np.uint8, 1, False)])
def test_only_pictures_are_turned_in_training(tmp_path, kind, channels, is_symmetric):
    fields = np.zeros((30, 8, 8, channels), kind)
    split = open_data(saved(tmp_path / "a.npz", images=fields)).train
    assert split.is_symmetric == is_symmetric
