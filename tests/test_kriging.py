"""Kriging against the textbook system, and the flow maths around it."""

import numpy as np
import pytest
import torch

from sparsefield import flow, kriging
from sparsefield.kriging import NUGGET, ordinary_kriging


def textbook(coords, values, query):
    """The ordinary kriging system with its Lagrange multiplier (Cressie 1993, eq. 3.2.12)."""
    count = len(coords)
    distances = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = np.exp(-distances) + NUGGET * np.eye(count)
    system[count, count] = 0
    right = np.append(np.exp(-np.linalg.norm(coords - query, axis=-1)), 1)
    solution = np.linalg.solve(system, right)
    return solution[:count] @ values, 1 - solution @ right


def points(count, channels=2):
    rng = np.random.default_rng(0)
    return rng.random((count, 2)), rng.standard_normal((count, channels))


def krige(coords, values, queries):
    return ordinary_kriging(*(torch.tensor(x)[None] for x in (coords, values, queries)))


def test_agrees_with_the_textbook_system():
    coords, values = points(30)
    queries = np.random.default_rng(1).random((5, 2))
    answer = krige(coords, values, queries)
    expected = [textbook(coords, values, query) for query in queries]
    np.testing.assert_allclose(answer.mean[0], [e[0] for e in expected], rtol=1e-3, atol=1e-4)
    ratio = answer.sd[0, :, 0].numpy() ** 2 / [e[1] for e in expected]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)  # the amplitude, the same everywhere


def test_leave_one_out_is_kriging_from_the_others():
    coords, values = points(20)
    answer = krige(coords, values, coords)
    for i in (0, 7):
        others = np.delete(coords, i, 0), np.delete(values, i, 0)
        mean, _ = textbook(*others, coords[i])
        np.testing.assert_allclose(answer.loo_mean[0, i], mean, rtol=1e-3, atol=1e-3)


def test_nearest_observations_suffice_when_there_are_many(monkeypatch):
    coords, values = points(300)
    values = np.sin(4 * coords)  # a smooth field
    queries = np.random.default_rng(1).random((40, 2))
    dense = krige(coords, values, queries)
    monkeypatch.setattr(kriging, "DENSE_POINTS", 100)
    local = krige(coords, values, queries)
    assert (local.mean - dense.mean).abs().max() < 0.02
    assert (local.loo_mean - dense.loo_mean).abs().max() < 0.05


@pytest.mark.parametrize("count", [1, 2, 600])
def test_constant_fields_are_answered_exactly(count):
    coords, _ = points(count)
    answer = krige(coords, np.full((count, 1), 0.25), np.random.default_rng(1).random((9, 2)))
    np.testing.assert_allclose(answer.mean, 0.25, atol=1e-5)
    assert all(part.isfinite().all() for part in answer)
    assert (answer.sd > 0).all()


def test_gaussian_velocity_is_the_regression_of_v_on_x_t():
    """Least squares over draws of (x_0, x_1) must find the closed form."""
    generator = torch.Generator().manual_seed(0)
    mean, sd, t = 0.3, 0.5, 0.6
    x_0 = torch.randn(400_000, 1, 1, generator=generator)
    x_1 = mean + sd * torch.randn(400_000, 1, 1, generator=generator)
    times = torch.full((400_000,), t)
    x_t, v = flow.interpolate(x_0, x_1, times), flow.velocity_target(x_0, x_1)
    design = torch.cat([x_t[:, 0], torch.ones(400_000, 1)], dim=1)
    slope, offset = torch.linalg.lstsq(design, v[:, 0]).solution[:, 0].tolist()
    at = torch.tensor([[[0.0]], [[1.0]]])
    closed = flow.gaussian_velocity(
        at, torch.full((2,), t), torch.full((2, 1, 1), mean), torch.full((2, 1, 1), sd)
    )[:, 0, 0].tolist()
    assert closed == pytest.approx([offset, offset + slope], abs=0.01)


def test_preconditioning_makes_residuals_of_unit_variance():
    generator = torch.Generator().manual_seed(0)
    sd, mean = torch.full((4, 50_000, 1), 0.2), torch.full((4, 50_000, 1), -0.4)
    x_0 = torch.randn(4, 50_000, 1, generator=generator)
    x_1 = mean + sd * torch.randn(4, 50_000, 1, generator=generator)
    t = torch.tensor([0.0, 0.3, 0.7, 0.99])
    x_t = flow.interpolate(x_0, x_1, t)
    state = flow.normalised_state(x_t, t, mean, sd)
    assert state.std(dim=1).flatten().tolist() == pytest.approx([1] * 4, abs=0.02)
    error = flow.velocity_target(x_0, x_1) - flow.gaussian_velocity(x_t, t, mean, sd)
    weighted = (flow.loss_weight(t, sd) * error**2).mean(dim=1).flatten()
    assert weighted.tolist() == pytest.approx([1] * 4, abs=0.02)


def test_estimates_recover_noise_and_data():
    x_0, x_1 = torch.randn(2, 3, 1, dtype=torch.float64), torch.randn(2, 3, 1, dtype=torch.float64)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x, v = flow.interpolate(x_0, x_1, t), flow.velocity_target(x_0, x_1)
    torch.testing.assert_close(flow.data_estimate(x, v, t), x_1)
    torch.testing.assert_close(flow.noise_estimate(x, v, t), x_0)
    torch.testing.assert_close(flow.score(x, v, t), -x_0 / (1 - t[:, None, None]))


def test_times_hold_exact_zeros():
    t = flow.draw_times(np.random.default_rng(0), 20_000, zero_share=0.25)
    assert (t == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert t[t > 0].mean() == pytest.approx(0.5, abs=0.01)
    assert 0 <= t.min() and t.max() < 1
