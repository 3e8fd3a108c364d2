"""The grid U-Nets: the lattice that they are on, what they are averaged over, what trains them."""

import pytest
import torch

from sparsefield.model.field import fitted_form
from sparsefield.model.grid_unet import (
    FlowContext,
    GridUNets,
    Lattice,
    feature_count,
    fill_observed,
    turned,
    turned_back,
)
from sparsefield.place import UNIT_SQUARE, Domain, Observed, grid_coords

SIDE, CHANNELS = 8, 2
CELLS = Lattice(SIDE, SIDE, UNIT_SQUARE)
PIXELS = grid_coords(SIDE, SIDE)[None]


def made(**settings) -> GridUNets:
    torch.manual_seed(0)
    unets = GridUNets(CHANNELS, width=8, **settings)
    for name, parameter in unets.named_parameters():
        if "conv_2" in name or "last" in name:  # which start at 0
            torch.nn.init.normal_(parameter, std=0.1)
    return unets


def some_features() -> torch.Tensor:
    features = torch.randn(1, feature_count(CHANNELS), SIDE, SIDE)
    features[:, :1] = (features[:, :1] > 0.8).float()
    return features.contiguous(memory_format=torch.channels_last)


def predicted(unets: GridUNets, features: torch.Tensor) -> torch.Tensor:
    """Shift and log of the scale in the cells (4, h, w)."""
    found = unets.at(unets(features), PIXELS, CELLS)
    return torch.cat(found[:2], dim=2)[0].T.unflatten(1, (SIDE, SIDE)).detach()


# --- the lattice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("domain, box, observations, shape", [
    (UNIT_SQUARE, UNIT_SQUARE, 204, (32, 32)), (UNIT_SQUARE, UNIT_SQUARE, 3, (8, 8)),
    (Domain(1, 0.25), Domain(1, 0.25), 204, (16, 64)), (Domain(1, 0), Domain(1, 0), 20, (8, 44)),
    (UNIT_SQUARE, Domain(1, 2), 204, (64, 32)),  # of the same size around the domain
])
def test_cells_are_as_fine_as_the_observations_are_dense(domain, box, observations, shape):
    assert Lattice.of(observations, domain, box)[:2] == shape


def test_values_are_averaged_in_the_cells_where_they_lie():
    coords = torch.tensor([[[0.1, 0.3], [0.2, 0.35], [0.9, 0.05], [1.0, 0.5]]])
    lattice = Lattice(2, 2, Domain(1, 0.5))
    mask, mean = lattice.scatter_mean(torch.tensor([[[1.0], [3.0], [5.0], [7.0]]]), coords)
    assert mask[0, :, 0].tolist() == [0, 1, 1, 1]
    assert mean[0, :, 0].tolist() == [0, 5, 2, 7]


def test_a_cell_shows_the_point_in_its_middle():
    coords = torch.tensor([[[0.1, 0.3], [0.2, 0.35], [0.9, 0.05], [0.3, 0.35]]])
    mask, index = Lattice(2, 2, Domain(1, 0.5)).middlemost(coords)
    assert mask[0, :, 0].tolist() == [0, 1, 1, 0]
    assert index[0].tolist() == [0, 2, 1, 0]  # of two that are equally near, the first


def test_a_cell_of_many_points_shows_as_much_of_a_draw_as_a_cell_of_one():
    """Means of a cell's z varied less than what was learnt from: fine samples were too smooth."""
    unets, features = made(flow_width=8), some_features()
    fine = grid_coords(2 * SIDE, 2 * SIDE)[None]
    context = unets.flow_context(features, unets(features), fine, CELLS)
    assert context.seen.all() and context.shown.unique().numel() == SIDE**2
    shown, z = torch.randn(1, SIDE**2, CHANNELS), torch.zeros(1, 4 * SIDE**2, CHANNELS)
    z[:, context.shown[0]] = shown
    coarse = unets.flow_context(features, unets(features), PIXELS, CELLS)
    torch.testing.assert_close(unets.velocity(z, THETA, context._replace(coords=PIXELS), CELLS),
                               unets.velocity(shown, THETA, coarse, CELLS))


def test_cells_ask_the_closed_form_where_their_observations_are():
    coords = torch.tensor([[[0.05, 0.6], [0.25, 0.8], [0.9, 0.1]]])
    places = Lattice(2, 2, UNIT_SQUARE).cell_queries(coords)[0]
    expected = [[0.25, 0.25], [0.9, 0.1], [0.15, 0.7], [0.75, 0.75]]
    torch.testing.assert_close(places, torch.tensor(expected))
    assert torch.equal(CELLS.cell_queries(PIXELS[:, ::3])[0], PIXELS[0])


