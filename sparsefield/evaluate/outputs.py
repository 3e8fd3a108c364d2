"""Which files of a folder this program may write: new ones, and those that it wrote itself.

A folder of outputs holds WRITTEN, a list of the names and SHA-256 sums of what was written. A
file that is not in it, or was changed since, is somebody's work and is not replaced.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparsefield.errors import UserError
from sparsefield.model.checkpoint import write_atomically

WRITTEN = ".written_by_sparsefield.json"


class OutputFolder:
    """A folder to write into, made when missing.

    Args:
        path: the folder. flag: how the user chose it, for messages. inputs: files that are read,
            and are never written.
    Raises:
        UserError: it cannot be made.
    """

    def __init__(self, path: str | Path, flag: str, inputs: Sequence[str | Path | None] = ()):
        self.path, self.flag = Path(path), flag
        self.inputs = [Path(given) for given in inputs if given]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot(error) from None

    def require(self, names: Iterable[str]) -> None:
        """Raises UserError unless each of these files may be written."""
        for name in names:
            path = self.path / name
            try:
                there = path.exists() or path.is_symlink()
                if there and any(given.exists() and path.samefile(given) for given in self.inputs):
                    raise UserError(f"{path} is an input and would be overwritten: choose another "
                                    f"folder with {self.flag}")
            except OSError as error:
                raise self._cannot(error) from None
            if there and not self._is_ours(name):
                raise UserError(f"{path} was not written by this command (or was changed since) "
                                "and would be lost: move it, or choose another folder with "
                                f"{self.flag}")

    def write(self, files: dict[str, bytes]) -> None:
        """Write files whole, each after `require`; remember that they are ours.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        try:
            self._remember({name: _digest(content) for name, content in files.items()})
            for name, content in files.items():
                write_atomically(self.path / name, content)
        except OSError as error:
            raise self._cannot(error) from None

    def remove_old(self, pattern: str, kept: Iterable[str]) -> None:
        """Delete what this program once wrote under names that match, but for those kept.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            for name in set(self._sums()) - set(kept):
                if re.fullmatch(pattern, name) and self._is_ours(name):
                    (self.path / name).unlink()
        except OSError as error:
            raise self._cannot(error) from None

    def _is_ours(self, name: str) -> bool:
        path, sums = self.path / name, self._sums().get(name, [])
        return path.is_file() and not path.is_symlink() and _digest(path.read_bytes()) in sums

    def _sums(self) -> dict[str, list[str]]:
        try:
            read = json.loads((self.path / WRITTEN).read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(read, dict):
            return {}
        return {name: sums for name, sums in read.items()
                if "/" not in name and isinstance(sums, list)}

    def _remember(self, sums: dict[str, str]) -> None:
        """Add sums; of a file the last ones stay too, as an end in between leaves either."""
        former = self._sums()
        joined = former | {name: [*former.get(name, [])[-3:], s] for name, s in sums.items()}
        write_atomically(self.path / WRITTEN, json.dumps(joined, indent=1).encode())

    def _cannot(self, error: OSError) -> UserError:
        return UserError(f"{self.flag} {self.path}: {error.strerror or error}; choose another "
                         "folder")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
