"""A command that is ended from outside, or cannot write, says so in one line and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from system.shell import COMMAND, wait_for
from yolofleet.core.temporary import PREFIX

pytestmark = pytest.mark.system
SLOW_BUILD = (
    "import time\n"
    "from yolofleet.data import build\n"
    "real = build.check_image\n"
    "build.check_image = lambda *a, **k: (time.sleep(0.2), real(*a, **k))[1]\n"
    "from yolofleet.__main__ import run\n"
    "run()\n"
)


def test_a_build_that_is_ended_leaves_no_temporary_folder_and_resumes(drawn: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = ["data", "shard", str(drawn / "images/instances_val.json"), str(drawn / "images/images")]

    def end_by(kind: signal.Signals) -> tuple[int, str]:
        build = subprocess.Popen(
            ["env", "--default-signal=INT", sys.executable, "-c", SLOW_BUILD, *arguments, str(tmp_path / "out")],
            env=os.environ | {"TMPDIR": str(temporary)},
            stderr=subprocess.PIPE,
            text=True,
        )
        before = set(temporary.iterdir())
        wait_for(lambda: set(temporary.glob(f"{PREFIX}*")) - before, what="a folder for shards")
        build.send_signal(kind)
        _, told = build.communicate(timeout=60)
        return build.returncode, told

    assert end_by(signal.SIGKILL)[0] == -signal.SIGKILL
    assert len(list(temporary.iterdir())) == 1
    for kind, name in ((signal.SIGHUP, "SIGHUP"), (signal.SIGINT, "Ctrl-C")):
        told = f"\nstopping ({name}); a second time ends it at once, without clean-up\n"
        told += f"stopped ({name}): the finished shards are kept; resume the build with the same command\n"
        assert end_by(kind) == (128 + kind, told)
        assert list(temporary.iterdir()) == []
    subprocess.run([*COMMAND, *arguments, str(tmp_path / "out")], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("pipe", "exit_code", "told"),
    [
        ("| head -1 > /dev/null", 0, ""),
        ("> /dev/full", 1, "failed: the result cannot be written to stdout: No space left on device"),
        (">&-", 0, ""),
        ("2> /dev/full", 0, ""),
    ],
)
def test_a_stream_that_takes_nothing_is_no_traceback(pipe: str, exit_code: int, told: str, tmp_path: Path) -> None:
    line = f"set -o pipefail; {' '.join(COMMAND)} models list --json {pipe}"
    done = subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code
    assert len(done.stderr.splitlines()) == bool(told) and done.stderr.startswith(told)
