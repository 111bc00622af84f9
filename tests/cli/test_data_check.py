from __future__ import annotations

import json
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolofleet.cli.data_check import name_sources, pair_sources, short_names
from yolofleet.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["data", "check", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    assert main(["data", "synth", str(folder), "--images", "30", "--image-size", "96", "--json"]) == 0
    return folder


@pytest.fixture
def leaking(drawn: Path, tmp_path: Path) -> Path:
    """Train and val in which an image is in both, once mirrored, and one of train is there twice."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    train, val = (json.loads((drawn / f"instances_{part}.json").read_text()) for part in ("train", "val"))
    first, second = train["images"][:2]
    pixels = np.asarray(Image.open(drawn / "images" / first["file_name"]))
    Image.fromarray(np.ascontiguousarray(pixels[:, ::-1])).save(tmp_path / "images" / "mirrored.jpg", quality=70)
    shutil.copy(drawn / "images" / second["file_name"], tmp_path / "images" / "again.jpg")
    val["images"].append({**first, "id": 1001, "file_name": "mirrored.jpg"})
    train["images"].append({**second, "id": 1002, "file_name": "again.jpg"})
    for part, document in (("train", train), ("val", val)):
        (tmp_path / f"instances_{part}.json").write_text(json.dumps(document))
    return tmp_path


class Page(HTMLParser):
    """Collects the headings of a page, counts its images, and fails on anything from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.images = self.scripts = 0
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_heading = tag == "h2"
        self.images += tag == "img"
        self.scripts += tag == "script"
        assert tag not in ("link", "iframe")
        assert all(not (value or "").startswith("http") for _, value in attrs)

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


def test_leaks_and_duplicates_are_reported(capsys: pytest.CaptureFixture[str], leaking: Path) -> None:
    arguments = [leaking / "instances_train.json", leaking / "instances_val.json", leaking / "images"]
    code, text, _ = run(capsys, *arguments, "--json", "--html", leaking / "page.html")
    found = json.loads(text)
    assert code == 0 and found["images"] == 32 and found["duplicate_groups"] == 2
    leak, copy = found["duplicates"]
    assert leak["leak"] and leak["mirrored"] and not leak["exact"]
    assert leak["files"] == ["instances_train.json: 000000.jpg", "instances_val.json: mirrored.jpg"]
    assert (
        copy["exact"]
        and not copy["leak"]
        and {name.split()[-1] for name in copy["files"]} == {"000001.jpg", "again.jpg"}
    )
    assert found["problems"]["image_leak"]["count"] == found["problems"]["image_duplicate"]["count"] == 1
    assert [split["usable"] for split in found["splits"]] == [25, 7]
    assert sum(found["class_counts"].values()) == found["boxes"]
    page = (leaking / "page.html").read_text()
    assert "in more than one dataset" in page and Page(page).images == 2 + 8 + 7
    assert run(capsys, *arguments, "--strict")[0] == 1


def test_the_page_shows_something_also_where_nothing_is_wrong(
    capsys: pytest.CaptureFixture[str], drawn: Path, tmp_path: Path
) -> None:
    code, text, errors = run(
        capsys, drawn / "instances.json", drawn / "images", "--strict", "--html", tmp_path / "page.html"
    )
    assert code == 0 and errors == "" and "0 problems, 0 suspicious labels" in text
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert {"Problems", "Duplicates", "Labels to look at", "Classes and boxes", "Samples"} <= set(page.headings)
    assert page.images == 8 and "prefers-color-scheme:dark" in text and "width=device-width" in text


def test_names_from_a_dataset_cannot_change_the_page(
    capsys: pytest.CaptureFixture[str], drawn: Path, tmp_path: Path
) -> None:
    document = json.loads((drawn / "instances.json").read_text())
    name = "<script>alert(1)</script>'\"&.jpg"
    (tmp_path / "images").mkdir()
    for number, image in enumerate(document["images"][:4]):
        old, image["file_name"] = image["file_name"], f"{number}{name.replace('/', '_')}"
        shutil.copy(drawn / "images" / old, tmp_path / "images" / image["file_name"])
    for category in document["categories"]:
        category["name"] = f"{category['id']}{name}"
    document["images"] = document["images"][:4]
    document["annotations"] = [
        {**entry, "bbox": [0, 0, 96, 96]} for entry in document["annotations"] if entry["image_id"] < 5
    ]
    (tmp_path / "a.json").write_text(json.dumps(document))
    code, _, _ = run(capsys, tmp_path / "a.json", tmp_path / "images", "--html", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert code == 0 and page.images > 4 and page.scripts == 1 and "Box on border" in page.headings


def test_a_model_ranks_the_labels(capsys: pytest.CaptureFixture[str], drawn: Path, tmp_path: Path) -> None:
    import torch

    from yolofleet.evaluation.detector_package import save_detector
    from yolofleet.models import build_model
    from yolofleet.specs.model import ModelChoice

    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = build_model(choice, num_classes=3, deployed=True)
    package = save_detector(tmp_path / "package", model, [(2, "disc"), (5, "triangle"), (11, "cross")], 96)
    source = (drawn / "instances_val.json", drawn / "images", "--with-model")
    code, text, _ = run(capsys, *source, package, "--json", "--html", tmp_path / "page.html")
    findings = json.loads(text)["findings"]
    assert code == 0 and findings["label_not_found"]["count"] > 0  # random weights find nothing
    worst = findings["label_not_found"]["worst"]
    assert [entry["score"] for entry in worst] == sorted((entry["score"] for entry in worst), reverse=True)
    assert "Label not found" in Page((tmp_path / "page.html").read_text()).headings
    code, text, errors = run(capsys, *source, tmp_path / "nothing")
    assert code == 2 and "is not a model" in errors and text == ""


def test_sources_take_the_folders_of_their_images(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> str:
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path / name)

    labels, other_labels = folder("labels", "a.txt"), folder("labels2", "a.txt")
    images, listed = folder("images", "a.jpg"), folder("listed", "a.jpg", "classes.txt")
    mixed, other_mixed = folder("mixed", "a.jpg", "a.txt"), folder("mixed2", "images/a.png", "labels/a.xml")
    shards, other_shards = folder("shards", "manifest.json", "x.tar"), folder("shards2", "x.tar")
    train, valid = (
        folder(f"coco/{part}", "_annotations.coco.json", "README.txt", "a.jpg") for part in ("train", "valid")
    )
    lists, told = folder("lists", "instances_train.json"), folder("told", "a.jpg", "README.roboflow.txt")

    def archive(name: str, *files: str) -> str:
        with zipfile.ZipFile(tmp_path / name, "w") as target:
            for file in files:
                target.writestr(file, "")
        return str(tmp_path / name)

    cvat = archive("cvat.zip", "annotations/instances_default.json", "images/a.jpg")
    zipped, pictures = archive("labels.zip", "a.xml"), archive("images.zip", "a.jpg")
    for arguments, wanted in (
        ((labels, images), [(labels, images)]),
        ((labels, listed), [(labels, listed)]),
        ((labels, images, other_labels, listed), [(labels, images), (other_labels, listed)]),
        ((labels, other_labels, images), [(labels, images), (other_labels, images)]),
        (("t.json", "v.json", images), [("t.json", images), ("v.json", images)]),
        (("t.json", images, "v.json", listed), [("t.json", images), ("v.json", listed)]),
        (("t.json", "s3://bucket/images"), [("t.json", "s3://bucket/images")]),
        ((mixed,), [(mixed, mixed)]),
        ((mixed, mixed), [(mixed, mixed)]),
        ((mixed, images), [(mixed, images)]),
        ((mixed, other_mixed), [(mixed, mixed), (other_mixed, other_mixed)]),
        ((shards, other_shards), [(shards, None), (other_shards, None)]),
        ((shards, "v.json", images), [(shards, None), ("v.json", images)]),
        (("a.tar", "b.tar"), [("a.tar", None), ("b.tar", None)]),
        ((labels,), [(labels, None)]),
        ((train, valid), [(train, train), (valid, valid)]),
        ((mixed, told), [(mixed, told)]),
        ((lists, other_labels, images), [(lists, images), (other_labels, images)]),
        ((mixed, "v.json", images), [(mixed, mixed), ("v.json", images)]),
        (("t.json.gz", "v.json.gz", images), [("t.json.gz", images), ("v.json.gz", images)]),
        (("data.yaml", "-"), [("data.yaml", None)]),
        (("data.yaml", "train", "data.yaml", "val"), [("data.yaml", "train"), ("data.yaml", "val")]),
        (("data.yaml", "v.json", images), [("data.yaml", None), ("v.json", images)]),
        (("data.yaml", labels, images), [("data.yaml", None), (labels, images)]),
        (("data.yaml", "vall"), [("data.yaml", "vall")]),
        (("t.json", "data.yaml", "-", "v.json", images), [("t.json", images), ("data.yaml", None), ("v.json", images)]),
        ((cvat, "-"), [(cvat, None)]),
        ((cvat, cvat), [(cvat, cvat)]),
        ((cvat, images), [(cvat, images)]),
        ((cvat, "train", cvat, "valid"), [(cvat, "train"), (cvat, "valid")]),
        ((cvat, "v.json", images), [(cvat, None), ("v.json", images)]),
        ((str(tmp_path / "coco"), "valid"), [(str(tmp_path / "coco"), "valid")]),
        ((zipped, pictures), [(zipped, pictures)]),
        (("t.json", pictures), [("t.json", pictures)]),
        ((mixed, "-", shards, "-", "a.tar", "-"), [(mixed, None), (shards, None), ("a.tar", None)]),
    ):
        assert pair_sources(list(arguments)) == wanted, arguments


def test_an_archive_is_checked_with_the_arguments_of_shard(
    capsys: pytest.CaptureFixture[str], drawn: Path, tmp_path: Path
) -> None:
    """What the first split lost is no reason to refuse the second one, and a missing source is told before the work."""
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as target:
        for split, part in (("train", "train"), ("valid", "val")):
            document = json.loads((drawn / f"instances_{part}.json").read_text())
            for image in document["images"][1:]:
                target.write(drawn / "images" / image["file_name"], f"{split}/{image['file_name']}")
            target.writestr(f"{split}/_annotations.coco.json", json.dumps(document))
    archive = tmp_path / "export.zip"
    code, text, _ = run(capsys, archive, "train", archive, "valid", "--json")
    found = json.loads(text)
    assert code == 0 and found["problems"]["image_file_missing"]["count"] == 2
    names = [(split["name"], split["images"], split["usable"]) for split in found["splits"]]
    assert names == [("export.zip train", 24, 23), ("export.zip valid", 6, 5)]
    code, text, errors = run(capsys, archive, "train", tmp_path / "none.json")
    assert code == 2 and text == "" and "none.json" in errors and "image_file_missing" not in errors
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as target:
        target.write(drawn / "instances_val.json", "annotations/instances_default.json")
        for image in (drawn / "images").iterdir():
            target.write(image, f"images/{image.name}")
    code, text, _ = run(capsys, tmp_path / "one.zip", "-", "--json")
    assert code == 0 and json.loads(text)["usable"] == 6


def test_short_names_tell_sources_apart() -> None:
    for urls, names in (
        (["a/b/train", "a/b/val"], ["train", "val"]),
        (["s3://b/train/labels", "s3://b/val/labels"], ["train/labels", "val/labels"]),
        (["a/b", "a"], ["a/b", "a"]),
        (["/only/one.json"], ["/only/one.json"]),
        (name_sources([("a/data.yaml", "train"), ("a/data.yaml", "val")]), ["data.yaml train", "data.yaml val"]),
    ):
        assert short_names(urls) == names
