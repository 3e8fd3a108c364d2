"""A trained model behind one call: measurements in, a field with its uncertainty out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsefield.calibration import SETTINGS, widen
from sparsefield.checkpoint import load_model
from sparsefield.coords import grid_coords
from sparsefield.data.scale import Scale, pixel_scale
from sparsefield.distributed import pick_device
from sparsefield.errors import UserError
from sparsefield.kriging import DENSE_POINTS, noisy_observations
from sparsefield.use.measurements import LARGEST, MOST_POINTS, Measurements, average_duplicates
from sparsefield.samplers import Progress, noise_seed, sample

INPUTS = 400  # observations that a block sees, twice those of a training field at 32 x 32
BLOCK = 4096  # queries of a block at most
TOKENS = 16384  # of all samples that are drawn together: bounds memory
MEAN_DRAWS = 4
MARGIN = 0.1  # of the spread of grey values, on either side, when they come without a range


@dataclass(frozen=True)
class Field:
    """A reconstructed field, in the units of the measurements.

    Attributes:
        coords: (H, W, 2), x and y of the middles of its cells.
        mean: (H, W, C) posterior mean. sd: (H, W, C). samples: (K, H, W, C).
        how: the samplers in words.
    """

    coords: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    samples: np.ndarray
    how: str


class Reconstructor:
    """A trained model that takes measurements in their own units; made by `sparsefield.load`.

    Attributes:
        channels: of the fields that it was trained on. scale: their values and units.
        spread: factor on the spread of samples, fitted at the end of training; 1 if it was not.
    """

    def __init__(self, network: nn.Module, checkpoint: dict, device: torch.device):
        self.network, self.checkpoint, self.device = network, checkpoint, device
        data = checkpoint["data"]
        self.channels = int(data["channels"])
        self.scale = Scale(tuple(tuple(pair) for pair in data["value_range"]), data["units"])
        self.spread = float(checkpoint.get("calibration", {}).get("spread", 1.0))

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Reconstructor:
        """See `sparsefield.load`."""
        chosen = pick_device(device)
        return cls(*load_model(path, chosen), chosen)

    def reconstruct(
        self,
        coords: np.ndarray,
        values: np.ndarray,
        resolution: int | tuple[int, int] = 64,
        *,
        extent: Sequence[float] | None = None,
        num_samples: int = 16,
        noise_sd: float = 0.0,
        value_range: Sequence[float] | None = None,
        num_steps: int = SETTINGS["num_steps"],
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Field:
        """The field on a grid, from values at scattered points.

        Args:
            coords: (M, 2), x and y in any units, 1 to 100,000 points; equal ones are averaged.
            values: (M, C) or (M,), in the units of the training data. One channel is welcome by a
                model of colour pictures, as shades of grey.
            resolution: cells of the longer side (the other follows), or (rows, columns).
            extent: x0 x1 y0 y1, default the unit square. Both axes have the same scale.
            num_samples: K, at least 2.
            noise_sd: sd of the noise in the values, in their units; 0 keeps them exactly.
            value_range: what the model sees as its darkest and brightest, where values are not
                in the training data's units; grey values for a model of colour: default theirs,
                with a margin.
            num_steps: of Heun's rule; the calibration holds at the default.
            progress: called as progress(model calls so far, all).
        Returns:
            `Field`; where a cell's middle is a measured point, the measured value.
        Raises:
            UserError: an argument that cannot be used, with the reason.
        """
        coords, values = np.asarray(coords, np.float64), np.asarray(values, np.float64)
        values = values[:, None] if values.ndim == 1 else values
        extent = tuple(float(x) for x in (extent if extent is not None else (0, 1, 0, 1)))
        given = Measurements(coords, values, extent)
        self._check(given, num_samples, noise_sd)
        given = average_duplicates(given)
        scale, copies = self._scale_for(given, value_range)
        shape = grid_shape(resolution, extent)
        inside = scale.to_inside(np.repeat(given.values, copies, axis=1))
        places = to_square(given.coords, extent)
        queries, where = cells(shape, extent)
        query_coords = to_square(where, extent) if queries is None else queries
        observations = self._observations(places, inside, noise_sd, scale, num_samples, seed)
        clip = self.scale.value_range == pixel_scale(self.channels).value_range and copies == 1
        drawn, mean, how = self._draw(
            query_coords, places, observations, num_steps, seed, clip, noise_sd > 0, progress
        )
        drawn = widen(drawn, self.spread)
        drawn = drawn.clip(-1, 1) if clip else drawn

        def outside(inner: np.ndarray) -> np.ndarray:
            full = scale.to_physical(inner).reshape(*inner.shape[:-2], *shape, self.channels)
            return full.mean(axis=-1, keepdims=True) if copies > 1 else full

        samples = outside(drawn)
        return Field(where.reshape(*shape, 2), outside(mean), samples.std(axis=0, ddof=1), samples,
                     how)

    def _check(self, given: Measurements, num_samples: int, noise_sd: float) -> None:
        coords, values = given.coords, given.values
        if coords.ndim != 2 or coords.shape[1:] != (2,) or values.ndim != 2 or (
            len(coords) != len(values)
        ):
            raise UserError(f"coords {coords.shape} and values {values.shape}: give (M, 2) and "
                            "(M,) or (M, C)")
        if not 1 <= len(coords) <= MOST_POINTS:
            raise UserError(f"{len(coords):,} points: give 1 to {MOST_POINTS:,}")
        if not (np.isfinite(coords).all() and np.isfinite(values).all()):
            raise UserError("coords or values hold NaN or infinity: leave those points out")
        x0, x1, y0, y1 = given.extent
        if not (x0 < x1 and y0 < y1):
            raise UserError(f"extent {x0:g} {x1:g} {y0:g} {y1:g}: give x0 < x1 and y0 < y1")
        outside = ~((coords >= (x0, y0)) & (coords <= (x1, y1))).all(axis=1)
        if outside.any():
            raise UserError(f"{outside.sum()} points lie outside the extent {x0:g} {x1:g} {y0:g} "
                            f"{y1:g}: leave them out, or give a larger extent")
        if values.shape[1] != self.channels and (values.shape[1], self.channels) != (1, 3):
            raise UserError(f"{values.shape[1]} value(s) a point, the model was trained on "
                            f"{self.channels}: choose the columns, or another checkpoint")
        if num_samples < 2:
            raise UserError(f"num_samples={num_samples}: an uncertainty needs at least 2")
        if not 0 <= noise_sd < np.inf:
            raise UserError(f"noise_sd={noise_sd}: give 0 or more, in the units of the values")
        if noise_sd and len(coords) > DENSE_POINTS:
            raise UserError(f"noise_sd works up to {DENSE_POINTS:,} points, here are "
                            f"{len(coords):,}: average neighbours first")

    def _scale_for(
        self, given: Measurements, value_range: Sequence[float] | None
    ) -> tuple[Scale, int]:
        """Scale of the model's channels for these values, and how often each value is repeated."""
        copies = self.channels // given.values.shape[1]
        if value_range is not None:
            bounds = np.reshape(np.asarray(value_range, float), (-1, 2))
            if len(bounds) not in (1, self.channels) or not (bounds[:, 0] < bounds[:, 1]).all():
                raise UserError(f"value_range {list(value_range)}: give low high")
            pairs = [tuple(pair) for pair in bounds.tolist()]
            return Scale(tuple(pairs * (self.channels // len(pairs))), self.scale.units), copies
        if copies == 1:
            return self.scale, 1
        low, high = given.values.min(), given.values.max()
        margin = MARGIN * (high - low) or 0.5
        return Scale(((low - margin, high + margin),) * self.channels), copies

    def _observations(
        self, places: Tensor, inside: np.ndarray, noise_sd: float, scale: Scale, count: int,
        seed: int,
    ) -> Tensor:
        """(K + 1, M, C): what the mean and each sample take for the truth at the points."""
        values = torch.from_numpy(inside).expand(count + 1, -1, -1)
        if noise_sd == 0:
            return values
        half_widths = np.diff(scale.value_range, axis=1)[:, 0] / 2
        return noisy_observations(
            places, values[0], torch.from_numpy(noise_sd / half_widths), count, noise_seed(seed, 1)
        )

    def _draw(
        self, queries: Tensor, places: Tensor, observations: Tensor, num_steps: int, seed: int,
        clip: bool, noisy: bool, progress: Progress | None,
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Samples (K, N, C), posterior mean (N, C) and the samplers in words."""
        count, points = len(observations) - 1, len(queries)
        blocks = block_size(points, len(places))
        tokens = 2 * min(blocks or points, points) + min(INPUTS, len(places))
        together = max(1, min(count, TOKENS // tokens))
        pieces = -(-points // blocks) if blocks else 1
        groups = [range(i, min(i + together, count)) for i in range(0, count, together)]
        calls = pieces * (MEAN_DRAWS + (2 * num_steps - 1) * len(groups))
        done = 0

        def run(members: range, **sampler) -> tuple[np.ndarray, str]:
            nonlocal done
            start = done

            def step(call: int, _: int | None) -> None:
                nonlocal done
                done = start + call
                if progress is not None:
                    progress(done, calls)

            size = len(members)
            result = sample(
                self.network,
                queries.to(self.device).expand(size, -1, -1),
                places.to(self.device).expand(size, -1, -1),
                observations[list(members)].to(self.device),
                seeds=[noise_seed(seed, 0, member) for member in members],
                block_size=blocks,
                max_inputs=INPUTS,
                clip=clip,
                progress=step,
                **sampler,
            )
            return result.values.cpu().numpy(), result.how

        mean, how_mean = run(range(0, 1), method="mean", num_draws=MEAN_DRAWS)
        drawn = [run(range(g.start + 1, g.stop + 1), **(SETTINGS | {"num_steps": num_steps}))
                 for g in groups]
        return np.concatenate([d for d, _ in drawn]), mean[0], f"{how_mean}; {drawn[0][1]}"


def block_size(points: int, observed: int) -> int | None:
    """Queries to answer together so that they and their halo lie among about INPUTS / 2 points."""
    size = BLOCK
    if observed > INPUTS:
        size = min(BLOCK, max(4, points * INPUTS // (3 * observed)))
    return size if size < points else None


def grid_shape(resolution: int | tuple[int, int], extent: Sequence[float]) -> tuple[int, int]:
    """(rows, columns) of a grid.

    Args:
        resolution: cells of the longer side, for square cells; or (rows, columns) as they are.
    Raises:
        UserError: a side is not in 1 ... 512.
    """
    x0, x1, y0, y1 = extent
    shape = resolution
    if not isinstance(resolution, tuple):
        longer = max(x1 - x0, y1 - y0)
        shape = tuple(max(1, round(resolution * side / longer)) for side in (y1 - y0, x1 - x0))
    if not all(1 <= side <= LARGEST for side in shape):
        raise UserError(f"resolution {shape[0]}x{shape[1]}: rows and columns are 1 to {LARGEST}")
    return shape


def to_square(points: np.ndarray, extent: Sequence[float]) -> Tensor:
    """Coordinates (P, 2) in the unit square: the longer side of the extent becomes 1."""
    x0, x1, y0, y1 = extent
    inside = (np.asarray(points) - (x0, y0)) / max(x1 - x0, y1 - y0)
    return torch.from_numpy(inside.astype(np.float32))


def cells(shape: tuple[int, int], extent: Sequence[float]) -> tuple[Tensor | None, np.ndarray]:
    """Middles of the cells of a grid over the extent, row by row.

    Returns:
        (N, 2) float32 in the unit square for a square extent (those that training saw, to the
        bit), else None; and (N, 2) float64 in the units of the extent.
    """
    x0, x1, y0, y1 = extent
    x = x0 + (np.arange(shape[1]) + 0.5) / shape[1] * (x1 - x0)
    y = y0 + (np.arange(shape[0]) + 0.5) / shape[0] * (y1 - y0)
    where = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return (grid_coords(*shape) if x1 - x0 == y1 - y0 else None), where
