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
from sparsefield.data.scale import Scale, given_range
from sparsefield.distributed import pick_device
from sparsefield.errors import UserError, require_seed
from sparsefield.kriging import DENSE_POINTS, noisy_observations
from sparsefield.samplers import Progress, noise_seed, sample
from sparsefield.use.grids import cells, grid_shape, scales, to_square
from sparsefield.use.points import MOST_POINTS, Measurements, as_given, average_duplicates
from sparsefield.use.scales import choose_scale, excess, is_of_pictures

INPUTS = 400  # observations that a block sees, twice those of a training field at 32 x 32
BLOCK = 4096  # queries of a block at most
TOKENS = 16384  # of all samples that are drawn together: bounds memory
MEAN_DRAWS = 4
MOST_SAMPLES = 1000


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
        try:
            self.channels = int(data["channels"])
            pairs = tuple((float(low), float(high)) for low, high in data["value_range"])
            self.scale = Scale(pairs, data.get("units"))
        except (KeyError, TypeError, ValueError):
            raise UserError("the checkpoint does not say what its data were (channels, "
                            "value_range): it is damaged, or of another version") from None
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
        resolution: int | Sequence[int] = 64,
        *,
        extent: Sequence[float] | None = None,
        num_samples: int = 16,
        noise_sd: float = 0.0,
        value_range: Sequence[float] | None = None,
        num_steps: int = SETTINGS["num_steps"],
        seed: int = 0,
        aspect: str = "auto",
        missing: Sequence[float] | None = None,
        separately: bool = False,
        progress: Progress | None = None,
    ) -> Field:
        """The field on a grid, from values at scattered points.

        Args:
            coords: (M, 2), x and y in any units, 1 to 100,000 points; equal ones are averaged.
                Masked points (numpy.ma) are left out.
            values: (M, C) or (M,), in the units of the training data. A model of colour pictures
                takes red, green and blue (0 to 255), one channel as shades of grey, and any other
                number of channels each on its own.
            resolution: cells of the longer side (the other follows), or (rows, columns).
            extent: x0 x1 y0 y1, default the unit square.
            num_samples: K, at least 2.
            noise_sd: sd of the noise in the values, in their units; 0 keeps them exactly.
            value_range: low high, or so for each channel: what the model sees as its darkest and
                brightest. Default that of the training data; where the values lie far outside of
                it, with a warning, and for shades of grey: theirs, with a margin.
            num_steps: of Heun's rule; the calibration holds at the default.
            aspect: equal (both axes have one scale), free (each its own), or auto: free where the
                sides of the extent differ by more than 10 times.
            missing: values that mean: not measured. None refuses one that looks like it, such as
                -9999; [] takes all as they are.
            separately: each channel on its own, where three are no colours.
            progress: called as progress(model calls so far, all).
        Returns:
            `Field`; where a cell's middle is a measured point, the measured value.
        Raises:
            UserError: an argument that cannot be used, with the reason.
        """
        coords, values = as_given(coords, values, missing)
        extent = tuple(float(x) for x in (extent if extent is not None else (0, 1, 0, 1)))
        given = Measurements(coords, values, extent)
        self._check(given, num_samples, noise_sd, num_steps, seed)
        scaled_by = scales(extent, aspect)
        shape = grid_shape(resolution, extent, scaled_by)
        given = average_duplicates(given)
        channels = given.values.shape[1]
        if separately or is_of_pictures(self.scale) and channels not in (1, self.channels):
            return self._each_channel(
                given, value_range, seed, resolution=shape, extent=extent, num_samples=num_samples,
                noise_sd=noise_sd, num_steps=num_steps, aspect=aspect, progress=progress,
            )
        scale, copies = choose_scale(self.scale, given.values, value_range)
        inside = scale.to_inside(np.repeat(given.values, copies, axis=1))
        places = to_square(given.coords, extent, scaled_by)
        query_coords, where = cells(shape, extent, scaled_by)
        observations = self._observations(places, inside, noise_sd, scale, num_samples, seed)
        clip = is_of_pictures(self.scale) and copies == 1 and excess(given.values, scale) <= 0
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

    def _each_channel(
        self, given: Measurements, value_range: Sequence[float] | None, seed: int, **settings
    ) -> Field:
        """Every channel alone, as shades of grey: they are different things, not colours."""
        channels = given.values.shape[1]
        ranges = [None] * channels if value_range is None else given_range(value_range, channels)
        fields = [
            self.reconstruct(given.coords, given.values[:, c], value_range=ranges[c],
                             seed=seed + c, missing=[], **settings)
            for c in range(channels)
        ]
        joined = {name: np.concatenate([getattr(field, name) for field in fields], axis=-1)
                  for name in ("mean", "sd", "samples")}
        return Field(coords=fields[0].coords, how=fields[0].how, **joined)

    def _check(
        self, given: Measurements, num_samples: int, noise_sd: float, num_steps: int, seed: int
    ) -> None:
        coords, values = given.coords, given.values
        if not 1 <= len(coords) <= MOST_POINTS:
            raise UserError(f"{len(coords):,} points: give 1 to {MOST_POINTS:,}")
        x0, x1, y0, y1 = given.extent
        if not (x0 < x1 and y0 < y1 and np.isfinite((x1 - x0, y1 - y0)).all()):
            raise UserError(f"extent {x0:g} {x1:g} {y0:g} {y1:g}: give x0 < x1 and y0 < y1, finite")
        outside = ~((coords >= (x0, y0)) & (coords <= (x1, y1))).all(axis=1)
        if outside.any():
            raise UserError(f"{outside.sum()} points lie outside the extent {x0:g} {x1:g} {y0:g} "
                            f"{y1:g}: leave them out, or give a larger extent")
        if values.shape[1] != self.channels and not is_of_pictures(self.scale):
            raise UserError(f"{values.shape[1]} value(s) a point, the model was trained on "
                            f"{self.channels}: choose columns with --value, or another checkpoint")
        if not 2 <= num_samples <= MOST_SAMPLES:
            raise UserError(f"num_samples={num_samples}: an uncertainty needs at least 2, and at "
                            f"most {MOST_SAMPLES:,} are kept")
        if num_steps < 1:
            raise UserError(f"num_steps={num_steps}: give at least 1")
        require_seed(seed)
        if not 0 <= noise_sd < np.inf:
            raise UserError(f"noise_sd={noise_sd}: give 0 or more, in the units of the values")
        if noise_sd and len(coords) > DENSE_POINTS:
            raise UserError(f"noise_sd works up to {DENSE_POINTS:,} points, here are "
                            f"{len(coords):,}: average neighbours first")

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
