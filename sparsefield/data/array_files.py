"""Reading arrays from .npy and .npz files of unknown origin."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sparsefield.data.files import refuse_foreign, require_file
from sparsefield.errors import UserError

# A larger .npy stays on disk and is mapped into memory.
MAPPED_BYTES = 2**28
# What numpy and zipfile raise on files that are broken or not what their name says.
_BROKEN = (
    OSError, ValueError, EOFError, LookupError, RuntimeError, MemoryError, SyntaxError,
    tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)
SPLITS = ("train", "val", "test")


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The fields in a file, and their units if it names them.

    Returns:
        {"images": array} from an .npy, or from an .npz with an array of that name or with one
        array only; {"train": ..., "val": ..., "test": ...} from an .npz that has these.
    Raises:
        UserError: no permission, broken, of another kind, more than memory holds, or object
            arrays (nothing in a file is ever executed).
    """
    require_file(path)
    refuse_foreign(path, "fields are .npz or .npy, or a folder of pictures")
    try:
        mode = "r" if path.stat().st_size > MAPPED_BYTES else None
        loaded = np.load(path, mmap_mode=mode, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}, None
        with loaded as archive:
            _check_fits_memory(path)
            names = _fields_among(path, [name for name in archive.files if name != "units"])
            arrays = {role: archive[name] for role, name in names.items()}
            return arrays, str(archive["units"]) if "units" in archive.files else None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; chmod +r or choose another") from None
    except _BROKEN as error:
        raise UserError(f"{path}: {_why_unreadable(error)}") from None


def _fields_among(path: Path, names: list[str]) -> dict[str, str]:
    """Role -> name in the archive."""
    if set(SPLITS) <= set(names):
        return {name: name for name in SPLITS}
    if "images" in names:
        return {"images": "images"}
    if len(names) == 1:
        return {"images": names[0]}
    raise UserError(
        f"{path}: which array holds the fields? name it `images` (found: "
        f"{', '.join(names) or 'none'})"
    )


def _why_unreadable(error: Exception) -> str:
    if "Object arrays" in str(error):
        return "holds an object array; fields must be one array of numbers of one shape"
    if "pickle" in str(error):
        return "no .npy or .npz file, whatever its name says"
    return f"broken or cut off ({' '.join(str(error).split())}); copy it again"


def _check_fits_memory(path: Path) -> None:
    """An archive that unpacks to more than the machine has would end in a crash."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if unpacked > memory / 2:
        raise UserError(
            f"{path}: unpacks to {unpacked / 2**30:.1f} GiB of {memory / 2**30:.1f} GiB of memory; "
            "save the array as .npy, which is read from disk as needed"
        )
