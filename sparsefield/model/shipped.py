"""Where the weights are that come with the project."""

from __future__ import annotations

from pathlib import Path

# Path in a checkout: folder of the installed package.
SHIPPED = {
    "checkpoints_mamba/mamba_best.pth": "weights_v1",
    "checkpoints_mamba_v2/mamba_v2_best.pth": "weights_v2",
}


def find_shipped(path: str | Path) -> Path:
    """A path as given, or, if nothing is there, where what it names is.

    A .pth may be there as .safetensors alone, as the shipped weights are. Their paths name them in
    every folder, and in an installed package, so that the defaults of the commands work there.
    """
    path = Path(path)
    places = [path]
    if folder := SHIPPED.get(path.as_posix()):
        package = Path(__file__).parents[1]
        places += [package.parent / path, package / folder / path.name]
    for there in places:
        for file in (there, there.with_suffix(".safetensors")):
            if path.suffix == ".pth" and file.exists():
                return file
    return path
