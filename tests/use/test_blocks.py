"""Hold-out by blocks: which lie in one, what it says of clusters, and intervals that count them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sparsefield import load
from sparsefield.errors import UserError
from sparsefield.gaussian import kernels
from sparsefield.use import holdout
from sparsefield.use.blocks import blocks_of, clustering
from sparsefield.use.grids import Frame, what_is_asked
from sparsefield.use.points import Measurements


def scattered(seed: int = 0, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(count, 2))


def clusters(seed: int = 0) -> np.ndarray:
    """8 of 15 places each."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform(0.1, 0.9, size=(8, 2)).repeat(15, axis=0)
    return middles + 0.03 * rng.normal(size=middles.shape)


def asked_of(coords: np.ndarray, **more):
    return what_is_asked(Measurements(coords, coords[:, :1]), resolution="32", **more)[1]


@pytest.mark.parametrize("coords, expected", [
    (np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2), None),
    (scattered(count=2000), None), (scattered(count=12), None), (clusters(), 0.5),
    (np.repeat(scattered(), 3, axis=0), None),     # repeats at one place are no cluster
    (np.arange(20.0)[:, None] * (1.0, 0.0), None),  # along a line
    (np.concatenate([np.arange(20.0), 100 + np.arange(20.0)])[:, None] * (1.0, 0.0), 0.66),
])
def test_clusters_are_told_by_the_ratio_of_clark_and_evans(coords, expected):
    frame = Frame.of(Measurements(coords, coords[:, :1]), (0, 1, 0, 1), "equal")
    ratio = clustering(frame, coords)
    assert ratio is expected or ratio == pytest.approx(expected, abs=0.1)


def test_every_measurement_is_hidden_once_with_its_whole_block():
    coords = clusters()
    given = Measurements(coords, np.arange(120.0)[:, None], noise=np.ones(120))
    blocks = blocks_of(asked_of(coords), coords, 0.2, seed=3, size="0.2")
    folds = holdout.by_blocks(given, blocks)
    assert len(folds) == 5 and blocks.side == pytest.approx(0.2)
    assert sorted(np.concatenate([fold.hidden.values[:, 0] for fold in folds])) == [*range(120)]
    for fold in folds:
        assert 12 <= len(fold.hidden.coords) <= 36 and len(fold.kept.noise) > 80
        hidden = set(blocks.number[fold.hidden.values[:, 0].astype(int)])
        assert not hidden & set(blocks.number[fold.kept.values[:, 0].astype(int)])
    for number in range(blocks.number.max() + 1):
        assert (np.ptp(coords[blocks.number == number], axis=0) <= 0.2).all()
    other = blocks_of(asked_of(coords), coords, 0.2, seed=4, size="0.2")
    assert (other.number == blocks.number).all() and (other.fold != blocks.fold).any()


def test_blocks_are_as_large_as_the_gaps_of_what_is_asked_for():
    coords = clusters()
    own = blocks_of(asked_of(coords), coords, 0.2, seed=0)
    assert own.spacings > 3 and own.hidden == pytest.approx(own.asked, rel=0.35)
    assert blocks_of(asked_of(coords), coords, 0.2, 0, "1s").hidden < own.asked / 3
    even = scattered()
    assert blocks_of(asked_of(even), even, 0.2, seed=0).spacings < 2
    near = asked_of(coords, reach=0.05)  # only places in the clusters are asked for
    assert blocks_of(near, coords, 0.2, seed=0).spacings < own.spacings


def test_gaps_are_as_large_as_they_are_where_most_places_are_measured():
    rows, columns = np.mgrid[:32, :32].reshape(2, -1)
    is_gap = (np.abs(rows - 16) < 8) & (np.abs(columns - 16) < 8)
    coords = np.stack([columns, rows], axis=1)[~is_gap] + 0.5
    asked = what_is_asked(Measurements(coords, coords[:, :1], shape=(32, 32)))[1]
    blocks = blocks_of(asked, coords, 0.2, seed=0)
    assert 2 < blocks.asked < 4 and blocks.hidden > 2  # of a gap of 15 x 15
    full = np.stack([columns, rows], axis=1) + 0.5  # as a stack whose gaps move
    asked = what_is_asked(Measurements(full, full[:, :1], shape=(32, 32)))[1]
    assert blocks_of(asked, full, 0.2, seed=0).spacings < 2


def test_sizes_on_the_globe_are_kilometres():
    coords = np.random.default_rng(0).uniform((0, 40), (20, 60), size=(200, 2))
    given, asked = what_is_asked(Measurements(coords, coords[:, :1]), lonlat=True)
    blocks = blocks_of(asked, given.coords, 0.2, 0, "300")
    south = given.coords[blocks.number == blocks.number[given.coords[:, 1].argmin()]]
    assert blocks.side == 300 and np.ptp(south[:, 1]) < 300 / 111
    assert 0.6 * (20 * 111 / 300) ** 2 * np.cos(np.radians(50)) < blocks.number.max() < 1.6 * 40


