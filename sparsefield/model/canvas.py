"""A dense look at observations and draws: U-Nets on a lattice, which points read.

The closed form is linear in the values and knows no edges. The canvas holds it on a lattice as fine
as the observations are dense, and a U-Net (Ronneberger et al. 2015) says in every cell by how much
its mean is off and how much narrower or wider the truth lies around it. A point at any place reads
the canvas by bilinear interpolation, as in gridded neural processes (Ashman et al. 2024). That
depends on the observations alone: once a field, whatever is drawn from it. Another U-Net sees it
together with z, the state of a draw, laid on the lattice, and says which way all of it should go:
what is grain and what is edge shows where neighbours are seen together.

Measurements lie anywhere in their cells, while a picture's lie in the middle. A cell that holds
some looks at the closed form where they are, as it does in a picture, and what it says itself,
which no picture asks for, is not read: its neighbours speak for it.

Symbols: B fields, M observations, N queries, C channels, n cells a side, W width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsefield.place import grid_coords

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


class Outlook(NamedTuple):
    """What the canvas says of a field, for all its draws.

    Attributes:
        begun: (B, W, n, n), the first layer of the network that follows the flow, without z.
        coords: (B, N, 2), where z will be. held: (B, 1, n, n), 1 in cells with observations.
    """

    begun: Tensor
    coords: Tensor
    held: Tensor

    def repeat(self, times: int) -> Outlook:
        """Every field `times` times, side by side: for as many draws."""
        if times == 1:
            return self
        return Outlook(*(part.repeat_interleave(times, dim=0) for part in self))


def lattice_side(observations: int) -> int:
    """Cells a side: 0.45 mean spacings each; 32 for 204 observations."""
    cells = max(FEWEST, CELLS * observations**0.5)
    return round(cells / SIDE_MULTIPLE) * SIDE_MULTIPLE


def lattice(side: int, device: torch.device | str | None = None) -> Tensor:
    """Middles of the cells (n n, 2), row by row."""
    return grid_coords(side, side, device)


def lookouts(coords: Tensor, side: int) -> Tensor:
    """Where cells look at the closed form, (B, n n, 2): in their middles, or, where they hold
    observations, in the middle of these; coords (B, M, 2)."""
    held, place = laid_out(coords, coords, side)
    return torch.where(held > 0, place, lattice(side, coords.device).to(coords))


def sketch(
    answer: tuple[Tensor, Tensor, Tensor], coords: Tensor, values: Tensor, surprise: Tensor
) -> Tensor:
    """What the U-Net sees: the closed form in every cell, and where observations lie.

    Values are seen from the mean of the observations in units of their sd, so that fields of any
    level and contrast look alike.

    Args:
        answer: mean, sd (B, n n, C) and spread (B, n n, 1) of the closed form at `lookouts`.
        coords: (B, M, 2). values, surprise: (B, M, C); observations of one cell are averaged.
    Returns:
        (B, sketch_width(C), n, n) float32.
    """
    mean, sd, spread = answer
    side = round(mean.shape[1] ** 0.5)
    level = values.mean(dim=(1, 2), keepdim=True)                         # (B, 1, 1)
    scale = values.std(dim=(1, 2), keepdim=True, correction=0).clamp_min(LEAST_SCALE)
    held, told = laid_out(surprise.clamp(-SURPRISE_LIMIT, SURPRISE_LIMIT), coords, side)
    seen = torch.cat([
        held,
        told,
        (mean - level) / scale,
        (sd / scale).log(),
        spread / sd.mean(dim=2, keepdim=True),
        scale.log().expand_as(spread),
    ], dim=2)                                                             # (B, n n, F)
    return as_picture(seen, side)


def laid_out(values: Tensor, coords: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Values (B, N, F) at coords (B, N, 2) on the lattice: which cells hold any (B, n n, 1), as 0
    and 1, and the mean in each (B, n n, F), 0 where there is none."""
    column, row = (coords * side).long().clamp(0, side - 1).unbind(dim=-1)
    cell = (row * side + column)[..., None]                               # (B, N, 1)
    count = values.new_zeros(len(values), side * side, 1)
    count = count.scatter_add(1, cell, torch.ones_like(values[..., :1]))
    total = values.new_zeros(len(values), side * side, values.shape[2])
    total = total.scatter_add(1, cell.expand_as(values), values)
    return count.clamp(max=1), total / count.clamp_min(1)


def as_picture(cells: Tensor, side: int) -> Tensor:
    """(B, n n, F) to (B, F, n, n), channels last."""
    cells = cells.mT.unflatten(2, (side, side))
    return cells.contiguous(memory_format=torch.channels_last)


