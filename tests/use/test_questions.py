"""What a field answers: probabilities, quantiles, means over regions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gaussian.textbook import Kriging
from sparsefield import load
from sparsefield.errors import UserError
from sparsefield.gaussian import condition
from sparsefield.model import field as model_field
from sparsefield.use.field import Field
from sparsefield.use.grids import Grid

RNG = np.random.default_rng(0)
CELLS = np.stack(np.meshgrid(*2 * [(np.arange(8) + 0.5) / 8]), axis=-1).reshape(-1, 2)
COORDS = CELLS[RNG.permutation(64)[:20]]
VALUES = np.round(20 + 5 * np.sin(4 * COORDS[:, 0]) + RNG.normal(size=20))


def field_of(**settings) -> Field:
    return load("none").reconstruct(COORDS, VALUES, 8, **settings)


def drawn(samples: np.ndarray, **more) -> Field:
    """A field that is known by samples (K, H, W, C) alone."""
    mean = samples.mean(axis=0)
    return Field(np.zeros((*mean.shape[:-1], 2)), mean, samples.std(axis=0), samples, "", **more)


def test_probabilities_and_quantiles_of_the_closed_form_are_those_of_its_gaussian():
    field = field_of(num_samples=2)
    is_open = field.sd > 0
    of_cell = stats.norm(field.mean[is_open], field.sd[is_open])
    np.testing.assert_allclose(field.probability_above(21.5)[is_open], of_cell.sf(21.5), atol=1e-6)
    np.testing.assert_allclose(field.quantile(0.95)[is_open], of_cell.ppf(0.95), rtol=1e-6)


@pytest.mark.parametrize("transform, zero", [(None, 0.0), ("sqrt", 0.0), ("sqrt", 1.0),
                                             ("log", 1.0)])
def test_at_measurements_the_field_is_above_a_limit_or_not(transform, zero):
    """Strictly: rounding does not lift a value of 20 above 20, nor one of 0 above 0."""
    values = VALUES - VALUES.min() + zero
    field = load("none").reconstruct(COORDS, values, 8, num_samples=2, transform=transform)
    rows, columns = (8 * COORDS[:, ::-1].T).astype(int)
    for limit in (*values, zero):
        np.testing.assert_array_equal(field.probability_above(limit)[rows, columns, 0],
                                      values > limit)


@pytest.mark.parametrize("transform", ["log", "sqrt"])
def test_with_a_transform_limits_and_quantiles_are_in_the_units_of_the_values(transform):
    field = field_of(num_samples=1000, transform=transform)
    np.testing.assert_allclose(field.probability_above(21.5),
                               (field.samples > 21.5).mean(axis=0), atol=0.06)
    low, high = field.quantile(0.1), field.quantile(0.9)
    inside = ((field.samples >= low - 1e-3) & (field.samples <= high + 1e-3)).mean()
    assert inside == pytest.approx(0.8 + 0.2 * len(COORDS) / 64, abs=0.01)
    assert (field.probability_above(-1.0) == 1).all()


def test_samples_answer_where_there_is_no_gaussian():
    samples = np.random.default_rng(1).permuted(
        np.arange(1.0, 20).repeat(6).reshape(19, 2, 3, 1), axis=0)
    field = drawn(samples)
    assert (field.probability_above(15) == 4 / 19).all()
    assert (field.quantile(0.95) == 19).all() and (field.quantile(0.5) == 10).all()
    with pytest.raises(UserError, match=r"19 samples tell those from 0\.05 to 0\.95; give "
                                        "num_samples=99"):
        field.quantile(0.99)
    with pytest.raises(UserError, match="only kriging"):
        field.quantile(1e-4)


def test_a_mean_over_a_region_has_the_sd_of_the_joint_gaussian(monkeypatch):
    """That of the textbook's covariance of errors, not that of independent cells."""
    posteriors = []
    monkeypatch.setattr(model_field, "condition", lambda *given, **more: posteriors.append(
        condition(*given, **more)) or posteriors[0])
    coords = np.random.default_rng(2).uniform(size=(20, 2))
    field = load("none").reconstruct(coords, np.sin(4 * coords[:, 0]), 8, num_samples=1000)
    of_field, to_side = posteriors[0].fields[0], posteriors[0].fields[0].observed.coords
    spread = np.ptp(to_side.numpy(), axis=0) / np.ptp(coords, axis=0)
    cells = to_side.numpy().min(axis=0) + (CELLS - coords.min(axis=0)) * spread
    errors = Kriging(of_field.fit.kernels[of_field.fit.heaviest],
                     to_side.double().numpy()).covariance(cells)
    sd = np.sqrt(np.diag(errors))
    covariance = errors / np.outer(sd, sd) * np.outer(field.sd, field.sd)
    region = np.zeros((8, 8), dtype=bool)
    region[2:5, 2:5] = True
    which = np.flatnonzero(region)
    found = field.mean_over(region, level=0.8)
    assert found.sd[0] == pytest.approx(covariance[np.ix_(which, which)].mean() ** 0.5, rel=0.06)
    assert found.sd[0] > 1.5 * (field.sd[region] ** 2).sum() ** 0.5 / region.sum()
    assert found.mean[0] == pytest.approx(field.mean[region].mean())
    assert found.high[0] - found.low[0] == pytest.approx(2 * 1.2824 * found.sd[0], rel=1e-3)


