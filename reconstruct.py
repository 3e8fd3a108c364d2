"""Your own measurements in, the whole field with its uncertainty out.

    python reconstruct.py photo.png --observe random:0.2             # try: hide 80 % of a picture
    python reconstruct.py photo.png --mask mask.png                  # white pixels are known
    python reconstruct.py docs/stations.csv --lonlat --value temperature   # rows of lon,lat,value
    python reconstruct.py docs/stations.csv --lonlat --value temperature --holdout 0.2   # trust it?
    python reconstruct.py soil.csv --x east --y north --value zinc --transform log
    python reconstruct.py sea.csv --missing -9999 --noise_sd sigma --grid like.nc
    cat sensors.csv | python reconstruct.py - --out sea              # the same from a pipe
    python reconstruct.py --help                                     # every setting, explained

INPUT is a picture (8 or 16 bits, floats, or .npy; known pixels by --mask, --observe, or those that
are neither transparent nor NaN), a .csv or .parquet of x, y and value columns (which became which
is printed), a NetCDF (.nc, .cdf) with such variables of one dimension, an .npz with `coords` (M, 2)
and `values` (M, C), or - for CSV on standard input. Without --checkpoint colour pictures go through
the model that comes along, and everything else through the closed form: kriging fitted to the
measurements, with samples and uncertainty, without training.

Written into --out, in the units of the input: field.npz (coords, mean, sd, samples), mean.png,
sample_1.png ..., reconstruction.png with everything side by side, and for lists of points
field.csv, field.nc (CF) and, where rasterio is installed, field.tif. Files there that this command
did not write are never replaced. With --holdout nothing is written: a share of the measurements is
hidden, foretold by this and by other methods, and scored.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from sparsefield import cli, load
from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import LEVEL, SETTINGS, describe
from sparsefield.evaluate.outputs import OutputFolder
from sparsefield.evaluate.uncertainty import interval_name, largest_coverage
from sparsefield.use import holdout, plots, scores, transforms
from sparsefield.use.columns import are_colours
from sparsefield.use.domain import TRAINED_SHARE, other_density, outside_pictures
from sparsefield.use.globe import WIDEST, around, require_degrees
from sparsefield.use.globe import scales as globe_scales
from sparsefield.use.grids import cells, grid_shape, own_grid, scales
from sparsefield.use.measurements import read_measurements
from sparsefield.use.points import LARGEST, Measurements, noise_of
from sparsefield.use.reconstruction import MOST_SAMPLES, Field, Frame, Reconstructor, beyond
from sparsefield.use.scales import is_of_pictures, own_range
from sparsefield.use.written import Grid, grid_like, grid_of, written

SHIPPED = "checkpoints_mamba_v2/mamba_v2_best.pth"


@dataclass
class Config:
    """Settings of a reconstruction."""

    input: Annotated[str, tyro.conf.Positional]
    """A picture, .csv, .parquet, .npz, or - for CSV on standard input."""
    checkpoint: str | None = None
    """Trained model, V1 or V2; none: the closed form alone (kriging fitted to the measurements),
    for any values, without training. Default: for colour pictures the model that comes along,
    else none."""
    resolution: str = "auto"
    """Cells of the longer side, or ROWSxCOLUMNS; auto: a picture's own size, 64 for points."""
    grid: str | None = None
    """Of points: a NetCDF file, on whose grid the field is asked for."""
    holdout: float | None = None
    """Hide this share of the measured places, foretell them, print the scores and write nothing."""
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
    lonlat: bool = False
    """x and y are degrees of longitude and latitude: distances are chords through the globe, and
    the 180th meridian is no border. For the closed form."""
    transform: Literal["log", "sqrt"] | None = None
    """Of values that cannot be negative; results are in their units, the mean that of samples."""
    reach: float | None = None
    """Of points: farther than this from all measurements (in units of x; with --lonlat in km) the
    field is left empty; a logarithm runs away there."""
    noise_sd: str | None = None
    """Standard deviation of the noise in the values, in their units: a number, a column of a table,
    or auto to find it; 0 keeps them exactly. Default: a column noise_sd if there is one, else 0."""
    value_range: tuple[float, ...] | None = None
    """Lowest and highest value to expect, where the units are not those of the training data; for
    all channels, or two numbers for each."""
    units: str | None = None
    """For colour bars and files, where it differs from the data's."""
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
            cli.log.info(
                "the picture is %d x %d: the field has every %d-th of its rows and columns",
                *given.shape[::-1], factor,
            )
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


