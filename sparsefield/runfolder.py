"""The folder a training writes to: one training at a time, checkpoints, metrics, pictures."""

from __future__ import annotations

import fcntl
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from sparsefield.checkpoint import load_checkpoint, save_checkpoint, save_safetensors
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
        return sorted(self.path.glob(f"{self.name}_epoch_*.pth"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second training in it is refused with a UserError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")
        except OSError as error:
            raise UserError(
                f"save_dir={self.path} cannot be written ({error.strerror}): choose another folder"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another training writes to {self.path}: stop it, or set another save_dir"
                ) from error
            try:
                yield
            finally:
                if self._writer:
                    self._writer.close()

    def newest(self) -> dict | None:
        """The newest checkpoint that can be read, or None; says so when one had to be passed over.

        Raises:
            UserError: there are checkpoints, and none can be read.
        """
        candidates = [path for path in (self.latest, *reversed(self.numbered())) if path.exists()]
        problems = []
        for path in candidates:
            try:
                checkpoint = load_checkpoint(path)
            except UserError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                log.warning("WARNING: %s; falling back to %s", problem, path)
            return checkpoint
        if problems:
            raise UserError(
                f"no checkpoint in {self.path} can be read ({problems[0]}): restore one, or start "
                "over with --resume never"
            )
        return None

    def save(self, checkpoint: dict, *, numbered: bool, keep: int) -> bool:
        """Write the checkpoint as latest and, with `numbered`, under its epoch; then prune.

        A failing disk costs nothing but this checkpoint: it is logged, the files on disk stay,
        and False is returned.
        """
        targets = [self.latest]
        if numbered:
            targets.append(self._file(f"epoch_{checkpoint['epoch']:04d}"))
        try:
            for target in targets:
                save_checkpoint(target, checkpoint)
        except OSError as error:
            self._warn(error)
            return False
        for old in self.numbered()[:-keep]:
            old.unlink(missing_ok=True)
        return True

    def save_best(self, checkpoint: dict) -> None:
        """Write the best weights, as .pth and .safetensors, without what only resuming needs."""
        slim = {key: value for key, value in checkpoint.items() if key != "resume"}
        try:
            save_checkpoint(self.best, slim)
            save_safetensors(self.best.with_suffix(".safetensors"), slim)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        log.warning(
            "WARNING: checkpoint not written (%s): free space or permissions on %s; the previous "
            "one is intact and training goes on", error.strerror or error, self.path
        )

    def record(self, step: int, **numbers: float | str) -> None:
        """Add a line to metrics.jsonl, and the numbers to TensorBoard."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        try:
            with open(self.records, "a") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
            for name, value in numbers.items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
        except OSError as error:
            log.warning("WARNING: metrics of step %d not written: %s", step, error.strerror)

    def read_records(self) -> list[dict]:
        """All lines of metrics.jsonl so far; a line cut off by a crash is left out."""
        if not self.records.exists():
            return []
        records = []
        for line in self.records.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def rewind(self, step: int) -> None:
        """Forget records after `step`: they will be written again."""
        kept = [r for r in self.read_records() if r["step"] <= step]
        self.records.write_text("".join(json.dumps(r) + "\n" for r in kept))

    def set_aside(self) -> None:
        """Move a former training's files into a subfolder of their own, old_1, old_2, ..."""
        files = [path for path in self.path.iterdir()
                 if not path.name.startswith((".", "old_"))]
        if not files:
            return
        number = 1 + len(list(self.path.glob("old_*")))
        old = self.path / f"old_{number}"
        old.mkdir()
        for path in files:
            path.rename(old / path.name)
        log.info("the former training in %s is now in %s", self.path, old)
