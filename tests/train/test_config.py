"""Which settings may change when a training goes on, and which tell trainings apart."""

from dataclasses import asdict, fields, replace

import pytest
from small import settings, train

import train_mamba
import train_mamba_v2
from sparsefield.data import open_as_configured
from sparsefield.errors import UserError
from sparsefield.train.config import TrainingConfig, beside_learning, may_change

HARMLESS = {"device", "num_workers", "log_file", "dry_run", "compile", "accumulate", "data_dir",
            "save_dir", "resume", "eval_every", "eval_pictures", "visualize_every", "save_every",
            "keep_last"}


@pytest.mark.parametrize("config", [TrainingConfig, train_mamba.Config, train_mamba_v2.Config])
def test_what_does_not_matter_may_change_and_epochs_may_be_added(config):
    assert beside_learning(config) == HARMLESS
    assert may_change(config) == HARMLESS | {"epochs"}
    assert may_change(config) < {setting.name for setting in fields(config)}


@pytest.mark.parametrize("given", [dict(value_range=(0.0, 5.0)), dict(data_val="a.npz")])
def test_settings_that_mean_nothing_for_embedded_data_are_refused(given):
    with pytest.raises(UserError, match="terrain brings its own; leave it out"):
        open_as_configured(asdict(train_mamba_v2.Config(data="terrain", **given)))


def test_a_rehearsal_refuses_what_a_start_would_and_writes_nothing(data, tmp_path):
    rehearsed = settings(data, tmp_path / "run", dry_run=True)
    train(rehearsed)
    with pytest.raises(UserError, match="holds no checkpoint to go on from"):
        train(replace(rehearsed, resume="must"))
    assert not (tmp_path / "run").exists()
    train(replace(rehearsed, dry_run=False, epochs=1))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="holds a training with d_state=16"):
        train(replace(rehearsed, d_state=8))
    train(replace(rehearsed, d_state=8, resume="never"))
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
