"""What a training step learns from: the closed form of every field of a batch, and draws."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefield.data import Batch
from sparsefield.data.batches import REUSED
from sparsefield.data.streams import noise_seed
from sparsefield.data.symmetries import Symmetry
from sparsefield.device import has_float64
from sparsefield.flow import path
from sparsefield.flow.blocks import take
from sparsefield.gaussian import GridPosterior
from sparsefield.model.canvas import lookouts, sketch
from sparsefield.model.field import ClosedForm, Start
from sparsefield.place import Domain

LARGEST_GRID = 48 * 48  # pixels; beyond, a draw by waves is cheaper than a root of the covariance
KEPT_BYTES = 1 << 29  # of closed forms whose fields come again in the next epochs


class Pair(NamedTuple):
    """The closed form of a batch, and the draws z_0 (B, N, C) that its paths start from."""

    form: ClosedForm
    z_0: Tensor


class Turns(NamedTuple):
    """The closed form of one field on all P points of its grid and the L cells of its lattice.

    Attributes:
        mean, sd: (P + L, C). spread: (P + L, 1). loo_sd, surprise: (M, C). draws: (T, P, C)
        float16, one for every turn of the field.
    """

    mean: Tensor
    sd: Tensor
    spread: Tensor
    loo_sd: Tensor
    surprise: Tensor
    draws: Tensor

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self)


class Pairs:
    """`pairs(batch)` for a model; a pure function of the batch, whatever was asked before.

    On a CPU bit for bit. On a GPU, where a batch is answered together, up to rounding; draws there
    are other ones.
    """

    def __init__(self, model: nn.Module, height: int, width: int, device: torch.device):
        self.model, self.shape = model, (height, width)
        self.on_grid = None
        self.kept: OrderedDict[int, Turns] = OrderedDict()
        self.bytes = 0
        is_small = height * width <= LARGEST_GRID
        if model.prior != "none" and is_small and has_float64(device):
            self.on_grid = GridPosterior(height, width, device)
            self.on_grid.domain = Domain()  # as fitted_form, which is not told the domain yet

    @torch.no_grad()
    def __call__(self, batch: Batch, with_draws: bool = True) -> Pair:
        """Without draws z_0 is empty."""
        if self.on_grid is None:
            form, noise = self.model.closed_form(
                batch.query_coords, batch.input_coords, batch.input_values
            )
            if not with_draws:
                return Pair(form, form.mean[:, :0])
            seeds = [noise_seed(*own) for own in zip(batch.draws.tolist(), batch.turn.tolist())]
            return Pair(form, noise([torch.Generator().manual_seed(seed) for seed in seeds]))
        return self._on_grid(batch, with_draws)

    def _on_grid(self, batch: Batch, with_draws: bool) -> Pair:
        side = self.model.lattice_side(batch.input_index.shape[1])
        names = zip(*(part.tolist() for part in (batch.field, batch.layout, batch.draws,
                                                 batch.symmetry, batch.turn)))
        places = zip(batch.input_index, batch.input_values, batch.query_index)
        fields, cells = [], []
        for name, (observed, values, queried) in zip(names, places):
            field, layout, seed, symmetry, turn = name
            guise = Guise(symmetry, self.shape, side, values)
            make = partial(self._turns, layout, guise.points[observed], guise.undone(values), side,
                           seed, field, with_draws)
            turns = self._kept(field, with_draws, make)
            on_grid, on_lattice, at_inputs = guise.seen(turns, side)
            asked = guise.points[queried] if with_draws else observed[:0]
            draw = turns.draws[turn] if with_draws else turns.mean
            z_0 = draw[asked][:, guise.channels].float()
            fields.append((*(part[queried] for part in on_grid), *at_inputs, z_0))
            cells.append(on_lattice)
        *form, z_0 = (torch.stack(column) for column in zip(*fields))
        form = ClosedForm(*form)
        if side is not None:
            answer = tuple(torch.stack(column) for column in zip(*cells))
            form = form._replace(sketch=sketch(
                answer, batch.input_coords, batch.input_values, form.surprise
            ))
        return Pair(form, z_0)

    def _turns(self, layout, observed, values, side, seed, field, with_draws) -> Turns:
        count = 0 if not with_draws else REUSED if field >= 0 else 1
        cells = None
        if side is not None and self.shape != (side, side):
            cells = lookouts(self.on_grid.grid[observed][None], side)[0]
        times = max(1, count)
        seeds = [noise_seed(seed, turn) for turn in range(times)]
        found = self.on_grid(
            [layout] * times, observed.expand(times, -1), values.expand(times, -1, -1),
            torch.tensor(seeds, device=values.device),
            None if cells is None else cells.expand(times, -1, -1))
        return Turns(*(part[0] for part in found[:5]), found.draws[:count].half())

    def _kept(self, field: int, with_draws: bool, make) -> Turns:
        """The closed form of a field, made unless it is at hand. Which ones are changes nothing."""
        if field < 0:
            return make()
        if field not in self.kept or (with_draws and not len(self.kept[field].draws)):
            former = self.kept.pop(field, None)
            self.kept[field] = made = make()
            self.bytes += made.bytes - (former.bytes if former else 0)
            while self.bytes > KEPT_BYTES and len(self.kept) > 1:
                _, oldest = self.kept.popitem(last=False)
                self.bytes -= oldest.bytes
        return self.kept[field]


class Guise:
    """A field as one of its symmetries shows it; see sparsefield.data.symmetries.

    Attributes:
        points: (P,) which point of the field each point shows. cells: the same of the lattice.
        channels: (C,) which channel of the field each channel shows.
    """

    def __init__(self, number: int, shape: tuple[int, int], side: int | None, values: Tensor):
        whole = Symmetry(number, *shape, values.shape[1])
        self.points, self.channels = (
            torch.from_numpy(part).to(values.device) for part in (whole.source, whole.channels)
        )
        self.cells = None
        if side is not None and shape != (side, side):
            cells = Symmetry(number, side, side, values.shape[1]).source
            self.cells = len(self.points) + torch.from_numpy(cells).to(values.device)

    def undone(self, values: Tensor) -> Tensor:
        """(M, C) as they are in the field."""
        return values[:, self.channels.argsort()]

    def seen(self, turns: Turns, side: int | None) -> tuple[tuple, tuple, tuple]:
        """(mean, sd, spread) on the grid, and on the lattice, and (loo_sd, surprise)."""
        of_channels = turns.mean[:, self.channels], turns.sd[:, self.channels], turns.spread
        on_grid = tuple(part[self.points] for part in of_channels)
        on_lattice = ()
        if side is not None:
            on_lattice = on_grid if self.cells is None else tuple(
                part[self.cells] for part in of_channels
            )
        at_inputs = turns.loo_sd[:, self.channels], turns.surprise[:, self.channels]
        return on_grid, on_lattice, at_inputs


def canvas_loss(model: nn.Module, batch: Batch, pair: Pair) -> Tensor:
    """What the canvas learns from, (B, N, C): how far its mean is off, in sd of the closed form,
    and the negative log-likelihood of its sd around that mean.

    Far errors count linearly (Charbonnier et al. 1994): where the closed form's sd is far too
    small, squares would let a few points teach the most.
    """
    look = model.look(pair.form, batch.query_coords)
    error = (batch.x_1 - pair.form.mean) / pair.form.sd - look.shift
    narrowed = error.detach() * (-look.log_scale).exp()
    far = 2 * ((1 + error**2).sqrt() - 1)
    return far + look.log_scale + 0.5 * narrowed**2


def flow_loss(model: nn.Module, batch: Batch, pair: Pair) -> Tensor:
    """Squared error of the canvas's slope (B, N, C), about 1 where it is 0. What the flow starts
    from learns nothing from it."""
    start, z, target = on_path(model, batch, pair)
    outlook = model.outlook(start, batch.query_coords)
    return (model.first_slope(model.overview(z, batch.theta, outlook)) - target) ** 2


def slope_loss(model: nn.Module, batch: Batch, pair: Pair) -> Tensor:
    """Squared error of F (B, n, C), about 1 where F = 0. The canvas learns nothing from it."""
    start, z, target = on_path(model, batch, pair)
    with torch.no_grad():
        seen = model.overview(z, batch.theta, model.outlook(start, batch.query_coords))
    which = batch.answered
    prepared = model.prepare(start.take(which, None), take(batch.query_coords, which),
                             batch.input_coords, batch.input_values)
    return (model(take(seen, which), batch.theta, prepared) - take(target, which)) ** 2


@torch.no_grad()
def on_path(
    model: nn.Module, batch: Batch, pair: Pair
) -> tuple[Start, Tensor, Tensor]:
    """Where the flow of a batch starts, its z and its slope at theta (B, N, C)."""
    start = model.start(pair.form, batch.query_coords, batch.input_coords)
    z_1 = (batch.x_1 - start.mean) / start.sd
    z = path.seen(path.interpolate(pair.z_0, z_1, batch.theta), batch.theta)
    target = path.target(pair.z_0, z_1, batch.theta)
    return start, z, target
