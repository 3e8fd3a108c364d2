"""The training loop: what it writes, how it steps, what it refuses, and that it resumes exactly."""

import json
import math
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from small import SIZE, WHOLE, assert_same, losses, records, settings, train, write_ramps
from sparsefield.data import open_as_configured
from sparsefield.errors import UserError
from sparsefield.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from sparsefield.train import loop as training
from sparsefield.train.config import (
    BESIDE_LEARNING,
    MAY_CHANGE,
    TrainingConfig,
    model_arguments,
)
from sparsefield.train.optimise import Optimiser, Stages
from sparsefield.train.page import training_page
from train_mamba_v2 import MAMBADiffusionV2

# --- what it writes ------------------------------------------------------------------------------


def test_writes_everything_and_the_model_comes_back(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "mamba_v2_best.pth", "mamba_v2_best.safetensors", "mamba_v2_latest.pth",
        "mamba_v2_epoch_0001.pth", "mamba_v2_epoch_0002.pth", "metrics.jsonl", "tensorboard",
        "training_loss.png", "pictures_epoch_0003.png", "report.html",
    }
    model, checkpoint = load_model(whole / "mamba_v2_best.pth")
    assert checkpoint["data"]["channels"] == 3 and "resume" not in checkpoint
    shared, described = load_model(whole / "mamba_v2_best.safetensors")
    assert_same(dict(model.state_dict()), dict(shared.state_dict()))
    assert described["config"] == checkpoint["config"]


def test_every_number_is_recorded(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    wanted = {"loss", "grad_norm", "lr", "samples_per_s", "data_wait", "memory_mb", "skipped"}
    epochs = [line for line in lines if wanted <= line.keys()]
    assert [(r["step"], r["stage"]) for r in epochs] == [
        (6, "start"), (9, "start"), (12, "flow"), (18, "flow")]  # no loss of two stages at once
    assert all(r["samples_per_s"] > 0 and 0 <= r["data_wait"] <= 1 for r in epochs)
    minutes = [record["minutes"] for record in lines]
    assert minutes == sorted(minutes) and minutes[0] >= 0
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [6, 9, 12, 18]


def test_intervals_do_not_change_what_is_trained(data, tmp_path, whole):
    train(settings(data, tmp_path, **WHOLE, eval_every=2, eval_pictures=1, save_every=3,
                   visualize_every=1))
    first, second = (load_checkpoint(p / "mamba_v2_latest.pth") for p in (whole, tmp_path))
    assert_same(first["weights"], second["weights"])
    for key in ("model", "averaged", "optimiser"):
        assert_same(first["resume"][key], second["resume"][key])
    assert losses(whole) == losses(tmp_path)


def test_accumulating_gives_the_same_losses(data, tmp_path):
    for parts in (1, 2):
        train(settings(data, tmp_path / str(parts), epochs=1, accumulate=parts,
                       precision="float32"))
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-4)


@pytest.mark.parametrize("changes", [dict(lr=1e-12), dict(lr=1e-12, unet_width=0)])
def test_that_nothing_was_learnt_is_said_at_the_end_and_in_the_checkpoint(
    data, tmp_path, capsys, whole, changes
):
    train(settings(data, tmp_path, epochs=1, **changes))
    start, _, rest = capsys.readouterr().out.partition("preparing: kriging of 2 validation")
    assert "WARNING: too few steps to learn: 1 epochs are 6 steps, give at least 300" in start
    assert "WARNING: nothing was learnt" in rest
    for folder, learnt in ((tmp_path, False), (whole, True)):
        for ending in ("pth", "safetensors"):
            assert load_checkpoint(folder / f"mamba_v2_best.{ending}")["learnt"] is learnt


# --- steps ---------------------------------------------------------------------------------------


def test_gradients_that_reach_the_optimiser_are_clipped(data, tmp_path, monkeypatch):
    norms, step = [], Optimiser.step

    def watched(self):
        parameters = [p for part in self.parts for group in part.param_groups
                      for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters
                                                    if p.grad is not None]).item())
        step(self)

    monkeypatch.setattr(Optimiser, "step", watched)
    train(settings(data, tmp_path, epochs=1, grad_clip=1e-3))
    assert len(norms) == 6 and norms == pytest.approx([1e-3] * 6, rel=1e-2)


