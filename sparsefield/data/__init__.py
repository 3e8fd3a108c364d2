"""Data sets, observation patterns, training batches and the frozen evaluation cases."""

from __future__ import annotations

from pathlib import Path

from sparsefield.data.arrays import open_array
from sparsefield.data.base import Data, Split
from sparsefield.data.batches import Batch, TrainingBatches
from sparsefield.data.patterns import Pattern, parse_pattern
from sparsefield.data.photos import open_photos
from sparsefield.data.protocol import FrozenCase, frozen_case
from sparsefield.data.scale import Scale
from sparsefield.errors import UserError

__all__ = [
    "Batch", "Data", "FrozenCase", "Pattern", "Scale", "Split", "TrainingBatches",
    "frozen_case", "open_data", "parse_pattern",
]


def open_data(
    spec: str, *, image_size: int | None = None, val: str | None = None, test: str | None = None,
    seed: int = 0,
) -> Data:
    """The data set that `--data` names: `photos` or an .npz file.

    Args:
        spec: name or path.
        image_size: side of the fields; arrays come at their own size. Default 32 for photos.
        val, test: files to validate and test on instead of parts of `spec`.
        seed: which frozen crops of the photographs; the same for all runs to be compared.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    if spec == "photos":
        return open_photos(image_size or 32, seed)
    path = Path(spec)
    if not path.exists():
        raise UserError(f"--data {spec}: no such file; `photos` needs none")
    return open_array(path, val=Path(val) if val else None, test=Path(test) if test else None)
