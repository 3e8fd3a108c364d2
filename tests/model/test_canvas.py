"""The canvas: what it is averaged over, and what teaches it."""

import pytest
import torch
from sparsefield.model.canvas import (
    Canvas,
    Outlook,
    holding,
    laid_out,
    lattice,
    lattice_side,
    lookouts,
    read,
    sketch_width,
    spoken_for,
    turned,
    turned_back,
)

from sparsefield.model.field import fitted_form
from sparsefield.place import grid_coords

SIDE, CHANNELS = 8, 2


@pytest.fixture
def canvas() -> Canvas:
    torch.manual_seed(0)
    made = Canvas(CHANNELS, width=8)
    for name, parameter in made.named_parameters():
        if "conv_2" in name or "last" in name:  # which start at 0
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def a_sketch() -> torch.Tensor:
    made = torch.randn(1, sketch_width(CHANNELS), SIDE, SIDE)
    made[:, :1] = (made[:, :1] > 0.8).float()
    return made.contiguous(memory_format=torch.channels_last)


def shown(canvas: Canvas, sketch: torch.Tensor) -> torch.Tensor:
    """Shift and log of the scale in the cells (4, n, n)."""
    look = canvas.look(canvas(sketch), grid_coords(SIDE, SIDE)[None])
    return torch.cat(look[:2], dim=2)[0].T.unflatten(1, (SIDE, SIDE)).detach()


@pytest.mark.parametrize("number", range(8))
def test_what_is_turned_can_be_turned_back(number):
    x = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(turned_back(turned(x, number), number), x)
    assert torch.equal(turned(x, number), x) == (number == 0)


@pytest.mark.parametrize(("turns", "symmetries"), [(8, range(8)), (4, range(4)), (1, [0])])
def test_a_trained_canvas_is_as_symmetric_as_what_it_learnt_from(canvas, turns, symmetries):
    canvas.turns, sketch = turns, a_sketch()
    canvas.eval()
    as_it_is = shown(canvas, sketch)
    for number in range(8):
        again = turned_back(shown(canvas, turned(sketch, number)), number)
        assert torch.allclose(again, as_it_is, atol=1e-5) == (number in symmetries)


def test_in_training_it_looks_once(canvas):
    sketch = a_sketch()
    canvas.train()
    in_training = shown(canvas, sketch)
    canvas.eval()
    canvas.turns = 1
    assert torch.equal(shown(canvas, sketch), in_training)


