"""What can go wrong while training, for real where that is cheap, and what is left then."""

import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from small import WHOLE, assert_same, records, settings, train, write_untrained
from sparsefield.data import TrainingBatches
from sparsefield.errors import UserError
from sparsefield.model import checkpoint as files
from sparsefield.model.checkpoint import (
    load_checkpoint,
    load_model,
    save_checkpoint,
    save_safetensors,
)
from sparsefield.train import loop as training
from sparsefield.train import report
from sparsefield.train.config import TrainingConfig
from sparsefield.train.run import RunFolder


def at_step(monkeypatch, step: int, act) -> None:
    """Call `act` once, when a training has completed this step."""
    original = training.Progress.record

    def record(self, *numbers):
        original(self, *numbers)
        if self.step == step:
            act()

    monkeypatch.setattr(training.Progress, "record", record)


def assert_same_training(one: Path, other: Path) -> None:
    """Both folders hold the same training: state, averaged weights, best and logged numbers."""
    for name in ("latest", "best"):
        first, second = (load_checkpoint(path / f"mamba_v2_{name}.pth") for path in (one, other))
        assert_same(first["weights"], second["weights"])
        assert first["step"] == second["step"] and first["metrics"] == second["metrics"]
        if name == "latest":
            for checkpoint in (first, second):
                checkpoint["resume"]["progress"].pop("seconds")
            assert_same(first["resume"], second["resume"])
    assert records(one) == records(other)


# --- the disk ------------------------------------------------------------------------------------


def test_disk_that_takes_small_files_only(data, tmp_path, whole, capsys):
    """Training goes on, ends with an error, keeps the old state, and resumes: here the kernel
    refuses every file beyond 100 kB, as it would on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = settings(data, tmp_path, **WHOLE)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 8, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1])))
        try:
            with pytest.raises(UserError, match="could not be saved"):
                train(config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    printed = capsys.readouterr().out
    assert "WARNING: checkpoint not written (File too large)" in printed
    assert "epoch 3/3" in printed and not list(tmp_path.glob(".*.tmp"))
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["epoch"] == 1
    train(config)
    assert_same_training(whole, tmp_path)


@pytest.mark.parametrize("folder", ["/proc/nothing", "/dev/null/run"])
def test_folder_that_cannot_be(data, folder):
    with pytest.raises(UserError, match="cannot be written"):
        train(settings(data, Path(folder)))


# --- processes -----------------------------------------------------------------------------------


def test_dead_data_process_is_replaced(data, tmp_path, whole, monkeypatch, capsys):
    def kill_a_child():
        pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(pids[-1]), signal.SIGKILL)

    at_step(monkeypatch, 4, kill_a_child)
    train(settings(data, tmp_path, **WHOLE, num_workers=1))
    assert "a process that prepares data died" in capsys.readouterr().out
    assert_same_training(whole, tmp_path)


@pytest.mark.long  # PyTorch looks every five seconds whether they live
def test_data_processes_that_keep_dying(data, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingBatches, "__getitem__", lambda *_: os._exit(1))
    with pytest.raises(UserError, match="keep dying"):
        train(settings(data, tmp_path, num_workers=1))


def test_data_processes_do_not_hold_the_folder(tmp_path):
    """A killed training's data processes live some seconds longer: the next need not wait."""
    with RunFolder(tmp_path, "mamba_v2").locked():
        up, says_up = os.pipe()
        sleeper = os.fork()
        if sleeper == 0:
            os.write(says_up, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(up, 1)
    try:
        with RunFolder(tmp_path, "mamba_v2").locked():
            pass
    finally:
        os.kill(sleeper, signal.SIGKILL)
        os.waitpid(sleeper, 0)


def test_a_second_training_in_one_folder_is_refused_and_told_who_holds_it(data, tmp_path):
    held = RunFolder(tmp_path, "mamba_v2").locked()
    words = f"another training writes to .*process {os.getpid()} on"
    with held, pytest.raises(UserError, match=words):
        train(settings(data, tmp_path))


@pytest.mark.parametrize("number, step", [(signal.SIGTERM, 3), (signal.SIGHUP, 11)])
def test_interrupted_training_ends_bit_for_bit_like_an_uninterrupted_one(
    data, tmp_path, whole, monkeypatch, capsys, number, step
):
    earlier = signal.signal(number, signal.SIG_DFL)  # nohup, if pytest runs in it, ignores SIGHUP
    try:
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda: signal.raise_signal(number))
            train(settings(data, tmp_path, **WHOLE))
    finally:
        signal.signal(number, earlier)
    assert f"stopped after step {step}" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["step"] == step
    train(settings(data, tmp_path, **WHOLE, resume="must"))
    assert_same_training(whole, tmp_path)


