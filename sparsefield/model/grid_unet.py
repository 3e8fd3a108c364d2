"""Grid U-Nets: networks on a lattice around the closed form.

The closed form is asked at the cells of a lattice as fine as the observations are dense, and a
U-Net (Ronneberger et al. 2015) predicts in every cell by how much its mean is off, another how much
narrower or wider the truth lies around it. A point at any place gets the bilinear interpolation of
the cells around it, as in gridded neural processes (Ashman et al. 2024). That depends on the
observations alone: once a field, whatever is drawn from it. A third U-Net sees all that together
with the state z of a draw in the middle of each cell, and predicts the velocity of the flow.

Observations lie anywhere in their cells, while a picture's lie in the middle. A cell with
observations asks the closed form where these lie, and its own prediction, which is never trained,
is replaced by those of its neighbours.

Symbols: B fields, M observations, N queries, C channels, h x w cells, W width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsefield.model.readers import make_reader
from sparsefield.place import SINGLE, Domain, Frames, Observed

CELLS = 32 / 204**0.5  # in a mean distance between observations: each is 0.45 of it wide
LEVELS = 3
MULTIPLE = 2 ** (LEVELS - 1)  # of the cells of a side
FEWEST = 2 * MULTIPLE
LOO_LIMIT = 10.0
SAME = 1e-3  # of a cell, squared: distances that differ by less count as equal
LEAST_SCALE = 0.01  # of values in [-1, 1], for fields that are nearly constant
READ_LEVELS = (1, 2)  # at which frames are read along time
WIDEST = 1.5  # of |log s|: sd between 0.22 and 4.5 times the closed form's


class Lattice(NamedTuple):
    """Cells that cover a rectangle.

    Attributes:
        height, width: how many, multiples of MULTIPLE. box: the rectangle [0, width] x [0, height].
    """

    height: int
    width: int
    box: Domain

    @classmethod
    def of(cls, observations: float, domain: Domain, box: Domain) -> Lattice:
        """Cells of 0.45 mean distances: 32 x 32 for 204 observations of a square."""
        per_length = CELLS / domain.spacing(observations)
        height, width = (round(max(FEWEST, per_length * side) / MULTIPLE) * MULTIPLE
                         for side in (box.height, box.width))
        return cls(height, width, box)

    def coords(self, device: torch.device | str | None = None) -> Tensor:
        """Middles of the cells (h w, 2), row by row."""
        x = (torch.arange(self.width, device=device) + 0.5) * (self.box.width / self.width)
        y = (torch.arange(self.height, device=device) + 0.5) * (self.box.height / self.height)
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([xx, yy], dim=-1).flatten(0, 1)

    def cell_queries(self, coords: Tensor, there: Tensor | None = None) -> Tensor:
        """Where the closed form is asked for each cell, (B, h w, 2): in its middle, or in the
        middle of its observations, which lie at coords (B, M, 2); there: as in `scatter_mean`."""
        mask, place = self.scatter_mean(coords, coords, there)
        return torch.where(mask > 0, place, self.coords(coords.device).to(coords))

    def scatter_mean(
        self, values: Tensor, coords: Tensor, there: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Which cells hold any of the values (B, N, F) at coords (B, N, 2), as 0 and 1
        (B, h w, 1), and their mean in each (B, h w, F), 0 where there is none; of those that are
        there, (B, N, 1) bool, None: all."""
        cell = self.cell(coords)[..., None]                               # (B, N, 1)
        own = torch.ones_like(values[..., :1]) if there is None else there.to(values)
        count = values.new_zeros(len(values), self.height * self.width, 1)
        count = count.scatter_add(1, cell, own)
        total = values.new_zeros(len(values), self.height * self.width, values.shape[2])
        total = total.scatter_add(1, cell.expand_as(values), values * own)
        return count.clamp(max=1), total / count.clamp_min(1)

    def cell(self, coords: Tensor) -> Tensor:
        """In which cell each of coords (B, N, 2) lies: (B, N), counted row by row."""
        per_x, per_y = self.width / self.box.width, self.height / self.box.height
        column = (coords[..., 0] * per_x).long().clamp(0, self.width - 1)
        row = (coords[..., 1] * per_y).long().clamp(0, self.height - 1)
        return row * self.width + column

    def middlemost(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Which cells hold any of coords (B, N, 2), as 0 and 1 (B, h w, 1), and which of them lies
        nearest to the middle of each, the first of several (B, h w); 0 where there is none."""
        cell, cells = self.cell(coords), self.height * self.width
        away = coords - self.coords(coords.device).to(coords)[cell]
        away = (away * (self.width / self.box.width)).square().sum(dim=2)  # (B, N), in cells
        far = coords.new_full((len(coords), cells), torch.inf)
        least = far.scatter_reduce(1, cell, away, "amin")                 # (B, h w)
        is_nearest = away < least.gather(1, cell) + SAME
        number = torch.arange(coords.shape[1], device=coords.device).expand_as(cell)
        none = torch.full_like(far, coords.shape[1], dtype=torch.long)
        first = none.scatter_reduce(1, cell, number.where(is_nearest, none[:, :1]), "amin")
        mask = first < coords.shape[1]
        return mask[..., None].to(coords), first.where(mask, 0)

    def as_picture(self, cells: Tensor) -> Tensor:
        """(B, h w, F) to (B, F, h, w), laid out as `laid_out` says."""
        return laid_out(cells.mT.unflatten(2, (self.height, self.width)))

    def sample(self, cells: Tensor, coords: Tensor) -> Tensor:
        """Bilinear interpolation of cells (B, F, h, w) at coords (B, N, 2), constant beyond the
        middles of the outermost: (B, N, F)."""
        sides = coords.new_tensor([self.box.width, self.box.height])
        places = (2 * coords / sides - 1)[:, :, None].to(cells)           # (B, N, 1, 2)
        found = F.grid_sample(cells, places, padding_mode="border", align_corners=False)
        return found[..., 0].mT


class Prediction(NamedTuple):
    """What the U-Nets predict at points.

    Attributes:
        shift, log_scale: (B, N, C), of the mean in units of the closed form's sd, and of that sd.
        features: (B, N, W).
    """

    shift: Tensor
    log_scale: Tensor
    features: Tensor


class FlowContext(NamedTuple):
    """What the flow's U-Net sees of a field, the same for all its draws.

    Attributes:
        first: (B, W, h, w), its first layer without z. coords: (B, N, 2) of z.
        observed: (B, 1, h, w), 1 in cells with observations. seen: (B, h w, 1), 1 in cells that
            hold any z. shown: (B, h w), which z each of them shows. frames: of the fields.
    """

    first: Tensor
    coords: Tensor
    observed: Tensor
    seen: Tensor
    shown: Tensor
    frames: Frames = SINGLE

    def repeat(self, times: int) -> FlowContext:
        """Every field `times` times, side by side: for as many draws."""
        first, coords, observed, seen, shown = (
            part.repeat_interleave(times, dim=0) for part in self[:5])
        frames = self.frames._replace(draws=times * self.frames.draws)
        return FlowContext(first, coords, observed, seen, shown, frames)


def grid_features(
    answer: tuple[Tensor, Tensor, Tensor], observed: Observed, loo_z: Tensor, lattice: Lattice
) -> Tensor:
    """What the U-Nets see: the closed form in every cell, and where observations lie.

    Values are relative to the mean of the observations, in units of their sd, so that fields of any
    level and contrast look alike; of a sequence those of all its observations.

    Args:
        answer: mean, sd (B, h w, C) and spread (B, h w, 1) of the closed form at `cell_queries`.
        loo_z: (B, M, C); that of observations of one cell is averaged.
    Returns:
        (B, feature_count(C), h, w) float32, the first of which is the mask.
    """
    mean, sd, spread = answer
    together = observed.joined_values()                                   # (B / T, T M, C)
    level = together.mean(dim=(1, 2), keepdim=True)                       # (B / T, 1, 1)
    scale = together.std(dim=(1, 2), keepdim=True, correction=0).clamp_min(LEAST_SCALE)
    level, scale = (x.repeat_interleave(observed.frames.count, dim=0) for x in (level, scale))
    mask, score = lattice.scatter_mean(loo_z.clamp(-LOO_LIMIT, LOO_LIMIT), observed.coords,
                                       observed.there)
    return lattice.as_picture(torch.cat([
        mask, score, (mean - level) / scale, (sd / scale).log(),
        spread / sd.mean(dim=2, keepdim=True), scale.log().expand_as(spread),
    ], dim=2))


def feature_count(channels: int) -> int:
    """Channels of the grid features."""
    return 3 * channels + 3


def fill_observed(cells: Tensor, mask: Tensor) -> Tensor:
    """Cells with observations get the weighted mean of their neighbours without any, if there is
    one: binomial weights of a 3 x 3 window.

    Args:
        cells: (B, F, h, w). mask: (B, 1, h, w), 1 in cells with observations, 0 elsewhere.
    """
    binomial = cells.new_tensor([1.0, 2.0, 1.0])
    window = (binomial[:, None] * binomial).expand(cells.shape[1] + 1, 1, 3, 3)
    free = 1 - mask.to(cells)
    summed = F.conv2d(torch.cat([cells * free, free], dim=1), window, padding=1,
                      groups=len(window))
    total, weight = summed[:, :-1], summed[:, -1:]
    return torch.where((mask > 0) & (weight > 0), total / weight.clamp_min(1), cells)


class Filters(nn.Module):
    """3 x 3 convolution, whose weight is a matrix (outputs, 9 * inputs), for Muon."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, 9 * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        weight = self.weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        return F.conv2d(x, laid_out(weight), self.bias, padding=1)


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
        for parameter in self.conv_2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_1(F.silu(self.norm_1(x)))                           # (B, W, h, w)
        y = self.dropout(F.silu(self.norm_2(y)))                          # (B, W, h, w)
        return x + self.conv_2(y)                                         # (B, W, h, w)


def laid_out(x: Tensor) -> Tensor:
    """x (B, F, h, w) in the memory format that is fastest: channels last, but plane by plane to
    learn on a CPU, where the gradient of GroupNorm takes 8 times as long with channels last."""
    in_planes = x.device.type == "cpu" and torch.is_grad_enabled()
    return x.contiguous(
        memory_format=torch.contiguous_format if in_planes else torch.channels_last)


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(8 if width % 8 == 0 else 1, width)


class UNet(nn.Module):
    """Levels of twice the width and half the side, one residual block down and one up.

    Args:
        inputs, outputs: channels. width: W, of the finest level. dropout: of its blocks.
        reader: along time on the way down, see sparsefield.model.readers; None: of single fields.
    """

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float = 0.0,
                 reader: str | None = None):
        super().__init__()
        widths = [width << level for level in range(LEVELS)]
        steps = list(pairwise(widths))
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(w, dropout) for w in widths)
        self.coarser = nn.ModuleList(nn.Conv2d(w, v, 2, stride=2) for w, v in steps)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(v, w, 2, stride=2) for w, v in steps)
        self.up = nn.ModuleList(ResidualBlock(w, dropout) for w in widths[:-1])
        self.readers = nn.ModuleDict(
            {str(level): make_reader(reader, widths[level]) for level in READ_LEVELS}
            if reader else {})
        self.norm = group_norm(width)
        self.last = nn.Conv2d(width, outputs, 1)
        for parameter in self.last.parameters():  # so that training starts at the closed form
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, frames: Frames = SINGLE) -> tuple[Tensor, Tensor]:
        """(B, inputs, h, w), h and w multiples of MULTIPLE, to (B, outputs, h, w) and what they
        are made of (B, W, h, w)."""
        return self.go_on(self.first(laid_out(x)), frames)

    def go_on(self, x: Tensor, frames: Frames = SINGLE) -> tuple[Tensor, Tensor]:
        """The same from what the first layer gave (B, W, h, w)."""
        fine = []
        for level, block in enumerate(self.down):
            x = block(x)
            if str(level) in self.readers:
                x = self.readers[str(level)](x, frames)
            if level < LEVELS - 1:
                fine.append(x)
                x = self.coarser[level](x)
        for block, finer in zip(reversed(self.up), reversed(self.finer), strict=True):
            x = block(fine.pop() + finer(x))
        x = F.silu(self.norm(x))
        return self.last(x), x


