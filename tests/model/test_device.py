"""What a device can: those that lack float64, simulated, none of whose tensors is ever of it."""

from pathlib import Path

import pytest
import torch

from sparsefield.device import has_fast_bfloat16, has_float64, pick_device
from sparsefield.errors import UserError
from sparsefield.hashed import seeds_of
from sparsefield.model.field import GaussianModel, fitted_form
from sparsefield.model.grid_unet import Lattice
from sparsefield.place import UNIT_SQUARE, Observed
from sparsefield.train.losses import ClosedForms
from sparsefield.train.optimise import SlotDropout

MPS = torch.device("mps")


class OnMps(torch.Tensor):
    """A tensor of the CPU that says it were one of MPS, and is never of float64."""

    device = property(lambda self: MPS)

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, OnMps) and result.dtype == torch.float64:
            raise TypeError("MPS does not know float64")
        return result


@pytest.fixture
def moves_to_mps(monkeypatch):
    original = torch.Tensor.to

    def to(self, *args, **kwargs):
        return self.as_subclass(OnMps) if args == (MPS,) else original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)


def points(count: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(2, count, 2, generator=generator),
            torch.rand(2, count, channels, generator=generator))


def test_the_closed_form_on_a_device_without_float64(moves_to_mps):
    coords, values = points(30, 3)
    queries, _ = points(50, 3)
    lattice = Lattice(8, 8, UNIT_SQUARE)
    there = Observed(coords.as_subclass(OnMps), values.as_subclass(OnMps))
    form = fitted_form(there, queries.as_subclass(OnMps), lattice)
    expected = fitted_form(Observed(coords, values), queries, lattice)
    for found, part in zip(form[:5], expected[:5], strict=True):
        assert isinstance(found, OnMps) and torch.equal(found.cpu(), part)
    z, drawn = (source.noise([torch.Generator().manual_seed(k) for k in range(2)])
                for source in (form, expected))
    assert isinstance(z, OnMps) and torch.equal(z.cpu(), drawn)
    assert form.posterior.describe() == expected.posterior.describe()


def test_training_shares_no_masks_there():
    model = GaussianModel()
    model.prior = "fitted"
    assert ClosedForms(model, 8, 8, MPS).grid is None


def test_masks_of_dropout_there(monkeypatch):
    original = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *ends, device: original(*ends))
    net = torch.nn.Sequential(torch.nn.Dropout(0.5))
    masks = SlotDropout(net)
    seeds = seeds_of(0, range(2), torch.device("cpu"))
    masks.seed(seeds)
    expected = net(torch.ones(2, 50))
    masks.seed(seeds.as_subclass(OnMps))
    assert torch.equal(net(torch.ones(2, 50).as_subclass(OnMps)).cpu(), expected)


def test_auto_does_not_pick_what_lacks_float64(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert has_float64(pick_device("auto"))
    assert pick_device("mps") == MPS
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="device='mps' is not there"):
        pick_device("mps")


def test_bfloat16_instructions_are_found():
    if not (listed := Path("/proc/cpuinfo")).exists():
        pytest.skip("only Linux lists the CPU's instructions")
    flags = listed.read_text().split()
    assert has_fast_bfloat16() is ("avx512_bf16" in flags or "amx_tile" in flags)
