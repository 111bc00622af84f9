"""Evaluation end to end: an oracle is worth 1, ranks agree with one process, the file holds what was evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.reference_figures import evaluate_with_pycocotools, random_problem
from yolofleet.core.errors import UserError
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationBatch, EvaluationStream
from yolofleet.data.problems import ProblemLog
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.evaluate import (
    category_ids_for,
    classes_unknown_to,
    collect_detections,
    evaluate,
    score_detections,
)
from yolofleet.evaluation.ground_truth import GroundTruth
from yolofleet.evaluation.result_file import read_results
from yolofleet.storage import open_storage


class Oracle(nn.Module):
    """Gives the ground truth of the batches as if it had been predicted, in the order in which they come."""

    strides = (8, 16, 32)

    def __init__(self, dataset: ShardDataset, batches: list[EvaluationBatch]) -> None:
        super().__init__()
        index_of = {category_id: index for index, (category_id, _) in enumerate(dataset.classes)}
        truth = dataset.annotations()["annotations"]
        self.answers: list[Tensor] = []
        for batch in batches:
            answer = torch.zeros(len(batch.image_ids), 60, 5 + len(dataset.classes))
            for position, (image_id, box) in enumerate(zip(batch.image_ids, batch.letterboxes, strict=True)):
                own = [entry for entry in truth if entry["image_id"] == image_id and not entry["iscrowd"]]
                for row, entry in enumerate(own):
                    x, y, width, height = entry["bbox"]
                    corners = box.apply(torch.tensor([x, y, x + width, y + height]))
                    answer[position, row, :2] = (corners[:2] + corners[2:]) / 2
                    answer[position, row, 2:4] = corners[2:] - corners[:2]
                    answer[position, row, 4] = 1
                    answer[position, row, 5 + index_of[entry["category_id"]]] = 0.9
            self.answers.append(answer)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        answer = self.answers[self.calls]
        self.calls += 1
        return answer


def stream(dataset: ShardDataset, rank: int = 0, world_size: int = 1) -> EvaluationStream:
    return EvaluationStream(dataset, image_size=96, stride=32, batch_size=3, rank=rank, world_size=world_size)


def test_an_oracle_is_worth_1(dataset: ShardDataset) -> None:
    oracle = Oracle(dataset, list(stream(dataset))).train()
    rows = collect_detections(oracle, stream(dataset), iou=0.99)
    assert oracle.training
    assert rows.dtype == torch.float64 and rows.shape[1] == 7
    result = score_detections(rows, dataset.annotations())
    assert result.figures["AP"] == pytest.approx(1.0)
    assert result.num_images == len(dataset) == 20
    assert result.average_precision.num_crowds > 0


def test_the_figures_are_pycocotools_own_and_the_file_holds_what_was_evaluated(
    dataset: ShardDataset, package: Path, tmp_path: Path
) -> None:
    detector = Detector.load(package)
    result = evaluate(detector.model, dataset, image_size=96, batch_size=7, confidence=1e-5)
    assert len(result.detections) > 1000
    path = tmp_path / "new" / "results.json"
    result.detections.write(path)
    records = json.loads(path.read_text())
    reference = evaluate_with_pycocotools({"info": {}, **dataset.annotations()}, records)
    expected = [None if value == -1 else float(value) for value in reference.stats]
    assert list(result.figures.values()) == expected
    again = coco_average_precision(dataset.annotations(), Detections.from_records(records))
    assert again == result.average_precision
    assert all(round(value, 3) == value for record in records for value in record["bbox"])
    assert all(round(record["score"], 5) == record["score"] for record in records)


def test_figures_over_shards_are_those_of_the_original_annotation_file(test_data: Path, tmp_path: Path) -> None:
    folder, problems = test_data / "coco128", ProblemLog()
    source = parse_coco((folder / "instances_val.json").read_bytes(), "instances_val.json", problems)
    build_dataset(source, open_storage(folder / "images"), open_storage(tmp_path), BuildOptions(), problems)
    original = json.loads((folder / "instances_val.json").read_text())
    records = noisy_copies(original["annotations"])
    reference = evaluate_with_pycocotools({"info": {}, **original}, records)
    ours = coco_average_precision(ShardDataset(tmp_path).annotations(), records)
    assert list(ours.figures.values()) == [float(value) for value in reference.stats]
    assert ours.num_crowds == 1


def noisy_copies(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detections as a middling model would give them: up to three for each object, a little off."""
    rng = np.random.default_rng(0)
    records = []
    for entry in annotations:
        for _ in range(int(rng.integers(0, 4))):
            box = np.array(entry["bbox"]) + rng.normal(0, 0.06, 4) * max(entry["bbox"][2:])
            box[2:] = np.maximum(box[2:], 1)
            score = float(np.round(rng.random(), 2))
            keys = {key: entry[key] for key in ("image_id", "category_id")}
            records.append({**keys, "bbox": np.round(box, 3).tolist(), "score": score})
    return records


