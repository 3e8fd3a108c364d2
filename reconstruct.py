"""Your own measurements in, the whole field with its uncertainty out.

    python reconstruct.py photo.png --observe random:0.2             # try: hide 80 % of a picture
    python reconstruct.py photo.png --mask mask.png                  # white pixels are known
    python reconstruct.py sensors.csv --resolution 64                # rows of x,y,value
    python reconstruct.py sensors.csv --x east --y north --value salinity --missing -9999
    python reconstruct.py sensors.csv --extent 0 10 50 60 --noise_sd 0.2
    cat sensors.csv | python reconstruct.py - --out sea              # the same from a pipe
    python reconstruct.py --help                                     # every setting, explained

INPUT is a picture (8 or 16 bits, floats, or .npy; known pixels by --mask, --observe, or those that
are neither transparent nor NaN), a .csv or .parquet of x, y and value columns (which became which
is printed), an .npz with `coords` (M, 2) and `values` (M, C), or - for CSV on standard input. Written
into --out, in the units of the input: field.npz (coords, mean, sd, samples), mean.png, sample_1.png
..., reconstruction.png with everything side by side, and for lists of points field.nc where xarray
is installed. Files there that this command did not write are never replaced.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import io
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from sparsefield import cli, load
from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import LEVEL, SETTINGS, describe
from sparsefield.evaluate.uncertainty import interval_name, largest_coverage
from sparsefield.evaluate.outputs import OutputFolder
from sparsefield.use import plots
from sparsefield.use.columns import are_colours
from sparsefield.use.grids import grid_shape, scales
from sparsefield.use.measurements import read_measurements
from sparsefield.use.points import LARGEST, Measurements
from sparsefield.use.reconstruction import MOST_SAMPLES, Field, Reconstructor
from sparsefield.use.scales import is_of_pictures


@dataclass
class Config:
    """Settings of a reconstruction."""

    input: Annotated[str, tyro.conf.Positional]
    """A picture, .csv, .parquet, .npz, or - for CSV on standard input."""
    checkpoint: str = "checkpoints_mamba_v2/mamba_v2_best.pth"
    """Trained model, V1 or V2; none: the closed form alone (kriging fitted to the measurements), for
    any values, without training."""
    resolution: str = "auto"
    """Cells of the longer side, or ROWSxCOLUMNS; auto: a picture's own size, 64 for points."""
    num_samples: int = 16
    """Samples of the posterior; their spread is the uncertainty."""
    mask: str | None = None
    """Of a picture: which pixels are known (white, and not transparent)."""
    observe: str | None = None
    """Of a picture: try with random:0.2, grid:4, block:0.3 or lines:8 of it."""
    extent: tuple[float, float, float, float] | None = None
    """Of points: x0 x1 y0 y1 of the field; default the smallest rectangle around them."""
    x: str | None = None
    """Of a table: the column of x, by name or number from 1; default by the usual names."""
    y: str | None = None
    """Of a table: the column of y."""
    value: tuple[str, ...] | None = None
    """Of a table: the column of the values, or several; default all others."""
    missing: tuple[str, ...] | None = None
    """Values that mean: not measured, such as -9999; none takes all numbers as they are."""
    aspect: Literal["auto", "equal", "free"] = "auto"
    """equal: x and y have one scale; free: each its own, as for distance and depth; auto: free
    where their spans differ by more than 10 times."""
    noise_sd: float = 0.0
    """Standard deviation of the noise in the values, in their units; 0 keeps them exactly."""
    value_range: tuple[float, ...] | None = None
    """Lowest and highest value to expect, where the units are not those of the training data; for
    all channels, or two numbers for each."""
    units: str | None = None
    """For colour bars and NetCDF, where it differs from the training data's."""
    num_steps: int = SETTINGS["num_steps"]
    """Steps of Heun's rule, two evaluations each; the calibration was fitted at the default."""
    seed: int = 0
    """Of noise, and of --observe."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    out: str = "reconstruction"
    """Folder for what is written; other files in it are left alone."""


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
    if match := re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text):
        return int(match[1]), int(match[2])
    if re.fullmatch(r"\d{1,6}", text):
        return int(text)
    raise UserError(f"--resolution {text}: give a number such as 64, or ROWSxCOLUMNS as 48x96")


def warn_of_oblong_cells(
    shape: tuple[int, int], extent: Sequence[float], scaled_by: tuple[float, float]
) -> None:
    """Say so where cells are not square in the units that the model sees."""
    x0, x1, y0, y1 = extent
    width, height = (x1 - x0) / shape[1], (y1 - y0) / shape[0]
    square = grid_shape(max(shape), extent, scaled_by)
    if not 0.95 < (width / scaled_by[0]) / (height / scaled_by[1]) < 1.05 and square != shape:
        cli.log.info("a grid of %dx%d has cells of %.4g (x) by %.4g (y); %dx%d would be square",
                     *shape, width, height, *square)


def refuse_nothing_to_do(config: Config, given: Measurements, shape: tuple[int, int]) -> None:
    """Raises UserError where every cell that is asked for was measured exactly."""
    if given.shape == shape and len(given.coords) == shape[0] * shape[1] and not config.noise_sd:
        raise UserError(f"{config.mask or config.input}: every pixel is known, so nothing is to be "
                        "reconstructed; make unknown pixels black in the mask, or ask for more "
                        "with --resolution")


def output_names(num_samples: int, is_picture: bool) -> list[str]:
    """What a reconstruction leaves."""
    names = ["field.npz", "mean.png", "reconstruction.png",
             *(f"sample_{k + 1}.png" for k in range(num_samples))]
    return names if is_picture else [*names, "field.nc"]


def reconstruct(config: Config) -> None:
    """The command. Raises UserError for input that cannot be used."""
    cli.log_to()
    model = load(config.checkpoint, config.device)
    given = read_measurements(
        config.input, channels=model.channels or 3, mask=config.mask, observe=config.observe,
        extent=config.extent, x=config.x, y=config.y, value=config.value, missing=config.missing,
        seed=config.seed,
    )
    resolution = parse_resolution(config.resolution, given)
    aspect = "equal" if given.is_picture and config.aspect == "auto" else config.aspect
    scaled_by = scales(given.extent, aspect)
    shape = grid_shape(resolution, given.extent, scaled_by)
    warn_of_oblong_cells(shape, given.extent, scaled_by)
    refuse_nothing_to_do(config, given, shape)
    out = OutputFolder(config.out, "--out", [config.input, config.mask, config.observe,
                                             config.checkpoint])
    out.require(output_names(min(config.num_samples, MOST_SAMPLES), given.is_picture))
    started = time.monotonic()
    with tqdm(desc="reconstructing", unit="call", disable=None, leave=False) as bar:
        def progress(calls: int, total: int) -> None:
            bar.total = total
            bar.update(calls - bar.n)

        field = model.reconstruct(
            given.coords, given.values, shape, extent=given.extent,
            num_samples=config.num_samples, noise_sd=config.noise_sd,
            value_range=config.value_range or default_range(model, given),
            num_steps=config.num_steps, seed=config.seed,
            aspect="free" if scaled_by[0] != scaled_by[1] else "equal",
            missing=[], separately=are_other_things(given) or (
                model.scale is None and not given.is_picture), progress=progress,
        )
    unit = config.units or (None if given.is_picture or model.scale is None else model.scale.units)
    files = contents(field, given, unit)
    out.require(files)
    out.remove_old(r"sample_\d+\.png|field\.nc", files)
    out.write(files)
    say(config, model, given, field, time.monotonic() - started)


def are_other_things(given: Measurements) -> bool:
    """Whether there are several channels whose names say that they are no colours."""
    return len(given.names) > 1 and not given.is_picture and not are_colours(given.names) and (
        not all(name.startswith("column ") for name in given.names))


def default_range(model: Reconstructor, given: Measurements) -> tuple[float, float] | None:
    """Black and white of a picture in colour, where they are not 0 and 255."""
    if model.scale is None and given.is_picture:
        return given.value_range or (0.0, 255.0)
    if given.values.shape[1] == model.channels == 3 and given.value_range != (0.0, 255.0):
        return given.value_range
    return None


def say(
    config: Config, model: Reconstructor, given: Measurements, field: Field, seconds: float
) -> None:
    """What was done, and how far to trust the uncertainty."""
    rows, columns, channels = field.mean.shape
    if field.variogram:
        cli.log.info("closed form fitted to the measurements: %s", field.variogram)
    if model.scale is None or given.is_picture or not is_of_pictures(model.scale):
        pass
    elif channels == 1 and model.channels == 3:
        cli.log.info("one channel, read as shades of grey by a model of colour pictures")
    elif channels == 3 and model.channels == 3 and not are_other_things(given):
        cli.log.info("three channels, read as red, green and blue of 0 to 255; if they are "
                     "something else, choose one with --value")
    elif channels > 1:
        cli.log.info("%d channels, each on its own, as shades of grey", channels)
    fitted = model.checkpoint.get("calibration")
    if fitted:
        cli.log.info("uncertainty, calibrated: %s", describe(fitted))
        samples = config.num_samples
        if largest_coverage(samples) < LEVEL:
            cli.log.info("uncertainty: of the %d samples here, intervals are %s", samples,
                         interval_name(LEVEL, samples))
    elif model.scale is None:
        cli.log.info("no trained model: the closed form alone, with its own uncertainty")
    else:
        cli.log.info("uncertainty: not calibrated (the training has not come to its end)")
    cli.log.info(
        "%s: %s points -> %dx%d, mean %.4g, typical sd %.2g, %d samples, %.1f s; written to %s",
        config.input, f"{len(given.coords):,}", rows, columns, field.mean.mean(),
        np.sqrt((field.sd**2).mean()), len(field.samples), seconds, config.out,
    )


# --- files ----------------------------------------------------------------------------------------


def contents(field: Field, given: Measurements, unit: str | None) -> dict[str, bytes]:
    """Everything that a reconstruction leaves, by name."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, coords=field.coords, mean=field.mean, sd=field.sd, samples=field.samples
    )
    low, high = limits(given)
    files = {"field.npz": buffer.getvalue(), "mean.png": picture(field.mean, given, low, high)}
    for k, sample in enumerate(field.samples):
        files[f"sample_{k + 1}.png"] = picture(sample, given, low, high)
    buffer = io.BytesIO()
    plots.reconstruction(field, given, (low, high), unit, buffer)
    files["reconstruction.png"] = buffer.getvalue()
    if not given.is_picture:
        files |= netcdf(field, given, unit)
    return files


def limits(given: Measurements) -> tuple[float, float]:
    """What is drawn darkest and brightest: of a picture as in it, else what was measured."""
    if given.value_range is not None:
        return given.value_range
    low, high = float(given.values[:, 0].min()), float(given.values[:, 0].max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def picture(values: np.ndarray, given: Measurements, low: float, high: float) -> bytes:
    """PNG of a field cell by cell, RGB or the first channel (of pictures in grey); y up."""
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
    return buffer.getvalue()


def netcdf(field: Field, given: Measurements, unit: str | None) -> dict[str, bytes]:
    """field.nc with mean, sd and samples on named axes; nothing without xarray."""
    try:
        import xarray
    except ImportError:
        cli.log.info("no field.nc: it needs xarray (pip install xarray)")
        return {}
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
    return {"field.nc": bytes(data.to_netcdf())}


def main(arguments: list[str] | None = None) -> None:
    reconstruct(cli.parse(Config, arguments, __doc__))


if __name__ == "__main__":
    sys.exit(cli.run(main))
