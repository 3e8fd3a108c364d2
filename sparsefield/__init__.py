"""Whole fields from few measurements: `from sparsefield import load`."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "2.0.0"

if TYPE_CHECKING:
    from sparsefield.use.predict import Reconstructor


def load(path: str, device: str = "auto") -> Reconstructor:
    """A trained model, ready to reconstruct fields; see `Reconstructor.reconstruct`.

    Args:
        path: checkpoint, .pth or .safetensors; "bundled" for the V2 of this project, which has seen
            photographs, "fields" for that of many kinds of field; "none" for kriging alone,
            without training.
        device: auto, cpu, cuda, cuda:1 or mps.
    Raises:
        sparsefield.errors.UserError: the file is missing, damaged or no checkpoint.
    """
    from sparsefield.use.predict import Reconstructor

    return Reconstructor.load(path, device)
