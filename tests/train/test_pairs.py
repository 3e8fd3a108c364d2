"""Both ends of the path of a training step."""

from functools import partial

import numpy as np
import pytest
import torch

from sparsefield.data import TrainingBatches, open_data, parse_pattern
from sparsefield.flow.path import draw_angles
from sparsefield.train.pairs import Pairs, slope_loss
from train_mamba_v2 import MAMBADiffusionV2

SMALL = dict(d_model=16, num_layers=2, perceiver_iterations=1, perceiver_heads=2, neighbours=4)


@pytest.fixture(scope="module")
def batches():
    return TrainingBatches(
        open_data("photos", image_size=16).train, parse_pattern("random:0.2"), seed=0, batch_size=6,
        queries=(40, 80), draw_angles=partial(draw_angles, zero_share=0.5),
    )


def pairs(**changes) -> Pairs:
    torch.manual_seed(0)
    return Pairs(MAMBADiffusionV2(**SMALL, **changes), 16, 16, torch.device("cpu"))


def test_the_grid_gives_what_any_points_give(batches):
    batch, made = batches[3], pairs()
    form = made(batch).form
    anywhere, _ = made.model.closed_form(
        batch.query_coords, batch.input_coords, batch.input_values
    )
    for found, expected in zip(form, anywhere):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)


def test_pairs_depend_on_the_batch_alone(batches):
    used = pairs()
    for step in range(4):
        used(batches[step])
    first, again = used(batches[9]), pairs()(batches[9])
    for one, other in zip((*first.form, *first[1:]), (*again.form, *again[1:])):
        assert torch.equal(one, other)
    own = pairs()(batches[9]._replace(layout=torch.full((6,), -1)))
    assert torch.equal(own.z_0, first.z_0)


def test_requests_in_another_order_change_nothing(batches):
    """Hypotheses are brought to the grid as fields need them: the order must not show."""
    ahead, back = pairs(), pairs()
    steps = range(8, 14)  # layouts in common
    first = {step: ahead(batches[step]) for step in steps}
    for step in reversed(steps):
        again = back(batches[step])
        for one, other in zip((*first[step].form, *first[step][1:]), (*again.form, *again[1:])):
            assert torch.equal(one, other)


def test_draws_are_nothing_at_the_observations(batches):
    """Not even in units of the sd there, which is a thousandth of that elsewhere."""
    batch = batches[5]
    z_0 = pairs()(batch._replace(query_index=batch.input_index, query_coords=batch.input_coords,
                                 x_1=batch.input_values)).z_0
    assert z_0.abs().max() < 0.15 and z_0.mean().abs() < 0.01


def test_a_layout_number_names_the_observed_points(batches):
    batch = batches[3]
    for layout, observed in zip(batch.layout.tolist(), batch.input_index.numpy()):
        assert np.array_equal(observed, batches.observed(layout))
        assert not np.array_equal(observed, batches.observed(layout ^ 1))


def test_draws_have_unit_variance_and_the_truth_is_seen_from_the_closed_form(batches):
    made = pairs()
    found = [made(batches[step]) for step in range(30)]
    z_0 = torch.cat([pair.z_0.flatten() for pair in found])
    assert z_0.mean().abs() < 0.1 and z_0.std().item() == pytest.approx(1, abs=0.05)
    batch, pair = batches[0], found[0]
    torch.testing.assert_close(pair.form.mean + pair.form.sd * pair.z_1, batch.x_1)


def test_draws_go_together_like_the_posterior(batches):
    """On the grid by a root of the covariance, elsewhere by waves: the same distribution."""
    batch, made = batches[5], pairs()
    one = batch._replace(**{name: part[:1] for name, part in batch._asdict().items()})
    draws = torch.cat([made(one._replace(seed=torch.tensor([seed]))).z_0 for seed in range(1500)])
    _, noise = made.model.closed_form(one.query_coords, one.input_coords, one.input_values)
    waves = noise([torch.Generator().manual_seed(seed) for seed in range(1500)])
    difference = draws[:, :, 0].T.cov() - waves[:, :, 0].T.cov()
    assert difference.abs().max() < 0.2 and difference.abs().mean() < 0.04
    assert (draws[..., 0] * draws[..., 1]).mean().item() == pytest.approx(
        (waves[..., 0] * waves[..., 1]).mean().item(), abs=0.06)


def test_without_a_prior_the_pair_is_noise_and_data(batches):
    batch, made = batches[2], pairs(prior="none", value_sd=0.5)
    pair = made(batch)
    torch.testing.assert_close(pair.z_1, batch.x_1 / 0.5)
    assert pair.z_0.std().item() == pytest.approx(1, abs=0.1)


def test_the_closed_form_loses_about_one(batches):
    made = pairs()
    losses = [slope_loss(made.model, batches[s], made(batches[s])).mean().item() for s in range(30)]
    assert 0.4 < np.mean(losses) < 2.5
