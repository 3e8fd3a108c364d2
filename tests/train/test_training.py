"""The training loop: what it refuses, writes, survives, and that it resumes exactly."""

import math
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small import assert_same, records, settings, train
from torch import nn

from sparsefield.errors import UserError
from sparsefield.model.checkpoint import (
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_safetensors,
)
from sparsefield.train import loop as training
from sparsefield.train.config import TrainingConfig
from sparsefield.train.optimise import Optimiser
from sparsefield.train.run import RunFolder
from train_mamba_v2 import Config, MAMBADiffusionV2


def test_writes_everything_and_the_model_comes_back(data, tmp_path):
    train(settings(data, tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "mamba_v2_best.pth", "mamba_v2_best.safetensors", "mamba_v2_latest.pth",
        "mamba_v2_epoch_0001.pth", "mamba_v2_epoch_0002.pth", "metrics.jsonl", "tensorboard",
        "training_loss.png", "pictures_epoch_0002.png",
    }
    model, checkpoint = load_model(tmp_path / "mamba_v2_best.pth")
    assert checkpoint["data"]["channels"] == 3 and "resume" not in checkpoint
    shared, _ = load_model(tmp_path / "mamba_v2_best.safetensors")
    assert_same(dict(model.state_dict()), dict(shared.state_dict()))


def test_interrupted_training_ends_bit_for_bit_like_an_uninterrupted_one(
    data, tmp_path, monkeypatch
):
    train(settings(data, tmp_path / "whole", dropout=0.1))
    # Stop in the middle of an epoch, and validate at other intervals until then.
    for stop_after in (3, 9):
        original = training.Progress.record

        def record(self, *step, stop_after=stop_after, original=original):
            original(self, *step)
            if self.step == stop_after:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(training.Progress, "record", record)
        # The stop is noticed one step later, in a run of its own each time.
        train(settings(data, tmp_path / "parts", dropout=0.1))
        monkeypatch.undo()
    train(settings(data, tmp_path / "parts", dropout=0.1, resume="must"))
    whole, parts = (load_checkpoint(tmp_path / name / "mamba_v2_latest.pth")
                    for name in ("whole", "parts"))
    for checkpoint in (whole, parts):
        checkpoint["resume"]["progress"].pop("seconds")
    assert_same(whole["resume"], parts["resume"])
    assert_same(whole["weights"], parts["weights"])
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_truncated_newest_checkpoint_falls_back(data, tmp_path, capsys):
    train(settings(data, tmp_path, epochs=2))
    latest = tmp_path / "mamba_v2_latest.pth"
    latest.write_bytes(latest.read_bytes()[:1000])
    train(settings(data, tmp_path, epochs=3))
    printed = capsys.readouterr().out
    assert "falling back to" in printed and "mamba_v2_epoch_0002.pth" in printed
    assert load_checkpoint(latest)["epoch"] == 3


def test_contradicting_settings_are_named(data, tmp_path):
    train(settings(data, tmp_path, epochs=1))
    with pytest.raises(UserError, match=r"lr=0.001 \(now 0.5\)"):
        train(settings(data, tmp_path, epochs=1, lr=0.5))
    train(settings(data, tmp_path, epochs=1, lr=0.5, resume="never"))
    assert (tmp_path / "old_1" / "mamba_v2_latest.pth").exists()


def test_resume_must_needs_a_checkpoint(data, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        train(settings(data, tmp_path, resume="must"))


def test_second_training_in_one_folder_is_refused(data, tmp_path):
    held = RunFolder(tmp_path, "mamba_v2").locked()
    with held, pytest.raises(UserError, match="another training writes to"):
        train(settings(data, tmp_path))


def test_lasting_nonfinite_losses_are_fatal_and_only_decay_weights(data, tmp_path, monkeypatch):
    for loss in ("start_loss", "velocity_loss"):
        monkeypatch.setattr(
            training, loss, lambda model, *_: sum(p.sum() for p in model.parameters()) * math.nan
        )
    config = settings(data, tmp_path, epochs=10, eval_every=100)
    monkeypatch.setattr(training.Reporter, "validate", lambda *_: False)
    before = MAMBADiffusionV2.__init__

    made = []

    def remember(self, **arguments):
        before(self, **arguments)
        made.append((self, [p.detach().clone() for p in self.parameters()]))

    monkeypatch.setattr(MAMBADiffusionV2, "__init__", remember)
    with pytest.raises(UserError, match="not finite for 20 steps"):
        training.train(config, MAMBADiffusionV2, "mamba_v2")
    model, initial = made[0]
    for parameter, was in zip(model.parameters(), initial, strict=True):
        torch.testing.assert_close(parameter, was, rtol=1e-3, atol=1e-6)


def test_learning_rate_is_a_function_of_the_step():
    rates = [training.learning_rate(step, 100, 10, 1.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_is_in_one_group(kind):
    model = MAMBADiffusionV2(d_model=16, num_layers=2, perceiver_heads=2, unet_width=8)
    groups = [group for part in Optimiser(model, kind, 1e-3, 0.1).parts
              for group in part.param_groups]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = [names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]]
    assert not any("A_log" in name or "bias" in name for name in decayed)


def test_a_rate_is_that_of_all_groups():
    model = MAMBADiffusionV2(d_model=16, num_layers=2, perceiver_heads=2, unet_width=8)
    optimiser = Optimiser(model, "muon", 1e-3, 0.1)
    optimiser.rate = 0.5
    rates = {group["lr"] for part in optimiser.parts for group in part.param_groups}
    assert rates == {0.5} and optimiser.rate == 0.5


def test_muon_makes_the_update_of_a_matrix_orthogonal():
    model = MAMBADiffusionV2(d_model=16, num_layers=2, perceiver_heads=2, unet_width=8)
    optimiser = Optimiser(model, "muon", 1e-3, 0.0)
    matrix = model.mamba.merge.weight
    before = matrix.detach().clone()
    matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    strengths = torch.linalg.svdvals((matrix.detach() - before) / 1e-3)
    assert strengths.max() < 2 * strengths.min()  # five iterations: near, not exact
    assert (matrix.detach() - before).square().mean().sqrt() == pytest.approx(2e-4, rel=0.3)


@pytest.mark.parametrize("change, named", [
    (dict(epochs=0), "epochs=0"), (dict(lr=0.0), "lr=0.0"), (dict(lr=float("nan")), "lr=nan"),
    (dict(queries_max=4, queries_min=8), "queries_max=4"), (dict(ema_decay=1.0), "ema_decay"),
    (dict(zero_share=1.5), "zero_share"), (dict(batch_size=8, accumulate=3), "accumulate=3"),
    (dict(device="tpu9"), "device='tpu9'"), (dict(device="cuda:99"), "device='cuda:99'"),
    (dict(data="/nowhere.npz"), "nowhere.npz"), (dict(observe="most"), "most"),
])
def test_settings_that_cannot_work_are_refused(data, tmp_path, change, named):
    with pytest.raises(UserError, match=named):
        train(settings(**{"data": data, "folder": tmp_path, **change}))


def test_checkpoints_cannot_execute_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    torch.save({"format": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="refused"):
        load_checkpoint(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_checkpoints_get_one_line(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    for name, words in {"text.pth": "refused|cannot be read", "other.pth": "not a checkpoint",
                        "absent.pth": "does not exist", "": "is a folder"}.items():
        with pytest.raises(UserError, match=words):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_an_earlier_flow_are_refused_with_what_to_do(data, tmp_path, ending):
    train(settings(data, tmp_path, epochs=1))
    checkpoint = {**load_checkpoint(tmp_path / "mamba_v2_latest.pth"), "format": 1}
    save = {"pth": save_checkpoint, "safetensors": save_safetensors}[ending]
    save(tmp_path / f"earlier.{ending}", checkpoint)
    with pytest.raises(UserError, match="Train again, or use commit f7b6c33"):
        load_checkpoint(tmp_path / f"earlier.{ending}")


def test_accumulating_gives_the_same_losses(data, tmp_path):
    for parts in (1, 2):
        train(settings(data, tmp_path / str(parts), epochs=1, accumulate=parts,
                       precision="float32"))
    one, two = (records(tmp_path / name) for name in ("1", "2"))
    losses = [[r["loss"] for r in rs if "loss" in r] for rs in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_defaults_are_the_documented_ones():
    config = Config()
    assert (config.epochs, config.batch_size, config.lr) == (1000, 64, 1e-3)
    assert (config.save_every, config.eval_every, config.visualize_every) == (10, 10, 50)
    assert (config.d_model, config.num_layers, config.perceiver_iterations) == (256, 8, 2)
    assert isinstance(config, TrainingConfig) and config.perceiver_heads == 8


def test_the_best_counts_on_the_same_validation_pictures_alone(data, tmp_path):
    def best() -> int:
        return load_checkpoint(tmp_path / "mamba_v2_best.pth")["step"]

    train(settings(data, tmp_path, epochs=1, eval_pictures=1))
    state = torch.load(tmp_path / "mamba_v2_latest.pth", weights_only=True)
    state["resume"]["progress"]["best_loss"] = 0.0  # of an easy picture: nothing will beat it
    state.pop("digest")
    save_checkpoint(tmp_path / "mamba_v2_latest.pth", state)
    train(settings(data, tmp_path, epochs=2, eval_pictures=1))
    assert best() < 12
    train(settings(data, tmp_path, epochs=3, eval_pictures=2))
    assert best() == 18


def test_a_best_that_was_deleted_is_found_again(data, tmp_path):
    train(settings(data, tmp_path, epochs=1))
    for path in tmp_path.glob("mamba_v2_best.*"):
        path.unlink()
    train(settings(data, tmp_path, epochs=2, lr=1e-3))
    assert (tmp_path / "mamba_v2_best.pth").exists()
