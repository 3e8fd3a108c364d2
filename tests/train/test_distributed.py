"""Several processes: the same training as one, that outlives the death of any of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from small import ROOT, flags, losses, settings, train
from sparsefield.model.checkpoint import load_checkpoint

SHARED = dict(epochs=12, precision="float32", eval_every=12, eval_pictures=3, dropout=0.1)


def start(config) -> subprocess.Popen:
    """A training in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "train_mamba_v2.py"), *flags(config)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def ranks(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_two_processes_train_as_one_and_one_goes_on_when_a_rank_dies(data, tmp_path):
    """1 and 2 processes give equal losses; the job ends with a dead rank; 1 process takes over."""
    two, one = tmp_path / "two", tmp_path / "one"
    job = start(settings(data, two, **SHARED))
    try:
        until(lambda: job.poll() is not None or (two / "mamba_v2_epoch_0002.pth").exists())
        os.kill(ranks(job)[1], signal.SIGKILL)
        printed, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode != 0 and "SIGKILL" in printed and "machine: cpu, 2 process" in printed
    done = load_checkpoint(two / "mamba_v2_latest.pth")["epoch"]
    assert 2 <= done < 12

    train(settings(data, one, **SHARED))
    assert losses(two)[:done] == pytest.approx(losses(one)[:done], rel=1e-4)
    train(settings(data, two, **SHARED, resume="must"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    ends = [load_checkpoint(folder / "mamba_v2_latest.pth") for folder in (one, two)]
    for name, weight in ends[0]["weights"].items():
        assert torch.allclose(weight, ends[1]["weights"][name], rtol=1e-3, atol=1e-3), name
    psnr = [end["metrics"]["psnr"] for end in ends]
    assert psnr[0] == pytest.approx(psnr[1], abs=0.05)


@pytest.mark.long
def test_torchrun_passes_a_signal_on_and_two_go_on_where_one_stopped(data, tmp_path):
    one, parts = tmp_path / "one", tmp_path / "parts"
    train(settings(data, one, **SHARED))
    train(settings(data, parts, **{**SHARED, "epochs": 1}))
    config = settings(data, parts, **SHARED, resume="must")
    job = start(config)
    until(lambda: job.poll() is not None or (parts / "mamba_v2_epoch_0003.pth").exists())
    job.terminate()  # torchrun passes it on, waits, and calls that a failure
    printed, _ = job.communicate(timeout=60)
    assert "the same command goes on from here" in printed
    last = load_checkpoint(parts / "mamba_v2_latest.pth")["step"]
    again = start(config)
    printed, _ = again.communicate()
    assert again.returncode == 0 and f"going on from step {last} " in printed
    assert len(losses(parts)) == len(losses(one))


@pytest.mark.long
def test_ranks_whose_launcher_dies_save_and_end(data, tmp_path):
    job = start(settings(data, tmp_path, epochs=10_000))
    until(lambda: (tmp_path / "mamba_v2_epoch_0001.pth").exists())
    orphans = ranks(job)
    job.kill()
    printed = job.stdout.read()  # ends with the last rank
    assert "the same command goes on from here" in printed
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), 10)
