"""Reconstruct a whole field, with its uncertainty, from your own measurements.

    python reconstruct.py photo.png --observe random:0.2             # try: hide 80 % of a picture
    python reconstruct.py photo.png --mask mask.png                  # white pixels are known
    python reconstruct.py docs/stations.csv --lonlat --value temperature   # rows of lon,lat,value
    python reconstruct.py docs/stations.csv --lonlat --value temperature --above 10 --page
    python reconstruct.py docs/stations.csv --lonlat --value temperature --holdout 0.2   # trust it?
    python reconstruct.py soil.csv --x east --y north --value zinc --transform log
    python reconstruct.py sea.csv --missing -9999 --noise_sd sigma --grid like.nc
    python reconstruct.py rain.csv --lonlat --covariates elev --grid terrain.nc  # follows height
    python reconstruct.py photo.png --observe random:0.05 --covariates luminance # colours it
    python reconstruct.py sea.nc --time time --page                  # gaps in (time, y, x)
    cat sensors.csv | python reconstruct.py - --out sea              # the same from a pipe

INPUT is one of:
  a picture (8 or 16 bits, floats, or .npy), also a GeoTIFF. --mask or --observe say which pixels
  are known; else those are that are neither transparent, NaN nor no-data;
  a .csv or .parquet table with columns x, y and value; which column is which is printed;
  a NetCDF file (.nc, .cdf) with such variables of one dimension;
  a NetCDF or .zarr grid of (y, x), with --time also of (time, y, x), whose gaps are filled;
  an .npz file with `coords` (M, 2) and `values` (M, C);
  - for CSV on standard input.

Fields of more than 1,024 rows and tables of more than a million points are computed in tiles, on
all cores or on a cluster, into field.tif.

Without --checkpoint, colour pictures are reconstructed by the bundled model, other measurements by
the model of any quantity where it has been shown to be better, else by kriging fitted to the
measurements. A line says which.

These files are written into --out, in the units of the input: field.npz (coords, mean, sd,
samples), mean.png, sample_1.png ..., reconstruction.png with everything side by side; for lists of
points also field.csv, field.nc (CF) and, where rioxarray is installed, field.tif, as for GeoTIFFs.
With --time a film, field.gif (field.mp4 where ffmpeg is installed), replaces the single maps.
Other files in that folder are never replaced. --page adds field.html, to look at all of it in a
browser. With --holdout a share of the measurements is hidden, predicted by this and by other
methods, and scored; files are then written only with --page.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sparsefield.commands import end_in_one_line_on_interrupt

    end_in_one_line_on_interrupt()  # first: Ctrl-C during the imports below

import math
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from sparsefield import __version__, cli, load, progress
from sparsefield.data.batches import parse_noise
from sparsefield.errors import UserError
from sparsefield.evaluate.calibration import LEVEL, describe
from sparsefield.evaluate.metrics import largest_coverage
from sparsefield.evaluate.tables import OutputFolder
from sparsefield.gaussian import estimate_noise
from sparsefield.model.bundled import BUNDLED, FIELDS
from sparsefield.use import holdout, mosaic
from sparsefield.use.blocks import blocks_of, clustering, stretches_of
from sparsefield.use.field import Field, require_limit, require_samples
from sparsefield.use.grids import Asked, Labelled, what_is_asked
from sparsefield.use.labelled import read_grid
from sparsefield.use.points import MOST_POINTS, Measurements
from sparsefield.use.predict import Reconstructor, Settings
from sparsefield.use.read import read_measurements
from sparsefield.use.values import (
    are_within_bytes,
    is_in_colour,
    own_range,
    transformed,
    unlike_training,
)

BUNDLED_OBSERVES = "random:0.2"  # measured points in its training
# What the model of any quantity answers by itself: places that are measured, their share of the
# cells, places that are asked for.
FEWEST_POINTS, MOST_KNOWN, MOST_PLACES = 50, 0.5, 256 * 256


@dataclass
class Config:
    """Settings of a reconstruction."""

    input: Annotated[str, tyro.conf.Positional]
    """A picture, .csv, .parquet, .nc or .zarr (a list or a grid with gaps), .npz, or - for CSV on
    standard input."""
    checkpoint: str | None = None
    """Trained model: a file of V1 or V2; bundled: the V2 of this project, of photographs; fields:
    the model of any quantity; none: kriging alone. Default: bundled for colour pictures, fields
    for other numbers where it has been shown to be better, else none; a line says which."""
    resolution: str = "auto"
    """Cells of the longer side, or ROWSxCOLUMNS; auto: a picture's own size, 64 for points."""
    grid: str | None = None
    """For points: reconstruct on the grid of this NetCDF file or GeoTIFF. With --covariates it
    holds them; they are interpolated where --resolution or --extent ask for another grid."""
    holdout: float | None = None
    """Hide this share of the measured places, predict them, print the scores and, without --page,
    write nothing."""
    holdout_by: Literal["points", "places", "blocks", "times"] = "points"
    """points: places at random, with --time each at some of its times: flatters where measurements
    are clustered. places: whole places, at all times. blocks: squares of the map in turn, the share
    --holdout of the measurements at a time. times: stretches of time, in the same way."""
    block_size: str | None = None
    """Side of a block: 300 in units of x (km with --lonlat), or 4s in mean spacings. Default: such
    that hidden measurements are as far from the others as the field's cells are from all. With
    --holdout_by times: the number of times in a stretch."""
    num_samples: int = 16
    """Samples of the posterior; their spread is the uncertainty."""
    above: tuple[float, ...] = ()
    """Limits, in the units of the values: write the probability that the field is above each, as
    probability_above_30. It concerns the field, not a further measurement of it with its noise."""
    quantiles: tuple[float, ...] = ()
    """Write these quantiles of the field, such as 0.05 0.5 0.95. They and --above come from the
    exact Gaussian of kriging or of fields; with another model from the samples."""
    mask: str | None = None
    """For a picture: another picture that shows the known pixels in white."""
    observe: str | None = None
    """For a picture, as a trial: which pixels are known: random:0.2, clusters:0.1, tracks:0.1,
    grid:4, block:0.3 or lines:8."""
    extent: tuple[float, float, float, float] | None = None
    """For points: x0 x1 y0 y1 of the field. Default: the smallest rectangle around the points.
    Points outside it are used, too."""
    x: str | None = None
    """For a table: the column of x, by name or by number from 1. Default: found by usual names."""
    y: str | None = None
    """For a table: the column of y."""
    value: tuple[str, ...] | None = None
    """For a table: one or more columns of values. Default: all others."""
    covariates: tuple[str, ...] = ()
    """What is known everywhere and may tell about the field, such as elev. For a table: columns,
    whose values everywhere are variables of the same names in --grid. For a picture: luminance, its
    grey version, or other pictures of the same size. The likelihood decides how each is used."""
    trend: Literal["linear", "quadratic"] | None = None
    """Universal kriging, with a polynomial of x and y as the trend."""
    decimal: str = "."
    """For a table: the decimal separator; , for numbers such as 3,14."""
    missing: tuple[str, ...] | None = None
    """Values that mean "not measured", such as -9999; none: all numbers were measured."""
    time: str | None = None
    """The column of times: numbers, or dates by ISO 8601; or the time axis of a NetCDF file or zarr
    of (time, y, x), whose gaps are filled. How much other times count is found by the likelihood.
    For kriging, and models that learnt sequences (TIME=8)."""
    times: tuple[str, ...] = ()
    """Times of the field: start:stop:step (0:10:0.5, 2020-01-01:2020-02-01:1D) or a list. Default:
    those of the input."""
    aspect: Literal["auto", "equal", "free"] = "auto"
    """equal: x and y have one scale; free: each has its own, as for distance and depth; auto: free
    where their spans differ by more than 10 times."""
    lonlat: bool = False
    """x and y are degrees of longitude and latitude. Distances are then chords through the globe,
    and the 180th meridian is no border. For kriging only."""
    transform: Literal["log", "sqrt"] | None = None
    """Transform values that cannot be negative. Results are in the original units, and the mean is
    that of the samples."""
    reach: float | None = None
    """For points: leave the field empty farther than this from all measurements, in units of x, or
    in km with --lonlat."""
    noise_sd: str | None = None
    """Standard deviation of the noise in the values, in their units: a number, a column of a table,
    or auto to estimate it; 0 keeps the values exactly. Default: a column noise_sd if there is one,
    else 0."""
    value_range: tuple[float, ...] | None = None
    """Lowest and highest value to expect, where the units are not those of the training data: two
    numbers for all channels, or two for each."""
    units: str | None = None
    """Units of the values for colour bars and files. Default: those of the data."""
    num_steps: int | None = None
    """Steps of the sampler (Heun's rule). Default: those of the model, at which its uncertainty was
    calibrated."""
    tokens: bool | None = None
    """Read the tokens of a trained model: on photographs 0.5 % less CRPS for about 70 % of the
    time. Default: up to 256 x 256 cells."""
    seed: int = 0
    """Seed of the samples and of --observe and --holdout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    out: str = "reconstruction"
    """Folder for the results: new, empty, or of an earlier reconstruction."""
    page: bool = False
    """Also write field.html: a page with maps, a section, the variogram and checks, for any browser
    and without a network. With --holdout, too, it shows the scores."""
    workers: int | None = None
    """Processes for a field in tiles, by default one for each core. Beyond a million points or
    1,024 rows, or if this is given, a field is computed in tiles, by kriging; the same command,
    started again, computes those that are missing."""
    scheduler: str | None = None
    """Compute the tiles on a dask.distributed cluster, such as tcp://host:8786."""
    overwrite: bool = False
    """Write into --out even if it holds other files. These are left alone."""


