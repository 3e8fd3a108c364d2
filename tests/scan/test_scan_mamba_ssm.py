"""Weights and kernels of mamba_ssm: theirs must mean the same here."""

import sys
from types import ModuleType

import pytest
import reference
import torch
import torch.nn.functional as F
from inputs import errors, make_inputs, run, scan_of
from torch import Tensor

from sparsefield import scan
from sparsefield.model.mamba import Mamba

D_MODEL, D_STATE, D_CONV, EXPAND, RANK = 64, 16, 4, 2, 4
INNER = EXPAND * D_MODEL
# mamba_ssm.Mamba(64).state_dict(), as of versions 1.0 to 2.3.
THEIRS = {
    "A_log": (INNER, D_STATE), "D": (INNER,), "in_proj.weight": (2 * INNER, D_MODEL),
    "conv1d.weight": (INNER, 1, D_CONV), "conv1d.bias": (INNER,),
    "x_proj.weight": (RANK + 2 * D_STATE, INNER), "dt_proj.weight": (INNER, RANK),
    "dt_proj.bias": (INNER,), "out_proj.weight": (D_MODEL, INNER),
}


def their_forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Gu & Dao 2023, figure 3, algorithm 2, channels first as in mamba_ssm: (B, L, D) to same."""
    length = x.shape[1]
    x, z = (x @ w["in_proj.weight"].T).mT.chunk(2, dim=1)                 # (B, E, L) each
    x = F.conv1d(x, w["conv1d.weight"], w["conv1d.bias"], padding=D_CONV - 1, groups=INNER)
    x = F.silu(x[..., :length])
    dt, B, C = (w["x_proj.weight"] @ x).split([RANK, D_STATE, D_STATE], dim=1)
    dt = F.softplus(w["dt_proj.weight"] @ dt + w["dt_proj.bias"][:, None])
    h, A, y = torch.zeros(len(x), INNER, D_STATE), -w["A_log"].exp(), []
    for t in range(length):
        drive = (dt * x)[:, :, t, None] * B[:, None, :, t]
        h = torch.exp(dt[:, :, t, None] * A) * h + drive
        y.append((h * C[:, None, :, t]).sum(-1))
    y = (torch.stack(y, dim=2) + w["D"][:, None] * x) * F.silu(z)
    return y.mT @ w["out_proj.weight"].T


def test_their_weights_load_unchanged_and_mean_the_same():
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape) for name, shape in THEIRS.items()}
    block, x = Mamba(D_MODEL), torch.randn(2, 9, D_MODEL)
    block.load_state_dict(weights, strict=True)
    torch.testing.assert_close(block(x), their_forward(weights, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        block(x.flip(1), reverse=True).flip(1), block(x), rtol=1e-4, atol=1e-4
    )


def test_their_weights_initialise_as_ours():
    """A_log, D and the step sizes have a prescribed start; the rest is torch's own."""
    block = Mamba(D_MODEL)
    assert {name: tuple(p.shape) for name, p in block.state_dict().items()} == THEIRS
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 17).expand(INNER, 16))
    dt = F.softplus(block.dt_proj.bias)
    assert bool((block.D == 1).all()) and dt.min() > 0.0009 and dt.max() < 0.11


@pytest.fixture
def kernels(monkeypatch):
    """The backend on the reference in place of the CUDA kernels: forward only, strict in dtypes."""

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        assert {x.dtype for x in (delta, B, C, z)} == {u.dtype}
        assert {x.dtype for x in (A, D, delta_bias)} == {torch.float32}
        assert delta_softplus
        return reference.selective_scan(u, delta, A, B, C, D, z, delta_bias)

    package, interface = "mamba_ssm", "mamba_ssm.ops.selective_scan_interface"
    for name in ("selective_scan_cuda", package, "mamba_ssm.ops", interface):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[interface].selective_scan_fn = selective_scan_fn
    scan.load_backend.cache_clear()
    yield
    scan.load_backend.cache_clear()
    sys.modules.pop("sparsefield.scan.mamba_ssm_backend")


@pytest.mark.parametrize("reverse", [False, True])
def test_kernels_are_called_as_they_want_to_be(kernels, reverse):
    inputs = make_inputs(7)
    want = run("reference", inputs, reverse=reverse)
    got = run("mamba_ssm", inputs, torch.float32, reverse=reverse)
    assert max(errors(got, want).values()) < 1e-4
    mixed = {k: x.bfloat16() if k in "uz" else x.float() for k, x in inputs.items()}
    assert scan_of("mamba_ssm")(**mixed, reverse=reverse).dtype == torch.bfloat16


def test_without_kernels_the_backend_says_how_to_get_them(monkeypatch):
    monkeypatch.setenv("SCAN", "mamba_ssm")
    if not isinstance(scan.load_backend("mamba_ssm"), str):
        pytest.skip("the kernels are installed")
    with pytest.raises(scan.UserError, match=r"requirements-gpu\.txt"):
        scan.describe_backend("cuda")
