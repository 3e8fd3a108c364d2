"""Random numbers as a hash of a seed and a place: many seeds at once, the same on every device.

A `torch.Generator` for each field would be several calls for each, which a GPU has no time for.
"""

from __future__ import annotations

import torch
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


def scrambled(x: Tensor) -> Tensor:
    """Numbers (...) int64 whose bits look random, another for each x (Steele et al. 2014,
    "Fast splittable pseudorandom number generators", figure 16)."""
    for shift, factor in FACTORS:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> places) & ((1 << (64 - places)) - 1)