def reconstruct(config: Config, command: str = "") -> None:
    """The command, as it was typed. Raises UserError for input that cannot be used."""
    cli.log_to()
    if config.holdout is None and config.holdout_by != "points":
        raise UserError(f"--holdout_by {config.holdout_by}: give the share to hide at a time, "
                        "--holdout 0.2")
    if config.block_size is not None and config.holdout_by not in ("blocks", "times"):
        raise UserError(f"--block_size {config.block_size}: give --holdout_by blocks, too")
    if config.time is None and (config.times or config.holdout_by == "times"):
        raise UserError("--times and --holdout_by times: give --time, too")
    if mosaic.is_beyond(config):
        mosaic.run(config)
        return
    chosen = None if config.checkpoint is None else load(config.checkpoint, config.device)
    cells = read_grid(config.input, config.time, config.value, config.x, config.y,
                      config.noise_sd, config.missing, config.lonlat)
    if (cells or config.time) and (config.mask or config.observe):
        raise UserError("--mask and --observe are for a picture: leave them out; in a grid what is "
                        "missing is NaN")
    given = cells.given if cells is not None else read_measurements(
        config.input, channels=(chosen and chosen.channels) or 3, mask=config.mask,
        observe=config.observe, x=config.x, y=config.y, value=config.value,
        missing=config.missing, noise_sd=config.noise_sd, decimal=config.decimal,
        lonlat=config.lonlat, seed=config.seed, covariates=config.covariates, time=config.time,
        most=math.inf,
    )
    if len(given.coords) > MOST_POINTS:
        mosaic.run(config, given)
        return
    given = replace(given, units=config.units or given.units)
    own_range(transformed(config.transform, given.values))  # refused before writing
    given, asked = what_is_asked(
        given, resolution=config.resolution, grid=config.grid, extent=config.extent,
        aspect=config.aspect, lonlat=config.lonlat, reach=config.reach, times=config.times,
        cells=cells,
    )
    if config.covariates and cells is not None:
        raise UserError(f"--covariates {' '.join(config.covariates)}: they are for tables, not for "
                        "a grid")
    if config.covariates and asked.known is None and (config.holdout is None or config.page):
        raise UserError(f"--covariates {' '.join(config.covariates)}: they must be known where the "
                        "field is asked for, too: give --grid FILE with variables of these names, "
                        "or --holdout 0.2 without --page to see what they are worth")
    is_exact = config.noise_sd != "auto" and (given.noise is None or not given.noise.any())
    if cells is not None and cells.is_full and is_exact and (
        asked.grid is cells.grid
        and (asked.times is None or np.isin(asked.times.values, cells.times.values).all())
    ):
        raise UserError(f"{config.input}: has no gap, so nothing is to be filled; ask for other "
                        "--times or --resolution")
    if is_exact and given.shape == asked.shape and (
        len(given.coords) == math.prod(asked.shape)
    ):
        raise UserError(f"{config.mask or config.input}: every pixel is known, so nothing is to be "
                        "reconstructed; make unknown pixels black in the mask, or ask for more "
                        "with --resolution")
    model = choose_model(config, chosen, given, asked, cells)
    require_limit(config.above)
    for share in config.quantiles:
        require_samples(share, None if model.is_gaussian else config.num_samples)
    if config.holdout is None or config.page:
        write(config, model, given, asked, command)
    else:
        hold_out(config, model, given, asked)


