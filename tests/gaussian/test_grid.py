"""The posterior on a grid, as training has it: what `condition` gives anywhere, and draws."""

import numpy as np
import pytest
import torch
from textbook import Kriging

from sparsefield.gaussian import GridPosterior, condition, grid
from sparsefield.place import Domain, grid_coords

CPU = torch.device("cpu")
SHAPES = [(16, 16), (9, 20)]


def fields(height, width, count=4, seed=0):
    """Observed points (B, M), values (B, M, C) and further places (B, L, 2); the last field has the
    mask of the first."""
    g = torch.Generator().manual_seed(seed)
    coords = grid_coords(height, width)
    observed = torch.stack([torch.randperm(height * width, generator=g)[:40] for _ in range(count)])
    cells = torch.rand(count, 7, 2, generator=g)
    observed[-1], cells[-1] = observed[0], cells[0]
    truth = torch.stack([torch.sin(coords @ torch.randn(2, 3, generator=g) * scale)
                         for scale in (3.0, 10.0, 20.0, 6.0)[:count]])
    return observed, truth.gather(1, observed[..., None].expand(-1, -1, 3)), cells


def assert_close(one, other, draws=5e-2):
    for name, a, b in zip(one._fields, one, other, strict=True):
        tolerance = {"draws": draws, "loo_z": 1e-3}.get(name, 1e-5)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_grid_gives_what_any_places_give(shape):
    observed, values, cells = fields(*shape)
    coords = grid_coords(*shape)
    found = GridPosterior(*shape, CPU)([5, 6, -1, 5], observed, values, None, cells)
    expected = condition(coords[observed], values, domain=Domain.of_grid(*shape))
    answer = expected.at(torch.cat([coords.expand(4, -1, -1), cells], dim=1))
    loo = expected.leave_one_out
    assert_close(found._replace(draws=loo.z[:0]),
                 grid.GridAnswer(*answer, loo.sd, loo.z, loo.z[:0]))
    assert found.draws.shape == (4, 0, 3)


def test_a_field_does_not_depend_on_the_batch_or_on_what_was_asked_before():
    observed, values, cells = fields(16, 16)
    seeds, used = torch.arange(4), GridPosterior(16, 16, CPU)
    whole = used([5, 6, -1, 5], observed, values, seeds, cells)
    again = used([5, 6, -1, 5], observed, values, seeds, cells)
    for a, b in zip(whole, again, strict=True):
        assert torch.equal(a, b)
    for b, number in enumerate([5, 6, 7, 8]):
        alone = GridPosterior(16, 16, CPU)(
            [number], *(x[b:b + 1] for x in (observed, values, seeds, cells)))
        assert_close(alone, grid.GridAnswer(*(part[b:b + 1] for part in whole)))


def test_all_kernels_at_once_as_on_a_gpu_give_the_same(monkeypatch):
    observed, values, cells = fields(9, 20)
    given = [5, 6, -1, 5], observed, values, torch.arange(4), cells
    expected = GridPosterior(9, 20, CPU)(*given)
    monkeypatch.setattr(grid._Mask, "parts", lambda mask, rows, weight: [
        (slice(0, len(rows)), mask._part(tuple(rows)))])
    monkeypatch.setattr(grid, "screened_on", lambda kernels, coords: None)
    assert_close(GridPosterior(9, 20, CPU)(*given), expected)


def test_draws_have_the_conditional_covariance():
    """Between points like dense kriging, between channels like the field; 0 at an observation."""
    observed, values, _ = fields(6, 6, count=1)
    observed, values = observed[:, :12], values[:, :12]
    made, count = GridPosterior(6, 6, CPU), 2000
    z = torch.cat([made([1] * 500, observed.expand(500, -1), values.expand(500, -1, -1),
                        torch.arange(k, k + 500)).draws for k in range(0, count, 500)])
    assert z[:, observed[0]].abs().max() < 0.3
    fit = condition(grid_coords(6, 6)[observed], values).fields[0].fit
    free = np.setdiff1d(np.arange(36), observed[0])[::3]
    coords = grid_coords(6, 6).double().numpy()
    dense = Kriging(fit.kernels[fit.heaviest], coords[observed[0]]).covariance(coords[free])
    sd = np.sqrt(np.diag(dense))
    channels = fit.mixture.channels[fit.heaviest].numpy()
    each = np.sqrt(np.diag(channels))
    expected = np.einsum("ij,cd->icjd", dense / np.outer(sd, sd), channels / np.outer(each, each))
    found = np.cov(z[:, free].flatten(1).numpy().T).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=5 / count**0.5)


def test_kept_masks_are_bounded(monkeypatch):
    monkeypatch.setattr(grid, "KEPT", 3)
    observed, values, _ = fields(16, 16)
    made = GridPosterior(16, 16, CPU)
    for first in range(0, 12, 4):
        made(range(first, first + 4), observed, values)
        assert list(made.masks)[-4:] == list(range(first, first + 4)) and len(made.masks) == 4
    made.most_bytes = 0
    made([20], observed[:1], values[:1])
    assert list(made.masks) == [20]


@pytest.mark.parametrize("count", [1, 2, 5, 256])
def test_few_points_and_all_of_them_are_answered(count):
    observed = torch.arange(count)[None]
    values = torch.full((1, count, 2), 0.25)
    found = GridPosterior(16, 16, CPU)([-1], observed, values, torch.zeros(1, dtype=torch.long))
    assert all(part.isfinite().all() for part in found)
    torch.testing.assert_close(found.mean, torch.full((1, 256, 2), 0.25))
