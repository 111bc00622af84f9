"""Which annotations of a folder are read where several kinds of files lie in it."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.exports import NAMES, Box, boxes_by_name, built, coco, read, save_images, save_labels, voc, write_json
from yolofleet.cli.main import main
from yolofleet.data import annotation_kind
from yolofleet.data.annotation_kind import kinds_of, source_files
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.source_folder import open_source
from yolofleet.data.zip_folder import ZipFolder

STEMS = ("a", "b", "c")
FILES = [f"{stem}.jpg" for stem in STEMS]


def kinds(folder: Path) -> dict[str, str]:
    storage = open_source(str(folder), ProblemLog(), follow_links=False)
    return kinds_of(storage, source_files(storage))


def save_coco(folder: Path) -> list[list[Box]]:
    every = save_images(folder / "images", *FILES)
    write_json(folder / "annotations" / "instances.json", coco(every, FILES))
    return every


def save_yolo(folder: Path) -> list[list[Box]]:
    every = save_images(folder / "images", *FILES)
    save_labels(folder / "labels", dict(zip(STEMS, every, strict=True)))
    return every


def save_voc(folder: Path) -> list[list[Box]]:
    every = save_images(folder / "images", *FILES)
    for stem, boxes in zip(STEMS, every, strict=True):
        (folder / f"{stem}.xml").write_text(voc(boxes, f"{stem}.jpg"))
    return every


def save_shards(folder: Path) -> None:
    every = save_images(folder / "images", *FILES)
    with tarfile.open(folder / "x.tar", "w") as archive:
        for stem, boxes in zip(STEMS, every, strict=True):
            (folder / f"{stem}.json").write_text(json.dumps({"bboxes": boxes, "category_ids": [1, 2, 3]}))
            archive.add(folder / "images" / f"{stem}.jpg", f"{stem}.jpg")
            archive.add(folder / f"{stem}.json", f"{stem}.json")
            (folder / f"{stem}.json").unlink()


BESIDE: dict[str, tuple[str, str]] = {
    "names": ("classes.txt", "\n".join(NAMES)),
    "words": ("LICENSE.txt", "Do with it what you like.\nAs is.\n"),
    "a list": ("train.txt", "images/a.jpg\nimages/b.jpg\n"),
    "a list elsewhere": ("ImageSets/Main/all.txt", "a 1\nb -1\n"),
    "notes of Label Studio": ("notes.json", '{"categories": [{"id": 0, "name": "red"}], "info": {"year": 2026}}'),
    "counts": ("stats.json", '{"images": 3, "annotations": 9}'),
    "a settings file": (".vscode/settings.json", "{}"),
    "another XML": ("project.xml", "<project/>"),
    "a backup": ("backup.tar", "\0" * 10240),
    "YAML": ("data.yaml", "names: [red, green, blue]\ntrain: images\n"),
}
KINDS: dict[str, Callable[[Path], Any]] = {"coco": save_coco, "yolo": save_yolo, "voc": save_voc}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beside_annotations_does_not_change_their_kind(tmp_path: Path, kind: str, beside: str) -> None:
    KINDS[kind](tmp_path / "set")
    name, text = BESIDE[beside]
    (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "set" / name).write_text(text)
    assert list(kinds(tmp_path / "set")) == [kind]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.*")):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path))
    assert list(kinds(tmp_path / "set.zip")) == [kind]


@pytest.mark.parametrize("beside", ["names", "words", "counts", "notes of Label Studio", "another XML"])
def test_tar_shards_are_read_where_nothing_else_holds_annotations(tmp_path: Path, beside: str) -> None:
    save_shards(tmp_path)
    name, text = BESIDE[beside]
    (tmp_path / name).write_text(text)
    source, _ = read(tmp_path, None)
    assert sorted(map(len, (record.boxes for record in source.records))) == [3, 3, 3]


@pytest.mark.parametrize("beside", [name for name in BESIDE if name != "YAML"])
def test_a_folder_of_labels_alone_is_yolo(tmp_path: Path, beside: str) -> None:
    every = save_yolo(tmp_path)
    name, text = BESIDE[beside]
    (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "labels" / name).write_text(text)
    source, _ = read(tmp_path / "labels", tmp_path / "images")
    assert boxes_by_name(source) == dict(zip(FILES, every, strict=True))


@pytest.mark.parametrize("text", ["", "1,2,3,4,5\n", "cat 0.5 0.5 0.1 0.1\n"])
def test_texts_with_the_names_of_images_are_labels_where_nothing_else_is(tmp_path: Path, text: str) -> None:
    save_yolo(tmp_path)
    for stem in STEMS:
        (tmp_path / "labels" / f"{stem}.txt").write_text(text)
    for name in ("stats.json", "backup.tar"):
        (tmp_path / name).write_bytes(b"{}")
    assert list(kinds(tmp_path)) == ["yolo"]
    save_coco(tmp_path)
    assert list(kinds(tmp_path)) == ["coco"]


@pytest.mark.parametrize(
    ("held", "chosen"),
    [(("coco", "yolo"), "yolo"), (("coco", "voc"), "voc"), (("yolo", "voc"), "voc"), (("coco", "yolo", "voc"), "voc")],
)
def test_of_several_kinds_the_preferred_one_is_read_and_the_others_are_told_with_the_cure(
    tmp_path: Path, held: tuple[str, ...], chosen: str
) -> None:
    for kind in held:
        KINDS[kind](tmp_path)
    assert list(kinds(tmp_path)) == list(held)
    problems, expected = ProblemLog(), ProblemLog()
    read_source(str(tmp_path), None, problems)
    read_source(str(tmp_path), None, expected, source_format=chosen)
    assert problems.counts == {**expected.counts, "annotations_of_other_kind": len(held) - 1}
    assert all(f"{chosen.upper()} (" in example for example in problems.examples["annotations_of_other_kind"])
    for kind in held:
        told = " ".join(problems.examples["annotations_of_other_kind"])
        assert (f"--format {kind}" in told) == (kind != chosen)
        assert main(["data", "shard", str(tmp_path), "-", str(tmp_path / "out" / kind), "--format", kind]) == 0


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_numbers_in_a_text_that_is_no_label_of_an_image_are_no_annotations(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path)
    (tmp_path / "anchors.txt").write_text("10 13 16 30 33 23 30 61\n")
    assert list(kinds(tmp_path)) == [kind]


@pytest.mark.parametrize("beside", ["notes.json", "project.xml"])
def test_labels_of_other_names_than_the_images_are_still_labels(tmp_path: Path, beside: str) -> None:
    save_yolo(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        path.rename(path.with_name(f"0a1b2c3d-{path.name}"))
    (tmp_path / beside).write_text("{}")
    assert list(kinds(tmp_path)) == ["yolo"]


def test_shards_without_other_images_are_read_before_a_coco_file_or_numbers_beside_them(tmp_path: Path) -> None:
    save_shards(tmp_path)
    save_coco(tmp_path)
    assert list(kinds(tmp_path)) == ["coco"]
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "anchors.txt").write_text("10 13 16 30 33 23 30 61\n")
    source, counts = read(tmp_path, None)
    assert len(source.records) == 3 and counts["annotations_of_other_kind"] == 2
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "annotations", "annotations")  # no shard but a packed folder
    (tmp_path / "anchors.txt").unlink()
    assert list(kinds(tmp_path)) == ["coco"]


def test_no_more_files_are_read_than_show_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path, *(f"{number}.jpg" for number in range(9)))
    save_labels(tmp_path, {str(number): [[5.0, 5.0, 20.0, 20.0]] for number in range(9)})
    opened = []
    monkeypatch.setattr(annotation_kind, "_read", lambda folder, key, *_: opened.append(key) or b"0 1 1 1 1")
    assert kinds(tmp_path) == {"yolo": "0.txt"} and opened == ["0.txt"]


ORDERS = [
    ("images", "annotations", "categories"),
    ("categories", "images", "annotations"),
    ("images", "categories", "annotations"),
    ("annotations", "images", "categories"),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_a_large_coco_file_is_known_by_its_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...], ending: str
) -> None:
    monkeypatch.setattr(annotation_kind, "END_BYTES", 400)
    monkeypatch.setattr(annotation_kind, "MOST_UNPACKED_BYTES", 400)
    document = coco([[[1.0, 2.0, 3.0, 4.0]]] * 200, [f"{number}.jpg" for number in range(200)])
    data = json.dumps({key: document[key] for key in order}).encode()
    (tmp_path / f"a{ending}").write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    (tmp_path / "a.txt").write_text("a list\n")
    assert kinds(tmp_path) == {"coco": f"a{ending}"}


def test_the_one_coco_file_among_other_json_files_is_read(tmp_path: Path) -> None:
    every = save_coco(tmp_path)
    for name in ("notes.json", "stats.json"):
        (tmp_path / name).write_text("{}")
    source, _ = read(tmp_path, None)
    assert boxes_by_name(source) == dict(zip(FILES, every, strict=True))


def test_of_a_file_in_a_zip_no_more_is_unpacked_than_is_asked_for_and_its_end_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 8192
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", data)
    folder = ZipFolder(tmp_path / "set.zip", ProblemLog())
    read_bytes = []
    unpack = zipfile.ZipExtFile._read1
    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", lambda self, n: read_bytes.append(n) or unpack(self, n))
    assert folder.get_range("a.json", 0, 500) == data[:500] and sum(read_bytes) < 10_000
    assert folder.get_range("a.json", len(data) - 500, 900) == data[-500:]
    num_reads = len(read_bytes)
    assert folder.get_range("a.json", len(data) - 500, 900) == data[-500:] and len(read_bytes) == num_reads


# --- our own datasets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["shard", "init", "interrupted"])
def test_what_was_made_from_a_folder_is_no_part_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, way: str
) -> None:
    KINDS[kind](tmp_path)
    made = tmp_path / "shards" / "x"
    if way == "init":
        arguments = ["--out", str(tmp_path), "--name", "d", "--model", "yolov7-tiny", "--image-size", "64"]
        assert main(["init", str(tmp_path), *arguments]) == 0
    else:
        assert main(["data", "shard", str(tmp_path), "-", str(made)]) == 0
    if way == "interrupted":
        (made / "manifest.json").unlink()
        (made / "building").mkdir()
        (made / "building" / "shard-000000.json").write_text('{\n "plan": "0"}')
    assert list(kinds(tmp_path)) == [kind]
    capsys.readouterr()
    for images in ("-", str(tmp_path)):
        assert main(["data", "check", str(tmp_path), images, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["images"], found["boxes"]) == (3, 9) and "file_not_image" not in found["problems"]
    assert main(["data", "shard", str(tmp_path), "-", str(tmp_path / "again")]) == 0
    assert {name.rpartition("/")[2] for name in built(tmp_path / "again")} == set(FILES)


def test_our_own_datasets_are_read_where_nothing_else_is(tmp_path: Path) -> None:
    save_yolo(tmp_path / "set")
    for split in ("train", "val"):
        assert main(["data", "shard", str(tmp_path / "set"), "-", str(tmp_path / "shards" / split)]) == 0
    (tmp_path / "shards" / "README.txt").write_text("two splits\n")
    assert len(read(tmp_path / "shards", None)[0].records) == 6
    assert len(read(tmp_path / "shards" / "train", None)[0].records) == 3


def test_a_manifest_of_something_else_hides_nothing(tmp_path: Path) -> None:
    save_yolo(tmp_path)
    (tmp_path / "labels" / "manifest.json").write_text('{"format": 1}')
    (tmp_path / "labels" / "building").mkdir()
    (tmp_path / "labels" / "building" / "notes.json").write_text("{}")
    assert sum(map(len, (record.boxes for record in read(tmp_path, None)[0].records))) == 9
