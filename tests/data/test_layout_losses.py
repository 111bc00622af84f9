"""Nothing of a folder is lost in silence or taken for something else: it is read right, counted, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.folders import (
    CLASSES,
    Drawn,
    coco,
    draw,
    halves,
    label_img_yolo,
    plain_yolo,
    voc_devkit,
    voc_xml,
    write_json,
    write_lines,
    yolo_lines,
)
from data.found import boxes_of, find, truth
from yolofleet.core.errors import UserError
from yolofleet.data.build import BuildError
from yolofleet.data.layout_reader import assign_splits, shard_split
from yolofleet.storage import open_storage


def save(image: Drawn, root: Path, name: str, *, label: str | None = None) -> None:
    """Save an image, and its label where one is named; both names without an ending."""
    image.save(root / f"{name}.jpg")
    if label is not None:
        write_lines(root / f"{label}.txt", yolo_lines(image))


def shard(root: Path, out: Path) -> None:
    for split, found in assign_splits(find(root)[1], 0.3)[0].items():
        shard_split(found, open_storage(str(out / split)))


# --- one file taken for another


@pytest.mark.parametrize("name", ["train", "val", "photo_003"])
def test_an_image_with_the_name_of_a_coco_file_hides_no_split(tmp_path: Path, name: str) -> None:
    images = [Drawn(name, draw()[0].boxes), *draw()[1:]]
    for split, part in halves(images).items():
        write_json(tmp_path / f"annotations/{split}.json", coco(part, lambda image: f"{image.name}.jpg"))
        for image in part:
            image.save(tmp_path / f"images/{image.name}.jpg")
    layout, splits, _ = find(tmp_path)
    assert {split: part.labels for split, part in layout.splits.items()} == {
        split: {f"{split}.json": f"annotations/{split}.json"} for split in ("train", "val")
    }
    assert {split: found.num_boxes for split, found in splits.items()} == {
        split: sum(len(image.boxes) for image in part) for split, part in halves(images).items()
    }


@pytest.mark.parametrize("other", ["preview", "thumbnails", "a", "zzz/images", "data2/x"])
def test_copies_of_coco_images_in_another_folder_are_not_taken_for_them(tmp_path: Path, other: str) -> None:
    images = draw(4)
    write_json(tmp_path / "annotations/instances.json", coco(images, lambda image: f"{image.name}.jpg"))
    for image in images:
        image.save(tmp_path / f"images/{image.name}.jpg")
        image.save(tmp_path / f"{other}/{image.name}.jpg")
    assert set(find(tmp_path)[1]["all"].image_keys()) == {f"images/{image.name}.jpg" for image in images}
    (tmp_path / "images").rename(tmp_path / "photos")
    if other != "zzz/images":
        with pytest.raises(UserError, match=rf"instances\.json: its images are in .*{other}/.* alike; move"):
            find(tmp_path)


def test_no_image_gets_the_label_of_another_one(tmp_path: Path) -> None:
    images = draw(4)
    plain_yolo(tmp_path, images)
    negative = Drawn("photo_999", ())
    for name in ("images/train/PHOTO_000", "images/train/neg"):
        negative.save(tmp_path / f"{name}.png")
    write_lines(tmp_path / "labels/val/neg.txt", ["0 0.5 0.5 0.1 0.1"])
    _, splits, problems = find(tmp_path)
    empty = [record.file_name for record in splits["train"].source.records if not len(record.boxes)]
    assert empty == ["images/train/PHOTO_000.png", "images/train/neg.png"] and not problems.num(["repair"])
    assert splits["val"].problems.counts["label_without_image"] == 1


def test_a_list_of_images_is_no_label_of_an_image_with_its_name(tmp_path: Path) -> None:
    images = draw()
    label_img_yolo(tmp_path / "images", images)
    Drawn("photo_999", ()).save(tmp_path / "images/train.jpg")
    write_lines(tmp_path / "train.txt", ["images/train.jpg", *(f"images/{image.name}.jpg" for image in images[:7])])
    write_lines(tmp_path / "val.txt", [f"images/{image.name}.jpg" for image in images[7:]])
    _, splits, problems = find(tmp_path)
    assert boxes_of(splits["train"]) == {**truth(images[:7]), "photo_train": []}
    assert boxes_of(splits["val"]) == truth(images[7:]) and not problems.num(["drop", "repair"])


@pytest.mark.parametrize("has_val", [False, True])
def test_a_folder_called_train_is_a_class_unless_another_split_is_there(tmp_path: Path, has_val: bool) -> None:
    for start, folder in enumerate(("train", "bus", "val" if has_val else "plane")):
        for image in draw(9)[start::3]:
            save(image, tmp_path, f"images/{folder}/{image.name}", label=f"labels/{folder}/{image.name}")
    write_lines(tmp_path / "classes.txt", CLASSES)
    layout, splits, _ = find(tmp_path)
    assert set(splits) == ({"train", "val"} if has_val else {"all"})
    assert has_val == ("3 images are in no folder of a split" in " ".join(layout.notes))
    assert has_val or boxes_of(splits["all"]) == truth(draw(9))


@pytest.mark.parametrize(
    "name", ["images/@eaDir/photo_000.jpg/x.jpg", "$RECYCLE.BIN/$R1.jpg", "lost+found/a.jpg", "SYNOPHOTO_THUMB_M.jpg"]
)
def test_what_systems_leave_in_folders_is_no_image(tmp_path: Path, name: str) -> None:
    label_img_yolo(tmp_path, draw(4))
    draw(1)[0].save(tmp_path / name)
    assert len(find(tmp_path)[1]["all"].source.records) == 4


# --- what is lost is counted, and refused where it is too much


def orphans(root: Path, images: list[Drawn]) -> None:
    for image in images[:3]:
        save(image, root, f"images/{image.name}", label=f"labels/{image.name}")
    for image in images[3:]:
        write_lines(root / f"labels/{image.name}.txt", yolo_lines(image))


def hashed(root: Path, images: list[Drawn]) -> None:
    for number, image in enumerate(images):
        save(image, root, f"images/{image.name}", label=f"labels/{'ab12cd34-' if number > 2 else ''}{image.name}")


def listed(root: Path, images: list[Drawn]) -> None:
    for image in images[:3]:
        save(image, root, f"images/{image.name}", label=f"labels/{image.name}")
    write_lines(root / "train.txt", [f"./images/{image.name}.jpg" for image in images])
    write_lines(root / "data.yaml", ["train: train.txt", f"names: {list(CLASSES)}"])


def listed_voc(root: Path, images: list[Drawn]) -> None:
    voc_devkit(root, images)
    for image in images[3:8]:
        (root / f"VOC2007/JPEGImages/{image.name}.jpg").unlink()
        (root / f"VOC2007/Annotations/{image.name}.xml").unlink()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (hashed, "label_name_unmatched"),
        (listed, "image_file_missing"),
        (listed_voc, "image_file_missing"),
    ],
)
def test_labels_and_listed_images_that_are_lost_count_as_losses(
    tmp_path: Path, make: Callable[[Path, list[Drawn]], None], kind: str
) -> None:
    make(tmp_path / "set", draw())
    with pytest.raises(BuildError, match=rf"more than the share of 0\.5 that may be skipped; .*{kind}: "):
        shard(tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("are_labelled", [True, False])
def test_masks_of_voc_hide_none_of_the_images_that_its_lists_name(tmp_path: Path, are_labelled: bool) -> None:
    images = draw()
    voc_devkit(tmp_path, images)
    for image in images[::2]:
        for folder in ("SegmentationClass", "SegmentationObject"):
            image.save(tmp_path / f"VOC2007/{folder}/{image.name}.png")
    for image in [] if are_labelled else images[:1]:
        (tmp_path / f"VOC2007/Annotations/{image.name}.xml").unlink()
    _, splits, problems = find(tmp_path)
    assert boxes_of(splits["trainval"]) == truth(images if are_labelled else images[1:])
    assert not problems.counts


def test_a_label_with_the_ending_of_its_image_is_read_and_counted(tmp_path: Path) -> None:
    images = draw(4)
    for number, image in enumerate(images):
        save(image, tmp_path, f"images/{image.name}", label=f"labels/{image.name}{'' if number else '.jpg'}")
    _, splits, problems = find(tmp_path)
    assert {key: len(boxes) for key, boxes in boxes_of(splits["all"]).items()} == {
        image.name: len(image.boxes) for image in images
    }
    label_in_another_case = tmp_path / "labels/photo_001.txt"
    label_in_another_case.rename(tmp_path / "labels/Photo_001.txt")
    _, splits, problems = find(tmp_path)
    assert problems.counts["file_name_repaired"] == 2 and splits["all"].num_boxes == 7
    assert problems.examples["file_name_repaired"][0] == "images/photo_000: its label is labels/photo_000.jpg.txt"


# --- descriptions and lists in other forms


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_description_in_another_encoding_is_read_or_named(tmp_path: Path, encoding: str) -> None:
    images = draw()
    for split, part in halves(images).items():
        for image in part:
            save(image, tmp_path, f"{split[:2]}/{image.name}", label=f"{split[:2]}/{image.name}")
    names = ["kät", *CLASSES[1:]]
    text = f"train: tr\nval: va\nnames: [{', '.join(names)}]\n"
    (tmp_path / "mydata.yaml").write_bytes(text.encode(encoding))
    if encoding == "cp1252":
        with pytest.raises(UserError, match=r"mydata\.yaml: not UTF-8 text .*; save the file as YAML in UTF-8"):
            find(tmp_path)
        return
    _, splits, _ = find(tmp_path)
    assert [entry.name for entry in splits["train"].source.classes] == names
    assert {split: len(found.source.records) for split, found in splits.items()} == {"train": 8, "val": 4}


def test_a_file_of_darknet_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    images = draw()
    label_img_yolo(tmp_path, images)
    for split, part in halves(images).items():
        write_lines(tmp_path / f"list_{split}.txt", [f"{image.name}.jpg" for image in part])
    text = "train = list_train.txt\nvalid = list_val.txt\nnames = classes.txt\n"
    (tmp_path / "obj.data").write_bytes(text.encode("utf-8-sig"))
    assert {split: boxes_of(found) for split, found in find(tmp_path)[1].items()} == {
        split: truth(part) for split, part in halves(images).items()
    }


def test_the_lists_of_autosplit_are_read_without_a_description(tmp_path: Path) -> None:
    images = draw()
    label_img_yolo(tmp_path, images)
    for split, part in halves(images).items():
        write_lines(tmp_path / f"autosplit_{split}.txt", [f"./{image.name}.jpg" for image in part])
    assert {split: boxes_of(found) for split, found in find(tmp_path)[1].items()} == {
        split: truth(part) for split, part in halves(images).items()
    }


@pytest.mark.parametrize("name", ["labels/labels.txt", "class_names.txt", "names.txt", "coco.names"])
def test_class_names_are_found_where_the_file_is_a_list_of_them(tmp_path: Path, name: str) -> None:
    images = draw(4)
    for image in images:
        save(image, tmp_path, f"images/{image.name}", label=f"labels/{image.name}")
    write_lines(tmp_path / name, CLASSES)
    assert boxes_of(find(tmp_path)[1]["all"]) == truth(images)
    write_lines(tmp_path / name, ["0 0.5 0.5 0.1 0.1"])
    assert find(tmp_path)[0].names_file is None


def test_lists_that_may_be_no_class_names_are_not_taken_where_they_differ(tmp_path: Path) -> None:
    label_img_yolo(tmp_path, draw(4))
    (tmp_path / "classes.txt").unlink()
    write_lines(tmp_path / "names.txt", ["Alice", "Bob", "Carol"])
    write_lines(tmp_path / "labels.txt", ["frame 1", "frame 2", "frame 3"])
    layout, splits, _ = find(tmp_path)
    assert layout.names_file is None and "labels.txt, names.txt hold different lists" in " ".join(layout.notes)
    assert splits["all"].num_boxes == 7


@pytest.mark.parametrize("words", [("Train", "Validation"), ("train", "valid"), ("training", "dev")])
@pytest.mark.parametrize("line", ["photo {0}", '"photo {0}"', "photo {0}  1", '"photo {0}" -1'])
def test_lists_of_voc_may_use_other_words_quotes_blanks_and_flags(
    tmp_path: Path, words: tuple[str, str], line: str
) -> None:
    images = draw(6, names=lambda number: f"photo {number}")
    for image in images:
        image.save(tmp_path / f"JPEGImages/{image.name}.jpg")
        write_lines(tmp_path / f"Annotations/{image.name}.xml", [voc_xml(image, f"{image.name}.jpg")])
    for word, numbers in zip(words, (range(4), range(4, 6)), strict=True):
        write_lines(tmp_path / f"ImageSets/Main/{word}.txt", [line.format(number) for number in numbers])
    layout, _, _ = find(tmp_path)
    assert {split: [*part.images] for split, part in layout.splits.items()} == {
        "train": [f"JPEGImages/photo {number}.jpg" for number in range(4)],
        "val": [f"JPEGImages/photo {number}.jpg" for number in (4, 5)],
    }


@pytest.mark.parametrize("form", ["utf-16", "<Annotation>", "comment", "others above"])
def test_xml_files_are_known_by_their_root_in_every_form(tmp_path: Path, form: str) -> None:
    for image in draw(4):
        image.save(tmp_path / f"set/JPEGImages/{image.name}.jpg")
        text = voc_xml(image, f"{image.name}.jpg")
        if form == "<Annotation>":
            text = text.replace("annotation>", "Annotation>")
        if form == "comment":
            text = f"<!-- <annotations> of mine -->{text}"
        path = tmp_path / f"set/Annotations/{image.name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("utf-16" if form == "utf-16" else "utf-8"))
    for name in ("a", "b", "c", "d") if form == "others above" else ():
        write_lines(tmp_path / f"{name}.xml", ["<project/>"])
    layout, splits, _ = find(tmp_path)
    assert (layout.form, layout.evidence, splits["all"].num_boxes) == ("VOC", "set/Annotations", 7)


def test_a_coco_file_may_be_in_utf_16(tmp_path: Path) -> None:
    label_img_yolo(tmp_path, [])
    images = draw(4)
    for image in images:
        image.save(tmp_path / f"images/{image.name}.jpg")
    (tmp_path / "a.json").write_bytes(json.dumps(coco(images, lambda image: f"{image.name}.jpg")).encode("utf-16"))
    assert boxes_of(find(tmp_path)[1]["all"]) == truth(images)
