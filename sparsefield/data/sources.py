"""The data sets that `--data` names: photographs, elevation models, CIFAR-10, or a path."""

from __future__ import annotations

import hashlib
import pickletools
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sparsefield.data.arrays import Part, array_data, cut, open_array
from sparsefield.data.folder import CropSplit, Picture, open_folder, random_box
from sparsefield.data.netcdf import ENDINGS, GEOTIFF, open_netcdf
from sparsefield.data.scale import Data, Scale, pixel_scale
from sparsefield.errors import UserError
from sparsefield.hashed import Purpose, generator

NAMES = ("photos", "terrain", "cifar10")  # data sets that are no paths


def open_data(
    spec: str, *, image_size: int | None = None, data_dir: str | Path | None = None,
    value_range: Sequence[float] | None = None, units: str | None = None,
    channels: int | None = None, val: str | None = None, test: str | None = None, seed: int = 0,
    variables: Sequence[str] | None = None,
) -> Data:
    """The data set that `--data` names: photos, terrain, cifar10, a folder or a file.

    Args:
        spec: one of the three names, or a path.
        image_size: side of the fields that are cut from photos, terrain, folders and NetCDF,
            default 32; arrays and cifar10 keep the size that they have.
        data_dir: where the archives of cifar10 are or go, default the user's cache.
        value_range: arrays and NetCDF: values that become -1 and 1, lo hi, or so for each channel.
        units: arrays: text for colour bars, one or one for each channel with commas between.
        channels: folders: 1 or 3, needed where grey and colour pictures are mixed.
        val, test: arrays and folders: more of the kind of `spec`, to validate and test on.
        variables: NetCDF: the names of the channels.
        seed: photos, terrain: which crops are frozen; the same for runs that are to be compared.
    Raises:
        UserError: what is wrong with it, and what to do.
    """
    path = Path(spec)
    held_out = {"val": Path(val) if val else None, "test": Path(test) if test else None}
    is_gridded = spec not in NAMES and path.suffix.lower() in (*ENDINGS, *GEOTIFF)
    if variables and not is_gridded:
        asked = " ".join(variables)
        raise UserError(f"--variables {asked}: {spec} is no NetCDF file; leave it out")
    if spec == "terrain":
        return open_terrain(image_size or 32, seed)
    if spec == "photos":
        return open_photos(image_size or 32, seed)
    if spec == "cifar10":
        return open_cifar10(Path(data_dir) if data_dir else None)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"--data {path}: no such file or folder; give photos, terrain, cifar10, a folder of "
            "pictures, an .nc, a GeoTIFF, an .npz or an .npy"
        ) from None
    except OSError as error:
        raise UserError(f"--data {path}: {error.strerror}; choose another path") from None
    if path.is_dir():
        return open_folder(path, image_size=image_size or 32, channels=channels, **held_out)
    if is_gridded:
        return open_netcdf(path, variables=variables, image_size=image_size or 32,
                           value_range=value_range, units=units, **held_out)
    return open_array(path, value_range=value_range, units=units, **held_out)


def open_as_configured(config: dict) -> Data:
    """The data set that the settings of a training (as a dict) name; see `open_data`.

    Raises:
        UserError: as there, or a setting that means nothing for data that bring their own.
    """
    for name in ("data_val", "data_test", "value_range", "units"):
        if config["data"] in NAMES and config.get(name) is not None:
            raise UserError(f"{name}={config[name]}: {config['data']} brings its own; leave it out")
    chosen = {name: config.get(name) for name in ("data_dir", "value_range", "units", "variables")}
    chosen |= {name: config.get(f"data_{name}") for name in ("channels", "val", "test")}
    return open_data(config["data"], image_size=config["image_size"], **chosen)


# --- photographs and elevation models inside other packages ---------------------------------------

# Colour photographs inside the scikit-image wheel, split by picture. Licences, from its own notes:
# astronaut and hubble_deep_field NASA, public domain; rocket SpaceX, public domain; retina
# (M. Haeggstroem), coffee (R. Michetti) and chelsea (S. van der Walt) CC0; ihc no known copyright
# restrictions; motorcycle_left Middlebury stereo data 2014 (Scharstein et al.), for research.
PHOTOS = {
    "train": ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
              "retina.jpg"),
    "val": ("coffee.png",),
    "test": ("chelsea.png", "rocket.jpg"),
}
# The crops of an epoch: about as many as the pictures hold disjoint 32 x 32 squares at the
# middle (geometric mean) scale, and 32 steps of the default batch, which logs read well.
PHOTO_CROPS, FROZEN_PHOTOS = 2048, 256
LARGE_SIDE = 256  # every second frozen crop has at least this side, for the truth at 256 x 256

