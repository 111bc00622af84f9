"""The page of a run is a function of its directory: what it says, what it marks, what it advises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yolofleet.core.errors import UserError
from yolofleet.data.draw import encode
from yolofleet.storage import open_storage
from yolofleet.tracking.run_advice import advice
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_page import render_run, write_run_page
from yolofleet.tracking.run_record import EVALUATION_KEY, RunRecord, read_run

JOB = """
name: demo
model: {name: yolov7-tiny, depth: 1.5, hidden_width: 0.5}
data: {train: shards/train, val: shards/val, image_size: 320}
recipe: tiny
hyperparameters: {lr0: 0.04}
precision: bf16
"""
START = {"step": 0, "num_steps": 2000, "workers": 2, "gpus_per_worker": 1.0, "device": "GPU <b>", "price_per_hour": 2.0}


def make_run(folder: Path, **evaluation: Any) -> RunDirectory:
    """A run that failed once, was rolled back, and has ended."""
    with RunDirectory(open_storage(folder)) as run:
        run.write_job(JOB)
        run.record_facts(
            num_classes=3, contents={"train": "ab" * 32}, environment={"torch": "2.13", "commit": "c0ffee"}
        )
        run.append_event("start", **START)
        run.append_metrics({"step": 400, "loss": 1.0, "learning_rate": 0.01, "gradient_norm": float("nan")})
        run.append_event("failure", failure="worker", reason="node a is gone", reached=450, again=True)
        run.append_event("start", **{**START, "step": 400})
        run.append_metrics({"step": 1000, "loss": 0.5, "val_AP": 0.25, "val_AP50": 0.5, "data_wait_share": 0.4})
        run.append_event("rolled_back", to_step=1000, window=[1001, 1010], reason="loss is NaN")
        run.append_metrics({"step": 2000, "loss": 0.25, "val_AP": 0.5, "val_AP50": None})
        run.append_event("end", step=2000)
        if evaluation:
            run.storage.put(EVALUATION_KEY, json.dumps(evaluation).encode())
    return run


def charts_of(page: str) -> dict[str, Any]:
    """The data of each chart by the chart's title."""
    titles = re.findall(r'<figure class="chart"[^>]* aria-label="([^"]*)"', page)
    found = re.findall(r'<script type="application/json">(.*?)</script>', page)
    return dict(zip(titles, map(json.loads, found), strict=True))


def test_the_page_says_what_was_trained_where_and_how(tmp_path: Path) -> None:
    address = write_run_page(make_run(tmp_path / "demo"))
    page = Path(address).read_text()
    assert "yolov7-tiny (depth 1.5) is done at step 2,000 of 2,000 (100%)" in page and "on 2 workers" in page
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert shown["workers"] == "2, GPU &lt;b&gt;" and shown["precision"] == "bf16" and shown["commit"] == "c0ffee"
    assert shown["lr0"] == "0.04 instead of 0.01" and shown["its manifest"] == "ab" * 8
    assert float(shown["parameters"].split()[0]) > 0 and shown["classes"] == "3" and "320 px" in shown["GFLOPs"]
    assert shown["failures"] == "worker 1" and "cost" in shown and "node a is gone" in page


def test_curves_have_common_axes_and_mark_what_happened(tmp_path: Path) -> None:
    charts = charts_of(render_run(read_run(make_run(tmp_path / "demo"))))
    assert charts["loss"]["series"][0]["p"] == [[400, 1.0], [1000, 0.5], [2000, 0.25]]
    assert {tuple(chart["x"]) for chart in charts.values()} == {(0.0, 2000.0)}
    assert "gradient norm" not in charts  # its only value is no number
    marks = [(x, text) for x, text, _ in charts["AP"]["marks"]]
    assert marks == [
        (450, "failure: node a is gone"),
        (400, "workers started again"),
        (1000, "rolled back: loss is NaN"),
    ]


def test_a_run_of_one_step_shows_its_figures_and_no_curve_of_one_point(tmp_path: Path) -> None:
    with RunDirectory(open_storage(tmp_path / "demo")) as run:
        run.write_job(JOB)
        run.append_event("start", step=0, workers=1, num_steps=1)
        run.append_metrics({"step": 1, "loss": 0.5, "loss_box": 0.25, "learning_rate": 0.01})
        run.append_event("end", step=1)
    page = render_run(read_run(run))
    assert charts_of(page) == {} and "total: 0.5, box: 0.25" in page and "It trained 1 step:" in page


def test_a_failure_behind_the_last_row_is_marked_inside_of_the_charts(tmp_path: Path) -> None:
    with RunDirectory(open_storage(tmp_path / "demo")) as run:
        run.write_job(JOB)
        run.append_event("start", step=0, workers=1, num_steps=900)
        for step in (25, 50):
            run.append_metrics({"step": step, "loss": 1 / step, "learning_rate": 0.01})
        run.append_event("failure", failure="worker", reason="died", reached=99, again=True)
    page = render_run(read_run(run))
    for chart in charts_of(page).values():
        assert [mark[0] for mark in chart["marks"]] == [99] and chart["x"] == [0, 99]
    assert "Its plan has 900 steps:" in page and "It trained" not in page


def test_a_run_that_was_never_started_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path / "demo"))
    run.write_job(JOB)
    assert "has not started" in render_run(read_run(run)) and "No step has been reported yet" in render_run(
        read_run(run)
    )


