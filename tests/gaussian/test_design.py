"""What the likelihood uses covariates for: drift, further coordinate, both or nothing."""

import numpy as np
import pytest
import torch

from sparsefield.gaussian import condition
from sparsefield.gaussian import design as design_module
from sparsefield.gaussian import kernels as prior
from sparsefield.gaussian import posterior as posterior_module
from sparsefield.gaussian.kernels import Kernel
from sparsefield.use.globe import to_space


def normal(count, columns=1, seed=0):
    return torch.randn(1, count, columns, generator=torch.Generator().manual_seed(seed))


def places(count, seed=0):
    return torch.rand(1, count, 2, generator=torch.Generator().manual_seed(seed))


def field(coords, seed=0):
    """A field of about unit size at (1, M, D): (1, M, 1)."""
    return (prior.features(Kernel(1.2), coords[0])
            @ normal(2 * prior.WAVES + coords.shape[2], seed=seed)[0])[None]


def smooth(coords):
    """Known everywhere, of unit size and with hills of its own: (1, M, 1)."""
    x, y = coords[..., :2].split(1, dim=2)
    return 1.4 * torch.sin(9 * x + 2) * torch.cos(7 * y)


def joined(*columns):
    return torch.cat(columns, dim=2)


AT = places(40, seed=7)


def assert_same(one, other, atol=2e-3, rtol=5e-3):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


@pytest.mark.parametrize("noise", [None, 0.1])
@pytest.mark.parametrize("known", [1.0, 1e6])
def test_a_constant_covariate_changes_nothing_at_all(known, noise):
    coords = places(60)
    values = field(coords)
    noise_sd = None if noise is None else torch.full_like(values, noise)
    with_it = condition(joined(coords, torch.full_like(values, known)), values, noise_sd,
                        covariates=1)
    assert not with_it.design().drift and not any(with_it.design().scales)
    found = with_it.at(joined(AT, torch.full((1, 40, 1), known)))
    for a, b in zip(found, condition(coords, values, noise_sd).at(AT), strict=True):
        assert torch.equal(a, b)


def test_a_combination_of_others_or_of_the_trend_is_not_used():
    coords = places(80)
    values = field(coords)
    hill = smooth(coords)
    design = condition(joined(coords, hill, 3 - 2 * hill), values + hill, covariates=2).design()
    assert 1 not in design.drift and design.scales[1] == 0
    tilted = condition(joined(coords, coords.sum(dim=2, keepdim=True)), values, covariates=1,
                       trend=1)
    assert tilted.design().drift == () and tilted.design().trend == 1
    assert_same(tilted.at(joined(AT, AT.sum(dim=2, keepdim=True))),
                condition(coords, values, trend=1).at(AT))


def test_a_covariate_of_noise_is_ignored():
    designs = [condition(joined(coords, normal(len(coords[0]), seed=seed)), field(coords, seed),
                         covariates=1).design()
               for seed, coords in enumerate(places(100, seed) for seed in range(12))]
    assert sum(not design.drift and not any(design.scales) for design in designs) >= 9


@pytest.mark.parametrize("noise", [None, 0.2])
def test_a_field_that_follows_a_covariate_has_it_as_drift(noise):
    within, errors = [], []
    for seed in range(6):
        coords = places(150, seed)
        hill = smooth(coords)
        values = 0.5 * field(coords, seed) - 2 * hill
        noise_sd = None
        if noise is not None:
            noise_sd = torch.full_like(values, noise)
            values = values + noise * normal(150, seed=50 + seed)
        posterior = condition(joined(coords, hill), values, noise_sd, covariates=1)
        assert posterior.design().drift == (0,)
        value, error = (float(x) for x in posterior.fields[0].coefficients())
        within.append(abs(value + 2) < 3 * error)
        errors.append(error)
    assert all(within) and max(errors) < 0.3


def test_a_field_that_bends_with_a_covariate_has_it_as_coordinate():
    """What it is at a height is the same everywhere, but no line: hold-out says so too."""
    coords = places(250)
    height = normal(250, seed=3)
    values = torch.sin(3 * height) + 0.2 * field(coords)
    posterior = condition(joined(coords, height)[:, :200], values[:, :200], covariates=1)
    assert posterior.design().scales[0] >= 0.25
    without = condition(coords[:, :200], values[:, :200])
    error, of_without = (
        (p.at(q[:, 200:]).mean - values[:, 200:]).square().mean().sqrt()
        for p, q in ((posterior, joined(coords, height)), (without, coords)))
    assert error < 0.5 * of_without
    seen = posterior.at(joined(coords, height)[:, :200])
    torch.testing.assert_close(seen.mean, values[:, :200], atol=2e-2, rtol=0)
    z = posterior.noise(joined(coords, height))([torch.Generator().manual_seed(0)])
    assert z.isfinite().all() and z[:, 200:].std() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("scale, shift", [(1e-4, 0.0), (-30.0, 5.0), (1.0, 1e6)])
