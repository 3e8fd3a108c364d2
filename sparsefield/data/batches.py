"""Frozen evaluation cases; training batches, a pure function of (seed, step, global slot)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsefield.data.patterns import Pattern
from sparsefield.data.scale import Split
from sparsefield.errors import UserError
from sparsefield.hashed import Purpose, generator
from sparsefield.place import grid_coords

MASKS = 32
RENEWED = 8
COUNTS = 4
MOST_STARTING = 1024
MOST_SEEN = 4096
TURNS = 8  # flips and quarter turns of a square; the first 4 map any rectangle onto itself


class FrozenCase(TypedDict):
    truth: np.ndarray     # (H, W, C) float32 in [-1, 1], NaN where no point exists
    observed: np.ndarray  # (M,) int64, sorted indices i * W + j
    noise_seed: int       # seed of the noise of every sampler on this case


def frozen_case(split: Split, index: int, pattern: Pattern, eval_seed: int) -> FrozenCase:
    """Field `index` with its observations.

    For one grid and pattern they depend on (eval_seed, index) alone, never on the model, the
    batch or the number of cases. random:0.2 observes int(0.2 * existing points).
    """
    rng = generator(eval_seed, Purpose.FROZEN_CASE, index)
    noise_seed = int(rng.integers(2**63))
    truth = split.example(index)
    observed = pattern.draw(~np.isnan(truth[..., 0]), rng)
    return FrozenCase(truth=truth, observed=observed, noise_seed=noise_seed)


def count_symmetries(height: int, width: int) -> int:
    """How many flips and quarter turns map a grid onto itself."""
    return TURNS if height == width else TURNS // 2


def augmented(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A field (H, W, C) flipped, turned and its channels exchanged, all ways equally likely."""
    turn = int(rng.integers(count_symmetries(*values.shape[:2])))
    if turn & 1:
        values = values[::-1]
    if turn & 2:
        values = values[:, ::-1]
    if turn & 4:
        values = values.swapaxes(0, 1)
    return np.ascontiguousarray(values[..., rng.permutation(values.shape[2])])


class Batch(NamedTuple):
    """What one step needs, float32. Values in [-1, 1], coordinates as in sparsefield.place."""

    input_index: Tensor   # (B, M) int64, flat indices i * W + j
    input_coords: Tensor  # (B, M, 2)
    input_values: Tensor  # (B, M, C)
    query_index: Tensor   # (B, N) int64
    query_coords: Tensor  # (B, N, 2)
    x_1: Tensor           # (B, N, C) data
    draws: Tensor         # (B,) int64, seed of the draw that a path starts from
    mask_id: Tensor       # (B,) int64, on the CPU: which shared mask, -1 for one of its own
    answered: Tensor      # (B, n) int64, which of the N queries the tokens answer
    theta: Tensor         # (B,) angles in [0, pi/2]

    def to(self, device: torch.device) -> Batch:
        """On a device, but for the mask ids, which choose what the host keeps."""
        moved = Batch(*(part.to(device, non_blocking=True) for part in self))
        return moved._replace(mask_id=self.mask_id)

    def part(self, rows: slice) -> Batch:
        """Some of the fields."""
        return Batch(*(part[rows] for part in self))


