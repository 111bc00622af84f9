from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yolofleet.cli.main import main
from yolofleet.cli.progress import format_row

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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("yolofleet ")


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["train", "x.yaml", "--launcer", "ray"], ["data", "nothing"]]
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_rows_are_format_row() -> None:
    row = {"step": 3, "loss": 0.5, "loss_box": 0.1, "learning_rate": 0.01, "samples_per_second": 12.5}
    assert "loss 0.5000" in format_row(row)
    assert "12.5 images/s" in format_row(row)
    assert format_row({"step": 3, "val_AP": None, "val_AP50": None}) == "step 3: validation AP50 none, AP none"
