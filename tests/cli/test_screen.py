"""What a person sees in a window of any width: captured from tmux, a terminal that really obeys."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.cli.run_display import RunDisplay, bar_line, fill
from yolofleet.core.text import fit

WIDTHS = (60, 80, 120, 200)
TIME = r"(\d+ (s|min)|\d+ h \d\d min)"
PROGRAM = Path(__file__).with_name("displayed_run.py")


class Window:
    """A window of tmux in which a command runs."""

    def __init__(self, width: int, command: list[str], folder: Path) -> None:
        self._server = f"yolofleet-{os.getpid()}-{width}"
        environment = [f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}", "LANG=C.UTF-8", "PYTHONUTF8=1"]
        line = shlex.join(["env", *environment, *command])
        size = ["-x", str(width), "-y", "24"]
        # Ctrl-C reaches the shell, too, which else ends with the command, and the window with it.
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(folder), f"trap : INT; {line}; sleep 300")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-L", self._server, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def lines(self) -> list[str]:
        return self._tmux("capture-pane", "-p").rstrip("\n").splitlines()

    def wait_for(self, condition: Callable[[str], object], seconds: float = 240.0) -> list[str]:
        """Return the lines once they are so; of what is drawn at once, a first part may be there before the rest."""
        end = time.monotonic() + seconds
        while not condition("\n".join(shown := self.lines())):
            assert time.monotonic() < end, shown
            time.sleep(0.1)
        return shown

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def close(self) -> None:
        """End it; after Ctrl-C the server may have ended by itself."""
        subprocess.run(["tmux", "-L", self._server, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def open_window(tmp_path: Path) -> Iterator[Callable[..., Window]]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    windows: list[Window] = []

    def open_one(width: int, *command: str) -> Window:
        windows.append(Window(width, [sys.executable, *command], tmp_path))
        return windows[-1]

    yield open_one
    for window in windows:
        window.close()


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_fits_the_window(width: int, open_window: Callable[..., Window], tmp_path: Path) -> None:
    window = open_window(width, str(PROGRAM), "run")
    window.wait_for(lambda text: re.search(r"starting Ray +\d+ s", text))
    (tmp_path / "ray").touch()
    window.wait_for(lambda text: re.search(r"Ray starts 2 workers +\d+ s", text))
    (tmp_path / "workers").touch()
    shown = window.wait_for(lambda text: re.search(r"evaluating step 2000 +\d+ s\n(.*\n)*.*2 workers", text))
    assert shown[0] == "step 1000: validation AP50 0.5000, AP 0.3124, loss 0.2000"
    bar, activity, *figures = shown[1:]
    assert re.fullmatch(rf"training [━─]{{6,40}} 2,000/118,000  {TIME} left", bar)
    assert activity.split(maxsplit=1)[1].startswith("evaluating step 2000")
    assert 1 <= len(figures) <= 3
    assert re.split(r"  |\n", "\n".join(figures)) == [
        "AP 0.3124 (best 0.3124, step 1000)",
        "loss 0.1285",
        "box 0.0678",
        "objectness 0.0064",
        "class 0.0377",
        "learning rate 3.21e-03",
        "152.3 images/s",
        "data wait 2%",
        "2 workers",
    ]


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_search_fits_the_window(width: int, open_window: Callable[..., Window]) -> None:
    window = open_window(width, str(PROGRAM), "search")
    shown = window.wait_for(lambda text: re.search(r"\n *3  .*failed$", text))
    text = "\n".join(shown)
    assert "4 of 8 trials ended" in text and "1 failed" in text and "0.3 of 2 worker hours" in text
    assert "front: 3 trials (0, 1, 2)" in shown
    (head,) = (line for line in shown if "val_AP" in line)
    narrow = width == WIDTHS[0]  # no room for the parameters
    parameters = [] if narrow else ["parameters"]
    assert head.split() == ["trial", *parameters, "val_AP", "gflops", "trained", "state"]
    rows = [re.split("  +", row.strip()) for row in shown[shown.index(head) + 1 :]]
    assert [row[0] for row in rows] == ["4", "2", "1", "0", "3"]
    assert rows[0][-1] == "running" and rows[1][-1] == "completed, front" and rows[-1][-1] == "failed"
    assert narrow or rows[1][1] == "lr0=0.01235, depth=1.5"


@pytest.mark.system
@pytest.mark.slow
def test_what_is_done_is_shown_with_its_seconds_and_leaves_nothing(
    open_window: Callable[..., Window], tmp_path: Path
) -> None:
    window = open_window(80, str(PROGRAM), "wait")
    shown = window.wait_for(lambda text: re.search(r"stays\n.*5,000 images +\d+ s", text))
    assert shown[0] == "a line that stays" and len(shown) == 2
    (tmp_path / "evaluated").touch()
    shown = window.wait_for(lambda text: re.search(r"1,250/5,000 .* left", text))
    assert shown[0] == "a line that stays"
    assert re.fullmatch(rf"sharding [━─]+ 1,250/5,000  {TIME} left", shown[1]) and len(shown) == 2
    window.press("C-c")
    shown = window.wait_for(lambda text: "KeyboardInterrupt" in text)
    assert not any("sharding" in line for line in shown)


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("command", ["registry list", "train job.yaml", "tune space.yaml"])
def test_a_command_says_something_within_two_seconds(command: str, open_window: Callable[..., Window]) -> None:
    """A finder stands for a slow machine: it takes its time before the command's first module is there."""
    code = (
        "import sys, time\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'yolofleet.cli.commands': time.sleep(5)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from yolofleet.__main__ import run\n"
        f"sys.argv = ['yolofleet', *{command.split()!r}]\n"
        "run()\n"
    )
    window = open_window(80, "-c", code)
    name = " ".join(command.split()[:2])
    shown = window.wait_for(lambda text: re.search(rf"yolofleet {name} +\d+ s", text))
    assert re.fullmatch(rf". yolofleet {re.escape(name)} +\d+ s", shown[0])
    shown = window.wait_for(lambda text: "error: " in text)
    assert shown[0].startswith("error: ")


