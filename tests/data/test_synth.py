from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask

from yolofleet.data.check import check_dataset
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.synth import draw_image, write_synthetic_dataset


@pytest.fixture(scope="module")
def images() -> list[tuple[np.ndarray, list[dict[str, object]]]]:
    return [draw_image(0, number, 64) for number in range(400)]


def test_equal_seeds_draw_equal_datasets(tmp_path: Path) -> None:
    for name, seed, count in (("a", 1, 12), ("b", 1, 20), ("c", 2, 12)):
        write_synthetic_dataset(tmp_path / name, count, seed, image_size=64)
    read = {name: [path.read_bytes() for path in sorted((tmp_path / name / "images").iterdir())] for name in "abc"}
    assert read["a"] == read["b"][:12] and read["a"] != read["c"]


def test_the_parts_share_no_image_and_miss_none(drawn: Path) -> None:
    parts = {
        name: {image["id"] for image in json.loads((drawn / f"instances{name}.json").read_text())["images"]}
        for name in ("", "_train", "_val")
    }
    assert not parts["_train"] & parts["_val"] and parts["_train"] | parts["_val"] == parts[""]
    assert len(parts["_val"]) == 9


def test_what_is_drawn_passes_its_own_check(drawn: Path) -> None:
    problems = ProblemLog()
    source, store = read_source(str(drawn / "instances.json"), str(drawn / "images"), problems)
    report = check_dataset(source, store, problems)
    assert report.num_usable == 45 and problems.counts == {}


def test_there_is_something_of_everything(images: list[tuple[np.ndarray, list[dict[str, object]]]]) -> None:
    objects = [entry for _, found in images for entry in found]
    counts = Counter(entry["category_id"] for entry in objects if not entry["iscrowd"])
    assert set(counts) == {2, 5, 11} and max(counts.values()) < 1.3 * min(counts.values())
    crowds = [entry for entry in objects if entry["iscrowd"]]
    assert {type(entry.get("segmentation")) for entry in crowds} == {dict, type(None)}
    assert {type(entry.get("segmentation")) for entry in objects if not entry["iscrowd"]} == {list, type(None)}
    num_empty = sum(not found for _, found in images)
    assert 0.03 < num_empty / len(images) < 0.2 and 0.03 < len(crowds) / len(images) < 0.2
    assert len({pixels.shape for pixels, _ in images}) > 10


def test_runs_of_a_crowd_fill_its_image(images: list[tuple[np.ndarray, list[dict[str, object]]]]) -> None:
    for pixels, found in images:
        for entry in found:
            if isinstance(entry.get("segmentation"), dict):
                size, counts = entry["segmentation"]["size"], entry["segmentation"]["counts"]
                assert size == list(pixels.shape[:2]) and sum(counts) == size[0] * size[1]
                assert sum(counts[1::2]) == entry["area"]
                read = mask.frPyObjects(entry["segmentation"], *size)
                assert mask.toBbox(read).tolist() == entry["bbox"] and mask.area(read) == entry["area"]


def test_colour_says_nothing_about_the_class(images: list[tuple[np.ndarray, list[dict[str, object]]]]) -> None:
    colours: dict[object, list[np.ndarray]] = {2: [], 5: [], 11: []}
    for pixels, found in images:
        for entry in found:
            if not entry["iscrowd"]:
                x, y, width, height = entry["bbox"]
                colours[entry["category_id"]].append(pixels[int(y + height / 2), int(x + width / 2)].astype(float))
    means = np.array([np.mean(values, axis=0) for values in colours.values()])
    spread = np.array([np.std(values, axis=0) for values in colours.values()])
    assert np.ptp(means, axis=0).max() < 25 and spread.min() > 50


def test_boxes_lie_inside_and_objects_stand_out(images: list[tuple[np.ndarray, list[dict[str, object]]]]) -> None:
    for pixels, found in images:
        height, width = pixels.shape[:2]
        for entry in found:
            x, y, across, down = entry["bbox"]
            assert x >= 0 and y >= 0 and x + across <= width and y + down <= height and min(across, down) > 5