def refuse_nothing_in_reach(config: Config, given: Measurements, places: np.ndarray) -> None:
    """Raises UserError where no cell, of middles (N, 2), is near enough to a measurement."""
    if beyond(config.reach, places, given.coords, config.lonlat).all():
        raise UserError(f"--reach {config.reach:g}: no cell is as near to a measurement; give more "
                        f"({'km' if config.lonlat else 'units of x'}), or a finer grid")


def output_names(num_samples: int, is_picture: bool) -> list[str]:
    """What a reconstruction leaves."""
    names = ["field.npz", "mean.png", "reconstruction.png",
             *(f"sample_{k + 1}.png" for k in range(num_samples))]
    return names if is_picture else [*names, "field.csv", "field.nc", "field.tif"]


def noise_column(text: str | None) -> tuple[float | None, str | None]:
    """--noise_sd as a number, or as the name of a column."""
    if text is None or text == "auto":
        return None, None
    try:
        return float(text), None
    except ValueError:
        return None, text


def read(config: Config, channels: int) -> Measurements:
    """What was measured, with the noise that was said."""
    number, column = noise_column(config.noise_sd)
    extent = config.extent
    if config.lonlat and extent is not None and extent[1] < extent[0]:  # across the 180th meridian
        extent = (extent[0], extent[1] + WIDEST, *extent[2:])
    given = read_measurements(
        config.input, channels=channels, mask=config.mask, observe=config.observe, extent=extent,
        x=config.x, y=config.y, value=config.value, missing=config.missing,
        noise=column, lonlat=config.lonlat, seed=config.seed,
    )
    if number is not None:
        given = replace(given, noise=noise_of(number, len(given.coords)) if number else None)
    return given


def choose_model(
    config: Config, asked: Reconstructor | None, given: Measurements, shape: tuple[int, int]
) -> Reconstructor:
    """The model that is asked for, or the one that comes along where it has anything to say."""
    if asked is not None:
        if why := outside(asked, given, shape):
            cli.log.warning(
                "WARNING: outside of what %s has learnt: %s; --checkpoint none needs no training",
                config.checkpoint, why,
            )
        return asked
    why = "--lonlat" if config.lonlat else outside_pictures(given, shape, TRAINED_SHARE)
    if why is None:
        return load(SHIPPED, config.device)
    if not config.lonlat:
        cli.log.info("the model that comes along is not used: %s", why)
    return load("none", config.device)


def outside(model: Reconstructor, given: Measurements, shape: tuple[int, int]) -> str | None:
    """Why a model has not learnt such measurements, in words."""
    if model.scale is None:
        return None
    observe = str(model.checkpoint.get("config", {}).get("observe", ""))
    if is_of_pictures(model.scale) and model.channels == 3:
        return outside_pictures(given, shape, observe)
    return other_density(given, shape, observe)


