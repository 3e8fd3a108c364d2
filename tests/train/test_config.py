"""Which settings may change when a training goes on, and which tell trainings apart."""

from dataclasses import fields

import pytest

import train_mamba
import train_mamba_v2
from sparsefield.train.config import TrainingConfig, beside_learning, may_change

HARMLESS = {"device", "num_workers", "log_file", "dry_run", "compile", "accumulate", "data_dir",
            "save_dir", "resume", "eval_every", "eval_pictures", "visualize_every", "save_every",
            "keep_last"}


@pytest.mark.parametrize("config", [TrainingConfig, train_mamba.Config, train_mamba_v2.Config])
def test_what_does_not_matter_may_change_and_epochs_may_be_added(config):
    assert beside_learning(config) == HARMLESS
    assert may_change(config) == HARMLESS | {"epochs"}
    assert may_change(config) < {setting.name for setting in fields(config)}