def choose_model(
    config: Config, chosen: Reconstructor | None, given: Measurements, asked: Asked,
    cells: Labelled | None,
) -> Reconstructor:
    """The model that was chosen, with a warning where it has not learnt such measurements; else
    the bundled one of pictures or of any quantity where it has, and kriging where not."""
    if chosen is not None:
        observe = str(chosen.checkpoint.get("config", {}).get("observe", ""))
        of_colours = chosen.is_of_pictures and chosen.channels == 3
        if not chosen.is_closed_form and (
            why := unlike_training(given, asked.shape[-2:], observe, of_colours)
        ):
            cli.log.warning("WARNING: %s was not trained on such measurements: %s; --checkpoint "
                            "none needs no training", chosen.path, why)
        return chosen
    if config.lonlat or config.covariates or config.trend or config.time:
        return load("none", config.device)
    why = unlike_training(given, asked.shape, BUNDLED_OBSERVES, of_colours=True)
    if why is None:
        return load(BUNDLED, config.device)
    name = BUNDLED if is_in_colour(given) else FIELDS
    if name == FIELDS:
        why = unlike_fields(config, given, asked, cells)
    if why is None:
        model = load(FIELDS, config.device)
        why = unlike_noise(model, given, asked if config.noise_sd == "auto" else None)
    if why is None:
        cli.log.info("the model of any quantity answers; --checkpoint none: kriging alone")
        return model
    cli.log.info("kriging answers: %s; --checkpoint %s uses a bundled model all the same, check it "
                 "with --holdout 0.2", why, name)
    return load("none", config.device)


