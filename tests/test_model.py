"""V2 and its parts: what information can flow where, what is refused, what is learnt."""

import pytest
import torch
from torch import nn

from sparsefield import flow
from sparsefield.attention import Attention
from sparsefield.coords import grid_coords
from sparsefield.data import Batch
from sparsefield.errors import UserError
from sparsefield.kriging import ordinary_kriging
from sparsefield.mamba import Mamba
from sparsefield.ordering import ORDERS, hilbert_index, token_order
from train_mamba_v2 import BidirectionalMAMBA, LightweightPerceiver, MAMBADiffusionV2

DEFAULT_PARAMETERS = 6837539
SMALL = dict(d_model=32, num_layers=2, perceiver_iterations=1, perceiver_heads=4, neighbours=4)


def make_batch(channels: int = 3, inputs: int = 12, queries: int = 20, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def places(count: int) -> torch.Tensor:
        return torch.rand(size, count, 2, generator=generator)

    return Batch(
        input_coords=places(inputs),
        input_values=normal(size, inputs, channels).clamp(-1, 1),
        query_coords=places(queries),
        x_0=normal(size, queries, channels),
        x_1=normal(size, queries, channels).clamp(-1, 1),
        t=torch.linspace(0, 0.9, size),
    )


def velocity(model: nn.Module, batch: Batch) -> torch.Tensor:
    x = flow.interpolate(batch.x_0, batch.x_1, batch.t)
    return model(x, batch.query_coords, batch.t, batch.input_coords, batch.input_values)


def wake(model: MAMBADiffusionV2) -> MAMBADiffusionV2:
    """A model starts as kriging, its last layer zero; give that layer something to say."""
    nn.init.normal_(model.decoder[-1].weight, generator=torch.Generator().manual_seed(1))
    return model


def test_default_size_is_pinned():
    count = sum(p.numel() for p in MAMBADiffusionV2().parameters())
    assert count == DEFAULT_PARAMETERS
    assert 6.5e6 <= count <= 7.5e6


def test_block_has_the_names_and_shapes_of_mamba_ssm():
    shapes = {name: tuple(p.shape) for name, p in Mamba(64).named_parameters()}
    assert shapes == {
        "A_log": (128, 16), "D": (128,), "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4), "conv1d.bias": (128,), "x_proj.weight": (36, 128),
        "dt_proj.weight": (128, 4), "dt_proj.bias": (128,), "out_proj.weight": (64, 128),
    }


@pytest.mark.parametrize("reverse", [False, True])
def test_block_reads_in_one_direction_only(reverse):
    block, x = Mamba(16), torch.randn(1, 9, 16, requires_grad=True)
    block(x, reverse)[0, 4].sum().backward()
    touched = x.grad[0].abs().sum(dim=1) > 0
    assert touched.tolist() == [(k >= 4) if reverse else (k <= 4) for k in range(9)]


def test_steps_depend_on_the_input():
    """Selectivity: doubling a linear, time-invariant system's input would double its output."""
    block, x = Mamba(16).double(), torch.randn(1, 9, 16, dtype=torch.float64)
    assert not torch.allclose(block(2 * x), 2 * block(x), rtol=1e-3)


def test_last_token_moves_first_output():
    stack, x = BidirectionalMAMBA(16, num_layers=2), torch.randn(1, 30, 16, requires_grad=True)
    stack(x)[0, 0].sum().backward()
    assert x.grad[0, -1].abs().sum() > 0


def test_one_way_stack_does_not_look_ahead():
    stack = BidirectionalMAMBA(16, num_layers=2, two_way=False)
    x = torch.randn(1, 30, 16, requires_grad=True)
    stack(x)[0, 0].sum().backward()
    assert (x.grad[0, 1:] == 0).all()


def test_reversed_input_gives_reversed_output_with_tied_weights():
    stack = BidirectionalMAMBA(16, num_layers=4).double()
    stack.backward_layers.load_state_dict(stack.forward_layers.state_dict())
    half = stack.merge.weight[:, :16].detach().clone()
    with torch.no_grad():
        stack.merge.weight[:, 16:] = half
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    torch.testing.assert_close(stack(x.flip(1)), stack(x).flip(1))


@pytest.mark.parametrize("self_attention", [True, False])
def test_queries_attend_to_each_other_unless_told_not_to(self_attention):
    perceiver = LightweightPerceiver(16, iterations=1, heads=4, self_attention=self_attention)
    queries = torch.randn(1, 5, 16, requires_grad=True)
    coords = torch.rand(1, 5, 2)
    perceiver(queries, torch.randn(1, 3, 16), coords, torch.rand(1, 3, 2))[0, 0].sum().backward()
    touched = queries.grad[0].abs().sum(dim=1) > 0
    assert touched.tolist() == [True] + [self_attention] * 4


def test_attention_bias_is_the_squared_distance():
    attention = Attention(16, heads=4).double()
    x, context = (torch.randn(2, n, 16, dtype=torch.float64) for n in (5, 7))
    x_at, context_at = (torch.rand(2, n, 2, dtype=torch.float64) for n in (5, 7))
    q = attention._heads(attention.q_proj(x))
    k, v = map(attention._heads, attention.kv_proj(context).chunk(2, dim=-1))
    square = (x_at[:, :, None] - context_at[:, None]).square().sum(dim=-1)
    scores = q @ k.mT / 2 - attention.log_a.exp()[:, None, None] * square[:, None]
    expected = attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    # The attention itself runs in float32.
    y = attention._near(q, k, v, x_at, context_at).double()
    torch.testing.assert_close(
        attention.out_proj(y.transpose(1, 2).flatten(2)), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("prior", ["kriging", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_parameter_gets_a_gradient(prior, channels):
    model = wake(MAMBADiffusionV2(**SMALL, prior=prior, channels=channels))
    flow.velocity_loss(model, make_batch(channels)).mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_untrained_model_is_kriging():
    """At t = 0 the data estimate of an untrained model is the kriging mean, whatever the noise."""
    model, batch = MAMBADiffusionV2(**SMALL), make_batch()
    t = torch.zeros(2)
    v = velocity(model, batch._replace(t=t))
    mean = ordinary_kriging(batch.input_coords, batch.input_values, batch.query_coords).mean
    torch.testing.assert_close(flow.data_estimate(batch.x_0, v, t), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_the_given_points_does_not_matter(order):
    """Tokens are sorted along the curve; "concat" alone reads them as they come."""
    model, batch = wake(MAMBADiffusionV2(**SMALL, order=order)).eval(), make_batch()
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    moved = batch._replace(
        query_coords=batch.query_coords[:, shuffled],
        x_0=batch.x_0[:, shuffled],
        x_1=batch.x_1[:, shuffled],
    )
    same = torch.allclose(velocity(model, moved), velocity(model, batch)[:, shuffled], atol=1e-3)
    assert same == (order != "concat")


def test_prepared_points_change_nothing():
    model, batch = wake(MAMBADiffusionV2(**SMALL)).eval(), make_batch()
    places = batch.query_coords, batch.input_coords, batch.input_values
    x = flow.interpolate(batch.x_0, batch.x_1, batch.t)
    with_it = model(x, places[0], batch.t, *places[1:], prepared=model.prepare(*places))
    torch.testing.assert_close(with_it, velocity(model, batch), rtol=0, atol=0)


def test_hilbert_curve_visits_every_cell_by_single_steps():
    coords = grid_coords(16, 16)
    path = coords[hilbert_index(coords).argsort()]
    assert hilbert_index(coords).unique().numel() == 256
    steps = (path[1:] - path[:-1]).abs().sum(dim=1) * 16
    torch.testing.assert_close(steps, torch.ones(255))


def test_hilbert_order_is_the_same_at_every_resolution():
    """A query between two others in the order of a coarse grid stays so on a finer one."""
    coarse, fine = grid_coords(8, 8)[None], grid_coords(24, 24)[None]
    order = token_order(coarse, fine, "hilbert")[0]
    coarse_only = order[order < 64]
    assert coarse_only.tolist() == hilbert_index(coarse[0]).argsort().tolist()


@pytest.mark.parametrize("legal", [
    dict(num_layers=12, perceiver_iterations=3, perceiver_heads=16),
    dict(d_state=5, order="concat", prior="none", neighbours=0),
    dict(distance_attention=False, dropout=0.1),
])
def test_other_legal_values_work(legal):
    model = MAMBADiffusionV2(**{**SMALL, "d_model": 64, **legal})
    assert velocity(model, make_batch()).shape == (2, 20, 3)


@pytest.mark.parametrize("illegal, named", [
    (dict(num_layers=7), "num_layers=7"),
    (dict(num_layers=0), "num_layers=0"),
    (dict(perceiver_heads=5), "heads=5"),
    (dict(perceiver_heads=0), "heads=0"),
    (dict(perceiver_iterations=0), "perceiver_iterations=0"),
    (dict(d_model=0), "d_model=0"),
    (dict(d_state=0), "d_state=0"),
    (dict(dropout=1.0), "dropout=1.0"),
    (dict(prior="hope"), "prior='hope'"),
    (dict(order="random"), "order='random'"),
    (dict(neighbours=-1), "neighbours=-1"),
])
def test_illegal_values_are_refused_by_name(illegal, named):
    with pytest.raises(UserError, match=named):
        MAMBADiffusionV2(**{**SMALL, **illegal})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_observations_and_repeated_ones(count):
    batch = make_batch(inputs=count)
    model = MAMBADiffusionV2(**SMALL)
    assert velocity(model, batch).isfinite().all()
    twice = batch._replace(
        input_coords=batch.input_coords.repeat(1, 2, 1),
        input_values=batch.input_values.repeat(1, 2, 1),
    )
    assert velocity(model, twice).isfinite().all()


def test_one_batch_is_learnt_by_heart():
    """Same points, noise and times at every step: the loss must fall far below kriging's."""
    torch.manual_seed(0)
    model, batch = MAMBADiffusionV2(**SMALL), make_batch()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(250):
        loss = flow.velocity_loss(model, batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
