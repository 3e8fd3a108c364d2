"""The folder that a training writes to."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter

from sparsefield.errors import UserError
from sparsefield.model import checkpoint as files
from sparsefield.model.checkpoint import load_checkpoint, write_atomically

log = logging.getLogger("sparsefield")


class RunFolder:
    """A training's folder, made when missing: NAME_latest.pth, NAME_best.*, NAME_epoch_XXXX.pth."""

    def __init__(self, path: str | Path, name: str):
        self.path, self.name = Path(path), name
        self.latest, self.best = self.path / f"{name}_latest.pth", self.path / f"{name}_best.pth"
        self.records = self.path / "metrics.jsonl"
        self._writer: SummaryWriter | None = None

    @property
    def has_weights(self) -> bool:
        """Whether there are best weights, of this training or another."""
        return any(self.path.glob(f"{self.name}_best.*"))

    def numbered(self) -> list[Path]:
        """Checkpoints of epochs, oldest first."""
        found = {int(path.stem.rpartition("_")[2]): path
                 for path in self.path.glob(f"{self.name}_epoch_*[0-9].pth")}
        return [found[epoch] for epoch in sorted(found)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second training in it is refused with a UserError."""
        lock = FileLock(self.path / ".lock", blocking=False, thread_local=False)
        holder = self.path / ".lock_holder"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else "it has just begun"
            raise UserError(f"another training writes to {self.path} ({who}): stop it, or set "
                            "another SAVE_DIR") from None
        except OSError as error:
            raise UserError(f"save_dir={self.path} cannot be written ({error.strerror}): choose "
                            "another folder") from error
        try:
            with self.tolerating("lock file"):
                holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
                # What a killed training left half written: see `write_atomically`.
                ours = re.compile(
                    rf"\.({self.name}_\w+\.\w+|metrics\.jsonl|report\.html)\.\d+\.tmp")
                for left in self.path.glob(".*.tmp"):
                    if ours.fullmatch(left.name):
                        left.unlink()
            yield
        finally:
            self._close_writer()
            lock.release()

    @contextmanager
    def tolerating(self, what: str) -> Iterator[None]:
        """Within it, a disk that fails costs what is written and a warning, not the training."""
        try:
            yield
        except OSError as error:
            log.warning("WARNING: %s not written (%s): look at free space and permissions of %s; "
                        "the checkpoints there are intact and training goes on",
                        what, error.strerror or error, self.path)

    def newest(self) -> dict | None:
        """The newest checkpoint that can be read, or None; the log says which were passed over.
        Raises UserError where there are some and none can be read, or of another model."""
        others = [path for path in self.path.glob("*_latest.pth") if path != self.latest]
        if others:
            raise UserError(f"{self.path} holds another model's training ({others[0].name}): set "
                            "another SAVE_DIR")
        problems = []
        for path in filter(Path.exists, (self.latest, *reversed(self.numbered()))):
            try:
                checkpoint = load_checkpoint(path)
                if "resume" not in checkpoint:
                    raise UserError(f"{path} holds weights alone, nothing to go on from")
            except UserError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                log.warning("WARNING: %s; falling back to %s", problem, path)
            return checkpoint
        if problems:
            raise UserError(f"no checkpoint in {self.path} can be gone on from ({problems[0]}): "
                            "restore one, or start over with RESUME=never")
        return None

    def save(self, checkpoint: dict, numbered: bool, keep: int) -> bool:
        """Write the checkpoint as latest and, with `numbered`, under its epoch; then prune. Whether
        the disk took it. "latest" comes last: where it stands, all before it is written."""
        with self.tolerating("checkpoint"):
            if numbered:
                name = f"{self.name}_epoch_{checkpoint['epoch']:04d}.pth"
                files.save_checkpoint(self.path / name, checkpoint)
            files.save_checkpoint(self.latest, checkpoint)
            for old in self.numbered()[:-keep]:
                old.unlink()
            return True
        return False

    def save_best(self, checkpoint: dict) -> bool:
        """Write the best weights, without what only resuming needs. Whether the disk took them. The
        .pth comes last: where it is calibrated, so is the .safetensors."""
        slim = {key: value for key, value in checkpoint.items() if key != "resume"}
        with self.tolerating("best checkpoint"):
            files.save_safetensors(self.best.with_suffix(".safetensors"), slim)
            files.save_checkpoint(self.best, slim)
            return True
        return False

    def record(self, step: int, **numbers: float | str | list[float]) -> None:
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
        """All records of metrics.jsonl so far; lines that are none of ours are left out."""
        return [record for line in self._lines() if (record := _record(line))]

    def _lines(self) -> list[str]:
        there = self.records.exists()
        return self.records.read_text(errors="surrogateescape").split("\n") if there else []

    def rewind(self, step: int) -> None:
        """Forget records after `step`, which will be written again, and one cut off by a crash;
        lines that no training wrote stay."""
        kept = []
        for line in self._lines():
            record = _record(line)
            is_ours = line.startswith(START) or START.startswith(line)
            if record["step"] <= step if record else not is_ours:
                kept.append(line + "\n")
        if self.records.exists():
            with self.tolerating("metrics"):
                write_atomically(self.records, "".join(kept).encode(errors="surrogateescape"))

    def set_aside(self) -> None:
        """Move an earlier training's files into a subfolder of their own, old_1, old_2, ..."""
        patterns = (f"{self.name}_latest.pth", f"{self.name}_best.*", f"{self.name}_epoch_*.pth",
                    "metrics.jsonl", "tensorboard", "training_loss.png", "report.html",
                    "pictures_epoch_*.png")
        files = [path for pattern in patterns for path in self.path.glob(pattern)]
        if not files:
            return
        numbers = [int(path.name[4:]) for path in self.path.glob("old_*[0-9]")
                   if path.name[4:].isdecimal()]
        old = self.path / f"old_{1 + max(numbers, default=0)}"
        old.mkdir()
        for path in files:
            path.rename(old / path.name)
        log.info("the earlier training in %s is now in %s", self.path, old)


START = '{"step": '  # of every line of metrics.jsonl that a training writes


def _record(line: str) -> dict | None:
    """The record in a line of metrics.jsonl; None if the line is none of a training's."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