def unlike_fields(
    config: Config, given: Measurements, asked: Asked, cells: Labelled | None
) -> str | None:
    """Why the model of any quantity has not shown to be better than kriging of such measurements
    (docs/fields.md); None: it has."""
    count, places = len(np.unique(given.coords, axis=0)), math.prod(asked.shape)
    of_grid = cells.like.size if cells else math.prod(given.shape) if given.shape else math.inf
    reasons = (
        (config.transform, "the model of any quantity has learnt none with --transform"),
        (config.value_range, "the model of any quantity needs no --value_range"),
        (count < FEWEST_POINTS, f"{count} places are measured, and the model of any quantity "
                                f"takes {FEWEST_POINTS} or more"),
        (count > MOST_KNOWN * of_grid,
         "most cells are measured, and the model of any quantity has learnt fewer"),
        (places > MOST_PLACES, f"the model of any quantity takes long for {places:,} places"),
    )
    why = next((why for applies, why in reasons if applies), None)
    if why is None and clustering(asked.frame, given.coords) is not None:
        return "the measurements are clustered"
    return why


def unlike_noise(
    model: Reconstructor, given: Measurements, to_find: Asked | None = None
) -> str | None:
    """Why a model has not learnt measurements with such noise; None: it has. With `to_find` the
    noise is found first, in measurements for what is asked."""
    noise = np.zeros(1) if given.noise is None else given.noise
    sd = given.values.std(axis=0)
    sd = np.where(sd > 0, sd, 1)
    low, high = noise.min() / sd.max(), noise.max() / sd.min()            # in sd of the values
    if to_find is not None:
        places = torch.from_numpy(to_find.frame.inside(given.coords))
        found = [estimate_noise(places, own, torch.ones_like(own))
                 for own in torch.from_numpy(given.values / sd).T]
        low, high = min(found), max(found)
    least, most = parse_noise(model.checkpoint["config"].get("noise", "0"))
    if least <= low and high <= most:
        return None
    learnt = f"noise of {least:g} to {most:g} of the sd" if most else "none with noise"
    return f"the model of any quantity has learnt {learnt}"


def settings_of(config: Config) -> dict[str, Any]:
    """Those of the samples, as of `sparsefield.use.predict.Settings`."""
    said = {"value_range": config.value_range} if config.value_range else {}
    return {"num_steps": config.num_steps, "seed": config.seed, "tokens": config.tokens, **said}


