"""The Python API with what a hurried user gives it: any form of the right types, and typed errors for all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import yolofleet
from yolofleet.api import _overrides
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import EvaluationResult, coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model, deploy
from yolofleet.specs.model import ModelChoice

TINY = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
JOB = {"name": "small", "model": {"name": "yolov7-tiny"}, "data": {"train": "train", "val": "val"}}


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = tmp_path_factory.mktemp("package")
    save_detector(folder, deploy(build_model(TINY, num_classes=2).eval()), [(1, "cat"), (2, "dog")], 64)
    return yolofleet.load(folder / "detector.json", device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        Image.new("RGB", (40, 32), (number, 90, 200)).save(folder / f"{number}.png")
    return folder


def test_several_images_come_in_any_order_and_form(detector: Detector, photos: Path) -> None:
    assert [len(found) for found in yolofleet.predict(detector, photos.glob("*.png"), confidence=1)] == [0, 0, 0]
    [found] = yolofleet.predict(detector, photos / "0.png", confidence=0, max_detections=2)
    assert len(found) == 2 and found[0] == next(iter(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": "high"}, "confidence='high': a number from 0 to 1 is needed"),
        ({"confidence": 50}, "confidence=50: a number from 0 to 1"),
        ({"iou": float("nan")}, "iou=nan: a number from 0 to 1"),
        ({"max_detections": 0}, "max_detections=0: a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size=-1: a whole number of at least 1"),
        ({"batch_size": "8"}, "batch_size='8': a whole number"),
        ({"image_size": "big"}, "image_size='big': a whole number"),
        ({"image_size": -32}, "image_size=-32: a whole number of at least 1"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(detector: Detector, photos: Path, options: Any, message: str) -> None:
    for call in (
        lambda: yolofleet.predict(detector, photos / "0.png", **options),
        lambda: detector.predict([photos / "0.png"], **options),
        lambda: yolofleet.evaluate(detector, photos, **options),
    ):
        with pytest.raises(UserError) as raised:
            call()
        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: yolofleet.train(JOB), "job: a Job .* is needed, not dict"),  # type: ignore[arg-type]
        (lambda _: yolofleet.train(None), "job: .* not NoneType"),  # type: ignore[arg-type]
        (lambda _: yolofleet.tune(3), "space: the file of a search space is needed, not int 3"),  # type: ignore[arg-type]
        (lambda _: yolofleet.Job.load(3), "the path of a YAML file is needed, not int"),  # type: ignore[arg-type]
        (lambda _: yolofleet.Job.parse({"name": "x"}), "document: model: is missing"),
        (lambda _: yolofleet.load(None), "model: a run, .* is needed, not NoneType"),  # type: ignore[arg-type]
        (lambda _: yolofleet.load(b"runs/x"), "model: .* not bytes"),  # type: ignore[arg-type]
        (lambda d: yolofleet.predict(d.model, "a.jpg"), "model: .* not Network"),
        (lambda d: yolofleet.predict(d, Image.new("RGB", (8, 8))), "not Image; numpy.asarray"),
        (lambda d: d.predict("a.jpg"), "a list of images is needed, not one str"),
        (lambda d: d.predict(np.zeros((8, 3, 3), np.uint8)), "a list of images is needed, not one ndarray"),
        (lambda d: d.predict(None), "a list of images is needed, not one NoneType"),
        (lambda d: yolofleet.evaluate(d, None), "data: .* is needed, not NoneType"),  # type: ignore[arg-type]
        (lambda d: yolofleet.evaluate(d, "x", precision="fp8"), "precision='fp8': use"),  # type: ignore[arg-type]
        (lambda d: yolofleet.export(d, None), "out: the path of a file is needed, not NoneType"),  # type: ignore[arg-type]
        (lambda d: yolofleet.export(d, "x", format="safetensors", image_size="64"), "image_size='64': a whole number"),  # type: ignore[arg-type]
        (lambda d: yolofleet.export(d, "s3://bucket/x.onnx"), "out: s3://bucket/x.onnx: a local path is needed"),
        (lambda d: yolofleet.export(d, Path("s3://bucket/x")), "out: s3:/bucket/x: a local path is needed"),
        (lambda _: yolofleet.export(5, "x"), "model: .* not int"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_is_an_error_that_says_what_is_needed(
    detector: Detector, call: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call(detector)


def test_changes_may_hold_numbers_of_numpy_and_paths() -> None:
    changes = {"seed": np.int64(3), "hyperparameters.lr0": np.float32(0.5), "data.train": Path("a/b")}
    assert _overrides(changes) == ["seed=3", "hyperparameters.lr0=0.5", 'data.train="a/b"']


def test_a_job_and_an_evaluation_are_shown_in_a_line() -> None:
    shown = repr(yolofleet.Job.parse(JOB))
    assert (
        shown == "JobSpec(name='small', model=ModelChoice(name='yolov7-tiny'), data=DataSpec(train='train', val='val'))"
    )
    image = {"id": 1, "width": 9, "height": 9}
    truth: dict[str, Any] = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    nothing = Detections.from_records([])
    result = EvaluationResult(
        average_precision=coco_average_precision(truth, nothing), ground_truth=truth, detections=nothing
    )
    assert repr(result).startswith("Evaluation on 1 image, 0 skipped: AP none, AP50 none")
