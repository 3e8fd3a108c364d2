"""Samplers against posteriors whose exact F is known, and against what their docstrings promise."""

import math
from itertools import pairwise

import pytest
import torch

from sparsefield.errors import UserError
from sparsefield.flow import path
from sparsefield.flow.samplers import (
    SAMPLERS,
    angles,
    check_sampler,
    declared_nfe,
    sampler_options,
)

ODES = ("heun", "euler", "ddim", "adaptive")
CORRELATION = 0.7


def draw(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 2, 1) of unit variance, two points that go together."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, count, generator=generator, dtype=torch.float64)
    return torch.stack([a, CORRELATION * a + math.sqrt(1 - CORRELATION**2) * b], dim=1)[..., None]


def fresh_source(count: int):
    seeds = iter(range(1, 10_000))
    return lambda: draw(count, next(seeds))


class Gaussian:
    """z_1 = m + s e with e correlated like the draw: F in closed form, linear in z."""

    def __init__(self, mean: float = 0.8, sd: float = 0.3):
        self.mean, self.sd, self.calls = mean, sd, 0

    def __call__(self, z: torch.Tensor, theta: float) -> torch.Tensor:
        self.calls += 1
        c, s = math.cos(theta), math.sin(theta)
        gain = c * s * (self.sd**2 - 1) / (c**2 + (s * self.sd) ** 2)
        return c * self.mean + gain * (z - s * self.mean)


def two_peaks(z: torch.Tensor, theta: float) -> torch.Tensor:
    """z_1 = +-1 + 0.2 e with equal odds, each point on its own."""
    c, s, sd = math.cos(theta), math.sin(theta), 0.2
    variance = c**2 + (s * sd) ** 2
    peak = torch.tanh(s * z / variance)
    left = (z - s * peak) / variance
    return c * peak + (c * s * sd**2 - s * c) * left


def zero(z: torch.Tensor, theta: float) -> torch.Tensor:
    return torch.zeros_like(z)


