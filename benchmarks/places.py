"""Does what was learnt on pixels hold between them? Gains over kriging on and off the grid.

    python benchmarks/places.py                                       # the weights that come along
    python benchmarks/places.py --checkpoint a.pth --data_test natural32_val.npz --pictures 160

20 % of the points of each picture (or `--shares`) are observed, at pixel centres, or anywhere
within these pixels (the picture between centres is bilinear, as its measurements are then); the
posterior mean is asked at all pixel centres that were not observed, by the model and by the fitted
kriging that it starts from, from the same measurements. Where the data have finer pictures
(`photos`), both are asked for twice the resolution, too, from measurements at the centres of the
coarse pixels, and scored on the finer truth. PSNR over pictures, in dB, with the share of pictures
where the model is behind. With `--draws` samples of both are scored, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import describe_machine, table
from scipy.ndimage import map_coordinates
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sparsefield.data import Split  # noqa: E402
from sparsefield.data.scale import to_unit  # noqa: E402
from sparsefield.evaluate.metrics import psnr  # noqa: E402
from sparsefield.evaluate.opening import open_test_data  # noqa: E402
from sparsefield.evaluate.uncertainty import (  # noqa: E402
    fair_crps,
    moments,
    spread_error_ratio,
)
from sparsefield.flow.sampling import sample  # noqa: E402
from sparsefield.model.checkpoint import load_model  # noqa: E402
from sparsefield.model.field import GaussianModel  # noqa: E402
from sparsefield.place import grid_coords  # noqa: E402


class Question(NamedTuple):
    """Measurements (M, 2), (M, C), places (N, 2), and the truth there (N, C), in [-1, 1]."""

    coords: Tensor
    values: Tensor
    places: Tensor
    truth: Tensor


def on_the_grid(
    picture: np.ndarray, rng: np.random.Generator, share: float, shift: float
) -> Question:
    """Of a picture (H, W, C); a share of the pixels is measured, up to `shift` pixels from their
    centres."""
    height, width, channels = picture.shape
    order = rng.permutation(height * width)
    observed, hidden = np.split(order, [int(share * len(order))])
    row, column = (part.astype(np.float64) for part in np.divmod(observed, width))
    row += rng.uniform(-shift, shift, len(row))
    column += rng.uniform(-shift, shift, len(column))
    row, column = row.clip(0, height - 1), column.clip(0, width - 1)
    values = np.stack([map_coordinates(picture[..., c], [row, column], order=1)
                       for c in range(channels)], axis=1)
    coords = np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=1)
    truth = picture.reshape(-1, channels)[hidden]
    return Question(as_tensor(coords), as_tensor(values),
                    grid_coords(height, width)[torch.as_tensor(hidden)], as_tensor(truth))


def twice_as_fine(
    picture: np.ndarray, finer: np.ndarray, rng: np.random.Generator, share: float
) -> Question:
    """Measured at the centres of a picture's pixels, asked for a finer one."""
    coarse = on_the_grid(picture, rng, share, 0.0)
    height, width, channels = finer.shape
    return coarse._replace(places=grid_coords(height, width),
                           truth=as_tensor(finer.reshape(-1, channels)))


def as_tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def questions(
    split: Split, count: int, shares: list[float]
) -> Iterator[tuple[tuple[str, str], Question]]:
    """What is asked of each picture, by observed share and places."""
    for i in tqdm(range(min(count, len(split))), unit="picture", disable=None):
        picture = split.example(i)
        finer = split.high_resolution(i, 2 * len(picture))
        for share in shares:
            observed = f"{share:.0%}"
            for name, shift in (("pixel centres", 0.0), ("anywhere in the pixels", 0.5)):
                rng = np.random.default_rng([i, 1])
                yield (observed, name), on_the_grid(picture, rng, share, shift)
            if finer is not None:
                rng = np.random.default_rng([i, 1])
                yield (observed, "twice as fine"), twice_as_fine(picture, finer, rng, share)


class Scores(NamedTuple):
    """Of one picture: PSNR of the posterior mean, in dB; CRPS of samples, in [0, 1] like the data,
    their variance and the squared error of their mean, NaN without samples."""

    psnr: float
    crps: float = float("nan")
    variance: float = float("nan")
    squared_error: float = float("nan")


def scores(model: nn.Module, question: Question, draws: int) -> Scores:
    coords, values, places, truth = (part[None] for part in question)
    sampler = {"method": "heun", "num_steps": 2} if draws else {"method": "mean"}
    found = sample(model, places, coords, values, seeds=[list(range(max(1, draws)))], **sampler)
    mean, samples, truth = (to_unit(part.numpy()) for part in
                            (found.mean, found.values[0].flatten(1), truth))
    score = psnr(mean, truth)
    if not draws:
        return Scores(score)
    variance, squared_error = moments(samples, truth.ravel())
    return Scores(score, fair_crps(samples, truth.ravel()), variance.mean(), squared_error.mean())


def in_words(pairs: np.ndarray) -> list[str]:
    """Of (pictures, kriging and model, Scores): CRPS, and spread over error, of both."""
    crps = pairs[..., 1].mean(axis=0)
    ratios = [spread_error_ratio(*pairs[:, k, 2:].T) for k in range(2)]
    return [f"{crps[0]:.5f}, {crps[1]:.5f}", f"{ratios[0]:.2f}, {ratios[1]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="shipped")
    parser.add_argument("--data")
    parser.add_argument("--data_test")
    parser.add_argument("--pictures", type=int, default=64, help="the first of the test part")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2],
                        help="of the pixels, that are observed")
    parser.add_argument("--draws", type=int, default=0, help="samples of each, at least 2; 0: none")
    given = parser.parse_args()
    model, checkpoint = load_model(given.checkpoint)
    model.eval()
    kriging = GaussianModel()
    data = open_test_data(checkpoint, given.data, given.data_test)
    found: dict[tuple[str, str], list[list[Scores]]] = {}
    for name, question in questions(data.test, given.pictures, given.shares):
        found.setdefault(name, []).append([scores(each, question, given.draws)
                                           for each in (kriging, model)])
    print(f"{describe_machine()}; {given.checkpoint}, {data.name}, "
          f"{min(given.pictures, len(data.test))} pictures\n")
    rows = []
    for name, pairs in found.items():
        before, after = np.array(pairs)[..., 0].T
        rows.append([*name, f"{before.mean():.2f}", f"{after.mean():.2f}",
                     f"{(after - before).mean():+.2f}", f"{(after < before).mean():.0%}",
                     f"{(after - before).min():+.2f}"])
    table(["observed", "measured, asked", "fitted kriging", "model", "gain", "behind",
           "worst gain"], rows)
    if given.draws:
        table(["observed", "measured, asked", "CRPS: kriging, model", "spread / error"],
              [[*name, *in_words(np.array(pairs))] for name, pairs in found.items()])


if __name__ == "__main__":
    main()
