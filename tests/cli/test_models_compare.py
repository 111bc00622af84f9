"""``yolofleet models compare``: every published number, and runs, searches and versions among them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation.published_tables import published_tables
from yolofleet.cli.main import main
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model
from yolofleet.models.profile import profile
from yolofleet.models.zoo import resolve
from yolofleet.registry import version_files, versions
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.trials import Measurement, Observation, Trials
from yolofleet.specs.model import ModelChoice
from yolofleet.specs.search import load_search
from yolofleet.storage import open_storage
from yolofleet.tracking.run_directory import RunDirectory

TABLES = ("table1", "table2", "table9_v100", "table9_a100")
SPACE = Path(__file__).parents[2] / "search_spaces" / "table8-partial-auxiliary.yaml"
NARROW = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
AP = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", "compare", *arguments]) == 0
    return capsys.readouterr().out


def cells_of(row: dict[str, Any], table: str) -> dict[int, str]:
    """What the page shows of a row of the paper, by column: model, size, M, GFLOPs, FPS, AP, AP on test-dev."""
    known: dict[int, Any] = {0: row["model"], 1: row["size"], 2: row["parameters"], 3: row["gflops"]}
    if (fps := row.get("fps", row.get("fps_v100"))) is not None:
        known[4] = f"{fps:.1f} A100" if table.endswith("a100") else f"{fps:g} V100"
    known |= {5 + index: row.get(name) for index, name in enumerate(AP)}
    known |= {11 + index: row.get(f"{name}_test") for index, name in enumerate(AP)}
    known[5] = row.get("ap", row.get("ap_val"))
    return {column: str(value) for column, value in known.items() if value is not None}


def page_rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]


def num_measured(page: str) -> list[int]:
    """How many points each chart shows of what was measured here."""
    charts = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    return [len(s["p"]) for chart in charts for s in chart["series"] if s["n"] == "measured here"]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_the_paper_is_shown_with_its_digits(
    table: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    lines = printed(capsys, "--html", str(page)).splitlines()
    assert max(map(len, lines)) <= 80
    rows = page_rows(page.read_text())
    for row in published_tables()[table]:
        expected = cells_of(row, table)
        (shown,) = (cells for cells in rows if {n: cells[n] for n in expected if n < len(cells)} == expected)
        assert len(shown) == 17
        in_terminal = [cell for cell in (*shown[:8], shown[11])]
        assert any(line.split() == " ".join(in_terminal).split() for line in lines)


def test_table_10_is_shown_and_json_holds_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys)
    for row in published_tables()["table10"]:
        assert f"  {row['precision']}, IoU {row['iou']:.2f}: {row['ap_val']} AP" in text
    document = json.loads(printed(capsys, "--json"))
    assert document["measured"] == []
    by_name = {(row["model"], row["size"]): row for row in document["published"] if row["precision"] is None}
    for row in published_tables()["table1"]:
        assert {name: by_name[row["model"], row["size"]][name] for name in row} == row


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has ended: a narrow detector, and what was recorded of its evaluation."""
    directory = RunDirectory.open(tmp_path / "runs", "mine")
    package = save_detector(tmp_path / "package", build_model(NARROW, 2, deployed=True), [(1, "a"), (2, "b")], 64)
    directory.write_job("name: mine\n")
    directory.save_model(package)
    directory.record_facts(figures={"AP": 0.4321, "AP50": 0.6, "AP_small": None}, data_url={"val": "my/val"})
    return directory


def test_a_run_is_marked_apart_with_its_cost_and_its_data(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    document = json.loads(printed(capsys, run.url, "--html", str(page), "--json"))
    (mine,) = document["measured"]
    expected = profile(resolve(NARROW), num_classes=2, image_size=64)
    assert mine["parameters"] == expected.parameters_deployed / 1e6
    assert (mine["model"], mine["size"], mine["data"]) == ("mine", 64, "my/val")
    assert mine["figures"] == {"ap": pytest.approx(43.21), "ap50": pytest.approx(60.0)}
    assert num_measured(page.read_text()) == [1, 1]  # latency was not measured
    assert re.findall(r'<tr class="marked"><td>([^<]*)', page.read_text()) == ["mine"]
    lines = printed(capsys, run.url).splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("> mine")] == [[">", "mine"]]
    assert lines[-1] == f"> {run.url}, on my/val, square protocol"


def test_a_registered_version_is_compared_by_its_record(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"figures.AP": "0.5", "data_url.val": "coco/val"}
    found = versions.Version("shapes", 3, facts=facts)
    monkeypatch.setattr(versions, "find_version", lambda uri, reference: found)
    monkeypatch.setattr(version_files, "detector_folder", lambda uri, tracking: run.fetch_model(Path("unused")))
    uri = ("--tracking-uri", "http://127.0.0.1:1")
    (mine,) = json.loads(printed(capsys, "models:/shapes@champion", *uri, "--json"))["measured"]
    assert (mine["model"], mine["data"], mine["figures"]) == ("shapes@champion", "coco/val", {"ap": 50.0})


def write_search(folder: Path, *, ends: bool) -> SearchDirectory:
    """A search whose three variants have trained to their end, or not yet."""
    spec = load_search(SPACE)
    directory = SearchDirectory(open_storage(folder))
    directory.claim(spec)
    record = Trials(store_row=directory.append_row)
    figures = {"gflops": 842.2, "gflops_with_bias": 843.2, "parameters": 151.7e6, "latency_milliseconds": 20.0}
    for number, label in enumerate(spec.parameters["variant"].options):
        record.suggest(Observation({"variant": label}, figures))
        if ends:
            record.measure(number, Measurement(0, 1.0, 10, {"val_AP": 0.3 + number / 100}, 5.0))
            record.end(number, "completed")
    directory.close()
    return directory


def test_the_trials_of_a_search_are_named_by_their_variant(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    search = write_search(tmp_path / "search", ends=True)
    page = tmp_path / "page.html"
    text = printed(capsys, search.url, "--html", str(page))
    (line,) = (line for line in text.splitlines() if line.startswith("> partial aux"))
    assert line.split()[3:] == ["1280", "151.7", "843.2", "50", "32.0", "-", "-", "-"]
    assert num_measured(page.read_text()) == [3, 3, 3]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing-here", "there is no such file or folder"),
        ("package", "holds no evaluation, so its AP is not known"),
        ("begun", "no trial has trained to its end"),
    ],
)
def test_what_has_no_evaluation_is_refused(
    source: str, message: str, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_search(tmp_path / "begun", ends=False)
    assert main(["models", "compare", str(tmp_path / source)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "nothing-here").exists()
