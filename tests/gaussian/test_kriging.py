"""The fit and the answer against dense textbook formulas in float64."""

import numpy as np
import pytest
import torch
from textbook import Kriging, best_scores, gamma, mixture, penalty

from sparsefield.gaussian import BANK, ONE_KERNEL, Kernel, condition
from sparsefield.gaussian import fit as fit_module
from sparsefield.gaussian.fit import PRIOR_AMPLITUDE2, fit
from sparsefield.gaussian.kernels import NUGGET, variogram
from sparsefield.gaussian.kriging import Sites, closeness, local_amplitude
from sparsefield.place import Domain, grid_coords
from sparsefield.use.globe import to_space

ANISOTROPIC = Kernel(1.4, ratio=2.5, angle=np.pi / 4)
SMOOTH = Kernel(1.2)
MATERN = Kernel(2.5, 0.2, 2.5, np.pi / 4, 1e-6)
SQUARED_EXPONENTIAL = Kernel(np.inf, 0.2, nugget=1e-8)


def field(count=40, channels=2, seed=0, kernel=SMOOTH):
    """Coordinates (M, 2) and a draw of a Gaussian field there (M, C), float64."""
    rng = np.random.default_rng(seed)
    coords = rng.random((count, 2)).astype(np.float32).astype(np.float64)
    root = np.linalg.cholesky(4 - gamma(kernel, coords, coords) + kernel.nugget * np.eye(count))
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
    whitened, variance = found.sites.krige(torch.tensor(at))
    level = torch.tensor(values).float()[:1]
    return found.mixture.answer(level, (found.white.mT @ whitened).mT, variance), variance


def scores(coords, values, noise_variance=None, amplitude2=None, kernels=BANK, drift=None):
    sites = Sites.of(kernels, torch.tensor(coords), noise_variance,
                     None if drift is None else torch.tensor(drift))
    white = sites.whiten(torch.tensor(values))
    return fit_module.scores(sites, white, amplitude2).numpy()


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_variograms_are_those_of_the_textbook(dims):
    a = torch.rand(3, 6, dims, generator=torch.Generator().manual_seed(0)).double()
    for places, rows in zip(a.numpy(), variogram(BANK, a, a), strict=True):
        for kernel, row in zip(BANK, rows, strict=True):
            np.testing.assert_allclose(row, gamma(kernel, places, places), atol=1e-12)


@pytest.mark.parametrize("columns", [0, 3])
def test_scores_are_the_restricted_likelihood(columns):
    coords, values = field()
    drift = np.random.default_rng(1).standard_normal((len(coords), columns)) if columns else None
    found = scores(coords, values, drift=drift)
    expected = best_scores(BANK, coords, values, PRIOR_AMPLITUDE2, drift)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=6e-3)


def test_scores_with_noise_are_the_restricted_likelihood():
    coords, values = field(channels=1)
    noise_variance = np.sort(np.random.default_rng(1).uniform(0.01, 0.5, len(coords)))
    drift = np.random.default_rng(2).standard_normal((len(coords), 2))
    tried = [(SMOOTH, 0.5), (ANISOTROPIC, 1.0), (MATERN, 4.0), (SQUARED_EXPONENTIAL, 1.0)]
    kernels, amplitudes = zip(*tried, strict=True)
    amplitude2 = torch.tensor(amplitudes)
    found = scores(coords, values, torch.tensor(noise_variance) / amplitude2[:, None], amplitude2,
                   kernels, drift)
    expected = np.array([
        Kriging(kernel, coords, a, noise_variance, drift).restricted_log_likelihood(values[:, 0])
        - (PRIOR_AMPLITUDE2 / a + np.log(a)) / 2 - penalty(kernel) for kernel, a in tried
    ])
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=2e-3)


def test_drifts_compare_by_their_evidence():
    """With coefficients drawn from N(0, 1), nearly: their covariance is added to the field's."""
    coords, values = field(channels=1)
    drift = 5 * np.random.default_rng(2).standard_normal((len(coords), 2))
    values = values + drift @ [[0.1], [-0.1]]
    one = torch.ones(1)
    found = (scores(coords, values, None, one, (SMOOTH,), drift)
             - scores(coords, values, None, one, (SMOOTH,)))
    with_drift, without = (Kriging(SMOOTH, coords, 1.0, covariance).restricted_log_likelihood(
        values[:, 0]) for covariance in (drift @ drift.T, 0.0))
    assert found[0] == pytest.approx(with_drift - without, abs=0.05)


def test_weights_follow_the_scores():
    """The heaviest three, above a fiftieth of the heaviest, by a sixth of their scores."""
    coords, values = field(count=25)
    _, kernels, weights = fitted(coords, values)
    expected = np.exp(best_scores(BANK, coords, values, PRIOR_AMPLITUDE2) / 6)
    heaviest = np.sort(expected)[::-1][:3]
    expected *= expected >= max(heaviest[-1], 0.02 * heaviest[0])
    assert kernels == [kernel for kernel, w in zip(BANK, expected, strict=True) if w]
    np.testing.assert_allclose(weights, expected[expected > 0] / expected.sum(), atol=2e-3)


