"""Splits are stable, nothing outside of a folder is read, and what is no annotation is named."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tool_exports
from data.folders import draw, halves, plain_yolo, write_json, write_lines
from data.found import boxes_of, find, truth
from yolofleet.core.errors import UserError
from yolofleet.data.file_finder import LONGEST_NAME, name_parts
from yolofleet.data.file_tree import FileTree, pair_labels, split_of
from yolofleet.data.find_layout import find_layout
from yolofleet.data.layout_reader import assign_splits, name_share, validation_names
from yolofleet.data.records import ImageRecord


@pytest.mark.parametrize(
    ("name", "content", "tool"),
    [
        ("photo_000.json", '{"version": "5.4", "shapes": [], "imagePath": "photo_000.jpg"}', "labelme"),
        ("project.json", '{"_via_settings": {}, "_via_img_metadata": {}}', "VIA"),
        ("export.json", '[{"id": 1, "annotations": [{"result": [{"from_name": "label"}]}]}]', "Label Studio"),
        ("default.json", '{"dm_format_version": "1.0", "categories": {}, "items": []}', "Datumaro"),
        ("panoptic_val.json", '{"annotations": [{"segments_info": []}]}', "panoptic"),
        ("captions_val.json", '{"images": [], "annotations": [{"caption": "a cat"}]}', "captions"),
        ("results.json", '[{"image_id": 1, "score": 0.5}]', "detections"),
        ("annotations.xml", "<?xml version='1.0'?><annotations><version>1.1</version></annotations>", "CVAT"),
        ("train-annotations-bbox.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax", "CSV"),
    ],
)
def test_formats_that_are_not_read_are_named_with_a_cure(tmp_path: Path, name: str, content: str, tool: str) -> None:
    draw(1)[0].save(tmp_path / "photo_000.jpg")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is .*{tool}.*, then name the result"):
        find(tmp_path)


def test_images_of_two_splits_are_noted_and_a_val_that_is_train_is_not_believed(tmp_path: Path) -> None:
    plain_yolo(tmp_path, draw())
    write_lines(tmp_path / "data.yaml", ["train: images/train", "val: [images/val, images/train]", "names: [a, b, c]"])
    assert "8 images are in train and in val" in " ".join(find(tmp_path)[0].notes)
    write_lines(tmp_path / "data.yaml", ["train: images/train", "val: images/train", "names: [a, b, c]"])
    layout, *_ = find(tmp_path)
    assert set(layout.splits) == {"train"} and "val has the same images as train, and is left out" in " ".join(
        layout.notes
    )


@pytest.mark.parametrize("path", ["../outside", "/etc", "C:\\data\\outside", "~/outside", "images/../../outside"])
def test_no_path_of_data_yaml_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    plain_yolo(root, draw())
    plain_yolo(tmp_path / "outside", draw(seed=9))
    write_lines(root / "data.yaml", [f"path: '{path}'", "train: images/train", "val: images/val", "names: [a, b, c]"])
    _, splits, _ = find(root)
    assert boxes_of(splits["train"]).keys() == truth(halves(draw())["train"]).keys()
    write_lines(root / "data.yaml", [f"train: '{path}'", "names: [a, b, c]"])
    with pytest.raises(UserError, match="no image is where it says"):
        find(root)


def test_links_that_lead_out_are_counted_and_not_read(tmp_path: Path) -> None:
    plain_yolo(tmp_path / "root", draw())
    draw(1)[0].save(tmp_path / "secret.jpg")
    (tmp_path / "root/images/train/secret.jpg").symlink_to(tmp_path / "secret.jpg")
    _, splits, problems = find(tmp_path / "root")
    assert problems.counts["link_outside"] == 1
    assert not any("secret" in record.file_name for record in splits["train"].source.records)


def test_a_set_without_a_box_says_why(tmp_path: Path) -> None:
    tool_exports.write_labelme(tmp_path)
    document = json.loads((tmp_path / "annotations.json").read_text())
    for entry in document["annotations"]:
        entry["iscrowd"] = 1
    write_json(tmp_path / "annotations.json", document)
    with pytest.raises(UserError, match="no box in 3 images: 9 objects are crowds, which are no targets"):
        assign_splits(find(tmp_path)[1], 0.2)
    for entry in document["annotations"]:
        entry["category_id"] = 99
    write_json(tmp_path / "annotations.json", document)
    with pytest.raises(UserError, match=r"no box in 3 images; category_unknown: 9 \(.*such as annotation 1"):
        assign_splits(find(tmp_path)[1], 0.2)


def record(name: str, num_boxes: int = 1) -> ImageRecord:
    zeros = np.zeros(num_boxes)
    return ImageRecord(1, name, 9, 9, np.zeros((num_boxes, 4)), zeros.astype(int), zeros.astype(bool), zeros, ())


names = st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=2, max_size=40)


@given(names, names, st.floats(0.01, 0.9))
def test_images_that_are_added_move_no_other(first: set[str], more: set[str], share: float) -> None:
    def side(name: str) -> bool:
        return name_share(name) < share

    few = tuple(record(f"{name}.jpg") for name in sorted(first))
    if len({name_share(entry.file_name) for entry in few}) < 2:
        return
    chosen = validation_names(few, share)
    assert 0 < len(chosen) < len(few)
    if len({side(entry.file_name) for entry in few}) == 2:  # neither side had to be filled
        many = tuple(record(f"{name}.jpg") for name in sorted(first | more))
        assert validation_names(many, share) & {entry.file_name for entry in few} == chosen


def test_copies_of_one_image_stay_together_and_the_share_is_kept() -> None:
    copies = [f"images/train/cat_jpg.rf.{number:032x}.jpg" for number in range(50)]
    assert len({name_share(name) for name in copies}) == 1
    many = tuple(record(f"{number}.jpg") for number in range(4000))
    assert 0.18 < len(validation_names(many, 0.2)) / len(many) < 0.22


@pytest.mark.parametrize("num_samples", [2, 4, 50])
def test_samples_in_folders_of_their_own_can_be_split(num_samples: int) -> None:
    names = [f"s{number}/{side}.jpg" for number in range(num_samples) for side in ("left", "right")[: num_samples // 2]]
    assert 0 < len(validation_names(tuple(map(record, names)), 0.3)) < len(names)


def test_copies_in_folders_of_their_own_stay_with_their_images() -> None:
    names = [f"{folder}/{number}.jpg" for folder in ("plain", "turned", "dark") for number in range(20)]
    chosen = validation_names(tuple(map(record, names)), 0.3)
    numbers = {name.partition("/")[2] for name in chosen}
    assert 0 < len(chosen) < len(names) and chosen == {name for name in names if name.partition("/")[2] in numbers}


def test_validation_gets_an_image_with_objects_even_where_the_hash_gives_it_none() -> None:
    records = tuple(record(f"{number}.jpg", num_boxes=int(number < 2)) for number in range(200))
    chosen = validation_names(records, 0.01)
    assert len(chosen & {"0.jpg", "1.jpg"}) == 1
    with pytest.raises(UserError, match="1 image holds objects, of 200"):
        validation_names((*records[1:], record("x.jpg", 0)), 0.2)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("images/train2017", "train"),
        ("obj_Validation_data", "val"),
        ("valid/images", "val"),
        ("trainings/restrain", None),
        ("train/test/x", "test"),
        ("train_val", None),
        ("VOC2007/trainval", "trainval"),
    ],
)
def test_the_last_part_that_names_one_split_decides(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_a_label_belongs_to_one_image_alone() -> None:
    images = ["a/images/1.jpg", "b/images/1.jpg", "c/2.jpg"]
    assert pair_labels(images, ["a/labels/1.txt", "x/2.txt"]) == {
        "a/images/1.jpg": "a/labels/1.txt",
        "c/2.jpg": "x/2.txt",
    }
    assert pair_labels(images, ["x/1.txt"]) == {}


PARTS = st.sampled_from(["train", "val", "images", "labels", "Annotations", "ImageSets", "Main", "a", "b", ".x", "é"])
ENDINGS = ["a.jpg", "b.png", "a.txt", "train.txt", "val.txt", "classes.txt", "a.xml", "data.yaml", "obj.data", "c.json"]
KEYS = st.lists(
    st.tuples(st.lists(PARTS, max_size=3), st.sampled_from(ENDINGS)).map(lambda key: "/".join([*key[0], key[1]])),
    max_size=12,
    unique=True,
).map(lambda keys: [*dict.fromkeys([*keys, "images/a.jpg"])])
TEXTS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"train: ../images\nval: [val, /etc/passwd, train.txt]\nnames: [a]",
            b"train: {x: 1}\nnames: [a]",
            b"path: [1]\ntrain: .\nnames: {0: a}",
            b"train = ../../etc\nvalid = val.txt\nnames = ..",
            b'{"images": [{"file_name": "a.jpg"}, {"file_name": "..\\\\b.png"}], "annotations": [], "categories": []}',
            b'{"images": [{"file_name": "\\ud800"}, {"coco_url": ""}], "annotations": [], "categories": []}',
            b"<annotation></annotation>",
            b"a\n../../b.png\n/images/a.jpg\n\n\xff",
        ]
    ),
)


@settings(max_examples=400)
@given(keys=KEYS, texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_whatever_lies_in_a_folder_its_files_alone_are_named_or_it_is_refused(
    keys: list[str], texts: list[bytes]
) -> None:
    def read(key: str) -> bytes:
        assert key in keys
        return texts[zlib.crc32(key.encode()) % len(texts)]

    for named in (None, *(key for key in keys if key.endswith((".yaml", ".data", ".json")))):
        try:
            layout = find_layout(keys, read, named)
        except UserError:
            continue
        assert layout.splits
        for part in layout.splits.values():
            assert {*part.images.values(), *part.labels.values()} <= set(keys)


def test_very_long_paths_and_very_many_cost_little(tmp_path: Path) -> None:
    tree = FileTree(["images/a.jpg", "images/b.jpg", "images-2/c.jpg", "train/d.jpg"])
    assert tree.images_named("b/" * 5000 + "train", [""], lambda key: b"") == (["train/d.jpg"], [])
    assert tree.images_named("images", [""], lambda key: b"") == (["images/a.jpg", "images/b.jpg"], [])
    assert tree.images_named("images/a.jpg", [""], lambda key: b"") == (["images/a.jpg"], [])
    assert name_parts("a" + "\u0315\u0300" * LONGEST_NAME) == []
    draw(1)[0].save(tmp_path / "photo_000.jpg")
    (tmp_path / "data.yaml").write_text(f"names: [a]\ntrain: [{'zz, ' * 2000}]\n")
    with pytest.raises(UserError, match=r"train: 2,000 paths, at most 1,000"):
        find(tmp_path)
