"""Large fields in blocks: compact pieces of the queries, each seen with what lies around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_SIDE = 1e-6  # of a block, in sides of the square
FEWEST = 64  # queries of a block


@dataclass(frozen=True)
class Block:
    """Queries that go through the model together: the first `core` are answered, the others,
    nearest around them, are only seen."""

    index: Tensor  # (B, core + halo) int64
    core: int


def cut_blocks(query_coords: Tensor, block_size: int, halo: int) -> list[Block]:
    """Cut the queries of each field in compact blocks of at most `block_size` points.

    Args:
        query_coords: (B, N, 2). halo: points around each block that are seen but not answered.
    """
    fields, count, _ = query_coords.shape
    if block_size >= count:
        everything = torch.arange(count, device=query_coords.device).expand(fields, count)
        return [Block(everything, count)]
    pieces = -(-count // block_size)
    halo = min(halo, count - block_size)
    per_field = []
    for points in query_coords.cpu().numpy():
        cores = _bisect(points, np.arange(count), pieces)
        per_field.append([(_with_halo(points, core, halo), len(core)) for core in cores])
    return [Block(torch.from_numpy(np.stack([index for index, _ in same])).to(query_coords.device),
                  same[0][1])
            for same in zip(*per_field, strict=True)]


def most_in_a_block(queries: int, observations: int, points: int, most_inputs: int | None) -> int:
    """How many queries a block has: at most `points`, and where it sees only `most_inputs`
    observations, so few that it and its halo cover the area of about half of these."""
    if most_inputs is None or observations <= most_inputs:
        return points
    return min(points, max(FEWEST, queries * most_inputs // (3 * observations)))


def _bisect(points: np.ndarray, index: np.ndarray, pieces: int) -> list[np.ndarray]:
    """Cut a set of points in compact pieces of equal count, always across the longer side."""
    if pieces == 1:
        return [index]
    here = points[index]
    side = int(np.argmax(np.ptp(here, axis=0)))
    order = index[np.argsort(here[:, side], kind="stable")]
    cut = len(order) * (pieces // 2) // pieces
    return (_bisect(points, order[:cut], pieces // 2)
            + _bisect(points, order[cut:], pieces - pieces // 2))


def _with_halo(points: np.ndarray, core: np.ndarray, halo: int) -> np.ndarray:
    """Append the `halo` points nearest to the bounding box of the core."""
    low, high = points[core].min(axis=0), points[core].max(axis=0)
    outside = np.linalg.norm(points - np.clip(points, low, high), axis=1)
    outside[core] = np.inf
    return np.concatenate([core, np.argpartition(outside, max(halo - 1, 0))[:halo]])


def take(values: Tensor, index: Tensor) -> Tensor:
    """values (B, N, F) at index (B, n): (B, n, F)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def nearby(
    coords: Tensor, input_coords: Tensor, most: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A block with its observations: all of them, or the nearest, enlarged to the whole square.

    With more observations than `most`, the block is seen with those nearest to its bounding box
    (inside it: to its middle), and the square around both becomes the unit square: as many
    observations on a square as the model knows from training, however many there are.

    Returns:
        coordinates of the queries (B, n, 2) and of the observations (B, m, 2), and which
        observations these are, (B, m), or None for all.
    """
    if most is None or input_coords.shape[1] <= most:
        return coords, input_coords, None
    low, high = coords.amin(dim=1, keepdim=True), coords.amax(dim=1, keepdim=True)  # (B, 1, 2)
    to_box = (input_coords - input_coords.clamp(low, high)).norm(dim=2)             # (B, M)
    to_middle = (input_coords - (low + high) / 2).norm(dim=2)
    index = (to_box + 1e-3 * to_middle).topk(most, dim=1, largest=False).indices
    index = index.sort(dim=1).values
    near = take(input_coords, index)
    low = torch.minimum(low, near.amin(dim=1, keepdim=True))
    high = torch.maximum(high, near.amax(dim=1, keepdim=True))
    side = (high - low).amax(dim=2, keepdim=True).clamp_min(LEAST_SIDE)
    return (coords - low) / side, (near - low) / side, index
