r"""The one module that prints: what a stranger wrote cannot steer the terminal, and no stream can end the work.

File names, class names, values of specs and what MLflow keeps may hold escape sequences, or characters that turn the
direction of a text. They are printed as JSON writes them (``\u001b``), so that a JSON document stays what it is. Where
the stream takes ASCII alone, everything else is written so, too. The secrets of URLs are left out.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from typing import TextIO

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
