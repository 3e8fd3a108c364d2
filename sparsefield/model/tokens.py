"""What tokens are: features of a place and time, nearest observations, and the order of a scan.

A scan reads a row of tokens, so points that are close in the plane should be close in the
sequence: context and queries are sorted together along a space-filling curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsefield.errors import UserError

# --- features ------------------------------------------------------------------------------------


class FourierFeatures(nn.Module):
    """sin and cos of random plane waves (Tancik et al. 2020), within a band limit.

    Frequencies are Gaussian, redrawn where they exceed `max_frequency`: a wave above the Nyquist
    limit of the training grid is never constrained between its points, and speckles there.

    Args:
        num_frequencies: F. max_frequency: in cycles over the square's side, per axis; 16 is the
            Nyquist limit of a 32-pixel grid.
    """

    frequencies: Tensor

    def __init__(self, num_frequencies: int = 64, max_frequency: float = 16.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # part of the architecture, not of a run
        frequencies = torch.randn(2, 64 * num_frequencies, generator=generator) * max_frequency / 2
        inside = frequencies.abs().amax(dim=0) <= max_frequency
        self.register_buffer("frequencies", frequencies[:, inside][:, :num_frequencies].clone())

    @property
    def width(self) -> int:
        return 2 * self.frequencies.shape[1]

    def forward(self, coords: Tensor) -> Tensor:
        """(..., 2) coordinates in [0, 1] to (..., 2F) features in [-1, 1]."""
        x, y = (2 * math.pi * coords).split(1, dim=-1)
        # Element by element: as a matrix product, autocast would round places to 8 bits.
        angles = x * self.frequencies[0] + y * self.frequencies[1]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t (Ho et al. 2020), then a two-layer MLP to d_model.

    t in [0, 1] itself would barely turn the slow sinusoids: hence the factor.
    """

    rates: Tensor

    def __init__(self, d_model: int, width: int = 128):
        super().__init__()
        rates = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
        self.register_buffer("rates", 1000 * rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, d_model), nn.SiLU(), nn.Linear(d_model, d_model))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) times in [0, 1] to (B, d_model)."""
        angles = t[:, None].float() * self.rates
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


# --- nearest observations ------------------------------------------------------------------------

_BLOCK_ELEMENTS = 1 << 25  # distances held at once: 128 MiB


def nearest(points: Tensor, coords: Tensor, count: int) -> Tensor:
    """Indices (B, N, count) int64 into the observations nearest to each point, nearest first.

    Args:
        points: (B, N, 2). coords: (B, M, 2). count: how many; where there are fewer than
            that, the farthest is repeated, so that the shape never depends on M.
    """
    kept = min(count, coords.shape[1])
    rows = max(1, _BLOCK_ELEMENTS // (coords.shape[0] * coords.shape[1]))
    index = torch.cat([
        torch.cdist(part, coords, compute_mode="donot_use_mm_for_euclid_dist").topk(
            kept, dim=2, largest=False).indices
        for part in points.split(rows, dim=1)
    ], dim=1)
    return torch.cat([index, index[..., -1:].expand(-1, -1, count - kept)], dim=2)


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """values (B, M, F) at index (B, N, K): (B, N, K, F)."""
    batch = torch.arange(len(values), device=values.device)[:, None, None]
    return values[batch, index]


# --- scan order ----------------------------------------------------------------------------------

Curve = Callable[[Tensor], Tensor]
HILBERT_BITS = 10  # cells of 1/1024: finer than the finest grid asked for
RASTER_ROWS = 32


def hilbert_index(coords: Tensor, bits: int = HILBERT_BITS) -> Tensor:
    """Distance along the Hilbert curve of order `bits` of points in the unit square.

    Args:
        coords: (..., 2) in [0, 1].
    Returns:
        (...) int64 in [0, 4^bits); consecutive cells share an edge (Hilbert 1891; the bitwise
        form is the textbook one: rotate the quadrant, append its number, halve the side).
    """
    cells = (coords * 2**bits).long().clamp(0, 2**bits - 1)
    x, y = cells[..., 0], cells[..., 1]
    index = torch.zeros_like(x)
    for level in reversed(range(bits)):
        side = 1 << level
        right, upper = (x & side) > 0, (y & side) > 0
        index += side * side * (3 * right.long()).bitwise_xor(upper.long())
        # The lower quadrants are the curve transposed; the lower right one also mirrored.
        mirror = right & ~upper
        x, y = torch.where(mirror, ~x & (side - 1), x), torch.where(mirror, ~y & (side - 1), y)
        x, y = torch.where(upper, x, y), torch.where(upper, y, x)
    return index


def raster_index(coords: Tensor) -> Tensor:
    """Reading order in RASTER_ROWS rows: (..., 2) to (...) float."""
    return (coords[..., 1] * RASTER_ROWS).floor() + coords[..., 0].clamp(0, 0.9999)


def snake_index(coords: Tensor) -> Tensor:
    """RASTER_ROWS rows, every other one from right to left: (..., 2) to (...) float."""
    row = (coords[..., 1] * RASTER_ROWS).floor()
    x = coords[..., 0].clamp(0, 0.9999)
    return row + torch.where(row % 2 == 0, x, 0.9999 - x)


def transposed(curve: Curve) -> Curve:
    """A curve with x and y exchanged: other neighbours become close."""
    return lambda coords: curve(coords.flip(-1))


CURVES = {
    "hilbert": (hilbert_index,),
    "hilbert_transposed": (transposed(hilbert_index),),
    "raster": (raster_index,),
    "per_layer": (hilbert_index, snake_index, transposed(hilbert_index), transposed(snake_index)),
}
ORDERS = (*CURVES, "concat")


def check_order(order: str) -> None:
    """Raises UserError for a name that is no order."""
    if order not in ORDERS:
        raise UserError(f"order={order!r} is unknown: choose one of {', '.join(ORDERS)}")


class ScanOrder(NamedTuple):
    """In which order layer after layer reads L tokens: K curves in turn.

    Attributes:
        order: (B, K, L) int64, which token comes where. rank: (B, K, L), where each token comes.
    """

    order: Tensor
    rank: Tensor

    def repeat(self, times: int) -> ScanOrder:
        return ScanOrder(*(part.repeat_interleave(times, dim=0) for part in self))

    @property
    def curves(self) -> int:
        return self.order.shape[1]


def scan_order(input_coords: Tensor, query_coords: Tensor, order: str) -> ScanOrder | None:
    """The scan order of the tokens [context, queries].

    Args:
        input_coords: (B, M, 2). query_coords: (B, N, 2). order: one of ORDERS; "per_layer" gives
            every layer another curve (Hu et al. 2024, ZigMa).
    Returns:
        None for "concat", which reads context, then queries.
    """
    if order == "concat":
        return None
    coords = torch.cat([input_coords, query_coords], dim=1)               # (B, L, 2)
    orders = [curve(coords).argsort(dim=1, stable=True) for curve in CURVES[order]]
    stacked = torch.stack(orders, dim=1)                                  # (B, K, L)
    return ScanOrder(stacked, stacked.argsort(dim=2))


def permute(
    tokens: Tensor, scan: ScanOrder | None, before: int | None, after: int | None
) -> Tensor:
    """Tokens (B, L, D) from the order of layer `before` to that of layer `after`; None: as they
    came."""
    if scan is None or before == after:
        return tokens
    if before is None:
        index = scan.order[:, (after or 0) % scan.curves]
    elif after is None:
        index = scan.rank[:, before % scan.curves]
    elif scan.curves == 1:
        return tokens
    else:
        rank = scan.rank[:, before % scan.curves]
        index = rank.gather(1, scan.order[:, after % scan.curves])  # (B, L)
    return tokens.gather(1, index[..., None].expand_as(tokens))
