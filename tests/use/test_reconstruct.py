"""Fields from scattered values, by a trained model and by the closed form alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small import write_untrained
from sparsefield import load
from sparsefield.errors import UserError
from sparsefield.use import predict


@pytest.fixture(scope="module")
def colour(paths):
    return paths["colour"]


@pytest.fixture(scope="module")
def sea(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("sea") / "model.pth", 1, (-2.0, 30.0))


# --- the API --------------------------------------------------------------------------------------


def test_the_example_of_the_readme(colour):
    model = load(colour)
    coords = np.random.default_rng(0).uniform(size=(40, 2))
    values = 100 + 50 * coords[:, :1].repeat(3, axis=1)
    field = model.reconstruct(coords, values, resolution=16, num_samples=3)
    assert field.mean.shape == field.sd.shape == (16, 16, 3)
    assert field.samples.shape == (3, 16, 16, 3) and field.coords.shape == (16, 16, 2)
    assert np.abs(field.mean - 100 - 50 * field.coords[..., :1]).mean() < 10


def test_observed_points_are_kept_and_certain(sea):
    where = (np.arange(8) + 0.5) / 8
    coords = np.stack([where, where], axis=1)
    values = np.linspace(-5, 40, 8)  # beyond the range of the training data on both sides
    field = load(sea).reconstruct(coords, values, 8, num_samples=4)
    diagonal = np.arange(8)
    assert np.allclose(field.mean[diagonal, diagonal, 0], values, atol=1e-4)
    assert field.sd[diagonal, diagonal].max() < 1e-4
    assert field.sd[0, 7] > 0.1


def test_units_and_origin_do_not_matter(sea):
    rng = np.random.default_rng(1)
    coords, values = rng.uniform(size=(30, 2)), rng.uniform(0, 20, 30)
    here = load(sea).reconstruct(coords, values, 8, num_samples=2)
    there = load(sea).reconstruct(coords * 1000 + (5000, -300), values, 8, num_samples=2,
                                  extent=(5000, 6000, -300, 700))
    assert np.allclose(here.samples, there.samples, atol=0.05)
    assert np.allclose(there.coords, here.coords * 1000 + (5000, -300))


def test_calibration_widens_samples_about_their_mean(colour):
    coords = np.random.default_rng(0).uniform(size=(20, 2))
    model = load(colour)
    assert model.spread == 1.2
    values = np.full((20, 3), 128.0) + np.random.default_rng(1).normal(0, 5, (20, 3))
    wide = model.reconstruct(coords, values, 8, num_samples=4)
    model.spread = 1.0
    raw = model.reconstruct(coords, values, 8, num_samples=4)
    assert np.allclose(wide.sd, 1.2 * raw.sd, rtol=1e-3, atol=1e-3)
    assert np.array_equal(wide.mean, raw.mean)
    model.spread = [1.2, 1.0, 2.0]
    by_channel = model.reconstruct(coords, values, 8, num_samples=4)
    assert np.allclose(by_channel.sd, model.spread * raw.sd, rtol=1e-3, atol=1e-3)
    grey = [load(colour), model]
    grey[0].spread = 1.4
    one, mean_of_three = (own.reconstruct(coords, values[:, :1], 8, num_samples=4) for own in grey)
    assert np.allclose(one.sd, mean_of_three.sd)


def test_many_points_are_seen_in_blocks_around_each_query(sea):
    rng = np.random.default_rng(2)
    coords = rng.uniform(size=(1200, 2))

    def truth(p):
        return 10 + 5 * np.sin(6 * p[..., 0]) * np.cos(5 * p[..., 1])

    field = load(sea).reconstruct(coords, truth(coords), 24, num_samples=2, num_steps=1)
    assert np.abs(field.mean[..., 0] - truth(field.coords)).max() < 0.5


def test_noise_lets_values_move_and_reports_it(sea):
    rng = np.random.default_rng(3)
    where = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), -1).reshape(-1, 2)
    truth = 10 + 8 * where[:, 0]
    noisy = truth + rng.normal(0, 2, 64)
    exact = load(sea).reconstruct(where, noisy, 8, num_samples=8)
    smooth = load(sea).reconstruct(where, noisy, 8, num_samples=8, noise_sd=2.0)

    def error(field):
        return np.sqrt(((field.mean.reshape(-1) - truth) ** 2).mean())

    assert error(smooth) < 0.7 * error(exact)
    assert exact.sd.max() < 1e-3 and 0.3 < smooth.sd.mean() < 2


def test_tokens_can_be_left_out_and_are_in_large_fields(colour, monkeypatch):
    """The flow's U-Net then says the whole velocity; without one it has nothing to say."""
    coords = np.random.default_rng(4).uniform(size=(30, 2))
    values = 128 + 50 * coords[:, :1].repeat(3, axis=1)
    model = load("bundled")
    given = {wanted: model.reconstruct(coords, values, 8, num_samples=2, tokens=wanted)
             for wanted in (None, True, False)}
    assert np.array_equal(given[None].samples, given[True].samples)
    assert "tokens left out" not in given[None].how and "tokens left out" in given[False].how
    assert not np.allclose(given[True].samples, given[False].samples)
    monkeypatch.setattr(predict, "LARGE", 63)
    large = model.reconstruct(coords, values, 8, num_samples=2)
    assert np.array_equal(large.samples, given[False].samples)
    without_unet = load(colour)
    torch.nn.init.constant_(without_unet.network.decoder[-1].bias, 0.1)  # else it has no flow
    assert "left out" not in without_unet.reconstruct(coords, values, 8, num_samples=2).how
    with pytest.raises(UserError, match="tokens of this model cannot be left out"):
        without_unet.reconstruct(coords, values, 8, num_samples=2, tokens=False)


