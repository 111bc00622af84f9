"""Folders as tools export them are found whole: the same boxes from every format, and nothing outside of the folder."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import exports, tool_exports
from data.folders import (
    CLASSES,
    FOLDERS,
    Drawn,
    coco,
    draw,
    halves,
    plain_yolo,
    voc_devkit,
    voc_xml,
    write_json,
    write_lines,
    yolo_lines,
)
from yolofleet.core.errors import UserError
from yolofleet.data.file_finder import find_files
from yolofleet.data.file_tree import pair_labels, split_of
from yolofleet.data.find_layout import find_layout
from yolofleet.data.layout import Layout
from yolofleet.data.layout_reader import SplitSource, assign_splits, name_share, read_layout, validation_names
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.source_folder import open_source

Boxes = dict[str, list[tuple[str, float, float, float, float]]]


def find(folder: Path, named: str | None = None) -> tuple[Layout, dict[str, SplitSource], ProblemLog]:
    problems = ProblemLog()
    storage = open_source(str(folder), problems, follow_links=False)
    sizes = {entry.key: entry.size_bytes for entry in storage.list()}
    layout = find_layout(list(sizes), storage.get, named, str(folder))
    return layout, read_layout(layout, storage, sizes, problems), problems


def look(folder: Path) -> Layout:
    keys = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return find_layout(keys, lambda key: (folder / key).read_bytes())


def boxes_of(split: SplitSource) -> Boxes:
    """Named boxes by the part of the file's name that the image was drawn with."""
    names = [entry.name for entry in split.source.classes]
    found: Boxes = {}
    for record in split.source.records:
        stem = record.file_name.rpartition("/")[2].partition(".")[0].removesuffix("_jpg")
        key = "photo_" + stem.rpartition("photo_")[2]
        rows = zip(record.classes, record.boxes.round(6).tolist(), strict=True)
        found[key] = sorted((names[number], *box) for number, box in rows)
    return found


def truth(images: list[Drawn]) -> Boxes:
    return {image.name: sorted((CLASSES[box[0]], *map(float, box[1:])) for box in image.boxes) for image in images}


@pytest.mark.parametrize("tool", FOLDERS)
def test_every_export_gives_the_boxes_that_were_drawn(tmp_path: Path, tool: str) -> None:
    images = draw()
    FOLDERS[tool](tmp_path, images)
    _, splits, problems = find(tmp_path)
    assert not problems.num(["drop"])
    if set(splits) == {"all"}:
        assert boxes_of(splits["all"]) == truth(images)
    else:
        for split, part in halves(images).items():
            assert boxes_of(splits[split]) == truth(part), split
    assigned, _ = assign_splits(splits, 0.3)
    assert sum(len(split.source.records) for split in assigned.values()) == len(images)
    assert all(split.num_boxes for split in assigned.values())
    for split in assigned.values():
        listed = {entry.key for entry in split.images.list()}
        missing = [record.file_name for record in split.source.records if record.file_name not in listed]
        assert not missing


@pytest.mark.parametrize("tool", tool_exports.EXPORTS)
def test_the_export_of_each_tool_is_found_as_it_comes(tmp_path: Path, tool: str) -> None:
    tool_exports.EXPORTS[tool][0](tmp_path)
    root = tmp_path / "cvat.zip" if tool == "cvat" else tmp_path
    _, splits, problems = find(root)
    expected = [exports.draw(number)[1] for number in range(3)]
    for split in splits.values():
        keys = find_files([record.file_name for record in split.source.records], [e.key for e in split.images.list()])
        assert None not in keys
        found = [record.boxes.round(6).tolist() for record in split.source.records]
        assert found == expected[: len(keys)]
        assert sorted(entry.name for entry in split.source.classes) == sorted(exports.NAMES)
    assert sum(len(split.source.records) for split in splits.values()) == 3 and not problems.num(["drop"])


@pytest.mark.parametrize("tool", FOLDERS)
def test_litter_and_a_folder_around_it_change_nothing(tmp_path: Path, tool: str) -> None:
    images = draw(6)
    FOLDERS[tool](tmp_path / "plain", images)
    FOLDERS[tool](tmp_path / "littered/my export (1)", images)
    inside = tmp_path / "littered/my export (1)"
    for path in list(inside.rglob("*.*")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    for name in ("__MACOSX/x.json", ".ipynb_checkpoints/photo_000-checkpoint.jpg", "Thumbs.db", "README.txt"):
        (inside / name).parent.mkdir(exist_ok=True)
        (inside / name).write_text("{}")
    plain, littered = look(tmp_path / "plain"), look(tmp_path / "littered")

    def files(layout: Layout) -> dict[str, list[set[str]]]:
        return {
            split: [
                {key.removeprefix("my export (1)/") for key in keys.values()} for keys in (part.images, part.labels)
            ]
            for split, part in layout.splits.items()
        }

    assert files(littered) == files(plain)


@pytest.mark.parametrize("tool", FOLDERS)
def test_an_archive_is_read_as_its_folder(tmp_path: Path, tool: str) -> None:
    FOLDERS[tool](tmp_path / "set", draw(6))
    archive = Path(shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path, "set"))
    plain, packed = find(tmp_path / "set")[1], find(archive)[1]
    assert plain.keys() == packed.keys()
    assert all(boxes_of(plain[split]) == boxes_of(packed[split]) for split in plain)


