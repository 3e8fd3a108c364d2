"""The two stages of a training, the weights that are kept, and starts that come from another."""

import pytest
import torch
from small import settings, train

from sparsefield.errors import UserError
from sparsefield.model.checkpoint import load_checkpoint
from sparsefield.train import loop as training
from sparsefield.train.progress import Stages
from sparsefield.train.validation import Validation


@pytest.fixture(scope="module")
def started(data, tmp_path_factory):
    """A training of the start alone."""
    folder = tmp_path_factory.mktemp("started")
    train(settings(data, folder, epochs=1, start_share=1.0))
    return folder / "mamba_v2_latest.pth"


def unets_of(path) -> dict[str, torch.Tensor]:
    weights = load_checkpoint(path)["weights"]
    return {name: tensor for name, tensor in weights.items() if name.startswith("unet.")}


def is_same(one, other, part: str) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items()
               if name.startswith(f"unet.{part}."))


@pytest.mark.parametrize(("changes", "start"), [
    ({}, 50), (dict(start_share=0.2), 20), (dict(unet_width=0), 0), (dict(start_from="a.pth"), 0),
])
def test_stages_of_a_training(data, tmp_path, changes, start):
    stages = Stages.of(settings(data, tmp_path, **changes), 100)
    assert stages == (start, 100)
    assert {stages.around(step) for step in range(start)} <= {(0, start)}
    assert {stages.around(step) for step in range(start, 100)} == {(start, 100)}


@pytest.mark.parametrize(("step", "start"), [(49, 100), (50, 50), (100, 50)])
def test_a_start_that_is_over_stays_over_when_epochs_are_added(step, start):
    assert Stages(100, 200).extended(50, step) == (start, 200)


def test_a_warmup_is_at_most_a_fifth_of_its_stage(data, tmp_path):
    rates = []
    with pytest.MonkeyPatch.context() as patch:
        planned = training.Training.planned_rate
        patch.setattr(training.Training, "planned_rate",
                      lambda self: rates.append(planned(self)) or rates[-1])
        train(settings(data, tmp_path, epochs=4, warmup=200, eval_every=4))
    for stage in (rates[:12], rates[12:]):
        assert max(stage) == stage[1] == 1e-3 and stage[-1] < 1e-4


def test_the_weights_that_are_kept_have_a_trained_flow(data, tmp_path, monkeypatch):
    """Whatever their means are: those of the start may well be better."""
    numbers = iter(range(100))
    evaluate = Validation.evaluate

    def worse_and_worse(self, model, stage):
        worse = {"mse": float(next(numbers))}
        return [{**found, **worse} for found in evaluate(self, model, stage)]

    monkeypatch.setattr(Validation, "evaluate", worse_and_worse)
    train(settings(data, tmp_path, epochs=3, lr=3e-3))
    best = load_checkpoint(tmp_path / "mamba_v2_best.pth")
    assert best["step"] > 9 and best["calibration"]
    for name in ("decoder.3.weight", "unet.flow.last.weight"):
        assert best["weights"][name].abs().max() > 0, name


def test_the_start_stays_as_it_is_however_often_a_training_is_made_longer(data, tmp_path):
    def state() -> dict:
        return load_checkpoint(tmp_path / "mamba_v2_latest.pth")["resume"]

    train(settings(data, tmp_path, epochs=1))
    before = state()["model"]
    for epochs in (2, 4):
        train(settings(data, tmp_path, epochs=epochs))
        assert state()["progress"]["start_ends"] == 3
    after = state()["model"]
    assert is_same(before, after, "shift") and is_same(before, after, "scale")
    assert not is_same(before, after, "flow")


def test_a_start_that_is_taken_stays_as_it_is_and_the_flow_learns(data, started, tmp_path):
    train(settings(data, tmp_path, epochs=1, start_from=str(started)))
    before, after = unets_of(started), unets_of(tmp_path / "mamba_v2_latest.pth")
    assert is_same(before, after, "shift") and is_same(before, after, "scale")
    assert not is_same(before, after, "flow")


def test_a_start_without_a_flow_gets_one(data, tmp_path, capsys):
    train(settings(data, tmp_path / "old", epochs=1, start_share=1.0, flow_unet_width=0))
    capsys.readouterr()
    old = tmp_path / "old" / "mamba_v2_latest.pth"
    train(settings(data, tmp_path / "new", epochs=1, start_from=str(old)))
    assert "that of the flow is new" in capsys.readouterr().out
    before, after = unets_of(old), unets_of(tmp_path / "new" / "mamba_v2_latest.pth")
    assert is_same(before, after, "shift") and is_same(before, after, "scale")
    assert any(name.startswith("unet.flow.") for name in after)


@pytest.mark.parametrize(("changes", "words"), [
    (dict(unet_width=4), "another size: set UNET_WIDTH"),
    (dict(flow_unet_width=8), "another size: set UNET_WIDTH and FLOW_UNET_WIDTH"),
    (dict(unet_width=0), "this model has no grid U-Nets"),
])
def test_a_start_that_does_not_fit_is_refused(data, started, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(settings(data, tmp_path, epochs=1, start_from=str(started), **changes))
