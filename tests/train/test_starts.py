"""The two stages of a training, and trainings that start from the weights of another."""

import json
from dataclasses import replace

import pytest
import torch

import train_mamba
import train_mamba_v2
from small import (
    SIZE,
    WHOLE,
    flags,
    settings,
    train,
    weights_of,
    write_checkpoint,
    write_pictures,
)
from sparsefield.errors import UserError
from sparsefield.model.checkpoint import load_checkpoint, save_checkpoint
from sparsefield.model.transfer import for_channels, take_shared_components
from sparsefield.train.optimise import Stages
from sparsefield.train.report import Validation

SHARED = {"unet", "fourier", "time_embedding", "input_proj", "query_proj", "decoder"}  # with V1


@pytest.fixture
def earlier(whole):
    return whole / "mamba_v2_latest.pth"


def is_same(one, other, part: str) -> bool:
    """Whether a part of the grid U-Nets is the same."""
    names = [name for name in one if name.startswith(f"unet.{part}.")]
    return bool(names) and all(torch.equal(one[name], other[name]) for name in names)


# --- stages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "start"), [
    ({}, 50), (dict(start_share=0.2), 20), (dict(unet_width=0), 0), (dict(start_from="a.pth"), 0),
])
def test_stages_of_a_training(data, tmp_path, changes, start):
    stages = Stages.of(settings(data, tmp_path, **changes), 100)
    assert stages == (start, 100)
    assert {stages.around(step) for step in range(start)} <= {(0, start)}
    assert {stages.around(step) for step in range(start, 100)} == {(start, 100)}


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


def test_the_start_stays_as_it_is_however_often_a_training_is_made_longer(data, copied):
    def state() -> dict:
        return load_checkpoint(copied / "mamba_v2_latest.pth")["resume"]

    before = state()["model"]
    for epochs in (4, 6):
        train(settings(data, copied, **{**WHOLE, "epochs": epochs}))
        assert state()["progress"]["start_ends"] == 9
    after = state()["model"]
    assert is_same(before, after, "shift") and is_same(before, after, "scale")
    assert not is_same(before, after, "flow")


# --- the start of another ------------------------------------------------------------------------


@pytest.mark.parametrize("has_flow", [True, False])
def test_a_start_that_is_taken_stays_as_it_is_and_the_flow_learns(
    data, earlier, tmp_path, capsys, has_flow
):
    old, checkpoint = tmp_path / "old.pth", load_checkpoint(earlier)
    if not has_flow:
        checkpoint["weights"] = {name: weight for name, weight in checkpoint["weights"].items()
                                 if not name.startswith("unet.flow.")}
        checkpoint["model_args"]["flow_unet_width"] = 0
    save_checkpoint(old, checkpoint)
    train(settings(data, tmp_path / "new", epochs=1, start_from=str(old)))
    assert ("that of the flow is new" in capsys.readouterr().out) is not has_flow
    before, after = weights_of(old), weights_of(tmp_path / "new" / "mamba_v2_latest.pth")
    assert is_same(before, after, "shift") and is_same(before, after, "scale")
    assert any(name.startswith("unet.flow.") for name in after)
    assert not is_same(before, after, "flow")


# --- all weights of another ----------------------------------------------------------------------


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
    command = train_mamba_v2.Config(data=str(data), save_dir=str(tmp_path), epochs=1, batch_size=8,
                                    eval_pictures=1, init_from=str(earlier), device="cpu")
    train(command)
    ended = load_checkpoint(tmp_path / "mamba_v2_latest.pth")
    theirs = load_checkpoint(earlier)["model_args"]
    assert {**ended["model_args"], "dropout": 0.1} == theirs
    train(replace(command, epochs=2))  # goes on
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["step"] == 12


def test_a_size_on_the_command_line_is_not_replaced_even_if_it_is_the_default(data, capsys):
    command = ["--data", str(data), "--dry_run", "True", "--init_from", "bundled"]
    assert train_mamba_v2.Config.d_model == 256
    with pytest.raises(UserError, match="train with --d_model 64"):
        train_mamba_v2.main([*command, "--d_model", "256"])
    capsys.readouterr()
    train_mamba_v2.main(command)
    settings_line = capsys.readouterr().out.splitlines()[0].removeprefix("settings: ")
    assert json.loads(settings_line)["d_model"] == 64


