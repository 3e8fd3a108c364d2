"""In which order a state-space model reads tokens that lie in the plane.

A scan remembers what it read last, so tokens that are close in the plane should be close in the
sequence: context and queries are sorted together along a space-filling curve.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparsefield.errors import UserError

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


def transposed_hilbert_index(coords: Tensor) -> Tensor:
    """The Hilbert curve with x and y exchanged: other neighbours become close."""
    return hilbert_index(coords.flip(-1))


def snake_index(coords: Tensor) -> Tensor:
    """RASTER_ROWS rows, every other one from right to left: (..., 2) to (...) float."""
    row = (coords[..., 1] * RASTER_ROWS).floor()
    x = coords[..., 0].clamp(0, 0.9999)
    return row + torch.where(row % 2 == 0, x, 0.9999 - x)


def snake_columns_index(coords: Tensor) -> Tensor:
    """The same with x and y exchanged."""
    return snake_index(coords.flip(-1))


CURVES = {
    "hilbert": (hilbert_index,),
    "hilbert_transposed": (transposed_hilbert_index,),
    "raster": (raster_index,),
    "several": (hilbert_index, snake_index, transposed_hilbert_index, snake_columns_index),
}
ORDERS = (*CURVES, "concat")


def check_order(order: str) -> None:
    """Raises UserError for a name that is no order."""
    if order not in ORDERS:
        raise UserError(f"order={order!r} is unknown: choose one of {', '.join(ORDERS)}")


class Reading(NamedTuple):
    """In which order layer after layer reads L tokens: K curves in turn.

    Attributes:
        order: (B, K, L) int64, which token comes where. rank: (B, K, L), where each token comes.
    """

    order: Tensor
    rank: Tensor

    def repeat(self, times: int) -> Reading:
        return Reading(*(part.repeat_interleave(times, dim=0) for part in self))

    @property
    def curves(self) -> int:
        return self.order.shape[1]


def read_along(input_coords: Tensor, query_coords: Tensor, order: str) -> Reading | None:
    """The reading of the tokens [context, queries].

    Args:
        input_coords: (B, M, 2). query_coords: (B, N, 2). order: one of ORDERS; "several" gives
            every layer another curve (Hu et al. 2024, ZigMa).
    Returns:
        None for "concat", which reads context, then queries.
    """
    if order == "concat":
        return None
    coords = torch.cat([input_coords, query_coords], dim=1)               # (B, L, 2)
    orders = [curve(coords).argsort(dim=1, stable=True) for curve in CURVES[order]]
    stacked = torch.stack(orders, dim=1)                                  # (B, K, L)
    return Reading(stacked, stacked.argsort(dim=2))


def reread(
    tokens: Tensor, reading: Reading | None, before: int | None, after: int | None
) -> Tensor:
    """Tokens (B, L, D) from the order of layer `before` to that of layer `after`; None: as they
    came."""
    if reading is None or before == after:
        return tokens
    if before is None:
        index = reading.order[:, (after or 0) % reading.curves]
    elif after is None:
        index = reading.rank[:, before % reading.curves]
    elif reading.curves == 1:
        return tokens
    else:
        rank = reading.rank[:, before % reading.curves]
        index = rank.gather(1, reading.order[:, after % reading.curves])  # (B, L)
    return tokens.gather(1, index[..., None].expand_as(tokens))
