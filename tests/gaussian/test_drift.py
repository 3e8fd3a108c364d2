"""Universal kriging against dense generalised least squares in float64."""

import numpy as np
import pytest
import torch
from textbook import Kriging, gamma

from sparsefield.gaussian import Kernel, condition
from sparsefield.gaussian import kriging as kriging_module
from sparsefield.gaussian import posterior as posterior_module
from sparsefield.gaussian.kriging import Sites

KERNELS = (Kernel(1.2), Kernel(1.4, ratio=2.5, angle=np.pi / 4), Kernel(0.5, 0.2),
           Kernel(2.5, 0.2, 2.5, np.pi / 4, 1e-6), Kernel(np.inf, 0.1, nugget=1e-8))
SLOPES = np.array([[2.0], [-1.0], [0.5]])
NOISES = [None, 0.2]


@pytest.fixture
def all_drift(monkeypatch):
    """Covariates are drift columns, and no more."""
    monkeypatch.setattr(posterior_module, "choose", lambda design, *_: design)


def single(x):
    """As float32 has it."""
    return x.astype(np.float32).astype(np.float64)


def scene(count=40, dims=2, noise=None, seed=0):
    """Places (M, D), drift (M, 3), values (M, 1) and noise_variance (M,), the least noisy first."""
    rng = np.random.default_rng(seed)
    coords, drift = single(rng.random((count, dims))), single(rng.standard_normal((count, 3)))
    root = np.linalg.cholesky(4 - gamma(KERNELS[0], coords, coords) + 1e-4 * np.eye(count))
    values = root @ rng.standard_normal((count, 1)) + drift @ SLOPES
    variance = np.sort(rng.uniform(0.2, 2, count)) * (noise or 0) ** 2
    values += variance[:, None] ** 0.5 * rng.standard_normal((count, 1))
    return coords, drift, values, variance


def factored(coords, drift, variance, kernels=KERNELS):
    noise = torch.tensor(variance).expand(len(kernels), -1) if variance.any() else None
    return Sites.of(kernels, torch.tensor(coords), noise, torch.tensor(drift))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dims, columns", [(2, 0), (2, 3), (4, 3)])
