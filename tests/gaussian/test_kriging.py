"""The fit and the answer against dense textbook formulas in float64."""

import numpy as np
import pytest
import torch
from textbook import Kriging, best_scores, gamma, mixture

from sparsefield.gaussian import BANK, ONE_KERNEL, Kernel, condition
from sparsefield.gaussian.fit import PRIOR_AMPLITUDE2, fit, restricted_likelihood
from sparsefield.gaussian.kernels import variogram
from sparsefield.gaussian.kriging import Sites, closeness, local_amplitude
from sparsefield.place import Domain, grid_coords

ANISOTROPIC = Kernel(1.4, 2.5, np.pi / 4)


SMOOTH = Kernel(1.2)


def field(count=40, channels=2, seed=0, kernel=SMOOTH):
    """Coordinates (M, 2) and a draw of a Gaussian field there (M, C), float64."""
    rng = np.random.default_rng(seed)
    coords = rng.random((count, 2)).astype(np.float32).astype(np.float64)
    root = np.linalg.cholesky(4 - gamma(kernel, coords, coords) + 1e-4 * np.eye(count))
    return coords, root @ rng.standard_normal((count, channels))


def queries(count=15, seed=9):
    return np.random.default_rng(seed).random((count, 2)).astype(np.float32).astype(np.float64)


def batch(*arrays):
    return [torch.tensor(x)[None] for x in arrays]


def fitted(coords, values, kernels=BANK):
    """A fit and the kernels and weights that it chose."""
    found = fit(kernels, torch.tensor(coords), torch.tensor(values), None)
    return found, list(found.kernels), found.mixture.weight.double().numpy()


def combined(found, coords, values, at):
    """Means and sds at places (N, 2), without the local amplitude; and the variances of kernels."""
    onto, whitened, variance = found.sites.krige(torch.tensor(at))
    level = onto @ torch.tensor(values).float()[:1]
    return found.mixture.answer(level, (found.white.mT @ whitened).mT, variance), variance


def scores(coords, values, noise_variance=None, amplitude2=None, kernels=BANK):
    sites = Sites.of(kernels, torch.tensor(coords), noise_variance)
    white = sites.whiten(torch.tensor(values))
    return restricted_likelihood(white, sites.log_det(), amplitude2).numpy()


def test_variograms_are_the_powers_of_the_stretched_distance():
    a = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    for places, rows in zip(a.numpy(), variogram(BANK, a, a), strict=True):
        for kernel, row in zip(BANK, rows, strict=True):
            np.testing.assert_allclose(row, gamma(kernel, places, places), atol=1e-12)


def test_scores_are_the_restricted_likelihood():
    coords, values = field()
    found, expected = scores(coords, values), best_scores(BANK, coords, values, PRIOR_AMPLITUDE2)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=2e-3)


def test_scores_with_noise_are_the_restricted_likelihood():
    coords, values = field(channels=1)
    noise_variance = np.sort(np.random.default_rng(1).uniform(0.01, 0.5, len(coords)))
    tried = [(BANK[k], a) for k, a in [(0, 0.5), (2, 1.0), (2, 4.0), (8, 1.0)]]
    kernels, amplitudes = zip(*tried, strict=True)
    amplitude2 = torch.tensor(amplitudes)
    found = scores(coords, values, torch.tensor(noise_variance) / amplitude2[:, None], amplitude2,
                   kernels)
    expected = np.array([
        Kriging(kernel, coords, a, noise_variance).restricted_log_likelihood(values[:, 0])
        - (PRIOR_AMPLITUDE2 / a + np.log(a)) / 2 for kernel, a in tried
    ])
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=2e-3)


def test_weights_follow_the_scores():
    coords, values = field(count=25)
    _, kernels, weights = fitted(coords, values)
    expected = best_scores(kernels, coords, values, PRIOR_AMPLITUDE2)
    expected = np.exp(expected - expected[0])
    assert 1 < len(kernels) <= 4
    np.testing.assert_allclose(weights, expected / expected.sum(), atol=1e-3)


@pytest.mark.parametrize("truth", [Kernel(0.8), Kernel(1.6), BANK[6], BANK[11]])
def test_the_kernel_of_a_field_is_recognised(truth):
    coords, values = field(count=200, channels=3, kernel=truth)
    found = fitted(coords, values)[0]
    assert found.kernels[found.heaviest] == truth
    assert f"power {truth.exponent:g}" in condition(*batch(coords, values)).describe()


@pytest.mark.parametrize("kernels", [ONE_KERNEL, (ANISOTROPIC,)])
def test_mean_and_variance_are_ordinary_kriging(kernels):
    coords, values = field()
    at = queries()
    answer, variance = combined(fitted(coords, values, kernels)[0], coords, values, at)
    expected = Kriging(kernels[0], coords)
    np.testing.assert_allclose(variance[0], np.diag(expected.covariance(at)), rtol=1e-3)
    np.testing.assert_allclose(answer.mean, expected.weights(at) @ values, atol=1e-4)


def test_channels_go_together_as_the_observations_do():
    coords, values = field(channels=3)
    values[:, 2] += values[:, 0]
    found, _, _ = fitted(coords, values, ONE_KERNEL)
    expected = values.T @ Kriging(ONE_KERNEL[0], coords).p @ values
    expected = (expected + PRIOR_AMPLITUDE2 * np.eye(3)) / len(coords)
    np.testing.assert_allclose(found.mixture.channels[0], expected, rtol=1e-3, atol=1e-4)


