"""The runner as a person uses it: variables in, a log, a PID file, files and exit codes out."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
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


def runner(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        [ROOT / "run_mamba_v2_training.sh", *arguments], env=environment, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
    )


def test_foreground_trains_and_writes_the_log(variables, tmp_path):
    done = runner({**variables, "FOREGROUND": "1"}, "--ema_decay", "0.9")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "training.log").read_text()
    mark, _, rest = log.partition("\n")
    assert mark.startswith("--- started") and rest == done.stdout
    assert '"ema_decay": 0.9' in log and "epoch 2/2" in log and "kriging" in log
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"mamba_v2_best.pth", "mamba_v2_latest.pth", "mamba_v2_epoch_0002.pth",
                     "metrics.jsonl", "training_loss.png", "pictures_epoch_0002.png"}


def test_every_setting_of_the_page_is_a_variable():
    """A variable that no script passes on would be ignored without a word."""
    page = (ROOT / "docs/operations.md").read_text()
    cells = (line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    named = {name for cell in cells for name in re.findall(r"`([A-Z][A-Z_0-9]*)`", cell)}
    scripts = "".join((ROOT / path).read_text() for path in (
        "run_mamba_v2_training.sh", "run_mamba_training.sh", "scripts/runner.sh",
        "scripts/variables.sh", "scripts/setup.sh"
    ))
    known = set(re.findall(r"\b[A-Z][A-Z_0-9]*\b", scripts))
    assert len(named) > 40 and not named - known


def test_a_setting_of_the_canvas_arrives(variables):
    done = runner({**variables, "DRY_RUN": "1", "CANVAS_FLOW": "0.125", "CANVAS_FLOW_WIDTH": "8"})
    assert '"canvas_flow": 0.125' in done.stdout and '"canvas_flow_width": 8' in done.stdout


def test_background_status_second_start_and_stop(variables, tmp_path):
    variables["EPOCHS"] = "100000"
    started = runner(variables)
    assert started.returncode == 0 and "tail -f" in started.stdout
    try:
        refused = runner(variables)
        assert refused.returncode == 2 and "runs already" in refused.stderr
        wait_for(lambda: "epoch 1/" in (tmp_path / "training.log").read_text())
        assert "running, process" in runner({**variables, "STATUS": "1"}).stdout
        stopped = runner({**variables, "STOP": "1"})
        assert "the same command goes on from here" in stopped.stdout
        assert "not running" in runner({**variables, "STATUS": "1"}).stdout
        again = runner({**variables, "EPOCHS": "3", "FOREGROUND": "1"})
        assert "going on from step" in again.stdout or "nothing left to do" in again.stdout
    finally:
        pid = int((tmp_path / "training.pid").read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_dry_run_prints_the_settings_and_trains_nothing(variables, tmp_path):
    done = runner({**variables, "DRY_RUN": "1", "LR": "0.5"})
    assert done.returncode == 0 and '"lr": 0.5' in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bad, words", [
    ({"PERCEIVER_HEADS": "3"}, "heads=3 does not divide d_model=16"),
    ({"EPOCHS": "many"}, "many"),
])
def test_bad_variables_end_with_code_2_and_no_traceback(variables, bad, words):
    done = runner({**variables, **bad, "FOREGROUND": "1"})
    assert done.returncode == 2
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("bad, words", [
    ({"EPOCHS": "many"}, "many"), ({"DATA": "nowhere.npz"}, "no such file"),
    ({"INIT_FROM": str(ROOT / "checkpoints_mamba/mamba_best.safetensors")}, "it holds a MAMBADiff"),
])
def test_what_would_be_refused_does_not_start_out_of_sight(variables, tmp_path, bad, words):
    done = runner({**variables, **bad})
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert "in the background" not in done.stdout
    assert not (tmp_path / "training.log").exists() and not (tmp_path / "run").exists()
    assert "not running" in runner({**variables, "STATUS": "1"}).stdout


@pytest.mark.parametrize("changes, words", [
    ({"ACCUMULATE": "3"}, "accumulate=3"), ({"OBSERVE": "lines:8"}, "lines"),
    ({"LOG": "."}, "is a folder: name a file"),
])
def test_what_only_a_training_would_notice_is_noticed_before(variables, changes, words):
    done = runner({**variables, **changes})
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_log_gets_its_folder(variables, tmp_path):
    log = tmp_path / "new" / "folder" / "training.log"
    done = runner({**variables, "LOG": str(log), "FOREGROUND": "1", "EPOCHS": "1"})
    assert done.returncode == 0 and "done" in log.read_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_process_that_has_ended_and_was_not_asked_how_is_not_running(variables, tmp_path):
    """As in a container whose first process does not ask."""
    zombie = subprocess.Popen(["true"])
    wait_for(lambda: ") Z " in Path(f"/proc/{zombie.pid}/stat").read_text())
    started = Path(f"/proc/{zombie.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    (tmp_path / "training.pid").write_text(f"{zombie.pid}\n")
    (tmp_path / "training.pid.start").write_text(f"{started}\n")
    assert runner({**variables, "STATUS": "1"}).stdout.startswith("not running")
    assert "nothing to stop" in runner({**variables, "STOP": "1"}).stdout
    zombie.wait()


def test_help_is_shown_and_nothing_started(variables, tmp_path):
    done = runner(variables, "--help")
    assert done.returncode == 0 and "--d_model" in done.stdout
    assert not (tmp_path / "training.log").exists()


def wait_for(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
