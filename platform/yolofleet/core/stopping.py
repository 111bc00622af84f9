"""The signals that ask a process to end: Ctrl-C, SIGTERM, and SIGHUP (its terminal is gone) in the same way."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_SECONDS = 1.0


class StoppedBySignal(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP came."""

    def __init__(self, kind: signal.Signals) -> None:
        super().__init__(kind.name)
        self.kind = kind


def signal_name(kind: signal.Signals) -> str:
    """Return what people call a signal."""
    return "Ctrl-C" if kind == signal.SIGINT else kind.name


def ending_signals() -> list[signal.Signals]:
    """Return SIGTERM and SIGHUP, without those that this process ignores (under ``nohup``)."""
    return [kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) != signal.SIG_IGN]


@contextmanager
def kept_handlers() -> Iterator[bool]:
    """Undo whatever is done to the handlers of these signals within a with block.

    Yields:
        Whether they can be set here: only the main thread may do that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield True
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def announced_interrupt(announce: Callable[[str], object], what: str) -> Iterator[None]:
    """Say at once that Ctrl-C has come, within a with block in which a library sets a handler of its own for it.

    Args:
        announce: Says it; called by the handler.
        what: What happens then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, alarm = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)

    def look(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if handler is before or not callable(handler):
            return
        signal.setitimer(signal.ITIMER_REAL, 0)

        def stop(number: int, frame: FrameType | None) -> None:
            announce(f"\nstopping (Ctrl-C): {what}")
            handler(number, frame)

        signal.signal(signal.SIGINT, stop)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is look:  # else a stop is under way, which has set its own
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)


def stop_on_signals(announce: Callable[[str], object] = str) -> None:
    """Raise `StoppedBySignal` in the main thread from now on, so that temporary files and locks are given up.

    It is raised again every second until something handles it: Python drops an exception that is raised while it runs
    a destructor, and so do extension modules that are just being imported. A second signal stops the clean-up, too.

    Args:
        announce: Says at once that the signal has come; it is called by its handler.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        stopped = StoppedBySignal(signal.Signals(number))
        for kind in kinds:
            signal.signal(kind, signal.default_int_handler if kind == signal.SIGINT else signal.SIG_DFL)
        announce(f"\nstopping ({signal_name(stopped.kind)}); a second time ends it at once, without clean-up")
        signal.signal(signal.SIGALRM, lambda *_: None if _is_handled(stopped) else _throw(stopped))
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
        raise stopped

    def report(failed: sys.UnraisableHookArgs) -> None:
        if not isinstance(failed.exc_value, StoppedBySignal):
            report_others(failed)

    report_others, sys.unraisablehook = sys.unraisablehook, report
    kinds = ending_signals()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        kinds.append(signal.SIGINT)
    for kind in kinds:
        signal.signal(kind, stop)


def stop_no_more() -> None:
    """Let a stop that was handled be over."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _is_handled(stopped: BaseException) -> bool:
    """Return whether the main thread is in a clean-up that the exception has set off."""
    error = sys.exception()
    while error is not None and error is not stopped:
        error = error.__context__
    return error is not None


def _throw(error: BaseException) -> None:
    raise error