# --- the closed form alone ------------------------------------------------------------------------


def plane(x, y):
    return 3 + 2 * x - y


@pytest.mark.parametrize("noise_sd", [0.1, 0.3])
def test_a_noisy_plane_is_neither_flat_nor_overfitted(noise_sd):
    rng = np.random.default_rng(0)
    coords = rng.uniform(size=(60, 2))
    values = 1000 * (plane(*coords.T) + noise_sd * rng.normal(size=60))
    field = load("none").reconstruct(coords, values, 16, num_samples=20, noise_sd=1000 * noise_sd)
    truth = 1000 * plane(*np.moveaxis(field.coords, -1, 0))
    error = field.mean[..., 0] - truth
    assert np.ptp(field.mean) > 0.6 * np.ptp(truth)
    assert np.sqrt((error**2).mean()) < 1000 * noise_sd
    assert (np.abs(error) < 1.645 * field.sd[..., 0]).mean() > 0.75


def test_repeated_measurements_have_less_noise():
    rng = np.random.default_rng(1)
    places = rng.uniform(size=(20, 2))
    coords = places.repeat(25, axis=0)
    values = 10 * plane(*coords.T) + rng.normal(size=500)
    model = load("none")
    field = model.reconstruct(coords, values, 8, num_samples=2, noise_sd=1.0)
    once = model.reconstruct(places, values.reshape(20, 25).mean(axis=1), 8, num_samples=2,
                             noise_sd=0.2)
    np.testing.assert_allclose(field.mean, once.mean, rtol=1e-4)
    assert np.sqrt(np.mean((field.mean[..., 0] - 10 * plane(*field.coords.T).T) ** 2)) < 1


def test_noise_of_its_own_for_every_point():
    coords = np.array([[0.1, 0.1], [0.9, 0.9], [0.1, 0.9], [0.9, 0.1], [0.5, 0.5]])
    values = np.array([0.0, 0.0, 0.0, 0.0, 10.0])
    model = load("none")
    trusted = model.reconstruct(coords, values, (1, 1), num_samples=2, noise_sd=0.1)
    doubted = model.reconstruct(coords, values, (1, 1), num_samples=2,
                                noise_sd=[0.1, 0.1, 0.1, 0.1, 20])
    assert trusted.mean.item() > 8 and doubted.mean.item() < 5


@pytest.mark.parametrize("channels", [1, 3])
def test_the_closed_form_takes_any_channels_and_units(channels):
    rng = np.random.default_rng(2)
    coords = rng.uniform(size=(30, 2))
    values = rng.normal(size=(30, channels)) * 1e5 + 1e7
    field = load("none").reconstruct(coords, values, 8, num_samples=3, seed=1)
    assert field.samples.shape == (3, 8, 8, channels) and np.isfinite(field.samples).all()
    assert "power" in field.variogram
    small = load("none").reconstruct(coords, (values - 1e7) / 1e5, 8, num_samples=3, seed=1)
    np.testing.assert_allclose((field.mean - 1e7) / 1e5, small.mean, atol=0.02)


def test_what_was_not_measured_may_lie_outside_of_what_was():
    """A slope goes on beyond the measured corner, and samples spread both ways."""
    rng = np.random.default_rng(3)
    coords = 0.4 * rng.uniform(size=(60, 2))
    values = coords.sum(axis=1)
    field = load("none").reconstruct(coords, values, 16, num_samples=20)
    margin = values.max() + 0.1 * np.ptp(values)
    assert field.samples.max() > margin + 0.05
    beyond = field.samples[:, -1, -1, 0]
    assert len(np.unique(beyond.round(6))) == 20  # none at a bound


def test_one_point_without_a_model():
    field = load("none").reconstruct([[0.5, 0.5]], [7.0], (3, 3), num_samples=4)
    assert field.mean[1, 1] == 7 and field.sd[1, 1] == 0
    assert np.isfinite(field.samples).all() and field.sd[0, 0] > 0


def test_the_sd_without_a_model_is_that_of_endlessly_many_samples():
    rng = np.random.default_rng(0)
    coords, values = rng.uniform(size=(40, 2)), 1000 * rng.normal(size=40)
    few, many = (load("none").reconstruct(coords, values, 12, num_samples=k) for k in (2, 600))
    np.testing.assert_array_equal(few.sd, many.sd)
    ratio = many.samples.std(axis=0, ddof=1) / many.sd
    assert abs(ratio - 1).max() < 0.15 and ratio.mean() == pytest.approx(1, abs=0.02)
    told = [load("none").at(few.coords.reshape(-1, 2), coords, values, num_samples=600,
                            noise_sd="auto", with_noise=also) for also in (False, True)]
    noise = np.sqrt(told[1].sd**2 - told[0].sd**2)
    assert noise.max() > 100 and np.ptp(noise) < 0.01 * noise.max()
    np.testing.assert_allclose(told[1].samples.std(axis=0, ddof=1), told[1].sd, rtol=0.15)
