"""Training batches: step -> tensors, a pure function of (seed, step, global slot)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsefield.data import symmetries
from sparsefield.data.patterns import Pattern
from sparsefield.data.scale import Split
from sparsefield.data.streams import Purpose, generator
from sparsefield.errors import UserError
from sparsefield.place import grid_coords

LAYOUTS = 32
RENEWED = 8
COUNTS = 4
REUSED = 4  # epochs
MOST_PAINTED = 1024
MOST_SEEN = 4096


class Batch(NamedTuple):
    """What one step of flow matching needs, float32. Values in [-1, 1], coordinates in [0, 1]."""

    input_index: Tensor   # (B, M) int64, flat indices i * W + j
    input_coords: Tensor  # (B, M, 2)
    input_values: Tensor  # (B, M, C)
    query_index: Tensor   # (B, N) int64
    query_coords: Tensor  # (B, N, 2)
    x_1: Tensor           # (B, N, C) data
    draws: Tensor         # (B,) int64, seed of the draws that paths start from
    turn: Tensor          # (B,) int64 in [0, REUSED), which of these draws
    layout: Tensor        # (B,) int64, which layout of observations, -1 for one of its own
    field: Tensor         # (B,) int64, equal for turns of one field with one layout, -1: one turn
    symmetry: Tensor      # (B,) int64, which of sparsefield.data.symmetries was applied
    answered: Tensor      # (B, n) int64, which of the N queries the tokens answer
    theta: Tensor         # (B,) angles in [0, pi/2]


class TrainingBatches(Dataset):
    """`batches[step]` is this rank's part of the global batch of that step.

    Use with `DataLoader(batches, batch_size=None, sampler=range(start, end), num_workers=...)`.
    Nothing depends on rank, world size, worker or on what was asked before: rank r of R gets
    slots r * batch_size / R ... (r + 1) * batch_size / R of the batch that one process would get.

    - Fields come in an endless row of permutations of the split, one for each epoch; epochs may
      end inside a batch.
    - n is drawn from `queries` = (low, high), both included, once for each step, and M follows
      from the pattern, so that all slots have equally many.
    - N is n, or, for a model that `sees_whole` draws, more: in every other step, by chance, all
      unobserved points, up to the MOST_SEEN around a random place, else any number at random
      places. Tokens answer n of them.
    - Queries are unobserved points, uniformly without replacement: at an observed point the
      answer can be copied. Observed points fill up only where fewer than n are unobserved.
    - In the first `painted` steps, for the canvas, all unobserved points are queries, up to
      MOST_PAINTED.
    - In data with gaps, N and M shrink to what the poorest field of the global batch has.
    - `draw_angles(rng, size)` gives the angles of the global batch, (size,) in [0, pi/2].
    - In data without gaps work is shared: LAYOUTS layouts of observations are in use at a time,
      and what is computed from places alone then serves many fields. Where the pattern draws
      equally many points each time, every RENEWED steps one of them makes way for a new one, and
      for REUSED epochs a field keeps its layout, so that its closed form serves as many turns;
      pictures show another of their symmetries each time. Where how many varies, steps take turns
      among COUNTS such numbers, each with LAYOUTS / COUNTS layouts for RENEWED of its steps.

    Raises:
        UserError: batch_size is no multiple of world_size, or the pattern does not fit the grid.
    """

    def __init__(
        self, split: Split, pattern: Pattern, *, seed: int, batch_size: int,
        queries: tuple[int, int], draw_angles: Callable[[np.random.Generator, int], np.ndarray],
        painted: int = 0, sees_whole: bool = False, rank: int = 0, world_size: int = 1,
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
        self.painted, self.sees_whole = painted, sees_whole
        share = batch_size // world_size
        self.own_slots = range(rank * share, (rank + 1) * share)
        self.shares_layouts = not split.has_gaps
        self.keeps_layouts = self.shares_layouts and pattern.is_fixed
        self.shape = split.example(0).shape[:2]
        self.coords = grid_coords(*self.shape).numpy()

    def __getitem__(self, step: int) -> Batch:
        step_rng = generator(self.seed, Purpose.TRAINING_STEP, step)
        level = step_rng.random()
        num_answered = int(step_rng.integers(self.queries[0], self.queries[1] + 1))
        angles = self.draw_angles(step_rng, self.batch_size)
        is_compact, share = bool(step_rng.random() < 0.5), step_rng.random()

        # Gaps: how many points all slots can have is known only after a look at all of them.
        looked_at = range(self.batch_size) if self.split.has_gaps else self.own_slots
        slots = {slot: _Slot(self, step, slot, level) for slot in looked_at}
        num_inputs = min(len(slot.observed) for slot in slots.values())
        unobserved = min(slot.num_valid - len(slot.observed) for slot in slots.values())
        num_answered = min(num_answered, *(slot.num_valid for slot in slots.values()))
        num_queries, is_compact = num_answered, is_compact and self.sees_whole
        if step < self.painted:
            num_queries = num_answered = max(1, min(MOST_PAINTED, unobserved))
            is_compact = False
        elif self.sees_whole:
            most = max(num_answered, min(MOST_SEEN, unobserved))
            more = 1.0 if is_compact else share
            num_queries = num_answered + round(more * (most - num_answered))

        points = [slots[slot].points(num_inputs, num_queries, num_answered, is_compact)
                  for slot in self.own_slots]
        stacked = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*points)]
        own_angles = angles[self.own_slots.start:self.own_slots.stop]
        return Batch(*stacked, theta=torch.as_tensor(own_angles, dtype=torch.float32))

    def layout(self, step: int, rng: np.random.Generator) -> int:
        """A shared layout for a field that is new in this step."""
        if self.pattern.is_fixed:
            return step // RENEWED + int(rng.integers(LAYOUTS))
        of_count = step // (COUNTS * RENEWED) * COUNTS + step % COUNTS
        return of_count * (LAYOUTS // COUNTS) + int(rng.integers(LAYOUTS // COUNTS))

    def observed(self, layout: int) -> np.ndarray:
        """(M,) observed points of a shared layout, a function of (seed, layout)."""
        rng = generator(self.seed, Purpose.LAYOUT, layout)
        of_count = layout // (LAYOUTS // COUNTS)
        level = generator(self.seed, Purpose.LAYOUT_COUNT, of_count).random()
        return self.pattern.draw(np.ones(self.shape, dtype=bool), rng, level)

    def field_of(self, step: int, slot: int) -> int:
        """Index in the split of the field that this slot of this step shows."""
        epoch, place = divmod(step * self.batch_size + slot, len(self.split))
        return int(_epoch_order(self.seed, epoch, len(self.split))[place])

    def turn(self, step: int, slot: int) -> tuple[int, int, int]:
        """Which turn of its field a slot shows: a name of field and layout, the turn, and the
        step of turn 0."""
        epoch, place = divmod(step * self.batch_size + slot, len(self.split))
        turn = epoch % REUSED
        field = int(_epoch_order(self.seed, epoch, len(self.split))[place])
        first = epoch - turn
        place = _epoch_places(self.seed, first, len(self.split))[field]
        first_step = (first * len(self.split) + int(place)) // self.batch_size
        return first * len(self.split) + field, turn, first_step


class _Slot:
    """One field of a batch with the random numbers of its own."""

    def __init__(self, batches: TrainingBatches, step: int, slot: int, level: float):
        self.rng = generator(batches.seed, Purpose.TRAINING_SLOT, step, slot)
        self.layout, self.field, self.turn, first_step = -1, -1, 0, step
        own = self.rng
        if batches.keeps_layouts:  # the same numbers at every turn
            self.field, self.turn, first_step = batches.turn(step, slot)
            own = generator(batches.seed, Purpose.TRAINING_FIELD, self.field)
        values = batches.split.training_example(batches.field_of(step, slot), own)
        together = batches.pattern.is_symmetric
        number = 0
        if batches.split.is_symmetric:
            number = symmetries.draw(self.rng if together else own, *values.shape)
        turned = symmetries.Symmetry(number, *values.shape)
        if not together:  # the field alone is turned, before it is observed
            values = turned.of_field(values.reshape(-1, values.shape[2])).reshape(values.shape)
            number, turned = 0, symmetries.Symmetry(0, *values.shape)
        valid = np.ones(values.shape[:2], dtype=bool)
        if batches.split.has_gaps:
            valid = ~np.isnan(values[..., 0])
        if batches.shares_layouts:
            self.layout = batches.layout(first_step, own)
            observed = batches.observed(self.layout)
        else:
            observed = batches.pattern.draw(valid, own, level)
        self.draws, self.symmetry = int(own.integers(2**63)), number
        self.coords = batches.coords
        self.values = turned.of_field(values.reshape(-1, values.shape[2]))
        self.observed = turned.of_index(observed)
        self.valid = valid.ravel()[turned.source]
        self.num_valid = int(np.count_nonzero(valid))

    def points(
        self, num_inputs: int, num_queries: int, num_answered: int, is_compact: bool
    ) -> tuple[np.ndarray, ...]:
        """What a `Batch` holds of this field, in its order, up to the angle."""
        observed = self.observed
        if num_inputs < len(observed):
            kept = self.rng.choice(len(observed), num_inputs, replace=False, shuffle=False)
            observed = observed[np.sort(kept)]
        # The smallest random keys win; observed points come after all unobserved ones.
        keys = self.rng.random(len(self.valid))
        if is_compact:  # the points nearest to a random place
            keys = ((self.coords - self.rng.random(2)) ** 2).sum(axis=1)
        keys[self.observed] += 2
        keys[~self.valid] = np.inf
        queried = np.sort(np.argpartition(keys, num_queries - 1)[:num_queries])
        answered = np.arange(num_answered)
        if num_answered < num_queries:
            answered = np.sort(self.rng.choice(num_queries, num_answered, replace=False))
        return (observed, self.coords[observed], self.values[observed], queried,
                self.coords[queried], self.values[queried], np.int64(self.draws),
                np.int64(self.turn), np.int64(self.layout), np.int64(self.field),
                np.int64(self.symmetry), answered)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return generator(seed, Purpose.EPOCH_ORDER, epoch).permutation(length)


@lru_cache(maxsize=2)
def _epoch_places(seed: int, epoch: int, length: int) -> np.ndarray:
    """The inverse of _epoch_order: where in the epoch each field comes."""
    return np.argsort(_epoch_order(seed, epoch, length))
