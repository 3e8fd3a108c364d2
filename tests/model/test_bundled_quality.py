"""The bundled V2 is worth what the README says, on a few embedded photographs that it never saw.

These fail when an output layer is zeroed, when the lattice is square for oblong fields, or when the
closed form changes under the weights.
"""

import copy

import numpy as np
import pytest
import skimage.data
import torch

from sparsefield import load
from sparsefield.data import open_data, parse_pattern
from sparsefield.evaluate.cases import Cases
from sparsefield.evaluate.metrics import gaussian_crps
from sparsefield.model.checkpoint import load_model
from sparsefield.model.field import GaussianModel
from sparsefield.place import grid_coords

RANDOM = parse_pattern("random:0.2")


class Crops:
    """Crops of two photographs, averaged down to height x width."""

    has_gaps, is_symmetric = False, True

    def __init__(self, height: int, width: int, count: int):
        rng = np.random.default_rng(0)
        pictures = [skimage.data.rocket(), skimage.data.cat()]
        self.fields = []
        for k in range(count):
            pixels = pictures[k % 2]
            rows, columns = pixels.shape[:2]
            factor = int(rng.integers(2, min(rows // height, columns // width) + 1))
            i = int(rng.integers(rows - height * factor + 1))
            j = int(rng.integers(columns - width * factor + 1))
            crop = pixels[i:i + height * factor, j:j + width * factor].astype(np.float64)
            cells = crop.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
            self.fields.append((cells / 127.5 - 1).astype(np.float32))

    def __len__(self) -> int:
        return len(self.fields)

    def example(self, index: int) -> np.ndarray:
        return self.fields[index]

    def high_resolution(self, index: int, size: int) -> None:
        return None


def average(cases: Cases, model, metric: str, **sampler) -> float:
    numbers = cases.numbers(cases.sample(model, **sampler))
    return float(np.mean([one[metric] for one in numbers]))


@pytest.fixture(scope="module")
def v2():
    return load_model("bundled")[0]


@pytest.fixture(scope="module")
def squares() -> Cases:
    test = open_data("photos").test
    return Cases(test, RANDOM, range(0, len(test), 32), seed=0)


def gain(cases: Cases, model) -> float:
    """Of the mean over kriging, in dB."""
    return (average(cases, model, "psnr", method="mean")
            - average(cases, GaussianModel(), "psnr", method="mean"))


def test_the_mean_is_better_than_kriging(v2, squares):
    assert gain(squares, v2) > 0.16 and average(squares, v2, "psnr", method="mean") > 23.7


def test_samples_are_better_than_those_of_kriging_and_than_those_without_a_flow(v2, squares):
    some = squares.subset(range(0, len(squares), 2))

    def crps(model) -> float:
        return average(some, model, "crps", draws=8, num_steps=2)

    without = copy.deepcopy(v2)
    for layer in (without.decoder[-1], without.unet.flow.last):
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
    whole, kriging, without = crps(v2), crps(GaussianModel()), crps(without)
    assert whole < 0.96 * kriging and whole < 0.997 * without


def test_oblong_fields_gain_as_much_as_squares(v2):
    """On 24 crops of 16 x 64, where a square lattice gained 0.10 dB."""
    assert gain(Cases(Crops(16, 64, 24), RANDOM, range(24), seed=0), v2) > 1.1


def test_the_model_of_any_quantity_beats_kriging_of_fields_that_are_no_photographs():
    """Of simulated flows; its training, on others of them, is what fails here when it is zeroed."""
    fields, crps = load("fields"), {"fields": [], "none": []}
    assert fields.is_gaussian
    split, at = open_data("tracer").test, grid_coords(32, 32).double().numpy()
    for index in range(0, 60, 10):
        truth = 7 + 300 * split.example(index).reshape(-1, 1)
        seen = RANDOM.draw(np.ones((32, 32), bool), np.random.default_rng(index))
        for name, values in crps.items():
            found = load(name).reconstruct(at[seen], truth[seen], (32, 32), extent=(0, 1, 0, 1),
                                           num_samples=2)
            hidden = np.delete(np.arange(1024), seen)
            mean, sd = (x.reshape(-1)[hidden] for x in (found.mean, found.sd))
            values.append(gaussian_crps((truth[hidden, 0] - mean) / sd, sd).mean())
    assert np.mean(crps["fields"]) < 0.9 * np.mean(crps["none"])
