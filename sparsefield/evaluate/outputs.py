"""Settings of the evaluations, and a folder that a command writes into without harm to others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsefield.data import Pattern, parse_pattern
from sparsefield.errors import UserError, require_seed


@dataclass
class EvaluationConfig:
    """Settings that both evaluations have."""

    data: str | None = None
    """What to test on, when it is not the test part of what was trained on."""
    data_test: str | None = None
    """An .npz file to test on, all of its pictures."""
    observe: str = "random:0.2"
    """Which points are observed."""
    seed: int = 0
    """Of observations, noise and bootstrap."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    save_dir: str = ""
    """Folder for the report and the pictures: new, empty, or of an earlier evaluation."""
    overwrite: bool = False
    """Write into save_dir also where it holds other files."""

    def pattern(self, *positive: str) -> Pattern:
        """Which points are observed. Raises UserError for this, the seed, or a number below 1."""
        require_seed(self.seed)
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        return parse_pattern(self.observe)

    def folder(self, names: Iterable[str], *checkpoints: str) -> OutputFolder:
        """The checked --save_dir."""
        inputs = [*checkpoints, self.data, self.data_test]
        return OutputFolder(self.save_dir, "--save_dir", names, inputs, self.overwrite)


class OutputFolder:
    """A folder that is missing, empty, or holds only files with the names that a command writes.

    Hidden files do not count.

    Args:
        flag: how the user chose the folder, for messages. names: of all files that the command can
            write. inputs: files that are read, and are never written. overwrite: other files may
            be there.
    Raises:
        UserError: the folder holds something else, or an input, or cannot be made.
    """

    def __init__(
        self, path: str | Path, flag: str, names: Iterable[str],
        inputs: Sequence[str | Path | None] = (), overwrite: bool = False,
    ):
        self.path, self.flag, self.names = Path(path), flag, set(names)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            there = sorted(self.path.iterdir())
        except OSError as error:
            raise self._cannot(error) from None
        read = {Path(given).resolve() for given in inputs if given}
        others = [file for file in there
                  if not self._is_ours(file) and not file.name.startswith(".")]
        for file in there:
            if self._is_ours(file) and file.resolve() in read:
                raise UserError(f"{file} is an input and would be overwritten: choose another "
                                f"folder with {flag}")
        if others and not overwrite:
            raise UserError(f"{flag} {self.path} holds files that this command does not write "
                            f"({others[0].name}): choose another folder, or add --overwrite")

    def write(self, files: dict[str, bytes]) -> None:
        """Write all files or none, and delete those of an earlier run that are not among them.

        All contents are on the disk under temporary names before the first file gets its own.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        temporary = {name: self.path / f".{name}.{os.getpid()}.tmp" for name in files}
        try:
            for name, content in files.items():
                with open(temporary[name], "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for name, path in temporary.items():
                os.replace(path, self.path / name)
            for old in list(self.path.iterdir()):
                if self._is_ours(old) and old.name not in files:
                    old.unlink()
        except OSError as error:
            raise self._cannot(error) from None
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)

    def _is_ours(self, file: Path) -> bool:
        return file.name in self.names and file.is_file()

    def _cannot(self, error: OSError) -> UserError:
        return UserError(f"{self.flag} {self.path}: {error.strerror or error}; choose another "
                         "folder")
