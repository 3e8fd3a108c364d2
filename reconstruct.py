"""Your own measurements in, the whole field with its uncertainty out.

    python reconstruct.py photo.png --observe random:0.2             # try: hide 80 % of a picture
    python reconstruct.py photo.png --mask mask.png                  # white pixels are known
    python reconstruct.py sensors.csv --resolution 64                # rows of x,y,value
    python reconstruct.py sensors.csv --extent 0 10 50 60 --noise_sd 0.2
    cat sensors.csv | python reconstruct.py - --out sea              # the same from a pipe
    python reconstruct.py --help                                     # every setting, explained

INPUT is a picture (known pixels by --mask, --observe, or those that are not transparent), a .csv
or .parquet of x, y and value columns, an .npz with `coords` (M, 2) and `values` (M, C), or - for
CSV on standard input. Written into --out, in the units of the input: field.npz (coords, mean, sd,
samples), mean.png, sample_1.png ..., reconstruction.png with everything side by side, and for
lists of points field.nc where xarray is installed.
"""

from __future__ import annotations

import io
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from sparsefield import cli, load, plots
from sparsefield.calibration import SETTINGS
from sparsefield.checkpoint import write_atomically
from sparsefield.errors import UserError
from sparsefield.use.measurements import read_measurements
from sparsefield.use.points import LARGEST, Measurements
from sparsefield.use.reconstruction import Field, Reconstructor, grid_shape


@dataclass
class Config:
    """Settings of a reconstruction."""

    input: Annotated[str, tyro.conf.Positional]
    """A picture, .csv, .parquet, .npz, or - for CSV on standard input."""
    checkpoint: str = "checkpoints_mamba_v2/mamba_v2_best.pth"
    """Trained model, V1 or V2."""
    resolution: str = "auto"
    """Cells of the longer side, or ROWSxCOLUMNS; auto: a picture's own size, 64 for points."""
    num_samples: int = 16
    """Samples of the posterior; their spread is the uncertainty."""
    mask: str | None = None
    """Of a picture: which pixels are known (white)."""
    observe: str | None = None
    """Of a picture: try with random:0.2, grid:4, block:0.3 or lines:8 of it."""
    extent: tuple[float, float, float, float] | None = None
    """Of points: x0 x1 y0 y1 of the field; default the smallest rectangle around them."""
    noise_sd: float = 0.0
    """Standard deviation of the noise in the values, in their units; 0 keeps them exactly."""
    value_range: tuple[float, ...] | None = None
    """Lowest and highest value to expect, where the units are not those of the training data."""
    units: str | None = None
    """For colour bars and NetCDF, where it differs from the training data's."""
    num_steps: int = SETTINGS["num_steps"]
    """Steps of Heun's rule, two evaluations each; the calibration was fitted at the default."""
    seed: int = 0
    """Of noise, and of --observe."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    out: str = "reconstruction"
    """Folder for what is written."""


def parse_resolution(text: str, given: Measurements) -> int | tuple[int, int]:
    """The argument `resolution` of `Reconstructor.reconstruct`."""
    if text == "auto":
        if not given.is_picture:
            return 64
        factor = max(1, -(-max(given.shape) // LARGEST))
        if factor > 1:
            cli.log.info("the picture is %d x %d: the field has every %d-th of its rows and columns",
                         *given.shape[::-1], factor)
        return tuple(max(1, side // factor) for side in given.shape)
    if match := re.fullmatch(r"(\d+)[xX](\d+)", text):
        return int(match[1]), int(match[2])
    if text.isdecimal():
        return int(text)
    raise UserError(f"--resolution {text}: give a number such as 64, or ROWSxCOLUMNS as 48x96")


def warn_of_oblong_cells(shape: tuple[int, int], given: Measurements) -> None:
    """Say so where the grid's aspect ratio is not that of the extent."""
    x0, x1, y0, y1 = given.extent
    height, width = (y1 - y0) / shape[0], (x1 - x0) / shape[1]
    if not 0.95 < width / height < 1.05:
        square = grid_shape(max(shape), given.extent)
        cli.log.info("a grid of %dx%d has cells of %.4g (x) by %.4g (y); %dx%d would be square",
                     *shape, width, height, *square)


