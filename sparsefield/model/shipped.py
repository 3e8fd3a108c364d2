"""Where the weights are that come with the project."""

from __future__ import annotations

from pathlib import Path

# Path in a checkout: folder of the installed package.
SHIPPED = {
    "checkpoints_mamba/mamba_best.pth": "weights_v1",
    "checkpoints_mamba_v2/mamba_v2_best.pth": "weights_v2",
}


def find_shipped(path: str | Path) -> Path:
    """A path as given; if nothing is there and it is that of shipped weights, where these are.

    So the defaults of the commands work from every folder, and in an installed package.
    """
    path = Path(path)
    folder = SHIPPED.get(path.as_posix())
    if folder is None or path.exists():
        return path
    package = Path(__file__).parents[1]
    for there in (package.parent / path, package / folder / path.name):
        if there.exists():
            return there
    return path
