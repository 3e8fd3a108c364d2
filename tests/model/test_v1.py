from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsefield.errors import UserError
from sparsefield.place import Observed
from train_mamba import MAMBADiffusion

SMALL = dict(d_model=32, num_layers=2, heads=4, neighbours=4)


def answer(model: MAMBADiffusion, change_query: int | None = None) -> torch.Tensor:
    """F at 20 queries of 2 fields; with another z at one of them."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 20, 3, generator=generator)
    places = (torch.rand(2, 20, 2, generator=generator), torch.rand(2, 9, 2, generator=generator),
              torch.rand(2, 9, 3, generator=generator) * 2 - 1)
    if change_query is not None:
        z[:, change_query] += 1
    state = model.encode(Observed(*places[1:]), places[0])
    return model.velocity(z, torch.tensor([0.5, 1.2]), state)


def small(**changes) -> MAMBADiffusion:
    torch.manual_seed(0)
    model = MAMBADiffusion(**{**SMALL, **changes}).eval()
    torch.nn.init.normal_(model.decoder[-1].weight)  # zero at the start: nothing would show
    return model


def test_default_size():
    assert 14e6 < sum(p.numel() for p in MAMBADiffusion().parameters()) < 16e6


@pytest.mark.parametrize("residual", [False, True])
def test_every_parameter_gets_a_gradient(residual):
    model = small(cross_attention_residual=residual)
    answer(model).square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_tokens_are_read_one_way():
    """In the order [context, queries], a query sees earlier tokens only: V1's handicap."""
    model = small(order="concat", prior="none", neighbours=0)
    changed = (answer(model, change_query=10) - answer(model)).abs().amax(dim=(0, 2)) > 0
    assert not changed[:10].any() and changed[10:].all()


def test_the_residual_hands_the_queries_on():
    """With a cross-attention that gives nothing, only the residual tells queries apart."""
    for residual in (False, True):
        model = small(cross_attention_residual=residual, prior="none")
        torch.nn.init.zeros_(model.cross_attention.out_proj.weight)
        output = answer(model)
        assert (output.std(dim=1).max() > 1e-3) == residual


@pytest.mark.parametrize("setting, value, reason", [
    ("heads", 5, "does not divide"), ("num_layers", 0, "at least 1"), ("dropout", 1.0, "dropout"),
    ("prior", "spline", "choose one of"), ("order", "spiral", "order"),
])
def test_impossible_settings_are_refused(setting, value, reason):
    with pytest.raises(UserError, match=reason):
        MAMBADiffusion(**{**SMALL, setting: value})


def test_both_quick_runners_train_alike():
    """A comparison compares models only while the runners agree on everything else."""
    environment = {**os.environ, "QUICK": "1", "DRY_RUN": "1", "DEVICE": "cpu",
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    settings = []
    for runner in ("./run_mamba_training.sh", "./run_mamba_v2_training.sh"):
        shown = subprocess.run([runner], cwd=Path(__file__).parents[2], env=environment,
                               capture_output=True, text=True, check=True).stdout
        line = next(line for line in shown.splitlines() if line.startswith("settings: "))
        settings.append(json.loads(line.removeprefix("settings: ")))
    common = set(settings[0]) & set(settings[1]) - {"save_dir", "d_model", "num_layers"}
    v1, v2 = ({name: found[name] for name in common} for found in settings)
    assert v1 == v2
    assert settings[0]["d_model"] == 2 * settings[1]["d_model"]
