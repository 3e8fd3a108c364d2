"""What comes out: a field, or an answer at places of any kind, in the units of the measurements."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsefield.use.frame import beyond


@dataclass(frozen=True)
class Answer:
    """What a model says of N places: see `Field`.

    Attributes:
        mean, sd: (N, C). samples: (K, N, C).
    """

    mean: np.ndarray
    sd: np.ndarray
    samples: np.ndarray
    how: str
    variogram: str = ""

    def on_grid(self, where: np.ndarray) -> Field:
        """The field of which these are the cells, row by row; where: (H, W, 2), their middles."""
        shape = where.shape[:2]
        return Field(where, self.mean.reshape(*shape, -1), self.sd.reshape(*shape, -1),
                     self.samples.reshape(-1, *shape, self.mean.shape[1]), self.how, self.variogram)


@dataclass(frozen=True)
class Field:
    """A reconstructed field, in the units of the measurements.

    Attributes:
        coords: (H, W, 2), x and y of the middles of its cells.
        mean: (H, W, C) posterior mean. sd: (H, W, C), that of the samples, and of the closed form
            alone without a transform the exact one. samples: (K, H, W, C).
        how: the samplers in words. variogram: of the closed form, as fitted; "" without one.
    """

    coords: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    samples: np.ndarray
    how: str
    variogram: str = ""

    def within(self, reach: float, coords: np.ndarray, lonlat: bool = False) -> Field:
        """NaN where the nearest of the measured places coords (M, 2) is farther than `reach`.

        Args:
            reach: in the units of x and y; with lonlat in km on the Earth.
        """
        far = beyond(reach, self.coords.reshape(-1, 2), coords, lonlat)
        far = far.reshape(self.coords.shape[:2])
        hidden = {name: np.where(far[..., None], np.nan, getattr(self, name))
                  for name in ("mean", "sd", "samples")}
        return replace(self, **hidden)