@given(st.text("ab c", max_size=60), st.integers(20, 200))
def test_no_word_is_cut_and_the_end_is_always_there(text: str, width: int) -> None:
    shown = fit(text, "  12 s", width=width)
    assert len(shown) <= width and shown.endswith("  12 s")
    words = shown.removesuffix("  12 s").removesuffix("..").split()
    if all(len(word) < width - 10 for word in text.split()):
        assert words == text.split()[: len(words)]


@given(st.integers(0, 10**7), st.integers(1, 10**7), st.floats(0, 10**7), st.sampled_from((59, *range(40, 200))))
def test_bar_step_and_time_left_are_always_there(done: int, total: int, left: float, width: int) -> None:
    line = bar_line("training", done, total, left, width)
    assert len(line) <= width
    assert f"{done:,}/{total:,}" in line and line.endswith(" left")


@given(st.lists(st.text("abc ", min_size=1, max_size=30), max_size=12), st.integers(20, 100))
def test_figures_are_whole(parts: list[str], width: int) -> None:
    lines = fill(parts, width, 3)
    assert len(lines) <= 3 and all(len(line) <= width for line in lines)
    assert set("".join(lines).replace(" ", "")) <= set("".join(parts))


def test_the_best_evaluation_of_an_earlier_start_stays_the_best() -> None:
    display = RunDisplay(10, 5, "starting Ray", {"step": 4, "val_AP": 0.4})
    display.show({"step": 6, "val_AP": 0.385})
    assert "AP 0.3850 (best 0.4000, step 4)" in " ".join(display.lines(120))


def test_the_display_begins_with_what_is_done() -> None:
    display = RunDisplay(10, 0, "starting Ray")
    bar, activity = display.lines(59)
    assert " 0/10" in bar and "starting Ray" in activity