def test_the_scale_does_not_teach_the_shift(canvas):
    look = canvas.look(canvas.train()(a_sketch()), grid_coords(SIDE, SIDE)[None])
    look.log_scale.sum().backward()
    taught = {name for name, p in canvas.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught and all(name.startswith("scale.") for name in taught)


def test_values_are_laid_out_in_the_cells_where_they_lie():
    coords = torch.tensor([[[0.1, 0.6], [0.2, 0.7], [0.9, 0.1], [1.0, 1.0]]])
    held, mean = laid_out(torch.tensor([[[1.0], [3.0], [5.0], [7.0]]]), coords, side=2)
    assert held[0, :, 0].tolist() == [0, 1, 1, 1]
    assert mean[0, :, 0].tolist() == [0, 5, 2, 7]


def test_cells_look_from_where_their_observations_are():
    coords = torch.tensor([[[0.05, 0.6], [0.25, 0.8], [0.9, 0.1]]])
    places = lookouts(coords, side=2)[0]
    expected = [[0.25, 0.25], [0.9, 0.1], [0.15, 0.7], [0.75, 0.75]]
    torch.testing.assert_close(places, torch.tensor(expected))


def test_pixels_look_from_their_middles_whether_observed_or_not():
    middles = lattice(SIDE)
    assert torch.equal(lookouts(middles[None, ::3], SIDE)[0], middles)


def test_cells_know_what_was_measured_in_them_wherever_it_was():
    generator, count = torch.Generator().manual_seed(0), 60
    side = lattice_side(count)
    own = torch.randperm(side**2, generator=generator)[:count]
    shift = 0.8 * (torch.rand(count, 2, generator=generator) - 0.5)
    coords = (lattice(side)[own] + shift / side)[None]
    values = torch.rand(1, count, 1, generator=generator) - 0.5
    form, _ = fitted_form(coords, coords, values, side=side)
    held, _, mean, log_sd, *_ = form.sketch[0].flatten(1)
    assert torch.equal(held.nonzero()[:, 0], own.sort().values)
    known = (values - values.mean()) / values.std(correction=0)
    torch.testing.assert_close(mean[own], known[0, :, 0], rtol=0, atol=1e-2)
    assert log_sd[own].max() < log_sd[held == 0].min()


def test_neighbours_speak_for_cells_that_hold_observations():
    canvas = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(1, 2, 1, 1)
    held = torch.zeros(1, 1, 4, 4)
    held[0, 0, 1, 1], held[0, 0, 1, 2] = 1, 1
    spoken = spoken_for(canvas, held)
    assert torch.equal(spoken[:, :, 2:], canvas[:, :, 2:])
    assert torch.equal(spoken[:, :, 0], canvas[:, :, 0])
    # Its own 5 and the held 6 beside it have no voice.
    around = (0 + 2 * 1 + 2 + 2 * 4 + 8 + 2 * 9 + 10) / 10
    torch.testing.assert_close(spoken[0, :, 1, 1], torch.tensor([around, around]))


def test_a_cell_speaks_for_itself_where_all_around_it_hold_observations():
    canvas = torch.randn(1, 2, SIDE, SIDE)
    assert torch.equal(spoken_for(canvas, torch.ones(1, 1, SIDE, SIDE)), canvas)


def test_what_held_cells_say_is_not_read(canvas):
    sketch = a_sketch()
    held, painted = holding(sketch), canvas.eval()(sketch)
    anywhere = torch.rand(1, 200, 2)
    garbled = torch.where(held > 0, 100.0, painted)
    for found, expected in zip(canvas.look(garbled, anywhere, held)[:2],
                               canvas.look(painted, anywhere, held)[:2]):
        torch.testing.assert_close(found, expected)
    assert not torch.equal(canvas.look(garbled, anywhere).shift,
                           canvas.look(painted, anywhere).shift)


@pytest.fixture
def following() -> Canvas:
    torch.manual_seed(0)
    made = Canvas(CHANNELS, width=8, flow_width=8)
    torch.nn.init.normal_(made.flow.last.weight)
    return made


def outlook_of(canvas: Canvas, coords: torch.Tensor) -> Outlook:
    sketch = a_sketch()
    return canvas.outlook(torch.cat([sketch, canvas(sketch)], dim=1), coords)


def test_a_slope_knows_what_the_draw_is_around_it(following):
    coords = grid_coords(SIDE, SIDE)[None]
    outlook, theta = outlook_of(following, coords), torch.tensor([0.7])
    z = torch.zeros(1, SIDE**2, CHANNELS, requires_grad=True)
    slope = following.follow(z, theta, outlook)[..., :CHANNELS]
    slope[0, 0].sum().backward()
    assert slope.shape == (1, SIDE**2, CHANNELS)
    assert z.grad[0, 1].abs().max() > 0 and z.grad[0, -1].abs().max() > 0
    other = following.follow(z, torch.tensor([0.2]), outlook)[..., :CHANNELS]
    assert not torch.allclose(other, slope)


def test_a_slope_tells_no_draw_from_a_draw_of_nothing(following):
    coords = grid_coords(SIDE, SIDE)[None]
    outlook, theta = outlook_of(following, coords), torch.tensor([0.7])
    few = outlook._replace(coords=coords[:, ::2])
    everywhere = following.follow(torch.zeros(1, SIDE**2, CHANNELS), theta, outlook)[:, ::2]
    seldom = following.follow(torch.zeros(1, SIDE**2 // 2, CHANNELS), theta, few)
    assert not torch.allclose(everywhere, seldom)


def test_the_first_layer_in_two_parts_is_the_first_layer(following):
    """Of painting and draw, as of both together."""
    coords = grid_coords(SIDE, SIDE)[None]
    sketch, z, theta = a_sketch(), torch.randn(1, SIDE**2, CHANNELS), torch.tensor([0.7])
    painted = torch.cat([sketch, following(sketch)], dim=1)
    draw = torch.cat([z, torch.ones(1, SIDE**2, 1), theta.cos().expand(1, SIDE**2, 1),
                      theta.sin().expand(1, SIDE**2, 1)], dim=2)
    whole = torch.cat([painted, draw.mT.unflatten(2, (SIDE, SIDE))], dim=1)
    expected = read(spoken_for(following.flow(whole)[0], holding(painted)), coords)
    found = following.follow(z, theta, following.outlook(painted, coords))[..., :CHANNELS]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_draws_of_a_field_do_not_see_each_other(following):
    coords = grid_coords(SIDE, SIDE)[None]
    z, theta = torch.randn(3, SIDE**2, CHANNELS), torch.tensor([0.7])
    outlook = outlook_of(following, coords)
    together = following.follow(z, theta.expand(3), outlook.repeat(3))
    for k in range(3):
        torch.testing.assert_close(together[k:k + 1], following.follow(z[k:k + 1], theta, outlook),
                                   rtol=1e-4, atol=1e-4)
