from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from yolofleet.__main__ import WAITING_TURNS
from yolofleet.__main__ import run as run_program
from yolofleet.cli.commands import app
from yolofleet.cli.main import main
from yolofleet.cli.progress import format_row
from yolofleet.core.stopping import StoppedBySignal

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "numpy", "pydantic", "boto3", "yaml", "cv2", "webdataset")


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, yolofleet.cli.commands; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_standard_library_is_not_shadowed() -> None:
    code = "import platform; print(platform.system(), platform.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT) not in done.stdout
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("command", [[], ["train"], ["data"], ["models"], ["evaluate"], ["predict"], ["registry"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_the_usage_of_a_command_shows_each_argument_once() -> None:
    groups: list[Any] = [typer.main.get_command(app)]
    usages = []
    while groups:
        for name, command in groups.pop().commands.items():
            if hasattr(command, "commands"):
                groups.append(command)
            else:
                usages.append(command.get_usage(command.make_context(name, [], resilient_parsing=True)))
    assert "Usage: train [OPTIONS] {JOB} [KEY=VALUE]..." in usages
    assert [usage for usage in usages if "[[" in usage or "...]" in usage or "...}" in usage] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("yolofleet ")


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["train", "x.yaml", "--launcer", "ray"], ["data", "nothing"]]
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        (["predict", "MODEL", "IMAGES", "--objectness", "--out", "found"], "--objectness"),
        (["registry", "list", "--tracking-uri", "--json"], "--tracking-uri"),
        (["jobs", "logs", "birds", "--grep=--json", "--tail", "-f"], "--tail"),
    ],
)
def test_an_option_is_not_the_value_of_another_one(
    command: list[str], refused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"error: {refused}: a value is missing" in error and f"write {refused}=VALUE" in error


def test_a_command_without_its_group_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote"]) == 2
    assert "Did you mean 'yolofleet registry promote'?" in capsys.readouterr().err
    assert main(["nothing"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["train", "job.yaml"], "resume the run with the same command, from the newest checkpoint"),
        (["data", "shard", "a.json", "images", "out"], "the finished shards are kept; resume the build"),
        (["models", "list"], "run the same command again"),
    ],
)
@pytest.mark.parametrize(
    ("stop", "exit_code"),
    [(KeyboardInterrupt(), 130), (StoppedBySignal(signal.SIGHUP), 129), (SystemExit(signal.SIGTERM), 143)],
)
def test_a_stopped_command_says_how_to_resume(
    arguments: list[str],
    advice: str,
    stop: BaseException,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise stop

    for target in ("specs.job.JobSpec.load", "data.read_source.read_source", "models.zoo.zoo_names"):
        monkeypatch.setattr(f"yolofleet.{target}", interrupt)
    assert main(arguments) == exit_code
    shown = capsys.readouterr()
    assert advice in shown.err and shown.err.count("\n") == 1 and shown.out == ""


@pytest.mark.parametrize(
    ("kind", "cure"),
    [(kind, "; name another path") for kind in ("EACCES", "EROFS", "EISDIR", "ENOTDIR", "ENAMETOOLONG")]
    + [("ENOSPC", "; free space there")],
)
def test_a_file_that_cannot_be_used_is_one_line(
    kind: str, cure: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(errno, kind)
    errors = [
        OSError(number, os.strerror(number), "out/a.jpg"),
        OSError(errno.EACCES, "of no file"),
        OSError("unknown"),
    ]

    def fail(*_: object, **__: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr("yolofleet.models.zoo.zoo_names", fail)
    assert main(["models", "list"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: out/a.jpg: {os.strerror(number)}{cure}") and shown.count("\n") == 1
    for _ in (*errors,):
        with pytest.raises(OSError, match=r"of no file|unknown"):
            main(["models", "list"])


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_that_wait_sleep_soon_unless_the_user_says_how(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # put back at the end
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen: list[dict[str, str]] = []
    monkeypatch.setattr("yolofleet.cli.main.run", lambda: seen.append(dict(os.environ)))
    run_program()
    found = {name: value for name, value in seen[0].items() if name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    assert found == (given or {"GOMP_SPINCOUNT": WAITING_TURNS})


@pytest.mark.parametrize("launch", ["import yolofleet.cli.commands", "import yolofleet.cli.main"])
def test_ctrl_c_is_answered_from_the_first_import_on(launch: str) -> None:
    """A finder stands for the user: it interrupts when the module is imported."""
    name = launch.removeprefix("import ")
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {name!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from yolofleet.__main__ import run\n"
        "sys.argv = ['yolofleet', 'train', 'job.yaml']\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "\nstopped (Ctrl-C): " in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("\nstopping (Ctrl-C)") or launch == "import yolofleet.cli.main"


def test_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "130 stopped by Ctrl-C" in " ".join(capsys.readouterr().out.split())


def test_rows_are_format_row() -> None:
    row = {"step": 3, "loss": 0.5, "loss_box": 0.1, "learning_rate": 0.01, "samples_per_second": 12.5}
    assert "loss 0.5000" in format_row(row)
    assert format_row(row).endswith("12.5 images/s")
    reached = {"model_flops_utilization": 0.41, "data_wait_share": 0.12, "copy_share": 0.01, "forward_share": 0.3}
    assert format_row(row | reached).endswith("12.5 images/s, 41% of the peak, waits: data wait 12%")
    assert format_row({"step": 3, "val_AP": None, "val_AP50": None}) == "step 3: validation AP50 none, AP none"


@pytest.mark.system
@pytest.mark.parametrize(("words", "found"), [("yolofleet tr", "train"), ("yolofleet train --la", "--launcher")])
def test_a_shell_completes_commands_and_options(words: str, found: str) -> None:
    asked = {"_YOLOFLEET_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "yolofleet"], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [found]