def test_a_training_with_noise_that_died_in_an_epoch_goes_on_bit_for_bit(
    data, tmp_path, monkeypatch, capsys
):
    def die():
        raise KeyError

    noisy = dict(noise="0-0.3", epochs=1, start_share=0.7)
    train(settings(data, tmp_path / "whole", **noisy))
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        at_step(patch, 3, die)
        patch.setattr(training, "SAVED_SECONDS", 0)  # within its only epoch
        patch.setattr(report, "TOLD_SECONDS", 0)
        train(settings(data, tmp_path / "parts", **noisy))
    assert "step 2 of 6  loss " in capsys.readouterr().out
    train(settings(data, tmp_path / "parts", **noisy, resume="must"))
    assert "going on from step 2 " in capsys.readouterr().out
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    train(settings(data, tmp_path / "exact", **noisy | {"noise": "0"}))
    first, second = (load_checkpoint(tmp_path / name / "mamba_v2_latest.pth")
                     for name in ("whole", "exact"))
    assert first["config"]["noise"] == "0-0.3" and first["metrics"] != second["metrics"]
    with pytest.raises(UserError, match="noise=0 "):
        train(settings(data, tmp_path / "exact", **noisy))


def test_second_signal_ends_at_once(data, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 8, twice)
    with pytest.raises(KeyboardInterrupt):
        train(settings(data, tmp_path))
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["step"] == 6


