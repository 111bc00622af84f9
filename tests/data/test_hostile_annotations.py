"""``KEY.json`` as a stranger could write it: the sample is skipped and counted, and nothing else changes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.hostile_shards import annotation, write_dataset
from yolofleet.cli.main import main
from yolofleet.data.anchors import survey_boxes
from yolofleet.data.annotation import RecordError, read_annotation
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.data.stream import TrainingStream
from yolofleet.data.verification import inspect_dataset
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.specs.hyperparameters import Augmentation

TRIANGLE = [1.0, 1.0, 9.0, 1.0, 5.0, 9.0]
BAD: dict[str, Any] = {
    "polygon odd": {"segmentations": [[[1, 2, 3, 4, 5, 6, 7]]]},
    "polygon short": {"segmentations": [[[1.0]]]},
    "polygon of strings": {"segmentations": [[["1", "2", "3", "4", "5", "6"]]]},
    "polygon string": {"segmentations": ["1 2 3 4 5 6"]},
    "polygon number": {"segmentations": [5]},
    "polygon flat": {"segmentations": [TRIANGLE]},
    "polygon nested": {"segmentations": [[[TRIANGLE]]]},
    "polygon empty": {"segmentations": [[[]]]},
    "polygon null": {"segmentations": [[None]]},
    "polygon null inside": {"segmentations": [[[1, 2, None, 4, 5, 6]]]},
    "polygon NaN": {"segmentations": [[[1, 2, 3, float("nan"), 5, 6]]]},
    "polygon infinite": {"segmentations": [[[1, 2, 3, float("-inf"), 5, 6]]]},
    "polygon 1e308": {"segmentations": [[[1, 2, 3, 1e308, 5, 6]]]},
    "polygon 10^400": {"segmentations": [[[1, 2, 3, 10**400, 5, 6]]]},
    "polygon of truths": {"segmentations": [[[True, True, 3, 4, 5, 6]]]},
    "one sound and one odd": {"segmentations": [[TRIANGLE, TRIANGLE[:5]]]},
    "outlines too many": {"segmentations": [None, None]},
    "outlines an object": {"segmentations": {"0": [TRIANGLE]}},
    "RLE without counts": {"segmentations": [{"size": [120, 160]}]},
    "RLE of another size": {"segmentations": [{"size": [120, 160], "counts": [1]}]},
    "RLE size 2^62": {"segmentations": [{"size": [2**62, 2**62], "counts": [1]}]},
    "class 99": {"classes": [99]},
    "class 2": {"classes": [2]},
    "class 2^62": {"classes": [2**62]},
    "class -1": {"classes": [-1]},
    "class 0.5": {"classes": [0.5]},
    "class 0.0": {"classes": [0.0]},
    "class true": {"classes": [True]},
    "class text": {"classes": ["0"]},
    "classes missing": {"classes": []},
    "classes a number": {"classes": 0},
    "width negative": {"width": -160},
    "height zero": {"height": 0},
    "width text": {"width": "160"},
    "width a float": {"width": 160.5},
    "width 2^70": {"width": 2**70},
    "area NaN": {"areas": [float("nan")]},
    "area negative": {"areas": [-1.0]},
    "area infinite": {"areas": [float("inf")]},
    "area text": {"areas": ["1600"]},
    "area 1e308": {"areas": [1e308]},
    "areas nested": {"areas": [[1600.0]]},
    "box of text": {"boxes": [["10", "10", "40", "40"]]},
    "box text": {"boxes": ["10 10 40 40"]},
    "box of three": {"boxes": [[10, 10, 40]]},
    "box flat": {"boxes": [10, 10, 40, 40]},
    "box NaN": {"boxes": [[10, 10, float("nan"), 40]]},
    "box negative": {"boxes": [[10, 10, -40, 40]]},
    "box 1e308": {"boxes": [[1e308, 10, 1e308, 40]]},
    "box 10^400": {"boxes": [[10**400, 10, 40, 40]]},
    "boxes null": {"boxes": None},
    "boxes an object": {"boxes": {"0": [10, 10, 40, 40]}},
    "crowd text": {"iscrowd": ["0"]},
    "crowd 2": {"iscrowd": [2]},
    "crowd nested": {"iscrowd": [[0]]},
    "id 2^63": {"image_id": 2**63},
    "id 2^53 + 1": {"image_id": 2**53 + 1},
    "id 10^30": {"image_id": 10**30},
    "id a float": {"image_id": 7.0},
    "id text": {"image_id": "7"},
    "id true": {"image_id": True},
    "id null": {"image_id": None},
    "name a number": {"file_name": 7},
    "name half a pair": {"file_name": "\ud800.jpg"},
}
WHOLE: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "cut": json.dumps(annotation(1)).encode()[:50],
    "nested": b'{"boxes": ' + b"[" * 100_000,
    "5000 digits": b'{"image_id": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"file_name": "\xff\xfe"}',
    "nothing in it": b"{}",
}


@pytest.mark.parametrize("name", [*BAD, *WHOLE])
def test_an_annotation_that_cannot_be_is_refused_on_one_line(name: str) -> None:
    data = WHOLE[name] if name in WHOLE else json.dumps(annotation(1) | BAD[name]).encode()
    with pytest.raises(RecordError, match="the annotation is damaged: ") as refusal:
        read_annotation(data, 2)
    assert len(str(refusal.value).splitlines()) == 1 and len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"segmentations": None},
        {"segmentations": [None]},
        {"segmentations": [[]]},
        {"segmentations": [[TRIANGLE]]},
        {"iscrowd": [True], "segmentations": [{"size": [120, 160], "counts": [100, 19100]}]},
        {"boxes": [], "classes": [], "iscrowd": [], "areas": []},
        {"boxes": [[-1.0, -1.0, 1e6, 0]]},
        {"image_id": -(2**53) + 1, "file_name": ""},
    ],
)
def test_what_a_build_may_write_is_read(change: dict[str, Any]) -> None:
    data = json.dumps(annotation(1) | change).encode()
    assert read_annotation(read_annotation(data, 2).to_json(), 2).to_json() == read_annotation(data, 2).to_json()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    return ShardDataset(write_dataset(tmp_path_factory.mktemp("good"), [annotation(number) for number in range(1, 6)]))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    """The good samples, and behind them one of each kind that cannot be."""
    bad = [annotation(100 + number) | change for number, change in enumerate(BAD.values())]
    samples = [annotation(number) for number in range(1, 6)] + bad + list(WHOLE.values())
    return ShardDataset(write_dataset(tmp_path_factory.mktemp("mixed"), samples))


def figures(dataset: ShardDataset) -> Any:
    truth = dataset.annotations()
    found = [
        {"image_id": entry["image_id"], "category_id": 1, "bbox": [12, 12, 40, 40 + 9 * entry["id"]], "score": 0.5}
        for entry in truth["annotations"]
    ]
    return coco_average_precision(truth, found).as_json()


def test_bad_samples_change_nothing_but_the_count(good: ShardDataset, mixed: ShardDataset) -> None:
    num_bad = len(BAD) + len(WHOLE)
    assert mixed.annotations() == good.annotations() and figures(mixed) == figures(good)
    assert (survey_boxes(mixed).sizes == survey_boxes(good).sizes).all()
    found = inspect_dataset(mixed)
    assert found.num_images == 5 and found.problems.counts == {"sample_json_damaged": num_bad}
    batches = list(EvaluationStream(mixed, image_size=64, stride=32, batch_size=4, rectangular=True))
    assert sorted(identity for batch in batches for identity in batch.image_ids) == [1, 2, 3, 4, 5]
    assert [reason for batch in batches for _, reason in batch.skipped] == ["sample_json_damaged"] * num_bad


def test_training_skips_bad_samples_by_reason_and_key(mixed: ShardDataset) -> None:
    stream = TrainingStream(mixed, seed=1, image_size=64, global_batch_size=4, micro_batch_size=4,
                            augmentation=Augmentation(degrees=5.0, mixup=0.5), num_threads=0)  # fmt: skip
    batches = list(itertools.islice(stream.micro_batches(0, [0]), -(-len(mixed) // 4)))
    skipped = {key for batch in batches for key, reason in batch.skipped if reason == "sample_json_damaged"}
    assert skipped == {f"{number:06d}" for number in range(5, len(mixed))}
    assert {key for batch in batches for key in batch.keys} <= {f"{number:06d}" for number in range(5)}
    assert all(np.isfinite(batch.targets.numpy()).all() for batch in batches)


def test_an_annotation_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    def claim(rows: Any) -> None:
        rows["json_bytes"][0] = 17 * 2**20

    folder = write_dataset(tmp_path, [annotation(1), annotation(2)], change_rows=claim,
                           change_manifest=lambda manifest: manifest["shards"][0].update(bytes=2**26))  # fmt: skip
    dataset = ShardDataset(folder)
    assert [record.image_id for _, record in dataset.records()] == [2]
    assert inspect_dataset(dataset, verify=False).problems.counts == {"sample_json_damaged": 1}


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.mark.parametrize("name", ["e01_class_99", "e10b_seg_short", "e10c_seg_odd"])
def test_the_commands_go_through(run: Run, test_data: Path, tmp_path: Path, name: str) -> None:
    folder, results = test_data / "hostile2/shards" / name, tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 2, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9}]))
    code, _, errors = run("data", "inspect", folder)
    assert code == 1 and "sample_json_damaged x 1" in errors and "shard-000000, sample 0" in errors
    code, text, errors = run("evaluate", results, folder, "--json")
    assert code == 0 and json.loads(text)["num_images"] == 5 and "Traceback" not in errors
    assert json.loads(text)["figures"]["AP"] == pytest.approx(0.2, abs=0.01), "one of five objects"
    assert [entry["reason"] for entry in json.loads(text)["skipped"]] == ["sample_json_damaged"]
    code, text, _ = run("data", "anchors", folder, "--model", "yolov7-tiny", "--json")
    assert code == 0 and json.loads(text)["boxes"] == 5
