"""CIFAR-10 from small archives in the exact format of the real ones."""

from __future__ import annotations

import hashlib
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from archives import ROWS, batch, members, write_archive

from sparsefield.data import open_data, sources
from sparsefield.errors import UserError


@pytest.mark.parametrize("form", ["binary", "python", "python3"])
def test_archive(tmp_path, form):
    file = f"cifar-10-{'binary' if form == 'binary' else 'python'}.tar.gz"
    write_archive(tmp_path / file, members(form))
    data = open_data("cifar10", data_dir=tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [180, 20, ROWS]
    assert (data.height, data.width, data.channels) == (32, 32, 3)
    for split, seed, row in ((data.train, 0, 0), (data.val, 4, ROWS - 20), (data.test, 5, 0)):
        picture = batch(seed)[1][row].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_allclose(data.to_physical(split.example(0)), picture, atol=1e-4)


class Executes:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_executed(tmp_path):
    trap = tmp_path / "executed"
    content = members("python") | {
        "cifar-10-batches-py/data_batch_1": pickle.dumps({"data": Executes(trap)}, protocol=2)
    }
    write_archive(tmp_path / "cifar-10-python.tar.gz", content)
    with pytest.raises(UserError, match="open, which is refused"):
        open_data("cifar10", data_dir=tmp_path)
    assert not trap.exists()


def test_archive_cut_off(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, members("binary"))
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"cut off.*delete"):
            open_data("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("missing", ["test_batch.bin", "data_batch"])
def test_archive_without_a_part(tmp_path, missing):
    contents = {k: v for k, v in members("binary").items() if missing not in k}
    write_archive(tmp_path / "cifar-10-binary.tar.gz", contents)
    with pytest.raises(UserError, match="no CIFAR-10 archive"):
        open_data("cifar10", data_dir=tmp_path)


def test_no_network_says_what_to_put_where(tmp_path):
    with pytest.raises(UserError) as refused:
        sources.open_cifar10(tmp_path, url="http://127.0.0.1:9/")
    line = str(refused.value)
    assert "\n" not in line and str(tmp_path) in line and "--data_dir" in line
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in line
    assert sources.CIFAR10_SHA256["cifar-10-binary.tar.gz"] in line


@pytest.fixture
def server():
    """Serves `content`, breaks off after `limit` bytes, and notes where each request began."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            serving.starts.append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(serving.content) - start))
            self.end_headers()
            self.wfile.write(serving.content[start:][:serving.limit])

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.starts, serving.limit = [], None
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


def test_download_resumes_and_is_checked(tmp_path, server, monkeypatch):
    write_archive(tmp_path / "made.tar.gz", members("binary"))
    server.content = (tmp_path / "made.tar.gz").read_bytes()
    checksum = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setitem(sources.CIFAR10_SHA256, "cifar-10-binary.tar.gz", checksum)
    url = f"http://127.0.0.1:{server.server_port}/"

    folder = tmp_path / "folder"
    server.limit = 100_000
    with pytest.raises(UserError, match="could not be downloaded"):
        sources.open_cifar10(folder, url)
    server.limit = None
    data = sources.open_cifar10(folder, url)
    assert server.starts[0] == 0 and 0 < server.starts[1] <= 100_000
    assert len(data.train) == 180
    assert [path.name for path in folder.iterdir()] == ["cifar-10-binary.tar.gz"]
    sources.open_cifar10(folder, url)
    assert len(server.starts) == 2  # found, not asked for again

    server.content = b"something else"
    with pytest.raises(UserError, match=r"could not be downloaded.*hash"):
        sources.open_cifar10(tmp_path / "other", url)
    assert list((tmp_path / "other").iterdir()) == []
