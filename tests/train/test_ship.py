"""Weights made for sharing: half the size, the same answers, tested on what is at hand."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from small import settings, train, write_checkpoint, write_untrained
from sparsefield import cli
from sparsefield.errors import UserError
from sparsefield.evaluate.cases import open_test_data
from sparsefield.model.checkpoint import (
    build_model,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from sparsefield.place import Observed

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import ship


@pytest.fixture(scope="module")
def shipped(whole, tmp_path_factory):
    target = tmp_path_factory.mktemp("ship") / "mamba_v2_best.safetensors"
    ship.ship(whole / "mamba_v2_best.pth", target)
    return whole / "mamba_v2_best.pth", target.with_suffix(".pth")  # a name that keeps working


def test_a_finished_training_is_calibrated(shipped):
    for path in (shipped[0], shipped[0].with_suffix(".safetensors"), shipped[1]):
        found = load_checkpoint(path)["calibration"]
        assert 0.25 <= min(found["spread"]) <= max(found["spread"]) <= 4
        assert 0 <= min(found["raw"]) <= max(found["raw"]) <= 1


def test_half_precision_answers_the_same_and_names_no_folder(shipped):
    (before, _), (after, checkpoint) = (load_model(path) for path in shipped)
    assert all(weight.dtype == torch.float16 for weight in checkpoint["weights"].values())
    assert checkpoint["config"]["data"] == "small.npz" and "resume" not in checkpoint
    torch.manual_seed(0)
    z, theta, places = torch.randn(2, 20, 3), torch.rand(2), torch.rand(2, 20, 2)
    given = torch.rand(2, 9, 2), torch.rand(2, 9, 3)

    a, b = (model.velocity(z, theta, model.encode(Observed(*given), places))
            for model in (before, after))
    assert (a - b).abs().max() < 1e-2 * a.abs().max()


def test_shipped_weights_are_tested_on_photos_and_others_refused(shipped, caplog):
    cli.log.propagate = True
    checkpoint = load_checkpoint(shipped[1])
    assert open_test_data(checkpoint).name == "photos"
    assert "tested on photos" in caplog.text
    del checkpoint["shipped"]
    with pytest.raises(UserError, match="which is not here"):
        open_test_data(checkpoint)


def test_training_beside_shipped_weights_sets_them_aside(data, shipped, tmp_path):
    target = tmp_path / "mamba_v2_best.safetensors"
    ship.ship(shipped[0], target)
    train(settings(data, tmp_path, epochs=1))
    assert load_checkpoint(tmp_path / "old_1" / target.name)["shipped"]
    assert "shipped" not in load_checkpoint(target)


def test_weights_are_shared_in_one_format(shipped, tmp_path):
    with pytest.raises(UserError, match="shared as"):
        ship.ship(shipped[0], tmp_path / "best.pth")


def test_shipping_onto_itself_or_onto_what_is_no_checkpoint(shipped, tmp_path):
    source = Path(shutil.copy(shipped[0], tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match="is the checkpoint that is read"):
        ship.ship(source, source)
    (tmp_path / "b.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"b\.safetensors"):
        ship.ship(source, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_text() == "mine"


def test_a_start_alone_is_written_without_a_flow(tmp_path):
    def awake(weights):
        return {name: weight + 0.1 if "last" in name or "decoder.3" in name else weight
                for name, weight in weights.items()}

    path = write_untrained(tmp_path / "start.pth", 1, (-3.0, 3.0), change=awake,
                           sizes={"unet_width": 8, "flow_unet_width": 8})
    trained = load_checkpoint(path)
    trained["config"] = {"start_share": 1.0}
    still = ship.without_flow(trained)
    before, after = build_model(trained), build_model(still)
    assert after.is_still and not before.is_still
    for name, weight in after.unet.state_dict().items():
        assert torch.equal(weight, before.unet.state_dict()[name])


@pytest.mark.parametrize("stage, flow", [("start", False), ("flow", True)])
def test_a_flow_is_left_out_where_it_has_not_learnt(whole, tmp_path, stage, flow):
    checkpoint = load_checkpoint(whole / "mamba_v2_best.pth")
    checkpoint["config"]["start_share"] = 1.0
    save_checkpoint(tmp_path / "a.pth", checkpoint | {"stage": stage})
    ship.ship(tmp_path / "a.pth", tmp_path / "b.safetensors")
    left = load_checkpoint(tmp_path / "b.safetensors")
    assert (left["model_args"]["num_layers"] > 0) == flow
    assert (left["weights"]["decoder.3.weight"].any()) == flow


def test_v1_is_not_written_without_its_flow(data, tmp_path):
    write_checkpoint(tmp_path / "a.pth", "V1", data, start_share=1.0)
    with pytest.raises(UserError, match="only a V2 is written without a flow"):
        ship.ship(tmp_path / "a.pth", tmp_path / "b.safetensors")
