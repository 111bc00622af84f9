"""What a process prints without being asked, logs and tracebacks, holds no secret of a URL and steers no terminal."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from yolofleet.core.redaction import redact
from yolofleet.core.terminal import note, printable


class RedactedRecord(logging.LogRecord):
    """A log record whose message holds no secret, whichever library logs it."""

    def getMessage(self) -> str:  # noqa: N802  # the name that logging gives it
        """Return the message with its arguments."""
        return printable(redact(super().getMessage()), keeps_colours=True)


class GuardedRecords:
    """Makes log records without secrets, traceback included.

    Args:
        make: Makes the records as they were until now: logging's own way, or Ray's.
    """

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **options: Any) -> logging.LogRecord:
        """Make a record."""
        record = self._make(*arguments, **options)
        record.__class__ = RedactedRecord
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = printable(redact("".join(traceback.format_exception(*record.exc_info)).rstrip()))
        return record


def guard_output() -> None:
    """Redact the log records and tracebacks of this process from now on."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, GuardedRecords):
        logging.setLogRecordFactory(GuardedRecords(make))
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_traceback
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda failed: _print_traceback(
            failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
        )


def _print_traceback(kind: type[BaseException], error: BaseException, origin: TracebackType | None) -> None:
    note("".join(traceback.format_exception(kind, error, origin)).rstrip("\n"))
