"""The simulated tracer: its physics, and what a data set of it promises."""

import numpy as np
import pytest

from sparsefield.data import open_data
from sparsefield.data.tracer import DIFFUSION, SPEED, STEPS, Turbulence, sequences


@pytest.fixture(scope="module")
def history():
    """A flow of 64 x 64 points after eleven frames, and energy and tracer before each of them."""
    flow, kept = Turbulence(64, np.random.default_rng(0)), []
    for _ in range(11):
        kept.append((flow.energy, flow.tracer))
        flow.advance()
    return flow, kept


def test_energy_decays_and_not_by_the_steps(history):
    energy = np.array([energy for energy, _ in history[1]])
    assert energy[0] == pytest.approx((SPEED / 2) ** 2 / 2)
    assert (np.diff(energy) < 0).all()

    inviscid = Turbulence(64, np.random.default_rng(0))
    inviscid.damping = np.ones_like(inviscid.damping)
    for _ in range(10):
        inviscid.advance()
    assert inviscid.energy == pytest.approx(energy[0], rel=0.01)
    assert energy[-1] < 0.97 * energy[0]


def test_the_flow_has_no_divergence(history):
    flow, _ = history
    slopes = np.gradient(flow.velocity(), axis=(1, 2))
    divergence = np.fft.irfft2((1j * flow.wave * np.fft.rfft2(flow.velocity())).sum(axis=0))
    assert np.abs(divergence).max() < 1e-10 * 64 * np.abs(slopes).max()


def test_the_tracer_keeps_its_mean_and_loses_variance(history):
    tracers = np.array([tracer for _, tracer in history[1]])
    variance = tracers.var(axis=(1, 2))
    assert (np.diff(variance) < 0).all()
    np.testing.assert_allclose(tracers.mean(axis=(1, 2)), tracers[0].mean(), atol=1e-12)


def test_still_water_diffuses_a_wave_as_in_the_formula():
    flow = Turbulence(32, np.random.default_rng(0))
    wave = np.cos(2 * np.pi * 3 * np.arange(32) / 32) * np.ones((32, 1))
    flow.state = np.stack([np.zeros_like(flow.state[0]), np.fft.rfft2(wave)])
    flow.advance()
    rate = DIFFUSION / 32**2 * (2 * np.pi * 3) ** 2
    np.testing.assert_allclose(flow.tracer, np.exp(-rate) * wave, atol=1e-12)


def test_a_uniform_wind_carries_the_tracer_by_its_speed():
    """Vorticity of a shear u(y) = sin(2 pi y) / 8: where u is largest, the tracer moves 1 / 8."""
    flow = Turbulence(64, np.random.default_rng(0))
    y, x = np.mgrid[:64, :64] / 64
    vorticity = -2 * np.pi / 8 * np.cos(2 * np.pi * y)  # - du/dy
    flow.damping = np.ones_like(flow.damping)
    flow.state = np.fft.rfft2(np.stack([vorticity, np.sin(2 * np.pi * x)]))
    np.testing.assert_allclose(flow.velocity()[0], np.sin(2 * np.pi * y) / 8, atol=1e-12)
    flow.advance()
    np.testing.assert_allclose(flow.tracer, np.sin(2 * np.pi * (x - np.sin(2 * np.pi * y) / 8)),
                               atol=2e-3 * STEPS)


def test_sequences_follow_from_the_seed():
    found = sequences(2, frames=3, size=16, seed=5)
    assert found.shape == (2, 3, 16, 16) and found.dtype == np.float32
    assert np.abs(found).max() <= 1.02
    np.testing.assert_array_equal(found[:1], sequences(1, frames=3, size=16, seed=5))
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[:1], sequences(1, frames=3, size=16, seed=6))


def test_following_frames_are_alike_and_distant_ones_less():
    frames = sequences(2, frames=8).reshape(2, 8, -1)
    alike = [[np.corrcoef(of[0], of[k])[0, 1] for k in (1, 7)] for of in frames]
    assert min(near for near, _ in alike) > 0.9 > 0.8 > max(far for _, far in alike)


def test_a_data_set_of_single_frames():
    data, again = (open_data("tracer", image_size=8) for _ in range(2))
    assert data.fingerprint == again.fingerprint
    assert data.fingerprint != open_data("tracer", image_size=16).fingerprint
    assert data.val.example(3).shape == (8, 8, 1)
    np.testing.assert_array_equal(data.val.example(3), again.val.example(3))
    frames = [data.train.training_example(0, np.random.default_rng(k)) for k in range(2)]
    assert not np.allclose(*frames)
    runs = [set(split.runs) for split in (data.train, data.val, data.test)]
    assert not runs[0] & runs[1] and not runs[1] & runs[2] and not runs[0] & runs[2]
