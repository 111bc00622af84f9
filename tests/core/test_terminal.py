from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import pty
import struct
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.cli.options import print_result
from yolofleet.core.terminal import CONTROL, GuardedRecords, OutputError, note, printable, show

HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\rc\x9bd\u202ee\u2066f\x7fg\udc80\u200b"


@given(st.text())
def test_nothing_that_is_printed_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert CONTROL.search(shown) is None
    assert printable(shown) == shown
    if CONTROL.search(text) is None:
        assert shown == text


def test_a_hostile_name_is_seen_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    note(HOSTILE)
    print_result({}, [HOSTILE, "\x1b[32mok\x1b[0m\tü"], as_json=False)
    print_result({HOSTILE: HOSTILE}, (), as_json=True)
    shown = capsys.readouterr()
    escaped = r"a\u001b]0;title\u0007\u001b[2Jb\rc\u009bd\u202ee\u2066f\u007fg\udc80\u200b"
    assert shown.err == f"{escaped}\n"
    first, second, *document = shown.out.split("\n")
    assert (first, second) == (escaped, "\x1b[32mok\x1b[0m\tü")
    assert json.loads("\n".join(document)) == {HOSTILE: HOSTILE}


@pytest.mark.parametrize("columns", [40, 200])
def test_a_terminal_gets_whole_words_and_a_pipe_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "warning: the model does not know cat, dog and 14 more, so AP is 0 there"
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
        note(text)
        print_result(None, [text], as_json=False)
        print_result([text], (), as_json=True)
        data = b""
        while not data.endswith(b"]\r\n"):
            data += os.read(reader, 4096)
    os.close(reader)
    prose = "warning: the model does not know cat,\ndog and 14 more, so AP is 0 there" if columns == 40 else text
    assert data.decode().replace("\r\n", "\n") == f"{prose}\n{prose}\n{json.dumps([text], indent=1)}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_takes_any_text(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    print_result({"name": "é 猫 😀"}, (), as_json=True)
    assert json.loads(stream.buffer.getvalue().decode(encoding)) == {"name": "é 猫 😀"}  # type: ignore[attr-defined]


def test_a_full_stdout_is_an_error_and_a_full_stderr_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"))
    with pytest.raises(OutputError, match="No space left on device"):
        show("a result")
    show("what comes later is dropped")
    note("a line")
    note("another")


def test_a_reader_that_has_seen_enough_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    with pytest.raises(OutputError) as caught:
        show("a result")
    assert caught.value.is_unread


def test_logs_and_tracebacks_are_printed_in_the_same_way(caplog: pytest.LogCaptureFixture) -> None:
    make = logging.getLogRecordFactory()
    logging.setLogRecordFactory(GuardedRecords(make))
    try:
        logging.getLogger("any").warning("cannot read %s", HOSTILE)
    finally:
        logging.setLogRecordFactory(make)
    (record,) = caplog.records
    assert "\\u202e" in record.getMessage() and CONTROL.search(record.getMessage()) is None