def test_the_named_train_file_brings_its_partner_and_any_other_file_is_one_set(tmp_path: Path) -> None:
    FOLDERS["Datumaro as COCO"](tmp_path, draw())
    assert set(find(tmp_path, "annotations/instances_train.json")[0].splits) == {"train", "val"}
    assert set(find(tmp_path, "annotations/instances_val.json")[0].splits) == {"all"}


def test_two_files_that_could_be_meant_are_refused_by_name(tmp_path: Path) -> None:
    tool_exports.write_fiftyone(tmp_path)
    shutil.copy(tmp_path / "labels.json", tmp_path / "more.json")
    with pytest.raises(UserError, match=r"labels\.json, more\.json all hold annotations; name the file"):
        find(tmp_path)
    assert find(tmp_path, "more.json")[0].evidence == "more.json"


def test_a_folder_of_several_datasets_is_refused_where_they_have_classes_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        FOLDERS["Roboflow as YOLO"](tmp_path / name, draw())
    with pytest.raises(UserError, match=r"a/data\.yaml, b/data\.yaml each describe a dataset; name the one"):
        find(tmp_path)


def test_two_years_of_voc_are_one_dataset(tmp_path: Path) -> None:
    for year in (2007, 2012):
        voc_devkit(tmp_path, draw(seed=year, names=lambda number, year=year: f"photo_{year}{number:03}"))
        (tmp_path / "VOC2007").rename(tmp_path / f"VOC{year}x")
    _, splits, _ = find(tmp_path)
    for split in ("train", "val"):
        expected = {}
        for year in (2007, 2012):
            images = draw(seed=year, names=lambda number, year=year: f"photo_{year}{number:03}")
            expected |= truth(halves(images)[split])
        assert boxes_of(splits[split]) == expected


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
    with pytest.raises(UserError, match=f"{name} is .*{tool}.*, then name that"):
        find(tmp_path)


def test_a_coco_file_is_found_among_hundreds_of_files_of_one_image(tmp_path: Path) -> None:
    images = draw(300)
    for image in images:
        (tmp_path / f"{image.name}.jpg").touch()
        write_json(tmp_path / f"{image.name}.json", {"shapes": [], "imagePath": f"{image.name}.jpg"})
    write_json(tmp_path / "via_project_coco.json", coco(images, lambda image: f"{image.name}.jpg"))
    assert look(tmp_path).evidence == "via_project_coco.json"


def test_xml_files_in_no_list_are_noted(tmp_path: Path) -> None:
    images = draw()
    voc_devkit(tmp_path, images[:9])
    images[11].save(tmp_path / "VOC2007/JPEGImages/more.jpg")
    write_lines(tmp_path / "VOC2007/Annotations/more.xml", [voc_xml(images[11], "more.jpg")])
    layout = look(tmp_path)
    assert "1 labelled images belong to no split, such as VOC2007/JPEGImages/more.jpg" in layout.notes


def test_lists_beside_plain_labels_split_them(tmp_path: Path) -> None:
    images = draw()
    FOLDERS["LabelImg"](tmp_path, images)
    write_lines(tmp_path / "train.txt", [f"./{image.name}.jpg" for image in images[:7]])
    write_lines(tmp_path / "valid.txt", [f"/home/me/set/{image.name}.jpg" for image in images[7:]])
    _, splits, _ = find(tmp_path)
    assert boxes_of(splits["train"]) == truth(images[:7]) and boxes_of(splits["val"]) == truth(images[7:])
    write_lines(tmp_path / "train.txt", ["This set was made for training."])
    assert set(find(tmp_path)[0].splits) == {"all"}


def test_names_of_another_case_or_form_of_accents_are_paired(tmp_path: Path) -> None:
    images = [Drawn("photo_CAFÉ", ((0, 2, 2, 20, 20),)), *draw(3)]
    for image in images:
        image.save(tmp_path / f"Images/{image.name}.JPG")
        label = unicodedata.normalize("NFD", image.name).lower()
        write_lines(tmp_path / f"labels/{label}.txt", yolo_lines(image))
    layout, splits, _ = find(tmp_path)
    assert len(layout.splits["all"].labels) == 4 and not layout.notes
    assert sum(split.num_boxes for split in splits.values()) == sum(len(image.boxes) for image in images)


