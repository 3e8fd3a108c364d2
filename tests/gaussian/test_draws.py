"""Draws of the prior against the variogram, of the posterior against the dense covariance."""

import numpy as np
import pytest
import torch
from textbook import Kriging, gamma

from sparsefield.gaussian import BANK, Kernel, condition
from sparsefield.gaussian import kernels as prior
from sparsefield.gaussian import posterior as posterior_module
from sparsefield.place import grid_coords

DRAWS = 2000


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def field(count=30, channels=3, seed=0):
    """Observations (1, M, 2) and (1, M, C) of channels that go together."""
    g = torch.Generator().manual_seed(seed)
    coords = torch.rand(1, count, 2, generator=g)
    values = prior.features(Kernel(1.2), coords[0]) @ torch.randn(
        prior.FEATURES, channels, generator=g
    )
    values[:, 1:] += values[:, :1]
    return coords, values[None]


def points(count, seed=9):
    return torch.rand(1, count, 2, generator=torch.Generator().manual_seed(seed))


def semivariance(root):
    """Variogram (N, N) of root @ N(0, 1)."""
    square = root.square().sum(dim=1)
    return (square[:, None] + square - 2 * root @ root.T) / 2


FAMILIES = [Kernel(0.8), Kernel(1.9), Kernel(1.4, ratio=2.5, angle=np.pi / 4), Kernel(0.5, 0.2),
            Kernel(1.5, 0.1), Kernel(1.5, 0.2, 2.5, np.pi / 4), Kernel(2.5, 0.4),
            Kernel(np.inf, 0.1), Kernel(np.inf, 0.4)]


@pytest.mark.parametrize("dims, each, bias", [(2, 0.05, 0.01), (3, 0.18, 0.01), (4, 0.25, 0.02)])
@pytest.mark.parametrize("kernel", FAMILIES, ids=Kernel.describe)
def test_waves_have_the_variogram(kernel, dims, each, bias):
    """At every pair of places nearly; on average, which checks the spectral density, closely."""
    coords = torch.rand(300, dims, generator=torch.Generator().manual_seed(9)).double()
    coords[:, 1] *= 0.2
    found = semivariance(prior.features(kernel, coords).double()).numpy()
    expected = gamma(kernel, coords.numpy(), coords.numpy())
    distance = torch.cdist(coords, coords).numpy()
    for low, high in [(0.002, 0.01), (0.01, 0.1), (0.1, 2)]:
        ratio = (found / np.maximum(expected, 1e-12))[(distance > low) & (distance < high)] - 1
        if len(ratio) > 20:
            assert abs(ratio).max() < each and abs(ratio.mean()) < max(bias, 5e-5 / low)


def test_waves_of_a_bounded_variogram_stay_bounded_far_away():
    coords = torch.tensor([[0.0, 0.0], [1e3, 0.0], [0.0, 1e5]])
    for kernel in FAMILIES[3:]:
        found = semivariance(prior.features(kernel, coords).double())
        np.testing.assert_allclose(found[~torch.eye(3, dtype=torch.bool)], 1, atol=0.06)


@pytest.mark.parametrize("kernel", [BANK[2], BANK[7]])
def test_fields_are_summed_alike_on_a_grid_and_off_it_and_in_parts(kernel, monkeypatch):
    coords = grid_coords(12, 9)[torch.randperm(108)[:20]]
    numbers = torch.randn(prior.FEATURES, 3, generator=generators(1)[0]).T
    on, off = prior.Waves(kernel, coords), prior.Waves(kernel, points(20)[0])
    assert on.is_grid and not off.is_grid
    monkeypatch.setattr(prior, "KEPT_POINTS", 7)
    monkeypatch.setattr(prior, "SUMMED_POINTS", 3)
    for waves in (on, off):
        expected = numbers @ prior.features(kernel, waves.coords).T
        np.testing.assert_allclose(waves.fields(numbers), expected, atol=1e-4)


def test_covariance_of_draws_is_the_conditional_covariance():
    coords, values = field()
    at = torch.cat([points(8), coords[:, :1] + 0.01], dim=1)
    posterior = condition(coords, values)
    z = posterior.noise(at)(generators(DRAWS)).double()                  # (S, N, C)
    fit = posterior.fields[0].fit
    kernel = fit.kernels[fit.heaviest]
    dense = Kriging(kernel, coords[0].double().numpy()).covariance(at[0].double().numpy())
    sd = np.sqrt(np.diag(dense))
    between_points = dense / np.outer(sd, sd)
    between_channels = fit.mixture.channels[fit.heaviest].double().numpy()
    sd = np.sqrt(np.diag(between_channels))
    between_channels /= np.outer(sd, sd)
    found = np.cov(z.flatten(1).numpy().T).reshape(9, 3, 9, 3)
    expected = np.einsum("ij,cd->icjd", between_points, between_channels)
    np.testing.assert_allclose(found, expected, atol=5 / DRAWS**0.5)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 1.5 / DRAWS**0.5
    np.testing.assert_allclose(z.mean(dim=0), 0, atol=4.5 / DRAWS**0.5)


