"""CIFAR-10 from small archives in the exact format of the real ones."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pooch
import pytest

from sparsefield.data import arrays, open_data
from sparsefield.errors import UserError

ROWS = 40
NAMES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def pixels(seed: int) -> np.ndarray:
    """(n, 3072): red, green, blue planes."""
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 3072)).astype(np.uint8)


def python2_pickle(rows: np.ndarray) -> bytes:
    """{"labels": [], "data": rows} as Python 2.7 with protocol 2 and numpy 1 wrote it."""
    raw = rows.tobytes()
    return (b"\x80\x02}(U\x06labels]U\x04datacnumpy.core.multiarray\n_reconstruct\n"
            b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K" + bytes([len(rows)]) + b"M\x00\x0c\x86"
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
            b"K\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tbu.")


FORMS = {
    "binary": (".bin", lambda rows: np.pad(rows, ((0, 0), (1, 0))).tobytes()),
    "python": ("", python2_pickle),
    "python3": ("", lambda rows: pickle.dumps({b"data": rows, b"labels": []}, protocol=2)),
}


def members(form: str) -> dict[str, bytes]:
    ending, content = FORMS[form]
    return {"cifar/batches.meta": b"not read"} | {
        f"cifar/{name}{ending}": content(pixels(seed)) for seed, name in enumerate(NAMES)}


def write_archive(folder, contents: dict[str, bytes], form: str = "binary"):
    path = folder / f"cifar-10-{form.rstrip('3')}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_archive(tmp_path, form):
    write_archive(tmp_path, members(form), form)
    data = open_data("cifar10", data_dir=tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [180, 20, ROWS]
    assert (data.height, data.width, data.channels) == (32, 32, 3)
    for split, seed, row in ((data.train, 0, 0), (data.val, 4, ROWS - 20), (data.test, 5, 0)):
        picture = pixels(seed)[row].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_allclose(data.to_physical(split.example(0)), picture, atol=1e-4)


def test_pickles_are_not_executed(tmp_path):
    trap = tmp_path / "executed"

    class Executes:
        def __reduce__(self):
            return open, (str(trap), "w")

    content = pickle.dumps({"data": Executes()}, protocol=2)
    write_archive(tmp_path, {f"cifar/{name}": content for name in NAMES}, "python")
    with pytest.raises(UserError, match="no CIFAR-10 archive"):
        open_data("cifar10", data_dir=tmp_path)
    assert not trap.exists()


def test_archive_cut_off_or_without_a_part(tmp_path):
    path = write_archive(tmp_path, members("binary"))
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"cut off.*delete"):
            open_data("cifar10", data_dir=tmp_path)
    for missing in ("test_batch.bin", "data_batch"):
        write_archive(tmp_path, {k: v for k, v in members("binary").items() if missing not in k})
        with pytest.raises(UserError, match="no CIFAR-10 archive"):
            open_data("cifar10", data_dir=tmp_path)


def test_no_network_says_what_to_put_where(tmp_path):
    with pytest.raises(UserError) as refused:
        arrays.open_cifar10(tmp_path, url="http://127.0.0.1:9/")
    line = str(refused.value)
    assert "\n" not in line and str(tmp_path) in line and "--data_dir" in line
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in line
    assert arrays.CIFAR10_SHA256["cifar-10-binary.tar.gz"] in line


def test_what_is_downloaded_is_checked(tmp_path, monkeypatch):
    content = write_archive(tmp_path, members("binary")).read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(arrays.CIFAR10_SHA256, "cifar-10-binary.tar.gz", checksum)
    for sent in (content, b"something else"):
        def download(url, output, _, sent=sent):
            with open(output, "wb") as file:
                file.write(sent)
        monkeypatch.setattr(pooch.core, "choose_downloader", lambda *_, d=download, **__: d)
        folder = tmp_path / str(len(sent))
        if sent is content:
            assert len(arrays.open_cifar10(folder).train) == 180
            continue
        with pytest.raises(UserError, match=r"could not be downloaded.*hash"):
            arrays.open_cifar10(folder)
        assert list(folder.iterdir()) == []