# Elevations in metres inside the matplotlib wheel, 344 x 403 points of 3 arc seconds around a fault
# in Tennessee and 91 x 120 points of 2 arc minutes around Vancouver Island. Split by columns, from
# west to east: no place of the test is in training. Between the parts of the fault 3 are left out.
FAULT, COAST = ("jacksboro_fault_dem.npz", "elevation"), ("topobathy.npz", "topo")
TERRAIN = {
    "train": ((FAULT, 0, 257), (COAST, 0, 84)),
    "val": ((FAULT, 260, 330),),
    "test": ((FAULT, 333, 403), (COAST, 84, 120)),
}
TERRAIN_CROPS, FROZEN_TERRAIN, LARGEST_TERRAIN = 512, 64, 64


def open_photos(image_size: int = 32, seed: int = 0) -> Data:
    """The photographs, cropped at random scales and shrunk to image_size.

    Frozen crops with an even index have a side of at least 256 px, so that `high_resolution` gives
    their truth at every size up to 256; the others are of any scale, like the training crops.

    Raises:
        UserError: image_size is not in 8 ... 256, or the wheel came without its pictures.
    """
    import skimage.data

    if not 8 <= image_size <= LARGE_SIDE:
        raise UserError(
            f"image size {image_size}: the photographs can be cut at 8 to {LARGE_SIDE} pixels"
        )
    folder = Path(skimage.data.__file__).parent
    try:
        files = {name: (folder / name).read_bytes() for names in PHOTOS.values() for name in names}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: reinstall scikit-image from its wheel, or "
                        "choose other --data") from None
    parts = [[Picture(np.asarray(Image.open(folder / name).convert("RGB"))) for name in names]
             for names in PHOTOS.values()]
    digest = hashlib.sha256(f"{image_size} {seed} {PHOTO_CROPS}".encode())
    for content in files.values():
        digest.update(content)
    splits = _crop_splits(parts, image_size, pixel_scale(3), seed, PHOTO_CROPS, FROZEN_PHOTOS,
                          large=LARGE_SIDE)
    return Data("photos", image_size, image_size, pixel_scale(3), digest.hexdigest(), *splits)


def open_terrain(image_size: int = 32, seed: int = 0) -> Data:
    """Elevations cropped at random scales and averaged to image_size; flipped and turned in
    training. Frozen crops overlap.

    Raises:
        UserError: image_size is not in 8 ... 64, or the wheel came without its sample data.
    """
    if not 8 <= image_size <= LARGEST_TERRAIN:
        raise UserError(f"image size {image_size}: the elevation models can be cut at 8 to "
                        f"{LARGEST_TERRAIN} points")
    grids = {name: _elevations(*name) for name in (FAULT, COAST)}
    low, high = (float(f([f(grid) for grid in grids.values()])) for f in (np.min, np.max))
    columns = " ".join(map(str, TERRAIN.values()))
    digest = hashlib.sha256(f"{image_size} {seed} {columns}".encode())
    for grid in grids.values():
        digest.update(grid.tobytes())
    pieces = [[grids[name][:, first:last, None] for name, first, last in areas]
              for areas in TERRAIN.values()]
    parts = [[Picture(piece) for piece in part if min(piece.shape[:2]) >= image_size]
             for part in pieces]
    scale = Scale(((low, high),), "m")
    splits = _crop_splits(parts, image_size, scale, seed, TERRAIN_CROPS, FROZEN_TERRAIN, first=3)
    return Data("terrain", image_size, image_size, scale, digest.hexdigest(), *splits)


def _elevations(file: str, name: str) -> np.ndarray:
    """(H, W) float64, in metres."""
    from matplotlib import cbook

    try:
        return np.asarray(cbook.get_sample_data(file)[name], dtype=np.float64)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: matplotlib came without its sample data; reinstall it "
                        "from its wheel, or choose other --data") from None