def test_signals_that_torchrun_repeats_are_one():
    with training.StopRequest(launched=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked


def test_records_of_a_run_that_ended_before_its_first_checkpoint_are_forgotten(data, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "loss": 1.0}\n{"st')
    train(settings(data, tmp_path, epochs=1))
    assert [record["step"] for record in records(tmp_path)] == [0, 3, 3, 6, 6, 6, 6]


def test_a_log_that_is_the_data_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match="is the file of data"):
        TrainingConfig(data=str(tmp_path / "a.npy"), log_file=str(tmp_path / "a.npy")).check()


def test_a_training_leaves_the_files_of_others_and_whole_lines(tmp_path):
    theirs = {".notes.tmp", ".mamba_v2_latest.pth.tmp", ".report.7.tmp"}
    ours = {".mamba_v2_latest.pth.7.tmp", ".mamba_v2_epoch_0010.pth.7.tmp", ".metrics.jsonl.7.tmp",
            ".mamba_v2_best.safetensors.7.tmp"}  # half written by a training that was killed
    for name in theirs | ours:
        (tmp_path / name).write_text("mine")
    lines = ['{"epoch": 3, "mine": 1}', "my own line", '["x"]', '{"step": 1, "epoch": 0}',
             '{"step": 9, "epoch": 1}', '{"step": 2, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    folder = RunFolder(tmp_path, "mamba_v2")
    with folder.locked():
        folder.rewind(5)
        folder.record(6, epoch=1)
    assert {p.name for p in tmp_path.glob(".*.tmp")} == theirs
    assert folder.records.read_text().splitlines()[:-1] == lines[:4]
    assert folder.read_records() == [{"step": 1, "epoch": 0}, {"step": 6, "epoch": 1}]


# --- memory --------------------------------------------------------------------------------------


def test_out_of_memory_says_what_to_lower(data, tmp_path, monkeypatch):
    monkeypatch.setitem(training.LOSSES, "start",
                        lambda *_: torch.empty(2**50, dtype=torch.float64))
    with pytest.raises(UserError, match=r"out of memory: raise ACCUMULATE .*BATCH_SIZE .*D_MODEL"):
        train(settings(data, tmp_path))


# --- the folder's content ------------------------------------------------------------------------


def test_only_the_last_epochs_are_kept_and_counted_as_numbers(tmp_path):
    folder = RunFolder(tmp_path, "mamba_v2")
    for epoch in (8, 9_999, 10_000, 10_001):
        assert folder.save({"epoch": epoch}, numbered=True, keep=2)
    assert [path.name for path in folder.numbered()] == [
        "mamba_v2_epoch_10000.pth", "mamba_v2_epoch_10001.pth"]


def test_another_models_folder_is_refused(data, tmp_path):
    (tmp_path / "mamba_latest.pth").write_bytes(b"")
    with pytest.raises(UserError, match="another model's training"):
        train(settings(data, tmp_path))


@pytest.mark.parametrize("file", ["mamba_v2_latest.pth", "mamba_v2_best.safetensors"])
def test_damaged_files_load_as_saved_or_get_one_line(whole, tmp_path, file):
    """Cut or overwritten anywhere, a file gives what was saved or is refused in a line."""
    content, saved = (whole / file).read_bytes(), load_model(whole / file)[0]
    rng = np.random.default_rng(0)
    for _ in range(30):
        place = int(rng.integers(len(content)))
        rest = rng.bytes(40) + content[place + 40:] if rng.random() < 0.5 else b""
        (tmp_path / file).write_bytes(content[:place] + rest)
        try:
            loaded, _ = load_model(tmp_path / file)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert_same(dict(loaded.state_dict()), dict(saved.state_dict()))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_kill_between_the_two_files_of_the_best_weights_leaves_none_uncalibrated(
    copied, monkeypatch
):
    """The .pth says whether calibration is still to be done, so it is written last."""
    best = copied / "mamba_v2_best.pth"
    calibrated, folder = load_checkpoint(best), RunFolder(copied, "mamba_v2")
    assert folder.save_best({k: v for k, v in calibrated.items() if k != "calibration"})
    for name in ("save_checkpoint", "save_safetensors"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(files, name, _interrupted)
            folder.save_best(calibrated)
        states = ["calibration" in load_checkpoint(best.with_suffix(ending))
                  for ending in (".pth", ".safetensors")]
        assert states != [True, False], f"killed in {name}"


# --- checkpoints ---------------------------------------------------------------------------------


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
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    for name, words in {"text.pth": "refused|cannot be read", "other.pth": "not a checkpoint",
                        "absent.pth": "does not exist", "": "is a folder"}.items():
        with pytest.raises(UserError, match=words):
            load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("ending, save", [("pth", save_checkpoint),
                                          ("safetensors", save_safetensors)])
def test_weights_of_an_earlier_flow_are_refused_with_what_to_do(whole, tmp_path, ending, save):
    checkpoint = {**load_checkpoint(whole / "mamba_v2_latest.pth"), "format": 1}
    save(tmp_path / f"earlier.{ending}", checkpoint)
    with pytest.raises(UserError, match="Train again, or use commit f7b6c33"):
        load_checkpoint(tmp_path / f"earlier.{ending}")


@pytest.mark.parametrize("change, words", [
    (lambda w: {f"module.{k}": v for k, v in w.items()}, "DistributedDataParallel"),
    (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "torch.compile"),
    (lambda w: {k: v * float("nan") for k, v in w.items()}, r"NaN or infinity \(in "),
    (lambda w: {k: 5 for k in w}, "is no tensor"),
])
def test_weights_that_no_training_of_ours_left(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        load_model(write_untrained(tmp_path / "m.pth", change=change))
