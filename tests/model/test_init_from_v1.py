from __future__ import annotations

import pytest
import torch
from small import settings, write_checkpoint, write_pictures

import train_mamba_v2
from sparsefield.errors import UserError
from sparsefield.model.checkpoint import load_checkpoint
from sparsefield.model.transfer import take_shared_components

SHARED = {"unet", "fourier", "time_embedding", "input_proj", "query_proj", "decoder"}


@pytest.fixture(scope="module")
def v1(tmp_path_factory) -> str:
    """A checkpoint of V1 with d_model 16."""
    folder = tmp_path_factory.mktemp("v1")
    pictures = write_pictures(folder / "pictures.npz", channels=3)
    return str(write_checkpoint(folder / "v1.pth", "V1", pictures))


def v2(d_model: int) -> train_mamba_v2.MAMBADiffusionV2:
    torch.manual_seed(5)
    return train_mamba_v2.MAMBADiffusionV2(
        d_model=d_model, num_layers=2, perceiver_heads=2, neighbours=4, unet_width=8,
        flow_unet_width=4,
    )


def names(lines: list[str], start: str) -> set[str]:
    return {line.split(": ")[1].split(" ")[0] for line in lines if line.startswith(start)}


@pytest.mark.parametrize(("width", "fitting"), [(16, SHARED), (32, {"unet", "fourier"})])
def test_what_fits_is_taken_whole_and_reported(v1, width, fitting):
    model = v2(width)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lines = take_shared_components(model, v1, "MAMBADiffusion")
    assert names(lines, "taken") == fitting
    assert names(lines, "not taken") == SHARED - fitting | {"mamba", "perceiver"}
    theirs = load_checkpoint(v1)["weights"]
    for name, value in model.state_dict().items():
        source = theirs if name.split(".")[0] in fitting else before
        assert torch.equal(value, source[name]), name  # not even the decoder's bias


def test_another_class_or_no_file_is_refused(tmp_path, v1):
    with pytest.raises(UserError, match="holds a MAMBADiffusion, not a MAMBADiffusionV2"):
        take_shared_components(v2(16), v1, "MAMBADiffusionV2")
    with pytest.raises(UserError, match="does not exist"):
        take_shared_components(v2(16), tmp_path / "none.pth", "MAMBADiffusion")


def test_a_training_starts_from_v1_and_says_what_it_took(v1, tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures.npz", channels=3)
    given = settings(pictures, tmp_path / "v2", epochs=1, batch_size=18, lr=1e-12, init_from_v1=v1)
    command = [word for name, value in vars(given).items() if value is not None
               for word in (f"--{name}", str(value))]
    train_mamba_v2.main(command)
    assert f"taken from {v1}: decoder" in capsys.readouterr().out
    trained = load_checkpoint(tmp_path / "v2/mamba_v2_latest.pth")["weights"]
    theirs = load_checkpoint(v1)["weights"]["decoder.3.weight"]
    assert torch.allclose(trained["decoder.3.weight"], theirs, atol=1e-6)  # the averaged weights
    train_mamba_v2.main(command)
    assert "taken from" not in capsys.readouterr().out  # it goes on instead
