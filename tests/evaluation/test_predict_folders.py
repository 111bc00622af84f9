"""`yolofleet predict` writes beside nobody's images and over nobody's files but its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from yolofleet.cli.main import main
from yolofleet.cli.predict import image_paths
from yolofleet.cli.predict_folders import MAPS_NAME, PART_NAME, RECORDS_NAME
from yolofleet.data import draw

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with images in photos/ and in other/."""
    for name in ("photos/a.jpg", "photos/a.png", "other/a.png", "other/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), (90, 90, 200)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos/a.png", "--out", "photos"], "would overwrite the images"),
        (["photos/a.png", "--out", "file://{folder}/photos"], "would overwrite the images"),
        (["photos", "--out", "photos"], "--out {folder}/photos holds the image photos/a.jpg"),
        (["photos", "--out", "photos", "--workers", "1"], "--out {folder}/photos holds the image photos/a.jpg"),
        (["other", "--out", "link"], "--out {folder}/other holds the image other/a.png"),
        (["other/a.png", "--out", "photos"], "photos/a.jpg is there already, and no earlier prediction made it"),
        (["other/a.png", "--out", "marked"], "marked/a.jpg is there already"),
        (["other/a.png", "--out", "linked-part"], f"linked-part/{PART_NAME} is there already"),
        (["other/a.png", "--out", "linked-records"], f"linked-records/{RECORDS_NAME} is there already"),
        (["other/a.png", "--objectness", "linked-maps"], f"linked-maps/{MAPS_NAME} is there already"),
        (["other/a.png", "--objectness", "other"], "--objectness {folder}/other holds the image"),
        (["other/a.png", "--objectness", "photos"], "photos/a.png is there already"),
    ],
)
def test_nothing_of_the_users_is_overwritten(
    package: Path, folder: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    (folder / "link").symlink_to("other")
    (folder / "marked").mkdir()
    (folder / "marked" / RECORDS_NAME).write_text("{}")
    (folder / "marked" / "a.jpg").symlink_to(folder / "photos" / "a.jpg")
    for name, mark in (("linked-part", PART_NAME), ("linked-records", RECORDS_NAME), ("linked-maps", MAPS_NAME)):
        (folder / name).mkdir()
        (folder / name / mark).symlink_to(folder / "photos" / "a.jpg")  # a stranger put it there
    before = files(folder)
    assert main(["predict", str(package), *(argument.format(folder=folder) for argument in arguments)]) == 2
    assert words.format(folder=folder) in capsys.readouterr().err
    assert files(folder) == before


def test_earlier_predictions_are_overwritten_also_those_of_a_call_that_was_interrupted(
    package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", str(package), "other", "--out", "found", "--objectness", "other/maps", "--batch-size", "1"]
    kept, drawn = draw.draw_detections, iter("once")

    def draw_once(*given, **options):  # type: ignore[no-untyped-def]
        if next(drawn) != "o":
            raise RuntimeError("killed")
        return kept(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(draw, "draw_detections", draw_once)
        with pytest.raises(RuntimeError, match="killed"):
            main(arguments)
    assert sorted(os.listdir("found")) == [PART_NAME, "a.jpg"]
    for _ in range(2):
        assert main(arguments) == 0
        assert sorted(os.listdir("found")) == ["a.jpg", "b.jpg", RECORDS_NAME]
        assert sorted(os.listdir("other/maps")) == ["a.png", "b.png", MAPS_NAME]
        assert len(json.loads(Path("found", RECORDS_NAME).read_text())["images"]) == 2


def test_an_output_folder_above_the_images_leaves_none_of_them_out(folder: Path) -> None:
    found = image_paths(["other"], follow_links=False, out=".", objectness=Path("maps"))
    assert found == [Path("other/a.png"), Path("other/b.png")]


def test_a_drawing_that_cannot_be_written_is_one_message(package: Path, folder: Path, capsys: Captured) -> None:
    Path("found/a.jpg").mkdir(parents=True)
    Path("found", RECORDS_NAME).write_text("{}")
    assert main(["predict", str(package), "other", "--out", "found"]) == 2
    assert "error: found/a.jpg: Is a directory; name another path" in capsys.readouterr().err


def test_an_image_longer_than_jpeg_takes_is_drawn_smaller(package: Path, folder: Path) -> None:
    Image.new("RGB", (66_000, 30)).save("other/a.png")
    assert main(["predict", str(package), "other", "--out", "found"]) == 0
    assert Image.open("found/a.jpg").size == (65_500, 40) and Path("found/b.jpg").is_file()
    assert json.loads(Path("found", RECORDS_NAME).read_text())["images"][0]["width"] == 66_000
