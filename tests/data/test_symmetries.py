"""Symmetries of pictures."""

import numpy as np
import pytest

from sparsefield.data import symmetries
from sparsefield.data.symmetries import Symmetry


@pytest.mark.parametrize("shape, count", [((5, 5, 3), 48), ((4, 6, 3), 24), ((4, 6, 1), 4)])
def test_every_symmetry_is_drawn_and_another_picture(shape, count):
    rng = np.random.default_rng(0)
    numbers = {symmetries.draw(rng, *shape) for _ in range(2000)}
    field = np.arange(np.prod(shape)).reshape(-1, shape[2])
    pictures = {Symmetry(number, *shape).of_field(field).tobytes() for number in numbers}
    assert len(numbers) == len(pictures) == count
    assert (Symmetry(0, *shape).of_field(field) == field).all()


@pytest.mark.parametrize("number", [0, 1, 3, 6, 7, 13, 47])
def test_points_move_with_the_field(number):
    field = np.arange(48).reshape(16, 3)
    turned, index = Symmetry(number, 4, 4, 3), np.array([0, 5, 14])
    there = turned.of_field(field)[turned.of_index(index)]
    assert (there == field[index][:, turned.channels]).all()
    assert (turned.source[turned.of_index(index)] == index).all()


def test_a_symmetry_keeps_neighbours():
    field = np.arange(36).reshape(36, 1)
    for number in range(8):
        grid = Symmetry(number, 6, 6, 1).of_field(field).reshape(6, 6)
        steps = np.abs(np.diff(grid, axis=0)), np.abs(np.diff(grid, axis=1))
        assert {frozenset(np.unique(step)) for step in steps} == {frozenset([1]), frozenset([6])}
