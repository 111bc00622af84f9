"""The hostile corpus through check, shards and the training stream."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yolofleet.core.errors import UserError
from yolofleet.data.build import BuildError
from yolofleet.data.check import check_dataset
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.data.manifest import ManifestError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.stream import TrainingStream
from yolofleet.data.verification import inspect_dataset
from yolofleet.specs.hyperparameters import Augmentation

Build = Callable[..., ProblemLog]

# annotations -> (images, boxes that are targets, problems that reading alone does not find)
BUILT = {
    "ok": (4, 12, {}),
    "box_outside": (4, 11, {"box_outside": 1}),
    "box_partly_outside": (4, 12, {"box_clipped": 1}),
    "box_huge": (4, 12, {"box_clipped": 1}),
    "image_file_missing": (4, 12, {"image_file_missing": 1}),
    "image_path_traversal": (3, 9, {"image_path_outside": 1}),
    "image_path_absolute": (3, 9, {"image_path_outside": 1}),
    "image_path_backslash": (4, 12, {"file_name_repaired": 1}),
    "image_size_wrong": (4, 12, {"image_size_wrong": 1}),
    "image_size_missing": (4, 12, {"image_size_missing": 1}),
    "image_id_string": (4, 12, {"image_id_renumbered": 4}),
    "crowd_rle": (4, 11, {}),
    "annotations_empty": (4, 0, {}),
    "boxes_2000": (4, 2000, {"annotation_duplicate_box": 2}),
}
# shard -> (samples, problems)
TARS = {
    "ok.tar": (4, {}),
    "truncated_member.tar": (1, {"shard_damaged": 1}),
    "truncated_header.tar": (1, {"shard_damaged": 1}),
    "truncated_no_eof.tar": (4, {}),
    "missing_json.tar": (3, {"sample_without_json": 1}),
    "missing_jpg.tar": (3, {"sample_without_image": 1}),
    "duplicate_keys.tar": (4, {}),
    "duplicate_key_adjacent.tar": (3, {"sample_duplicate_member": 1}),
    "wrong_extension.zip": (4, {}),
    "corrupt_member.tar": (3, {"image_damaged": 1}),
    "corrupt_json.tar": (3, {"sample_json_damaged": 1}),
    "header_checksum.tar": (2, {"shard_damaged": 1}),
    "huge_member_size.tar": (2, {"shard_damaged": 1}),
    "path_traversal.tar": (3, {}),
    "symlink_member.tar": (2, {"member_ignored": 1}),
    "subfolders_same_name.tar": (4, {}),
    "dots_in_key.tar": (2, {}),
    "unicode_key.tar": (1, {}),
    "extra_members.tar": (2, {"member_ignored": 3}),
    "empty_member.tar": (2, {"image_empty": 1}),
}
TARS_REFUSED = {
    "interleaved.tar": "must be adjacent",
    "zero_length.tar": "shard_empty",
    "empty_archive.tar": "shard_empty",
    "text.tar": "no tar file",
    "gzip_named.tar": "gunzip",
}


def corpus(test_data: Path) -> Path:
    return test_data / "hostile"


def stream(dataset: ShardDataset, **changes: object) -> TrainingStream:
    settings: dict[str, object] = {
        "seed": 1,
        "image_size": 64,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "augmentation": Augmentation(),
        "num_threads": 0,
    }
    return TrainingStream(dataset, **(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BUILT)
def test_hostile_annotations_become_the_dataset_that_they_should(
    build: Build, test_data: Path, tmp_path: Path, name: str
) -> None:
    folder = corpus(test_data)
    problems = build(folder / "annotations" / f"{name}.json", folder / "images", tmp_path / "out")
    dataset = ShardDataset(tmp_path / "out")
    assert (len(dataset), dataset.manifest.num_boxes, problems.counts) == BUILT[name]
    assert inspect_dataset(dataset).problems.counts == {}
    for _, record in dataset.records():
        corners = record.boxes[:, :2] + record.boxes[:, 2:]
        assert (record.boxes[:, :2] >= -1).all() and (corners <= (record.width + 1, record.height + 1)).all()
    annotations = dataset.annotations()["annotations"]
    assert [entry["id"] for entry in annotations] == list(range(1, len(annotations) + 1))
    batches = EvaluationStream(dataset, image_size=64, stride=32, batch_size=3)
    assert sum(len(batch.image_ids) for batch in batches) == len(dataset)


def test_training_without_a_single_box_is_refused(build: Build, test_data: Path, tmp_path: Path) -> None:
    folder = corpus(test_data)
    with pytest.raises(BuildError, match="objects_all_crowds"):
        build(folder / "annotations" / "all_crowd.json", folder / "images", tmp_path / "out")
    build(folder / "annotations" / "annotations_empty.json", folder / "images", tmp_path / "out")
    with pytest.raises(UserError, match="no boxes to learn from"):
        stream(ShardDataset(tmp_path / "out"))


def test_every_hostile_image_is_built_or_left_out_and_counted(build: Build, test_data: Path, tmp_path: Path) -> None:
    folder = corpus(test_data)
    problems = build(folder / "annotations" / "all_images.json", folder / "images", tmp_path / "out")
    found = problems.as_document()
    dropped = {kind: entry["count"] for kind, entry in found.items() if entry["outcome"] == "drop"}
    assert dropped == {"image_damaged": 3, "image_empty": 1, "image_too_large": 3, "image_unknown": 2}
    dataset = ShardDataset(tmp_path / "out")
    assert len(dataset) == 21 and dataset.manifest.problems == problems.as_document()
    names = {record.file_name for _, record in dataset.records()}
    assert {"sp ace 图片 é́ #%.jpg", "a.b.c.jpg", "UPPER.JPG"} <= names
    keys = [key for key, _ in dataset.records()]
    assert len(set(keys)) == 21 and not any("." in key for key in keys)


def test_too_many_unusable_images_stop_the_build(build: Build, test_data: Path, tmp_path: Path) -> None:
    folder = corpus(test_data)
    with pytest.raises(BuildError, match=r"9 of 30 images are unusable.*image_damaged: 3 \(such as"):
        build(folder / "annotations" / "all_images.json", folder / "images", tmp_path, most_skipped=0.1)
    with pytest.raises(ManifestError, match="no dataset here"):
        ShardDataset(tmp_path)


@pytest.mark.parametrize("name", TARS)
def test_foreign_shards_give_the_samples_that_can_be_had(test_data: Path, name: str) -> None:
    problems = ProblemLog()
    source, images = read_source(str(corpus(test_data) / "shards" / name), None, problems)
    report = check_dataset(source, images, problems)
    assert (report.num_usable, problems.counts) == TARS[name]
    assert report.num_boxes == 3 * report.num_usable, "boxes stay with their own image"


@pytest.mark.parametrize("name", TARS_REFUSED)
def test_foreign_shards_without_a_sample_are_refused(test_data: Path, name: str) -> None:
    with pytest.raises(UserError, match=TARS_REFUSED[name]):
        read_source(str(corpus(test_data) / "shards" / name), None, ProblemLog())


def test_a_folder_of_foreign_shards_is_one_source(test_data: Path) -> None:
    problems = ProblemLog()
    source, images = read_source(str(corpus(test_data) / "shards"), None, problems)
    assert len(source.records) == sum(count for count, _ in TARS.values()) + 2  # two broken JPEGs are listed still
    assert len(images.list()) == len(source.records)


def damaged(shards: Path, out: Path, damage: str) -> ShardDataset:
    """Copy a dataset and damage its first shard without touching manifest and index."""
    for path in shards.rglob("*"):
        if path.is_file():
            target = out / path.relative_to(shards)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    tar = out / "shards" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    dataset = ShardDataset(out)
    row = dataset.index(0).rows[3]
    start, size = int(row["image_offset"]), int(row["image_bytes"])
    json_start, json_size = int(row["json_offset"]), int(row["json_bytes"])
    if damage == "cut":
        data = data[: start + size // 2]
    elif damage == "empty":
        data = bytearray()
    elif damage == "text":
        data = bytearray(b"not a tar\n" * (len(data) // 10))
    elif damage == "pixels":
        data[start : start + size] = np.random.default_rng(0).bytes(size)
    elif damage == "annotation":
        data[json_start + json_size // 2 : json_start + json_size] = b" " * (json_size - json_size // 2)
    tar.write_bytes(data)
    return ShardDataset(out)


@pytest.mark.parametrize(
    ("damage", "reason", "num_lost"),
    [
        ("cut", "sample_lost", 4),
        ("empty", "sample_lost", 7),
        ("text", "sample_json_damaged", 7),
        ("pixels", "image_unknown", 1),
        ("annotation", "sample_json_damaged", 1),
    ],
)
def test_damage_in_a_shard_costs_its_samples_only_and_the_same_everywhere(
    shards: Path, tmp_path: Path, damage: str, reason: str, num_lost: int
) -> None:
    dataset = damaged(shards, tmp_path, damage)
    per_epoch = len(dataset) // 4 + 2
    alone = list(itertools.islice(stream(dataset).micro_batches(0, [0, 1]), per_epoch))
    threads = list(itertools.islice(stream(dataset, num_threads=3).micro_batches(0, [0, 1]), per_epoch))
    halves = [list(itertools.islice(stream(dataset).micro_batches(0, [k]), per_epoch // 2)) for k in (0, 1)]
    assert [batch.digest() for batch in alone] == [batch.digest() for batch in threads]
    assert [batch.digest() for batch in alone[: len(halves[0]) * 2 : 2]] == [batch.digest() for batch in halves[0]]
    assert [batch.skipped for batch in alone] == [batch.skipped for batch in threads]
    skipped = [entry for batch in alone for entry in batch.skipped]
    assert {why for _, why in skipped} == {reason} and len({key for key, _ in skipped}) == num_lost
    assert not {key for key, _ in skipped} & {key for batch in alone for key in batch.keys}
    assert all(batch.images.shape == (4, 3, 64, 64) for batch in alone)
    inspection = inspect_dataset(dataset)
    assert inspection.num_images == len(dataset) - (num_lost if reason != "image_unknown" else 0)
    assert inspection.problems.counts["shard_damaged"] == 1
    assert len(dataset.annotations()["images"]) == inspection.num_images
    batches = list(EvaluationStream(dataset, image_size=64, stride=32, batch_size=8))
    assert sum(len(batch.image_ids) for batch in batches) == len(dataset) - num_lost
    assert {why for batch in batches for _, why in batch.skipped} == {reason}


def test_a_dataset_without_one_good_sample_stops_with_a_reason(build: Build, test_data: Path, tmp_path: Path) -> None:
    folder = corpus(test_data)
    build(folder / "annotations" / "ok.json", folder / "images", tmp_path)
    (tmp_path / "shards" / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used, the first because of 'sample_lost'"):
        next(stream(ShardDataset(tmp_path)).micro_batches(0, [0]))


def test_check_counts_what_the_build_counts(build: Build, test_data: Path, tmp_path: Path) -> None:
    folder = corpus(test_data)
    built = build(folder / "annotations" / "all_images.json", folder / "images", tmp_path)
    checked = ProblemLog()
    source, images = read_source(str(folder / "annotations" / "all_images.json"), str(folder / "images"), checked)
    report = check_dataset(source, images, checked, num_threads=2)
    assert checked.counts == built.counts and report.num_usable == 21
    assert json.dumps(checked.as_document())
