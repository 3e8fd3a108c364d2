"""Random numbers as a pure function of what they are for, never of what was drawn before.

`generator` and `noise_seed` give streams of one purpose. The others hash many seeds at once, the
same on every device: a `torch.Generator` for each field would be too many calls for a GPU.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from torch import Tensor

STRIDE = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
FACTORS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
BITS = 52  # of a number


def seeds_of(seed: int, places: range, device: torch.device) -> Tensor:
    """Seeds (n,) int64 of places, such as slots of a batch, from one seed for all of them."""
    place = torch.arange(places.start, places.stop, device=device)
    return scrambled(torch.tensor(seed, device=device) + place * STRIDE)


def bits(seeds: Tensor, count: int) -> Tensor:
    """Numbers (B, count) in 0 ... 2^BITS - 1, int64, of seeds (B,) int64."""
    place = torch.arange(1, count + 1, device=seeds.device)
    return scrambled(scrambled(seeds)[:, None] + place * STRIDE) & ((1 << BITS) - 1)


def happens(seeds: Tensor, count: int, probability: float) -> Tensor:
    """(B, count) bool, each true with this probability."""
    return bits(seeds, count) < round(probability * (1 << BITS))


def normal(seeds: Tensor, count: int) -> Tensor:
    """Numbers (B, count) of N(0, 1), float32, of seeds (B,) int64; needs float64."""
    uniform = (bits(seeds, count).double() + 0.5) * 2.0**-BITS
    return torch.special.ndtri(uniform).float()


def normal_at(seeds: Tensor, coords: Tensor) -> Tensor:
    """Numbers (..., N) of N(0, 1), float32, of seeds (...) int64 and places (N, D) float32: equal
    places have equal numbers, whatever else is asked for."""
    key = torch.zeros(len(coords), dtype=torch.int64, device=coords.device)
    for column in (coords.float() + 0.0).unbind(dim=-1):  # 0 for -0
        key = scrambled(key + column.contiguous().view(torch.int32).long() * STRIDE)
    number = scrambled(scrambled(seeds)[..., None] ^ key) & ((1 << BITS) - 1)
    return torch.special.ndtri((number.double() + 0.5) * 2.0**-BITS).float()


def scrambled(x: Tensor) -> Tensor:
    """Numbers (...) int64 whose bits look random, another for each x (Steele et al. 2014,
    "Fast splittable pseudorandom number generators", figure 16)."""
    for shift, factor in FACTORS:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> places) & ((1 << (64 - places)) - 1)


# --- streams of numpy and torch ------------------------------------------------------------------


class Purpose(IntEnum):
    """What the numbers are for; each purpose has streams of its own."""

    EPOCH_ORDER = 1
    TRAINING_STEP = 2
    TRAINING_SLOT = 3
    FROZEN_CROP = 4
    FROZEN_CASE = 5
    MASK = 6
    MASK_COUNT = 8
    TRACER = 9
    TRAINING_SEQUENCE = 10
    FROZEN_SEQUENCE = 11
    TRAINING_NOISE = 12
    FROZEN_NOISE = 13


def generator(seed: int, purpose: Purpose, first: int, second: int = 0) -> Generator:
    """The generator of one (seed, purpose, first, second), each a whole number in [0, 2^64).

    Philox (Salmon et al. 2011) turns a key and a 256-bit counter into random bits. The two words
    of the key and the two high words of the counter name the stream; the low 128 bits count
    inside it, so that no two streams ever meet.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, first, second], dtype=np.uint64)
    return Generator(Philox(key=key, counter=counter))


def noise_seed(*path: int) -> int:
    """A 32-bit seed for a torch.Generator, from a path of non-negative integers.

    For what is drawn by torch: (seed, field, draw) of a sample, (seed, step, slot) of dropout.
    """
    return int(SeedSequence(path).generate_state(1)[0])
