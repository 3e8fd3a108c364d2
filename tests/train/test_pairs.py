"""Both ends of the path of a training step."""

from functools import partial

import numpy as np
import pytest
import torch

from sparsefield.data import TrainingBatches, open_data, parse_pattern
from sparsefield.data.symmetries import Symmetry
from sparsefield.flow.path import draw_angles
from sparsefield.model.canvas import Look
from sparsefield.train.pairs import Pair, Pairs, canvas_loss, flow_loss, slope_loss
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
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def assert_equal(one: Pair, other: Pair) -> None:
    for left, right in zip((*one.form, one.z_0), (*other.form, other.z_0)):
        assert left is right is None or torch.equal(left, right)


@pytest.mark.parametrize("canvas_width", [0, 8])
def test_pairs_depend_on_the_batch_alone(batches, canvas_width):
    used = pairs(canvas_width=canvas_width)
    for step in range(4):
        used(batches[step])
    first, again = used(batches[9]), pairs(canvas_width=canvas_width)(batches[9])
    assert_equal(first, again)
    own = pairs()(batches[9]._replace(layout=torch.full((6,), -1)))
    torch.testing.assert_close(own.z_0, first.z_0, atol=5e-3, rtol=0)  # rounding


def test_requests_in_another_order_change_nothing(batches):
    """Hypotheses are brought to the grid as fields need them: the order must not show."""
    ahead, back = pairs(), pairs()
    steps = range(8, 14)  # layouts in common
    first = {step: ahead(batches[step]) for step in steps}
    for step in reversed(steps):
        assert_equal(first[step], back(batches[step]))


def test_a_field_is_fitted_once_for_all_its_turns(batches, monkeypatch):
    used, batch = pairs(canvas_width=8), batches[3]
    first = used(batch)
    monkeypatch.setattr(used, "_turns", lambda *_: pytest.fail("fitted again"))
    assert_equal(used(batch), first)
    later = used(batch._replace(turn=batch.turn + 1))
    assert torch.equal(later.form.mean, first.form.mean) and not torch.equal(later.z_0, first.z_0)


def test_kept_closed_forms_are_bounded(batches, monkeypatch):
    monkeypatch.setattr("sparsefield.train.pairs.KEPT_BYTES", 200_000)
    used = pairs()
    for step in range(6):
        assert_equal(used(batches[step]), pairs()(batches[step]))
    assert len(used.kept) < 20 and used.bytes <= 200_000


def test_a_layout_number_names_the_observed_points(batches):
    batch = batches[3]
    for layout, observed, number in zip(batch.layout.tolist(), batch.input_index.numpy(),
                                        batch.symmetry.tolist()):
        shown = Symmetry(number, 16, 16, 3).of_index
        assert np.array_equal(observed, shown(batches.observed(layout)))
        assert not np.array_equal(observed, shown(batches.observed(layout ^ 1)))


def test_draws_are_nothing_at_the_observations(batches):
    """Not even in units of the sd there, which is a thousandth of that elsewhere."""
    batch = batches[5]
    z_0 = pairs()(batch._replace(query_index=batch.input_index, query_coords=batch.input_coords,
                                 x_1=batch.input_values)).z_0
    assert z_0.abs().max() < 0.15 and z_0.mean().abs() < 0.01


def test_draws_have_unit_variance(batches):
    made = pairs()
    found = [made(batches[step]) for step in range(30)]
    z_0 = torch.cat([pair.z_0.flatten() for pair in found])
    assert z_0.mean().abs() < 0.1 and z_0.std().item() == pytest.approx(1, abs=0.05)


def test_draws_go_together_like_the_posterior(batches):
    """On the grid by a root of the covariance, elsewhere by waves: the same distribution."""
    batch, made = batches[5], pairs()
    one = batch._replace(**{name: part[:1] for name, part in batch._asdict().items()})
    draws = torch.cat([
        made(one._replace(draws=torch.tensor([seed]), field=torch.tensor([-1]))).z_0
        for seed in range(1500)
    ])
    _, noise = made.model.closed_form(one.query_coords, one.input_coords, one.input_values)
    waves = noise([torch.Generator().manual_seed(seed) for seed in range(1500)])
    difference = draws[:, :, 0].T.cov() - waves[:, :, 0].T.cov()
    assert difference.abs().max() < 0.2 and difference.abs().mean() < 0.04
    assert (draws[..., 0] * draws[..., 1]).mean().item() == pytest.approx(
        (waves[..., 0] * waves[..., 1]).mean().item(), abs=0.06)


def test_without_a_prior_the_pair_is_noise_and_data(batches):
    batch, made = batches[2], pairs(prior="none", value_sd=0.5)
    pair = made(batch)
    assert (pair.form.mean == 0).all() and (pair.form.sd == 0.5).all()
    assert pair.z_0.std().item() == pytest.approx(1, abs=0.1)


