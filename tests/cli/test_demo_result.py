"""``yolofleet demo --json`` prints the document of the run alone; ``tests/system/test_demo.py`` runs the whole demo."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from yolofleet.cli.main import main
from yolofleet.registry.release import Release

FIGURES = {"AP": 0.4, "AP50": 0.7}


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """What the training of the demo would make."""
    record = Release(str(tmp_path / "run"), 9, 2, FIGURES, None, str(tmp_path / "report.html"), "images", None)
    monkeypatch.setattr("yolofleet.cli.demo.NUM_IMAGES", 10)

    def trained(*_: Any, **__: Any) -> tuple[Release, str]:
        return record, "done"

    monkeypatch.setattr("yolofleet.cli.train.run_job", trained)
    return record


def test_the_result_is_that_of_train_as_json(
    released: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path / "demo"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == asdict(released)
    assert "10 images in" in shown.err, "what the steps before print is not lost"


def test_without_it_the_steps_and_the_next_command_are_printed(
    released: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert "10 images in" in printed and "AP50 0.7000" in printed and "predict" in printed
