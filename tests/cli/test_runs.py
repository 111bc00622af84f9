"""``yolofleet runs``: what is listed, what a rule would take, and what stays in spite of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from yolofleet.cli.main import main
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.registry import run_sources
from yolofleet.storage import open_storage
from yolofleet.storage.lock import hold
from yolofleet.tracking.json_lines import encode_row

DAY = 86_400


def make_run(root: Path, name: str, *kinds: str, days: float = 0, **files: str) -> Path:
    """A run directory with such events that changed so many days ago."""
    folder = root / name
    (folder / "checkpoints/step-2").mkdir(parents=True)
    (folder / "checkpoints/step-2/COMMITTED").write_text("{}")
    (folder / "job.yaml").write_text(f"name: {name}\n" + files.pop("job", ""))
    event: dict[str, Any] = {"time": "2026-01-01T00:00:00.000Z", "step": 2, "num_steps": 4}
    (folder / "events.jsonl").write_bytes(b"".join(encode_row(event | {"kind": kind}) for kind in kinds))
    for key, text in files.items():
        path = folder / key.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    then = time.time() - days * DAY
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "runs"
    for number in range(4):
        make_run(root, f"old-{number}", "start", "end", days=40 + number)
    make_run(root, "new", "start", "end")
    make_run(root, "failed", "start", "failed", days=90)
    make_run(root, "running", "start", days=90)
    return root


def names(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob("*/job.yaml")}


def test_a_list_fits_80_columns_and_goes_by_pages_and_filters(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs, "n" * 100, "start", "end", days=1)
    assert main(["runs", "list", str(runs)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 9
    assert lines[1].split()[:3] == ["new", "FINISHED", "2/4"]
    assert "8 of 8" in printed.err
    assert main(["runs", "list", str(runs), "--state", "failed", "--json"]) == 0
    (failed,) = json.loads(capsys.readouterr().out)
    assert failed["name"] == "failed"
    assert main(["runs", "list", str(runs), "--state", "failed"]) == 0
    assert f"1 of 1, {format_bytes(failed['size_bytes'])} in all" in capsys.readouterr().err
    assert main(["runs", "list", str(runs), "--name", "old-*", "--limit", "3", "--page", "2", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["old-3"]
    assert main(["runs", "list", str(runs), "--name", "new-*"]) == 0
    assert "holds no such run" in capsys.readouterr().out
    assert main(["runs", "list", str(runs / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_nothing_goes_without_yes_and_only_what_the_rule_takes_with_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(runs)
    assert main(["runs", "gc", str(runs), "--older-than", "30d", "--keep-last", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("would go ") == 3 and "add --yes" in printed.err
    assert names(runs) == before
    assert main(["runs", "gc", str(runs), "--older-than", "30d", "--keep-last", "2", "--yes"]) == 0
    assert before - names(runs) == {"old-1", "old-2", "old-3"}
    capsys.readouterr()
    assert main(["runs", "gc", str(runs), "--older-than", "30d", "--state", "failed", "--yes"]) == 0
    assert "failed" not in names(runs) and {"old-0", "running"} < names(runs)


def test_without_a_rule_only_leftovers_go(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(runs)
    orphan = runs / "new" / "ray" / ("a" * 32)
    orphan.mkdir(parents=True)
    (orphan / "x.json").write_text("{}")
    half = runs / "half"
    with hold(open_storage(half)):
        (half / "metrics.jsonl").write_text("")
    assert main(["runs", "gc", str(runs), "--yes"]) == 0
    assert names(runs) == before
    assert not orphan.exists() and not (half / "metrics.jsonl").exists()
    assert "no rule is given" in capsys.readouterr().err


def test_what_is_in_use_stays_and_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(open_storage(runs / "old-3")):
        assert main(["runs", "gc", str(runs), "--older-than", "30d", "--yes"]) == 0
        assert "old-3" in names(runs), "its lock is fresh, so it is no longer old"
        assert main(["runs", "remove", str(runs / "old-3"), "--yes"]) == 1
    assert "is in use by" in capsys.readouterr().out
    assert "old-3" in names(runs)
    assert main(["runs", "remove", str(runs / "old-3"), "--yes"]) == 0
    assert "old-3" not in names(runs)


def test_sources_of_versions_stay_unless_asked_for(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(runs, "released", "start", "end", days=60, report__release="")
    (runs / "released/report").mkdir(exist_ok=True)
    (runs / "released/report/release.json").write_text(json.dumps({"model": "models:/shapes/3"}))
    make_run(runs, "by-hand", "start", "end", days=60, job="tracking: {uri: 'http://mlflow:5000'}\n")
    make_run(runs, "elsewhere", "start", "end", days=60)
    url = open_storage(runs / "by-hand").url
    monkeypatch.setattr(run_sources, "check_reachable", lambda uri: None)
    monkeypatch.setattr(run_sources, "_sources_of_versions", lambda uri, **_: {url: ["models:/shapes/4"]})
    wanted = [str(runs / name) for name in ("released", "by-hand", "elsewhere")]
    assert main(["runs", "remove", *wanted, "--yes"]) == 1
    printed = capsys.readouterr().out
    assert "is the source of models:/shapes/3" in printed and "is the source of models:/shapes/4" in printed
    assert {"released", "by-hand"} < names(runs) and "elsewhere" not in names(runs)
    assert main(["runs", "remove", *wanted[:2], "--registered", "--yes"]) == 0
    assert not {"released", "by-hand"} & names(runs)


def test_a_registry_that_does_not_answer_keeps_the_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs, "asked", "start", "end", days=60, job="tracking: {uri: 'http://127.0.0.1:9'}\n")
    assert main(["runs", "remove", str(runs / "asked"), "--yes"]) == 1
    assert "not known whether it is registered" in capsys.readouterr().out
    assert "asked" in names(runs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gc", "{runs}", "--older-than", "soon"], "--older-than 'soon' is not a duration"),
        (["gc", "{runs}", "--keep-last", "1", "--state", "running"], "--state running: is not one of"),
        (["gc", "{runs}/new", "--keep-last", "1"], "is the directory of one run"),
        (["remove", "{runs}/absent", "--yes"], "is the directory of neither a run nor a search"),
        (["show", "{runs}/absent"], "is the directory of neither a run nor a search"),
    ],
)
def test_wrong_input_is_refused_with_the_cure(
    arguments: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(runs)
    assert main(["runs", *(word.format(runs=runs) for word in arguments)]) == 2
    assert said in capsys.readouterr().err
    assert names(runs) == before