def test_an_ap_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    with RunDirectory(open_storage(tmp_path / "demo")) as run:
        run.write_job(JOB)
        run.append_event("start", **START)
        for step, ap in ((10, float("nan")), (20, 0.3), (30, None), (40, 0.2)):
            run.append_metrics({"step": step, "val_AP": ap, "val_AP50": ap, "non_finite_steps": step // 10})
        run.append_event("ended_early", step=40, reason="AP no longer rises")
        run.append_event("end", step=40)
    page = render_run(read_run(run))
    assert "ended early at step 40 of 2,000 (2%)" in page and "The best AP so far is 0.300, at step 20." in page
    assert "Steps with a non-finite gradient: 4;" in page  # each row counts those since the beginning


def test_a_run_that_goes_lasts_until_its_newest_row(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path / "demo"))
    run.write_job(JOB)
    start = {"time": "2026-01-01T00:00:00.000Z", "kind": "start", **START}
    run.storage.put("events.jsonl", json.dumps(start).encode() + b"\n")
    run.storage.put("metrics.jsonl", b'{"time":"2026-01-01T09:50:00.000Z","step":59,"loss":1.0}\n')
    page = render_run(read_run(run))
    assert "<dt>duration</dt><dd>9 h 50 min</dd>" in page
    assert "<dt>parameters</dt>" not in page  # how many classes it has is not recorded


def evaluation(**figures: float) -> dict[str, Any]:
    classes = [
        {"category_id": n, "name": name, "ap": ap, "ap50": ap, "ap75": ap, "ar_100": ap, "num_objects": 9,
         "num_detections": 9, "best_f1": None, "best_confidence": None}
        for n, (name, ap) in enumerate((("disc", 0.8), ("tree", 0.1)))
    ]  # fmt: skip
    counts = {"num_images": 4, "num_objects": 18, "num_crowds": 0, "num_detections": 18, "skipped": []}
    base = {name: 0.4 for name in ("AP", "AP50", "AP75", "AR_100", "AP_small", "AP_large")}
    return {"figures": base | figures, "per_class": classes, "curves": {}, "max_detections": 100, **counts}


SOUND = evaluation()


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("report/evaluation.json", b"[1, 2]"),
        ("report/evaluation.json", b'{"figures": {}}'),
        ("report/diagnosis.json", b'{"diagnosis": {}}'),
        ("report/evaluation.json", b"[" * 9000),
        ("report/evaluation.json", json.dumps({**SOUND, "figures": {"AP": "a"}}).encode()),
        ("report/evaluation.json", json.dumps({**SOUND, "per_class": 1}).encode()),
        ("report/evaluation.json", json.dumps({**SOUND, "curves": {"0": [1.0]}}).encode()),
        ("report/evaluation.json", json.dumps({**SOUND, "num_images": 10**30}).encode()),
        ("report/diagnosis.json", b'{"detections_sha256": null, "diagnosis": 3}'),
        ("report/diagnosis.json", b'{"detections_sha256": "a", "diagnosis": {"num_not_found": "x"}}'),
        ("report/release.json", b'{"skipped": [3]}'),
        ("report/images/names.json", b'{"x": [1]}'),
        ("facts.json", b"[1]"),
        ("facts.json", b'{"anchors": 1}'),
        ("facts.json", b'{"environment": 4}'),
        ("facts.json", b'{"earlier_epochs": 5}'),
        ("facts.json", b'{"skipped_windows": [[1]]}'),
        ("facts.json", b'{"initial_weights": "run"}'),
        ("facts.json", b'{"num_classes": 1000000000}'),
        ("job.yaml", b"\xff"),
        ("events.jsonl", b'{"kind": "start", "step": 0}\n'),
    ],
)
def test_a_damaged_record_is_named(key: str, content: bytes, tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    run.storage.put(key, content)
    with pytest.raises(UserError, match=r"damaged|no time"):
        render_run(read_run(run))


def test_of_very_many_events_the_newest_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    line = '{"time":"2026-01-01T00:00:00Z","kind":"failure","failure":"worker","reason":"no %d","reached":%d}\n'
    run.storage.put("events.driver.jsonl", "".join(line % (n, n) for n in range(1000)).encode())
    page = render_run(read_run(run))
    assert "702 earlier events in events*.jsonl, not shown" in page and "703 earlier ones are not drawn" in page
    assert page.count("worker failure at step") < 310


def test_an_image_that_is_damaged_or_gone_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "demo")
    run.storage.put("report/images/a.jpg", encode(Image.new("RGB", (64, 64)))[:-200])
    run.storage.put("report/outcomes/names.json", b'{"1": "b.jpg"}')
    assert (read_run(run).images, read_run(run).outcomes) == ([], {})
    assert "report/images/a.jpg: is damaged" in caplog.text


def record(folder: Path, **figures: float) -> RunRecord:
    return read_run(make_run(folder, **evaluation(**figures)))


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({}, "Lower the learning rate (hyperparameters.lr0), or train in fp32."),
        ({}, "Raise data.loader_threads"),
        ({}, "Add images of tree."),
        ({"AP50": 0.9, "AP75": 0.1}, "their boxes are inexact"),
        ({"AP_small": 0.1}, "Use larger images (data.image_size, now 320)."),
    ],
)
def test_advice_rests_on_what_was_measured(figures: dict[str, float], words: str, tmp_path: Path) -> None:
    given = [entry.what for entry in advice(record(tmp_path / "with", **figures))]
    assert any(words in what for what in given)
    if figures:
        assert not any(words in entry.what for entry in advice(record(tmp_path / "without")))


def test_nothing_is_advised_by_the_figures_of_a_model_that_has_learned_nothing(tmp_path: Path) -> None:
    given = [
        entry.what for entry in advice(record(tmp_path / "demo", AP50=0.001, AP75=0.0, AP_small=0.0, AP_large=0.1))
    ]
    assert not any("loose" in what or "tree" in what or "larger images" in what for what in given)


def test_the_sentence_names_the_weakest_class(tmp_path: Path) -> None:
    assert "its weakest class is tree (AP 0.100)" in render_run(record(tmp_path / "demo"))
