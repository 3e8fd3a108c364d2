"""Fixtures of all wings; functions that they share are in small.py."""

from pathlib import Path

import pytest

from small import write_ramps


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """60 pictures of 8 x 8, see `small.write_ramps`."""
    return write_ramps(tmp_path_factory.mktemp("data") / "small.npz")
