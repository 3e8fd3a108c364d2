"""Several processes: the same training as one, that outlives the death of any of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small import records, settings, train

from sparsefield.model.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


def command(config, processes: int) -> list[str]:
    flags = [word for name, value in vars(config).items() if value is not None
             for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={processes}", str(ROOT / "train_mamba_v2.py"), *flags]


def ranks(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder) if "loss" in record]


def test_two_processes_train_as_one_and_one_goes_on_when_a_rank_dies(data, tmp_path):
    """1 and 2 processes give equal losses; the job ends with a dead rank; 1 process takes over."""
    shared = dict(epochs=12, precision="float32", eval_every=12, eval_pictures=3, dropout=0.1)
    two, one = tmp_path / "two", tmp_path / "one"
    job = subprocess.Popen(command(settings(data, two, **shared), 2), cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until(lambda: job.poll() is not None or (two / "mamba_v2_epoch_0002.pth").exists())
        os.kill(ranks(job)[1], signal.SIGKILL)
        printed, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode != 0 and "SIGKILL" in printed and "machine: cpu, 2 process" in printed
    done = load_checkpoint(two / "mamba_v2_latest.pth")["epoch"]
    assert 2 <= done < 12

    train(settings(data, one, **shared))
    assert losses(two)[:done] == pytest.approx(losses(one)[:done], rel=1e-4)
    train(settings(data, two, **shared, resume="must"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    ends = [load_checkpoint(folder / "mamba_v2_latest.pth") for folder in (one, two)]
    for name, weight in ends[0]["weights"].items():
        assert torch.allclose(weight, ends[1]["weights"][name], rtol=1e-3, atol=1e-3), name
    psnr = [end["metrics"]["psnr"] for end in ends]
    assert psnr[0] == pytest.approx(psnr[1], abs=0.05)


@pytest.mark.long
def test_torchrun_passes_a_signal_on_and_two_go_on_where_one_stopped(data, tmp_path):
    shared = dict(epochs=12, precision="float32", eval_every=12, eval_pictures=3, dropout=0.1)
    one, parts = tmp_path / "one", tmp_path / "parts"
    train(settings(data, one, **shared))
    train(settings(data, parts, **{**shared, "epochs": 1}))
    config = settings(data, parts, **shared, resume="must")
    job = subprocess.Popen(command(config, 2), cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(lambda: job.poll() is not None or (parts / "mamba_v2_epoch_0003.pth").exists())
    job.terminate()  # torchrun passes it on, waits, and calls that a failure
    printed, _ = job.communicate(timeout=60)
    assert "the same command goes on from here" in printed
    last = load_checkpoint(parts / "mamba_v2_latest.pth")["step"]
    again = subprocess.run(command(config, 2), cwd=ROOT, text=True, capture_output=True)
    assert again.returncode == 0 and f"going on from step {last} " in again.stdout
    assert len(losses(parts)) == len(losses(one))


@pytest.mark.long
def test_ranks_whose_launcher_dies_save_and_end(data, tmp_path):
    job = subprocess.Popen(command(settings(data, tmp_path, epochs=10_000), 2), cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(lambda: (tmp_path / "mamba_v2_epoch_0001.pth").exists())
    orphans = ranks(job)
    job.kill()
    printed = job.stdout.read()  # ends with the last rank
    assert "the same command goes on from here" in printed
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), 10)
