"""V1, V2 and their parts: what information can flow where, what is refused, what is learnt."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from small import ROOT
from sparsefield.errors import UserError
from sparsefield.flow import path
from sparsefield.gaussian import condition
from sparsefield.model.attention import Attention
from sparsefield.model.field import FieldModel
from sparsefield.model.mamba import Mamba
from sparsefield.model.tokens import ORDERS, hilbert_index
from sparsefield.place import Observed, grid_coords
from train_mamba import MAMBADiffusion
from train_mamba_v2 import BidirectionalMAMBA, LightweightPerceiver, MAMBADiffusionV2

SMALL_V1 = dict(d_model=32, num_layers=2, heads=4, neighbours=4)
SMALL = dict(d_model=32, num_layers=2, perceiver_iterations=1, perceiver_heads=4, neighbours=4)


class Scene(NamedTuple):
    """Points of some fields, and where their paths begin and end."""

    query_coords: Tensor
    input_coords: Tensor
    input_values: Tensor
    z_0: Tensor
    x_1: Tensor
    theta: Tensor

    @property
    def observed(self) -> Observed:
        return Observed(self.input_coords, self.input_values)


def make_scene(channels: int = 3, inputs: int = 12, queries: int = 20, size: int = 2) -> Scene:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def places(count: int) -> Tensor:
        return torch.rand(size, count, 2, generator=generator)

    return Scene(places(queries), places(inputs), normal(size, inputs, channels).clamp(-1, 1),
                 normal(size, queries, channels), normal(size, queries, channels).clamp(-1, 1),
                 torch.linspace(0, 1.4, size))


def velocity(model: FieldModel, scene: Scene) -> Tensor:
    state = model.encode(scene.observed, scene.query_coords)
    z = path.interpolate(scene.z_0, (scene.x_1 - state.mean) / state.sd, scene.theta)
    return model.velocity(path.seen(z, scene.theta), scene.theta, state)


def loss_of(model: FieldModel, scene: Scene) -> Tensor:
    state = model.encode(scene.observed, scene.query_coords)
    z_1 = (scene.x_1 - state.mean) / state.sd
    return (velocity(model, scene) - path.target(scene.z_0, z_1, scene.theta)).square().mean()


def wake(model: FieldModel) -> FieldModel:
    """A model starts as the closed form, its last layer zero; give that layer something to say."""
    nn.init.normal_(model.decoder[-1].weight, generator=torch.Generator().manual_seed(1))
    return model


# --- V1 ------------------------------------------------------------------------------------------


def test_v1_reads_tokens_one_way():
    """In the order [context, queries], a query sees earlier tokens only: V1's handicap."""
    model = wake(MAMBADiffusion(**SMALL_V1, order="concat", prior="none")).eval()
    scene, other = make_scene(), make_scene()
    other.z_0[:, 10] += 1
    changed = (velocity(model, other) - velocity(model, scene)).abs().amax(dim=(0, 2)) > 0
    assert not changed[:10].any() and changed[10:].all()


@pytest.mark.parametrize("residual", [False, True])
def test_the_residual_of_v1_hands_the_queries_on(residual):
    """With a cross-attention that gives nothing, only the residual tells queries apart."""
    model = wake(MAMBADiffusion(**SMALL_V1, cross_attention_residual=residual, prior="none"))
    nn.init.zeros_(model.cross_attention.out_proj.weight)
    assert (velocity(model, make_scene()).std(dim=1).max() > 1e-3) == residual