def write(
    config: Config, model: Reconstructor, given: Measurements, asked: Asked, command: str
) -> None:
    """Reconstruct, write all files, and say what was done."""
    from sparsefield.use import export  # matplotlib and xarray, which refusals need not wait for
    from sparsefield.use.page import field_page

    out = OutputFolder(config.out, "--out", export.NAMES, [
        config.input, config.mask, config.observe, config.checkpoint, config.grid,
        *config.covariates,
    ], config.overwrite, export.ANSWERS)
    scores = None if config.holdout is None else hold_out(config, model, given, asked)
    started = time.monotonic()
    phases = ["kriging"] if model.is_closed_form else ["kriging", "network"]
    with progress.phases(*phases) as tell:
        field = model.answer(given, asked, Settings(
            **(model.reads(given) | settings_of(config)), num_samples=config.num_samples,
            noise_sd="auto" if config.noise_sd == "auto" else 0.0, transform=config.transform,
            trend=config.trend, checked=config.page, progress=tell))
    files = export.contents(field, given, asked, config.input, config.above, config.quantiles)
    if config.page:
        files["field.html"] = field_page(
            field, given, asked, limits=tuple(dict.fromkeys(config.above)), scores=scores,
            source=Path(config.input).name, words=in_words(config, model, given, field, command))
    out.write(files)
    for line in (*account(model, given, field), *answers(config, field)):
        cli.log.info("%s", line)
    cli.log.info(
        "%s: %s points -> %s, %s, %d samples, %.1f s; written to %s",
        config.input, f"{len(given.coords):,}", "x".join(map(str, asked.shape)),
        in_numbers(given, field), len(field.samples), time.monotonic() - started, config.out,
    )


def hold_out(
    config: Config, model: Reconstructor, given: Measurements, asked: Asked
) -> dict[str, list[holdout.Score]]:
    """Print how well hidden measurements are predicted, by this and by other methods; where values
    are different things, of each on its own, by name."""
    if config.holdout_by == "blocks":
        blocks = blocks_of(asked, given.coords, config.holdout, config.seed, config.block_size)
        folds = holdout.by_blocks(given, blocks)
        cli.log.info("%s", blocks.describe(asked.frame.unit_of_length))
    elif config.holdout_by == "times":
        stretches = stretches_of(given.times, config.holdout, config.seed, config.block_size)
        folds = holdout.by_blocks(given, stretches)
        cli.log.info("%s", stretches.describe())
    else:
        whole = config.holdout_by == "places"
        folds = holdout.by_points(given, config.holdout, config.seed, whole)
        if (ratio := clustering(asked.frame, given.coords)) is not None:
            cli.log.info("the measurements are clustered: the nearest neighbour is %.2f times as "
                         "far as at random (Clark & Evans 1954). These scores flatter what lies "
                         "between clusters; --holdout_by blocks hides whole clusters", ratio)
    is_by_default = config.checkpoint is None and model.is_closed_form and not (
        config.lonlat or config.covariates or config.trend or config.time)
    can_be_grey = given.are_quantities or given.values.shape[1] != 3
    methods = holdout.all_methods(
        model, given, asked, transform=config.transform, find_noise=config.noise_sd == "auto",
        trend=config.trend, also=load(FIELDS if can_be_grey else BUNDLED, config.device)
        if is_by_default and (can_be_grey or are_within_bytes(given.values)) else None,
        **settings_of(config),
    )
    scores = holdout.compare_folds(methods, progress.over(folds, "hold-out", "fold"))
    cli.log.info("%s of %s measurements hidden%s, predicted from the others (seed %d):",
                 f"{sum(len(fold.groups) for fold in folds):,}", f"{len(given.coords):,}",
                 " in turn" if len(folds) > 1 else "", config.seed)
    parts = {"": scores} if not given.are_quantities else {
        name: [score.of_channel(c) for score in scores] for c, name in enumerate(given.names)}
    for name, part in parts.items():
        lines = [*holdout.table(part, model.units_of(given)), holdout.verdict(part)]
        for line in [f"{name}:", *lines] if name else lines:
            cli.log.info("%s", line)
    if not config.page:
        cli.log.info("nothing is written; the field from all measurements: the same without "
                     "--holdout, or with --page")
    return parts


# --- what is printed ------------------------------------------------------------------------------