def test_an_xml_of_another_name_has_the_image_that_it_names(tmp_path: Path) -> None:
    images = draw(4)
    for number, image in enumerate(images):
        image.save(tmp_path / f"JPEGImages/{image.name}.jpg")
        write_lines(tmp_path / f"Annotations/{number}.xml", [voc_xml(image, f"{image.name}.jpg")])
    _, splits, _ = find(tmp_path)
    assert boxes_of(splits["all"]) == truth(images)


@pytest.mark.parametrize("is_train_alone", [True, False])
def test_the_folders_of_coco_itself_are_read_by_their_instances(tmp_path: Path, is_train_alone: bool) -> None:
    parts = halves(draw())
    for split, part in parts.items():
        for kind in ("instances", "person_keypoints"):
            write_json(tmp_path / f"annotations/{kind}_{split}2017.json", coco(part, lambda image: f"{image.name}.jpg"))
        write_json(tmp_path / f"annotations/captions_{split}2017.json", {"images": [], "annotations": []})
        for image in part:
            image.save(tmp_path / f"{split}2017/{image.name}.jpg")
    if is_train_alone:
        (tmp_path / "annotations/instances_val2017.json").unlink()
        (tmp_path / "annotations/person_keypoints_val2017.json").unlink()
    layout, splits, _ = find(tmp_path)
    assert boxes_of(splits["train"]) == truth(parts["train"])
    assert "annotations/person_keypoints_train2017.json is left out: annotations/instances_train2017" in layout.notes[0]
    assert set(splits) == ({"train"} if is_train_alone else {"train", "val"})


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    images = draw()
    plain_yolo(tmp_path, images)
    images[0].save(tmp_path / "images/more/stray.jpg")
    write_lines(tmp_path / "labels/train/gone.txt", ["0 0.5 0.5 0.1 0.1"])
    notes = " ".join(find(tmp_path)[0].notes)
    assert "1 images are in no folder of a split" in notes and "images/more/stray.jpg" in notes
    assert "1 label files have no image, such as labels/train/gone.txt" in notes


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
    with pytest.raises(UserError, match="no box in 3 images: all 9 objects are crowds, which are no targets"):
        assign_splits(find(tmp_path)[1], 0.2)
    for entry in document["annotations"]:
        entry["category_id"] = 99
    write_json(tmp_path / "annotations.json", document)
    with pytest.raises(UserError, match=r"no box in 3 images; category_unknown: 9 \(.*such as annotation 1"):
        assign_splits(find(tmp_path)[1], 0.2)


def test_splits_of_voc_that_name_different_classes_get_those_of_both(tmp_path: Path) -> None:
    images = [Drawn(f"photo_{number:03}", ((number % 3, 2, 2, 20, 20),)) for number in (0, 1, 3, 4, 2, 5)]
    FOLDERS["Roboflow as VOC"](tmp_path, images)
    _, splits, _ = find(tmp_path)
    assert splits["train"].source.classes == splits["val"].source.classes
    for split, part in halves(images).items():
        assert boxes_of(splits[split]) == truth(part)


def test_lists_of_images_are_found_by_the_ends_of_their_paths(tmp_path: Path) -> None:
    images = draw()
    voc_devkit(tmp_path, images)
    plain_yolo(tmp_path / "yolo", images)
    listed = [
        f"C:\\work\\yolo\\images\\{split}\\{image.name}.png" for split, part in halves(images).items() for image in part
    ]
    write_lines(tmp_path / "yolo/train.txt", listed[:5])
    write_lines(tmp_path / "yolo/val.txt", [*listed[5:], "gone.png"])
    write_lines(tmp_path / "yolo/data.yaml", ["train: train.txt", "val: val.txt", "names: [cat, dog, bird]"])
    layout, splits, _ = find(tmp_path / "yolo")
    assert boxes_of(splits["train"]) == truth(images[:5]) and boxes_of(splits["val"]) == truth(images[5:])
    assert "val.txt: 1 listed images are missing, such as 'gone.png'" in layout.notes


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


def test_validation_gets_an_image_with_objects_even_where_the_hash_gives_it_none() -> None:
    records = tuple(record(f"{number}.jpg", num_boxes=int(number < 2)) for number in range(200))
    chosen = validation_names(records, 0.01)
    assert len(chosen & {"0.jpg", "1.jpg"}) == 1
    with pytest.raises(UserError, match="1 of 200 images hold objects"):
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


def test_equal_names_in_two_splits_are_told_apart_by_the_split(tmp_path: Path) -> None:
    parts = {"train": draw(8), "val": draw(4, seed=5)}
    for split, part in parts.items():
        write_json(tmp_path / f"annotations/instances_{split}.json", coco(part, lambda image: f"{image.name}.jpg"))
        for image in part:
            image.save(tmp_path / f"images/{split}/{image.name}.jpg")
    layout, splits, _ = find(tmp_path)
    for split, part in parts.items():
        assert boxes_of(splits[split]) == truth(part)
        assert {key.rpartition("/")[0] for key in layout.splits[split].images.values()} == {f"images/{split}"}