def test_the_answer_is_the_mixture_of_the_kernels():
    coords, values = field(count=25)
    at = queries()
    found, kernels, weights = fitted(coords, values)
    answer, _ = combined(found, coords, values, at)
    mean, variance, between = mixture(kernels, weights, coords, values, at, PRIOR_AMPLITUDE2)
    np.testing.assert_allclose(answer.mean, mean, atol=1e-4)
    np.testing.assert_allclose(answer.sd**2, variance, rtol=2e-3)
    np.testing.assert_allclose(answer.spread[:, 0] ** 2, between.mean(axis=1), rtol=0.01,
                               atol=1e-7)


def test_leave_one_out_leaves_one_out():
    coords, values = field(count=25)
    _, kernels, weights = fitted(coords, values)
    loo = condition(*batch(coords, values)).leave_one_out
    for i in (0, 1, 13, 24):
        others = np.delete(coords, i, axis=0)
        means, variances = [], []
        for kernel in kernels:
            one, every = Kriging(kernel, others), Kriging(kernel, coords)
            means.append(one.weights(coords[[i]])[0] @ np.delete(values, i, axis=0))
            amplitude2 = np.diag(values.T @ every.p @ values) + PRIOR_AMPLITUDE2
            variances.append(one.covariance(coords[[i]])[0, 0] * amplitude2 / len(coords))
        mean = weights @ means
        variance = weights @ (np.array(variances) + (means - mean) ** 2)
        np.testing.assert_allclose(loo.mean[0, i], mean, atol=2e-4)
        np.testing.assert_allclose(loo.sd[0, i], variance**0.5, rtol=1e-3)
        np.testing.assert_allclose(loo.z[0, i], (values[i] - mean) / variance**0.5,
                                   atol=5e-3)


def test_local_amplitude_is_the_weighted_size_of_the_scores():
    rng = np.random.default_rng(0)
    coords, at, z = rng.random((30, 2)), rng.random((8, 2)), rng.standard_normal((30, 2))
    at_places = closeness(torch.tensor(at), torch.tensor(coords), spacing=0.2)
    found = local_amplitude(at_places, torch.tensor(z).float())
    near = np.exp(-((np.linalg.norm(at[:, None] - coords, axis=2) / 0.26) ** 2) / 2)
    expected = (near @ (z**2).mean(axis=1) + 2) / (near.sum(axis=1) + 2)
    np.testing.assert_allclose(found[:, 0], expected**0.5, rtol=1e-4)


def test_an_observation_has_its_value_and_no_uncertainty():
    coords, values = field()
    answer = condition(*batch(coords, values)).at(torch.tensor(coords)[None])
    np.testing.assert_allclose(answer.mean[0], values, atol=1e-5)
    assert answer.sd.max() < 3e-3 * values.std()


def test_a_field_does_not_depend_on_its_batch_or_on_what_else_is_asked():
    fields = [field(seed=seed, kernel=kernel)
              for seed, kernel in enumerate((Kernel(0.8), Kernel(1.6), BANK[7]))]
    coords, values = (torch.tensor(np.stack(x)) for x in zip(*fields, strict=True))
    at = torch.tensor(np.stack([queries(seed=seed) for seed in range(3)]))
    posterior = condition(coords, values)
    together = posterior.at(at)
    for each in posterior.fields:
        each.at_once = 4
    for one, other in zip(posterior.at(at), together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    for i in range(3):
        alone = condition(coords[i : i + 1], values[i : i + 1]).at(at[i : i + 1])
        np.testing.assert_allclose(together.mean[i], alone.mean[0], atol=3e-4)
        np.testing.assert_allclose(together.sd[i], alone.sd[0], rtol=3e-3)


@pytest.mark.parametrize("scale", [0.01, 1000.0])
@pytest.mark.parametrize("noise", [None, 0.1])
def test_distances_are_compared_with_the_domain(scale, noise):
    """In whatever units, and whatever else is asked for."""
    coords, values = (x.float() for x in batch(*field()))
    noise_sd = None if noise is None else torch.full_like(values, noise)
    at = torch.tensor(queries())[None].float()
    one = condition(coords, values, noise_sd, domain=Domain(1.0, 0.4)).at(at)
    other = condition(coords * scale, values, noise_sd, domain=Domain(scale, 0.4 * scale))
    far = other.at(torch.cat([scale * at, 50 * scale * at], dim=1))
    torch.testing.assert_close(far.mean[:, :15], one.mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(far.sd[:, :15], one.sd, atol=1e-4, rtol=1e-2)


def test_smooth_exact_values_are_answered_as_well_as_slightly_noisy_ones():
    """The bank knows a kernel for smooth fields whether there is noise or not."""
    grid = grid_coords(20, 20)[None]

    def smooth(x):
        return torch.sin(5 * x[..., :1]) * torch.cos(4 * x[..., 1:])

    errors = []
    for noise in (None, 1e-9):
        of_seeds = []
        for seed in range(3):
            coords = torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(seed))
            values = smooth(coords)
            noise_sd = None if noise is None else torch.full_like(values, noise)
            of_seeds.append(condition(coords, values, noise_sd).at(grid).mean - smooth(grid))
        errors.append(torch.cat(of_seeds).square().mean().sqrt())
    assert errors[0] < 1.02 * errors[1]
