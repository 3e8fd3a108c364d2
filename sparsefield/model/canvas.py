"""A dense first look at the observations: a U-Net on a lattice, which points read.

The closed form is linear in the values and knows no edges. The canvas holds it on a lattice as fine
as the observations are dense, and a U-Net (Ronneberger et al. 2015) says in every cell by how much
its mean is off and how much narrower or wider the truth lies around it. A point at any place reads
the canvas by bilinear interpolation, as in gridded neural processes (Ashman et al. 2024). It
depends on the observations alone: once a field, whatever is drawn from it.

Symbols: B fields, M observations, N queries, C channels, n cells a side, W width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsefield.coords import grid_coords

CELLS = 32 / 204**0.5  # a side, times the root of the number of observations
FEWEST = 8
LEVELS = 3
SIDE_MULTIPLE = 2 ** (LEVELS - 1)
SURPRISE_LIMIT = 10.0
LEAST_SCALE = 0.01  # of values in [-1, 1], for fields that are nearly constant
WIDEST = 1.5  # of |log s|: sd between 0.22 and 4.5 times the closed form's


class Look(NamedTuple):
    """What points read from the canvas.

    Attributes:
        shift, log_scale: (B, N, C), in units of the closed form's sd, and of its logarithm.
        features: (B, N, W).
    """

    shift: Tensor
    log_scale: Tensor
    features: Tensor


def lattice_side(observations: int) -> int:
    """Cells a side: 0.45 mean spacings each; 32 for 204 observations."""
    cells = max(FEWEST, CELLS * observations**0.5)
    return round(cells / SIDE_MULTIPLE) * SIDE_MULTIPLE


def lattice(side: int, device: torch.device | str | None = None) -> Tensor:
    """Middles of the cells (n n, 2), row by row."""
    return grid_coords(side, side, device)


def sketch(
    answer: tuple[Tensor, Tensor, Tensor], coords: Tensor, values: Tensor, surprise: Tensor
) -> Tensor:
    """What the U-Net sees: the closed form in every cell, and where observations lie.

    Values are seen from the mean of the observations in units of their sd, so that fields of any
    level and contrast look alike.

    Args:
        answer: mean, sd (B, n n, C) and spread (B, n n, 1) of the closed form in the cells.
        coords: (B, M, 2). values, surprise: (B, M, C); observations of one cell are averaged.
    Returns:
        (B, sketch_width(C), n, n) float32.
    """
    mean, sd, spread = answer
    side = round(mean.shape[1] ** 0.5)
    level = values.mean(dim=(1, 2), keepdim=True)                         # (B, 1, 1)
    scale = values.std(dim=(1, 2), keepdim=True, correction=0).clamp_min(LEAST_SCALE)
    column, row = (coords * side).long().clamp(0, side - 1).unbind(dim=-1)
    cell = (row * side + column)[..., None]                               # (B, M, 1)
    count = torch.zeros_like(spread).scatter_add(1, cell, torch.ones_like(coords[..., :1]))
    surprise = surprise.clamp(-SURPRISE_LIMIT, SURPRISE_LIMIT)
    told = torch.zeros_like(mean).scatter_add(1, cell.expand_as(surprise), surprise)
    seen = torch.cat([
        count.clamp(max=1),
        told / count.clamp_min(1),
        (mean - level) / scale,
        (sd / scale).log(),
        spread / sd.mean(dim=2, keepdim=True),
        scale.log().expand_as(spread),
    ], dim=2)                                                             # (B, n n, F)
    return seen.mT.unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)


def sketch_width(channels: int) -> int:
    """Channels of a sketch."""
    return 3 * channels + 3


def read(canvas: Tensor, coords: Tensor) -> Tensor:
    """Bilinear interpolation between cell middles, constant beyond the outermost.

    Args:
        canvas: (B, F, n, n). coords: (B, N, 2) in sides of the square.
    Returns:
        (B, N, F).
    """
    places = (2 * coords - 1)[:, :, None].to(canvas)                      # (B, N, 1, 2)
    found = F.grid_sample(canvas, places, padding_mode="border", align_corners=False)
    return found[..., 0].mT


class Filters(nn.Module):
    """3 x 3 convolution, whose weight is a matrix (outputs, 9 * inputs), for Muon."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, 9 * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, n, n) to (B, outputs, n, n)."""
        weight = self.weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)  # channels last
        return F.conv2d(x, weight, self.bias, padding=1)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), which starts as x (He et al. 2016).

    Args:
        dropout: share of the channels before the second convolution that training drops.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.norm_1, self.norm_2 = group_norm(width), group_norm(width)
        self.conv_1, self.conv_2 = Filters(width, width), Filters(width, width)
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_1(F.silu(self.norm_1(x)))                           # (B, W, n, n)
        y = self.dropout(F.silu(self.norm_2(y)))                          # (B, W, n, n)
        return x + self.conv_2(y)                                         # (B, W, n, n)


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(8 if width % 8 == 0 else 1, width)


