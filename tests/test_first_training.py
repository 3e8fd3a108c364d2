"""The commands of docs/first_training.md, as they stand there, on small data and with few steps."""

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray
from PIL import Image

from sparsefield import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/first_training.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.M | re.S)
LINES = [shlex.split(line) for block in BLOCKS
         for line in block.replace("\\\n", " ").splitlines() if not line.startswith(". ")]
TINY = dict(
    D_MODEL=16, NUM_LAYERS=2, HEADS=2, PERCEIVER_HEADS=2, NEIGHBOURS=4, UNET_WIDTH=8,
    FLOW_UNET_WIDTH=4, QUERIES_MIN=8, QUERIES_MAX=16, EVAL_PICTURES=2, DEVICE="cpu",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page supposes to be there."""
    there = tmp_path_factory.mktemp("first")
    rng = np.random.default_rng(0)
    (there / "pictures").mkdir()
    y, x = np.mgrid[:40, :40] / 40

    def waves(count: int) -> np.ndarray:
        a, b, c = rng.uniform(1, 6, (3, count, 1, 1))
        return np.sin(a * x + b * y + c)

    for k in range(60):
        pixels = (127 + 120 * np.moveaxis(waves(3), 0, 2)).astype(np.uint8)
        Image.fromarray(pixels).save(there / f"pictures/{k:02d}.png")
    Image.fromarray(pixels).save(there / "new.png")
    Image.fromarray((rng.uniform(size=(40, 40)) < 0.2).astype(np.uint8) * 255).save(
        there / "mask.png")
    np.save(there / "waves.npy", waves(60)[:, :24, :24])
    sea = xarray.Dataset(
        {"sst": (("time", "lat", "lon"), 15 + 5 * waves(48).astype(np.float32), {"units": "degC"})},
        {"time": ("time", 30 * np.arange(48), {"units": "days since 2001-01-01"}),
         "lat": ("lat", np.linspace(40, 44, 40), {"units": "degrees_north"}),
         "lon": ("lon", np.linspace(5, 9, 40), {"units": "degrees_east"})})
    sea.to_netcdf(there / "sea.nc", engine="scipy")
    places = rng.uniform([5, 40], [9, 44], (60, 2))
    pd.DataFrame({"lon": places[:, 0], "lat": places[:, 1],
                  "sst": 15 + 5 * np.sin(places.sum(axis=1))}).to_csv(there / "buoys.csv")
    return there


@pytest.mark.parametrize("line", LINES)
def test_commands_have_settings_that_there_are(line):
    given = dict(word.split("=", 1) for word in line if re.match(r"[A-Z_0-9]+=", word))
    script, *flags = [word for word in line if word != "python"][len(given):]
    if not script.endswith(".sh"):
        module = importlib.import_module(script.removesuffix(".py"))
        cli.parse(module.Config, flags, "", switches=script == "reconstruct.py")
        return
    module = importlib.import_module(script.removeprefix("./run_").removesuffix("_training.sh"
                                     ).replace("mamba", "train_mamba", 1))
    names = {field.name.upper() for field in dataclasses.fields(module.Config)}
    assert given.keys() <= names | {"QUICK"}


@pytest.mark.long
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_the_commands_of_the_page_work(folder, block):
    commands = re.sub(r"EPOCHS=\d+", "EPOCHS=3", BLOCKS[block])
    commands = commands.replace(". .venv/bin/activate", "").replace("./run", f"{ROOT}/run")
    commands = re.sub(r"python (\w+\.py)", rf"{sys.executable} {ROOT}/\1", commands)
    commands = commands.replace("--num_samples 64", "--num_samples 2 --ensemble 2")
    commands = commands.replace("--samplers", "--num_samples 2 --ensemble 2 --samplers")
    tiny = {name: str(value) for name, value in TINY.items()} | {"LOG": str(folder / "a.log")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=folder, text=True, capture_output=True,
        env={**os.environ, **tiny, "PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_the_page_leads_to_what_it_says(folder):
    """After the commands; the page is about three kinds of data."""
    assert len(BLOCKS) == 3
    table = (folder / "runs/table/comparison_results.txt").read_text()
    assert "dB" in table.splitlines()[2] and "without training" in table.splitlines()[3]
    for file in ("runs/v2/training_loss.png", "runs/new/reconstruction.png",
                 "runs/sea_table/metrics_comparison.txt", "runs/sea_field/field.csv",
                 "runs/waves_table/metrics_comparison.txt"):
        assert (folder / file).exists(), file
    assert list((folder / "runs/v2").glob("pictures_*.png"))
