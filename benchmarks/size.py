"""How large the project is, and how much of it a training or a reconstruction runs.

    python benchmarks/size.py
    python benchmarks/size.py --root /tmp/before     # another checkout, measured alike

Lines count blank ones and comments. Functions are those of the package and its commands that ran at
least once, comprehensions not counted; their lines are those of their definitions. A step runs what
a training of twice as many epochs calls more often, so nothing of start, validation or end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import numpy as np

from common import table

HERE = Path(__file__).resolve().parents[1]
COMMANDS = ("train_mamba_v2", "train_mamba", "eval_v1_vs_v2", "eval_sde_multiscale", "reconstruct")
STEPS = 27  # in an epoch of the data below
TINY = ("--d_model 16 --num_layers 2 --perceiver_iterations 1 --perceiver_heads 2 --neighbours 4 "
        "--batch_size 2 --queries_min 8 --queries_max 16 --eval_pictures 2 --eval_every 2 "
        "--save_every 2 --visualize_every 2 --warmup 2 --device cpu")


# --- what lies there ------------------------------------------------------------------------------


def lines_of(paths: list[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def files(root: Path) -> list[list[str]]:
    """A row for each wing of the package, and for what is beside it."""
    package = root / "sparsefield"
    groups = {f"sparsefield/{wing.name}": sorted(wing.rglob("*.py"))
              for wing in sorted(package.iterdir()) if (wing / "__init__.py").exists()}
    groups["sparsefield/*.py"] = sorted(package.glob("*.py"))
    groups["package"] = sorted(package.rglob("*.py"))
    groups["commands"] = [root / f"{name}.py" for name in COMMANDS]
    groups["tests"] = sorted((root / "tests").rglob("*.py"))
    groups["benchmarks"] = sorted((root / "benchmarks").glob("*.*y"))
    groups["runners and scripts"] = [*root.glob("*.sh"), *(root / "scripts").glob("*.*")]
    rows = [[name, str(len(found)), f"{lines_of(found):,}"] for name, found in groups.items()]
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    words = sum(len(page.read_text().split()) for page in pages)
    return [*rows, ["README and docs", str(len(pages)), f"{words:,} words"]]


# --- what runs ------------------------------------------------------------------------------------


def calls(run: Callable[[], object], root: Path) -> Counter[CodeType]:
    """How often each function of the checkout is called."""
    found: Counter[CodeType] = Counter()
    ours = (str(root / "sparsefield"), *(str(root / f"{name}.py") for name in COMMANDS))

    def note(frame, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            found[frame.f_code] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Counter({code: count for code, count in found.items() if is_function(code)})


def is_function(code: CodeType) -> bool:
    """Neither a module nor a class body (not optimised), nor a comprehension."""
    return bool(code.co_flags & 1) and code.co_name not in (
        "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<lambda>")


def extent(codes: list[CodeType]) -> list[int]:
    """Numbers of functions, files and lines."""
    lines = {(code.co_filename, line) for code in codes
             for line in range(code.co_firstlineno, max(n for *_, n in code.co_lines() if n) + 1)}
    return [len(codes), len({code.co_filename for code in codes}), len(lines)]


def training(folder: Path, epochs: int, root: Path) -> Counter[CodeType]:
    main = importlib.import_module("train_mamba_v2").main
    data = folder / "data.npz"
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8))
    return calls(lambda: main([*TINY.split(), "--data", str(data), "--epochs", str(epochs),
                               "--save_dir", str(folder / str(epochs))]), root)


def reconstruction(folder: Path, root: Path) -> Counter[CodeType]:
    from PIL import Image
    from skimage.data import chelsea

    Image.fromarray(chelsea()).resize((48, 32)).save(folder / "photo.png")
    sys.argv = ["reconstruct.py", str(folder / "photo.png"), "--observe", "random:0.2",
                "--out", str(folder / "out")]
    return calls(importlib.import_module("reconstruct").main, root)


def measure(root: Path) -> dict[str, list[int]]:
    """Called in a process of its own, whose imports are those of the checkout."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, long = training(folder, 2, root), training(folder, 4, root)
        step = [code for code in long if long[code] - short[code] >= STEPS // 3]
        return {"a training step, with its batch": extent(step),
                "a tiny training": extent(list(short)),
                "reconstruct.py photo.png --observe random:0.2":
                    extent(list(reconstruction(folder, root)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=HERE, help="a checkout")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    root = given.root.resolve()
    if given.out:
        sys.path.insert(0, str(root))
        given.out.write_text(json.dumps(measure(root)))
        return
    table(["part", "files", "lines"], files(root))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "runs.json")
        subprocess.run([sys.executable, __file__, "--root", str(root), "--out", str(out)],
                       check=True, stdout=subprocess.DEVNULL, cwd=root,
                       env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = json.loads(out.read_text())
    table(["what runs", "functions", "files", "lines"],
          [[name, *(f"{count:,}" for count in counts)] for name, counts in found.items()])


if __name__ == "__main__":
    main()
