"""What people type before ./run_mamba_v2_training.sh, and from where."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.io import netcdf_file

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "run_mamba_v2_training.sh"


def runner(command=RUNNER, folder=ROOT, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run([str(command)], env=environment, text=True, capture_output=True,
                          cwd=folder, stdin=subprocess.DEVNULL, timeout=120)


@pytest.mark.parametrize("variable", ["STATUS", "STOP"])
@pytest.mark.parametrize("value, outcome", [
    ("1", "on"), ("true", "on"), ("TRUE", "on"), ("yes", "on"), ("On", "on"),
    ("2", "refused"), ("y", "refused"), ("stop", "refused"), ("-1", "refused"),
])
def test_switches(tmp_path, variable, value, outcome):
    done = runner(**{variable: value}, LOG=str(tmp_path / "a.log"), NPROC="0")
    if outcome == "on":
        assert done.returncode == 0 and "no" in done.stdout  # not running; nothing to stop
    else:
        assert done.returncode == 2 and f"{variable}={value}: give 1, true" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variables, words", [
    ({"NPROC": "0"}, "NPROC=0: give a whole number of at least 1"),
    ({"NPROC": "two"}, "NPROC=two"), ({"NPROC": "-2"}, "NPROC=-2"), ({"NPROC": "1.5"}, "NPROC=1.5"),
    ({"NNODES": "x"}, "NNODES=x"), ({"NNODES": "2"}, "RDZV_ENDPOINT"),
    ({"QUICK": "quick"}, "QUICK=quick"), ({"DRY_RUN": "maybe"}, "DRY_RUN=maybe"),
    ({"COMPILE": "fast"}, "COMPILE=fast"), ({"FOREGROUND": "fg"}, "FOREGROUND=fg"),
    ({"STATUS": "off", "STOP": "no", "DRY_RUN": "0", "NPROC": "zero"}, "NPROC=zero"),
])
def test_refusals_come_before_anything_is_written(tmp_path, variables, words):
    done = runner(LOG=str(tmp_path / "a.log"), **variables)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_from_another_folder_through_a_link_relative_paths_are_the_callers(tmp_path):
    np.save(tmp_path / "fields.npy", np.random.default_rng(0).random((30, 8, 8)))
    (tmp_path / "train").symlink_to(RUNNER)
    done = runner(tmp_path / "train", tmp_path, DRY_RUN="true", DATA="fields.npy", SAVE_DIR="run",
                  D_MODEL="16", PERCEIVER_HEADS="2", COMPILE="off", NUM_LAYERS="2", EPOCHS="1")
    assert done.returncode == 0, done.stderr
    assert f'"data": "{tmp_path}/fields.npy"' in done.stdout
    assert f'"save_dir": "{tmp_path}/run"' in done.stdout and '"compile": false' in done.stdout


def test_a_training_starts_from_weights_in_the_callers_folder(tmp_path):
    shutil.copy(ROOT / "checkpoints_mamba_v2/mamba_v2_best.safetensors",
                tmp_path / "colours.safetensors")
    done = runner(folder=tmp_path, DRY_RUN="1", DATA="terrain", INIT_FROM="colours.safetensors",
                  CANVAS_FROM="colours.safetensors")
    assert done.returncode == 0, done.stderr
    for name in ("init_from", "canvas_from"):
        assert f'"{name}": "{tmp_path}/colours.safetensors"' in done.stdout
    assert '"d_model": 64' in done.stdout and '"canvas_width": 80' in done.stdout


def test_variables_of_a_netcdf(tmp_path):
    with netcdf_file(tmp_path / "wind.nc", "w") as file:
        for name, size in (("time", 30), ("lat", 8), ("lon", 9)):
            file.createDimension(name, size)
        for name in ("u", "v"):
            variable = file.createVariable(name, "f", ("time", "lat", "lon"))
            variable[:] = np.random.default_rng(0).random((30, 8, 9))
    done = runner(folder=tmp_path, DRY_RUN="1", DATA="wind.nc", VARIABLES="u v",
                  LOG=str(tmp_path / "a.log"))
    assert done.returncode == 0, done.stderr
    assert '"variables": ["u", "v"]' in done.stdout and "8 x 9 x 2" in done.stdout
    assert "terrain, 512 training" in runner(DRY_RUN="1", DATA="terrain", LOG="x.log").stdout


def test_a_log_that_is_the_data_is_refused(tmp_path):
    np.save(tmp_path / "fields.npy", np.zeros((30, 8, 8)))
    before = (tmp_path / "fields.npy").read_bytes()
    done = runner(folder=tmp_path, DATA="fields.npy", LOG="fields.npy")
    assert done.returncode == 2 and "is the file of DATA" in done.stderr
    assert (tmp_path / "fields.npy").read_bytes() == before


def test_hints_name_the_log_and_a_stop_at_once_leaves_the_truth(tmp_path):
    variables = dict(LOG="my log.log", SAVE_DIR="run", D_MODEL="16", PERCEIVER_HEADS="2",
                     NUM_LAYERS="2", DEVICE="cpu")
    started = runner(folder=tmp_path, **variables)
    assert started.returncode == 0, started.stderr
    status, stop = (f"LOG=my\\ log.log {word}=1 {RUNNER}" for word in ("STATUS", "STOP"))
    assert "SAVE_DIR=run " + status in started.stdout and "SAVE_DIR=run " + stop in started.stdout
    assert "tail -f my\\ log.log" in started.stdout
    stopped = runner(folder=tmp_path, **variables, STOP="yes")
    assert stopped.returncode == 0 and "stopped" in stopped.stdout.splitlines()[-1]
    said = runner(folder=tmp_path, **variables, STATUS="yes").stdout
    assert "not running\n" in said and "stopped" in said and "without a word" not in said


def test_a_process_that_got_the_number_of_a_former_training_is_left_alone(tmp_path):
    """Even one of the same name in the same folder."""
    named = tmp_path / "train_mamba_v2.py"
    shutil.copy("/bin/sleep", named)
    other = subprocess.Popen([str(named), "60"], cwd=ROOT)
    try:
        (tmp_path / "a.pid").write_text(f"{other.pid}\n")
        (tmp_path / "a.pid.start").write_text("12345\n")
        for start in (True, False):
            if not start:
                (tmp_path / "a.pid.start").unlink()
            done = runner(LOG=str(tmp_path / "a.log"), STOP="1")
            assert done.returncode == 0 and "nothing to stop" in done.stdout
        time.sleep(0.1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