def on_grid(given: Measurements, grid: Grid, config: Config) -> Measurements:
    """Measurements about a grid and all around it."""
    x0, x1, y0, y1 = grid.extent
    if config.lonlat:
        corners = np.array([[grid.x[k], grid.y[k]] for k in (0, -1)])
        require_degrees(f"--grid {config.grid}", corners, are_points=False)
        west = (x0 + x1 - WIDEST) / 2
        coords = given.coords.copy()
        coords[:, 0] = around(coords[:, 0], (west, 0, 0, 0))
        x0, x1 = max(x0, west), min(x1, west + WIDEST)  # a grid may have its first longitude twice
        y0, y1 = max(y0, -90.0), min(y1, 90.0)
        given = replace(given, coords=coords)
    low, high = given.coords.min(axis=0), given.coords.max(axis=0)
    if (high < (x0, y0)).any() or (low > (x1, y1)).any():
        cli.log.warning("WARNING: all measurements (x %.6g to %.6g, y %.6g to %.6g) lie beside the "
                        "grid of %s (x %.6g to %.6g, y %.6g to %.6g)", low[0], high[0], low[1],
                        high[1], config.grid, x0, x1, y0, y1)
    extent = (min(x0, low[0]), max(x1, high[0]), min(y0, low[1]), max(y1, high[1]))
    return replace(given, extent=tuple(map(float, extent)))


def reconstruct(config: Config) -> None:
    """The command. Raises UserError for input that cannot be used."""
    cli.log_to()
    asked = None if config.checkpoint is None else load(config.checkpoint, config.device)
    given = read(config, (asked and asked.channels) or 3)
    grid = None
    if config.grid is not None:
        if given.is_picture or config.extent is not None or config.resolution != "auto":
            raise UserError(f"--grid {config.grid}: it is for points, and says resolution and "
                            "extent itself; leave those out")
        grid = grid_like(config.grid)
        given = on_grid(given, grid, config)
    if config.reach is not None and (given.is_picture or not config.reach > 0):
        raise UserError(f"--reach {config.reach:g}: it is for points, and above 0")
    own_range(transforms.forward(config.transform, given.values))  # refused before writing
    frame = frame_of(config, given)
    if grid is None:
        shape = grid_shape(parse_resolution(config.resolution, given), given.extent,
                           frame.scaled_by)
        warn_of_oblong_cells(shape, given.extent, frame.scaled_by)
        refuse_nothing_to_do(config, given, shape)
    else:
        shape = len(grid.y), len(grid.x)
    if config.reach is not None:
        where = own_grid((grid.x, grid.y)) if grid else cells(shape, given.extent, frame.scaled_by)
        refuse_nothing_in_reach(config, given, where[1])
    model = choose_model(config, asked, given, shape)
    if config.holdout is not None:
        hold_out(config, model, given, frame)
        return
    out = OutputFolder(config.out, "--out", [config.input, config.mask, config.observe,
                                             config.checkpoint, config.grid])
    out.require(output_names(min(config.num_samples, MOST_SAMPLES), given.is_picture))
    started = time.monotonic()
    with tqdm(desc="reconstructing", unit="call", disable=None, leave=False) as bar:
        def progress(calls: int, total: int) -> None:
            bar.total = total
            bar.update(calls - bar.n)

        field = model.reconstruct(
            given.coords, given.values, shape, axes=None if grid is None else (grid.x, grid.y),
            extent=given.extent, num_samples=config.num_samples,
            noise_sd=holdout.noise_of(given, config.noise_sd == "auto"),
            value_range=config.value_range or default_range(model, given),
            num_steps=config.num_steps, seed=config.seed, lonlat=config.lonlat,
            transform=config.transform, aspect=frame_aspect(frame), missing=[],
            separately=is_separate(model, given), progress=progress,
        )
    if config.reach is not None:
        field = field.within(config.reach, given.coords, config.lonlat)
    unit = unit_of(config, model, given)
    files = contents(field, grid or grid_of(field, config.lonlat), given, unit, config.lonlat)
    out.require(files)
    out.remove_old(r"sample_\d+\.png|field\.(nc|csv|tif)", files)
    out.write(files)
    say(config, model, given, field, time.monotonic() - started)