class GridUNets(nn.Module):
    """The U-Nets on the lattice: see the module.

    Two networks before the flow, since one for both has a worse mean (docs/experiments.md; Stirn
    et al. 2023 find the same elsewhere): one predicts the shift, and a narrower one, which sees
    that shift but does not train it, the scale. A third predicts the velocity.

    Args:
        channels: C. width: W. symmetries: how many symmetries of the square the training data have:
            8, 4 (flips) or 1. The trained prediction before the flow is the mean over them.
        dropout: see ResidualBlock; of the first two. flow_width: of the third, 0: none.
        reader: of all three along time, or None.
    """

    def __init__(
        self, channels: int, width: int, symmetries: int = 8, dropout: float = 0.0,
        flow_width: int = 0, reader: str | None = None,
    ):
        super().__init__()
        seen = feature_count(channels)
        self.shift = UNet(seen, channels, width, dropout, reader)
        self.scale = UNet(seen + channels, channels, max(1, width // 2), dropout, reader)
        self.flow = None
        if flow_width:  # features, prediction, z, the cells that hold any, and the angle
            seen += 2 * channels + width + channels + 1 + 2
            self.flow = UNet(seen, channels, flow_width, reader=reader)
        self.channels, self.width, self.symmetries = channels, width, symmetries

    def forward(self, features: Tensor, frames: Frames = SINGLE) -> Tensor:
        """Shift, raw log of the scale and features, (B, 2 C + W, h, w) float32."""
        shift, raw, hidden = self._predict(features, frames)
        if not self.training:
            for number in range(1, self.symmetries):
                other_shift, other_raw, _ = self._predict(turned(features, number), frames)
                shift = shift + turned_back(other_shift, number)
                raw = raw + turned_back(other_raw, number)
            shift, raw = shift / self.symmetries, raw / self.symmetries
        return torch.cat([shift, raw, hidden], dim=1)

    def _predict(self, features: Tensor, frames: Frames) -> tuple[Tensor, Tensor, Tensor]:
        shift, hidden = self.shift(features, frames)
        raw, _ = self.scale(torch.cat([features, shift.detach().to(features)], dim=1), frames)
        return shift.float(), raw.float(), hidden.float()

    def at(
        self, output: Tensor, coords: Tensor, lattice: Lattice, mask: Tensor | None = None
    ) -> Prediction:
        """The prediction at points (B, N, 2), from what `forward` gave.

        Args:
            mask: (B, 1, h, w) of cells with observations; None for points that are observations.
        """
        predicted, hidden = output.split([2 * self.channels, self.width], dim=1)
        if mask is not None:
            predicted = fill_observed(predicted, mask)
        shift, raw = lattice.sample(predicted, coords).chunk(2, dim=2)
        return Prediction(shift, WIDEST * (raw / WIDEST).tanh(), lattice.sample(hidden, coords))

    def flow_context(
        self, features: Tensor, output: Tensor, coords: Tensor, lattice: Lattice,
        frames: Frames = SINGLE,
    ) -> FlowContext:
        """What all draws of a field share, up to the first layer, which is linear.

        Of the z in a cell the one in its middle is seen. Their mean would vary less than what the
        network learnt from, one z a cell, and samples of a finer resolution came out too smooth.

        Args:
            features: of the grid. output: what `forward` gave. coords: (B, N, 2) of z.
        """
        assert self.flow is not None
        known = torch.cat([features.float(), output], dim=1)
        weight = self.flow.first.weight[:, : known.shape[1]]
        return FlowContext(F.conv2d(known, weight, padding=1), coords, features[:, :1],
                           *lattice.middlemost(coords), frames)

    def velocity(self, z: Tensor, theta: Tensor, context: FlowContext, lattice: Lattice) -> Tensor:
        """The velocity, and the features that it is made of, at the places of z:
        (B, N, C + flow_width) float32.

        Args:
            z: (B, N, C). theta: (B,).
        """
        assert self.flow is not None
        which = context.shown[..., None].expand(-1, -1, z.shape[2])       # (B, h w, C)
        shown = z.float().gather(1, which) * context.seen
        angle = torch.stack([theta.cos(), theta.sin()], dim=1)[:, None]   # (B, 1, 2)
        draw = torch.cat([shown, context.seen, angle.expand(-1, shown.shape[1], -1)], dim=2)
        first = self.flow.first
        of_draw = F.conv2d(lattice.as_picture(draw), first.weight[:, -draw.shape[2]:], first.bias,
                           padding=1)                                     # (B, W, h, w)
        velocity, hidden = self.flow.go_on(context.first.to(of_draw) + of_draw, context.frames)
        velocity = fill_observed(velocity.float(), context.observed)
        return lattice.sample(torch.cat([velocity, hidden.float()], dim=1), context.coords)


def turned(x: Tensor, number: int) -> Tensor:
    """(B, F, h, w) as symmetry `number` in 0 .. 7 of the square shows it."""
    if number & 1:
        x = x.flip(-2)
    if number & 2:
        x = x.flip(-1)
    return laid_out(x.mT) if number & 4 else x


def turned_back(x: Tensor, number: int) -> Tensor:
    """What `turned` undoes."""
    if number & 4:
        x = x.mT
    if number & 2:
        x = x.flip(-1)
    return x.flip(-2) if number & 1 else x