def test_any_number_of_ranks_gives_the_same_result(dataset: ShardDataset, package: Path) -> None:
    model = Detector.load(package).model
    alone = score_detections(collect_detections(model, stream(dataset), confidence=1e-4), dataset.annotations())
    shares = [collect_detections(model, stream(dataset, rank, 3), confidence=1e-4) for rank in (2, 0, 1)]
    shared = score_detections(torch.cat(shares), dataset.annotations())
    assert shared.average_precision == alone.average_precision
    assert shared.detections.records() == alone.detections.records()


def test_a_model_is_evaluated_in_the_precision_of_its_weights(dataset: ShardDataset, package: Path) -> None:
    single = collect_detections(Detector.load(package).model, stream(dataset), confidence=1e-3)
    double = collect_detections(Detector.load(package).model.double(), stream(dataset), confidence=1e-3)
    assert len(single) > 0 and abs(len(double) - len(single)) <= 0.01 * len(single)
    torch.testing.assert_close(single[:20, 5], double[:20, 5], rtol=1e-4, atol=0)


def test_a_damaged_image_counts_as_one_without_detections(drawn: Path, package: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(drawn / "dataset", tmp_path / "dataset")
    dataset = ShardDataset(tmp_path / "dataset")
    index = dataset.index(0)
    shard = tmp_path / "dataset" / dataset.manifest.shards[0].tar_key
    data = bytearray(shard.read_bytes())
    start = int(index.rows[4]["image_offset"])
    data[start : start + 40] = bytes(40)
    shard.write_bytes(data)
    result = evaluate(Detector.load(package).model, dataset, image_size=96, batch_size=1)
    assert len(result.skipped) == 1 and result.skipped[0][0] == index.keys[4]
    assert result.num_images == 20
    assert result.as_json()["skipped"][0]["reason"]


def test_a_model_with_other_class_ids_is_brought_together_by_name(dataset: ShardDataset) -> None:
    ids = [category_id for category_id, _ in dataset.classes]
    assert category_ids_for(dataset.classes, dataset.classes) == ids
    renamed = [(1000 + position, name) for position, (_, name) in enumerate(reversed(dataset.classes))]
    assert category_ids_for([*renamed, (5, "unicorn")], dataset.classes) == [*reversed(ids), None]
    same_name_twice = [(1, "red"), (2, "red")]
    assert category_ids_for(same_name_twice, same_name_twice) == [1, 2]
    with pytest.raises(UserError, match="no class in common: the model knows unicorn, the dataset has"):
        category_ids_for([(5, "unicorn")], dataset.classes)


def test_classes_that_the_model_does_not_know_are_told() -> None:
    assert classes_unknown_to([(1, "red"), (2, "blue")], [(7, "blue"), (8, "green")]) == [(8, "green")]
    assert classes_unknown_to([(1, "red"), (2, "blue")], [(2, "blue")]) == []


def test_classes_that_the_dataset_does_not_have_are_not_evaluated(dataset: ShardDataset, package: Path) -> None:
    model = Detector.load(package).model
    classes = [
        *dataset.classes[:1],
        *((900 + position, f"other {position}") for position in range(1, len(dataset.classes))),
    ]
    result = evaluate(model, dataset, image_size=96, classes=classes, confidence=1e-4)
    assert {record["category_id"] for record in result.detections.records()} <= {dataset.classes[0][0]}


def test_image_ids_larger_than_float32_holds_survive() -> None:
    rows = torch.tensor([[2**53 - 1, 0, 0, 10, 10, 0.5, 1]], dtype=torch.float64)
    detections = Detections.from_tensor(rows, [5, 9])
    assert detections.records() == [
        {"image_id": 2**53 - 1, "category_id": 9, "bbox": [0.0, 0.0, 10.0, 10.0], "score": 0.5}
    ]


def test_files_that_hold_no_detections_are_named(tmp_path: Path) -> None:
    truth = GroundTruth.of(random_problem(0)[0])
    for text, words in (("{}", "not a list"), ("[", "is not JSON"), ("[1]", "record 1 of 1: it is 1, not an object")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_results(tmp_path / "results.json", truth)
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "missing.json", truth)
    with pytest.raises(UserError, match=r"image_id is 1\.5"):
        Detections.from_records([{"image_id": 1.5, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
