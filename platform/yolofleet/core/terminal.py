r"""The one module that prints: what a stranger wrote cannot steer the terminal, and no stream can end the work.

File names, class names, values of specs and what MLflow keeps may hold escape sequences, or characters that turn the
direction of a text. They are printed as JSON writes them (``\u001b``), so that a JSON document stays what it is. Where
the stream takes ASCII alone, everything else is written so, too. The secrets of URLs are left out. The same holds for
what a process prints without being asked: logs and tracebacks.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from yolofleet.core.errors import WorkError
from yolofleet.core.redaction import redact

_CONTROL = (
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
CONTROL = re.compile(_CONTROL)
CONTROL_BUT_COLOURS = re.compile(rf"(\x1b\[[0-9;]{{0,20}}m)|{_CONTROL}")
NOT_ASCII = re.compile(r"[^\0-\x7f]")


class OutputError(WorkError):
    """The result cannot be written to stdout; the work itself is done."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the result cannot be written to stdout: {error.strerror}; what was made is kept")
        self.is_unread = error.errno == errno.EPIPE
        """Whether its reader has seen enough (``| head -1``)."""


def printable(text: str, *, keeps_colours: bool = False) -> str:
    """Return a text with every character escaped that a terminal would obey, line ends and tabs aside."""
    pattern = CONTROL_BUT_COLOURS if keeps_colours else CONTROL
    return pattern.sub(lambda found: found[0] if found.lastindex else _escape(found), text)


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def is_terminal() -> bool:
    """Return whether stderr is a terminal, on which progress can be drawn."""
    return sys.stderr is not None and sys.stderr.isatty()


def show(text: str, *, keeps_colours: bool = False, end: str = "\n") -> None:
    """Print a part of a command's result on stdout.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        _write(text + end, sys.stdout, keeps_colours=keeps_colours)
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(error) from error


def note(line: str) -> None:
    """Print a line on stderr: progress, a warning, what to do next; it is dropped where stderr does not take it."""
    try:
        _write(f"{line}\n", sys.stderr)
    except (OSError, ValueError):  # ValueError: the stream is closed
        silence(sys.stderr)


def _write(text: str, stream: TextIO | None, *, keeps_colours: bool = False) -> None:
    if stream is None:  # its descriptor was closed before the start
        return
    shown = printable(redact(text), keeps_colours=keeps_colours)
    try:
        shown.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        shown = NOT_ASCII.sub(_escape, shown)
    stream.write(shown)
    stream.flush()


def silence(stream: TextIO | None) -> None:
    """Let a stream that fails lead nowhere: what it still holds would fail again at the end of the process."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]  # None has no fileno either
        os.close(null)
    except (AttributeError, OSError, ValueError):
        return


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
