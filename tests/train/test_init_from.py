"""Trainings that start from the weights of another."""

from dataclasses import replace

import pytest
import torch
from small import settings, train, write_checkpoint, write_pictures

from sparsefield.errors import UserError
from sparsefield.model.channels import for_channels
from sparsefield.model.checkpoint import load_checkpoint
from train_mamba_v2 import Config


@pytest.fixture(scope="module")
def earlier(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    train(settings(data, folder))
    return folder / "mamba_v2_latest.pth"


def weights_of(path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["weights"]


def test_a_training_starts_where_the_other_ended(data, earlier, tmp_path, capsys):
    command = settings(data, tmp_path, epochs=1, init_from=str(earlier), lr=1e-12)
    train(command)
    assert f"weights taken from {earlier}" in capsys.readouterr().out
    after = weights_of(tmp_path / "mamba_v2_latest.pth")
    for name, before in weights_of(earlier).items():
        torch.testing.assert_close(after[name], before, rtol=1e-5, atol=1e-6)
    train(command)
    assert "weights taken" not in capsys.readouterr().out  # it goes on instead


def test_every_part_learns_on_with_other_measurements(data, earlier, tmp_path):
    train(settings(data, tmp_path, init_from=str(earlier), observe="random:0.1-0.5", dropout=0.1))
    before, after = weights_of(earlier), weights_of(tmp_path / "mamba_v2_latest.pth")
    for part in ("unet.shift.", "unet.scale.", "unet.flow.", "mamba.", "perceiver."):
        names = [name for name in before if name.startswith(part)]
        assert names and not all(torch.equal(before[name], after[name]) for name in names)


def test_sizes_that_are_not_set_are_the_checkpoints(data, earlier, tmp_path):
    as_it_comes = {name: getattr(Config, name) for name in (
        "d_model", "num_layers", "perceiver_iterations", "perceiver_heads", "neighbours",
        "unet_width", "flow_unet_width")}
    command = settings(data, tmp_path, init_from=str(earlier), **as_it_comes)
    train(command)
    ended = load_checkpoint(tmp_path / "mamba_v2_latest.pth")
    assert ended["model_args"] == load_checkpoint(earlier)["model_args"]
    train(replace(command, epochs=3))  # goes on
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["step"] == 18


@pytest.mark.parametrize(("changes", "words"), [
    (dict(d_model=32), "train with --d_model 16"),
    (dict(unet_width=16, neighbours=2), "train with --unet_width 8 --neighbours 4"),
    (dict(perceiver_heads=4), "train with --perceiver_heads 2"),  # fits, and means something else
    (dict(order="hilbert"), "train with --order per_layer"),
])
def test_another_model_is_refused_with_what_to_say(data, earlier, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(settings(data, tmp_path, init_from=str(earlier), **changes))


@pytest.mark.parametrize("flag", ["init_from", "start_from"])
def test_fewer_channels_start_from_what_colours_taught(earlier, tmp_path, capsys, flag):
    grey = write_pictures(tmp_path / "grey.npz", channels=1)
    train(settings(grey, tmp_path / "v2", epochs=1, lr=1e-12, **{flag: str(earlier)}))
    assert f"taken from {earlier}, of 3 channels, for 1" in capsys.readouterr().out
    expected = for_channels(load_checkpoint(earlier), 1)["weights"]
    name = "unet.shift.first.weight"
    torch.testing.assert_close(weights_of(tmp_path / "v2" / "mamba_v2_latest.pth")[name],
                               expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flag", ["init_from", "start_from"])
def test_more_channels_are_refused(data, tmp_path, flag):
    grey = write_checkpoint(tmp_path / "one.pth", "V2",
                            write_pictures(tmp_path / "grey.npz", channels=1))
    with pytest.raises(UserError, match=rf"{flag}=.*have 1 channel\(s\), the data 3: give another"):
        train(settings(data, tmp_path / "v2", **{flag: str(grey)}))


def test_v1_is_no_v2(data, tmp_path):
    pictures = write_pictures(tmp_path / "pictures.npz", channels=3)
    v1 = write_checkpoint(tmp_path / "v1.pth", "V1", pictures)
    with pytest.raises(UserError, match="holds a MAMBADiffusion, and this is a MAMBADiffusionV2"):
        train(settings(data, tmp_path / "v2", init_from=str(v1)))


@pytest.mark.parametrize("flag", ["init_from", "start_from"])
def test_weights_that_would_be_moved_away_are_refused_and_stay(data, earlier, tmp_path, flag):
    own = tmp_path / "mamba_v2_best.pth"
    own.write_bytes(earlier.read_bytes())
    with pytest.raises(UserError, match=f"{flag}=.* lies in save_dir=.*: set another SAVE_DIR"):
        train(settings(data, tmp_path, **{flag: str(own)}))
    assert own.read_bytes() == earlier.read_bytes()


def test_the_weights_that_come_along_can_be_started_from(data, tmp_path, capsys):
    sizes = dict(d_model=64, num_layers=8, perceiver_heads=4, perceiver_iterations=2, neighbours=24,
                 unet_width=80, flow_unet_width=64)
    train(settings(data, tmp_path, init_from="bundled", epochs=1, **sizes))
    assert "weights taken from bundled" in capsys.readouterr().out
