"""What can go wrong while training, for real where that is cheap, and what is left then."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import assert_same, records, settings, train

from sparsefield.data import TrainingBatches
from sparsefield.errors import UserError
from sparsefield.model.checkpoint import load_checkpoint, load_model
from sparsefield.train import loop as training
from sparsefield.train import run as runfolder
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


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """An undisturbed training of three epochs (18 steps)."""
    folder = tmp_path_factory.mktemp("whole")
    train(settings(data, folder, epochs=3, eval_every=1))
    return folder


# --- the disk ------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 12 MB. Needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk(data, tiny_disk, whole, capsys):
    """Without space training goes on, ends with an error, keeps the old state, and resumes."""
    config = settings(data, tiny_disk / "run", epochs=3, eval_every=1, visualize_every=100)
    filler = tiny_disk / "filler"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 8, lambda: fill(filler))
        with pytest.raises(UserError, match="could not be saved"):
            train(config)
    printed = capsys.readouterr().out
    assert "WARNING: checkpoint not written (No space left on device)" in printed
    assert "epoch 3/3" in printed
    assert load_checkpoint(tiny_disk / "run" / "mamba_v2_latest.pth")["epoch"] == 1
    assert not list((tiny_disk / "run").glob(".*.tmp"))
    filler.unlink()
    train(config)
    assert_same_training(whole, tiny_disk / "run")


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))


def test_disk_that_takes_small_files_only(data, tmp_path, whole, capsys):
    """The same without root: the kernel refuses every file beyond 100 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = settings(data, tmp_path, epochs=3, eval_every=1, visualize_every=100)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 8, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1])))
        try:
            with pytest.raises(UserError, match="could not be saved"):
                train(config)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "WARNING: checkpoint not written (File too large)" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["epoch"] == 1
    train(config)
    assert_same_training(whole, tmp_path)


def test_read_only_disk(data, tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(UserError, match=r"cannot be written .Read-only file system"):
        train(settings(data, tiny_disk / "run"))


@pytest.mark.parametrize("folder", ["/proc/nothing", "/dev/null/run"])
def test_folder_that_cannot_be(data, folder):
    with pytest.raises(UserError, match="cannot be written"):
        train(settings(data, Path(folder)))


def test_metrics_lines_are_whole_or_absent(tmp_path):
    folder = RunFolder(tmp_path, "mamba_v2")
    with folder.locked():
        folder.record(1, loss=0.5)
        with open(folder.records, "a") as file:
            file.write('{"step": 2, "lo')  # killed while it wrote
        folder.rewind(2)
        folder.record(3, loss=0.25)
    assert [record["step"] for record in folder.read_records()] == [1, 3]
    assert len(folder.records.read_text().splitlines()) == 2


# --- processes -----------------------------------------------------------------------------------


def test_dead_data_process_is_replaced(data, tmp_path, whole, monkeypatch, capsys):
    def kill_a_child():
        pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(pids[-1]), signal.SIGKILL)

    at_step(monkeypatch, 4, kill_a_child)
    train(settings(data, tmp_path, epochs=3, num_workers=1))
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


