"""Signals: when a training ends before its last step."""

from __future__ import annotations

import logging
import os
import signal
import time

log = logging.getLogger("sparsefield")


class StopRequest:
    """Within it, SIGTERM, SIGHUP or Ctrl-C ask to stop after the current step; a second at once.

    Args:
        launched: by torchrun, which passes on signals that the rank has often got already: what
            follows within ECHO seconds is the same request. Its death is a request, too.
    """

    ECHO = 5.0

    def __init__(self, launched: bool = False):
        self.launcher = os.getppid() if launched else None
        self.asked_at: float | None = None

    def __enter__(self) -> StopRequest:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup: outlive the terminal
            numbers.append(signal.SIGHUP)
        self.former = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to stop after this step."""
        orphaned = self.launcher is not None and os.getppid() != self.launcher
        return self.asked_at is not None or orphaned

    def _ask(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            log.info("stopping after this step (once more: at once)")
        elif self.launcher is None or now - self.asked_at > self.ECHO:
            raise KeyboardInterrupt


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: let the training alone decide what it means."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
