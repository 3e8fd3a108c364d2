"""Where the bundled weights are."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sparsefield.errors import UserError

# In place of a checkpoint's path: the V2 of pictures that is part of the project, and its name in
# earlier versions, and a V2 that has learnt many kinds of field, for one quantity of any unit.
BUNDLED, FIELDS = "bundled", "fields"
V1, V2 = "checkpoints_mamba/mamba_best.pth", "checkpoints_mamba_v2/mamba_v2_best.pth"
V1_WITH_START = "checkpoints_mamba/mamba_with_v2_start.pth"  # and V2's grid U-Nets
OF_FIELDS = "checkpoints_fields/fields.pth"
NAMES = {BUNDLED: V2, "shipped": V2, FIELDS: OF_FIELDS}
# Defaults of the commands: their folders in an installed package.
DEFAULTS = {V1: "weights_v1", V1_WITH_START: "weights_v1", V2: "weights_v2",
            OF_FIELDS: "weights_fields"}
PACKAGE = Path(__file__).parents[1]


def find_bundled(path: str | Path) -> Path:
    """A path as given, or, if nothing is there, where what it names is.

    A .pth may be there as .safetensors alone, as the bundled weights are. Their paths name them in
    every folder, and in an installed package, so that the defaults of the commands work there. Once
    a training has put its own weights there, the path names those, and "bundled" still these.

    Raises:
        UserError: the bundled weights are asked for by that word and are not there.
    """
    if own := NAMES.get(str(path)):
        return _bundled(own)
    path = Path(path)
    places = [path]
    if folder := DEFAULTS.get(path.as_posix()):
        places += [PACKAGE.parent / path, PACKAGE / folder / path.name]
    for there in places:
        for file in (there, there.with_suffix(".safetensors")):
            if path.suffix == ".pth" and file.exists():
                return file
    return path


def _bundled(path: str) -> Path:
    """Where bundled weights are: a training in their folder moves them."""
    own = (PACKAGE.parent / path).with_suffix(".safetensors")
    for there in (own, *own.parent.glob(f"old_*/{own.name}"), PACKAGE / DEFAULTS[path] / own.name):
        if there.exists() and _is_ours(there):
            return there
    raise UserError(f"the bundled weights are not at {own}: restore them there, give "
                    "another checkpoint, or none for no training")


def _is_ours(path: Path) -> bool:
    """Whether a .safetensors file is no training's of the user; one that is damaged may be."""
    try:
        with safe_open(path, "numpy") as file:
            described = json.loads((file.metadata() or {}).get("sparsefield", "{}"))
    except (SafetensorError, OSError, ValueError):
        return True
    return bool(described.get("shipped"))
