"""Random numbers as a hash."""

import torch

from sparsefield.hashed import BITS, STRIDE, bits, happens, normal, scrambled, seeds_of

CPU = torch.device("cpu")


def test_known_answer():
    """The first number of splitmix64 with state 0, as its authors' code gives it."""
    assert int(scrambled(torch.tensor([STRIDE]))[0]) % 2**64 == 0xE220A8397B1DCDAF


def test_numbers_are_uniform_and_unrelated():
    seeds = seeds_of(7, range(8), CPU)
    u = bits(seeds, 40_000).double() / 2**BITS
    assert u.min() >= 0 and u.max() < 1
    counts = torch.stack([torch.histc(row, 20, 0, 1) for row in u])
    assert ((counts - 2000) / 2000**0.5).abs().max() < 4.5
    between = torch.corrcoef(torch.cat([u[:, 1:], u[:, :-1]]))  # seeds, and neighbouring places
    assert (between - torch.eye(16)).abs().max() < 0.025


def test_normal_numbers():
    z = normal(seeds_of(0, range(4), CPU), 50_000).double()
    moments = [(z**k).mean(dim=1) for k in (1, 2, 3, 4)]
    for found, expected, bound in zip(moments, (0, 1, 0, 3), (0.02, 0.03, 0.08, 0.2), strict=True):
        assert (found - expected).abs().max() < bound


def test_a_number_depends_on_its_seed_and_place_alone():
    seeds = seeds_of(3, range(2, 6), CPU)
    assert torch.equal(seeds_of(3, range(6), CPU)[2:], seeds)
    assert torch.equal(bits(seeds, 9)[1:2, :5], bits(seeds[1:2], 5))


def test_what_happens_with_a_probability():
    for probability in (0.0, 0.1, 1.0):
        share = happens(seeds_of(1, range(2), CPU), 40_000, probability).double().mean(dim=1)
        assert (share - probability).abs().max() < 0.01
