"""The parts of a training, and canvases that come from another."""

import pytest
import torch
from small import settings, train

from sparsefield.errors import UserError
from sparsefield.model.checkpoint import load_checkpoint
from sparsefield.train.setup import Parts, parts_of_training, parts_that_remain


@pytest.fixture(scope="module")
def painted(data, tmp_path_factory):
    """A training of the canvas alone."""
    folder = tmp_path_factory.mktemp("painted")
    train(settings(data, folder, epochs=1, canvas_first=0.5, canvas_flow=0.5))
    return folder / "mamba_v2_latest.pth"


def canvas_of(path) -> dict[str, torch.Tensor]:
    weights = load_checkpoint(path)["weights"]
    return {name: tensor for name, tensor in weights.items() if name.startswith("canvas.")}


def is_same(one, other, part: str) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items()
               if name.startswith(f"canvas.{part}."))


@pytest.mark.parametrize(("changes", "parts"), [
    ({}, (50, 75, 100)),
    (dict(canvas_first=0.2, canvas_flow=0.8), (20, 100, 100)),
    (dict(canvas_flow_width=0), (50, 50, 100)),
    (dict(canvas_width=0), (0, 0, 100)),
    (dict(canvas_from="a.pth"), (0, 25, 100)),
    (dict(canvas_from="a.pth", canvas_flow=0.0), (0, 0, 100)),
])
def test_parts_of_a_training(data, tmp_path, changes, parts):
    assert parts_of_training(settings(data, tmp_path, **changes), 100) == parts


@pytest.mark.parametrize(("step", "parts"), [
    (49, (100, 150, 200)),   # the canvas is still learning: it gets its share of all
    (50, (50, 100, 200)),    # the slope is next
    (75, (50, 75, 200)),     # the tokens learn on what is there
    (100, (50, 75, 200)),
])
def test_parts_that_are_over_stay_over_when_epochs_are_added(step, parts):
    assert parts_that_remain(Parts(100, 150, 200), Parts(50, 75, 100), step) == parts


def test_the_canvas_stays_as_it_is_however_often_a_training_is_made_longer(data, tmp_path):
    def state() -> dict:
        return load_checkpoint(tmp_path / "mamba_v2_latest.pth")["resume"]

    train(settings(data, tmp_path, epochs=1))
    before = state()["model"]
    for epochs in (2, 4):
        train(settings(data, tmp_path, epochs=epochs))
        assert tuple(state()["progress"]["ends"]) == (3, 5, 6 * epochs)
    after = state()["model"]
    for name, tensor in before.items():
        learns_on = not name.startswith("canvas.")
        assert learns_on or torch.equal(after[name], tensor), name
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


def test_every_step_is_in_one_part():
    parts = Parts(2, 2, 5)
    assert [parts.around(step) for step in range(5)] == [(0, 2), (0, 2), (2, 5), (2, 5), (2, 5)]


def test_more_than_all_steps_are_refused(data, tmp_path):
    with pytest.raises(UserError, match="together at most 1"):
        settings(data, tmp_path, canvas_first=0.7, canvas_flow=0.4).check()


def test_a_canvas_that_is_taken_stays_as_it_is(data, painted, tmp_path):
    train(settings(data, tmp_path, epochs=1, canvas_from=str(painted), canvas_flow=0.0))
    before, after = canvas_of(painted), canvas_of(tmp_path / "mamba_v2_latest.pth")
    assert all(is_same(before, after, part) for part in ("shift", "scale", "flow"))


def test_its_slope_may_go_on_learning(data, painted, tmp_path):
    train(settings(data, tmp_path, epochs=1, canvas_from=str(painted), canvas_flow=0.5))
    before, after = canvas_of(painted), canvas_of(tmp_path / "mamba_v2_latest.pth")
    assert is_same(before, after, "shift") and is_same(before, after, "scale")
    assert not is_same(before, after, "flow")


def test_a_canvas_without_a_slope_gets_one(data, painted, tmp_path, capsys):
    train(settings(data, tmp_path / "old", epochs=1, canvas_first=1.0, canvas_flow_width=0,
                   canvas_flow=0.0))
    capsys.readouterr()
    old = tmp_path / "old" / "mamba_v2_latest.pth"
    train(settings(data, tmp_path / "new", epochs=1, canvas_from=str(old)))
    assert "what it says of the slope is new" in capsys.readouterr().out
    before, after = canvas_of(old), canvas_of(tmp_path / "new" / "mamba_v2_latest.pth")
    assert is_same(before, after, "shift") and is_same(before, after, "scale")
    assert any(name.startswith("canvas.flow.") for name in after)


@pytest.mark.parametrize(("changes", "words"), [
    (dict(canvas_width=4), "another size: set CANVAS_WIDTH"),
    (dict(canvas_flow_width=8), "another size: set CANVAS_WIDTH and CANVAS_FLOW_WIDTH"),
    (dict(canvas_width=0), "this model has no canvas"),
])
def test_a_canvas_that_does_not_fit_is_refused(data, painted, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(settings(data, tmp_path, epochs=1, canvas_from=str(painted), **changes))