def test_hold_out_at_random_flatters_clusters_and_blocks_do_not():
    """Of a smooth field: the share of true values that lie in 90 % intervals."""
    covered = {"random": [], "blocks": [], "true": []}
    for seed in range(3):
        known, rng = clusters(seed), np.random.default_rng(seed)
        coords = np.concatenate([known, scattered(seed + 9, 300)])
        waves = kernels.features(kernels.Kernel(2.5, 0.2), torch.from_numpy(coords)).numpy()
        values = waves @ rng.normal(size=(waves.shape[1], 1))
        given = Measurements(known, values[:120])
        asked = what_is_asked(given, extent=(0, 1, 0, 1))[1]
        kriging = {"": holdout.by_model(load("none"), asked.frame, asked.extent)}
        hidden = Measurements(coords[120:], values[120:])
        for name, folds in {
            "random": holdout.by_points(given, 0.2, seed),
            "blocks": holdout.by_blocks(given, blocks_of(asked, known, 0.2, seed)),
            "true": [holdout.Fold(given, hidden, np.arange(300))],
        }.items():
            covered[name].append(holdout.compare_folds(kriging, folds)[0].covered)
    random, blocks, true = (np.mean(covered[name]) for name in ("random", "blocks", "true"))
    assert random > 0.85 and true < 0.8 and blocks < 0.75


def test_intervals_of_differences_count_groups_whole():
    """Of 12 groups of values that are alike as of 12 values, and of these Student's."""
    each = np.random.default_rng(0).normal(size=12)
    alone = holdout.mean_interval(each, np.arange(12))
    groups = np.arange(12).repeat(30)
    assert holdout.mean_interval(each.repeat(30), groups) == pytest.approx(alone)
    low, high = holdout.mean_interval(each.repeat(30), np.arange(360))
    assert 4 * (high - low) < alone[1] - alone[0]
    student = stats.ttest_1samp(each, 0).confidence_interval()
    assert alone == pytest.approx(tuple(student), abs=0.03)
    two = stats.ttest_1samp([1.0, 2.0], 0).confidence_interval()  # from -4.9 to 7.9
    assert holdout.mean_interval([1.0, 2.0], [0, 1]) == pytest.approx(tuple(two), abs=0.3)
    assert holdout.mean_interval(each, np.zeros(12)) == (-np.inf, np.inf)


def test_few_places_are_refused():
    coords = np.concatenate([np.zeros((3, 2)), np.ones((3, 2))])  # two places
    blocks = blocks_of(asked_of(coords), coords, 0.5, 0)
    with pytest.raises(UserError, match="1 place"):
        holdout.by_blocks(Measurements(coords, coords[:, :1]), blocks)
    coords = scattered(count=5)
    blocks = blocks_of(asked_of(coords), coords, 0.2, 0, "1e-9")
    assert len(holdout.by_blocks(Measurements(coords, coords[:, :1]), blocks)) == 5


def test_a_method_that_fails_in_one_fold_is_left_out(caplog):
    coords = scattered(count=20)
    given = Measurements(coords, coords[:, :1])
    folds = holdout.by_blocks(given, blocks_of(asked_of(coords), coords, 0.5, 0))
    answers = iter([holdout.constant, None])

    def moody(known, places):
        if (answer := next(answers)) is None:
            raise ValueError("not today")
        return answer(known, places)

    with caplog.at_level("INFO", logger="sparsefield"):
        scores = holdout.compare_folds({"moody": moody, "constant": holdout.constant}, folds)
    assert [score.name for score in scores] == ["constant"] and scores[0].squared.shape == (20, 1)
    assert "moody: no answer in some folds" in caplog.text


@pytest.mark.parametrize("share, size, words", [
    (0.6, None, "at most 0.5"), (float("nan"), None, "at most 0.5"), (0.2, "9", "in one block"),
    (0.2, "0", "such as 4s"), (0.2, "-1", "such as 4s"), (0.2, "wide", "such as 4s"),
    (0.2, "nan", "such as 4s"), (0.2, "1e999", "such as 4s"),
])
def test_blocks_that_are_none(share, size, words):
    coords = scattered()
    with pytest.raises(UserError, match=words):
        blocks_of(asked_of(coords), coords, share, 0, size)


def test_the_command(command):
    rows = np.column_stack([clusters(), np.sin(3 * clusters()[:, 0])])
    np.savetxt("a.csv", rows, delimiter=",", header="x,y,v", comments="")
    code, out, err = command("a.csv", "--holdout", "0.2", "--checkpoint", "none")
    assert code == 0 and "the measurements are clustered" in out, err
    code, out, err = command("a.csv", "--holdout", "0.2", "--holdout_by", "blocks", "--checkpoint",
                             "none")
    assert code == 0 and "120 of 120 measurements hidden in turn" in out, err
    assert "in 5 folds: hidden measurements are" in out and "clustered" not in out
    assert out.count("noise found") <= 2  # messages of the first fold alone
    for wrong in (["--holdout_by", "blocks"], ["--holdout", "0.2", "--block_size", "3"],
                  ["--holdout", "0.2", "--holdout_by", "blocks", "--block_size", "big"]):
        code, _, err = command("a.csv", *wrong)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
