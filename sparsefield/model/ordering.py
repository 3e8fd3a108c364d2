"""In which order a state-space model reads tokens that lie in the plane.

A scan remembers what it read last, so tokens that are close in the plane should be close in the
sequence: context and queries are sorted together along a space-filling curve.
"""

from __future__ import annotations

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


CURVES = {
    "hilbert": hilbert_index,
    "hilbert_transposed": transposed_hilbert_index,
    "raster": raster_index,
}
ORDERS = (*CURVES, "concat")


def check_order(order: str) -> None:
    """Raises UserError for a name that is no order."""
    if order not in ORDERS:
        raise UserError(f"order={order!r} is unknown: choose one of {', '.join(ORDERS)}")


def token_order(input_coords: Tensor, query_coords: Tensor, order: str) -> Tensor | None:
    """Positions of the tokens [context, queries] in reading order.

    Args:
        input_coords: (B, M, 2). query_coords: (B, N, 2). order: one of ORDERS.
    Returns:
        (B, L) int64 permutation, or None for "concat", which reads context, then queries.
    """
    if order == "concat":
        return None
    coords = torch.cat([input_coords, query_coords], dim=1)               # (B, L, 2)
    return CURVES[order](coords).argsort(dim=1, stable=True)
