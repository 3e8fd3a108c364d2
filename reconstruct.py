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
the bundled model, and everything else through the closed form: kriging fitted to the
measurements, with samples and uncertainty, without training.

Written into --out, in the units of the input: field.npz (coords, mean, sd, samples), mean.png,
sample_1.png ..., reconstruction.png with everything side by side, and for lists of points
field.csv, field.nc (CF) and, where rasterio is installed, field.tif. Files there that this command
did not write are never replaced. With --holdout nothing is written: a share of the measurements is
hidden, predicted by this and by other methods, and scored; where the bundled model is not
used by itself, but could be, it is one of them.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from sparsefield import cli, load
from sparsefield.evaluate.calibration import SETTINGS
from sparsefield.evaluate.outputs import OutputFolder
from sparsefield.model.bundled import BUNDLED
from sparsefield.use import holdout, messages
from sparsefield.use.grids import Asked, what_is_asked
from sparsefield.use.points import Measurements
from sparsefield.use.predict import Field, Reconstructor
from sparsefield.use.read import read_measurements
from sparsefield.use.values import own_range, transformed


@dataclass
class Config:
    """Settings of a reconstruction."""

    input: Annotated[str, tyro.conf.Positional]
    """A picture, .csv, .parquet, .npz, or - for CSV on standard input."""
    checkpoint: str | None = None
    """Trained model, V1 or V2; bundled: the V2 of this project; none: the closed form alone
    (kriging fitted to the measurements), for any values, without training. Default: for colour
    pictures bundled, else none."""
    resolution: str = "auto"
    """Cells of the longer side, or ROWSxCOLUMNS; auto: a picture's own size, 64 for points."""
    grid: str | None = None
    """Of points: a NetCDF file, on whose grid the field is asked for."""
    holdout: float | None = None
    """Hide this share of the measured places, predict them, print the scores and write nothing."""
    num_samples: int = 16
    """Samples of the posterior; their spread is the uncertainty."""
    mask: str | None = None
    """Of a picture: which pixels are known (white, and not transparent)."""
    observe: str | None = None
    """Of a picture: try with random:0.2, grid:4, block:0.3 or lines:8 of it."""
    extent: tuple[float, float, float, float] | None = None
    """Of points: x0 x1 y0 y1 of the field; default the smallest rectangle around them. Points
    outside are used, too."""
    x: str | None = None
    """Of a table: the column of x, by name or number from 1; default by the usual names."""
    y: str | None = None
    """Of a table: the column of y."""
    value: tuple[str, ...] | None = None
    """Of a table: the column of the values, or several; default all others."""
    decimal: str = "."
    """Of a table: what stands before decimals; , for numbers such as 3,14."""
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
    field is left empty; a logarithm runs away there. Of y, where it has a scale of its own, as
    large a part of its span."""
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
    """Folder for what is written: new, empty, or of an earlier reconstruction."""
    overwrite: bool = False
    """Write into out also where it holds other files, which are left alone."""


def reconstruct(config: Config) -> None:
    """The command. Raises UserError for input that cannot be used."""
    cli.log_to()
    chosen = None if config.checkpoint is None else load(config.checkpoint, config.device)
    given = read(config, (chosen and chosen.channels) or 3)
    own_range(transformed(config.transform, given.values))  # refused before writing
    asked = what_is_asked(
        given, resolution=config.resolution, grid=config.grid, extent=config.extent,
        aspect=config.aspect, lonlat=config.lonlat, reach=config.reach,
    )
    if not config.noise_sd:
        asked.require_unknown(config.mask or config.input)
    model = messages.choose_model(chosen, asked.given, asked.shape, config.lonlat, config.device)
    if config.holdout is None:
        write(config, model, asked)
    else:
        hold_out(config, model, asked)


def read(config: Config, channels: int) -> Measurements:
    """The measurements, with the noise that was given."""
    return read_measurements(
        config.input, channels=channels, mask=config.mask, observe=config.observe,
        extent=config.extent, x=config.x, y=config.y, value=config.value, missing=config.missing,
        noise_sd=config.noise_sd, decimal=config.decimal, lonlat=config.lonlat, seed=config.seed,
    )


def write(config: Config, model: Reconstructor, asked: Asked) -> None:
    """Reconstruct, write all files, and say what was done."""
    from sparsefield.use import export  # matplotlib and xarray, which refusals need not wait for

    given = asked.given
    out = OutputFolder(config.out, "--out", export.NAMES, [
        config.input, config.mask, config.observe, config.checkpoint, config.grid,
    ], config.overwrite)
    started = time.monotonic()
    field = field_of(config, model, asked)
    if config.reach is not None:
        field = field.within(config.reach, given.coords, config.lonlat, asked.frame)
    units = config.units or messages.units_of(model, given)
    out.write(export.contents(field, asked, units))
    for line in messages.account(model, given, field):
        cli.log.info("%s", line)
    cli.log.info(
        "%s: %s points -> %dx%d, %s, %d samples, %.1f s; written to %s",
        config.input, f"{len(given.coords):,}", *asked.shape, messages.in_numbers(given, field),
        len(field.samples), time.monotonic() - started, config.out,
    )


def field_of(config: Config, model: Reconstructor, asked: Asked) -> Field:
    """The field, with a bar that shows how far it is."""
    given = asked.given
    with tqdm(desc="reconstructing", unit="call", disable=None, leave=False) as bar:
        def progress(calls: int, total: int | None) -> None:
            bar.total = total
            bar.update(calls - bar.n)

        return model.reconstruct(
            given.coords, given.values, asked.shape, axes=asked.grid and asked.grid.axes,
            extent=given.extent, region=given.region, num_samples=config.num_samples,
            noise_sd="auto" if config.noise_sd == "auto" else given.noise_sd,
            value_range=config.value_range or messages.picture_range(model, given),
            num_steps=config.num_steps, seed=config.seed, lonlat=config.lonlat,
            transform=config.transform, aspect=asked.frame.aspect, missing=[],
            separately=messages.are_separate(model, given), progress=progress,
        )


def hold_out(config: Config, model: Reconstructor, asked: Asked) -> None:
    """Print how well hidden measurements are predicted, by this and by other methods; where values
    are different things, of each on its own."""
    given = asked.given
    kept, hidden = holdout.split(given, config.holdout, config.seed)
    also = None
    if (config.checkpoint is None and model.is_closed_form and not config.lonlat
            and messages.can_be_tried(given)):
        also = load(BUNDLED, config.device)
    methods = holdout.all_methods(
        model, given, asked.frame, transform=config.transform,
        find_noise=config.noise_sd == "auto", seed=config.seed, num_steps=config.num_steps,
        value_range=config.value_range, also=also,
    )
    found = holdout.forecasts(methods, kept, hidden.coords)
    cli.log.info("%s of %s measurements hidden, predicted from the others (seed %d):",
                 f"{len(hidden.coords):,}", f"{len(given.coords):,}", config.seed)
    each = enumerate(given.names) if messages.are_other_things(given) else [(None, "")]
    for channel, name in each:
        if name:
            cli.log.info("%s:", name)
        scored = holdout.scores_of(found, hidden, channel)
        for line in holdout.table(scored, config.units or messages.units_of(model, given)):
            cli.log.info("%s", line)
        cli.log.info("%s", holdout.verdict(scored))
    cli.log.info("nothing is written; the field from all measurements: the same without --holdout")


def main(arguments: list[str] | None = None) -> None:
    reconstruct(cli.parse(Config, arguments, __doc__, switches=True))


if __name__ == "__main__":
    sys.exit(cli.run(main))
