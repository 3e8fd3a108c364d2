"""Training batches: step -> tensors, a pure function of (seed, step, global slot)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsefield.coords import grid_coords
from sparsefield.data.base import Split
from sparsefield.data.patterns import Pattern
from sparsefield.data.streams import Purpose, generator
from sparsefield.errors import UserError

LAYOUTS = 32
RENEWED = 8


class Batch(NamedTuple):
    """What one step of flow matching needs, float32. Values in [-1, 1], coordinates in [0, 1]."""

    input_index: Tensor   # (B, M) int64, flat indices i * W + j
    input_coords: Tensor  # (B, M, 2)
    input_values: Tensor  # (B, M, C)
    query_index: Tensor   # (B, N) int64
    query_coords: Tensor  # (B, N, 2)
    x_1: Tensor           # (B, N, C) data
    seed: Tensor          # (B,) int64, of the draw that the path starts from
    layout: Tensor        # (B,) int64, which layout of observations, -1 for one of its own
    theta: Tensor         # (B,) angles in [0, pi/2]


class TrainingBatches(Dataset):
    """`batches[step]` is this rank's part of the global batch of that step.

    Use with `DataLoader(batches, batch_size=None, sampler=range(start, end), num_workers=...)`.
    Nothing depends on rank, world size, worker or on what was asked before: rank r of R gets
    slots r * batch_size / R ... (r + 1) * batch_size / R of the batch that one process would get.

    - Fields come in an endless row of permutations of the split, one for each epoch; epochs may
      end inside a batch.
    - N is drawn from `queries` = (low, high), both included, once for each step, and M follows
      from the pattern, so that all slots have equally many.
    - Queries are unobserved points, uniformly without replacement: at an observed point the
      answer can be copied. Observed points fill up only where fewer than N are unobserved.
    - In data with gaps, N and M shrink to what the poorest field of the global batch has.
    - `draw_angles(rng, size)` gives the angles of the global batch, (size,) in [0, pi/2].
    - Where the pattern draws equally many points on every field, fields share LAYOUTS layouts of
      observations at a time, of which every RENEWED steps one makes way for a new one: what is
      computed from places alone then serves many fields.

    Raises:
        UserError: batch_size is no multiple of world_size, or the pattern does not fit the grid.
    """

    def __init__(
        self, split: Split, pattern: Pattern, *, seed: int, batch_size: int,
        queries: tuple[int, int], draw_angles: Callable[[np.random.Generator, int], np.ndarray],
        rank: int = 0, world_size: int = 1,
    ):
        if batch_size % world_size:
            raise UserError(
                f"the batch of {batch_size} does not divide among {world_size} processes: "
                f"set BATCH_SIZE to a multiple of {world_size}"
            )
        self.split = split
        self.pattern = pattern
        self.seed = seed
        self.batch_size = batch_size
        self.queries = queries
        self.draw_angles = draw_angles
        share = batch_size // world_size
        self.own_slots = range(rank * share, (rank + 1) * share)
        self.shares_layouts = not split.has_gaps and pattern.is_fixed
        self.coords = grid_coords(*split.example(0).shape[:2]).numpy()

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass through the split, at least 1."""
        return max(1, len(self.split) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        step_rng = generator(self.seed, Purpose.TRAINING_STEP, step)
        level = step_rng.random()
        num_queries = int(step_rng.integers(self.queries[0], self.queries[1] + 1))
        angles = self.draw_angles(step_rng, self.batch_size)

        # Gaps: how many points all slots can have is known only after a look at all of them.
        looked_at = range(self.batch_size) if self.split.has_gaps else self.own_slots
        slots = {slot: _Slot(self, step, slot, level) for slot in looked_at}
        num_inputs = min(len(slot.observed) for slot in slots.values())
        num_queries = min(num_queries, *(slot.num_valid for slot in slots.values()))

        points = [slots[slot].points(num_inputs, num_queries) for slot in self.own_slots]
        stacked = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*points)]
        own_angles = angles[self.own_slots.start:self.own_slots.stop]
        return Batch(*stacked, theta=torch.as_tensor(own_angles, dtype=torch.float32))

    def observed(self, layout: int) -> np.ndarray:
        """(M,) observed points of a shared layout, a function of (seed, layout)."""
        rng = generator(self.seed, Purpose.LAYOUT, layout)
        everywhere = np.ones(self.split.example(0).shape[:2], dtype=bool)
        return self.pattern.draw(everywhere, rng)

    def field_of(self, step: int, slot: int) -> int:
        """Index in the split of the field that this slot of this step shows."""
        epoch, place = divmod(step * self.batch_size + slot, len(self.split))
        return int(_epoch_order(self.seed, epoch, len(self.split))[place])


class _Slot:
    """One field of a batch with the random numbers of its own."""

    def __init__(self, batches: TrainingBatches, step: int, slot: int, level: float):
        self.rng = generator(batches.seed, Purpose.TRAINING_SLOT, step, slot)
        field = batches.split.training_example(batches.field_of(step, slot), self.rng)
        valid = np.ones(field.shape[:2], dtype=bool)
        if batches.split.has_gaps:
            valid = ~np.isnan(field[..., 0])
        self.coords = batches.coords
        self.values = field.reshape(-1, field.shape[2])
        self.valid = valid.ravel()
        self.num_valid = int(np.count_nonzero(valid))
        self.layout = -1
        if batches.shares_layouts:
            self.layout = step // RENEWED + int(self.rng.integers(LAYOUTS))
            self.observed = batches.observed(self.layout)
        else:
            self.observed = batches.pattern.draw(valid, self.rng, level)

    def points(self, num_inputs: int, num_queries: int) -> tuple[np.ndarray, ...]:
        """What a `Batch` holds of this field, in its order, up to the angle."""
        observed = self.observed
        if num_inputs < len(observed):
            kept = self.rng.choice(observed, num_inputs, replace=False, shuffle=False)
            observed = np.sort(kept)
        # The smallest random keys win; observed points come after all unobserved ones.
        keys = self.rng.random(len(self.valid))
        keys[observed] += 1
        keys[~self.valid] = np.inf
        queried = np.sort(np.argpartition(keys, num_queries - 1)[:num_queries])
        return (observed, self.coords[observed], self.values[observed], queried,
                self.coords[queried], self.values[queried], np.int64(self.rng.integers(2**63)),
                np.int64(self.layout))


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return generator(seed, Purpose.EPOCH_ORDER, epoch).permutation(length)