def test_cells_know_what_was_measured_in_them_wherever_it_was():
    generator, count = torch.Generator().manual_seed(0), 60
    lattice = Lattice.of(count, UNIT_SQUARE, UNIT_SQUARE)
    own = torch.randperm(lattice.height * lattice.width, generator=generator)[:count]
    shift = 0.8 * (torch.rand(count, 2, generator=generator) - 0.5)
    coords = (lattice.coords()[own] + shift / lattice.width)[None]
    values = torch.rand(1, count, 1, generator=generator) - 0.5
    form = fitted_form(Observed(coords, values), coords, lattice)
    mask, _, mean, log_sd, *_ = form.features[0].flatten(1)
    assert torch.equal(mask.nonzero()[:, 0], own.sort().values)
    known = (values - values.mean()) / values.std(correction=0)
    torch.testing.assert_close(mean[own], known[0, :, 0], rtol=0, atol=1e-2)
    assert log_sd[own].max() < log_sd[mask == 0].min()


def test_observed_cells_are_filled_from_their_neighbours():
    cells = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(1, 2, 1, 1)
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 1], mask[0, 0, 1, 2] = 1, 1
    filled = fill_observed(cells, mask)
    assert torch.equal(filled[:, :, 2:], cells[:, :, 2:])
    assert torch.equal(filled[:, :, 0], cells[:, :, 0])
    # Its own 5 and the observed 6 beside it do not count.
    around = (0 + 2 * 1 + 2 + 2 * 4 + 8 + 2 * 9 + 10) / 10
    torch.testing.assert_close(filled[0, :, 1, 1], torch.tensor([around, around]))
    assert torch.equal(fill_observed(cells, torch.ones(1, 1, 4, 4)), cells)


# --- before the flow -----------------------------------------------------------------------------


def test_what_is_turned_can_be_turned_back():
    x = torch.randn(2, 3, SIDE, SIDE)
    for number in range(8):
        assert torch.equal(turned_back(turned(x, number), number), x)
        assert torch.equal(turned(x, number), x) == (number == 0)


@pytest.mark.parametrize(("symmetries", "kept"), [(8, range(8)), (4, range(4)), (1, [0])])
def test_a_prediction_is_as_symmetric_as_the_training_data(symmetries, kept):
    unets, features = made(symmetries=symmetries).eval(), some_features()
    as_it_is = predicted(unets, features)
    for number in range(8):
        again = turned_back(predicted(unets, turned(features, number)), number)
        assert torch.allclose(again, as_it_is, atol=1e-5) == (number in kept)


def test_in_training_nothing_is_averaged():
    features = some_features()
    assert torch.equal(predicted(made().train(), features),
                       predicted(made(symmetries=1).eval(), features))


def test_the_scale_does_not_train_the_shift():
    unets = made().train()
    unets.at(unets(some_features()), PIXELS, CELLS).log_scale.sum().backward()
    trained = {name for name, p in unets.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained and all(name.startswith("scale.") for name in trained)


def test_what_is_predicted_in_observed_cells_is_not_used():
    unets, features, anywhere = made().eval(), some_features(), torch.rand(1, 200, 2)
    mask, output = features[:, :1], unets(features)
    garbled = torch.where(mask > 0, 100.0, output)
    for found, expected in zip(unets.at(garbled, anywhere, CELLS, mask)[:2],
                               unets.at(output, anywhere, CELLS, mask)[:2], strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.equal(unets.at(garbled, anywhere, CELLS).shift,
                           unets.at(output, anywhere, CELLS).shift)


# --- the flow ------------------------------------------------------------------------------------


@pytest.fixture
def flow() -> tuple[GridUNets, FlowContext]:
    unets, features = made(flow_width=8), some_features()
    torch.nn.init.normal_(unets.flow.last.weight)
    return unets, unets.flow_context(features, unets(features), PIXELS, CELLS)


THETA = torch.tensor([0.7])


def test_a_velocity_sees_the_draw_around_it_and_the_angle(flow):
    unets, context = flow
    z = torch.zeros(1, SIDE**2, CHANNELS, requires_grad=True)
    velocity = unets.velocity(z, THETA, context, CELLS)[..., :CHANNELS]
    velocity[0, 0].sum().backward()
    assert z.grad[0, 1].abs().max() > 0 and z.grad[0, -1].abs().max() > 0
    other = unets.velocity(z, torch.tensor([0.2]), context, CELLS)[..., :CHANNELS]
    assert not torch.allclose(other, velocity)


def test_the_first_layer_in_two_parts_is_the_first_layer():
    unets, features = made(flow_width=8), some_features()
    z, output = torch.randn(1, SIDE**2, CHANNELS), unets(features)
    draw = torch.cat([z, torch.ones(1, SIDE**2, 1), THETA.cos().expand(1, SIDE**2, 1),
                      THETA.sin().expand(1, SIDE**2, 1)], dim=2)
    whole = torch.cat([features, output, CELLS.as_picture(draw)], dim=1)
    expected = CELLS.sample(fill_observed(unets.flow(whole)[0], features[:, :1]), PIXELS)
    context = unets.flow_context(features, output, PIXELS, CELLS)
    found = unets.velocity(z, THETA, context, CELLS)[..., :CHANNELS]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
