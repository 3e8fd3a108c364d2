"""A model and a sampler: what a draw depends on, and what it costs."""

import pytest
import torch
from torch import nn

from sparsefield.errors import UserError
from sparsefield.flow.sampling import sample
from sparsefield.model.blocks import cut_blocks, nearby
from sparsefield.model.field import GaussianModel
from sparsefield.place import Observed, grid_coords
from train_mamba_v2 import MAMBADiffusionV2

SMALL = dict(d_model=16, num_layers=2, perceiver_iterations=1, perceiver_heads=2, neighbours=4)


def scene(fields: int = 2, inputs: int = 15, side: int = 8):
    generator = torch.Generator().manual_seed(0)
    queries = grid_coords(side, side).expand(fields, -1, -1)
    coords = torch.rand(fields, inputs, 2, generator=generator)
    values = torch.sin(6 * coords[..., :1] + torch.arange(3) + torch.arange(fields)[:, None, None])
    return queries, coords, values * 0.9


def awake(model: nn.Module) -> nn.Module:
    nn.init.normal_(model.decoder[-1].weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return awake(MAMBADiffusionV2(**SMALL))


class Counting(GaussianModel):
    """The closed form, counting calls and the draws in each."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def velocity(self, z, theta, state, done=None):
        self.sizes.append(len(z))
        return super().velocity(z, theta, state, done)


@pytest.mark.parametrize("untrained", [GaussianModel(), MAMBADiffusionV2(**SMALL).eval()])
@pytest.mark.parametrize("steps, points", [(1, 4096), (4, 4096), (2, 20)])
def test_an_untrained_model_gives_the_gaussian_draw(untrained, steps, points):
    places = scene()
    seeds = [[1, 2, 3], [4, 5, 6]]
    result = sample(untrained, *places, seeds=seeds, num_steps=steps, points=points, clip=False)
    form = untrained.encode(Observed(*places[1:]), places[0])
    z = form.noise([torch.Generator().manual_seed(seed) for own in seeds for seed in own])
    expected = form.mean[:, None] + form.sd[:, None] * z.unflatten(0, (2, 3))
    assert torch.equal(result.values, expected)
    assert torch.equal(result.mean, form.mean)


@pytest.mark.parametrize("method", ["heun", "sde", "ddim"])
def test_a_draw_depends_on_its_seed_and_field_alone(model, method):
    places = scene(fields=3)
    seeds = [[7, 8], [9, 10], [11, 12]]
    options = {"method": method, "num_steps": 3}
    together = sample(model, *places, seeds=seeds, **options).values
    alone = sample(model, *(part[1:2] for part in places), seeds=[[10]], **options).values
    torch.testing.assert_close(together[1, 1], alone[0, 0], rtol=0, atol=2e-3)
    assert (together[1, 0] - together[1, 1]).abs().mean() > 0.01


def test_the_steps_of_the_adaptive_solver_are_shared_within_its_tolerance(model):
    places, seeds = scene(fields=2), [[7, 8], [9, 10]]
    options = {"method": "adaptive", "tolerance": 1e-5}  # of a step; hundreds of them add up
    together = sample(model, *places, seeds=seeds, **options).values
    alone = sample(model, *(part[1:] for part in places), seeds=[[10]], **options).values
    torch.testing.assert_close(together[1, 1], alone[0, 0], rtol=0, atol=5e-3)
    assert (together[1, 0] - together[1, 1]).abs().mean() > 0.01


def test_draws_share_the_first_evaluation():
    counting = Counting()
    result = sample(counting, *scene(), seeds=[[0] * 5] * 2, num_steps=3)
    assert counting.sizes == [2] + [10] * 4 and result.nfe == 5


def test_a_call_holds_no_more_than_it_may():
    counting = Counting()
    calls = []
    sample(counting, *scene(fields=1), seeds=[list(range(6))], num_steps=2, points=128,
           progress=lambda done, total: calls.append((done, total)))
    assert counting.sizes == [1, 2, 2, 2, 2, 2, 2]
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1)) and len(calls) >= 2


def test_the_mean_has_no_noise(model):
    places = scene()
    one, other = (sample(model, *places, seeds=[[s], [s]], method="mean").values for s in (0, 1))
    assert torch.equal(one, other)
    assert torch.equal(one[:, 0], sample(model, *places, seeds=[[3], [4]], num_steps=2).mean)


def test_in_bfloat16_the_draw_is_the_same_within_its_rounding(model):
    places, settings = scene(), dict(seeds=[[0, 1], [2, 3]], clip=False)
    exact = sample(model, *places, **settings)
    rounded = sample(model, *places, bfloat16=True, **settings)
    spread = (exact.values - exact.values.mean(dim=1, keepdim=True)).std()
    assert 0 < (rounded.values - exact.values).abs().mean() < 0.05 * spread
    untrained = MAMBADiffusionV2(**SMALL).eval()
    one, other = (sample(untrained, *places, bfloat16=b, **settings).values for b in (False, True))
    assert torch.equal(one, other)


def test_progress_counts_blocks_of_all_evaluations(model):
    calls = []
    sample(model, *scene(fields=1), seeds=[[0, 1]], num_steps=2, points=40,
           progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == [
        k + 1 for k in range(len(calls))]


def test_noise_in_the_values_reaches_the_closed_form(model):
    _, coords, values = scene(fields=1)
    exact = sample(model, coords, coords, values, seeds=[[0]], method="mean")
    noisy = sample(model, coords, coords, values, seeds=[[0]], method="mean",
                   noise_sd=torch.full_like(values, 0.5))
    assert (exact.mean - values).abs().max() < 0.02 < (noisy.mean - values).abs().max()


def test_blocks_hold_every_query_once():
    queries = scene(fields=2, side=12)[0]
    blocks = cut_blocks(queries, 30, 15)
    answered = torch.cat([block.index[:, : block.core] for block in blocks], dim=1)
    assert torch.equal(answered.sort(dim=1).values, torch.arange(144).expand(2, -1))
    assert all(block.index.shape[1] == block.core + 15 for block in blocks)
    assert all(len(set(block.index[0].tolist())) == block.core + 15 for block in blocks)


def test_a_block_sees_the_nearest_observations_enlarged():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(1, 500, 2, generator=generator)
    queries = 0.25 + 0.1 * torch.rand(1, 20, 2, generator=generator)
    coords, near, index = nearby(queries, inputs, 30)
    assert near.shape == (1, 30, 2) and near.min() >= 0 and near.max() <= 1
    assert torch.cat([coords, near], dim=1).amax(dim=1).max() == 1
    assert (inputs[0, index[0]] - queries.mean(dim=1)).norm(dim=1).max() < 0.3
    assert nearby(queries, inputs, None)[2] is None


@pytest.mark.parametrize("change, words", [
    ({"seeds": [[0]]}, "give one each"), ({"seeds": [[0], [1, 2]]}, "equally many seeds"),
    ({"seeds": [[], []]}, "at least one"),
])
def test_shapes_that_do_not_agree(model, change, words):
    with pytest.raises(ValueError, match=words):
        sample(model, *scene(), **change)


@pytest.mark.parametrize("value, words", [(0, "cannot be left out"), (-5, "points is -5")])
def test_calls_that_answer_nothing_are_refused(model, value, words):
    with pytest.raises(UserError, match=words):
        sample(model, *scene(), seeds=[[0], [1]], points=value)