def frame_of(config: Config, given: Measurements) -> Frame:
    """How places become coordinates."""
    if config.lonlat:
        return Frame(given.extent, globe_scales(given.extent), True)
    aspect = "equal" if given.is_picture and config.aspect == "auto" else config.aspect
    return Frame(given.extent, scales(given.extent, aspect), False)


def frame_aspect(frame: Frame) -> str:
    """What was chosen, for what is called later: said once is enough."""
    return "free" if frame.scaled_by[0] != frame.scaled_by[1] else "equal"


def is_separate(model: Reconstructor, given: Measurements) -> bool:
    """Whether channels are different things."""
    return are_other_things(given) or (model.scale is None and not given.is_picture)


def unit_of(config: Config, model: Reconstructor, given: Measurements) -> str | None:
    """Of the values, as far as anything tells."""
    trained = None if given.is_picture or model.scale is None else model.scale.units
    return config.units or given.units or trained


def hold_out(config: Config, model: Reconstructor, given: Measurements, frame: Frame) -> None:
    """Print how well hidden measurements are foretold, by this and by other methods."""
    kept, hidden = holdout.split(given, config.holdout, config.seed)
    settings = dict(lonlat=config.lonlat, aspect=frame_aspect(frame), seed=config.seed,
                    num_steps=config.num_steps, separately=is_separate(model, given))
    find_noise = config.noise_sd == "auto"
    this = ", ".join(filter(None, [
        "closed form" if model.scale is None else Path(config.checkpoint or SHIPPED).name,
        config.transform, "noise found" if find_noise else None]))
    kriging = holdout.by_model(load("none", config.device), transform=None, **settings)
    methods = {f"this ({this})": holdout.by_model(model, transform=config.transform,
                                                  find_noise=find_noise, **settings),
               "fitted kriging": kriging}
    if model.scale is None and config.transform is None and not find_noise:
        methods = {"this (fitted kriging)": kriging}
    if not find_noise and given.noise is None:
        methods["fitted kriging, --noise_sd auto"] = holdout.by_model(
            load("none", config.device), transform=None, find_noise=True, **settings)
    methods |= {"linear": holdout.linear(frame), "constant": holdout.constant}
    if (pykrige := holdout.pykrige(frame)) is not None:
        methods["PyKrige, exponential"] = pykrige
    found = holdout.compare(methods, kept, hidden)
    cli.log.info("%s of %s measurements hidden, foretold from the others (seed %d):",
                 f"{len(hidden.coords):,}", f"{len(given.coords):,}", config.seed)
    for line in scores.table(found, unit_of(config, model, given)):
        cli.log.info("%s", line)
    cli.log.info("%s", scores.verdict(found))
    cli.log.info("nothing is written; the field from all measurements: the same without --holdout")


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
        config.input, f"{len(given.coords):,}", rows, columns, np.nanmean(field.mean),
        np.sqrt(np.nanmean(field.sd**2)), len(field.samples), seconds, config.out,
    )


# --- files ----------------------------------------------------------------------------------------


def contents(
    field: Field, grid: Grid, given: Measurements, unit: str | None, lonlat: bool
) -> dict[str, bytes]:
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
    seen = given if given.is_picture else replace(given, extent=grid.extent)
    plots.reconstruction(field, seen, (low, high), unit, buffer, lonlat)
    files["reconstruction.png"] = buffer.getvalue()
    if not given.is_picture:
        files |= written(field, grid, given.names, unit, field.how)
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
    unit = np.nan_to_num(np.clip((values - low) / (high - low), 0, 1), nan=0.5)
    if values.shape[2] == 3 and given.is_picture:
        pixels = unit
    elif given.is_picture:
        pixels = unit[..., 0]
    else:
        pixels = plots.plt.get_cmap("viridis")(unit[..., 0])[..., :3]
        pixels[np.isnan(values[..., 0])] = plots.MISSING
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    reconstruct(cli.parse(Config, arguments, __doc__, switches=True))


if __name__ == "__main__":
    sys.exit(cli.run(main))