def test_lasting_nonfinite_losses_are_fatal_and_change_no_weights(data, tmp_path, monkeypatch):
    def nan(model, *_):
        return sum(p.sum() for p in model.parameters()) * math.nan

    made = []

    def remembered(self, *arguments):
        made.append((self.model, [p.detach().clone() for p in self.model.parameters()]))
        return loop(self, *arguments)

    loop = training.Training.loop
    monkeypatch.setattr(training.Training, "loop", remembered)
    monkeypatch.setitem(training.LOSSES, "start", nan)
    monkeypatch.setattr(training.Reporter, "validate", lambda *_: False)
    with pytest.raises(UserError, match="not finite for 20 steps"):
        train(settings(data, tmp_path, epochs=10))
    model, initial = made[0]
    for parameter, was in zip(model.parameters(), initial, strict=True):
        assert torch.equal(parameter, was)


def test_learning_rate_is_a_function_of_the_step():
    rates = [training.learning_rate(step, 100, 10, 1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    short = [training.learning_rate(step, 10, 200, 1.0) for step in range(10)]
    assert short[1] == max(short) == 1.0 and short[-1] < 0.1  # a fifth of the stage at most


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_is_in_one_group_and_all_have_one_rate(kind):
    model = MAMBADiffusionV2(**SIZE, perceiver_heads=2)
    optimiser = Optimiser(model, kind, 1e-3, 0.1)
    groups = [group for part in optimiser.parts for group in part.param_groups]
    names = {id(p): name for name, p in model.named_parameters()}
    grouped = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    decayed = [names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]]
    assert not any("A_log" in name or "bias" in name for name in decayed)
    is_muon = {names[id(p)]: "momentum" in g for g in groups for p in g["params"]}
    assert is_muon["mamba.merge.weight"] == (kind == "muon") and not is_muon["decoder.1.weight"]
    optimiser.rate = 0.5
    assert {group["lr"] for group in groups} == {0.5} and optimiser.rate == 0.5


# --- settings ------------------------------------------------------------------------------------


def test_names_of_settings_that_may_change_are_settings():
    assert BESIDE_LEARNING < MAY_CHANGE < {setting.name for setting in fields(TrainingConfig)}


@pytest.mark.parametrize("change, named", [
    (dict(epochs=0), "epochs=0"), (dict(lr=0.0), "lr=0.0"), (dict(lr=float("nan")), "lr=nan"),
    (dict(queries_max=4, queries_min=8), "queries_max=4"), (dict(ema_decay=1.0), "ema_decay"),
    (dict(zero_share=1.5), "zero_share"), (dict(batch_size=8, accumulate=3), "accumulate=3"),
    (dict(grad_clip=0.0), "grad_clip=0.0"), (dict(warmup=-1), "warmup=-1"),
    (dict(device="tpu9"), "device='tpu9'"), (dict(device="cuda:99"), "device='cuda:99'"),
    (dict(data="/nowhere.npz"), "nowhere.npz"), (dict(observe="most"), "most"),
    (dict(noise="2"), "--noise 2: give its sd as a share"),
    (dict(noise="0.1", time=8), "sequences are learnt without"),
    (dict(resume="must"), "holds no checkpoint to go on from"),
    (dict(data="terrain", value_range=(0.0, 5.0)), "terrain brings its own; leave it out"),
    (dict(data="terrain", data_val="a.npz"), "terrain brings its own; leave it out"),
])
def test_settings_that_cannot_work_are_refused(data, tmp_path, change, named):
    for dry_run in (True, False):
        with pytest.raises(UserError, match=named):
            train(settings(**{"data": data, "folder": tmp_path, "dry_run": dry_run, **change}))


def test_a_rehearsal_refuses_what_a_start_would_and_writes_nothing(data, tmp_path, copied):
    train(settings(data, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()
    files = {path: path.stat().st_mtime_ns for path in copied.iterdir()}
    rehearsed = settings(data, copied, **WHOLE, dry_run=True)
    train(rehearsed)
    with pytest.raises(UserError, match="holds a training with d_state=16"):
        train(replace(rehearsed, d_state=8))
    train(replace(rehearsed, d_state=8, resume="never"))
    assert files == {path: path.stat().st_mtime_ns for path in copied.iterdir()}


# --- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, words", [("latest", "truncated"), ("best", "weights alone")])
def test_a_newest_checkpoint_that_is_none_falls_back(data, copied, capsys, source, words):
    latest, found = copied / "mamba_v2_latest.pth", copied / f"mamba_v2_{source}.pth"
    latest.write_bytes(found.read_bytes()[: 1000 if source == "latest" else None])
    train(settings(data, copied, **{**WHOLE, "epochs": 4}))
    printed = capsys.readouterr().out
    assert words in printed and "falling back to" in printed and "epoch_0003.pth" in printed
    assert load_checkpoint(latest)["epoch"] == 4


def test_contradicting_settings_are_named_and_setting_aside_leaves_other_files(data, copied):
    with pytest.raises(UserError, match=r"lr=0.001 \(now 0.5\)"):
        train(settings(data, copied, **WHOLE, lr=0.5))
    (copied / "quick").mkdir()
    (copied / "notes.txt").write_text("mine")
    (copied / "old_2").mkdir()
    train(settings(data, copied, epochs=1, lr=0.5, resume="never"))
    assert (copied / "notes.txt").exists() and (copied / "quick").exists()
    assert (copied / "old_3" / "mamba_v2_latest.pth").exists()
    assert [record["step"] for record in records(copied)] == [0, 3, 3, 6, 6, 6, 6]


def test_a_training_goes_on_with_its_paths_spelled_otherwise(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = write_ramps(tmp_path / "val.npz").name
    run, other = tmp_path / "run", f"{tmp_path}/../{tmp_path.name}/{name}"
    train(settings(data, run, epochs=1, data_val=name))
    train(settings(data, run, epochs=2, data_val=other))
    with pytest.raises(UserError, match="holds a training with data="):
        train(settings(data, run, epochs=2, data_val=other, data_test=other))


def test_extending_epochs_goes_on_along_the_longer_cosine(data, tmp_path, capsys):
    train(settings(data, tmp_path, epochs=1, start_share=0.0))
    train(settings(data, tmp_path, epochs=3, start_share=0.0))
    assert "EPOCHS was 1 and is 3" in capsys.readouterr().out
    rates = [record["lr"] for record in records(tmp_path) if "lr" in record]
    assert rates[1:] == [training.learning_rate(step - 1, 18, 2, 1e-3) for step in (12, 18)]
    assert rates[1] > rates[0]


def test_the_best_counts_on_the_same_validation_pictures_alone(data, copied):
    def best() -> int:
        return load_checkpoint(copied / "mamba_v2_best.pth")["step"]

    state = torch.load(copied / "mamba_v2_latest.pth", weights_only=True)
    state["resume"]["progress"]["best_loss"] = 0.0  # of an easy picture: nothing will beat it
    state.pop("digest")
    save_checkpoint(copied / "mamba_v2_latest.pth", state)
    train(settings(data, copied, **{**WHOLE, "epochs": 4}))
    assert best() <= 18
    train(settings(data, copied, **{**WHOLE, "epochs": 5}, eval_pictures=1))
    assert best() == 30


def test_a_best_that_was_deleted_is_found_again(data, copied):
    for path in copied.glob("mamba_v2_best.*"):
        path.unlink()
    train(settings(data, copied, **{**WHOLE, "epochs": 4}))
    assert (copied / "mamba_v2_best.pth").exists()


def test_the_frozen_start_answers_without_dropout(data, tmp_path, monkeypatch):
    seen = []

    def watched(model, *arguments):
        parts = (model.unet.shift, model.unet.scale, model.unet.flow, model.decoder)
        seen.append([part.training for part in parts])
        return velocity_loss(model, *arguments)

    velocity_loss = training.LOSSES["flow"]
    monkeypatch.setitem(training.LOSSES, "flow", watched)
    train(settings(data, tmp_path, unet_width=8, flow_unet_width=8, start_share=0.5))
    assert [False, False, True, True] in seen and [True, True, True, True] not in seen


def test_noise_that_a_flow_starts_from_has_the_sd_of_standardised_fields(tmp_path):
    """Each field is seen by its own mean and sd, of which 3 are 1."""
    rain = np.exp(1.2 * np.random.default_rng(0).standard_normal((60, 8, 8, 1)))
    np.savez(tmp_path / "rain.npz", images=rain.astype(np.float32))
    chosen = settings(tmp_path / "rain.npz", tmp_path, standardise=True, observe="random:0.9")
    data = open_as_configured(asdict(chosen))
    found = model_arguments(chosen, MAMBADiffusionV2, data)["value_sd"]
    assert found == pytest.approx(1 / 3, rel=0.05)


def test_a_page_of_a_training_whose_records_no_disk_takes():
    stages = Stages(5, 10)
    page = training_page("V2", TrainingConfig(), stages, [], {}, Path("."))
    assert b"Step 0 of 10" in page
