"""The frozen test: every method reconstructs the same fields from the same points and noise.

Used by both evaluations. A case is one test field with its observations and noise seed
(`sparsefield.data.frozen_case`); a reconstruction is clipped to [0, 1] and keeps the observed
values, for models and baselines alike (`baselines.keep_observations`).
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsefield.coords import grid_coords
from sparsefield.data import Data, Pattern, Split, frozen_case, open_as_configured, open_data
from sparsefield.data.scale import pixel_scale
from sparsefield.errors import UserError
from sparsefield.evaluate import metrics
from sparsefield.evaluate.baselines import BASELINES
from sparsefield.mamba import Mamba
from sparsefield.samplers import sample
from sparsefield.validation import grid_case, to_picture

log = logging.getLogger("sparsefield")


@dataclass(frozen=True)
class Outcome:
    """What one method made of the test, in the order of the cases.

    Attributes:
        fields: (H, W, C) in [0, 1], NaN where no point exists.
        numbers: `metrics.evaluate` of each.
        nfe: evaluations of the model per image. seconds: wall time per image, after a warm-up.
        how: the method in words.
    """

    fields: list[np.ndarray]
    numbers: list[dict[str, float]]
    nfe: float
    seconds: float
    how: str


class FrozenTest:
    """Test cases, evenly spread over a split (neighbours in a file are often alike).

    Args:
        split: fields. pattern: which points are observed. count: cases, at most len(split).
        seed: of observations and noise, with the index of the field. batch_size: cases per model
            call; it changes speed and memory, and results only by rounding.
    Attributes:
        indices: fields of the split. cases: see `frozen_case`. truths: (H, W, C) in [0, 1].
    Raises:
        UserError: count or batch_size below 1.
    """

    def __init__(
        self,
        split: Split,
        pattern: Pattern,
        count: int,
        *,
        seed: int = 0,
        batch_size: int = 16,
        device: torch.device | str = "cpu",
    ):
        for name, value in (("num_samples", count), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        places = np.linspace(0, len(split) - 1, min(count, len(split)))
        self.indices = places.round().astype(int).tolist()
        self.cases = [frozen_case(split, i, pattern, seed) for i in self.indices]
        self.tensors = [grid_case(case) for case in self.cases]
        self.truths = [(case["truth"] + 1) / 2 for case in self.cases]
        self.batch_size, self.device = batch_size, torch.device(device)

    def __len__(self) -> int:
        return len(self.cases)

    def model(
        self, model: nn.Module, *, done: Callable[[int], object] = int, **sampler
    ) -> Outcome:
        """Reconstruct every case with a model.

        Args:
            done: called with the number of cases just finished.
            sampler: `method` and its options, see `samplers.sample`.
        """
        fields: list = [None] * len(self)
        seconds = evaluations = 0.0
        groups = self._groups()
        self._sample(model, groups[0], method="mean", num_draws=1)  # compiles what is compiled
        for group in groups:
            start = self._now()
            result = self._sample(model, group, **sampler)
            seconds += self._now() - start
            evaluations += result.nfe * len(group)
            for k, values in zip(group, result.values):
                fields[k] = to_picture(values, self.cases[k], self.tensors[k])
            done(len(group))
        count = len(self)
        return self._outcome(fields, evaluations / count, seconds / count, result.how)

    def baseline(self, name: str) -> Outcome:
        """Reconstruct every case with one of `BASELINES`."""
        fields, start = [], time.perf_counter()
        for tensors, truth in zip(self.tensors, self.truths):
            coords, values = tensors["input_coords"].numpy(), tensors["input_values"].numpy()
            fields.append(BASELINES[name](coords, (values + 1) / 2, truth.shape[:2]))
        seconds = (time.perf_counter() - start) / len(self)
        return self._outcome(fields, 0, seconds, name)

    def _outcome(self, fields: list[np.ndarray], nfe: float, seconds: float, how: str) -> Outcome:
        numbers = [metrics.evaluate(x, g) for x, g in zip(fields, self.truths)]
        return Outcome(fields, numbers, nfe, seconds, how)

    def _sample(self, model: nn.Module, group: list[int], **sampler):
        names = ("query_coords", "input_coords", "input_values")
        points = [torch.stack([self.tensors[k][n] for k in group]).to(self.device) for n in names]
        seeds = [self.cases[k]["noise_seed"] for k in group]
        return sample(model, *points, seeds=seeds, **sampler)

    def _groups(self) -> list[list[int]]:
        """Cases with equally many points, at most batch_size together."""
        by_shape = defaultdict(list)
        for k, tensors in enumerate(self.tensors):
            by_shape[len(tensors["query_coords"]), len(tensors["input_coords"])].append(k)
        size = self.batch_size
        return [ks[i : i + size] for ks in by_shape.values() for i in range(0, len(ks), size)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def open_test_data(checkpoint: dict, data: str | None = None, test: str | None = None) -> Data:
    """The data to test a model on.

    Args:
        checkpoint: as loaded. data: what to open instead of what the model was trained on.
        test: an .npz file, all of whose pictures are the test.
    Raises:
        UserError: the file is missing, is not the one trained on (where none was asked for), or
            has other channels than the model.
    """
    trained = checkpoint["data"]
    if test is None and data is None and is_shipped(checkpoint):
        log.warning("tested on photos: the data of the shipped weights (%s) do not come with them",
                    checkpoint["config"]["data"])
        data = "photos"
    if test is not None:
        opened = open_data(test, val=test, test=test, **_as_trained(checkpoint))
    elif data is not None:
        opened = open_data(data, **_as_trained(checkpoint))
    else:
        opened = _open_as_trained(checkpoint)
    if opened.channels != trained["channels"]:
        raise UserError(
            f"{opened.name} has {opened.channels} channels, the model was trained with "
            f"{trained['channels']}: choose other --data"
        )
    return opened


def is_shipped(checkpoint: dict) -> bool:
    """Whether scripts/ship.py wrote it: its data have a name then, and no place."""
    return bool(checkpoint.get("shipped"))


def _as_trained(checkpoint: dict) -> dict:
    """How to read other data so that values, sizes and channels mean what they did in training."""
    trained, config = checkpoint["data"], checkpoint["config"]
    bounds = [float(bound) for pair in trained["value_range"] for bound in pair]
    of_pixels = np.ravel(pixel_scale(trained["channels"]).value_range).tolist()
    return {
        "image_size": config["image_size"],
        "value_range": None if bounds == of_pixels else bounds,  # of pixels the dtype says it
        "units": trained["units"],
        "channels": trained["channels"] if trained["channels"] in (1, 3) else None,
        "data_dir": config.get("data_dir"),
    }


def _open_as_trained(checkpoint: dict) -> Data:
    config = checkpoint["config"]
    for path in (config["data"], config["data_val"], config.get("data_test")):
        if path not in (None, "photos", "cifar10") and not Path(path).exists():
            raise UserError(
                f"the model was trained on {path}, which is not here: name the data to test on "
                "with --data (`photos` needs no file)"
            )
    opened = open_as_configured(config)
    if opened.fingerprint != checkpoint["data"]["fingerprint"]:
        raise UserError(
            f"{config['data']} is not the data that the model was trained on (its contents "
            "differ): restore it, or name the data to test on with --data"
        )
    return opened


@torch.no_grad()
def count_flops(model: nn.Module, shape: tuple[int, int], channels: int, observed: int) -> int:
    """Floating-point operations of one evaluation for one image, a multiply-add counting two.

    Counted: matrix products (attention as dense ones), the K taps of each causal convolution
    (2 L E K, whichever backend computes it), and selective scans with 9 L E S + 2 L E each
    (discretisation, recurrence, output, skip and gate; the count of VMamba, Liu et al. 2024).
    Not counted: elementwise operations, norms, and `prepare`, which runs once an image whatever
    the number of evaluations.

    Args:
        shape: (H, W), all of it queried. channels: C. observed: M.
    """
    device = next(model.parameters()).device
    query_coords = grid_coords(*shape, device=device)[None]
    input_coords = query_coords[:, :observed]
    noisy, inputs = (torch.zeros(1, n, channels, device=device)
                     for n in (query_coords.shape[1], observed))
    prepared = model.prepare(query_coords, input_coords, inputs)
    mamba = []

    def count_block(block: Mamba, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inner, states = block.A_log.shape
        taps = block.conv1d.weight.shape[2]
        mamba.append(output.shape[1] * inner * (2 * taps + 9 * states + 2))

    hooks = [block.register_forward_hook(count_block) for block in model.modules()
             if isinstance(block, Mamba)]
    try:
        # The fused attention of a CPU is unknown to the counter and would count nothing.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution: lambda *_, **__: 0}
        ) as products:
            t = torch.zeros(1, device=device)
            model(noisy, query_coords, t, input_coords, inputs, prepared=prepared)
    finally:
        for hook in hooks:
            hook.remove()
    return products.get_total_flops() + sum(mamba)
