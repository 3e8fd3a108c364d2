"""Observation patterns: what each observes, and that every grid keeps points on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefield.data import parse_pattern

FULL = np.ones((12, 16), dtype=bool)


def drawn(text: str, valid: np.ndarray = FULL, seed: int = 0) -> np.ndarray:
    """The observed points as a picture."""
    points = parse_pattern(text).draw(valid, np.random.default_rng(seed))
    assert points.dtype == np.int64 and (np.diff(points) > 0).all()
    observed = np.zeros(valid.size, dtype=bool)
    observed[points] = True
    return observed.reshape(valid.shape)


def test_grid():
    expected = np.zeros_like(FULL)
    expected[2::4, 2::4] = True
    np.testing.assert_array_equal(drawn("grid:4"), expected)


def test_block_hides_one_rectangle_of_its_share():
    for seed in range(5):
        hidden = ~drawn("block:0.25", seed=seed)
        rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
        assert (len(rows), len(columns)) == (6, 8)
        assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
        assert hidden.sum() == 48


def test_lines_are_whole_rows():
    observed = drawn("lines:5")
    assert observed.all(axis=1).sum() == 5 and observed.any(axis=1).sum() == 5


def test_varied_share_covers_its_range():
    shares = [drawn("random:0.05-0.5", seed=seed).mean() for seed in range(300)]
    assert 0.04 <= min(shares) < 0.07 and 0.47 < max(shares) < 0.5
    fixed = parse_pattern("random:0.05-0.5")
    rng = np.random.default_rng(0)
    share = (0.05 * 0.5) ** 0.5  # as likely above as below
    assert {len(fixed.draw(FULL, rng, level=0.5)) for _ in range(5)} == {int(share * FULL.size)}
    assert 0.4 < np.mean(np.array(shares) < share) < 0.6


def test_one_of_several_rules_equally_often(tmp_path):
    text = "random:0.1-0.3,lines:4,lines:4,grid:3"
    pattern = parse_pattern(text)
    assert str(pattern) == text and not pattern.is_fixed
    rng = np.random.default_rng(0)
    counts = [len(pattern.draw(FULL, rng)) for _ in range(400)]
    lines, grid = 4 * FULL.shape[1], len(np.flatnonzero(drawn("grid:3")))
    assert 160 < counts.count(lines) < 240 and 70 < counts.count(grid) < 130
    assert len(set(counts)) > 10
    by_level = [len(pattern.draw(FULL, rng, level)) for level in (0.3, 0.6, 0.8)]
    assert by_level == [lines, lines, grid]
    assert len(pattern.draw(FULL, rng, 0.125)) == int(0.03**0.5 * FULL.size)


def test_clusters_and_tracks_have_their_share_and_their_shape():
    """Neighbours of an observed point are observed more often than of a random one."""
    field, alone = np.ones((32, 32), bool), {}
    for kind in ("random", "clusters", "tracks"):
        pattern = parse_pattern(f"{kind}:0.05-0.2")
        assert pattern.is_symmetric and not pattern.is_fixed
        shares = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            assert len(pattern.draw(field, rng, level=0.5)) == int(0.1 * field.size)
            points = np.unravel_index(pattern.draw(field, rng, level=0.0), field.shape)
            steps = np.abs(np.subtract.outer(points[0], points[0])) + np.abs(
                np.subtract.outer(points[1], points[1]))
            shares.append((steps <= 2).sum(axis=1).mean() - 1)
        alone[kind] = np.mean(shares)
    assert alone["clusters"] > 2 * alone["random"] < alone["tracks"]


def test_tracks_run_in_all_directions_along_lines():
    spread = []
    for seed in range(60):
        points = parse_pattern("tracks:0.02").draw(np.ones((32, 32), bool),
                                                   np.random.default_rng(seed))
        places = np.stack(np.unravel_index(points, (32, 32)), axis=1).astype(float)
        spread.append(np.linalg.svd(places - places.mean(axis=0))[1:])
    straight = [sizes[1] < 3 for sizes, _ in spread]
    assert np.mean(straight) > 0.6  # 20 points: a whole line, or one and a piece of another
    angles = [np.arctan2(*axes[0]) % np.pi for (_, axes), is_one in zip(
        spread, straight, strict=True) if is_one]
    assert np.histogram(angles, bins=4, range=(0, np.pi))[0].min() > 2


@pytest.mark.parametrize("text", ["random:0.2", "random:0.9", "clusters:0.3", "tracks:0.9",
                                  "grid:3", "block:0.5", "lines:2"])
def test_gaps_are_never_observed_and_both_sides_keep_a_point(text):
    rng = np.random.default_rng(1)
    for seed in range(50):
        valid = np.zeros_like(FULL)
        valid.flat[rng.choice(valid.size, rng.integers(2, 9), replace=False)] = True
        observed = drawn(text, valid, seed)
        assert not (observed & ~valid).any()
        assert 1 <= observed.sum() < valid.sum()


def test_random_pattern_is_uniform():
    pattern = parse_pattern("random:0.25")
    rng = np.random.default_rng(0)
    draws = [pattern.draw(np.ones((4, 5), bool), rng) for _ in range(4000)]
    share = np.bincount(np.concatenate(draws), minlength=20) / 4000
    np.testing.assert_allclose(share, 0.25, atol=5 * (0.25 * 0.75 / 4000) ** 0.5)
