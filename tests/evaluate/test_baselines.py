from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import Delaunay

from sparsefield.evaluate import baselines
from sparsefield.evaluate.baselines import BASELINES
from sparsefield.place import grid_coords

SHAPE = (12, 16)
GRID = grid_coords(*SHAPE).numpy()


def observe(field: np.ndarray, count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    observed = np.sort(rng.choice(len(GRID), count, replace=False))
    return GRID[observed], field.reshape(len(GRID), -1)[observed]


def plane(coords: np.ndarray = GRID, shape=SHAPE) -> np.ndarray:
    x, y = coords.astype(np.float64).T
    return np.stack([0.2 + 0.5 * x - 0.1 * y, 0.9 - 0.3 * x - 0.4 * y], axis=-1).reshape(*shape, 2)


@pytest.mark.parametrize("name", BASELINES)
def test_constants_and_observations_are_kept_and_the_range_respected(name):
    constant = np.broadcast_to(np.linspace(0.1, 0.9, 4), (*SHAPE, 4))
    assert BASELINES[name](*observe(constant), SHAPE) == pytest.approx(constant, abs=2e-5)
    field = np.random.default_rng(1).integers(0, 2, (*SHAPE, 2)).astype(np.float64)
    coords, values = observe(field)
    result = BASELINES[name](coords, values, SHAPE)
    assert result.shape == (*SHAPE, 2)
    assert result.min() >= 0 and result.max() <= 1
    columns, rows = (coords * max(SHAPE)).astype(int).T
    assert np.array_equal(result[rows, columns], values)


def test_linear_is_exact_on_planes_inside_the_hull():
    coords, values = observe(plane())
    inside = Delaunay(coords).find_simplex(GRID).reshape(SHAPE) >= 0
    assert 0.3 < inside.mean() < 1
    result = baselines.linear(coords, values, SHAPE)
    assert result[inside] == pytest.approx(plane()[inside], abs=1e-6)
    assert result[~inside] == pytest.approx(baselines.nearest(coords, values, SHAPE)[~inside])


@pytest.mark.parametrize("local", [False, True])
def test_thin_plate_rbf_is_exact_on_planes_everywhere(local, monkeypatch):
    if local:
        monkeypatch.setattr(baselines, "RBF_DENSE_POINTS", 10)
        monkeypatch.setattr(baselines, "RBF_NEIGHBOURS", 12)
    result = baselines.thin_plate_rbf(*observe(plane()), SHAPE)
    assert result == pytest.approx(plane(), abs=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("arrangement", ["scattered", "row", "diagonal"])
def test_few_or_collinear_observations_give_a_field(name, count, arrangement):
    rows, columns = {
        "scattered": (np.arange(count) * 5 % 12, np.arange(count) * 3),
        "row": (np.full(count, 4), np.arange(count) * 3),
        "diagonal": (np.arange(count) * 2, np.arange(count) * 2),
    }[arrangement]
    coords = GRID.reshape(*SHAPE, 2)[rows, columns]
    values = np.linspace(0.3, 0.6, 2 * count).reshape(count, 2)
    result = BASELINES[name](coords, values, SHAPE)
    assert np.isfinite(result).all()
    assert np.array_equal(result[rows, columns], values)


def test_observations_off_the_grid():
    coords = np.array([[0.11, 0.2], [0.9, 0.13], [0.5, 0.87], [0.31, 0.52]])
    values = plane(coords, shape=(4,)).reshape(4, 2)
    assert baselines.thin_plate_rbf(coords, values, SHAPE) == pytest.approx(plane(), abs=1e-6)
    with pytest.raises(ValueError, match="no points of the"):
        baselines.biharmonic(coords, values, SHAPE)


@pytest.mark.parametrize("coords, values, words", [
    (np.zeros((0, 2)), np.zeros((0, 3)), r"\(M, 2\)"),
    (GRID[:2], np.array([[0.5], [np.nan]]), "not finite"),
    (GRID[:2], np.zeros((3, 1)), r"\(M, 2\)"),
])
def test_bad_observations_are_refused(coords, values, words):
    with pytest.raises(ValueError, match=words):
        baselines.nearest(coords, values, SHAPE)
