"""Small archives in the exact format of those of CIFAR-10."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

import numpy as np

ROWS = 40


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) classes and (n, 3072) rows: red, green, blue planes."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (ROWS, 3072)).astype(np.uint8)
    return rng.integers(0, 10, ROWS).astype(np.uint8), rows


def python2_pickle(classes: np.ndarray, rows: np.ndarray) -> bytes:
    """A batch as Python 2.7 with protocol 2 and numpy 1 wrote it, opcode by opcode."""
    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    raw = rows.tobytes()
    return b"".join([
        b"\x80\x02}(",
        text(b"batch_label"), text(b"training batch 1 of 5"),
        text(b"labels"), b"](", *map(number, classes.tolist()), b"e",
        text(b"data"), b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cnumpy\nndarray\n", number(0), b"\x85", text(b"b"), b"\x87R(",
        number(1), number(len(rows)), number(3072), b"\x86",
        b"cnumpy\ndtype\n", text(b"u1"), number(0), number(1), b"\x87R(",
        number(3), text(b"|"), b"NNN", b"J\xff\xff\xff\xff" * 2, number(0), b"tb",
        b"\x89", b"T", struct.pack("<i", len(raw)), raw, b"tb",
        text(b"filenames"), b"](", text(b"a.png"), b"e",
        b"u.",
    ])


def write_archive(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def members(form: str) -> dict[str, bytes]:
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    contents = {}
    for seed, name in enumerate(names):
        classes, rows = batch(seed)
        if form == "binary":
            records = np.concatenate([classes[:, None], rows], axis=1)
            contents[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
        elif form == "python":
            contents[f"cifar-10-batches-py/{name}"] = python2_pickle(classes, rows)
        else:  # a pickle of today's Python and numpy
            content = pickle.dumps({b"data": rows, b"labels": classes.tolist()}, protocol=2)
            contents[f"cifar-10-batches-py/{name}"] = content
    form = "binary" if form == "binary" else "python"
    contents[f"cifar-10-batches-{form}/batches.meta"] = b"not read"
    return contents