def holding(sketch: Tensor) -> Tensor:
    """Which cells hold observations: (B, 1, n, n), 0 and 1, the first channel of a sketch."""
    return sketch[:, :1]


def sketch_width(channels: int) -> int:
    """Channels of a sketch."""
    return 3 * channels + 3


def spoken_for(canvas: Tensor, held: Tensor) -> Tensor:
    """Cells that hold observations say what their neighbours say, nearer ones more, unless all of
    these hold some, too.

    Args:
        canvas: (B, F, n, n). held: (B, 1, n, n), 1 in such cells, 0 elsewhere.
    """
    binomial = canvas.new_tensor([1.0, 2.0, 1.0])
    around = (binomial[:, None] * binomial).expand(canvas.shape[1] + 1, 1, 3, 3)
    free = 1 - held.to(canvas)
    heard = torch.cat([canvas * free, free], dim=1)
    heard = F.conv2d(heard, around, padding=1, groups=len(around))
    total, weight = heard[:, :-1], heard[:, -1:]
    return torch.where((held > 0) & (weight > 0), total / weight.clamp_min(1), canvas)


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
        return self.go_on(self.first(x))

    def go_on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same from what the first layer gave (B, W, n, n)."""
        fine = []
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

    Two networks before the flow, since one for both has a worse mean (docs/experiments.md; Stirn
    et al. 2023 find the same elsewhere): one says the shift, and a narrower one, which sees that
    shift but does not teach it, the scale. A third follows the flow.

    Args:
        channels: C. width: W. turns: how many symmetries of the square the training shows: 8, 4
            (flips) or 1. What the trained canvas says before the flow is the mean over them.
            dropout: see ResidualBlock; of the first two. flow_width: of the third, 0: none.
    """

    def __init__(
        self, channels: int, width: int, turns: int = 8, dropout: float = 0.0, flow_width: int = 0
    ):
        super().__init__()
        seen = sketch_width(channels)
        self.shift = UNet(seen, channels, width, dropout)
        self.scale = UNet(seen + channels, channels, max(1, width // 2), dropout)
        self.flow = None
        if flow_width:  # sees sketch, painting, z, where there is any, and the angle
            seen += 2 * channels + width + channels + 1 + 2
            self.flow = UNet(seen, channels, flow_width)
        self.channels, self.width, self.turns = channels, width, turns

    def forward(self, sketch: Tensor) -> Tensor:
        """Shift, raw log of the scale and features, (B, 2 C + W, n, n) float32."""
        shift, raw, features = self.paint(sketch)
        if not self.training:
            for number in range(1, self.turns):
                other_shift, other_raw, _ = self.paint(turned(sketch, number))
                shift = shift + turned_back(other_shift, number)
                raw = raw + turned_back(other_raw, number)
            shift, raw = shift / self.turns, raw / self.turns
        return torch.cat([shift, raw, features], dim=1)

    def look(self, painted: Tensor, coords: Tensor, held: Tensor | None = None) -> Look:
        """What points at coords (B, N, 2) read from what `forward` gave; held: see `spoken_for`,
        None for points that are observations."""
        said, features = painted.split([2 * self.channels, self.width], dim=1)
        if held is not None:
            said = spoken_for(said, held)
        shift, raw = read(said, coords).chunk(2, dim=2)
        return Look(shift, WIDEST * (raw / WIDEST).tanh(), read(features, coords))

    def outlook(self, painted: Tensor, coords: Tensor) -> Outlook:
        """What all draws of a field share, in the first layer already, which is linear.

        Args:
            painted: (B, F, n, n), sketch and what `forward` gave. coords: (B, N, 2).
        """
        assert self.flow is not None
        weight = self.flow.first.weight[:, : painted.shape[1]]
        return Outlook(F.conv2d(painted, weight, padding=1), coords, holding(painted))

    def follow(self, z: Tensor, theta: Tensor, outlook: Outlook) -> Tensor:
        """The slope, and what it is made of, where z is: (B, N, C + flow_width) float32.

        Args:
            z: (B, N, C). theta: (B,).
        """
        assert self.flow is not None
        side = outlook.begun.shape[-1]
        held, there = laid_out(z.float(), outlook.coords, side)
        angle = torch.stack([theta.cos(), theta.sin()], dim=1)[:, None]   # (B, 1, 2)
        draw = torch.cat([there, held, angle.expand(-1, side * side, -1)], dim=2)
        first = self.flow.first
        of_draw = F.conv2d(as_picture(draw, side), first.weight[:, -draw.shape[2]:], first.bias,
                           padding=1)                                     # (B, W, n, n)
        slope, features = self.flow.go_on(outlook.begun + of_draw)
        slope = spoken_for(slope.float(), outlook.held)
        return read(torch.cat([slope, features.float()], dim=1), outlook.coords)

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
