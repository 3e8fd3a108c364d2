"""The weights that come with the project are found from every folder, and nothing else is."""

from pathlib import Path

import pytest

from sparsefield.errors import UserError
from sparsefield.model.checkpoint import load_model
from sparsefield.model.shipped import SHIPPED, find_shipped


@pytest.mark.parametrize("path", SHIPPED)
def test_the_defaults_load_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, checkpoint = load_model(path)
    assert checkpoint["shipped"] and sum(p.numel() for p in model.parameters()) > 100_000


def test_what_is_there_comes_first_and_other_names_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Path("checkpoints_mamba_v2/mamba_v2_best.pth")
    assert find_shipped(own).is_absolute()
    own.parent.mkdir()
    own.touch()
    assert find_shipped(own) == own
    with pytest.raises(UserError, match=r"elsewhere\.pth does not exist"):
        load_model("elsewhere.pth")
