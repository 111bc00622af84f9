"""Names, links, pipes and numbers that no dataset should hold, and some do."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.voc import read_voc
from yolofleet.data.yolo import read_yolo
from yolofleet.storage import ObjectNotFoundError, open_storage

NAMES = [
    "sub/a.jpg",
    "A.JPG",
    "dots.in/x.y.jpg",
    "new\nline.jpg",
    "  .jpg",
    "é.jpg",
    "e\u0301.jpg",
    "-rf.jpg",
    "q'\"$(x)`.jpg",
    "<b>.jpg",
    "x" * 200 + ".jpg",
]


@pytest.fixture
def image_files(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a.jpg", "b.jpg", *NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (90, 20, 200)).save(folder / name, "JPEG")
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("gone")
    (folder / "text.jpg").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.jpg")
    return folder


def document(**changes: Any) -> dict[str, Any]:
    """Two good images with a box each; the changes are those of the first annotation."""
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 20], "area": 400, "iscrowd": 0}
    return {
        "images": [
            {"id": number, "file_name": f"{'ab'[number - 1]}.jpg", "width": 64, "height": 48} for number in (1, 2)
        ],
        "annotations": [{"id": 1} | box | changes, {"id": 2} | box | {"image_id": 2}],
        "categories": [{"id": 1, "name": "thing"}],
    }


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run ``data COMMAND ...`` in a thread, so that one that hangs fails the test, and return its JSON."""
    codes: list[int] = []
    command = ["data", *(str(argument) for argument in arguments), "--json"]
    thread = threading.Thread(target=lambda: codes.append(main(command)), daemon=True)
    thread.start()
    thread.join(60)
    assert codes == [0], "crashed or hangs"
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_is_no_file_is_missing_and_never_waited_for(
    image_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.jpg", *NAMES, "loop.jpg", "nowhere.jpg", "text.jpg", "pipe.jpg", "folder.jpg"]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, start=1)]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(document() | {"images": images}))
    checked = run_json(capsys, "check", annotations, image_files)
    built = run_json(capsys, "shard", annotations, image_files, tmp_path / "out")
    good = 1 + len(NAMES)
    assert checked["usable"] == built["images"] == good and built["skipped"] == 5
    for found in (checked, built):
        counts = {kind: entry["count"] for kind, entry in found["problems"].items()}
        assert counts["image_file_missing"] == 5 and counts["link_outside"] == counts["file_irregular"] == 1
        assert counts["file_unreadable"] == 2, "a loop, and a link to nothing"
        assert found["problems"]["link_outside"]["examples"] == [f"{image_files}/text.jpg -> /etc/passwd"]
    followed = run_json(capsys, "check", annotations, image_files, "--follow-links")["problems"]
    assert "link_outside" not in followed and followed["image_unknown"]["count"] == 1
    assert run_json(capsys, "inspect", tmp_path / "out")["verified"]


def test_storage_knows_files_only(image_files: Path) -> None:
    storage = open_storage(image_files)
    assert {entry.key for entry in storage.list()} == {"a.jpg", "b.jpg", "text.jpg", *NAMES}
    for name in ("pipe.jpg", "folder.jpg", "nowhere.jpg"):
        for read in (storage.get, storage.open_stream, lambda key: storage.get_range(key, 0, 1)):
            with pytest.raises(ObjectNotFoundError):
                read(name)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"area": 10**400}, "area_missing"),
        ({"area": float("nan")}, "area_missing"),
        ({"segmentation": [[10**400] * 6]}, "segmentation_malformed"),
        ({"segmentation": [[float("nan")] * 6]}, "segmentation_malformed"),
        ({"segmentation": {"counts": [10**12], "size": [10**9, 10**9]}}, "segmentation_malformed"),
        ({"bbox": [10**400, 1, 1, 1]}, "box_not_finite"),
        ({"bbox": [1e308] * 4}, "box_not_finite"),
        ({"image_id": [1]}, "annotation_malformed"),
        ({"iscrowd": []}, "iscrowd_malformed"),
    ],
)
def test_numbers_beyond_all_measure_are_counted(
    image_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], problem: str
) -> None:
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(document(**changes)))
    assert run_json(capsys, "check", annotations, image_files)["problems"][problem]["count"] == 1


def test_many_classes_are_read_in_linear_time(
    image_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20,000 of them took a minute when each was compared with all before it."""
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 100_001)]
    other = [{"id": number, "image_id": 1, "category_id": f"no {number}"} for number in range(3, 100_000)]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(document() | {"categories": categories}))
    assert len(run_json(capsys, "check", annotations, image_files)["class_counts"]) == 100_000
    lists = document() | {"categories": categories}
    problems = ProblemLog()
    parse_coco(json.dumps(lists | {"annotations": lists["annotations"] + other}).encode(), "a.json", problems)
    assert problems.counts == {"category_malformed": len(other)}


@pytest.mark.parametrize("form", ["YOLO", "VOC"])
def test_many_names_are_compared_in_linear_time(tmp_path: Path, form: str) -> None:
    names = [f"class {number}" for number in range(200_000)]
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("7 0.5 0.5 0.1 0.1")
    (tmp_path / "a.xml").write_text("<annotation></annotation>")
    store, problems = open_storage(tmp_path), ProblemLog()
    if form == "YOLO":
        assert len(read_yolo(store, store, [*names, "class 7"], problems).classes) == 200_001
        assert problems.counts["class_names_repeated"] == 1
    else:
        with pytest.raises(UserError, match="'class 199999' is there twice"):
            read_voc(store, store, [*names, names[-1]], problems)
