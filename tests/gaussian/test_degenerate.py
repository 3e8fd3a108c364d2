"""Any observations at all: a finite, sensible answer."""

import math
import time

import numpy as np
import pytest
import torch

from sparsefield.gaussian import Kernel, condition
from sparsefield.gaussian import kernels as prior
from sparsefield.gaussian import posterior as posterior_module
from sparsefield.place import grid_coords

GRID = grid_coords(8, 8)[None]


def uniform(count, seed=0):
    return torch.rand(1, count, 2, generator=torch.Generator().manual_seed(seed))


def wave(coords, channels=1):
    """A smooth field of about unit size: (1, M, C)."""
    x, y = coords.unbind(dim=2)
    phase = torch.arange(channels)
    return torch.sin(5 * x[..., None] + phase) + torch.cos(4 * y[..., None])


def rough(coords, seed=0):
    weights = torch.randn(prior.FEATURES, 1, generator=torch.Generator().manual_seed(seed))
    return (prior.features(Kernel(1.0), coords[0]) @ weights)[None]


LINE = torch.stack([torch.linspace(0.1, 0.9, 30), torch.linspace(0.2, 0.8, 30)], dim=1)[None]
PLACES = {
    "one point": uniform(1),
    "two points": uniform(2),
    "two points at one place": uniform(1).expand(1, 2, 2),
    "a line": LINE,
    "a horizontal line": LINE * torch.tensor([1.0, 0.0]) + 0.1,
    "a cluster": 0.5 + 1e-3 * uniform(40),
    "a tight cluster and one point": torch.cat([0.5 + 1e-6 * uniform(20), uniform(1)], dim=1),
    "all at one place": torch.full((1, 30, 2), 0.3),
    "each place twice": uniform(40).repeat(1, 2, 1),
    "outside of the square": 3 * uniform(50) - 1,
    "far from it": 100 + uniform(50),
    "spread over a thousand squares": 1000 * uniform(50),
    "600 points": uniform(600),
}
NOISES = {"exact": None, "a little noise": 0.01, "noise": 0.5, "much noise": 100.0}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("places", PLACES)
def test_every_answer_is_finite_and_of_the_size_of_the_values(places, noise):
    coords, channels = PLACES[places], 2
    at = GRID + 100 if places == "far from it" else GRID
    values = wave(coords, channels)
    noise_sd = None if NOISES[noise] is None else torch.full_like(values, NOISES[noise])
    posterior = condition(coords, values, noise_sd)
    answer, loo = posterior.at(at), posterior.leave_one_out
    z = posterior.noise(at)([torch.Generator().manual_seed(0)])
    assert answer.mean.shape == answer.sd.shape == z.shape == (1, 64, channels)
    assert all(x.isfinite().all() for x in (*answer, *loo, z))
    assert (answer.sd > 0).all() and (loo.sd > 0).all() and z.abs().max() < 8
    if noise == "exact" and "cluster" in places:  # steep inside: nobody knows what is far away
        return
    largest = values.abs().max() + 1
    assert answer.mean.abs().max() < 3 * largest
    assert answer.sd.max() < 20 * largest + 2 * (NOISES[noise] or 0)


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("noise", [None, 0.1])
def test_constant_values_are_answered_by_the_constant(count, noise):
    coords = uniform(count)
    values = torch.full((1, count, 2), 0.25)
    noise_sd = None if noise is None else torch.full_like(values, noise)
    answer = condition(coords, values, noise_sd).at(GRID)
    np.testing.assert_allclose(answer.mean, 0.25, atol=1e-5)
    assert (answer.sd > 0).all() and answer.sd.max() < 1


def test_duplicates_that_disagree_are_averaged():
    coords, values = uniform(30), wave(uniform(30))
    off = torch.cat([values + 0.2, values - 0.2], dim=1)
    answer = condition(coords.repeat(1, 2, 1), off).at(coords)
    np.testing.assert_allclose(answer.mean, values, atol=0.02)


def test_a_fit_to_some_of_the_points_answers_like_one_to_all(monkeypatch):
    coords = uniform(300)
    values, noise_sd = rough(coords), torch.full((1, 300, 1), 0.2)
    monkeypatch.setattr(posterior_module, "NOISY_FIT_POINTS", 200)
    values = values + 0.2 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    some = condition(coords, values, noise_sd).at(GRID)
    monkeypatch.setattr(posterior_module, "NOISY_FIT_POINTS", 300)
    every = condition(coords, values, noise_sd).at(GRID)
    assert (some.mean - every.mean).square().mean().sqrt() < 0.3 * every.sd.mean()
    assert abs(math.log(some.sd.mean() / every.sd.mean())) < 0.25


@pytest.mark.long
@pytest.mark.parametrize("noise", [None, 0.1])
def test_a_hundred_thousand_observations(noise):
    coords, at = uniform(100_000), uniform(2000, seed=5)
    truth = rough(torch.cat([coords, at], dim=1))
    values = truth[:, :100_000]
    noise_sd = None
    if noise is not None:
        noise_sd = torch.full_like(values, noise)
        values = values + noise * torch.randn(values.shape,
                                              generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    posterior = condition(coords, values, noise_sd)
    answer = posterior.at(at)
    z = posterior.noise(at)([torch.Generator().manual_seed(0)])
    assert time.perf_counter() - start < 600
    error = (answer.mean - truth[:, 100_000:]) / answer.sd
    assert error.square().mean().sqrt() == pytest.approx(1, abs=0.1)
    assert z.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("noise", [None, 0.1])
def test_few_points_tell_no_direction(noise):
    """The answer around one point is as uncertain in every direction, and words say so."""
    coords = torch.full((1, 1, 2), 0.5)
    values = wave(coords)
    noise_sd = None if noise is None else torch.full_like(values, noise)
    one = condition(coords, values, noise_sd)
    assert one.describe().startswith("one point: nothing to fit")
    angle = torch.linspace(0, 2 * math.pi, 9)
    around = 0.5 + 0.3 * torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    sd = one.at(around).sd
    torch.testing.assert_close(sd, sd[:, :1].expand_as(sd), rtol=1e-4, atol=0)
    assert "farther" not in condition(uniform(2), wave(uniform(2))).describe()
