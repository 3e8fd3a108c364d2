"""What a person sees of long work where no terminal shows a bar."""

import re

import numpy as np
import pytest
from PIL import Image

import reconstruct
from small import settings, train
from sparsefield import progress


@pytest.fixture(autouse=True)
def at_every_part(monkeypatch):
    """Lines are due at once, and not only after half a minute."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e-9)


def test_a_line_says_how_much_is_done_and_the_time_left(capsys):
    with progress.bar("walking", 4, "step") as shown:
        for _ in range(3):
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"walking: {k} of 4 steps, 00:00 gone, 00:00 left" for k in (1, 2, 3)]


def test_nothing_is_said_of_what_is_short_or_hidden(capsys, monkeypatch):
    with progress.bar("walking", 4, is_shown=False) as shown:
        shown.update()
    monkeypatch.setattr(progress, "LINE_SECONDS", 30)
    assert list(progress.over([1, 2, 3], "walking", "step")) == [1, 2, 3]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("checkpoint, phases", [("none", ["kriging"]),
                                                ("bundled", ["kriging", "network"])])
def test_a_reconstruction_counts_to_its_end(tmp_path, capsys, checkpoint, phases):
    """Every phase says from its first part on how many there are."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    reconstruct.main([str(tmp_path / "a.png"), "--observe", "random:0.2", "--num_samples", "2",
                      "--checkpoint", checkpoint, "--out", str(tmp_path / "out")])
    lines = [re.match(r"(.+): (\d+) of (\d+) parts, .* left$", line)
             for line in capsys.readouterr().err.splitlines() if " parts, " in line]
    assert None not in lines
    assert list(dict.fromkeys(line[1] for line in lines)) == phases
    for phase in phases:
        last = [line for line in lines if line[1] == phase][-1]
        assert last[2] == last[3]


def test_trainings_say_how_far_reading_baselines_and_calibration_are(tmp_path, capsys):
    for k in range(20):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    train(settings(tmp_path, tmp_path / "run", image_size=8, epochs=1))
    said = capsys.readouterr().err
    for words in (f"reading {tmp_path}: 20 of 20 files", "kriging, fitted, 8 rows: 1 of",
                  "calibration, 8 rows: 40 of 40 pictures"):
        assert words in said
