"""The weights that come with the project are found from every folder, and nothing else is."""

from pathlib import Path

import pytest
import torch

from sparsefield.errors import UserError
from sparsefield.model import bundled
from sparsefield.model.bundled import DEFAULTS, V2, find_bundled
from sparsefield.model.checkpoint import load_model, save_safetensors


@pytest.mark.parametrize("path", [*DEFAULTS, "bundled", "shipped", "fields"])
def test_the_defaults_load_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, checkpoint = load_model(path)
    assert checkpoint["shipped"] and sum(p.numel() for p in model.parameters()) > 100_000


def test_what_is_there_comes_first_and_other_names_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Path("checkpoints_mamba_v2/mamba_v2_best.pth")
    assert find_bundled(own).is_absolute()
    own.parent.mkdir()
    own.touch()
    assert find_bundled(own) == own
    with pytest.raises(UserError, match=r"elsewhere\.pth does not exist"):
        load_model("elsewhere.pth")


def test_bundled_is_what_the_project_brings_whatever_was_trained(tmp_path, monkeypatch):
    bundled_file = find_bundled("bundled")
    place = (tmp_path / V2).with_suffix(".safetensors")
    place.parent.mkdir()
    monkeypatch.setattr(bundled, "PACKAGE", tmp_path / "sparsefield")
    with pytest.raises(UserError, match="bundled weights are not at"):
        find_bundled("bundled")
    save_safetensors(place, {"weights": {"w": torch.zeros(1)}, "step": 1})  # of a user's training
    with pytest.raises(UserError, match="bundled weights are not at"):
        find_bundled("bundled")
    old = place.parent / "old_1" / place.name
    old.parent.mkdir()
    old.symlink_to(bundled_file)
    assert find_bundled("bundled") == old
    place.write_bytes(bundled_file.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_model("bundled")
