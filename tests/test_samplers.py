"""Samplers against closed forms: every truth below is a formula, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsefield.coords import grid_coords
from sparsefield.errors import UserError
from sparsefield.kriging import ordinary_kriging
from sparsefield.samplers import (
    SAMPLERS,
    STOCHASTIC,
    TIME_GRIDS,
    ImageNoise,
    cut_blocks,
    declared_nfe,
    match_observed,
    noise_seed,
    quadratic_times,
    sample,
    uniform_times,
)

MEAN, SD = 0.47, 0.10
ODE = ("heun", "euler", "adaptive")


def gaussian_velocity(x: Tensor, t: Tensor, mean=MEAN, sd=SD) -> Tensor:
    """The exact velocity of a flow from N(0, 1) to N(mean, sd^2)."""
    t = t.reshape(-1, 1, 1)
    return mean + (t * sd**2 - (1 - t)) / ((1 - t)**2 + t**2 * sd**2) * (x - t * mean)


def noise_of(count: int, seed: int = 0) -> ImageNoise:
    return ImageNoise([seed], count, 1, like=torch.zeros((), dtype=torch.float64))


def assert_samples_gaussian(values: Tensor, mean: float, sd: float, bias: float = 0.01) -> None:
    """Mean and sd within 4 standard errors, plus `bias` * sd for a finite number of steps."""
    count = values.numel()
    mean_error = abs(values.mean().item() - mean)
    sd_error = abs(values.std().item() - sd)
    assert mean_error < 4 * sd / math.sqrt(count) + bias * sd
    assert sd_error < 4 * sd / math.sqrt(2 * count) + bias * sd


def noise_without_drift(velocity, noise, times, rng, *, temperature=0.5):
    """The wrong sampler: the SDE's noise on top of the ODE, with no score drift to match it."""
    x = noise
    for t, u in zip(times[:-1].tolist(), times[1:].tolist()):
        x = x + (u - t) * velocity(x, x.new_full((1,), t))
        if u < 1:
            x = x + math.sqrt(2 * temperature * (1 - t) * (u - t)) * rng()
    return x