def test_the_lock_says_who_holds_it(data, tmp_path):
    held = RunFolder(tmp_path, "mamba_v2").locked()
    with held, pytest.raises(UserError, match=f"process {os.getpid()} on"):
        train(settings(data, tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_end(data, tmp_path, whole, monkeypatch, capsys, number):
    former = signal.signal(number, signal.SIG_DFL)  # nohup, if pytest runs in it, ignores SIGHUP
    try:
        with monkeypatch.context() as patch:
            at_step(patch, 8, lambda: signal.raise_signal(number))
            train(settings(data, tmp_path, epochs=3))
    finally:
        signal.signal(number, former)
    assert "stopped after step 8" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["step"] == 8
    train(settings(data, tmp_path, epochs=3, resume="must"))
    assert_same_training(whole, tmp_path)


def test_second_signal_ends_at_once(data, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 8, twice)
    with pytest.raises(KeyboardInterrupt):
        train(settings(data, tmp_path, epochs=3))
    assert load_checkpoint(tmp_path / "mamba_v2_latest.pth")["step"] == 6


def test_signals_that_torchrun_repeats_are_one():
    with training.StopRequest(launched=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked


def test_left_overs_of_a_killed_training_are_removed(data, tmp_path, capsys):
    (tmp_path / ".mamba_v2_latest.pth.123.tmp").write_bytes(b"half")
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "loss": 1.0}\n{"st')  # never saved
    train(settings(data, tmp_path, epochs=1))
    assert not list(tmp_path.glob(".*.tmp"))
    assert [record["step"] for record in records(tmp_path)] == [0, 6, 6]  # validations and loss


# --- memory, clock, compiler ---------------------------------------------------------------------


def test_out_of_memory_says_what_to_lower(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsefield.train.loop.start_loss",
                        lambda *_: torch.empty(2**50, dtype=torch.float64))
    with pytest.raises(UserError, match=r"out of memory: raise ACCUMULATE .*BATCH_SIZE .*D_MODEL"):
        train(settings(data, tmp_path))


def test_clock_that_jumps_changes_nothing(data, tmp_path, whole, monkeypatch):
    jumps = iter(range(10**6))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 86_400 * (next(jumps) % 3))
    train(settings(data, tmp_path, epochs=3))
    assert_same_training(whole, tmp_path)
    timed = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    minutes = [record["minutes"] for record in timed]
    assert minutes == sorted(minutes) and minutes[0] >= 0 and minutes[-1] < 5
    assert all(r["samples_per_s"] > 0 and 0 <= r["data_wait"] <= 1 for r in timed if "loss" in r)


def test_every_number_is_recorded(whole):
    epochs = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    wanted = {"loss", "grad_norm", "lr", "samples_per_s", "data_wait", "memory_mb", "skipped"}
    assert sum(wanted <= record.keys() for record in epochs) == 3

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [6, 12, 18]


# --- the folder's content ------------------------------------------------------------------------


def test_only_the_last_epochs_are_kept_and_counted_as_numbers(tmp_path):
    folder = RunFolder(tmp_path, "mamba_v2")
    for epoch in (8, 9_999, 10_000, 10_001):
        assert folder.save({"epoch": epoch}, numbered=True, keep=2)
    assert [path.name for path in folder.numbered()] == [
        "mamba_v2_epoch_10000.pth", "mamba_v2_epoch_10001.pth"]


def test_weights_alone_are_nothing_to_go_on_from(data, tmp_path, capsys):
    train(settings(data, tmp_path, epochs=1))
    latest, best = tmp_path / "mamba_v2_latest.pth", tmp_path / "mamba_v2_best.pth"
    latest.write_bytes(best.read_bytes())
    train(settings(data, tmp_path, epochs=2))
    assert "holds weights alone" in capsys.readouterr().out


def test_another_models_folder_is_refused(data, tmp_path):
    (tmp_path / "mamba_latest.pth").write_bytes(b"")
    with pytest.raises(UserError, match="another model's training"):
        train(settings(data, tmp_path))


def test_setting_aside_leaves_other_files_alone(data, tmp_path):
    (tmp_path / "quick").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "old_2").mkdir()
    for _ in range(2):
        train(settings(data, tmp_path, epochs=1, resume="never"))
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "quick").exists()
    assert (tmp_path / "old_3" / "mamba_v2_latest.pth").exists()
    assert [record["step"] for record in records(tmp_path)] == [0, 6, 6]


def test_extending_epochs_goes_on_along_the_longer_cosine(data, tmp_path, capsys):
    train(settings(data, tmp_path, epochs=1, start_share=0.0))
    train(settings(data, tmp_path, epochs=3, start_share=0.0))
    assert "EPOCHS was 1 and is 3" in capsys.readouterr().out
    rates = [record["lr"] for record in records(tmp_path) if "lr" in record]
    assert rates[1:] == [training.learning_rate(step - 1, 18, 2, 1e-3) for step in (12, 18)]
    assert rates[1] > rates[0]


def test_intervals_do_not_change_what_is_trained(data, tmp_path, whole):
    train(settings(data, tmp_path, epochs=3, eval_every=2, eval_pictures=1, save_every=3,
                   visualize_every=1))
    first, second = (load_checkpoint(p / "mamba_v2_latest.pth") for p in (whole, tmp_path))
    assert_same(first["weights"], second["weights"])
    for key in ("model", "averaged", "optimiser"):
        assert_same(first["resume"][key], second["resume"][key])
    losses = [[r["loss"] for r in records(p) if "loss" in r] for p in (whole, tmp_path)]
    assert losses[0] == losses[1]


def test_shared_weights_hold_their_configuration(whole):
    _, checkpoint = load_model(whole / "mamba_v2_best.safetensors")
    assert checkpoint["config"]["d_model"] == 16 and checkpoint["data"]["channels"] == 3


@pytest.mark.parametrize("file", ["mamba_v2_latest.pth", "mamba_v2_best.safetensors"])
def test_damaged_files_load_as_saved_or_get_one_line(whole, tmp_path, file):
    """Cut or overwritten anywhere, a file gives what was saved or is refused in a line."""
    content = (whole / file).read_bytes()
    saved, _ = load_model(whole / file)
    rng = np.random.default_rng(0)
    for _ in range(60):
        place = int(rng.integers(len(content)))
        damaged = bytearray(content[:place])
        if rng.random() < 0.5:
            damaged += rng.bytes(40) + content[place + 40:]
        path = tmp_path / file
        path.write_bytes(damaged)
        try:
            loaded, _ = load_model(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert_same(dict(loaded.state_dict()), dict(saved.state_dict()))


def test_a_kill_between_the_two_files_of_the_best_weights_leaves_none_uncalibrated(
    data, tmp_path, monkeypatch
):
    """The .pth says whether calibration is still to be done, so it is written last."""
    train(settings(data, tmp_path, epochs=1))
    best = tmp_path / "mamba_v2_best.pth"
    calibrated = load_checkpoint(best)
    folder = RunFolder(tmp_path, "mamba_v2")
    raw = {key: value for key, value in calibrated.items() if key != "calibration"}
    assert folder.save_best(raw)

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("save_checkpoint", "save_safetensors"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runfolder, name, killed)
            folder.save_best(calibrated)
        states = ["calibration" in load_checkpoint(best.with_suffix(ending))
                  for ending in (".pth", ".safetensors")]
        assert states != [True, False], f"killed in {name}"
