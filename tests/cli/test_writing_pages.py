"""Pages are written beside the training: one at a time, and whatever becomes of them fails nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from yolofleet.cli.progress import writing_pages
from yolofleet.registry import release

QUICK, ENDLESS = "pass", "import time; time.sleep(600)"


class Pages:
    """Stands in for the process that writes a page: it runs a program instead."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, url: str) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen([sys.executable, "-S", "-c", self.program], stderr=subprocess.PIPE))
        return self.started[-1]


def test_a_page_is_not_begun_while_one_is_being_written_and_the_last_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = Pages(QUICK)
    monkeypatch.setattr(release, "start_page", pages.start)
    with writing_pages("runs/a") as write:
        write()
        write()  # the first has hardly begun
        num_begun = len(pages.started)
        pages.started[-1].wait()
        write()
    assert [process.returncode for process in pages.started] == [0] * (num_begun + 1)


def test_a_training_that_stops_leaves_no_page_behind_that_is_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(ENDLESS)
    monkeypatch.setattr(release, "start_page", pages.start)
    with pytest.raises(KeyboardInterrupt), writing_pages("runs/a") as write:
        write()
        write()
        raise KeyboardInterrupt
    (process,) = pages.started
    assert process.returncode == -9


def test_a_process_that_cannot_be_started_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> subprocess.Popen[bytes]:
        raise OSError("no memory")

    monkeypatch.setattr(release, "start_page", refuse)
    with writing_pages("runs/a") as write:
        write()
