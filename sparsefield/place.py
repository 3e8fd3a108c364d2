"""Where the points of a field lie: the one geometry of training, evaluation and use.

Coordinates are in units of the longer side of the field, with one scale for both axes, so that a
field of 16 x 48 pixels covers the rectangle [0, 1] x [0, 1/3]. x grows with the column and y with
the row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Domain(NamedTuple):
    """The rectangle that observations stand for, in coordinates.

    Attributes:
        width, height: of the rectangle; the longer one is 1 for a whole field.
    """

    width: float = 1.0
    height: float = 1.0

    @classmethod
    def of_grid(cls, height: int, width: int) -> Domain:
        """That of a grid of height x width pixels, all of which could be observed."""
        longer = max(height, width)
        return cls(width / longer, height / longer)

    @classmethod
    def of_points(cls, coords: Tensor) -> Domain:
        """That of scattered points (M, D): their bounding rectangle in x and y, widened so that its
        expected sides are those of the rectangle from which uniform points were drawn."""
        count = len(coords)
        sides = coords[:, :2].double().amax(dim=0) - coords[:, :2].double().amin(dim=0)
        width, height = (sides * (count + 1) / max(count - 1, 1)).tolist()
        return cls(width, height) if width or height else cls()

    def around(self, *coords: Tensor) -> Domain:
        """The smallest rectangle from (0, 0) on that holds this one and coords (..., 2 or 3)."""
        sides = [self, *(x[..., :2].flatten(0, -2).amax(dim=0).tolist() for x in coords)]
        return Domain(*map(max, zip(*sides, strict=True)))

    @property
    def side(self) -> float:
        """The longer side."""
        return max(self.width, self.height)

    def spacing(self, count: float) -> float:
        """Mean distance between so many points: on a square that of a square grid, on a line that
        of points along it."""
        return max(self.width * self.height / count, (self.side / count) ** 2) ** 0.5


UNIT_SQUARE = Domain()
LEAST_STEP = 1e-6  # of times; frames at one time count as so far apart


def grid_coords(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Pixel centres of a grid, row by row, in units of its longer side.

    Args:
        height, width: number of rows and columns, at least 1.
    Returns:
        (height * width, 2) float32: x = (j + 1/2) / s and y = (i + 1/2) / s of point i * width + j,
        with s = max(height, width). Grids of one shape but other resolutions cover the same
        rectangle.
    """
    longer = max(height, width)
    x = (torch.arange(width, device=device) + 0.5) / longer
    y = (torch.arange(height, device=device) + 0.5) / longer
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy], dim=-1).reshape(-1, 2)


