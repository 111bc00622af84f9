r"""The one module that prints: what a stranger wrote cannot steer the terminal, and no stream can end the work.

File names, class names, values of specs and what MLflow keeps may hold escape sequences, or characters that turn the
direction of a text. They are printed as JSON writes them (``\u001b``), so that a JSON document stays what it is. Where
the stream takes ASCII alone, everything else is written so, too. The secrets of URLs are left out. The same holds for
what a process prints without being asked: logs and tracebacks.

On a terminal a few lines stand below all that was printed: what is done now, for how long, and how far it is. They are
drawn again several times a second, so that nothing that takes time is silent, and make room for what is printed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TextIO

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.errors import WorkError
from yolofleet.core.redaction import redact
from yolofleet.core.text import fit, wrap_words

_CONTROL = (
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
CONTROL = re.compile(_CONTROL)
CONTROL_BUT_COLOURS = re.compile(rf"(\x1b\[[0-9;]{{0,20}}m)|{_CONTROL}")
NOT_ASCII = re.compile(r"[^\0-\x7f]")
NARROWEST = 21
DRAW_SECONDS = 0.2
SILENCE_SECONDS = 1.0
"""After this long without a line, what is done is shown."""
ERASE = "\r\x1b[J"
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ASCII_SPINNER = "|/-\\"
NO_STREAM = (AttributeError, OSError, ValueError)
"""What a stream raises that is closed, no terminal, or not there."""
Draw = Callable[[int], list[str]]
"""Returns the lines to draw, each of as many characters at most as it is given."""


class OutputError(WorkError):
    """The result cannot be written to stdout; the work itself is done."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the result cannot be written to stdout: {error.strerror}; written files are kept")
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
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int:
    """Return how many characters a line of a terminal takes."""
    try:
        return max(os.get_terminal_size(stream.fileno()).columns, NARROWEST)
    except NO_STREAM:
        return 80


class Screen:
    """The lines that stand below everything that was printed on the terminal, in this process.

    The cursor waits at the first one: whatever prints without asking begins there.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._draws: list[Draw] = []
        self._is_drawn = False
        self._printed_at = time.monotonic()
        self._is_at_line_start = True
        self._activity = ("", time.monotonic())
        self._frame = 0

    @contextmanager
    def drawing(self, draw: Draw | None) -> Iterator[None]:
        """Draw these lines, and no others, for the length of a with block; None: draw none."""
        with self.printing():
            self._draws.append(draw or (lambda width: []))
        try:
            yield
        finally:
            with self.printing():
                self._draws.pop()

    @contextmanager
    def printing(self, text: str = "\n") -> Iterator[None]:
        """Take the lines away for a text that is printed within a with block; nothing is drawn behind half a line."""
        with self._lock:
            self.erase()
            yield
            self._printed_at, self._is_at_line_start = time.monotonic(), text.endswith("\n")

    def erase(self) -> None:
        """Take the lines away; it does not wait for another thread, so that a signal handler may call it."""
        if self._is_drawn:
            self._is_drawn = False
            with suppress(*NO_STREAM):
                os.write(sys.stderr.fileno(), ERASE.encode())

    def begin(self, activity: str) -> None:
        """Let this be what is done from now on."""
        self._activity = (activity, time.monotonic())

    @property
    def is_unicode(self) -> bool:
        """Whether stderr takes more than ASCII."""
        return (sys.stderr.encoding or "").lower().startswith("utf")

    @property
    def width(self) -> int:
        """Characters of a line that is drawn again; the last column stays free."""
        return width_of(sys.stderr) - 1

    def frame(self) -> str:
        """Return the next sign that the process is alive, one character."""
        self._frame += 1
        frames = SPINNER if self.is_unicode else ASCII_SPINNER
        return frames[self._frame % len(frames)]

    def draw_activity(self, width: int) -> list[str]:
        """Return what is done, and for how long, once nothing has been printed for a moment."""
        activity, since = self._activity
        if time.monotonic() - max(self._printed_at, since) < SILENCE_SECONDS:
            return []
        from yolofleet.core.durations import describe_duration

        return [fit(f"{self.frame()} {activity}", f" {describe_duration(time.monotonic() - since)}", width=width)]

    @contextmanager
    def live(self, activity: str) -> Iterator[None]:
        """Keep the lines drawn for the length of a with block; first what is done, until `drawing` draws others."""
        self.begin(activity)
        if not is_terminal():
            yield
            return
        warning = "what is done cannot be shown"
        loop = BackgroundLoop(self._draw, seconds=DRAW_SECONDS, name="screen", warning=warning)
        with self.drawing(self.draw_activity), loop:
            yield

    def _draw(self) -> None:
        with self._lock, suppress(*NO_STREAM):
            if not self._draws or not self._is_at_line_start:
                return
            rows = os.get_terminal_size(sys.stderr.fileno()).lines
            lines = self._draws[-1](self.width)[: max(rows - 1, 1)]
            if not lines:
                self.erase()
                return
            shown = "\x1b[K\n".join(_encode_for(line, sys.stderr) for line in lines)
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            sys.stderr.write(f"{shown}\x1b[J{up}\r")
            sys.stderr.flush()
            self._is_drawn = True

    def leave_to_parent(self) -> None:
        """Draw nothing in this process any more: it is a child of the one that draws."""
        self._lock, self._draws, self._is_drawn = threading.RLock(), [], False


SCREEN = Screen()
"""The one that a process has, as it has one stderr."""
os.register_at_fork(after_in_child=SCREEN.leave_to_parent)


def doing(activity: str) -> None:
    """Say what is done from now on; it is shown on a terminal, with the seconds that it takes, and nowhere else."""
    SCREEN.begin(activity)


def announce(line: str) -> None:
    """Print a line on stderr at once: from a signal handler, which may have interrupted any other print."""
    SCREEN.erase()
    with suppress(*NO_STREAM):
        line = wrap_words(line, SCREEN.width) if is_terminal() else line
        os.write(sys.stderr.fileno(), f"{line}\n".encode("ascii", "backslashreplace"))


def show(text: str, *, keeps_colours: bool = False, end: str = "\n", wraps: bool = False) -> None:
    """Print a part of a command's result on stdout.

    Args:
        text: The part.
        keeps_colours: Whether the escape sequences of colours reach the terminal.
        end: What follows it.
        wraps: Whether it is prose that a terminal shows in lines of its own width; what a program reads is not.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with SCREEN.printing(text + end):
            _write(text + end, sys.stdout, keeps_colours=keeps_colours, wraps=wraps)
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(error) from error


def note(line: str) -> None:
    """Print a line on stderr: progress, a warning, what to do next; it is dropped where stderr does not take it."""
    try:
        with SCREEN.printing():
            _write(f"{line}\n", sys.stderr, wraps=True)
    except (OSError, ValueError):  # ValueError: the stream is closed
        silence(sys.stderr)


def _write(text: str, stream: TextIO | None, *, keeps_colours: bool = False, wraps: bool = False) -> None:
    if stream is None:  # its descriptor was closed before the start
        return
    shown = _encode_for(text, stream, keeps_colours=keeps_colours)
    stream.write(wrap_words(shown, width_of(stream)) if wraps and stream.isatty() else shown)
    stream.flush()


def _encode_for(text: str, stream: TextIO, *, keeps_colours: bool = False) -> str:
    shown = printable(redact(text), keeps_colours=keeps_colours)
    try:
        shown.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return NOT_ASCII.sub(_escape, shown)
    return shown


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
        SCREEN.erase()
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
