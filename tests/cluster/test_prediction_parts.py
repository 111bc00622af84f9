"""Predictions in parts: nothing twice, nothing missing, whatever was killed; and equal to predicting one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from yolofleet.cli.main import main
from yolofleet.cluster.batch_prediction import PACKAGE_FILES, PartPredictor
from yolofleet.cluster.prediction_parts import FileImages, PredictionPlan, merge_parts, missing_parts, part_key
from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model
from yolofleet.specs.model import ModelChoice
from yolofleet.storage import open_storage

CLASSES = [(3, "circle"), (7, "square")]
NUM_IMAGES = 10


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = build_model(choice, num_classes=2, deployed=True)
    return save_detector(tmp_path_factory.mktemp("p") / "detector", model, CLASSES, 64, confidence=0.002)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten files; the fourth is no image."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(NUM_IMAGES)]
    for number, path in enumerate(paths):
        Image.fromarray(random.integers(0, 256, (40 + number, 64, 3), np.uint8)).save(path)
    paths[3].write_bytes(b"this is no image")
    return paths


def plan_for(source: FileImages, **changes: Any) -> PredictionPlan:
    values: dict[str, Any] = {
        "weights_sha256": "0" * 64, "data_digest": source.digest, "num_images": len(source), "part_size": 3,
        "confidence": 0.002, "iou": 0.5, "max_detections": 5, "image_size": 64,
    }  # fmt: skip
    return PredictionPlan(**(values | changes))


def test_parts_cover_every_image_once() -> None:
    for num_images in range(12):
        for part_size in (1, 3, 5, 20):
            plan = plan_for(FileImages([]), num_images=num_images, part_size=part_size)
            covered = [number for part in range(plan.num_parts) for number in plan.images(part)]
            assert covered == list(range(num_images))


def test_together_they_are_what_one_run_finds(package: Path, images: list[Path], tmp_path: Path) -> None:
    source = FileImages(images)
    plan = plan_for(source)
    storage = open_storage(tmp_path / "out")
    assert missing_parts(storage, plan) == [0, 1, 2, 3]
    files = {name: (package / name).read_bytes() for name in PACKAGE_FILES if (package / name).is_file()}
    worker = PartPredictor(source, plan, str(tmp_path / "out"), device="cpu", batch_size=2)
    for part in (2, 0, 2):  # a part may be written twice: by a worker that was thought dead, say
        worker.predict(files, part)
    assert missing_parts(storage, plan) == [1, 3]
    before = {key: storage.get(key) for key in (part_key(0), part_key(2))}
    for part in missing_parts(storage, plan):
        worker.predict(files, part)
    assert before == {key: storage.get(key) for key in before} and missing_parts(storage, plan) == []
    counts, problems = merge_parts(storage, plan, CLASSES)
    document = json.loads(storage.get("detections.json"))
    results = json.loads(storage.get("results.json"))
    assert len(problems) == 1 and "3.png" in problems[0]
    assert [image["id"] for image in document["images"]] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    readable = [path for position, path in enumerate(images) if position != 3]
    expected = Detector.load(package).predict(readable, confidence=0.002, iou=0.5, max_detections=5, batch_size=1)
    by_image = [[entry for entry in results if entry["image_id"] == image["id"]] for image in document["images"]]
    assert [len(found) for found in by_image] == [len(found) for found in expected]
    for found, want in zip(by_image, expected, strict=True):
        for entry, record in zip(found, want, strict=True):
            assert entry["category_id"] == record["category_id"]
            assert entry["bbox"] == pytest.approx(record["bbox"], abs=0.01)
            assert entry["score"] == pytest.approx(record["score"], abs=1e-4)
    assert len(results) == len(document["annotations"]) == counts["annotations"] > 0
    assert [entry["id"] for entry in document["annotations"]] == list(range(1, len(results) + 1))
    assert document["categories"] == [{"id": 3, "name": "circle"}, {"id": 7, "name": "square"}]


@pytest.mark.slow
def test_a_worker_predicts_in_onnx_runtime_where_the_package_can(package: Path, images: list[Path]) -> None:
    pytest.importorskip("onnxruntime")
    from yolofleet.cli.predict import read_package
    from yolofleet.export.exporter import add_network
    from yolofleet.export.runtime import OnnxNetwork

    files, card = read_package(str(package), None)
    assert set(files) == {"detector.json", "model.safetensors"} and len(card.classes) == len(CLASSES)
    add_network(package)
    files, _ = read_package(str(package), None)
    (package / "model.onnx").unlink()
    worker = PartPredictor(FileImages(images), plan_for(FileImages(images)), "nowhere", device="cpu")
    assert isinstance(worker.detector(files).network, OnnxNetwork)


def test_a_folder_belongs_to_one_plan(images: list[Path], tmp_path: Path) -> None:
    plan = plan_for(FileImages(images))
    storage = open_storage(tmp_path)
    missing_parts(storage, plan)
    with pytest.raises(UserError, match=r"differ in confidence, iou\).*another --out"):
        missing_parts(storage, plan_for(FileImages(images), confidence=0.1, iou=0.6))
    images[0].touch()
    with pytest.raises(UserError, match="data_digest"):
        missing_parts(storage, plan_for(FileImages(images)))
    for damaged in (b"[", b"[" * 100_000):
        storage.put("plan.json", damaged)
        with pytest.raises(UserError, match="all of it"):
            missing_parts(storage, plan)


@pytest.mark.parametrize(
    "damaged",
    [
        "x", "[]", "{}", "[" * 100_000, '{"images": 1, "annotations": [], "problems": []}',
        '{"images": [], "annotations": [], "problems": "abc"}',
        '{"images": [], "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1], "score": 1}], "problems": []}',
        '{"images": [], "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, "4"], "score": 1}],'
        ' "problems": []}',
        " " * 2_000_000,
    ],
)  # fmt: skip
def test_a_damaged_part_counts_as_missing(
    damaged: str, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, plan = open_storage(tmp_path), plan_for(FileImages(images))
    missing_parts(storage, plan)
    sound = b'{"images": [], "annotations": [], "problems": ["caf\\udce9.jpg: no image"]}'  # a name that is not UTF-8
    for part in range(plan.num_parts):
        storage.put(part_key(part), sound)
    assert missing_parts(storage, plan) == []
    storage.put(part_key(1), damaged.encode())
    assert missing_parts(storage, plan) == [1]
    assert "damaged, and made anew: parts/00000001.json" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"parts/00000001\.json: is damaged"):
        merge_parts(storage, plan, CLASSES)


def test_results_that_no_prediction_made_are_not_overwritten(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match=r"results\.json is there already, and no earlier prediction made it"):
        missing_parts(open_storage(tmp_path), plan_for(FileImages(images)))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_no_images_at_all(tmp_path: Path) -> None:
    storage, plan = open_storage(tmp_path), plan_for(FileImages([]))
    assert missing_parts(storage, plan) == []
    assert merge_parts(storage, plan, CLASSES) == ({"images": 0, "annotations": 0}, [])
    assert json.loads(storage.get("detections.json"))["annotations"] == json.loads(storage.get("results.json")) == []


def test_more_workers_than_slots_are_refused_before_ray_starts(
    package: Path,
    images: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = str(images[0].parent)
    arguments = ["predict", str(package), folder, "--workers", "9999", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "--workers 9999" in capsys.readouterr().err
