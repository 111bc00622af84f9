from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolofleet.core.stopping import ending_signals, kept_handlers
from yolofleet.core.temporary import PREFIX, remove_leftovers, temporary_folder
from yolofleet.training.supervision.launch import termination


@pytest.fixture(autouse=True)
def _not_ignored() -> Iterator[None]:
    """Let SIGHUP end this process, as in a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_both_signals_ask_to_stop_and_handlers_come_back(kind: signal.Signals) -> None:
    before = signal.getsignal(kind)
    with termination() as reason:
        assert reason() is None
        os.kill(os.getpid(), kind)
        assert reason() == kind.name
    assert signal.getsignal(kind) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    with kept_handlers():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert ending_signals() == [signal.SIGTERM]
    assert ending_signals() == [signal.SIGTERM, signal.SIGHUP]


def test_a_stop_that_is_dropped_comes_again_and_one_that_is_handled_does_not() -> None:
    code = (
        "import os, signal, time\n"
        "from yolofleet.core import stopping\n"
        "stopping.AGAIN_SECONDS = 0.05\n"
        "stopping.stop_on_signals()\n"
        "class Dropping:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "try:\n"
        "    Dropping()\n"
        "    try:\n"
        "        time.sleep(20)\n"
        "    finally:\n"
        "        time.sleep(0.3)\n"
        "        print('cleaned up')\n"
        "except KeyboardInterrupt as error:\n"
        "    print(error.kind.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cleaned up\nSIGTERM\n", "")


def test_only_folders_that_no_one_uses_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n" + (
        "import os, signal\nfrom yolofleet.core.temporary import temporary_folder\n"
        "with temporary_folder() as folder:\n"
        "    (folder / 'shard').write_bytes(b'1')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=15, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / "other-folder").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "other-folder")
    with temporary_folder() as used:
        remove_leftovers()
        assert used.exists() and not left.exists() and (tmp_path / "other-folder").exists()
    assert not used.exists()


def test_a_temporary_folder_that_is_full_is_said_in_one_line(tmp_path: Path) -> None:
    code = (
        "import resource, signal\nfrom yolofleet.core.temporary import temporary_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "with temporary_folder() as folder:\n"
        "    (folder / 'shard').write_bytes(b'1' * 1000)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=15, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"yolofleet.core.errors.UserError: {tmp_path}: File too large; free space there")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_announced_although_a_library_answers_it() -> None:
    code = (
        "import os, signal, time\n"
        "from yolofleet.core import stopping\n"
        "stopping.AGAIN_SECONDS = 0.05\n"
        "told = []\n"
        "with stopping.kept_handlers(), stopping.announced_interrupt(told.append, 'it ends'):\n"
        "    library = lambda *_: told.append('library')\n"
        "    signal.signal(signal.SIGINT, library)\n"
        "    end = time.monotonic() + 60\n"
        "    while signal.getsignal(signal.SIGINT) is library and time.monotonic() < end: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print(told)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "['\\nstopping (Ctrl-C): it ends', 'library']\n"
    assert done.returncode == -signal.SIGINT