def test_both_quick_runners_train_alike():
    """A comparison compares models only while the runners agree on everything else. V1 as
    described starts from noise and has no grid U-Nets."""
    environment = {**os.environ, "QUICK": "1", "DRY_RUN": "1", "DEVICE": "cpu",
                   "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    v1, v2 = (json.loads(subprocess.run(
        [f"./run_{name}_training.sh"], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=True).stdout.partition("settings: ")[2].splitlines()[0])
        for name in ("mamba", "mamba_v2"))
    assert v1["d_model"] == 2 * v2["d_model"]
    assert v1["prior"] == "none" and v1["unet_width"] == v1["flow_unet_width"] == 0
    of_models = {"d_model", "num_layers", "prior", "unet_width", "flow_unet_width"}
    for name in (set(v1) & set(v2)) - of_models - {"save_dir"}:
        assert v1[name] == v2[name], name


# --- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_block_reads_in_one_direction_only(reverse):
    block, x = Mamba(16), torch.randn(1, 9, 16, requires_grad=True)
    block(x, reverse)[0, 4].sum().backward()
    touched = x.grad[0].abs().sum(dim=1) > 0
    assert touched.tolist() == [(k >= 4) if reverse else (k <= 4) for k in range(9)]


@pytest.mark.parametrize("two_way", [True, False])
def test_the_last_token_moves_the_first_output_unless_all_layers_read_forward(two_way):
    stack = BidirectionalMAMBA(16, num_layers=2, two_way=two_way)
    x = torch.randn(1, 30, 16, requires_grad=True)
    stack(x)[0, 0].sum().backward()
    assert bool(x.grad[0, 1:].any()) == two_way


@pytest.mark.parametrize("self_attention", [True, False])
def test_queries_attend_to_each_other_unless_told_not_to(self_attention):
    perceiver = LightweightPerceiver(16, iterations=1, heads=4, self_attention=self_attention)
    queries = torch.randn(1, 5, 16, requires_grad=True)
    coords = torch.rand(1, 5, 2)
    perceiver(queries, torch.randn(1, 3, 16), coords, torch.rand(1, 3, 2))[0, 0].sum().backward()
    touched = queries.grad[0].abs().sum(dim=1) > 0
    assert touched.tolist() == [True] + [self_attention] * 4


def test_attention_bias_is_the_squared_distance():
    attention = Attention(16, heads=4)
    x, context = (torch.randn(2, n, 16) for n in (5, 7))
    x_at, context_at = (torch.rand(2, n, 2) for n in (5, 7))
    found = attention(x, context, x_at, context_at)
    exact = attention.double()
    projected = exact.q_proj(x.double()), *exact.kv_proj(context.double()).chunk(2, dim=-1)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in projected)
    square = (x_at[:, :, None] - context_at[:, None]).double().square().sum(dim=-1)
    scores = q @ k.mT / 2 - exact.log_a.exp()[:, None, None] * square[:, None]
    expected = exact.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


# --- whole models --------------------------------------------------------------------------------


def test_default_sizes():
    assert sum(p.numel() for p in MAMBADiffusionV2().parameters()) == 6_841_635
    assert 14e6 < sum(p.numel() for p in MAMBADiffusion().parameters()) < 16e6


