"""What tests of trainings share: one whole training, and trainings that draw no pictures."""

import shutil
from pathlib import Path

import pytest

from small import WHOLE, settings, train
from sparsefield.evaluate import plots


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory) -> Path:
    """The folder of an undisturbed training of three epochs (18 steps), with all its pictures."""
    folder = tmp_path_factory.mktemp("whole")
    train(settings(data, folder, **WHOLE))
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def without_pictures(whole, monkeypatch):
    """Pictures take half of the time of a small training."""
    for name in ("learning_curves", "reconstructions"):
        monkeypatch.setattr(plots, name, lambda *_: None)
