"""What the tests of use share: models without training, and the command in a folder of its own."""

from __future__ import annotations

import logging

import pytest

import reconstruct as script
from small import write_untrained
from sparsefield import cli

CALIBRATION = {"spread": 1.2, "raw": 0.8, "calibrated": 0.9, "pictures": 4}


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    """Of models for colour pictures, for one channel in degC, and for the two of a wind."""
    folder = tmp_path_factory.mktemp("models")
    return {"colour": write_untrained(folder / "colour.pth", calibration=CALIBRATION),
            "sea": write_untrained(folder / "sea.pth", 1, (-1.0, 1.0)),
            "wind": write_untrained(folder / "wind.pth", 2, (-10.0, 10.0))}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(arguments) runs reconstruct.py in tmp_path, with few samples and cells unless they
    are given, and returns (code, out, err)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        given = [str(argument) for argument in arguments]
        for flag, value in (("--out", "out"), ("--num_samples", "2"), ("--num_steps", "1"),
                            ("--resolution", "8")):
            is_set = flag in given or (
                flag == "--resolution" and {"--grid", "--mask", "--observe"} & set(given))
            given += [] if is_set else [flag, value]
        code = cli.run(lambda: script.main(given))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(autouse=True)
def heard():
    """Messages reach caplog again after a command took the log for itself."""
    log = logging.getLogger("sparsefield")
    before = log.handlers[:], log.propagate
    log.propagate = True
    yield
    log.handlers[:], log.propagate = before
