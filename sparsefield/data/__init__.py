"""Data sets, observation patterns, training batches and the frozen evaluation cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsefield.data.arrays import open_array, open_cifar10
from sparsefield.data.batches import Batch, Pattern, TrainingBatches, frozen_case, parse_pattern
from sparsefield.data.crops import open_folder, open_photos, open_terrain
from sparsefield.data.files import are_one
from sparsefield.data.netcdf import ENDINGS, GEOTIFF, open_netcdf
from sparsefield.data.scale import Data, Scale, Split, standardised
from sparsefield.data.tracer import open_tracer
from sparsefield.errors import UserError

__all__ = [
    "NAMES", "Batch", "Data", "Pattern", "Scale", "Split", "TrainingBatches", "frozen_case",
    "open_as_configured", "open_data", "parse_pattern",
]

NAMES = ("photos", "terrain", "tracer", "cifar10")  # data sets that are no paths


def open_data(
    spec: str, *, image_size: int | None = None, data_dir: str | Path | None = None,
    value_range: Sequence[float] | None = None, units: str | None = None,
    channels: int | None = None, val: str | None = None, test: str | None = None, seed: int = 0,
    variables: Sequence[str] | None = None, split_by: str | None = None, frames: int = 1,
) -> Data:
    """The data set that `--data` names: photos, terrain, tracer, cifar10, a folder or a
    file.

    Args:
        spec: one of NAMES, or a path.
        image_size: side of the fields that are cut from photos, terrain, tracer, folders and
            NetCDF, default 32; arrays and cifar10 keep the size that they have.
        data_dir: where the archives of cifar10 are or go, default the user's cache.
        value_range: files and folders: values that become -1 and 1, lo hi, or so for each channel.
        units: of these: text for colour bars, one or one for each channel with commas between.
        channels: folders: 1 or 3, needed where grey and colour pictures are mixed.
        val, test: arrays and folders: more of the kind of `spec`, to validate and test on.
        variables: NetCDF: the names of the channels. split_by: folders: see `open_folder`.
        seed: photos, terrain, tracer: which crops are frozen; the same for runs that are to be
            compared.
        frames: of a sequence; 1: single fields. Of tracer, and of files whose fields follow each
            other in time.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path, size = Path(spec), image_size or 32
    is_gridded = path.suffix.lower() in (*ENDINGS, *GEOTIFF)
    if variables and not is_gridded:
        raise UserError(f"--variables {' '.join(variables)}: {spec} is no NetCDF file; leave it "
                        "out")
    if frames > 1 and spec != "tracer" and (spec in NAMES or path.is_dir()):
        raise UserError(f"time={frames}: {spec} holds single pictures; give tracer, or a file "
                        "whose fields follow each other in time (.nc, .npz, .npy)")
    if spec == "photos":
        return open_photos(size, seed)
    if spec == "terrain":
        return open_terrain(size, seed)
    if spec == "tracer":
        return open_tracer(size, seed, frames)
    if spec == "cifar10":
        return open_cifar10(Path(data_dir) if data_dir else None)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--data {path}: no such file or folder; give photos, terrain, tracer, "
                        "cifar10, a folder of pictures, an .nc, a GeoTIFF, an .npz or an "
                        ".npy") from None
    except OSError as error:
        raise UserError(f"--data {path}: {error.strerror}; choose another path") from None
    own = {"val": Path(val) if val else None, "test": Path(test) if test else None}
    scaled = {"value_range": value_range, "units": units}
    if path.is_dir():
        return open_folder(path, image_size=size, channels=channels, split_by=split_by, **scaled,
                           **own)
    if is_gridded:
        return open_netcdf(path, variables=variables, image_size=size, frames=frames, **scaled,
                           **own)
    return open_array(path, frames=frames, **scaled, **own)


def open_as_configured(config: dict) -> Data:
    """The data set that the settings of a training (as a dict) name; see `open_data`.

    Raises:
        UserError: as there, or a setting that means nothing for data that bring their own.
    """
    for name in ("data_val", "data_test", "value_range", "units"):
        if config["data"] in NAMES and config.get(name) is not None:
            raise UserError(f"{name}={config[name]}: {config['data']} brings its own; leave it out")
    for name in ("data_val", "data_test"):
        if config.get(name) and are_one(config[name], config["data"]):
            raise UserError(f"{name}={config[name]} is the training data itself; leave it out, and "
                            "a part of them is held out")
    is_folder = config["data"] not in NAMES and Path(config["data"]).is_dir()
    for name in ("data_channels", "split_by"):
        if config.get(name) is not None and not is_folder:
            raise UserError(f"{name}={config[name]}: {config['data']} is no folder of pictures; "
                            "leave it out")
    chosen = {name: config.get(name) for name in ("data_dir", "value_range", "units", "variables",
                                                "split_by")}
    chosen |= {name: config.get(f"data_{name}") for name in ("channels", "val", "test")}
    data = open_data(config["data"], image_size=config["image_size"],
                     frames=config.get("time", 1), **chosen)
    return standardised(data) if config.get("standardise") else data