def test_cells_count_by_their_area():
    samples = np.zeros((19, 3, 2, 1))
    samples[:, 2] = np.arange(1, 20)[:, None, None]
    everywhere = np.ones((3, 2), dtype=bool)
    globe = Grid.over((0, 2, 0, 90), (3, 2), lonlat=True)
    weight = np.cos(np.radians([15, 45, 75]))
    found = drawn(samples, grid=globe).mean_over(everywhere)
    assert found.mean == pytest.approx(10 * weight[2] / weight.sum())
    assert (found.low / found.mean, found.high / found.mean) == (
        pytest.approx(0.1), pytest.approx(1.9))
    uneven = Grid(np.array([0.0, 1]), np.array([0.0, 1, 5]))
    assert drawn(samples, grid=uneven).mean_over(everywhere).mean == pytest.approx(10 * 4 / 7.5)


@pytest.mark.parametrize("question, words", [
    (lambda field: field.probability_above(float("nan")), "give a finite number"),
    (lambda field: field.probability_above("high"), "array of real numbers"),
    (lambda field: field.probability_above([1, 2]), "one for each of 1 channel"),
    (lambda field: field.quantile(1), "between 0 and 1"),
    (lambda field: field.quantile(float("nan")), "between 0 and 1"),
    (lambda field: field.quantile([0.5]), "between 0 and 1"),
    (lambda field: field.quantile(None), "between 0 and 1"),
    (lambda field: field.mean_over(np.eye(2, 3) > 0, level=90), "level 90: give a number"),
    (lambda field: field.answers(above="high"), "array of real numbers"),
    (lambda field: field.mean_over(np.zeros((2, 3), bool)), "True for the cells"),
    (lambda field: field.mean_over(np.ones((3, 2), bool)), r"give bool \(2, 3\)"),
    (lambda field: field.mean_over(np.ones((2, 3))), "give bool"),
    (lambda field: field.mean_over(np.ones((2, 3), bool)), "1 of 6 cells of the region are empty"),
    (lambda field: field.mean_over(np.eye(2, 3) > 0, level=0.95), "num_samples=39"),
])
def test_questions_that_have_no_answer(question, words):
    samples = np.zeros((19, 2, 3, 1))
    samples[:, 0, 1] = np.nan
    with pytest.raises(UserError, match=words) as refused:
        question(drawn(samples))
    assert "\n" not in str(refused.value)


def test_empty_cells_stay_empty():
    samples = np.zeros((19, 2, 3, 1))
    samples[:, 0, 1] = np.nan
    for found in (drawn(samples).probability_above(-1), drawn(samples).quantile(0.5)):
        assert np.isnan(found[0, 1]) and np.isfinite(np.delete(found.reshape(-1), 1)).all()
