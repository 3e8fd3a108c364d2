"""The folder a training writes to: one training at a time, checkpoints, metrics, pictures."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from torch.utils.tensorboard import SummaryWriter

from sparsefield.checkpoint import (
    load_checkpoint, save_checkpoint, save_safetensors, write_atomically
)
from sparsefield.errors import UserError

log = logging.getLogger("sparsefield")


class RunFolder:
    """Names and rules of a training's files: NAME_latest.pth, NAME_best.pth, NAME_epoch_XXXX.pth.

    Args:
        path: folder, made when missing. name: what the files' names begin with.
    """

    def __init__(self, path: str | Path, name: str):
        self.path, self.name = Path(path), name
        self.latest, self.best = self._file("latest"), self._file("best")
        self.records = self.path / "metrics.jsonl"
        self._writer: SummaryWriter | None = None

    def _file(self, suffix: str) -> Path:
        return self.path / f"{self.name}_{suffix}.pth"

    def numbered(self) -> list[Path]:
        """Checkpoints of epochs, oldest first."""
        pattern = re.compile(rf"{re.escape(self.name)}_epoch_(\d+)\.pth")
        found = [(int(match[1]), path) for path in self.path.glob(f"{self.name}_epoch_*.pth")
                 if (match := pattern.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second training in it is refused with a UserError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a+")
        except OSError as error:
            raise UserError(
                f"save_dir={self.path} cannot be written ({error.strerror}): choose another folder"
            ) from error
        os.register_at_fork(after_in_child=lock.close)  # data processes must not hold it after us
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise UserError(
                    f"another training writes to {self.path} ({lock.read().strip()}): stop it, or "
                    "set another SAVE_DIR"
                ) from error
            try:
                self._prepare(lock)
                yield
            finally:
                self._close_writer()

    def _prepare(self, lock: TextIO) -> None:
        """Say who holds the folder; remove what a killed training left half written."""
        with self.tolerating("lock file"):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
            for left in self.path.glob(".*.tmp"):
                left.unlink()

    @contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Within it, a disk that fails costs what is written and a warning, not the training."""
        try:
            yield
        except OSError as error:
            log.warning(
                "WARNING: %s not written (%s): look at free space and permissions of %s; the "
                "checkpoints there are intact and training goes on",
                what, error.strerror or error, self.path,
            )

    def newest(self) -> dict | None:
        """The newest checkpoint that can be read, or None; says so when one had to be passed over.

        Raises:
            UserError: there are checkpoints, and none can be read; or they are of another model.
        """
        others = [path for path in self.path.glob("*_latest.pth") if path != self.latest]
        if others:
            raise UserError(
                f"{self.path} holds another model's training ({others[0].name}): set another "
                "SAVE_DIR"
            )
        candidates = [path for path in (self.latest, *reversed(self.numbered())) if path.exists()]
        problems = []
        for path in candidates:
            try:
                checkpoint = load_checkpoint(path)
            except UserError as error:
                problems.append(str(error))
                continue
            if "resume" not in checkpoint:
                problems.append(f"{path} holds weights alone, nothing to go on from")
                continue
            for problem in problems:
                log.warning("WARNING: %s; falling back to %s", problem, path)
            return checkpoint
        if problems:
            raise UserError(
                f"no checkpoint in {self.path} can be gone on from ({problems[0]}): restore one, "
                "or start over with RESUME=never"
            )
        return None

    def save(self, checkpoint: dict, numbered: bool, keep: int) -> bool:
        """Write the checkpoint as latest and, with `numbered`, under its epoch; then prune.

        A failing disk costs nothing but this checkpoint: it is logged, the files on disk stay,
        and False is returned. "latest" comes last: where it stands, all before it is written.
        """
        with self.tolerating("checkpoint"):
            if numbered:
                save_checkpoint(self._file(f"epoch_{checkpoint['epoch']:04d}"), checkpoint)
            save_checkpoint(self.latest, checkpoint)
            for old in self.numbered()[:-keep]:
                old.unlink()
            return True
        return False

    def save_best(self, checkpoint: dict) -> bool:
        """Write the best weights, as .pth and .safetensors, without what only resuming needs.

        Returns:
            whether the disk took them.
        """
        slim = {key: value for key, value in checkpoint.items() if key != "resume"}
        with self.tolerating("best checkpoint"):
            save_checkpoint(self.best, slim)
            save_safetensors(self.best.with_suffix(".safetensors"), slim)
            return True
        return False

    def record(self, step: int, **numbers: float | str) -> None:
        """Add a line to metrics.jsonl, and the numbers to TensorBoard."""
        with self.tolerating("metrics"):
            self._append(json.dumps({"step": step, **numbers}) + "\n")
        with self.tolerating("TensorBoard events"):
            if self._writer is None:
                self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            for name, value in numbers.items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
            return
        self._close_writer()  # it cannot recover; the next record starts another

    def _append(self, line: str) -> None:
        """Add a line whole or not at all."""
        content = line.encode()
        with open(self.records, "ab", buffering=0) as file:
            end = file.tell()
            if file.write(content) < len(content):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with self.tolerating("TensorBoard events"):
                writer.close()

    def read_records(self) -> list[dict]:
        """All records of metrics.jsonl so far; a line cut off by a crash is left out."""
        if not self.records.exists():
            return []
        records = []
        for line in self.records.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and "step" in record:
                records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Forget records after `step`: they will be written again."""
        if self.records.exists():
            kept = [record for record in self.read_records() if record["step"] <= step]
            lines = "".join(json.dumps(record) + "\n" for record in kept)
            with self.tolerating("metrics"):
                write_atomically(self.records, lines.encode())

    def set_aside(self) -> None:
        """Move a former training's files into a subfolder of their own, old_1, old_2, ..."""
        patterns = (f"{self.name}_latest.pth", f"{self.name}_best.*",
                    f"{self.name}_epoch_*.pth", "metrics.jsonl", "tensorboard",
                    "training_loss.png", "pictures_epoch_*.png")
        files = [path for pattern in patterns for path in self.path.glob(pattern)]
        if not files:
            return
        numbers = [int(path.name[4:]) for path in self.path.glob("old_*")
                   if path.name[4:].isdecimal()]
        old = self.path / f"old_{1 + max(numbers, default=0)}"
        old.mkdir()
        for path in files:
            path.rename(old / path.name)
        log.info("the former training in %s is now in %s", self.path, old)
