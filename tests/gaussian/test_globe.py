"""The closed form on a globe: chords through space instead of distances in the plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsefield.gaussian import Kernel, condition
from sparsefield.gaussian import kernels as prior
from sparsefield.gaussian.kernels import NUGGET
from sparsefield.use.globe import to_space

EXTENT = (-180.0, 180.0, -90.0, 90.0)


def places(count: int, seed: int = 0) -> np.ndarray:
    """Longitude and latitude (count, 2), even on the sphere."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(-180, 180, count),
                     np.degrees(np.arcsin(rng.uniform(-1, 1, count)))], axis=1)


@pytest.mark.parametrize("kernel", [Kernel(0.8), Kernel(1.4), Kernel(1.0, 2.5, 0.0)])
def test_waves_through_space_have_the_variogram(kernel):
    coords = to_space(places(40), EXTENT)
    features = prior.features(kernel, coords).double()
    apart = features[:, None] - features[None]                            # (P, P, F)
    found = apart.square().sum(dim=2) / 2
    steps = (coords[:, None] - coords[None]).double() @ kernel.stretch(3)
    wanted = steps.norm(dim=2) ** kernel.exponent
    off = ~torch.eye(40, dtype=torch.bool)
    assert (found / wanted)[off].sub(1).abs().mean() < 0.03
    assert (found / wanted)[off].sub(1).abs().max() < 0.15


def test_kriging_by_chords_is_the_textbooks():
    """Ordinary kriging with gamma = chord, by its dense system with a Lagrange multiplier."""
    coords, queries = (to_space(places(n, s), EXTENT).double() for n, s in ((30, 1), (7, 2)))
    values = torch.randn(30, 1, generator=torch.Generator().manual_seed(0))
    kernel = Kernel(1.0)
    answer = condition(coords[None], values[None], kernels=(kernel,)).at(queries[None])
    system = torch.ones(31, 31, dtype=torch.float64)
    system[:30, :30] = torch.cdist(coords, coords) + NUGGET * ~torch.eye(30, dtype=torch.bool)
    system[30, 30] = 0
    right = torch.cat([torch.cdist(coords, queries) + NUGGET, torch.ones(1, 7)])
    weights = torch.linalg.solve(system, right)[:30]
    torch.testing.assert_close(answer.mean[0, :, 0].double(), weights.T @ values[:, 0].double(),
                               atol=1e-3, rtol=0)


def test_draws_keep_what_was_observed_and_spread_elsewhere():
    coords = to_space(places(50), EXTENT)[None]
    posterior = condition(coords, torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0)))
    queries = torch.cat([coords, to_space(places(60, 3), EXTENT)[None]], dim=1)
    generators = [torch.Generator().manual_seed(k) for k in range(200)]
    z = posterior.noise(queries)(generators)
    assert z.shape == (200, 110, 2)
    assert (posterior.at(queries).sd * z)[:, :50].abs().max() < 0.02
    assert z[:, 50:].var(dim=0).mean() == pytest.approx(1, abs=0.15)


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