def test_draws_pass_through_the_observations():
    coords, values = field()
    posterior = condition(coords, values)
    answer = posterior.at(coords)
    assert answer.sd.max() < 3e-3 * values.std()
    draw = answer.mean + answer.sd * posterior.noise(coords)(generators(5))
    assert (draw - values).abs().max() < 1e-3 * values.std()


def test_a_seed_has_one_value_at_a_place():
    coords, values = field()
    posterior = condition(coords, values)
    coarse, fine = grid_coords(5, 5)[None], grid_coords(15, 15)[None]
    shared = torch.arange(225).reshape(15, 15)[1::3, 1::3].flatten()     # centres of both
    z = posterior.noise(coarse)(generators(2))
    assert z[0].sub(z[1]).abs().mean() > 0.3
    np.testing.assert_allclose(posterior.noise(fine)(generators(2))[:, shared], z, atol=5e-3)
    np.testing.assert_allclose(posterior.noise(coarse[:, 7:9])(generators(2)), z[:, 7:9], atol=5e-3)
    np.testing.assert_allclose(posterior.noise(coarse)(generators(1, first=1))[0], z[1], atol=5e-3)


def test_a_draw_does_not_depend_on_the_batch_or_on_parts(monkeypatch):
    (a, f), (b, g) = field(seed=1), field(seed=2)
    at = points(100).expand(2, -1, -1)
    posterior = condition(torch.cat([a, b]), torch.cat([f, g]))
    z = posterior.noise(at)(generators(6))
    alone = condition(b, g).noise(at[1:])(generators(3, first=3))         # field after field
    np.testing.assert_allclose(z[3:], alone, atol=5e-3)
    for each in posterior.fields:
        each.at_once = 64
    noise = posterior.noise(at)
    assert len(noise.rows[0]) == 2
    np.testing.assert_allclose(noise(generators(6)), z, atol=5e-3)
    monkeypatch.setattr(posterior_module, "KEPT_NUMBERS", 0)
    np.testing.assert_allclose(posterior.noise(at)(generators(6)), z, atol=5e-3)


def test_draws_in_tiles_agree_with_those_from_all_observations(monkeypatch):
    coords, values = field(count=400)
    at = points(50)
    dense = condition(coords, values)
    for name, number in {"DENSE_POINTS": 399, "TILE": 40, "TOGETHER": 160}.items():
        monkeypatch.setattr(posterior_module, name, number)
    local = condition(coords, values)
    assert isinstance(local.fields[0], posterior_module._Tiles)
    z, near = (p.noise(at)(generators(20)) for p in (dense, local))
    assert (z - near).square().mean().sqrt() < 0.05
    parts = torch.cat([local.noise(half)(generators(2)) for half in at.split(25, dim=1)], dim=1)
    np.testing.assert_allclose(parts, near[:2], atol=5e-3)
    answer = local.at(coords)
    draw = answer.mean + answer.sd * local.noise(coords)(generators(1))
    assert (draw - values).abs().max() < 1e-3 * values.std()


def test_autocast_around_it_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    coords, values = (torch.rand(1, 30, n, generator=generator) for n in (2, 3))

    def found() -> tuple:
        posterior = condition(coords, values)
        answer, loo = posterior.at(coords + 0.01), posterior.leave_one_out
        z = posterior.noise(coords + 0.01)([torch.Generator().manual_seed(1)])
        return answer.mean, answer.sd, loo.z, z

    expected = found()
    with torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(found(), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kernel", [Kernel(np.inf, 0.2, nugget=1e-8), Kernel(1.9)])
@pytest.mark.parametrize("dense", [True, False])
def test_draws_of_a_smooth_field_have_the_sd_of_its_kriging(monkeypatch, kernel, dense):
    """Where many points surround a place, nearly all that is left open is the nugget."""
    if not dense:
        monkeypatch.setattr(posterior_module, "DENSE_POINTS", 50)
    coords, at = (torch.rand(1, n, 2, generator=torch.Generator().manual_seed(n))
                  for n in (80, 100))
    values = torch.sin(5 * coords[..., :1]) + coords[..., 1:] ** 2
    z = condition(coords, values, kernels=(kernel,)).noise(at)(
        [torch.Generator().manual_seed(k) for k in range(300)])
    assert z.std(dim=0).mean() == pytest.approx(1, abs=0.06)