def reconstruct(config: Config) -> None:
    """The command. Raises UserError for input that cannot be used."""
    cli.log_to()
    model = load(config.checkpoint, config.device)
    given = read_measurements(
        config.input, channels=model.channels, mask=config.mask, observe=config.observe,
        extent=config.extent, seed=config.seed,
    )
    resolution = parse_resolution(config.resolution, given)
    warn_of_oblong_cells(grid_shape(resolution, given.extent), given)
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose another folder") from None
    started = time.monotonic()
    with tqdm(desc="reconstructing", unit="call", disable=None, leave=False) as bar:
        def progress(calls: int, total: int) -> None:
            bar.total = total
            bar.update(calls - bar.n)

        field = model.reconstruct(
            given.coords, given.values, resolution, extent=given.extent,
            num_samples=config.num_samples, noise_sd=config.noise_sd,
            value_range=config.value_range, num_steps=config.num_steps, seed=config.seed,
            progress=progress,
        )
    unit = config.units or (None if given.is_picture else model.scale.units)
    try:
        write(out, field, given, unit)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose another folder") from None
    say(config, model, given, field, time.monotonic() - started)


def say(
    config: Config, model: Reconstructor, given: Measurements, field: Field, seconds: float
) -> None:
    """What was done, and how far to trust the uncertainty."""
    rows, columns, channels = field.mean.shape
    if channels == 1 and model.channels == 3:
        cli.log.info("one channel, read as shades of grey by a model of colour pictures")
    fitted = model.checkpoint.get("calibration")
    if fitted:
        cli.log.info("uncertainty: on %d validation pictures 90 %% intervals cover %.1f %% as "
                     "sampled, %.1f %% with the spread times %.2f, as here", fitted["pictures"],
                     100 * fitted["raw"], 100 * fitted["calibrated"], fitted["spread"])
    else:
        cli.log.info("uncertainty: not calibrated (the training has not come to its end)")
    cli.log.info(
        "%s: %s points -> %dx%d, mean %.4g, typical sd %.2g, %d samples, %.1f s; written to %s",
        config.input, f"{len(given.coords):,}", rows, columns, field.mean.mean(),
        np.sqrt((field.sd**2).mean()), len(field.samples), seconds, config.out,
    )


# --- files ----------------------------------------------------------------------------------------


def write(out: Path, field: Field, given: Measurements, unit: str | None) -> None:
    """Everything that a reconstruction leaves. Raises OSError."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, coords=field.coords, mean=field.mean, sd=field.sd, samples=field.samples
    )
    write_atomically(out / "field.npz", buffer.getvalue())
    low, high = limits(field, given)
    for old in out.glob("sample_*.png"):
        old.unlink()
    write_picture(out / "mean.png", field.mean, given, low, high)
    for k, sample in enumerate(field.samples):
        write_picture(out / f"sample_{k + 1}.png", sample, given, low, high)
    plots.reconstruction(field, given, (low, high), unit, out / "reconstruction.png")
    if not given.is_picture:
        write_netcdf(out / "field.nc", field, given, unit)


def limits(field: Field, given: Measurements) -> tuple[float, float]:
    """What is drawn darkest and brightest: 0 and 255 of pictures, else what was measured."""
    if given.is_picture:
        return 0.0, 255.0
    low, high = float(given.values[:, 0].min()), float(given.values[:, 0].max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def write_picture(
    path: Path, values: np.ndarray, given: Measurements, low: float, high: float
) -> None:
    """A field cell by cell, RGB or the first channel in viridis (grey for pictures); y up."""
    values = values if given.downward else values[::-1]
    unit = np.clip((values - low) / (high - low), 0, 1)
    if values.shape[2] == 3 and given.is_picture:
        pixels = unit
    elif given.is_picture:
        pixels = unit[..., 0]
    else:
        pixels = plots.plt.get_cmap("viridis")(unit[..., 0])[..., :3]
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def write_netcdf(path: Path, field: Field, given: Measurements, unit: str | None) -> None:
    """field.nc with mean, sd and samples on named axes; nothing without xarray."""
    try:
        import xarray
    except ImportError:
        cli.log.info("no field.nc: it needs xarray (pip install xarray)")
        return
    names = list(given.names) or [f"value {c + 1}" for c in range(field.mean.shape[2])]
    dims = ("y", "x", "channel")
    data = xarray.Dataset(
        {"mean": (dims, field.mean), "sd": (dims, field.sd),
         "samples": (("sample", *dims), field.samples)},
        {"x": field.coords[0, :, 0], "y": field.coords[:, 0, 1], "channel": names},
    )
    if unit:
        for variable in data.data_vars.values():
            variable.attrs["units"] = unit
    write_atomically(path, bytes(data.to_netcdf()))


def main(arguments: list[str] | None = None) -> None:
    reconstruct(cli.parse(Config, arguments, __doc__))


if __name__ == "__main__":
    sys.exit(cli.run(main))