@pytest.mark.parametrize("truth, words", [
    (Kernel(0.8), "power 0.8, isotropic"),
    (Kernel(1.6), "power 1.6, isotropic"),
    (BANK[6], "power 1, 2.5 times farther along 90 degrees"),
    (Kernel(1.5, 0.1), "Matern 1.5 of range 0.1, isotropic"),
    (Kernel(1.5, 0.2, 2.5, np.pi / 4), "Matern 1.5 of range 0.2, 2.5 times farther along 45 deg"),
    (SQUARED_EXPONENTIAL, "Gaussian of range 0.2, isotropic"),
])
def test_the_kernel_of_a_field_is_recognised(truth, words):
    coords, values = field(count=200, channels=3, kernel=truth)
    found = fitted(coords, values)[0]
    assert found.kernels[found.heaviest] == truth
    assert condition(*batch(coords, values)).describe().startswith(words)


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
    found = local_amplitude(at_places, torch.tensor(z).float(), torch.tensor(1.0))
    near = np.exp(-((np.linalg.norm(at[:, None] - coords, axis=2) / 0.26) ** 2) / 2)
    expected = (near @ (z**2).mean(axis=1) + 2) / (near.sum(axis=1) + 2)
    np.testing.assert_allclose(found[:, 0], expected**0.5, rtol=1e-4)
    # A quarter squared exponential: as much less.
    found = local_amplitude(at_places, torch.tensor(z).float(), torch.tensor(0.75))
    np.testing.assert_allclose(found[:, 0], expected**0.375, rtol=1e-4)


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
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-4)
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
    def smooth(x):
        return torch.sin(5 * x[..., :1]) * torch.cos(4 * x[..., 1:])

    grid, errors = grid_coords(20, 20)[None], []
    for seed in range(3):
        coords = torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(seed))
        values = smooth(coords)
        found = [condition(coords, values, noise).at(grid).mean
                 for noise in (None, torch.full_like(values, 1e-9))]
        errors.append([(mean - smooth(grid)).square().mean().sqrt() for mean in found])
    exact, noisy = torch.tensor(errors).square().mean(dim=0).sqrt()
    assert exact < 1.02 * noisy and exact < 2e-3


def test_small_regions_are_as_in_the_plane():
    """A degree at 40 north: the same kernels are chosen, and the same answers given."""
    rng = np.random.default_rng(0)
    extent = (10.0, 11.0 + 1 / 3, 40.0, 41.0)
    where = np.stack([rng.uniform(*extent[:2], 60), rng.uniform(*extent[2:], 60)], axis=1)
    space = to_space(where, extent)
    assert space[:, 2].abs().max() < 0.01
    values = torch.from_numpy(np.sin(3 * where[:, :1]) + where[:, 1:]).float()[None]
    flat, round_ = (condition(c[None], values).at(c[None] + 0.003) for c in (space[:, :2], space))
    torch.testing.assert_close(flat.mean, round_.mean, atol=0.01, rtol=0)


@pytest.mark.parametrize("noise_sd", [None, 0.3])
def test_variograms_in_classes_of_distance(noise_sd):
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(1, 60, 2, generator=generator)
    values = torch.stack([coords.sum(dim=2), coords[..., 0] ** 2], dim=2)
    noise = None if noise_sd is None else torch.full_like(values, noise_sd)
    posterior = condition(coords, values, noise, kernels=ONE_KERNEL)
    far = torch.cdist(coords[0], coords[0])[*torch.triu_indices(60, 60, 1)].numpy()
    which = np.floor(far / (far.max() / 2 / 12))
    channels = posterior.variograms()
    assert len(channels) == 2
    for c, found in enumerate(channels):
        fitted = posterior.fields[c if noise_sd else 0].fit
        amplitude2 = float(fitted.mixture.channels[0, 0 if noise_sd else c, 0 if noise_sd else c])
        half = torch.cdist(values[0, :, c : c + 1], values[0, :, c : c + 1])[
            *torch.triu_indices(60, 60, 1)].square().numpy() / 2
        for k in range(len(found.pairs)):
            own = which == k
            assert found.pairs[k] == own.sum()
            assert found.distance[k] == pytest.approx(far[own].mean(), rel=1e-3)
            assert found.empirical[k] == pytest.approx(half[own].mean(), rel=1e-3)
            expected = amplitude2 * (far[own].mean() + NUGGET) + (noise_sd or 0) ** 2
            assert found.fitted[k] == pytest.approx(expected, rel=1e-3)
    assert not len(condition(coords[:, :1], values[:, :1]).variograms()[0].pairs)
