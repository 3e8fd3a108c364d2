"""Closed forms of a batch together, as a GPU has them, against those of one field at a time."""

from functools import partial

import pytest
import torch

from sparsefield.data import TrainingBatches, open_data, parse_pattern
from sparsefield.data.batches import COUNTS
from sparsefield.flow.path import draw_angles
from sparsefield.train.pairs import Pairs
from sparsefield.train.together import Together
from train_mamba_v2 import MAMBADiffusionV2

SMALL = dict(d_model=16, num_layers=2, perceiver_iterations=1, perceiver_heads=2, neighbours=4)
CPU = torch.device("cpu")


def batches(size: int, data: str = "photos", pattern: str = "random:0.2") -> TrainingBatches:
    return TrainingBatches(
        open_data(data, image_size=size).train, parse_pattern(pattern), seed=0, batch_size=6,
        queries=(40, 60), draw_angles=partial(draw_angles, zero_share=0.5),
    )


def model(canvas_width: int, channels: int = 3) -> MAMBADiffusionV2:
    torch.manual_seed(0)
    return MAMBADiffusionV2(**SMALL, canvas_width=canvas_width, channels=channels)


@pytest.mark.parametrize("size, canvas_width, data, channels, pattern", [
    (16, 8, "photos", 3, "random:0.2"), (16, 0, "photos", 3, "random:0.2"),
    (17, 8, "photos", 3, "random:0.2"), (16, 8, "terrain", 1, "random:0.2"),
    (16, 8, "photos", 3, "random:0.02-0.4"),
])
def test_together_as_one_by_one(size, canvas_width, data, channels, pattern):
    net, made = model(canvas_width, channels), batches(size, data, pattern)
    together, singly = Together(net, size, size, CPU), Pairs(net, size, size, CPU)
    assert singly.together is None
    for step in (0, 3, 1, 2, 0, 700, 3):
        with torch.no_grad():
            form, _ = together(made[step], with_draws=True)
        want = singly(made[step]).form
        for name in ("mean", "sd", "spread", "loo_sd", "surprise"):
            torch.testing.assert_close(getattr(form, name), getattr(want, name), rtol=1e-3,
                                       atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
        if canvas_width:
            off = (form.sketch - want.sketch).abs()
            assert off.mean() < 1e-3  # its log sd at observed cells is that of rounding


def test_draws_go_together_like_those_of_one_field(monkeypatch):
    net, made = model(0), batches(16)
    batch = made[5]
    many = batch._replace(**{
        name: part[:1].expand(1500, *part.shape[1:]) for name, part in batch._asdict().items()
    })
    many = many._replace(draws=torch.arange(1500))
    with torch.no_grad():
        _, z = Together(net, 16, 16, CPU)(many, with_draws=True)
    own = Pairs(net, 16, 16, CPU)
    one = batch._replace(**{name: part[:1] for name, part in batch._asdict().items()})
    singly = torch.cat([
        own(one._replace(draws=torch.tensor([seed]), field=torch.tensor([-1]))).z_0
        for seed in range(1500)
    ])
    assert not torch.equal(z[0], z[1])
    difference = z[:, :, 0].T.cov() - singly[:, :, 0].T.cov()
    assert difference.abs().max() < 0.2 and difference.abs().mean() < 0.04
    between = [(draws[..., 0] * draws[..., 1]).mean().item() for draws in (z, singly)]
    assert between[0] == pytest.approx(between[1], abs=0.04)


def test_layouts_that_find_no_room_are_made_again(monkeypatch):
    net, made = model(8), batches(16)
    want = Together(net, 16, 16, CPU)
    with torch.no_grad():
        expected = [want(made[step], True) for step in range(4)]
        monkeypatch.setattr("sparsefield.gaussian.stacked.KEPT_BYTES", 1)
        short = Together(net, 16, 16, CPU)
        for step in (3, 2, 1, 0, 3):
            form, z = short(made[step], True)
            torch.testing.assert_close(form.mean, expected[step][0].mean)
            torch.testing.assert_close(z, expected[step][1], rtol=1e-3, atol=1e-3)
    kept = [len(each.of_counts[51].posteriors.slots) for each in (short, want)]
    assert kept[0] <= 6 < kept[1]


def test_few_numbers_of_points_are_at_hand():
    net, made = model(8), batches(16, pattern="random:0.02-0.9")
    together, used = Together(net, 16, 16, CPU), set()
    for step in range(0, 140, 7):
        used.add(made[step].input_index.shape[1])
        with torch.no_grad():
            together(made[step], with_draws=False)
    assert len(together.of_counts) == COUNTS < len(used)


def test_the_gpu_has_batches_together_and_fields_of_their_own_singly(monkeypatch):
    """Which way is taken is told by the layouts alone."""
    net, made = model(0), batches(16)
    pairs = Pairs(net, 16, 16, CPU)
    pairs.together = Together(net, 16, 16, CPU)
    monkeypatch.setattr(pairs, "_on_grid", lambda *_: pytest.fail("field by field"))
    pairs(made[0])
    with pytest.raises(pytest.fail.Exception):
        pairs(made[0]._replace(layout=torch.full((6,), -1)))