@pytest.mark.parametrize("method", ["heun", "euler", "adaptive"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_where_nothing_is_learnt_the_draw_comes_back_bit_for_bit(method, steps):
    z = draw(50)
    assert torch.equal(SAMPLERS[method](zero, z, angles(steps), None), z)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_where_nothing_is_learnt_the_sde_keeps_the_distribution(temperature):
    z = draw(40_000)
    out = SAMPLERS["sde"](zero, z, angles(5), fresh_source(len(z)), temperature=temperature)
    assert out.std().item() == pytest.approx(1, abs=0.02)
    assert out[..., 0].T.corrcoef()[0, 1].item() == pytest.approx(CORRELATION, abs=0.02)
    assert torch.equal(out, z) == (temperature == 0)


def test_points_without_noise_never_move():
    z = draw(100)
    z[:, 0] = 0

    def fresh() -> torch.Tensor:
        other = draw(100, 5)
        other[:, 0] = 0
        return other

    out = SAMPLERS["sde"](zero, z, angles(4), fresh)
    assert (out[:, 0] == 0).all() and not torch.equal(out[:, 1], z[:, 1])


@pytest.mark.parametrize("steps", [4, 16])
def test_ddim_narrows_as_documented(steps):
    z = draw(10)
    out = SAMPLERS["ddim"](zero, z, angles(steps), None)
    torch.testing.assert_close(out, math.cos(path.END / steps) ** steps * z)


@pytest.mark.parametrize("method, steps, options", [
    ("heun", 64, {}), ("euler", 400, {}), ("ddim", 400, {}), ("ddim", 400, {"eta": 1.0}),
    ("sde", 100, {"temperature": 0.5}), ("sde", 100, {"temperature": 2.0}),
    ("adaptive", 1, {"tolerance": 1e-6}),
])
def test_a_gaussian_posterior_is_hit(method, steps, options):
    z = draw(40_000)
    out = SAMPLERS[method](Gaussian(), z, angles(steps), fresh_source(len(z)), **options)
    assert out.mean().item() == pytest.approx(0.8, abs=0.01)
    assert out.std(dim=0).mean().item() == pytest.approx(0.3, rel=0.03)
    assert out[..., 0].T.corrcoef()[0, 1].item() == pytest.approx(CORRELATION, abs=0.03)


@pytest.mark.parametrize("method, steps, options", [
    ("heun", 32, {}), ("euler", 400, {}), ("ddim", 400, {}), ("sde", 200, {"temperature": 1.0}),
    ("adaptive", 1, {"tolerance": 1e-4}),
])
def test_a_posterior_with_two_peaks_is_hit(method, steps, options):
    z = draw(20_000)[:, :1]
    seeds = iter(range(1, 10_000))
    out = SAMPLERS[method](two_peaks, z, angles(steps), lambda: draw(20_000, next(seeds))[:, :1],
                           **options)
    assert (out > 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    near = out[out > 0]
    assert near.mean().item() == pytest.approx(1, abs=0.03)
    assert near.std().item() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_rule(method, order):
    z = draw(200)
    exact = 0.8 + 0.3 * z  # the flow of a Gaussian is affine
    errors = [(SAMPLERS[method](Gaussian(), z, angles(n), None) - exact).abs().mean().item()
              for n in (8, 16, 32)]
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert min(rates) > order - 0.35


@pytest.mark.parametrize("method, weak, strong", [
    ("sde", {"temperature": 0.0}, {"temperature": 4.0}), ("ddim", {"eta": 0.0}, {"eta": 1.0}),
])
def test_fresh_noise_forgets_a_wrong_start_and_is_no_width(method, weak, strong):
    """Draws twice too wide: renewing noise undoes the error, without it some of it is left."""
    z = 2 * draw(20_000)
    kept, undone = (
        SAMPLERS[method](Gaussian(), z, angles(300), fresh_source(len(z)), **options).std().item()
        for options in (weak, strong)
    )
    assert kept == pytest.approx(0.6, rel=0.05)
    assert undone == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("method, options", [
    ("heun", {}), ("euler", {}), ("adaptive", {}), ("mean", {}), ("ddim", {"eta": 0.0}),
    ("sde", {"temperature": 0.0}),
])
def test_without_renewal_no_noise_is_drawn(method, options):
    def fresh() -> torch.Tensor:
        raise AssertionError("drew noise")

    assert SAMPLERS[method](Gaussian(), draw(3), angles(4), fresh, **options).isfinite().all()


@pytest.mark.parametrize("method", SAMPLERS)
def test_evaluations_are_as_declared(method):
    slope = Gaussian()
    SAMPLERS[method](slope, draw(3), angles(5), lambda: draw(3, 1))
    assert declared_nfe(method, 5) in (None, slope.calls)


def test_the_mean_is_one_evaluation_without_noise():
    out = SAMPLERS["mean"](Gaussian(), draw(3), angles(5), None)
    torch.testing.assert_close(out, torch.full_like(out, 0.8))


def test_estimates_give_the_state_back():
    z_0, z_1 = draw(9, 1), draw(9, 2)
    theta = 0.7
    angle = torch.full((9,), theta, dtype=torch.float64)
    z, slope = path.interpolate(z_0, z_1, angle), path.target(z_0, z_1, angle)
    torch.testing.assert_close(path.data_estimate(z, slope, theta), z_1)
    torch.testing.assert_close(path.noise_estimate(z, slope, theta), z_0)


@pytest.mark.parametrize("method, steps, options, words", [
    ("magic", 1, {}, "unknown sampler 'magic'"), ("heun", 0, {}, "at least 1 step"),
    ("heun", 1, {"eta": 1.0}, "has no option 'eta'"), ("ddim", 1, {"eta": 2.0}, "eta"),
    ("sde", 1, {"temperature": -1.0}, "temperature"), ("ddim", 1, {"eta": math.nan}, "eta"),
    ("adaptive", 1, {"tolerance": 0}, "tolerance"),
])
def test_what_no_sampler_can_do_is_refused(method, steps, options, words):
    with pytest.raises(UserError, match=words):
        check_sampler(method, steps, options)


def test_options_have_defaults():
    assert sampler_options("sde") == {"temperature": 0.5} and sampler_options("heun") == {}
