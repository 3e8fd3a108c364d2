"""What is observed: the rules behind `--observe`, frozen evaluation cases, training batches.

    random:0.2         a fifth of the points, uniformly
    random:0.05-0.5    a share that varies from batch to batch, from evaluation field to field
    grid:4             every 4th point of every 4th row
    block:0.3          everything but a block of 0.3 of the area (inpainting)
    lines:8            8 whole rows
    clusters:0.1       a tenth of the points, most of them near a few places
    tracks:0.1         a tenth, along straight lines of any direction; shares of all three may vary
    mask.png           what is white, and opaque, in a picture of the size of the fields
    random:0.2,lines:8 one of several rules, equally often: for who will measure in several ways

and behind `--noise`, the sd of what the measurements are off by, as a share of that of the values:

    0.1                on every field
    0.05-0.3           uniform, another on every field
    0-0.3              half of the fields are measured exactly, the others so
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsefield.data.pictures import read_mask
from sparsefield.data.scale import (
    STANDARD,
    Split,
    frames_of,
    is_standard,
    measured_moments,
    time_of,
)
from sparsefield.errors import UserError
from sparsefield.hashed import Purpose, generator
from sparsefield.place import grid_coords

MASKS = 32
SEQUENCES = 8  # of masks, where frames follow each other
RENEWED = 8
COUNTS = 4
MOST_STARTING = 1024
MOST_SEEN = 4096
SHARES = ("random", "clusters", "tracks")  # rules of so many points, in no direction of the grid
CLUSTERS, WIDTHS = (2, 8), (0.03, 0.1)  # how many, and their sd in longer sides
SINGLE = 0.01  # weight of a point far from all clusters, beside 1 in their middle
EXACT = 0.5  # share of fields measured without noise, where its range begins at 0
TURNS = 8  # flips and quarter turns of a square; the first 4 map any rectangle onto itself

# --- patterns -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One rule of a pattern.

    Attributes:
        kind: random, clusters, tracks, grid, block, lines or mask.
        argument: (least, most) share of the points for the first three; step of the grid; share of
            the area in the block, in the proportions of the field; number of lines; (H, W) bool of
            the mask.
    """

    text: str
    kind: str
    argument: tuple[float, float] | float | int | np.ndarray

    def draw(self, valid: np.ndarray, rng: np.random.Generator, level: float) -> np.ndarray:
        """See `Pattern.draw`. Of a share that varies, the logarithm is uniform."""
        existing, count = np.flatnonzero(valid), 0
        if self.kind in SHARES:
            least, most = self.argument
            count = int(least * (most / least) ** level * len(existing))
            count = min(max(count, 1), len(existing) - 1)
        points = np.flatnonzero(self._observed(valid, rng, count) & valid)
        if len(points) == 0:
            return rng.choice(existing, 1)
        if len(points) == len(existing):
            return np.sort(rng.choice(existing, len(existing) - 1, replace=False))
        return points

    def _observed(self, valid: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
        shape = valid.shape
        observed, existing = np.zeros(shape, dtype=bool), np.flatnonzero(valid)
        match self.kind:
            case "random":
                observed.flat[rng.choice(existing, count, replace=False, shuffle=False)] = True
            case "clusters":
                weight = _near_clusters(shape, rng).flat[existing]
                observed.flat[rng.choice(existing, count, replace=False,
                                         p=weight / weight.sum())] = True
            case "tracks":
                while (left := count - np.count_nonzero(observed)) > 0:
                    track = _track(shape, rng)
                    track = track[valid.flat[track] & ~observed.flat[track]]
                    observed.flat[track[:left]] = True
            case "grid" if self.argument <= min(shape):
                every = slice(self.argument // 2, None, self.argument)
                observed[every, every] = True
            case "lines" if self.argument < shape[0]:
                observed[rng.choice(shape[0], self.argument, replace=False)] = True
            case "block":
                height, width = (max(1, round(side * self.argument**0.5)) for side in shape)
                top = rng.integers(shape[0] - height + 1)
                left = rng.integers(shape[1] - width + 1)
                observed[:] = True
                observed[top:top + height, left:left + width] = False
            case "mask" if self.argument.shape == shape:
                observed = self.argument
            case _:
                has = "the rule" if self.kind != "mask" else "{1} x {0} pixels".format(
                    *self.argument.shape)
                raise UserError(f"--observe {self.text}: {has} does not fit fields of {shape[1]} x "
                                f"{shape[0]} points; use another pattern or size")
        return observed


def _near_clusters(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """How likely each point is observed beside the others, (H, W)."""
    place = np.stack(np.indices(shape), axis=-1) / max(shape)
    weight = np.full(shape, SINGLE)
    for _ in range(rng.integers(*CLUSTERS, endpoint=True)):
        middle = rng.random(2) * shape / max(shape)
        square = ((place - middle) ** 2).sum(axis=-1)
        weight += np.exp(-square / (2 * rng.uniform(*WIDTHS) ** 2))
    return weight


def _track(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Flat indices along a straight line through any point in any direction, in their order."""
    rows, columns = np.indices(shape).reshape(2, -1)
    angle, start = rng.uniform(0, np.pi), rng.integers(len(rows))
    rows, columns = rows - rows[start], columns - columns[start]
    track = np.flatnonzero(np.abs(rows * np.cos(angle) - columns * np.sin(angle)) < 0.5)
    return track[np.argsort((rows * np.sin(angle) + columns * np.cos(angle))[track])]


class Measured(NamedTuple):
    """A field as a model sees it.

    Attributes:
        truth: (H, W, C). noisy: the same as it is measured. noise_sd: (C,) of their difference.
    """

    truth: np.ndarray
    noisy: np.ndarray
    noise_sd: np.ndarray


@dataclass(frozen=True)
class Pattern:
    """Rules that choose observed points, equally often. `str(pattern)` gives its text back.

    Attributes:
        noise: least and most of the sd of the noise, in sd of what is observed of a field.
    """

    rules: tuple[Rule, ...]
    noise: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        return ",".join(rule.text for rule in self.rules)

    @property
    def is_fixed(self) -> bool:
        """Whether it draws equally many points on every whole field."""
        first = self.rules[0]
        varies = first.kind in SHARES and first.argument[0] < first.argument[1]
        return len(self.rules) == 1 and not varies

    @property
    def is_symmetric(self) -> bool:
        """Whether its points turned with the field are as likely; taken to be so of several rules,
        since who names several has no direction of the grid in mind."""
        return len(self.rules) > 1 or self.rules[0].kind in SHARES

    def draw(
        self, valid: np.ndarray, rng: np.random.Generator, level: float | None = None
    ) -> np.ndarray:
        """Observed points of one field.

        Args:
            valid: (H, W) bool, True where a point exists; at least two.
            level: number in [0, 1) that decides the rule and *how many*; a batch shares one, so
                that all its fields have equally many. Default: drawn from rng.
        Returns:
            (M,) int64, sorted indices i * W + j; only points that exist, at least one of them,
            and never all of them (one is added or dropped if the rule leaves none on one side).
        Raises:
            UserError: the rule does not fit a grid of this size.
        """
        if level is None:
            level = 0.0 if self.is_fixed else rng.random()
        which, level = divmod(level * len(self.rules), 1)
        return self.rules[int(which)].draw(valid, rng, level)

    def measure(
        self, field: np.ndarray, observed: np.ndarray, rng: np.random.Generator,
        standard: bool = False,
    ) -> Measured:
        """A field (H, W, C) of which (M,) points are observed, with noise of rng; standard: one of
        standardised data, seen by the mean and sd of its measurements, all that is known in use."""
        noisy, noise_sd = field, np.zeros(field.shape[2], dtype=np.float32)
        least, most = self.noise
        if most > 0 and not (least == 0 and rng.random() < EXACT):
            share = np.float32(rng.uniform(least, most))
            noise_sd = share * measured_moments(field, observed)[1]
            noisy = field + noise_sd * rng.standard_normal(field.shape, dtype=np.float32)
        if not standard:
            return Measured(field, noisy, noise_sd)
        mean, sd = measured_moments(noisy, observed)
        unit = STANDARD * np.where(sd > 0, sd, 1)
        return Measured((field - mean) / unit, (noisy - mean) / unit, noise_sd / unit)


def parse_pattern(text: str, noise: str = "0") -> Pattern:
    """The pattern that `--observe` and `--noise` name (see the top of this file).

    Raises:
        UserError: unknown rule, a mask that cannot be read, a rule that observes nothing or
            everything, or noise that is no share.
    """
    texts = [text] if os.path.isfile(text) else text.split(",")
    return Pattern(tuple(map(_parse_rule, texts)), parse_noise(noise))


def parse_noise(text: str) -> tuple[float, float]:
    """Least and most share that `--noise` names. Raises UserError for what is none."""
    least, _, most = text.partition("-")
    try:
        found = float(least), float(most or least)
    except ValueError:
        found = np.nan, np.nan
    if not 0 <= found[0] <= found[1] <= 1:
        raise UserError(f"--noise {text}: give its sd as a share of that of the measured values, "
                        "from 0 to 1: 0.1, or 0-0.3 for a range")
    return found


def _parse_rule(text: str) -> Rule:
    if os.path.isfile(text):
        mask = read_mask(Path(text))
        if mask.all() or not mask.any():
            raise UserError(f"--observe {text}: the mask observes "
                            f"{'everything' if mask.all() else 'nothing'}; paint observed points "
                            "white and the others black")
        return Rule(text, "mask", mask)
    kind, _, given = text.partition(":")
    try:
        match kind:
            case "random" | "clusters" | "tracks":
                least, _, most = given.partition("-")
                argument = float(least), float(most or least)
                is_sound = 0 < argument[0] <= argument[1] < 1
            case "block":
                is_sound = 0 < (argument := float(given)) < 1
            case "grid" | "lines":
                is_sound = (argument := int(given)) >= (2 if kind == "grid" else 1)
            case _:
                raise ValueError
    except ValueError:
        raise UserError(
            f"--observe {text}: neither a picture nor a rule; use random:0.2, random:0.05-0.5, "
            "clusters:0.1, tracks:0.1, grid:4, block:0.3, lines:8 or mask.png") from None
    if not is_sound:
        raise UserError(
            f"--observe {text}: observes nothing or everything; shares lie between 0 and 1, the "
            "smaller one first, a grid has steps of 2 or more, lines are 1 or more")
    return Rule(text, kind, argument)


# --- frozen cases ---------------------------------------------------------------------------------


class FrozenCase(TypedDict):
    truth: np.ndarray     # (H, W, C) float32 in [-1, 1], NaN where no point exists
    noisy: np.ndarray     # (H, W, C), the same as it is measured
    noise_sd: np.ndarray  # (C,) of their difference
    observed: np.ndarray  # (M,) int64, sorted indices i * W + j
    noise_seed: int       # seed of the noise of every sampler on this case


def frozen_case(split: Split, index: int, pattern: Pattern, eval_seed: int) -> FrozenCase:
    """Field `index` with its observations, for one grid and pattern a function of (eval_seed,
    index) alone."""
    rng = generator(eval_seed, Purpose.FROZEN_CASE, index)
    noise_seed = int(rng.integers(2**63))
    truth, level = split.example(index), None
    if frames_of(split) > 1 and not pattern.is_fixed:  # equally many points in all frames
        first = index - index % frames_of(split)
        level = generator(eval_seed, Purpose.FROZEN_SEQUENCE, first).random()
    observed = pattern.draw(~np.isnan(truth[..., 0]), rng, level)
    measured = pattern.measure(truth, observed, generator(eval_seed, Purpose.FROZEN_NOISE, index),
                               is_standard(split))
    return FrozenCase(**measured._asdict(), observed=observed, noise_seed=noise_seed)


# --- training -------------------------------------------------------------------------------------


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
    noise_sd: Tensor      # (B, C), on the CPU: of the noise in the input values
    theta: Tensor         # (B,) angles in [0, pi/2]
    times: Tensor         # (B,) of frames of a sequence, see sparsefield.place.Frames

    def to(self, device: torch.device) -> Batch:
        """On a device, but for what decides how the host computes: mask ids and noise."""
        moved = Batch(*(part.to(device, non_blocking=True) for part in self))
        return moved._replace(mask_id=self.mask_id, noise_sd=self.noise_sd)

    def part(self, rows: slice | Tensor) -> Batch:
        """Some of the fields."""
        return Batch(*(part[rows] for part in self))


class TrainingBatches(Dataset):
    """`batches[step]` is this rank's part of the global batch of that step.

    Nothing depends on rank, world size, worker or on what was asked before: rank r of R gets
    slots r * batch_size / R ... (r + 1) * batch_size / R of the batch that one process would get.

    - Fields come in permutations of the split, one for each epoch. Those of a symmetric split are
      augmented before they are observed; standardised ones change their sign, too.
    - Once for each step n is drawn from `queries` = (low, high), both included. M follows from the
      pattern. In data with gaps both shrink to what the poorest field of the global batch has.
    - N is n. For a model that `sees_whole` draws it is more, of which tokens answer n: in every
      other step, by chance, all unobserved points, up to the MOST_SEEN around a random place, else
      any number at random places.
    - Queries are unobserved points, uniformly without replacement. Observed points, whose answer
      can be copied, fill up only where fewer than n are unobserved; of a field with noise they are
      asked for like all others, and the data there are without noise.
    - In the first `starting` steps, in which no tokens learn, all unobserved points are queries, up
      to MOST_STARTING.
    - `draw_angles(rng, size)` gives the angles of the global batch, (size,) in [0, pi/2].
    - Where the split has sequences of T frames, slots i T ... i T + T - 1 show one, with its
      augmentation, its angle and its times, and a mask each. batch_size counts frames.
    - In data without gaps MASKS masks are shared at a time, so that what is computed from places
      alone serves many fields. Every RENEWED steps one makes way for a new one; where the number
      of points varies, steps take turns among COUNTS numbers with MASKS / COUNTS masks each.

    Raises:
        UserError: batch_size is no multiple of world_size times T, or the pattern does not fit the
            grid.
    """

    def __init__(
        self, split: Split, pattern: Pattern, *, seed: int, batch_size: int,
        queries: tuple[int, int], draw_angles: Callable[[np.random.Generator, int], np.ndarray],
        starting: int = 0, sees_whole: bool = False, rank: int = 0, world_size: int = 1,
    ):
        self.frames = frames_of(split)
        if batch_size % (world_size * self.frames) and self.frames > 1:
            raise UserError(f"the batch of {batch_size} frames does not divide into sequences of "
                            f"{self.frames} for {world_size} process(es): set BATCH_SIZE to a "
                            f"multiple of {world_size * self.frames}")
        if batch_size % world_size:
            raise UserError(f"the batch of {batch_size} does not divide among {world_size} "
                            f"processes: set BATCH_SIZE to a multiple of {world_size}")
        self.split, self.pattern, self.seed = split, pattern, seed
        self.batch_size, self.queries, self.draw_angles = batch_size, queries, draw_angles
        self.starting, self.sees_whole = starting, sees_whole
        share = batch_size // world_size
        self.own_slots = range(rank * share, (rank + 1) * share)
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
        own = np.array(self.own_slots)
        return Batch(*stacked, *(torch.as_tensor(x, dtype=torch.float32) for x in (
            angles[own - own % self.frames], [slots[slot].time for slot in self.own_slots])))

    def mask_id(self, step: int, frame: int, rng: np.random.Generator) -> int:
        """A shared mask for a frame of a sequence of this step: those of a sequence follow each
        other from any of them on."""
        if self.pattern.is_fixed:
            first = int(rng.integers(MASKS if self.frames == 1 else SEQUENCES))
            return step // RENEWED + first + frame
        of_count = step // (COUNTS * RENEWED) * COUNTS + step % COUNTS
        first = int(rng.integers(MASKS // COUNTS))
        return of_count * (MASKS // COUNTS) + (first + frame) % (MASKS // COUNTS)

    def observed(self, mask_id: int) -> np.ndarray:
        """(M,) observed points of a shared mask, a function of (seed, mask_id)."""
        rng = generator(self.seed, Purpose.MASK, mask_id)
        of_count = mask_id // (MASKS // COUNTS)
        level = generator(self.seed, Purpose.MASK_COUNT, of_count).random()
        return self.pattern.draw(np.ones(self.shape, dtype=bool), rng, level)

    def field_of(self, step: int, slot: int) -> int:
        """Index in the split of the field that this slot of this step shows."""
        sequences = len(self.split) // self.frames
        epoch, place = divmod((step * self.batch_size + slot) // self.frames, sequences)
        first = int(_epoch_order(self.seed, epoch, sequences)[place]) * self.frames
        return first + slot % self.frames


class _Slot:
    """One field of a batch with the random numbers of its own."""

    def __init__(self, batches: TrainingBatches, step: int, slot: int, level: float):
        self.rng = shared = generator(batches.seed, Purpose.TRAINING_SLOT, step, slot)
        sequence, frame = divmod(slot, batches.frames)
        if batches.frames > 1:  # all frames draw the same numbers
            shared = generator(batches.seed, Purpose.TRAINING_SEQUENCE, step, sequence)
        field = batches.field_of(step, slot)
        values = batches.split.training_example(field, shared)
        self.time = time_of(batches.split, field)
        if batches.split.is_symmetric:
            values = augmented(values, shared)
        if is_standard(batches.split) and shared.random() < 0.5:
            values = -values
        valid = ~np.isnan(values[..., 0])
        if batches.split.has_gaps:
            self.mask_id, self.observed = -1, batches.pattern.draw(valid, self.rng, level)
        else:
            self.mask_id = batches.mask_id(step, frame, shared)
            self.observed = batches.observed(self.mask_id)
        noise_rng = generator(batches.seed, Purpose.TRAINING_NOISE, step, slot)
        truth, noisy, self.noise_sd = batches.pattern.measure(
            values, self.observed, noise_rng, is_standard(batches.split))
        self.draws = int(self.rng.integers(2**63))
        self.coords = batches.coords
        self.values, self.noisy = (x.reshape(-1, x.shape[2]) for x in (truth, noisy))
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
        if not self.noise_sd.any():
            keys[self.observed] += 2
        keys[~self.valid] = np.inf
        queried = np.sort(np.argpartition(keys, num_queries - 1)[:num_queries])
        answered = np.arange(num_answered)
        if num_answered < num_queries:
            answered = np.sort(self.rng.choice(num_queries, num_answered, replace=False))
        return (observed, self.coords[observed], self.noisy[observed], queried,
                self.coords[queried], self.values[queried], np.int64(self.draws),
                np.int64(self.mask_id), answered, self.noise_sd)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return generator(seed, Purpose.EPOCH_ORDER, epoch).permutation(length)