SETTINGS = [(method, {}) for method in ODE]
SETTINGS += [("sde", {"temperature": tau}) for tau in (0.0, 0.25, 1.0, 4.0)]
SETTINGS += [("ddim", {"eta": eta}) for eta in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize("grid", TIME_GRIDS)
@pytest.mark.parametrize("method, options", SETTINGS)
def test_gaussian_posterior_is_sampled(method, options, grid):
    rng = noise_of(20_000)
    values = SAMPLERS[method](gaussian_velocity, rng(), TIME_GRIDS[grid](1000), rng, **options)
    assert_samples_gaussian(values, MEAN, SD)


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_the_check_rejects_noise_without_drift(temperature):
    rng = noise_of(20_000)
    times = uniform_times(1000)
    values = noise_without_drift(gaussian_velocity, rng(), times, rng, temperature=temperature)
    with pytest.raises(AssertionError):
        assert_samples_gaussian(values, MEAN, SD)


@pytest.mark.parametrize("method", [*ODE, *STOCHASTIC])
def test_defaults_at_fifty_steps_are_near_the_posterior(method):
    rng = noise_of(20_000)
    values = SAMPLERS[method](gaussian_velocity, rng(), quadratic_times(50), rng)
    assert_samples_gaussian(values, MEAN, SD, bias=0.04)


def two_peaks(x: Tensor, t: Tensor) -> Tensor:
    """Exact velocity for 0.3 N(-0.4, 0.1^2) + 0.7 N(0.4, 0.1^2): not linear in x."""
    t = t.reshape(-1, 1, 1)
    centres, weights = (-0.4, 0.4), (0.3, 0.7)
    var = (1 - t)**2 + (0.1 * t)**2
    logs = [math.log(w) - (x - t * m)**2 / (2 * var) for m, w in zip(centres, weights)]
    share = torch.softmax(torch.stack(logs), dim=0)
    parts = torch.stack([gaussian_velocity(x, t, m, 0.1) for m in centres])
    return (share * parts).sum(dim=0)


@pytest.mark.parametrize("method, options", SETTINGS)
def test_two_peaked_posterior_is_sampled(method, options):
    rng = noise_of(20_000)
    values = SAMPLERS[method](two_peaks, rng(), quadratic_times(400), rng, **options)
    assert (values > 0).double().mean().item() == pytest.approx(0.7, abs=0.02)
    upper = values[values > 0]
    assert upper.mean().item() == pytest.approx(0.4, abs=0.01)
    assert upper.std().item() == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("method, order, options, grid", [
    ("euler", 1, {}, "uniform"),
    ("euler", 1, {}, "quadratic"),
    ("ddim", 1, {}, "quadratic"),
    ("heun", 2, {}, "uniform"),
    ("heun", 2, {}, "quadratic"),
    ("sde", 2, {"temperature": 0.0}, "quadratic"),  # uniform: two errors of order 2 cancel here
])
def test_observed_order(method, order, options, grid):
    noise = noise_of(200)()
    exact = MEAN + SD * noise  # the ODE keeps quantiles
    errors = []
    for steps in (400, 800):
        times = TIME_GRIDS[grid](steps)
        end = SAMPLERS[method](gaussian_velocity, noise, times, None, **options)
        errors.append((end - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_adaptive_error_follows_its_tolerance():
    noise = noise_of(200)()
    ends = [SAMPLERS["adaptive"](gaussian_velocity, noise, None, None, tolerance=tolerance)
            for tolerance in (1e-3, 1e-6)]
    errors = [(end - MEAN - SD * noise).abs().max().item() for end in ends]
    assert errors[0] < 2e-2 and errors[1] < 1e-5


def test_ddim_without_eta_is_euler():
    rng = noise_of(1000)
    noise, times = rng(), quadratic_times(20)
    reference = SAMPLERS["euler"](two_peaks, noise, times, rng)
    ddim = SAMPLERS["ddim"](two_peaks, noise, times, rng, eta=0.0)
    torch.testing.assert_close(ddim, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sd", [0.03, 0.1, 0.4])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_few_steps_of_the_sde_make_no_speckle(sd, steps):
    rng = noise_of(20_000)
    values = SAMPLERS["sde"](lambda x, t: gaussian_velocity(x, t, MEAN, sd), rng(),
                             quadratic_times(steps), rng, temperature=1.0)
    assert values.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert values.std().item() < 1.02 * sd


def test_mean_is_the_posterior_mean_and_pairs_cancel_a_linear_leak():
    def leaky(x, t):
        return gaussian_velocity(x, t) + 0.3 * x

    noise = noise_of(1000)
    exact = SAMPLERS["mean"](two_peaks, noise(), None, noise, num_draws=1)
    torch.testing.assert_close(exact, torch.full_like(exact, 0.7 * 0.4 - 0.3 * 0.4))
    leak = SAMPLERS["mean"](leaky, noise(), None, noise, num_draws=1)
    pair = SAMPLERS["mean"](leaky, noise(), None, noise, num_draws=2)
    assert leak.std() > 0.2
    torch.testing.assert_close(pair, torch.full_like(pair, MEAN))


# --- sample(): models, observations, batches, blocks ---------------------------------------------


class GaussianModel:
    """Every point independently N(mean of the observations, SD^2); counts its calls."""

    def __init__(self):
        self.calls = 0
        self.queries = []

    def __call__(self, noisy, query_coords, t, input_coords, input_values):
        self.calls += 1
        self.queries.append(noisy.shape[1])
        return gaussian_velocity(noisy, t, input_values.mean(dim=1, keepdim=True))


class KrigingModel:
    """The exact posterior of a Gaussian random field, its marginals only; with `prepare`."""

    def __init__(self):
        self.prepared = 0

    def prepare(self, query_coords, input_coords, input_values):
        self.prepared += 1
        answer = ordinary_kriging(input_coords, input_values, query_coords)
        return answer.mean.double(), answer.sd.double()

    def __call__(self, noisy, query_coords, t, input_coords, input_values, *, prepared):
        return gaussian_velocity(noisy, t, *prepared)


def problem(images=3, size=12, seen=30, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    coords = grid_coords(size, size).to(dtype)
    queries = coords.expand(images, -1, -1)
    picks = torch.stack([torch.randperm(size * size, generator=generator)[:seen]
                         for _ in range(images)])
    inputs = torch.stack([coords[pick] for pick in picks])
    values = torch.rand(images, seen, 2, generator=generator, dtype=dtype) - 0.5
    return queries, inputs, values, picks


SEEDS = [11, 22, 33]


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_evaluations_are_as_declared(method, steps):
    queries, inputs, values, _ = problem()
    model = GaussianModel()
    result = sample(model, queries, inputs, values, seeds=SEEDS, method=method, num_steps=steps)
    if method == "adaptive":
        assert result.nfe == model.calls / len(SEEDS)
    else:
        assert result.nfe == model.calls == declared_nfe(method, steps)


def test_declared_evaluations():
    assert declared_nfe("heun", 10) == 19
    assert declared_nfe("sde", 10) == declared_nfe("ddim", 10) == declared_nfe("euler", 10) == 10
    assert declared_nfe("mean", 10) == 4 and declared_nfe("mean", 10, num_draws=1) == 1
    assert declared_nfe("adaptive", 10) is None


@pytest.mark.parametrize("method", SAMPLERS)
def test_result_of_an_image_does_not_depend_on_its_batch(method):
    queries, inputs, values, _ = problem()
    together = sample(GaussianModel(), queries, inputs, values, seeds=SEEDS, method=method)
    alone = sample(GaussianModel(), queries[1:2], inputs[1:2], values[1:2], seeds=SEEDS[1:2],
                   method=method)
    torch.testing.assert_close(together.values[1:2], alone.values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", SAMPLERS)
def test_blocks_change_nothing_for_a_model_of_independent_points(method):
    queries, inputs, values, _ = problem()
    whole = sample(KrigingModel(), queries, inputs, values, seeds=SEEDS, method=method)
    model = KrigingModel()
    cut = sample(model, queries, inputs, values, seeds=SEEDS, method=method, block_size=50)
    torch.testing.assert_close(cut.values, whole.values, rtol=0, atol=1e-5)  # float32 kriging
    assert cut.blocks == 3 and whole.blocks == 1
    assert cut.nfe == whole.nfe
    assert "3 blocks" in cut.how
    assert model.prepared == 3 * (len(SEEDS) if method == "adaptive" else 1)


def test_blocks_bound_the_queries_of_a_call_and_the_mean_needs_no_halo():
    queries, inputs, values, _ = problem()
    for method, most in (("euler", 50 + 25), ("mean", 50)):
        model = GaussianModel()
        sample(model, queries, inputs, values, seeds=SEEDS, method=method, block_size=50)
        assert max(model.queries) <= most


class JointModel:
    """The exact joint posterior of a zero field with covariance exp(-4 r): queries inform queries.

    With covariance S = U diag(lam) U' of the queries, each axis of U is a Gaussian of its own.
    """

    def prepare(self, query_coords, input_coords, input_values):
        lam, axes = torch.linalg.eigh(posterior_covariance(query_coords, input_coords))
        return lam.clamp_min(0), axes

    def __call__(self, noisy, query_coords, t, input_coords, input_values, *, prepared):
        lam, axes = prepared
        gain = (t * lam - (1 - t)) / ((1 - t) ** 2 + t**2 * lam)
        return axes @ (gain[..., None] * (axes.mT @ noisy))


def posterior_covariance(queries, inputs):
    def prior(a, b):
        return torch.exp(-4 * torch.cdist(a, b))

    across = prior(inputs, queries)
    return prior(queries, queries) - across.mT @ torch.linalg.solve(prior(inputs, inputs), across)


@pytest.mark.parametrize("halo, low, high", [(0, 1.3, 1.6), (None, 0.98, 1.05)])
def test_halo_makes_neighbours_agree_across_block_borders(halo, low, high):
    """Sd of differences between neighbours in different blocks, over its exact value."""
    size, draws = 16, 200
    queries = grid_coords(size, size).double()[None]
    pick = torch.randperm(size * size, generator=torch.Generator().manual_seed(0))[:40]
    inputs, values = queries[:, pick], torch.zeros(1, 40, draws, dtype=torch.float64)
    result = sample(JointModel(), queries, inputs, values, seeds=[1], num_steps=20,
                    block_size=64, halo=halo, clip=False)
    block_of = torch.zeros(size * size)
    for number, block in enumerate(cut_blocks(queries, 64, halo=0)):
        block_of[block.index[0]] = number
    block_of[pick] = -1  # known points agree with everything
    left = torch.arange(size * size).reshape(size, size)[:, :-1].flatten()
    here, there = block_of[left], block_of[left + 1]
    left = left[(here != there) & (here >= 0) & (there >= 0)]
    assert len(left) >= 8
    exact = posterior_covariance(queries, inputs)[0]
    exact = exact[left, left] + exact[left + 1, left + 1] - 2 * exact[left, left + 1]
    found = (result.values[0, left] - result.values[0, left + 1]).var(dim=1)
    assert low < (found.mean() / exact.mean()).sqrt() < high


def test_blocks_are_compact_disjoint_and_complete():
    coords = grid_coords(16, 16)[torch.randperm(256)].expand(2, -1, -1)
    blocks = cut_blocks(coords, 16, halo=20)
    cores = torch.cat([block.index[:, :block.core] for block in blocks], dim=1)
    assert torch.equal(cores.sort(dim=1).values, torch.arange(256).expand(2, -1))
    for block in blocks:
        tile = coords[0, block.index[0, :block.core]]
        assert (tile.amax(dim=0) - tile.amin(dim=0)).max() <= 3.01 / 16
        around = coords[0, block.index[0]]
        assert len(around.unique(dim=0)) == 16 + 20
        assert (around.amax(dim=0) - around.amin(dim=0)).max() <= 9.01 / 16


def test_blocks_differ_between_images_with_different_points():
    coords = torch.rand(2, 40, 2, dtype=torch.float64)
    blocks = cut_blocks(coords, 10, halo=5)
    assert [block.core for block in blocks] == [10] * 4
    assert not torch.equal(blocks[0].index[0], blocks[0].index[1])


@pytest.mark.parametrize("method", SAMPLERS)
def test_observed_points_are_kept_exactly(method):
    queries, inputs, values, picks = problem()
    result = sample(GaussianModel(), queries, inputs, values, seeds=SEEDS, method=method)
    kept = torch.stack([field[pick] for field, pick in zip(result.values, picks)])
    assert torch.equal(kept, values)
    assert result.kept == picks.numel()
    free = sample(GaussianModel(), queries, inputs, values, seeds=SEEDS, method=method,
                  consistency=False)
    assert free.kept == 0


@pytest.mark.parametrize("method", ["heun", "euler", "ddim"])
def test_observed_points_travel_on_their_exact_path(method):
    """The network sees (1-t) x_0 + t y where it is asked for an observed point."""
    queries, inputs, values, picks = problem(images=1)
    seen = []

    class Watch(GaussianModel):
        def __call__(self, noisy, query_coords, t, *inputs):
            seen.append((t.item(), noisy[0, picks[0]]))
            return super().__call__(noisy, query_coords, t, *inputs)

    sample(Watch(), queries, inputs, values, seeds=[5], method=method, num_steps=6)
    noise = seen[0][1]
    for t, x in seen:
        torch.testing.assert_close(x, (1 - t) * noise + t * values[0])


def test_observed_points_match_across_resolutions():
    """Pixel centres of a 32 grid lie on every third pixel of a 96 grid, and on none of 64."""
    coarse = grid_coords(32, 32)[None]
    found, index = match_observed(grid_coords(96, 96)[None], coarse)
    assert found.sum() == 32 * 32
    assert torch.equal(index[found], torch.arange(32 * 32))
    assert not match_observed(grid_coords(64, 64)[None], coarse)[0].any()


def test_noise_streams_are_independent_of_each_other_and_of_the_other_images():
    like = torch.zeros(())
    pair = ImageNoise([noise_seed(0, 3), noise_seed(0, 4)], 50, 3, like)
    single = ImageNoise([noise_seed(0, 4)], 50, 3, like)
    first, second = pair(), pair()
    assert torch.equal(first[1:], single()) and torch.equal(second[1:], single())
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
    assert noise_seed(0, 34) != noise_seed(3, 4) != noise_seed(0, 3, 4)


def test_progress_counts_every_call_of_the_model():
    queries, inputs, values, _ = problem()
    seen = []
    sample(GaussianModel(), queries, inputs, values, seeds=SEEDS, method="heun", num_steps=3,
           block_size=50, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 15) for i in range(1, 16)]


def test_values_are_limited_unless_asked_not_to():
    queries, inputs, values, _ = problem()
    wide = values * 8
    limited = sample(GaussianModel(), queries, inputs, wide, seeds=SEEDS, method="euler")
    free = sample(GaussianModel(), queries, inputs, wide, seeds=SEEDS, method="euler", clip=False)
    assert limited.values.abs().max() == 1 and free.values.abs().max() > 1


@pytest.mark.parametrize("settings, words", [
    ({"method": "magic"}, "heun, euler"),
    ({"num_steps": 0}, "at least 1 step"),
    ({"grid": "log"}, "quadratic, uniform"),
    ({"method": "heun", "eta": 0.5}, "no option 'eta'"),
    ({"method": "ddim", "eta": 1.5}, "0.0 to 1.0"),
    ({"method": "sde", "temperature": -1.0}, "temperature"),
    ({"method": "sde", "temperature": math.nan}, "temperature"),
    ({"method": "mean", "num_draws": 0}, "num_draws"),
    ({"block_size": 0}, "block_size"),
])
def test_wrong_settings_are_refused_in_words(settings, words):
    queries, inputs, values, _ = problem()
    with pytest.raises(UserError, match=words):
        sample(GaussianModel(), queries, inputs, values, seeds=SEEDS, **settings)


def test_shapes_that_do_not_agree_are_refused():
    queries, inputs, values, _ = problem()
    with pytest.raises(ValueError, match="seeds"):
        sample(GaussianModel(), queries, inputs, values, seeds=[1])
    with pytest.raises(ValueError, match="observed"):
        sample(GaussianModel(), queries, inputs, values[:, :-1], seeds=SEEDS)
