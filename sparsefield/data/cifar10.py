"""CIFAR-10 (Krizhevsky 2009): the standard archives, in their python or their binary form."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pooch
import requests
from tqdm import tqdm

from sparsefield.data.arrays import Part, array_data, cut
from sparsefield.data.base import Data
from sparsefield.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/"
# The binary form comes first: it is what is downloaded when neither is there.
SHA256 = {
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}
# The last tenth of the training pictures (5,000 of 50,000, in shuffled order) is validation.
HELD_OUT = 0.1
# What tarfile and pickle raise on files that are broken or not what their name says.
_BROKEN = (
    OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError,
    MemoryError, struct.error, zlib.error, tarfile.TarError, pickle.UnpicklingError,
)
ROW = 3 * 32 * 32  # all red, all green, all blue, each row by row


def open_cifar10(data_dir: Path | None = None, url: str = URL) -> Data:
    """CIFAR-10 from an archive in `data_dir`, downloaded into it if there is none.

    Args:
        data_dir: default: the user's cache folder (`pooch.os_cache("sparsefield")`).
    Returns:
        45,000 training and 5,000 validation pictures from the archive's training part, and its
        10,000 test pictures.
    Raises:
        UserError: no archive and no network, or an archive that is broken or of another kind.
    """
    folder = data_dir or Path(pooch.os_cache("sparsefield"))
    archives = [folder / name for name in SHA256 if (folder / name).is_file()]
    archive = archives[0] if archives else _download(folder, url)
    try:
        batches = _read(archive)
        training = np.concatenate(
            [batches[name] for name in sorted(batches) if name.startswith("data_batch_")]
        )
        test = batches["test_batch"]
        parts = cut(Part(str(archive), training, 0, len(training)), HELD_OUT)
        return array_data("cifar10", [*parts, Part(str(archive), test, 0, len(test))])
    except PermissionError:
        raise UserError(f"{archive}: no permission to read it; chmod +r") from None
    except _BROKEN as error:
        raise UserError(
            f"{archive}: no CIFAR-10 archive, or cut off ({' '.join(str(error).split())}); delete "
            "it, and it is downloaded again"
        ) from None


def _read(archive: Path) -> dict[str, np.ndarray]:
    """Name without ending -> (n, 32, 32, 3) uint8, of all batches in the archive."""
    batches = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name)
            if member.isfile() and name.stem.startswith(("data_batch_", "test_batch")):
                content = tar.extractfile(member).read()
                rows = _binary_rows(content) if name.suffix == ".bin" else _python_rows(content)
                batches[name.stem] = _pictures(rows)
    return batches


def _pictures(rows: np.ndarray) -> np.ndarray:
    planes = rows.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _binary_rows(content: bytes) -> np.ndarray:
    """Records of one byte for the class and 3,072 for the picture."""
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + ROW)[:, 1:]


def _python_rows(content: bytes) -> np.ndarray:
    """A pickled dictionary of Python 2 with the pictures as the array `data`."""
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    array = batch[b"data"] if b"data" in batch else batch["data"]
    return array.rows()


class _PickledArray:
    """Stands in for a pickled numpy array: keeps its bytes, runs nothing."""

    def __init__(self, *arguments: object):
        """What was called when the array was pickled, or its dtype: not needed."""

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def rows(self) -> np.ndarray:
        _, shape, _, is_fortran, raw = self.state
        if is_fortran:
            raise ValueError("an array in Fortran order")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape).reshape(-1, ROW)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain containers and numpy arrays, and nothing that could be executed."""

    ALLOWED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledArray,
        ("_codecs", "encode"): codecs.encode,  # bytes, as Python 3 writes them in old pickles
    }

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is refused") from None


def _download(folder: Path, url: str) -> Path:
    name, checksum = next(iter(SHA256.items()))
    try:
        return Path(pooch.retrieve(
            url + name, known_hash=f"sha256:{checksum}", fname=name, path=folder,
            downloader=_resume_download,
        ))
    except (requests.RequestException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({reason}): put {URL}{name} "
            f"(sha256 {checksum}) there, or name its folder with --data_dir"
        ) from None


def _resume_download(url: str, output_file: str, _: pooch.Pooch) -> None:
    """Goes on where an earlier download was cut off; pooch checks the result."""
    output = Path(output_file)
    partial = output.parent / (url.rsplit("/", 1)[-1] + ".part")
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code != requests.codes.range_not_satisfiable:  # else: all is there
            response.raise_for_status()
            is_rest = response.status_code == requests.codes.partial_content
            total = int(response.headers.get("Content-Length", 0)) + (have if is_rest else 0)
            with open(partial, "ab" if is_rest else "wb") as file, tqdm(
                desc=url, total=total, initial=have if is_rest else 0, unit="B", unit_scale=True
            ) as bar:
                for block in response.iter_content(2**16):
                    bar.update(file.write(block))
    os.replace(partial, output)