def test_mean_variance_and_coefficients_are_universal_kriging(dims, columns, noise):
    """Ordinary kriging without columns."""
    coords, drift, values, variance = scene(dims=dims, noise=noise)
    at, there, *_ = scene(15, dims=dims, seed=9)
    drift, there = drift[:, :columns], there[:, :columns]
    sites = factored(coords, drift, variance)
    white = sites.whiten(torch.tensor(values))
    whitened, found_variance = sites.krige(torch.tensor(at), torch.tensor(there))
    mean = values[0] + (white.mT @ whitened).mT.numpy()
    slopes, errors = sites.coefficients(white)
    for k, kernel in enumerate(KERNELS):
        dense = Kriging(kernel, coords, noise_variance=variance, drift=drift)
        np.testing.assert_allclose(mean[k], dense.weights(at, there) @ values, atol=1e-3)
        np.testing.assert_allclose(found_variance[k], np.diag(dense.covariance(at, there)),
                                   rtol=2e-3)
        np.testing.assert_allclose(slopes[k], dense.coefficients(values)[1:], atol=1e-3)
        np.testing.assert_allclose(errors[k], dense.of_drift[1:, 1:], rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("noise", NOISES)
def test_leave_one_out_leaves_one_out(noise):
    coords, drift, values, variance = scene(noise=noise)
    sites = factored(coords, drift, variance)
    weighed, precision = sites.weigh(sites.whiten(torch.tensor(values))), sites.precision()
    for i in (0, 7, 39):
        rows = np.delete(np.arange(40), i)
        for k, kernel in enumerate(KERNELS):
            dense = Kriging(kernel, coords[rows], 1.0, variance[rows], drift[rows])
            here = coords[[i]], drift[[i]]
            predicted = (dense.weights(*here) @ values[rows])[0, 0]
            of_error = dense.covariance(*here)[0, 0] + variance[i]
            assert 1 / precision[k, i] == pytest.approx(of_error, rel=5e-3)
            error = float(weighed[k, i, 0] / precision[k, i])
            assert values[i, 0] - error == pytest.approx(predicted, abs=2e-3)


def batch(coords, covariates, values):
    return torch.tensor(np.hstack([coords, covariates]))[None].float(), torch.tensor(values)[None]


def rich(count, noise, columns=3):
    """A field that its covariates move; and places, values and sds, each (1, M, ...)."""
    coords, drift, values, variance = scene(count, noise=noise)
    values = values - drift[:, columns:] @ SLOPES[columns:]
    drift = drift[:, :columns]
    sd = torch.tensor(variance[:, None] ** 0.5)[None] if noise else None
    return coords, drift, values, variance, (*batch(coords, drift, values), sd)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("tiled, columns", [(False, 0), (False, 3), (True, 0), (True, 3)])
def test_the_posterior_is_universal_kriging(tiled, columns, noise, monkeypatch, all_drift):
    """From all observations, or in tiles with the drift of all."""
    monkeypatch.setattr(kriging_module, "AMPLITUDE_WORTH", 1e9)  # the same amplitude everywhere
    if tiled:
        few = {"DENSE_POINTS": 199, "TILE": 24, "SOLID_TILE": 24, "TOGETHER": 96}
        for name, number in few.items():
            monkeypatch.setattr(posterior_module, name, number)
    coords, drift, values, variance, given = rich(200, noise, columns)
    posterior = condition(*given, kernels=KERNELS[:1], covariates=columns)
    assert isinstance(posterior.fields[0], posterior_module._Tiles) == tiled
    at, there, *_ = scene(60, seed=9)
    there = there[:, :columns]
    answer = posterior.at(batch(at, there, at)[0])
    amplitude2 = float(posterior.fields[0].fit.mixture.channels)
    dense = Kriging(KERNELS[0], coords, amplitude2, variance, drift)
    mean, sd = dense.weights(at, there) @ values, np.sqrt(np.diag(dense.covariance(at, there)))
    assert np.abs(answer.mean[0].numpy() - mean).max() < (0.25 if tiled else 0.01) * sd.max()
    np.testing.assert_allclose(answer.sd[0, :, 0], sd, rtol=0.1 if tiled else 0.01)
    slopes, errors = (x[:, 0] for x in posterior.fields[0].coefficients())
    if not tiled:
        np.testing.assert_allclose(slopes, dense.coefficients(values)[1:, 0], atol=1e-3)
        np.testing.assert_allclose(errors**2, np.diag(dense.of_drift)[1:], rtol=0.01)


@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_the_covariance_of_universal_kriging(noise, all_drift):
    """With noise every channel has its own."""
    coords, drift, _, variance, (places, both, sd) = rich(60, noise)
    both = torch.cat([both, -2 * both], dim=2)
    sd = None if sd is None else torch.cat([sd, 1.5 * sd], dim=2)
    posterior = condition(places, both, sd, kernels=KERNELS[:1], covariates=3)
    at, there, *_ = scene(8, seed=9)
    draws = 2000
    z = posterior.noise(batch(at, 2 * there, at)[0])(
        [torch.Generator().manual_seed(k) for k in range(draws)]).double().numpy()
    for c, field in enumerate(posterior.fields if noise else posterior.fields * 2):
        amplitude2 = float(field.fit.mixture.channels.flatten()[0])
        dense = Kriging(KERNELS[0], coords, amplitude2, variance * (1 + 1.25 * c), drift)
        covariance = dense.covariance(at, 2 * there)
        sd_at = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(np.cov(z[..., c].T), covariance / np.outer(sd_at, sd_at),
                                   atol=5 / draws**0.5)