@pytest.mark.parametrize("model_class, settings", [
    (MAMBADiffusionV2, SMALL), (MAMBADiffusionV2, {**SMALL, "prior": "none", "channels": 1}),
    (MAMBADiffusion, SMALL_V1), (MAMBADiffusion, {**SMALL_V1, "cross_attention_residual": True}),
])
def test_every_parameter_gets_a_gradient(model_class, settings):
    model = wake(model_class(**settings))
    loss_of(model, make_scene(settings.get("channels", 3))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_an_untrained_model_is_the_closed_form():
    model, scene = MAMBADiffusionV2(**SMALL), make_scene()
    assert (velocity(model, scene) == 0).all()
    form = model.closed_form(scene.observed, scene.query_coords)
    answer = condition(scene.input_coords, scene.input_values).at(scene.query_coords)
    assert torch.equal(form.mean, answer.mean) and torch.equal(form.sd, answer.sd)


def test_at_the_start_the_draw_is_not_seen():
    model, scene = wake(MAMBADiffusionV2(**SMALL)).eval(), make_scene()
    scene = scene._replace(theta=torch.zeros(2))
    opposite = scene._replace(z_0=-scene.z_0)
    torch.testing.assert_close(velocity(model, scene), velocity(model, opposite))


@pytest.mark.parametrize("order", ORDERS)
def test_order_of_the_given_points_does_not_matter(order):
    """Tokens are sorted along the curve; "concat" alone reads them as they come."""
    model, scene = wake(MAMBADiffusionV2(**SMALL, order=order)).eval(), make_scene()
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    moved = scene._replace(query_coords=scene.query_coords[:, shuffled],
                           z_0=scene.z_0[:, shuffled], x_1=scene.x_1[:, shuffled])
    same = torch.allclose(velocity(model, moved), velocity(model, scene)[:, shuffled], atol=1e-3)
    assert same == (order != "concat")


def test_draws_of_a_field_share_what_its_points_determine():
    model, scene = wake(MAMBADiffusionV2(**SMALL)).eval(), make_scene(size=1)
    state = model.encode(scene.observed, scene.query_coords)
    z, theta = torch.randn(3, 20, 3), torch.ones(3)
    together = model.velocity(z, theta, state.repeat(3))
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1],
                                   model.velocity(z[k : k + 1], theta[:1], state),
                                   rtol=1e-4, atol=1e-4)


def test_hilbert_curve_visits_every_cell_by_single_steps():
    coords = grid_coords(16, 16)
    path = coords[hilbert_index(coords).argsort()]
    assert hilbert_index(coords).unique().numel() == 256
    steps = (path[1:] - path[:-1]).abs().sum(dim=1) * 16
    torch.testing.assert_close(steps, torch.ones(255))


@pytest.mark.parametrize("legal", [
    dict(num_layers=12, perceiver_iterations=3, perceiver_heads=16),
    dict(d_state=5, order="concat", prior="none", neighbours=0),
    dict(distance_attention=False, dropout=0.1),
    dict(num_layers=0), dict(perceiver_iterations=0),
])
def test_other_legal_values_work(legal):
    model = MAMBADiffusionV2(**{**SMALL, "d_model": 64, **legal})
    assert velocity(model, make_scene()).shape == (2, 20, 3)


@pytest.mark.parametrize("model_class, small, illegal", [
    *((MAMBADiffusionV2, SMALL, illegal) for illegal in (
        dict(num_layers=7), dict(num_layers=-2), dict(perceiver_heads=5), dict(perceiver_heads=0),
        dict(perceiver_iterations=-1), dict(d_model=0), dict(d_state=0), dict(dropout=1.0),
        dict(prior="hope"), dict(order="random"), dict(neighbours=-1))),
    *((MAMBADiffusion, SMALL_V1, illegal) for illegal in (
        dict(heads=5), dict(num_layers=0), dict(dropout=1.0))),
])
def test_illegal_values_are_refused_by_name(model_class, small, illegal):
    (name, value), = illegal.items()
    with pytest.raises(UserError, match=f"{name.removeprefix('perceiver_')}={value!r}"):
        model_class(**{**small, **illegal})


@pytest.mark.parametrize("count", [1, 3])
def test_few_observations_and_repeated_ones(count):
    scene = make_scene(inputs=count)
    model = wake(MAMBADiffusionV2(**SMALL))
    assert velocity(model, scene).isfinite().all()
    twice = scene._replace(input_coords=scene.input_coords.repeat(1, 2, 1),
                           input_values=scene.input_values.repeat(1, 2, 1))
    assert velocity(model, twice).isfinite().all()


def test_one_batch_is_learnt_by_heart():
    """Same points, draws and angles at every step: the loss falls far below the closed form's."""
    torch.manual_seed(0)
    model, scene, losses = MAMBADiffusionV2(**SMALL), make_scene(), []
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        losses.append(loss_of(model, scene))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.1 * losses[0]