@pytest.mark.parametrize("flag, changes, words", [
    ("init_from", dict(d_model=32), "train with --d_model 16"),
    ("init_from", dict(unet_width=16, neighbours=2), "with --unet_width 8 --neighbours 4"),
    ("init_from", dict(perceiver_heads=4), "with --perceiver_heads 2"),  # fits, means another
    ("init_from", dict(order="hilbert"), "train with --order per_layer"),
    ("start_from", dict(unet_width=4), "another size: set UNET_WIDTH"),
    ("start_from", dict(flow_unet_width=8), "another size: set UNET_WIDTH and FLOW_UNET_WIDTH"),
    ("start_from", dict(unet_width=0), "this model has no grid U-Nets"),
])
def test_another_model_is_refused_with_what_to_say(data, earlier, tmp_path, flag, changes, words):
    with pytest.raises(UserError, match=words):
        train(settings(data, tmp_path, dry_run=True, **{flag: str(earlier)}, **changes))


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
        train(settings(data, tmp_path / "v2", dry_run=True, **{flag: str(grey)}))


@pytest.mark.parametrize("flag", ["init_from", "start_from"])
def test_weights_that_would_be_moved_away_are_refused_and_stay(data, earlier, tmp_path, flag):
    own = tmp_path / "mamba_v2_best.pth"
    own.write_bytes(earlier.read_bytes())
    with pytest.raises(UserError, match=f"{flag}=.* lies in save_dir=.*: set another SAVE_DIR"):
        train(settings(data, tmp_path, **{flag: str(own)}))
    assert own.read_bytes() == earlier.read_bytes()


# --- V1 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v1(data, tmp_path_factory) -> str:
    """A checkpoint of V1 with d_model 16."""
    return str(write_checkpoint(tmp_path_factory.mktemp("v1") / "v1.pth", "V1", data))


@pytest.mark.parametrize(("width", "fitting"), [(16, SHARED), (32, {"unet", "fourier"})])
def test_what_fits_is_taken_from_v1_whole_and_reported(v1, width, fitting):
    torch.manual_seed(5)
    model = train_mamba_v2.MAMBADiffusionV2(**{**SIZE, "d_model": width}, perceiver_heads=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lines = take_shared_components(model, v1, "MAMBADiffusion")
    said = {words: {line.split(": ")[1].split(" ")[0] for line in lines if line.startswith(words)}
            for words in ("taken", "not taken")}
    assert said == {"taken": fitting, "not taken": SHARED - fitting | {"mamba", "perceiver"}}
    for name, value in model.state_dict().items():
        source = weights_of(v1) if name.split(".")[0] in fitting else before
        assert torch.equal(value, source[name]), name  # not even the decoder's bias


def test_another_class_or_no_file_is_refused(data, tmp_path, v1):
    with pytest.raises(UserError, match="holds a MAMBADiffusion, not a MAMBADiffusionV2"):
        take_shared_components(torch.nn.Identity(), v1, "MAMBADiffusionV2")
    with pytest.raises(UserError, match="does not exist"):
        take_shared_components(torch.nn.Identity(), tmp_path / "none.pth", "MAMBADiffusion")
    with pytest.raises(UserError, match="holds a MAMBADiffusion, and this is a MAMBADiffusionV2"):
        train(settings(data, tmp_path / "v2", dry_run=True, init_from=v1))


def test_v1_is_told_where_its_own_bundled_weights_are(data, tmp_path):
    command = ["--data", str(data), "--save_dir", str(tmp_path), "--dry_run", "True"]
    with pytest.raises(UserError, match="the bundled V1 is checkpoints_mamba/mamba"):
        train_mamba.main([*command, "--init_from", "bundled"])
    train_mamba.main([*command, "--init_from", "checkpoints_mamba/mamba_best.pth"])


def test_a_training_starts_from_v1_and_says_what_it_took(data, v1, tmp_path, capsys):
    command = flags(settings(data, tmp_path, epochs=1, batch_size=18, lr=1e-12, init_from_v1=v1))
    train_mamba_v2.main(command)
    assert f"taken from {v1}: decoder" in capsys.readouterr().out
    name = "decoder.3.weight"
    found = weights_of(tmp_path / "mamba_v2_latest.pth")[name]  # the averaged weights
    assert torch.allclose(found, weights_of(v1)[name], atol=1e-6)
    train_mamba_v2.main(command)
    assert "taken from" not in capsys.readouterr().out  # it goes on instead