class UNet(nn.Module):
    """Levels of twice the width and half the side, one residual block down and one up.

    Args:
        inputs, outputs: channels. width: W, of the finest level. dropout: of its blocks.
    """

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float = 0.0):
        super().__init__()
        widths = [width << level for level in range(LEVELS)]
        steps = list(pairwise(widths))
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(w, dropout) for w in widths)
        self.coarser = nn.ModuleList(nn.Conv2d(w, v, 2, stride=2) for w, v in steps)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(v, w, 2, stride=2) for w, v in steps)
        self.up = nn.ModuleList(ResidualBlock(w, dropout) for w in widths[:-1])
        self.norm = group_norm(width)
        self.last = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(self.last.weight)  # so that training starts at the closed form
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, n, n), n a multiple of SIDE_MULTIPLE, to (B, outputs, n, n) and what they
        are made of (B, W, n, n)."""
        x, fine = self.first(x), []
        for block, coarser in zip(self.down, self.coarser):
            x = block(x)
            fine.append(x)
            x = coarser(x)
        x = self.down[-1](x)
        for block, finer in zip(reversed(self.up), reversed(self.finer)):
            x = block(fine.pop() + finer(x))
        x = F.silu(self.norm(x))
        return self.last(x), x


class Canvas(nn.Module):
    """A sketch, painted: see the module.

    Two networks, since one for both has a worse mean (docs/experiments.md; Stirn et al. 2023 find
    the same elsewhere): one says the shift, and a narrower one, which sees that shift but does not
    teach it, the scale.

    Args:
        channels: C. width: W. turns: how many symmetries of the square the training shows: 8, 4
            (flips) or 1. What the trained canvas says is the mean over them. dropout: see
            ResidualBlock.
    """

    def __init__(self, channels: int, width: int, turns: int = 8, dropout: float = 0.0):
        super().__init__()
        seen = sketch_width(channels)
        self.shift = UNet(seen, channels, width, dropout)
        self.scale = UNet(seen + channels, channels, max(1, width // 2), dropout)
        self.channels, self.width, self.turns = channels, width, turns

    def forward(self, sketch: Tensor, *places: Tensor) -> list[Look]:
        """What is read at each of several sets of places (B, N, 2)."""
        shift, raw, features = self.paint(sketch)
        if not self.training:
            for number in range(1, self.turns):
                other_shift, other_raw, _ = self.paint(turned(sketch, number))
                shift = shift + turned_back(other_shift, number)
                raw = raw + turned_back(other_raw, number)
            shift, raw = shift / self.turns, raw / self.turns
        painted = torch.cat([shift, raw, features], dim=1)                # (B, 2 C + W, n, n)
        parts = self.channels, self.channels, self.width
        looks = (read(painted, coords).split(parts, dim=2) for coords in places)
        return [Look(shift, WIDEST * (raw / WIDEST).tanh(), features)
                for shift, raw, features in looks]

    def paint(self, sketch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shift, raw log of the scale (B, C, n, n) and features (B, W, n, n), float32."""
        shift, features = self.shift(sketch)
        raw, _ = self.scale(torch.cat([sketch, shift.detach().to(sketch)], dim=1))
        return shift.float(), raw.float(), features.float()


def turned(x: Tensor, number: int) -> Tensor:
    """(..., n, n) as symmetry `number` in 0 .. 7 of the square shows it, in the same memory format;
    see sparsefield.data.symmetries."""
    if number & 1:
        x = x.flip(-2)
    if number & 2:
        x = x.flip(-1)
    return x.mT.contiguous(memory_format=torch.channels_last) if number & 4 else x


def turned_back(x: Tensor, number: int) -> Tensor:
    """What `turned` undoes."""
    if number & 4:
        x = x.mT
    if number & 2:
        x = x.flip(-1)
    return x.flip(-2) if number & 1 else x
