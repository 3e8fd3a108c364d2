"""The runner as a person uses it: variables in, a log, a PID file, files and exit codes out."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, make_dataclass
from pathlib import Path

import numpy as np
import pytest

import train_mamba
import train_mamba_v2
from sparsefield.errors import UserError

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "run_mamba_v2_training.sh"
TINY = dict(
    D_MODEL="16", NUM_LAYERS="2", PERCEIVER_ITER="1", PERCEIVER_HEADS="2", NEIGHBOURS="4",
    BATCH_SIZE="8", QUERIES_MIN="8", QUERIES_MAX="16", EVAL_PICTURES="2", EVAL_EVERY="1",
    SAVE_EVERY="1", VISUALIZE_EVERY="1", EPOCHS="2", WARMUP="2", DEVICE="cpu",
)


@pytest.fixture
def variables(tmp_path):
    np.savez(
        tmp_path / "data.npz",
        images=np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8),
    )
    return {
        **TINY, "DATA": str(tmp_path / "data.npz"), "SAVE_DIR": str(tmp_path / "run"),
        "LOG": str(tmp_path / "training.log"),
    }


def runner(
    variables: dict[str, str], *arguments: str, command: Path = RUNNER, folder: Path = ROOT
) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        [command, *arguments], env=environment, text=True, capture_output=True, cwd=folder,
        stdin=subprocess.DEVNULL, timeout=120,
    )


def wait_for(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


# --- variables -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import start
        yield start
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.parametrize("config", [train_mamba_v2.Config, train_mamba.Config])
def test_every_setting_is_a_variable(start, config):
    names = [field.name for field in fields(config) if field.name != "log_file"]
    found = start.flags_of(fields(config), {name.upper(): "1" for name in names})
    assert {f"--{name}" for name in names} == {word for word in found if word[:2] == "--"}


def test_switches_tuples_and_historic_names(start, capsys):
    given = {"COMPILE": "off", "VARIABLES": "u v", "PERCEIVER_ITER": "3", "LR": "", "PATH": "/bin"}
    assert start.flags_of(fields(train_mamba_v2.Config), given) == [
        "--compile", "False", "--variables", "u", "v", "--perceiver_iterations", "3"]
    assert not capsys.readouterr().err


def test_old_names_and_misspelt_ones_get_a_line(start, capsys):
    new = fields(make_dataclass("Config", ["unet_width", "start_share"]))
    given = {"CANVAS_WIDTH": "8", "CANVAS_FIRST": ".6", "CANVAS_FLOW": "0.2", "UNET_WIDHT": "3"}
    assert start.flags_of(new, given) == ["--unet_width", "8", "--start_share", ".6"]
    said = capsys.readouterr().err
    assert said.count("\n") == 4
    for words in ("CANVAS_WIDTH is called UNET_WIDTH now", "CANVAS_FLOW is no setting any more",
                  "UNET_WIDHT is no setting and is ignored: did you mean UNET_WIDTH?"):
        assert words in said


@pytest.mark.parametrize("said, words", [
    ("--data no.npz: no such file; give --data_val and --data_test",
     "DATA=no.npz: no such file; give DATA_VAL and DATA_TEST"),
    ("of other sizes: train with --d_model 16 --unet_width 8", "with D_MODEL=16 UNET_WIDTH=8"),
    ("lr=0: must be above 0; 5=5, --missing none", "LR=0: must be above 0; 5=5, --missing none"),
    ("a smaller --image_size, or with --value_range", "a smaller IMAGE_SIZE, or with VALUE_RANGE"),
])
def test_refusals_speak_of_variables_where_these_are_typed(start, said, words):
    names = [field.name for field in fields(train_mamba_v2.Config)]
    assert words in start.in_variables(said, names)


@pytest.mark.parametrize("values, words", [
    ({"EPOCHS": "many"}, "EPOCHS: invalid literal for int() with base 10: 'many'"),
    ({"PRECISION": "half"}, "'half' for argument 'PRECISION'"),
    ({"DATA": "nowhere", "VARIABLES": "a"}, "VARIABLES=a: nowhere is no NetCDF"),
])
def test_values_that_cannot_be_are_refused_in_one_line(tmp_path, values, words):
    done = runner({**TINY, "DRY_RUN": "1", "SAVE_DIR": str(tmp_path), **values})
    assert done.returncode == 2 and words in done.stderr
    assert done.stderr.count("\n") == 1 and "--data" not in done.stderr


@pytest.mark.parametrize("variable", ["STATUS", "STOP"])
@pytest.mark.parametrize("value, on", [("On", True), ("y", False)])
def test_switches_of_the_runner(tmp_path, variable, value, on):
    done = runner({variable: value, "LOG": str(tmp_path / "a.log"), "NPROC": "0"})
    if on:
        assert done.returncode == 0 and "no" in done.stdout  # not running; nothing to stop
    else:
        assert done.returncode == 2 and f"{variable}={value}: give 1, true" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variables, words", [
    ({"NPROC": "0"}, "NPROC=0: give a whole number of at least 1"), ({"NPROC": "two"}, "NPROC=two"),
    ({"NNODES": "x"}, "NNODES=x"), ({"NNODES": "2"}, "RDZV_ENDPOINT"),
])
def test_counts_of_processes_that_are_none(start, variables, words):
    with pytest.raises(UserError, match=words):
        start.check(variables, "a.log")


@pytest.mark.parametrize("variables, words", [
    ({"QUICK": "quick"}, "QUICK=quick"), ({"COMPILE": "fast"}, "COMPILE=fast"),
    ({"EPOCHS": "many"}, "many"), ({"OBSERVE": "lines:8", "DATA": "x.npz"}, "x.npz"),
    ({"INIT_FROM": str(ROOT / "checkpoints_mamba/mamba_best.safetensors")}, "it holds a MAMBADiff"),
])
def test_a_background_start_is_refused_where_it_is_typed(tmp_path, variables, words):
    log = str(tmp_path / "a.log")
    done = runner({**TINY, "SAVE_DIR": str(tmp_path / "run"), "LOG": log, **variables})
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert "in the background" not in done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize("log, words", [(".", "is a folder: name a file"),
                                        ("data.npz", "is the file of DATA")])
def test_logs_that_would_do_harm(variables, tmp_path, log, words):
    before = (tmp_path / "data.npz").read_bytes()
    for foreground in ("0", "1"):
        done = runner({**variables, "LOG": log, "FOREGROUND": foreground}, folder=tmp_path)
        assert done.returncode == 2 and words in done.stderr
    assert (tmp_path / "data.npz").read_bytes() == before


def test_paths_are_the_callers_also_through_a_link(variables, tmp_path):
    (tmp_path / "train").symlink_to(RUNNER)
    shutil.copy(ROOT / "checkpoints_mamba_v2/mamba_v2_best.safetensors", tmp_path / "a.safetensors")
    done = runner({**variables, "DRY_RUN": "true", "DATA": "data.npz", "SAVE_DIR": "run"},
                  command=tmp_path / "train", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, path in (("data", "data.npz"), ("save_dir", "run")):
        assert f'"{name}": "{tmp_path}/{path}"' in done.stdout
    done = runner({"DRY_RUN": "1", "INIT_FROM": "a.safetensors", "DATA": "terrain"},
                  folder=tmp_path)
    assert f'"init_from": "{tmp_path}/a.safetensors"' in done.stdout, done.stderr
    assert f'"save_dir": "{ROOT}/checkpoints_mamba_v2"' in done.stdout
    assert "terrain, 512 training" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"train", "a.safetensors", "data.npz"}


# --- trainings -----------------------------------------------------------------------------------


def test_foreground_trains_and_writes_the_log(variables, tmp_path):
    log = tmp_path / "new" / "training.log"
    done = runner({**variables, "FOREGROUND": "1", "LOG": str(log)}, "--ema_decay", "0.9")
    assert done.returncode == 0, done.stderr
    mark, _, rest = log.read_text().partition("\n")
    assert mark.startswith("--- started") and rest == done.stdout
    assert '"ema_decay": 0.9' in rest and "epoch 2/2" in rest and "kriging" in rest
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"mamba_v2_best.pth", "mamba_v2_latest.pth", "mamba_v2_epoch_0002.pth",
                     "metrics.jsonl", "training_loss.png", "pictures_epoch_0002.png"}


def test_background_status_second_start_and_stop(variables, tmp_path):
    variables |= {"EPOCHS": "100000", "LOG": "my log.log", "SAVE_DIR": "run"}
    log = tmp_path / "my log.log"
    started = runner(variables, folder=tmp_path)
    assert started.returncode == 0, started.stderr
    assert "tail -f my\\ log.log" in started.stdout
    assert f"SAVE_DIR=run LOG=my\\ log.log STOP=1 {RUNNER}" in started.stdout
    try:
        refused = runner(variables, folder=tmp_path)
        assert refused.returncode == 2 and "runs already" in refused.stderr
        wait_for(lambda: "epoch 1/" in log.read_text())
        assert "running, process" in runner({**variables, "STATUS": "1"}, folder=tmp_path).stdout
        others = runner({}, command=ROOT / "run_status.sh").stdout
        assert f"{log}:\nrunning, process" in others and "a LOG of its own" not in others
        assert "one with a LOG of its own runs" in runner({"STATUS": "1"}).stdout
        stopped = runner({**variables, "STOP": "1"}, folder=tmp_path)
        assert "the same command goes on from here" in stopped.stdout
        assert "not running" in runner({**variables, "STATUS": "1"}, folder=tmp_path).stdout
        again = runner({**variables, "EPOCHS": "3", "FOREGROUND": "1"}, folder=tmp_path)
        assert "going on from step" in again.stdout or "nothing left to do" in again.stdout
    finally:
        pid = int((tmp_path / "my log.pid").read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_stop_at_once_leaves_the_truth(variables):
    started = runner(variables)
    assert started.returncode == 0
    assert "too few steps to learn: 2 epochs are 12 steps" in started.stderr  # where it was typed
    stopped = runner({**variables, "STOP": "yes"})
    assert stopped.returncode == 0 and "stopped" in stopped.stdout.splitlines()[-1]
    said = runner({**variables, "STATUS": "yes"}).stdout
    assert "not running\n" in said and "stopped" in said and "without a word" not in said


@pytest.mark.long
def test_interrupted_processes_end_without_a_traceback(variables, tmp_path):
    """Ctrl-C reaches all of a terminal; torchrun alone would report it in 28 lines."""
    said = tmp_path / "said"
    environment = {**os.environ, **variables, "EPOCHS": "100000", "NPROC": "2", "FOREGROUND": "1",
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with said.open("w") as output:
        job = subprocess.Popen([RUNNER], env=environment, stdout=output, stderr=output,
                               stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: "epoch 1/" in said.read_text())
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait(60) == 0
    finally:
        job.kill()
    assert "the same command goes on from here" in said.read_text().splitlines()[-1]
    assert "Traceback" not in said.read_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_processes_that_are_not_the_training_are_left_alone(tmp_path):
    """One of the same name with a number that a training had, and one that has ended already."""
    named = tmp_path / "train_mamba_v2.py"
    shutil.copy("/bin/sleep", named)
    zombie, other = subprocess.Popen(["true"]), subprocess.Popen([str(named), "60"], cwd=ROOT)
    try:
        wait_for(lambda: ") Z " in Path(f"/proc/{zombie.pid}/stat").read_text())
        for process in (zombie, other):
            (tmp_path / "a.pid").write_text(f"{process.pid}\n")
            done = runner({"LOG": str(tmp_path / "a.log"), "STOP": "1"})
            assert done.returncode == 0 and "nothing to stop" in done.stdout
        time.sleep(0.1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        zombie.wait()
