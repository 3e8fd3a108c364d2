"""Noise in the measurements: fields are not flattened, intervals hold, repeats are averaged."""

import numpy as np
import pytest
import torch

from sparsefield.gaussian import ONE_KERNEL, condition
from sparsefield.place import grid_coords

GRID = grid_coords(20, 20)[None]
SEEDS = range(30)


def plane(coords):
    return 3 + 2 * coords[..., :1] - coords[..., 1:]


def measure(seed, noise, count=60, repeats=1):
    """Places, and noisy values of the plane there: (1, M, 2) and (1, M, 1)."""
    g = torch.Generator().manual_seed(seed)
    coords = torch.rand(1, count, 2, generator=g).repeat(1, repeats, 1)
    truth = plane(coords)
    return coords, truth + noise * torch.randn(truth.shape, generator=g)


def answered(coords, values, noise, at):
    """Mean and sd at (1, N, 2) in the units of the values, which are standardised as users do."""
    middle, scale = values.mean(), values.std()
    noise_sd = torch.as_tensor(noise).expand_as(values) / scale
    answer = condition(coords, (values - middle) / scale, noise_sd).at(at)
    return answer.mean * scale + middle, answer.sd * scale


@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_a_plane_is_never_flattened_and_its_intervals_hold(noise):
    truth = plane(GRID)
    covered = []
    for seed in SEEDS:
        mean, sd = answered(*measure(seed, noise), noise, GRID)
        if noise < 1:
            assert mean.max() - mean.min() > 0.5 * (truth.max() - truth.min())
        else:
            assert torch.corrcoef(torch.stack([mean.flatten(), truth.flatten()]))[0, 1] > 0.5
        covered.append(((mean - truth).abs() < 1.645 * sd).float().mean())
    assert 0.80 < float(torch.stack(covered).mean()) < 0.98


def test_repeats_at_a_place_are_averaged():
    """20 places, 25 times each: an error of noise / sqrt(25), all at once or averaged before."""
    each, before = [], []
    for seed in SEEDS[:4]:
        coords, values = measure(seed, 1.0, count=20, repeats=25)
        truth = plane(coords[:, :20])
        each.append(answered(coords, values, 1.0, coords[:, :20])[0] - truth)
        values = values.unflatten(1, (25, 20)).mean(dim=1)
        before.append(answered(coords[:, :20], values, 0.2, coords[:, :20])[0] - truth)
    each, before = torch.cat(each), torch.cat(before)
    assert each.square().mean().sqrt() < 0.21
    assert before.square().mean().sqrt() < 0.21
    assert (each - before).square().mean().sqrt() < 0.02


def test_no_noise_is_noise_of_zero_and_the_limit_of_little():
    coords = torch.rand(1, 80, 2, generator=torch.Generator().manual_seed(0))
    values = torch.cat([torch.sin(8 * coords[..., :1]), plane(coords)], dim=2)
    exact = condition(coords, values, kernels=ONE_KERNEL).at(GRID)
    zero = condition(coords, values, torch.zeros_like(values), kernels=ONE_KERNEL).at(GRID)
    assert torch.equal(zero.mean, exact.mean) and torch.equal(zero.sd, exact.sd)
    little = condition(coords, values, torch.full_like(values, 1e-4), kernels=ONE_KERNEL).at(GRID)
    np.testing.assert_allclose(little.mean, exact.mean, atol=2e-3)
    assert (little.sd / exact.sd).log().abs().max() < 0.3


def test_channels_have_their_own_noise():
    coords, values = measure(0, 0.0)
    values = values.repeat(1, 1, 2) + 0.5 * torch.randn(1, 60, 2)
    noise_sd = torch.tensor([0.5, 0.05]).expand_as(values)
    both = condition(coords, values, noise_sd)
    for c in range(2):
        one = condition(coords, values[..., [c]], noise_sd[..., [c]])
        np.testing.assert_allclose(both.at(GRID).mean[..., [c]], one.at(GRID).mean, atol=1e-3)
        np.testing.assert_allclose(both.at(GRID).sd[..., [c]], one.at(GRID).sd, rtol=1e-2)
    residual = (both.at(coords).mean - values).square().mean(dim=1).sqrt()[0]
    assert residual[1] < 0.5 * residual[0]


@pytest.mark.parametrize("count", [150, 1100])
def test_a_repeated_measurement_is_left_out_alone(count):
    """Its error does not know its own noise, from all observations or from the nearest alone."""
    coords, noise = measure(0, 0.3, count, repeats=2)
    noise = noise - plane(coords)
    truth = torch.sin(2 * count**0.5 * coords).sum(dim=2, keepdim=True)  # as rough as dense
    values = truth + noise
    loo = condition(coords, values, torch.full_like(values, 0.3)).leave_one_out
    error = values - loo.z * loo.sd - truth
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), error.flatten()]))[0, 1]) < 0.1


@pytest.mark.parametrize("place", [0, 30, -1])
@pytest.mark.parametrize("sd", [1e8, 1e25])
def test_an_observation_may_be_as_good_as_none(place, sd):
    """Contrasts are from the least noisy observation: from the noisiest, all would drown."""
    coords, values = measure(0, 0.0)
    noise_sd = torch.full_like(values, 1e-3)
    noise_sd[:, place], values[:, place] = sd, 5.0
    answer = condition(coords, values, noise_sd).at(GRID)
    assert (answer.mean - plane(GRID)).abs().max() < 0.1 and answer.sd.max() < 0.2


def test_channels_go_together_in_draws_whichever_is_noisier_where():
    coords, values = measure(0, 0.0, 120)
    rough = condition(coords, torch.zeros_like(values), kernels=ONE_KERNEL)
    one, other = (rough.noise(coords + 0.01)([torch.Generator().manual_seed(k)]) for k in (1, 2))
    values = 3 * torch.cat([one, 0.95 * one + 0.3 * other], dim=2)
    noise_sd = torch.full_like(values, 0.02)
    noise_sd[0, :60, 0] = noise_sd[0, 60:, 1] = 0.021
    noise = condition(coords, values, noise_sd).noise(GRID)
    drawn = torch.cat([noise([torch.Generator().manual_seed(seed)]) for seed in SEEDS])
    assert np.corrcoef(drawn[..., 0].flatten(), drawn[..., 1].flatten())[0, 1] > 0.7


def test_a_variogram_of_one_place_has_no_classes():
    coords = torch.full((1, 5, 2), 0.5)
    posterior = condition(coords, torch.randn(1, 5, 1), torch.full((1, 5, 1), 0.5))
    assert all((part.distance == 0).all() for part in posterior.variograms())
