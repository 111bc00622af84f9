"""Rectangular inputs against square ones on real images, box by box, by the published letterbox."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from evaluation.test_evaluate import Oracle
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.data.problems import ProblemLog
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.evaluate import collect_detections, evaluate, score_detections
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.training.evaluation.checkpoint_evaluations import Validation
from yolofleet.training.loop.worker_group import WorkerGroup

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE, STRIDE, BATCH = 640, 32, 16


@pytest.fixture(scope="module")
def coco128(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder, target, problems = test_data / "coco128", tmp_path_factory.mktemp("coco128"), ProblemLog()
    source = parse_coco((folder / "instances.json").read_bytes(), "instances.json", problems)
    build_dataset(source, open_storage(folder / "images"), open_storage(target), BuildOptions(), problems)
    return ShardDataset(target)


def published_letterbox(
    image: tuple[int, int], shape: tuple[int, int], *, auto: bool, scale_up: bool, stride: int
) -> tuple[tuple[int, int], float, int, int]:
    """(height, width) of the output, ratio, top and left, computed as the golden cases were."""
    ratio = min(shape[0] / image[0], shape[1] / image[1])
    ratio = ratio if scale_up else min(ratio, 1.0)
    height, width = round(image[0] * ratio), round(image[1] * ratio)
    rest_height, rest_width = shape[0] - height, shape[1] - width
    if auto:
        rest_height, rest_width = rest_height % stride, rest_width % stride
    top, left = round(rest_height / 2 - 0.1), round(rest_width / 2 - 0.1)
    return (height + rest_height, width + rest_width), ratio, top, left


def test_the_letterbox_of_this_test_is_the_golden_one() -> None:
    cases = json.loads((GOLDEN / "letterbox_cases.json").read_text())
    assert len(cases) == 10
    for case in cases:
        shape = case["new_shape"] if isinstance(case["new_shape"], list) else [case["new_shape"]] * 2
        options = case["kw"]
        found = published_letterbox(
            tuple(case["in_hw"]),
            tuple(shape),
            auto=options["auto"],
            scale_up=options.get("scaleup", True),
            stride=options.get("stride", STRIDE),
        )
        assert found == (tuple(case["out_hw"]), case["ratio"][0], case["top"], case["left"])


def published_shapes(sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Shape of each batch of images (height, width), sorted by height / width, with half a stride of padding."""
    aspects = sorted(height / width for height, width in sizes)
    shapes = []
    for start in range(0, len(aspects), BATCH):
        low, high = aspects[start], aspects[start : start + BATCH][-1]
        sides = (high, 1.0) if high < 1 else (1.0, 1 / low) if low > 1 else (1.0, 1.0)
        height, width = (math.ceil(side * SIZE / STRIDE + 0.5) * STRIDE for side in sides)
        shapes.append((height, width))
    return shapes


def test_rectangular_against_square_box_by_box(coco128: ShardDataset) -> None:
    streams = {
        rectangular: EvaluationStream(
            coco128, image_size=SIZE, stride=STRIDE, batch_size=BATCH, rectangular=rectangular
        )
        for rectangular in (False, True)
    }
    contents: dict[int, torch.Tensor] = {}
    for rectangular, stream in streams.items():
        batches = list(stream)
        sizes = [size for batch in batches for size in batch.original_sizes]
        assert len(sizes) == 128
        shapes = published_shapes(sizes) if rectangular else [(SIZE, SIZE)] * len(batches)
        for batch, shape in zip(batches, shapes, strict=True):
            assert tuple(batch.images.shape[2:]) == shape
            for number, (image_id, size) in enumerate(zip(batch.image_ids, batch.original_sizes, strict=True)):
                box = batch.letterboxes[number]
                scaled = round(size[0] * SIZE / max(size)), round(size[1] * SIZE / max(size))
                expected = published_letterbox(scaled, shape, auto=False, scale_up=False, stride=STRIDE)
                assert (shape, 1.0, box.pad_top, box.pad_left) == expected
                assert (box.resized_height, box.resized_width) == scaled
                assert box.gain == pytest.approx(SIZE / max(size), rel=1e-12)
                rows = slice(box.pad_top, box.pad_top + box.resized_height)
                content = batch.images[number, :, rows, box.pad_left : box.pad_left + box.resized_width]
                assert torch.equal(contents.setdefault(image_id, content.clone()), content)
    rows = {
        rectangular: collect_detections(Oracle(coco128, list(stream)), stream, iou=0.99)
        for rectangular, stream in streams.items()
    }
    results = {key: score_detections(value, coco128.annotations()) for key, value in rows.items()}
    assert results[True].figures == results[False].figures
    assert results[True].figures["AP"] == pytest.approx(1.0, abs=1e-3)  # duplicates in the ground truth cost a little
    square, rectangular_ones = (
        sorted([record[key] for key in ("image_id", "category_id", "bbox")] for record in result.detections.records())
        for result in results.values()
    )
    assert len(square) == len(rectangular_ones) > 800
    for one, other in zip(square, rectangular_ones, strict=True):
        assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], abs=2e-3)  # float32 pixels, three decimals


def test_a_job_is_evaluated_by_the_protocol_that_it_asks_for(dataset: ShardDataset, package: Path) -> None:
    model = Detector.load(package).model
    figures = {}
    for protocol in ("square", "published"):
        job = JobSpec.parse(
            {
                "name": "a",
                "model": {"name": "yolov7-tiny"},
                "data": {"train": dataset.storage.url, "val": dataset.storage.url, "image_size": 96},
                "evaluation": {"protocol": protocol, "batch_size": 4},
            },
            source="job",
        )
        validate = Validation(job, WorkerGroup(device=torch.device("cpu")))
        figures[protocol] = validate(model)
        rectangular = protocol == "published"
        alone = evaluate(model, dataset, image_size=96, batch_size=4, rectangular=rectangular).figures
        assert figures[protocol].items() >= alone.items(), "a run measures its loss besides"
    assert figures["square"] != figures["published"]
