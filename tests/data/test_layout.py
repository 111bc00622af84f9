"""Folders as tools export them are found whole: the same boxes from every format."""

from __future__ import annotations

import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest

from data import exports, tool_exports
from data.folders import (
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
from data.found import boxes_of, find, look, truth
from yolofleet.core.errors import UserError
from yolofleet.data import zip_folder
from yolofleet.data.file_finder import find_files
from yolofleet.data.layout import Layout
from yolofleet.data.layout_reader import assign_splits
from yolofleet.data.problems import ProblemLog


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
    assert "1 labelled image belongs to no split, such as VOC2007/JPEGImages/more.jpg" in layout.notes


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
    write_lines(tmp_path / "labels/test/gone.txt", ["0 0.5 0.5 0.1 0.1"])
    layout, _, problems = find(tmp_path)
    notes = " ".join(layout.notes)
    assert "1 image is in no folder of a split" in notes and "images/more/stray.jpg" in notes
    assert "1 label file is of no image of these splits, such as labels/test/gone.txt" in notes
    assert problems.examples["label_without_image"] == ["labels/train/gone.txt"]


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
    _, splits, _ = find(tmp_path / "yolo")
    assert boxes_of(splits["train"]) == truth(images[:5])
    assert boxes_of(splits["val"]) == {**truth(images[5:]), "photo_gone": []}
    assert splits["val"].image_keys().count(None) == 1, "what is listed and missing is a lost image"


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


def test_an_archive_of_too_many_files_is_refused_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("1.txt", "2.txt", "3.txt"):
            archive.writestr(name, "")
    monkeypatch.setattr(zip_folder, "MOST_ZIP_FILES", 3)
    assert len(zip_folder.ZipFolder(tmp_path / "a.zip", ProblemLog()).list()) == 3
    monkeypatch.setattr(zip_folder, "MOST_ZIP_FILES", 2)
    with pytest.raises(UserError, match=r"a\.zip: 3 files, more than the 2 that are read"):
        zip_folder.ZipFolder(tmp_path / "a.zip", ProblemLog())
