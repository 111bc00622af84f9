"""The diagnosis of a released run: of its own detections and its own data, or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.average_precision import EvaluationResult, coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.storage import open_storage
from yolofleet.tracking.run_diagnosis import DETECTIONS_KEY, MANIFEST_KEY
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_page import write_run_page
from yolofleet.tracking.run_record import EVALUATION_KEY, read_run

JOB = "name: demo\nmodel: {name: yolov7-tiny}\ndata: {train: a, val: b}\n"


@pytest.fixture
def released(dataset: ShardDataset, tmp_path: Path) -> RunDirectory:
    """A run as a release leaves it."""
    truth = dataset.annotations()
    records: list[dict[str, Any]] = [{**label, "score": 0.9} for label in truth["annotations"]]
    detections = Detections.from_records(records)
    result = EvaluationResult(
        average_precision=coco_average_precision(truth, detections), ground_truth=truth, detections=detections
    )
    with RunDirectory(open_storage(tmp_path / "demo")) as run:
        run.write_job(JOB)
        run.record_facts(data_url={"val": dataset.storage.url})
        run.append_event("end", step=1)
    stored = json.dumps(detections.records()).encode()
    digest = hashlib.sha256(stored).hexdigest()
    run.storage.put(DETECTIONS_KEY, stored)
    run.storage.put(MANIFEST_KEY, dataset.manifest.to_bytes())
    run.storage.put(EVALUATION_KEY, json.dumps({**result.page_document(), "detections_sha256": digest}).encode())
    return run


def page_of(run: RunDirectory) -> str:
    return Path(write_run_page(run)).read_text()


def test_the_page_of_a_released_run_shows_what_goes_wrong_and_the_images(released: RunDirectory) -> None:
    page = page_of(released)
    assert "What goes wrong" in page and "Images that show it" in page
    evaluation = read_run(released).evaluation
    assert evaluation is not None and evaluation["diagnosis"]["num_not_found"] == 0
    assert {*read_run(released).outcomes} == {
        image["drawing"] for gallery in evaluation["diagnosis"]["galleries"] for image in gallery["images"]
    }
    stored = json.loads(released.storage.get("report/diagnosis.json"))
    del stored["diagnosis"]["num_not_found"]  # as an older yolofleet wrote it
    released.storage.put("report/diagnosis.json", json.dumps(stored).encode())
    assert "What goes wrong" in page_of(released)
    before = released.storage.get("report/diagnosis.json")
    released.storage.delete(DETECTIONS_KEY)
    assert "What goes wrong" in page_of(released) and released.storage.get("report/diagnosis.json") == before


def test_a_diagnosis_of_other_detections_is_not_shown(released: RunDirectory) -> None:
    page_of(released)
    evaluation = json.loads(released.storage.get(EVALUATION_KEY))
    released.storage.put(EVALUATION_KEY, json.dumps({**evaluation, "detections_sha256": "0" * 64}).encode())
    page = page_of(released)
    assert "What goes wrong" not in page and "Figures" in page


@pytest.mark.parametrize("change", ["detections", "data", "no data"])
def test_nothing_is_diagnosed_by_what_the_run_was_not_released_with(released: RunDirectory, change: str) -> None:
    if change == "detections":
        released.storage.put(DETECTIONS_KEY, b"[]")
    elif change == "data":
        released.storage.put(MANIFEST_KEY, b"{}")
    else:
        released.record_facts(data_url={"val": f"{released.url}/nowhere"})
    assert "What goes wrong" not in page_of(released)
    assert not released.storage.exists("report/diagnosis.json")
