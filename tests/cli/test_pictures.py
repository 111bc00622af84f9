"""README's picture of a terminal: frames of a made-up run, drawn by ``benchmarks/pictures.py``."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from yolofleet.registry.release import RELEASE_KEY, Release
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory

SVG = "{http://www.w3.org/2000/svg}"
NUM_STEPS = 40
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", Path(__file__).parents[2] / "benchmarks" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pictures"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 40 steps, a second each, evaluated after 20 and 40."""
    folder = tmp_path / "demo" / "runs" / "birds"
    log = RunDirectory(open_storage(folder))
    log.append_event("start", step=0, num_steps=NUM_STEPS, workers=2, time=BEGAN.isoformat())
    for step in range(1, NUM_STEPS + 1):
        at = (BEGAN + timedelta(seconds=step)).isoformat()
        log.append_metrics({"step": step, "loss": 1 / step, "samples_per_second": 8.0, "time": at})
        if step % 20 == 0:
            at = (BEGAN + timedelta(seconds=step + 0.5)).isoformat()
            log.append_metrics({"step": step, "val_AP": step / 100, "val_AP50": step / 50, "time": at})
    log.close()
    record = Release(
        str(folder), NUM_STEPS, 9, {"AP": 0.4, "AP50": 0.8}, None, str(folder / "report.html"), str(folder), None
    )
    log.storage.put(RELEASE_KEY, json.dumps(asdict(record)).encode())
    return folder


def shown(group: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in group.iter(f"{SVG}text")]


def test_a_run_is_shown_from_its_start_to_its_result(
    pictures: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographed: list[Path] = []
    monkeypatch.setattr(pictures, "photograph", lambda page, out: photographed.append(page))
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(run), "--out", str(tmp_path)])
    clock, stderr = time.monotonic, sys.stderr
    pictures.main()
    assert (time.monotonic, sys.stderr) == (clock, stderr)
    assert photographed == [run / "report.html"]
    image = ElementTree.parse(tmp_path / "terminal.svg").getroot()
    frames = image.findall(f"{SVG}g")
    assert len(frames) == len(pictures.SHARES) + 1
    assert [frame.get("class") for frame in frames] == ["f"] * len(pictures.SHARES) + ["f last"]
    steps = [
        next(line for line in shown(frame) if f"/{NUM_STEPS}" in line.replace(" ", "")).replace(" ", "")
        for frame in frames
    ]
    for share, line in zip(pictures.SHARES[1:], steps[1:], strict=False):
        assert f"{round(share * NUM_STEPS)}/{NUM_STEPS}" in line
    first, last = shown(frames[0]), shown(frames[-1])
    assert first[0] == "$ yolofleet train birds.yaml"
    assert not any("AP50 0.8000" in line for line in first) and any("AP50 0.8000" in line for line in last)
    assert not any(str(tmp_path) in line for frame in frames for line in shown(frame)), "paths are told from the demo"
    _, _, width, height = map(float, image.get("viewBox", "").split())
    for text in image.iter(f"{SVG}text"):
        assert float(text.get("x", "")) + float(text.get("textLength", "")) <= width
        assert float(text.get("y", "")) < height


def test_text_is_escaped_and_wrapped(pictures: ModuleType) -> None:
    long = "a<b & " * 40
    (frame,) = ElementTree.fromstring(pictures.draw([[long]], "1 < 2")).findall(f"{SVG}g")
    assert " ".join(line.strip() for line in shown(frame)) == long.strip()
    assert all(len(line) <= pictures.COLUMNS for line in shown(frame))


def test_a_run_without_a_release_is_refused(
    pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        pictures.main()
    assert "is no finished run" in capsys.readouterr().err
