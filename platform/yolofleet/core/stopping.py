"""The signals that ask a process to end: SIGTERM, and SIGHUP (its terminal is gone) in the same way."""

from __future__ import annotations

import signal
from types import FrameType


class StoppedBySignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP came."""

    def __init__(self, kind: signal.Signals) -> None:
        super().__init__(kind.name)
        self.kind = kind


def ending_signals() -> list[signal.Signals]:
    """Return SIGTERM and SIGHUP, without those that this process ignores (under ``nohup``)."""
    return [kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) != signal.SIG_IGN]


def stop_on_signals() -> None:
    """Raise `StoppedBySignal` in the main thread from now on, so that temporary files and locks are given up.

    A second signal ends the process at once: Python drops an exception that is raised while it runs a destructor.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for kind in kinds:
            signal.signal(kind, signal.SIG_DFL)
        raise StoppedBySignal(signal.Signals(number))

    kinds = ending_signals()
    for kind in kinds:
        signal.signal(kind, stop)
