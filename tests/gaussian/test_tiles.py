"""Large fields are answered in tiles, which depend on the observations alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparsefield.gaussian import condition
from sparsefield.gaussian import posterior as posterior_module
from sparsefield.gaussian.tiles import Boxes
from sparsefield.progress import Count


def points(count: int, dimensions: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dimensions, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("coords", [
    points(1000), points(1000, 3), points(1000).round(decimals=1), torch.zeros(50, 2),
    torch.cat([points(500), points(500) * 1e-6]), points(1),
    points(1000) * torch.tensor([1.0, 0.0]),
])
def test_every_observation_lies_in_one_box_and_is_found_there(coords):
    boxes = Boxes(coords, 20)
    own = torch.cat(boxes.own)
    assert sorted(own.tolist()) == list(range(len(coords)))
    for number, rows in enumerate(boxes.own):
        assert len(rows) <= 20 or len(coords[rows].unique(dim=0)) == 1
        assert bool((boxes.box[rows] == number).all())
    asked = torch.cat([coords, 3 * points(300, coords.shape[1], seed=1) - 1])
    found = dict(boxes.of(asked))
    assert sorted(torch.cat(list(found.values())).tolist()) == list(range(len(asked)))
    assert all(boxes.box[i] == number for number, rows in found.items()
               for i in rows.tolist() if i < len(coords))
    alone = [next(boxes.of(place[None]))[0] for place in asked[-300:]]
    assert all(alone[i - len(coords)] == number for number, rows in found.items()
               for i in rows.tolist() if i >= len(coords))


def test_a_box_is_answered_from_its_own_observations_and_the_nearest_others():
    coords = points(500)
    boxes = Boxes(coords, 20)
    index = boxes.nearest(3, 60)
    assert len(index) == 60 and index.tolist() == sorted(index.tolist())
    assert set(boxes.own[3].tolist()) <= set(index.tolist())
    own = coords[boxes.own[3]]
    low, high = own.amin(dim=0), own.amax(dim=0)
    away = (coords - coords.clamp(low, high)).norm(dim=1)
    others = [i for i in range(500) if i not in index]
    first = torch.stack([rows[0] for rows in boxes.own])
    far = first[away[first].argsort()[:15]]
    assert set(far.tolist()) <= set(index.tolist())
    near = [i for i in index.tolist() if i not in far]
    assert away[near].max() <= away[others].min()
    assert len(Boxes(torch.zeros(50, 2), 20).nearest(0, 30)) == 50  # at one place: never apart
    assert Boxes(points(1), 20).nearest(0, 30).tolist() == [0]


@pytest.mark.parametrize("middles", [[[0.2, 0.3], [0.8, 0.7]], None])
def test_between_clusters_and_tracks_tiles_agree_with_the_whole(monkeypatch, middles):
    coords = points(600)
    if middles is None:
        coords[:, 1] = torch.where(coords[:, 1] > 0.5, 0.7, 0.3)
    else:
        coords = 0.05 * coords + torch.tensor(middles).repeat(300, 1)
    values = (7 * coords[:, :1]).sin() + (50 * coords.sum(dim=1, keepdim=True)).cos() / 2
    places = torch.stack([torch.linspace(0.2, 0.8, 50), torch.full((50,), 0.5)], dim=1)
    noise = torch.full_like(values, 0.1)[None]

    def answer():
        return posterior_module.condition(coords[None], values[None], noise).at(places[None])

    whole = answer()
    for name, number in {"DENSE_POINTS": 599, "TILE": 32, "TOGETHER": 128}.items():
        monkeypatch.setattr(posterior_module, name, number)
    tiled = answer()
    assert ((tiled.mean - whole.mean) / whole.sd).square().mean().sqrt() < 0.2
    assert (tiled.sd / whole.sd - 1).abs().max() < 0.14


def test_leave_one_out_in_tiles_is_nearly_that_of_all(monkeypatch):
    coords = points(400)[None]
    values = (9 * coords[..., :1]).sin() + 0.5 * (coords.sum(dim=2, keepdim=True) > 1)
    whole = posterior_module.condition(coords, values).leave_one_out
    for name, number in {"DENSE_POINTS": 399, "TILE": 40, "TOGETHER": 160}.items():
        monkeypatch.setattr(posterior_module, name, number)
    tiled = posterior_module.condition(coords, values).leave_one_out
    assert (tiled.mean - whole.mean).square().mean().sqrt() < 0.1 * whole.sd.mean()
    torch.testing.assert_close(tiled.sd.median(), whole.sd.median(), rtol=0.05, atol=0)
    torch.testing.assert_close((values - tiled.mean) / tiled.sd, tiled.z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("trend", [0, 1])
def test_what_was_fitted_answers_a_part_of_the_observations_as_all_of_them(monkeypatch, trend):
    """In the middle of a part, draws with noise included."""
    for name, number in {"DENSE_POINTS": 999, "TILE": 32, "TOGETHER": 128}.items():
        monkeypatch.setattr(posterior_module, name, number)
    coords = points(4000)
    waves = (40 * coords[:, :1]).sin() + (60 * coords.sum(dim=1, keepdim=True)).cos()
    values = waves + 9 * coords[:, 1:]
    noise = torch.full_like(values, 0.1)
    whole = posterior_module.condition(coords[None], values[None], noise[None], trend=trend)
    near = ((coords - 0.5).abs() < 0.25).all(dim=1)
    part = posterior_module.condition(coords[None, near], values[None, near], noise[None, near],
                                      trend=trend, priors=whole.priors)
    places = 0.45 + 0.1 * points(200, seed=1)[None]
    (mean, sd, _), found = whole.at(places), part.at(places)
    assert ((found.mean - mean) / sd).square().mean().sqrt() < 0.1
    assert (found.sd / sd - 1).square().mean().sqrt() < 0.08
    one, other = (posterior.noise(places)([torch.Generator().manual_seed(3)])
                  for posterior in (whole, part))
    assert (one - other).square().mean().sqrt() < 0.1


def test_the_number_of_threads_changes_nothing(monkeypatch):
    for name, number in {"DENSE_POINTS": 199, "TILE": 30, "TOGETHER": 100, "ABREAST": 3}.items():
        monkeypatch.setattr(posterior_module, name, number)
    coords = torch.rand(1, 300, 2, generator=torch.Generator().manual_seed(0))
    posterior = condition(coords, torch.sin(7 * coords.sum(dim=2, keepdim=True)))
    at = torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(1))
    assert posterior.parts(at) > 4
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            counted = Count()
            answer = posterior.at(at, counted)
            draws = posterior.noise(at)([torch.Generator().manual_seed(2)])
            found.append([*answer, draws])
            assert counted.done == posterior.parts(at)
            with ThreadPoolExecutor(1) as other:  # a thread that begins later
                seen = other.submit(torch.get_num_threads).result()
            assert seen == torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for alone, together in zip(*found, strict=True):
        assert torch.equal(alone, together)