def test_units_of_a_covariate_do_not_matter(scale, shift):
    coords = places(100)
    hill, hill_at = smooth(coords).double(), smooth(AT).double()
    values = 0.5 * field(coords) + hill.float() + torch.sin(3 * hill.float())
    one = condition(joined(coords.double(), hill), values, covariates=1)
    other = condition(joined(coords.double(), shift + scale * hill), values, covariates=1)
    assert other.design().scales == one.design().scales
    assert_same(other.at(joined(AT.double(), shift + scale * hill_at)),
                one.at(joined(AT.double(), hill_at)))
    value, error = (x[0, 0] for x in one.fields[0].coefficients())
    in_others, error_in_others = (x[0, 0] for x in other.fields[0].coefficients())
    torch.testing.assert_close(in_others * scale, value, rtol=1e-3, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(error_in_others * abs(scale), error, rtol=1e-3, atol=1e-4,
                               equal_nan=True)


def test_a_trend_is_found_again_far_outside():
    coords = places(100)
    x, y = coords.split(1, dim=2)
    values = 1 + 2 * x - y + 0.01 * normal(100)
    noise_sd = torch.full_like(values, 0.01)
    far = torch.tensor([[[3.0, 0.5], [-2.0, 4.0]]])
    expected = 1 + 2 * far[..., :1] - far[..., 1:]
    answer = condition(coords, values, noise_sd, trend=1).at(far)
    assert ((answer.mean - expected).abs() < 4 * answer.sd).all() and answer.sd.max() < 0.3
    bent = condition(coords, values + 3 * x * y, noise_sd, trend=2).at(far)
    expected = expected + 3 * far.prod(dim=2, keepdim=True)
    assert ((bent.mean - expected).abs() < 4 * bent.sd).all() and bent.sd.max() < 3


@pytest.mark.parametrize("noise", [None, 0.1])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
def test_few_observations_determine_few_columns(count, noise):
    coords, known = places(count), normal(count, 2)
    values = field(coords)
    noise_sd = None if noise is None else torch.full_like(values, noise)
    for trend in (0, 1, 2):
        posterior = condition(joined(coords, known), values, noise_sd, covariates=2, trend=trend)
        queries = joined(AT, normal(40, 2))
        answer, z = posterior.at(queries), posterior.noise(queries)([torch.Generator()])
        assert all(x.isfinite().all() for x in (*answer, *posterior.leave_one_out, z))
        assert answer.sd.max() < 60


def test_a_trend_that_places_do_not_determine_is_lowered():
    line = torch.linspace(0, 1, 50)[None, :, None].expand(1, 50, 2)
    for trend in (1, 2):
        posterior = condition(line, field(line), trend=trend)
        assert posterior.design().trend == 0 and posterior.at(AT).sd.max() < 20


def test_a_column_that_one_observation_alone_knows():
    """Its error is left to its coefficient, and to nothing else."""
    coords = places(80)
    values, only = field(coords), torch.zeros(1, 80, 1)
    values[:, 7] += 10
    only[:, 7] = 1
    posterior = condition(joined(coords, only), values, covariates=1)
    assert posterior.design().drift == (0,)
    value, error = (float(x) for x in posterior.fields[0].coefficients())
    assert abs(value - 10) < 3 * error < 3
    loo = posterior.leave_one_out
    assert all(x.isfinite().all() for x in loo) and loo.sd[0, 7] > 10 * loo.sd.median()
    answer = posterior.at(joined(AT, torch.zeros(1, 40, 1)))
    others = torch.arange(80) != 7
    expected = condition(coords[:, others], values[:, others]).at(AT)
    assert (answer.mean - expected.mean).abs().max() < 0.5 * expected.sd.max()


@pytest.mark.parametrize("nearest", [False, True])
def test_a_column_that_few_observations_know(nearest, monkeypatch):
    """Those on which the choice is made may all have 0 there."""
    monkeypatch.setattr(design_module, "CHOICE_POINTS", 50)
    if nearest:
        monkeypatch.setattr(posterior_module, "DENSE_POINTS", 199)
    coords, rare = places(200), torch.zeros(1, 200, 1)
    rare[:, 3:5] = 1
    posterior = condition(joined(coords, rare), field(coords), covariates=1)
    answer = posterior.at(joined(AT, torch.zeros(1, 40, 1)))
    assert all(x.isfinite().all() for x in (*answer, *posterior.leave_one_out))
    assert_same(answer, condition(coords, field(coords)).at(AT))


@pytest.mark.parametrize("noise", [None, 0.1])
def test_the_order_of_rows_does_not_matter(noise):
    coords = places(60)
    hill = smooth(coords)
    values = 0.5 * field(coords) + hill
    sd = None if noise is None else noise * (0.5 + places(60, seed=2)[..., :1])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    rows = joined(coords, hill)
    one, other = (
        condition(rows[:, which], values[:, which], None if sd is None else sd[:, which],
                  covariates=1) for which in (torch.arange(60), order))
    assert_same(one.at(joined(AT, smooth(AT))), other.at(joined(AT, smooth(AT))))
    assert_same([x[:, order] for x in one.leave_one_out], other.leave_one_out, 5e-3, 5e-3)


def test_on_a_globe_and_for_fields_and_channels_together():
    rng = np.random.default_rng(0)
    where = np.stack([rng.uniform(-10, 30, 120), rng.uniform(30, 60, 120)], axis=1)
    coords = to_space(where, (-10, 30, 30, 60)).float()[None]
    height = normal(120)
    values = joined(field(coords) - 6 * height, field(coords, 1))
    rows = joined(coords, height)
    posterior = condition(rows.expand(2, -1, -1), torch.cat([values, values.flip(1)]),
                          covariates=1)
    assert posterior.design(0).drift == (0,)
    alone = condition(rows, values, covariates=1)
    assert_same([x[:1] for x in posterior.at(rows[:, :9].expand(2, -1, -1) + 0.01)],
                alone.at(rows[:, :9] + 0.01))
    value, error = alone.fields[0].coefficients()
    assert value.shape == (1, 2) and abs(value[0, 0] + 6) < 3 * error[0, 0]
    assert abs(value[0, 1]) < 3 * error[0, 1]
    z = alone.noise(rows + 0.01)([torch.Generator().manual_seed(k) for k in range(50)])
    assert z.shape == (50, 120, 2) and z.var(dim=0).mean() == pytest.approx(1, abs=0.15)