class Frames(NamedTuple):
    """Which of B fields follow each other: every `count` of them, side by side, are a sequence.

    Attributes:
        count: T. times: (B,), of the fields; None: even steps.
        draws: K of each field, side by side: then there are B K fields, and still B times.
    """

    count: int = 1
    times: Tensor | None = None
    draws: int = 1

    def part(self, rows: slice) -> Frames:
        """Of some of the fields, whole sequences."""
        return self if self.times is None else self._replace(times=self.times[rows])

    def joined(self, x: Tensor) -> Tensor:
        """What fields have (B, N, F) as what sequences have: (B / T, T N, F)."""
        return x.unflatten(0, (-1, self.count)).flatten(1, 2)

    def apart(self, x: Tensor) -> Tensor:
        """What `joined` undoes."""
        return x.unflatten(1, (self.count, -1)).flatten(0, 1)

    def in_time(self, coords: Tensor) -> Tensor:
        """Places (B, N, D) of the fields as places of sequences, (B / T, T N, D + 1), the last
        coordinate of which is the time."""
        times = self.times
        if times is None:
            times = torch.arange(self.count, device=coords.device).repeat(len(coords) // self.count)
        times = times.to(coords)[:, None, None].expand(-1, coords.shape[1], 1)
        return self.joined(torch.cat([coords, times], dim=2))

    def log_steps(self, like: Tensor) -> Tensor:
        """(B / T, T, 2): logarithms of the time since the frame before and until the next in mean
        steps of the sequence; 0 where there is none, or steps are even. Of fields (B K, ...)."""
        steps = like.new_zeros(len(like) // (self.count * self.draws), self.count, 2)
        if self.times is not None and self.count > 1:
            gaps = self.times.to(like).view(-1, self.count).diff(dim=1).clamp_min(LEAST_STEP)
            steps[:, 1:, 0] = steps[:, :-1, 1] = (gaps / gaps.mean(dim=1, keepdim=True)).log()
        return steps


SINGLE = Frames()


class Observed(NamedTuple):
    """What was measured of B fields.

    Attributes:
        coords: (B, M, 2), or (B, M, 3) on a globe, and columns of covariates, if any.
        values: (B, M, C), of about unit size.
        noise_sd: (B, M, C) of the noise in the values; None: they are exact.
        domain: the rectangle that the observations stand for.
        box: the rectangle that holds them and all that is asked for; it begins at (0, 0).
        frames: which of the fields are a sequence.
        covariates: how many columns of coords, here and of queries, are no places in space: only
            the closed form reads them. trend: degree of its polynomial drift, 0 to 2.
        timed: whether the last of the covariates is time.
        counts: (B,), of the frames of one sequence, how many of their M observations there are: the
            others fill up those that have fewer. None: all.
    """

    coords: Tensor
    values: Tensor
    noise_sd: Tensor | None = None
    domain: Domain = UNIT_SQUARE
    box: Domain = UNIT_SQUARE
    covariates: int = 0
    trend: int = 0
    timed: bool = False
    frames: Frames = SINGLE
    counts: tuple[int, ...] | None = None

    @property
    def there(self) -> Tensor | None:
        """(B, M, 1) bool: which observations there are; None: all."""
        if self.counts is None:
            return None
        counts = torch.tensor(self.counts, device=self.coords.device)
        number = torch.arange(self.coords.shape[1], device=self.coords.device)
        return (number < counts[:, None])[..., None]

    @property
    def usual_count(self) -> float:
        """Observations of a field, on the mean of those that have any."""
        counts = [count for count in self.counts or () if count]
        return sum(counts) / len(counts) if counts else self.coords.shape[1]

    def in_time(self) -> Observed:
        """Sequences as one field each, with time as a further coordinate."""
        noise_sd = self.noise_sd
        return Observed(
            self._found(self.frames.in_time(self.coords)), self.joined_values(),
            None if noise_sd is None else self._found(self.frames.joined(noise_sd)),
            domain=self.domain, covariates=1, timed=True)

    def joined_values(self) -> Tensor:
        """Those of sequences, (B / T, T M, C), without what fills up frames."""
        return self._found(self.frames.joined(self.values))

    def _found(self, joined: Tensor) -> Tensor:
        """What is there, of what sequences have (B / T, T M, F)."""
        return joined if self.there is None else joined[:, self.there.flatten()]

    def alike(self) -> list[tuple[slice, Observed]]:
        """Fields with equally many observations, and which these are: all of them, or each that
        has any on its own, where some are filled up."""
        if self.counts is None:
            return [(slice(None), self)]
        return [(slice(b, b + 1), self.part(slice(b, b + 1), slice(count))._replace(
            frames=SINGLE, counts=None)) for b, count in enumerate(self.counts) if count]

    def part(self, rows: slice, which: slice = slice(None)) -> Observed:
        """Some of the fields, and of their observations."""
        return self._replace(**{name: None if x is None else x[rows, which] for name, x in
                                zip(self._fields[:3], self[:3], strict=True)},
                             frames=self.frames.part(rows))

    def cpu(self) -> Observed:
        """On the CPU, all but the times of frames."""
        noise_sd = None if self.noise_sd is None else self.noise_sd.cpu()
        return self._replace(coords=self.coords.cpu(), values=self.values.cpu(), noise_sd=noise_sd)