class TrainingBatches(Dataset):
    """`batches[step]` is this rank's part of the global batch of that step.

    Nothing depends on rank, world size, worker or on what was asked before: rank r of R gets
    slots r * batch_size / R ... (r + 1) * batch_size / R of the batch that one process would get.

    - Fields come in an endless row of permutations of the split, one for each epoch. Where the
      split is symmetric, a field is augmented before it is observed.
    - n is drawn from `queries` = (low, high), both included, once for each step, and M follows
      from the pattern, so that all slots have equally many.
    - N is n, or, for a model that `sees_whole` draws, more: in every other step, by chance, all
      unobserved points, up to the MOST_SEEN around a random place, else any number at random
      places. Tokens answer n of them.
    - Queries are unobserved points, uniformly without replacement: at an observed point the
      answer can be copied. Observed points fill up only where fewer than n are unobserved.
    - In the first `starting` steps, in which no tokens learn, all unobserved points are queries, up
      to MOST_STARTING.
    - In data with gaps, N and M shrink to what the poorest field of the global batch has.
    - `draw_angles(rng, size)` gives the angles of the global batch, (size,) in [0, pi/2].
    - In data without gaps MASKS masks are shared at a time, so that what is computed from places
      alone serves many fields. Every RENEWED steps one makes way for a new one; where the number
      of points varies, steps take turns among COUNTS numbers with MASKS / COUNTS masks each.

    Raises:
        UserError: batch_size is no multiple of world_size, or the pattern does not fit the grid.
    """

    def __init__(
        self, split: Split, pattern: Pattern, *, seed: int, batch_size: int,
        queries: tuple[int, int], draw_angles: Callable[[np.random.Generator, int], np.ndarray],
        starting: int = 0, sees_whole: bool = False, rank: int = 0, world_size: int = 1,
    ):
        if batch_size % world_size:
            raise UserError(
                f"the batch of {batch_size} does not divide among {world_size} processes: "
                f"set BATCH_SIZE to a multiple of {world_size}"
            )
        self.split, self.pattern, self.seed = split, pattern, seed
        self.batch_size, self.queries, self.draw_angles = batch_size, queries, draw_angles
        self.starting, self.sees_whole = starting, sees_whole
        share = batch_size // world_size
        self.own_slots = range(rank * share, (rank + 1) * share)
        self.shares_masks = not split.has_gaps
        self.shape = split.example(0).shape[:2]
        self.coords = grid_coords(*self.shape).numpy()

    def __getitem__(self, step: int) -> Batch:
        step_rng = generator(self.seed, Purpose.TRAINING_STEP, step)
        level = step_rng.random()
        num_answered = int(step_rng.integers(self.queries[0], self.queries[1] + 1))
        angles = self.draw_angles(step_rng, self.batch_size)
        is_compact, share = bool(step_rng.random() < 0.5), step_rng.random()

        # Gaps: how many points all slots can have is known only after a look at all of them.
        needed = range(self.batch_size) if self.split.has_gaps else self.own_slots
        slots = {slot: _Slot(self, step, slot, level) for slot in needed}
        num_inputs = min(len(slot.observed) for slot in slots.values())
        unobserved = min(slot.num_valid - len(slot.observed) for slot in slots.values())
        num_answered = min(num_answered, *(slot.num_valid for slot in slots.values()))
        num_queries, is_compact = num_answered, is_compact and self.sees_whole
        if step < self.starting:
            num_queries = num_answered = max(1, min(MOST_STARTING, unobserved))
            is_compact = False
        elif self.sees_whole:
            most = max(num_answered, min(MOST_SEEN, unobserved))
            more = 1.0 if is_compact else share
            num_queries = num_answered + round(more * (most - num_answered))

        points = [slots[slot].points(num_inputs, num_queries, num_answered, is_compact)
                  for slot in self.own_slots]
        stacked = [torch.from_numpy(np.stack(arrays)) for arrays in zip(*points, strict=True)]
        own_angles = angles[self.own_slots.start:self.own_slots.stop]
        return Batch(*stacked, theta=torch.as_tensor(own_angles, dtype=torch.float32))

    def mask_id(self, step: int, rng: np.random.Generator) -> int:
        """A shared mask for a field of this step."""
        if self.pattern.is_fixed:
            return step // RENEWED + int(rng.integers(MASKS))
        of_count = step // (COUNTS * RENEWED) * COUNTS + step % COUNTS
        return of_count * (MASKS // COUNTS) + int(rng.integers(MASKS // COUNTS))

    def observed(self, mask_id: int) -> np.ndarray:
        """(M,) observed points of a shared mask, a function of (seed, mask_id)."""
        rng = generator(self.seed, Purpose.MASK, mask_id)
        of_count = mask_id // (MASKS // COUNTS)
        level = generator(self.seed, Purpose.MASK_COUNT, of_count).random()
        return self.pattern.draw(np.ones(self.shape, dtype=bool), rng, level)

    def field_of(self, step: int, slot: int) -> int:
        """Index in the split of the field that this slot of this step shows."""
        epoch, place = divmod(step * self.batch_size + slot, len(self.split))
        return int(_epoch_order(self.seed, epoch, len(self.split))[place])


class _Slot:
    """One field of a batch with the random numbers of its own."""

    def __init__(self, batches: TrainingBatches, step: int, slot: int, level: float):
        self.rng = generator(batches.seed, Purpose.TRAINING_SLOT, step, slot)
        values = batches.split.training_example(batches.field_of(step, slot), self.rng)
        if batches.split.is_symmetric:
            values = augmented(values, self.rng)
        valid = np.ones(values.shape[:2], dtype=bool)
        if batches.split.has_gaps:
            valid = ~np.isnan(values[..., 0])
        self.mask_id = -1
        if batches.shares_masks:
            self.mask_id = batches.mask_id(step, self.rng)
            self.observed = batches.observed(self.mask_id)
        else:
            self.observed = batches.pattern.draw(valid, self.rng, level)
        self.draws = int(self.rng.integers(2**63))
        self.coords = batches.coords
        self.values = values.reshape(-1, values.shape[2])
        self.valid = valid.ravel()
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
            keys = ((self.coords - self.rng.random(2) * self.coords.max(axis=0)) ** 2).sum(axis=1)
        keys[self.observed] += 2
        keys[~self.valid] = np.inf
        queried = np.sort(np.argpartition(keys, num_queries - 1)[:num_queries])
        answered = np.arange(num_answered)
        if num_answered < num_queries:
            answered = np.sort(self.rng.choice(num_queries, num_answered, replace=False))
        return (observed, self.coords[observed], self.values[observed], queried,
                self.coords[queried], self.values[queried], np.int64(self.draws),
                np.int64(self.mask_id), answered)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return generator(seed, Purpose.EPOCH_ORDER, epoch).permutation(length)
