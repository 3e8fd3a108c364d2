"""A new model is a class and its settings, in one file: it trains, loads and is compared."""

from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor, nn

import eval_v1_vs_v2
import train_mamba_v2
from small import run, settings, write_pictures
from sparsefield import load
from sparsefield.errors import UserError
from sparsefield.model.checkpoint import build_model, load_checkpoint
from sparsefield.model.field import FieldModel, TokenBlock
from sparsefield.train import loop
from sparsefield.train.config import TrainingConfig


class Averaging(FieldModel):
    """Queries get the mean of the context through one layer."""

    def __init__(self, d_model: int = 16, channels: int = 3, **shared):
        super().__init__(channels=channels, d_model=d_model, **shared)
        self.layer = nn.Linear(d_model, d_model)

    def mix(self, context: Tensor, queries: Tensor, block: TokenBlock) -> Tensor:
        return queries + self.layer(context.mean(dim=1, keepdim=True))


@dataclass
class Config(TrainingConfig):
    """Settings of the third model."""

    d_model: int = 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The third model and V2 after two steps on the same pictures."""
    folder = tmp_path_factory.mktemp("third")
    pictures = write_pictures(folder / "pictures.npz", channels=3)
    tiny = dict(batch_size=27, epochs=1, unet_width=8, flow_unet_width=4)
    v2 = settings(pictures, folder / "v2", **tiny)
    shared = {name: getattr(v2, name) for name in (field.name for field in fields(TrainingConfig))}
    loop.train(Config(**{**shared, "save_dir": str(folder / "third")}), Averaging, "averaging")
    loop.train(v2, train_mamba_v2.MAMBADiffusionV2, "mamba_v2")
    return folder / "third/averaging_best.pth", folder / "v2/mamba_v2_best.pth"


def test_it_loads_and_reconstructs(trained):
    model = load(str(trained[0]))
    assert type(model.network) is Averaging and model.checkpoint["step"] == 2
    places = torch.rand(30, 2).double().numpy()
    field = model.reconstruct(places, 255 * places[:, :1].repeat(3, axis=1), resolution=8)
    assert field.mean.shape == (8, 8, 3) and field.sd.max() > 0


def test_it_is_compared_with_v2(trained, tmp_path):
    third, v2 = map(str, trained)
    results = eval_v1_vs_v2.evaluate(eval_v1_vs_v2.Config(
        v1_checkpoint=third, v2_checkpoint=v2, num_samples=2, ensemble=2, device="cpu",
        save_dir=str(tmp_path / "report")))
    assert "Averaging" in (tmp_path / "report/comparison_results.txt").read_text()
    assert results


def test_an_unknown_model_is_refused_with_what_to_do(trained):
    checkpoint = {**load_checkpoint(trained[0]), "model_class": "MAMBADiffusionV9"}
    with pytest.raises(UserError, match="'MAMBADiffusionV9', and known models are Averaging, "):
        build_model(checkpoint)


def test_a_checkout_knows_the_models_of_its_scripts_and_the_package_names_none():
    """In a process of its own, that has imported neither."""
    found = run("-c", "from sparsefield import load; import sys; "
                "print(type(load('bundled').network).__name__); "
                "print('matplotlib' in sys.modules or 'tensorboard' in sys.modules)")
    assert found.stdout.split() == ["MAMBADiffusionV2", "False"], found.stderr