def account(model: Reconstructor, given: Measurements, field: Field) -> list[str]:
    """Lines to print: the model, what it read, where the uncertainty comes from."""
    lines = [] if model.is_closed_form else [f"model: {model.path}"]
    if field.variogram:
        lines.append(f"kriging fitted to the measurements: {field.variogram}")
    lines += [f"covariate {line}" for line in field.covariates]
    lines += [field.in_time] if field.in_time else []
    channels, samples = given.values.shape[1], len(field.samples)
    if model.is_of_pictures and not given.is_picture:
        if channels == 3 == model.channels and not given.are_quantities:
            lines.append("three channels, read as red, green and blue of 0 to 255; if they are "
                         "something else, choose one with --value")
        else:
            lines.append(f"{channels} channel(s), each on its own, as shades of grey")
    if fitted := model.checkpoint.get("calibration"):
        lines.append(f"uncertainty, calibrated: {describe(fitted)}")
        if not model.is_gaussian and (most := largest_coverage(samples)) < LEVEL:
            lines.append(f"uncertainty: from the lowest to the highest of {samples} samples is an "
                         f"interval of {most:.0%}; {LEVEL:.0%} take more (--num_samples)")
    elif model.is_closed_form:
        lines.append("no trained model: kriging alone, with its own uncertainty")
    else:
        lines.append("uncertainty: not calibrated (the training has not come to its end)")
    return lines


def in_words(
    config: Config, model: Reconstructor, given: Measurements, field: Field, command: str
) -> list[tuple[str, str]]:
    """What was done, as terms and texts, for the page."""
    found = field.checks.noise if field.checks else ""
    noise = f"{found}, found in the measurements" if found else "none, measurements are kept"
    if given.noise is not None:
        noise = f"sd {given.noise.min():.3g} to {given.noise.max():.3g}, as given"
    *frames, rows, columns, _ = field.mean.shape
    return [
        ("measurements", f"{len(given.coords):,} of {', '.join(given.names) or 'values'} in "
                         f"{config.input}"),
        ("field", f"{rows} rows and {columns} columns"
                  + "".join(f" at {count} times" for count in frames)),
        ("method", "; ".join((*account(model, given, field), *answers(config, field)))),
        ("noise", noise),
        *([("transform", config.transform)] if config.transform else []),
        *([("trend", config.trend)] if config.trend else []),
        ("samples", f"{len(field.samples)}, {field.how}, seed {config.seed}"),
        *([("hold-out", f"{config.holdout:g} of the places, by {config.holdout_by}")]
          if config.holdout else []),
        ("program", f"mamba-diffusion {__version__}"),
        *([("command", f"reconstruct.py {command}")] if command else []),
    ]


def answers(config: Config, field: Field) -> list[str]:
    """Lines to print: how much of the field is above limits, and where that comes from."""
    lines = []
    is_there = np.isfinite(field.mean).all(axis=-1)
    for limit in dict.fromkeys(config.above):
        shares = np.average(field.probability_above(limit)[is_there], axis=0,
                            weights=np.broadcast_to(field.areas, is_there.shape)[is_there])
        lines.append(f"above {limit:g}: on average " + ", ".join(
            f"{share:.1%} of the area" + (f" ({name})" if len(shares) > 1 else "")
            for share, name in zip(shares, field.names, strict=True)))
    if config.above or config.quantiles:
        steps = "" if field.gaussian or not config.above else (
            f": they tell a probability in steps of {1 / len(field.samples):.3g}")
        lines.append(f"probabilities and quantiles are of {field.answers_from}{steps}")
    return lines


def in_numbers(given: Measurements, field: Field) -> str:
    """Mean and sd over the field: of all channels together, or of each where they differ."""
    mean, square = (np.nanmean(part.reshape(-1, part.shape[-1]), axis=0)
                    for part in (field.mean, field.sd**2))
    sd = np.sqrt(square)
    if not given.are_quantities:
        return f"mean {mean.mean():.4g}, typical sd {np.sqrt((sd**2).mean()):.2g}"
    return "; ".join(f"{name}: mean {m:.4g}, typical sd {s:.2g}"
                     for name, m, s in zip(given.names, mean, sd, strict=True))


def main(arguments: list[str] | None = None) -> None:
    typed = sys.argv[1:] if arguments is None else arguments
    reconstruct(cli.parse(Config, typed, __doc__, switches=True), shlex.join(typed))


if __name__ == "__main__":
    sys.exit(cli.run(main))
