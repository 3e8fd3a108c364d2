"""Time as a coordinate: its scale is found, and draws go on from one time to the next."""

import pytest
import torch

from sparsefield.gaussian import condition
from sparsefield.gaussian import kernels as prior
from sparsefield.gaussian.design import LEAST_TIMES, Design, choose, some_of
from sparsefield.gaussian.kernels import Kernel
from sparsefield.place import grid_coords

KERNEL = Kernel(1.5, 0.25)
FRAMES = 8
GRID = grid_coords(16, 16)
EVERYWHERE = torch.cat([GRID.repeat(FRAMES, 1),
                        torch.arange(FRAMES).repeat_interleave(len(GRID))[:, None]], dim=1)
ONE_FIELD, OWN_FIELDS = 0.0, 50.0  # sides that a step in time counts as


def film(scale, seed=0, places=EVERYWHERE):
    """A field of known covariance, with a time step as long as `scale` sides."""
    x, y, time = places.unbind(dim=1)
    coords = torch.stack([x, y, torch.zeros_like(x), scale * time], dim=1)
    numbers = torch.randn(2 * prior.WAVES + 4, generator=torch.Generator().manual_seed(seed))
    return (prior.features(KERNEL, coords) @ numbers)[:, None]


def seen(count, seed=0):
    """Which places are measured, others in each frame."""
    return torch.randperm(len(EVERYWHERE), generator=torch.Generator().manual_seed(seed))[:count]


def conditioned(values, some, **more):
    return condition(EVERYWHERE[None, some], values[None, some], covariates=1, timed=True, **more)


def step_of(posterior):
    """Sides that a step in time counts as."""
    design = posterior.design()
    return design.scales[-1] / float(design.spread[-1])


@pytest.mark.parametrize("scale, low, high", [
    (ONE_FIELD, 0.0, 0.002), (0.03, 0.015, 0.06), (0.15, 0.08, 0.3), (OWN_FIELDS, 0.7, 10.0)])
def test_the_scale_of_time_is_found_from_one_field_to_fields_of_their_own(scale, low, high):
    found = step_of(conditioned(film(scale), seen(400)))
    assert low <= found <= high


def test_far_from_the_times_measured_the_answer_is_the_level_and_its_spread():
    """Of exponential memory, which power variograms fit as well, and carry the last field on."""
    numbers = torch.randn(2 * prior.WAVES + 4, generator=torch.Generator().manual_seed(0))
    places = EVERYWHERE * torch.tensor([1.0, 1.0, 0.15])
    coords = torch.cat([places[:, :2], torch.zeros(len(places), 1), places[:, 2:]], dim=1)
    values = (prior.features(Kernel(0.5, 0.3), coords) @ numbers)[:, None]
    later = torch.cat([GRID, torch.full((len(GRID), 1), 100.0)], dim=1)[None]
    answer = conditioned(values, seen(400)).at(later)
    assert (answer.mean - values.mean()).abs().max() < 0.25 * values.std()
    assert 0.7 < answer.sd.mean() / values.std() < 1.3


def test_a_pattern_that_stays_does_not_hide_what_moves():
    """As of trade winds: a random part of the measurements would show the pattern alone."""
    places = torch.rand(6000, 3, generator=torch.Generator().manual_seed(5))
    places[:, 2] = torch.arange(150).repeat_interleave(40)
    values = film(0.3, places=places) + 2 * film(ONE_FIELD, seed=1, places=places)
    design = choose(Design.of(places, 1.0, 1, 0, timed=True), places, values, None)
    assert 0.03 < design.scales[-1] / float(design.spread[-1]) < 0.3


def test_a_part_of_the_observations_holds_whole_series_of_places():
    times = torch.arange(400.0).repeat_interleave(30)[:, None]
    places = torch.cat([torch.rand(30, 2).repeat(400, 1), times], dim=1)
    design = Design.of(places, 1.0, 1, 0, timed=True)
    part = places[some_of(design, places, 600)]
    assert 550 < len(part) <= 600
    for x in part[:, 0].unique()[:-1]:
        steps = part[part[:, 0] == x, 2].diff()
        assert (steps == 1).sum() >= 3 * (LEAST_TIMES - 1) and (steps != 1).sum() == 2


@pytest.mark.parametrize("noise", [None, 0.1])
def test_one_time_gives_exactly_the_answer_without_time(noise):
    coords, values = EVERYWHERE[None, seen(60)], film(0.1)[None, seen(60)]
    coords[..., 2] = 5.0
    noise_sd = None if noise is None else torch.full_like(values, noise)
    timed = condition(coords, values, noise_sd, covariates=1, timed=True)
    plain = condition(coords[..., :2], values, noise_sd)
    at = EVERYWHERE[None, :50]
    for a, b in zip(timed.at(at), plain.at(at[..., :2]), strict=True):
        assert torch.equal(a, b)


def test_frames_of_a_sample_follow_each_other_as_those_of_the_truth():
    truth, some = film(0.08, seed=3), seen(60)
    posterior = conditioned(truth, some)
    answer = posterior.at(EVERYWHERE[None])
    draws = posterior.noise(EVERYWHERE[None])([torch.Generator().manual_seed(k) for k in range(8)])
    samples = (answer.mean + answer.sd * draws).unflatten(1, (FRAMES, -1))   # (S, T, N, 1)
    steps = float(samples.diff(dim=1).abs().mean())
    true_steps = float(truth.unflatten(0, (FRAMES, -1)).diff(dim=0).abs().mean())
    assert steps == pytest.approx(true_steps, rel=0.1)


def test_stations_that_repeat_are_not_one_field_with_noise():
    """Without noise the values of a place at two times cannot both be the field's if it stands."""
    still = EVERYWHERE[::16]
    posterior = condition(still[None], torch.ones(1, len(still), 1) + still[None, :, :1],
                          covariates=1, timed=True)
    assert 0 < step_of(posterior) < 0.01


@pytest.mark.parametrize("scale", [0.05, OWN_FIELDS])
def test_many_observations_are_answered_from_those_near_in_space_and_time(scale, monkeypatch):
    from sparsefield.gaussian import posterior as posterior_module

    truth, some = film(scale), seen(600)
    whole = conditioned(truth, some).at(EVERYWHERE[None])
    monkeypatch.setattr(posterior_module, "DENSE_POINTS", 400)
    tiled = conditioned(truth, some).at(EVERYWHERE[None])
    error, tiled_error = (float((found.mean[0] - truth).square().mean().sqrt())
                          for found in (whole, tiled))
    assert tiled_error < 1.05 * error
