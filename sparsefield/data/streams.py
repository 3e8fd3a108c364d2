"""Random numbers as a pure function of what they are for, never of what was drawn before."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox, SeedSequence


class Purpose(IntEnum):
    """What the numbers are for; each purpose has streams of its own."""

    EPOCH_ORDER = 1
    TRAINING_STEP = 2
    TRAINING_SLOT = 3
    FROZEN_CROP = 4
    FROZEN_CASE = 5
    MASK = 6
    MASK_COUNT = 8


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