def _crop_splits(
    parts: Sequence[list[Picture]], image_size: int, scale: Scale, seed: int, in_epoch: int,
    in_test: int, *, first: int = 0, large: int = 0,
) -> list[CropSplit]:
    """Training, validation and test crops; frozen ones are a pure function of (seed, index).

    Args:
        first: number of the stream of random numbers of the first part. large: the least side of
            every second frozen crop.
    """
    splits = []
    for number, pictures in enumerate(parts):
        frozen = []
        for index in range(in_test):
            rng = generator(seed, Purpose.FROZEN_CROP, first + number, index)
            which = (index // 2 if large else index) % len(pictures)
            picture = pictures[which]
            smallest = image_size if index % 2 else large or image_size
            box = random_box(rng, picture.height, picture.width, smallest)
            frozen.append((which, box))
        length = in_test if number else in_epoch
        splits.append(CropSplit(pictures, frozen, length, image_size, scale))
    return splits


# --- CIFAR-10 -------------------------------------------------------------------------------------

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/"
# The standard archives (Krizhevsky 2009). The binary form comes first: it is what is downloaded
# when neither is there.
CIFAR10_SHA256 = {
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}
# The last tenth of the training pictures (5,000 of 50,000, in shuffled order) is validation.
CIFAR10_HELD_OUT = 0.1
# What tarfile and pickletools raise on files that are broken or not what their name says.
_BROKEN = (OSError, EOFError, ValueError, LookupError, zlib.error, tarfile.TarError)


def open_cifar10(data_dir: Path | None = None, url: str = CIFAR10_URL) -> Data:
    """CIFAR-10 from an archive in `data_dir`, downloaded into it if there is none.

    Args:
        data_dir: default: the user's cache folder (`pooch.os_cache("sparsefield")`).
    Returns:
        45,000 training and 5,000 validation pictures from the archive's training part, and its
        10,000 test pictures.
    Raises:
        UserError: no archive and no network, or an archive that is broken or of another kind.
    """
    import pooch

    folder = data_dir or Path(pooch.os_cache("sparsefield"))
    archives = [folder / name for name in CIFAR10_SHA256 if (folder / name).is_file()]
    archive = archives[0] if archives else _download(folder, url)
    try:
        batches = _read_batches(archive)
        training = np.concatenate([batches[name] for name in sorted(batches) if "data" in name])
        test = batches["test_batch"]
    except _BROKEN as error:
        raise UserError(
            f"{archive}: no CIFAR-10 archive, or cut off ({' '.join(str(error).split())}); delete "
            "it, and it is downloaded again"
        ) from None
    parts = cut(Part(str(archive), training, 0, len(training)), CIFAR10_HELD_OUT)
    return array_data("cifar10", [*parts, Part(str(archive), test, 0, len(test))])


def _read_batches(archive: Path) -> dict[str, np.ndarray]:
    """Name without ending -> (n, 32, 32, 3) uint8, of all batches in the archive.

    A picture is 3,072 bytes: all red, all green, all blue, each row by row. A binary batch has one
    byte for the class before each picture; a pickled one has all pictures in its longest string,
    which is found without executing the pickle.
    """
    batches = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name)
            if not (member.isfile() and name.stem.startswith(("data_batch_", "test_batch"))):
                continue
            content = tar.extractfile(member).read()
            if name.suffix == ".bin":
                rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3073)[:, 1:]
            else:
                strings = (s for _, s, _ in pickletools.genops(content) if isinstance(s, str))
                rows = np.frombuffer(max(strings, key=len).encode("latin-1"), dtype=np.uint8)
            planes = rows.reshape(-1, 3, 32, 32)
            batches[name.stem] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return batches


def _download(folder: Path, url: str) -> Path:
    import pooch

    name, checksum = next(iter(CIFAR10_SHA256.items()))
    try:
        return Path(pooch.retrieve(url + name, f"sha256:{checksum}", name, folder,
                                   progressbar=sys.stderr.isatty()))
    except (OSError, ValueError) as error:  # those of requests are OSErrors
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({reason}): put "
            f"{CIFAR10_URL}{name} (sha256 {checksum}) there, or name its folder with --data_dir"
        ) from None
