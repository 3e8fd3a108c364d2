"""The weights that come with the project are found from every folder, and nothing else is."""

from pathlib import Path

import pytest
import torch
from sparsefield.model.shipped import DEFAULTS, V2, find_shipped

from sparsefield.errors import UserError
from sparsefield.model import shipped
from sparsefield.model.checkpoint import load_model, save_safetensors


@pytest.mark.parametrize("path", [*DEFAULTS, "shipped"])
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


def test_shipped_is_what_came_along_whatever_was_trained_in_its_place(tmp_path, monkeypatch):
    came = find_shipped("shipped")
    place = (tmp_path / V2).with_suffix(".safetensors")
    place.parent.mkdir()
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "sparsefield")
    with pytest.raises(UserError, match="that come along are not at"):
        find_shipped("shipped")
    save_safetensors(place, {"weights": {"w": torch.zeros(1)}, "step": 1})  # of a user's training
    with pytest.raises(UserError, match="that come along are not at"):
        find_shipped("shipped")
    old = place.parent / "old_1" / place.name
    old.parent.mkdir()
    old.symlink_to(came)
    assert find_shipped("shipped") == old
    place.write_bytes(came.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_model("shipped")