def test_the_closed_form_loses_about_one(batches):
    made = pairs()
    losses = [slope_loss(made.model, batches[s], made(batches[s])).mean().item() for s in range(30)]
    assert 0.4 < np.mean(losses) < 2.5


def test_the_canvas_learns_and_only_from_its_own_loss(batches):
    made, batch = pairs(canvas_width=8, canvas_flow_width=8), batches[3]
    pair = made(batch)

    def taught_by(loss_of) -> set[str]:
        made.model.zero_grad(set_to_none=True)
        loss_of(made.model, batch, pair).mean().backward()
        names = [name for name, p in made.model.named_parameters() if p.grad is not None]
        return {".".join(name.split(".")[:2]) if "canvas" in name else "tokens" for name in names}

    assert taught_by(canvas_loss) == {"canvas.shift", "canvas.scale"}
    assert taught_by(flow_loss) == {"canvas.flow"}
    assert taught_by(slope_loss) == {"tokens"}


def test_the_loss_of_the_canvas_is_least_at_the_truth(batches):
    """Squared error at its mean; its sd, by likelihood, where it equals the error."""
    made, batch = pairs(canvas_width=8), batches[3]
    pair = made(batch)
    error = (batch.x_1 - pair.form.mean) / pair.form.sd

    def loss(shift, scale) -> float:
        look = Look(shift, scale.log(), None)
        made.model.look = lambda *_: look
        return canvas_loss(made.model, batch, pair).mean().item()

    one = torch.ones_like(error)
    assert loss(0.9 * error, one) < loss(0.5 * error, one) < loss(0 * error, one)
    spread = error.abs().clamp_min(0.1)
    assert loss(0 * error, spread) < loss(0 * error, 1.5 * spread)
    assert loss(0 * error, spread) < loss(0 * error, spread / 1.5)


def test_all_unobserved_points_are_asked_for_while_the_canvas_learns():
    batches = TrainingBatches(
        open_data("photos", image_size=16).train, parse_pattern("random:0.2"), seed=0, batch_size=6,
        queries=(40, 80), draw_angles=partial(draw_angles, zero_share=0.5), painted=2,
    )
    assert [batches[step].x_1.shape[1] > 80 for step in range(4)] == [True, True, False, False]
    batch = batches[1]
    everything = torch.cat([batch.query_index, batch.input_index], dim=1).sort(dim=1).values
    assert (everything == torch.arange(256)).all()


@pytest.fixture(scope="module")
def whole():
    return TrainingBatches(
        open_data("photos", image_size=16).train, parse_pattern("random:0.2"), seed=0, batch_size=4,
        queries=(20, 40), draw_angles=draw_angles, sees_whole=True,
    )


def test_whole_draws_are_asked_for_and_tokens_answer_a_part(whole):
    counts = [(batch.query_index.shape[1], batch.answered.shape[1])
              for batch in (whole[step] for step in range(40))]
    assert all(20 <= answered <= 40 and answered <= asked <= 205 for asked, answered in counts)
    assert 10 <= sum(asked == 205 for asked, _ in counts) <= 30
    for row in whole[3].answered:
        assert len(row.unique()) == len(row) and row.max() < whole[3].query_index.shape[1]


def test_a_draw_too_large_is_asked_for_around_a_place(whole, monkeypatch):
    monkeypatch.setattr("sparsefield.data.batches.MOST_SEEN", 60)
    widths = []
    for step in range(12):
        coords = whole[step].query_coords
        if coords.shape[1] == 60:
            widths.append(coords.std(dim=1).mean().item())
    assert len(widths) >= 3 and max(widths) < 0.2  # 0.29 if all over the square


def test_without_a_flow_of_the_canvas_all_that_is_asked_for_is_answered(batches):
    for step in range(3):
        answered = batches[step].answered
        assert (answered == torch.arange(batches[step].query_index.shape[1])).all()


def test_tokens_answer_their_queries_whichever_they_are(whole):
    made, batch = pairs(canvas_width=8, canvas_flow_width=8), whole[1]
    torch.nn.init.normal_(made.model.canvas.flow.last.weight)
    made.model.eval()
    pair, every = made(batch), torch.arange(batch.query_index.shape[1]).expand(4, -1)
    some = slope_loss(made.model, batch, pair)
    grid = flow_loss(made.model, batch, pair)  # the untrained tokens add 0
    torch.testing.assert_close(some, grid.gather(1, batch.answered[..., None].expand_as(some)))
    torch.testing.assert_close(slope_loss(made.model, batch._replace(answered=every), pair), grid)
