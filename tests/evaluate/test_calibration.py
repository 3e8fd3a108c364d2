"""The spread of samples: fitted on some pictures, measured on others, and not lost to a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from small import settings, train
from sparsefield.data import parse_pattern
from sparsefield.evaluate import calibration
from sparsefield.evaluate.calibration import calibrate, describe
from sparsefield.evaluate.cases import Cases
from sparsefield.model.checkpoint import load_checkpoint
from sparsefield.train import loop as training


class Noise:
    """Fields of white noise around 0.5."""

    has_gaps = False

    def __init__(self, channels: int):
        self.channels = channels

    def example(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        return (0.2 * rng.standard_normal((16, 16, self.channels))).astype(np.float32)


class NoiseCases(Cases):
    """Their samples are `model(index)` times as wide as the truths scatter."""

    def __init__(self, count: int, channels: int = 1):
        super().__init__(Noise(channels), parse_pattern("random:0.2"), range(count))

    def sample(self, model, **_) -> SimpleNamespace:
        return SimpleNamespace(draws=[
            0.5 + 0.1 * model(case.index) * np.random.default_rng(1000 + case.index)
            .standard_normal((20, 16, 16, self.channels)) for case in self])


def fitted(width: Callable, cases: NoiseCases) -> dict:
    """`calibrate` of a model whose samples have that width."""
    width.num_steps = 2
    return calibrate(width, cases)


def undoing(width: float, members: int = 20) -> float:
    """The factor for that width: the mean of the samples is itself uncertain, more if wide."""
    return ((1 + width**2 / members) / (1 + 1 / members)) ** 0.5 / width


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_a_wrong_width_is_undone_on_pictures_that_were_not_fitted(width):
    found = fitted(lambda index: width, NoiseCases(16))
    assert found["spread"] == pytest.approx([undoing(width)], rel=0.06)
    assert found["calibrated"] == pytest.approx([0.9], abs=0.02)
    assert (found["raw"][0] < 0.65) if width < 1 else (found["raw"][0] > 0.88)
    assert (found["pictures"], found["fitted_on"]) == (8, 8)


def test_every_channel_has_a_factor_of_its_own():
    """One for both once took the intervals of a channel beside a constant one from 94 to 84 %."""
    found = fitted(lambda index: np.array([0.5, 2.0]), NoiseCases(16, channels=2))
    assert found["spread"] == pytest.approx([undoing(0.5), undoing(2)], rel=0.06)
    assert found["calibrated"] == pytest.approx([0.9, 0.9], abs=0.02)
    assert "% with the spread times 1." in describe(found) and " / 0.5" in describe(found)


def test_what_is_reported_is_out_of_sample():
    """Every second picture is drawn too wide: the factor of the others does not help them."""
    found = fitted(lambda index: 1 + 2 * (index % 2), NoiseCases(16))
    assert found["spread"] == pytest.approx([1], rel=0.06)
    assert min(found["raw"] + found["calibrated"]) > 0.99
    swapped = fitted(lambda index: 3 - 2 * (index % 2), NoiseCases(16))
    assert swapped["spread"] == pytest.approx([undoing(3)], rel=0.06)
    assert swapped["raw"] == pytest.approx([0.9], abs=0.02) and swapped["calibrated"][0] < 0.6


def test_pictures_are_taken_from_the_whole_set(monkeypatch):
    monkeypatch.setattr(calibration, "PICTURES", 4)
    asked = []
    fitted(lambda index: asked.append(index) or 1, NoiseCases(10))
    assert asked == [0, 3, 6, 9]


def test_a_single_picture_is_fitted_and_nothing_measured():
    found = fitted(lambda index: 2, NoiseCases(1))
    assert found["spread"] == pytest.approx([undoing(2)], rel=0.25)
    assert found["pictures"] == 0 and np.isnan(found["calibrated"])
    assert "not measured" in describe(found)


# --- in a training -------------------------------------------------------------------------------


def best(folder: Path) -> dict:
    return load_checkpoint(folder / "mamba_v2_best.pth")


def test_a_training_killed_before_its_calibration_is_calibrated_on_resume(
    data, tmp_path, monkeypatch, capsys
):
    """As SIGKILL would: what is on the disk then is all that is left."""
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "MEMBERS", 4)
    config = settings(data, tmp_path, epochs=1, eval_pictures=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "calibrate", killed)
        train(config)
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["epoch"] == 1
    assert "calibration" not in best(tmp_path)
    train(config)
    assert "nothing left to do" in capsys.readouterr().out
    found = best(tmp_path)["calibration"]
    assert (found["pictures"], found["fitted_on"]) == (1, 2)
    shared = load_checkpoint(tmp_path / "mamba_v2_best.safetensors")
    assert shared["calibration"] == found
    with monkeypatch.context() as patch:
        patch.setattr(training, "calibrate", killed)
        train(config)  # calibrated once, and not again
