"""``yolofleet init``: from a folder to a job that can be trained, without overwriting anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.folders import CLASSES, Drawn, draw, halves, label_img_yolo, plain_yolo
from yolofleet.cli.main import main
from yolofleet.data.dataset import ShardDataset
from yolofleet.specs.job import JobSpec

SMALL = ("--model", "yolov7-tiny", "--image-size", "64")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def boxes(url: str | Path) -> dict[str, list[list[float]]]:
    dataset = ShardDataset(str(url))
    names = [name for _, name in dataset.classes]
    records = [dataset.read_record(number)[1] for number in range(len(dataset))]
    return {
        record.file_name.rpartition("/")[2].partition(".")[0]: sorted(
            [names[number], *box] for number, box in zip(record.classes, record.boxes.round(6).tolist(), strict=True)
        )
        for record in records
    }


def truth(images: list[Drawn]) -> dict[str, list[list[object]]]:
    return {image.name: sorted([CLASSES[box[0]], *map(float, box[1:])] for box in image.boxes) for image in images}


def test_a_folder_becomes_shards_and_a_job_and_the_last_line_trains_it(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    images = draw()
    plain_yolo(folder / "my animals", images)
    code, text, errors = run(capsys, "init", "my animals")
    assert code == 0, errors
    assert text.splitlines()[-1] == "  yolofleet train my-animals.yaml"
    assert "train          8          15" in text and "3 classes: " in text
    assert max(map(len, (text + errors).splitlines())) <= 80
    for split, part in halves(images).items():
        assert boxes(f"shards/my-animals/{split}") == truth(part)
    job = JobSpec.load("my-animals.yaml")
    assert (job.name, job.data.train, job.storage) == ("my-animals", "shards/my-animals/train", "runs")
    assert Path("my-animals.yaml").read_text().count("\n# ") >= 6


def test_the_same_command_again_changes_nothing(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    label_img_yolo(folder / "pets", draw())
    first = run(capsys, "init", "pets", "--out", "out", *SMALL)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert run(capsys, "init", "pets", "--out", "out", *SMALL)[:2] == first[:2] and first[0] == 0
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    } == before
    job = JobSpec.load("out/pets.yaml")
    assert (job.data.val, job.storage, job.data.image_size) == ("out/shards/pets/val", "out/runs", 64)


def test_it_can_be_run_inside_of_the_folder_again_and_again(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_yolo(folder / "pets", draw())
    monkeypatch.chdir(folder / "pets")
    assert run(capsys, "init", ".")[0] == 0
    digest = ShardDataset("shards/pets/train").manifest.digest
    draw(1)[0].save(Path("runs/pets/report/image.png"))
    code, text, _ = run(capsys, "init", ".")
    assert code == 0 and ShardDataset("shards/pets/train").manifest.digest == digest and "report" not in text


def test_an_interrupted_sharding_is_resumed(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_yolo(folder / "pets", draw())
    assert run(capsys, "init", "pets", "--out", "whole")[0] == 0
    from yolofleet.data import build

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_make_manifest", interrupt)
        code, _, errors = run(capsys, "init", "pets")
    assert code == 130 and "the finished shards are kept; resume with the same command" in errors
    assert not Path("pets.yaml").exists() and list(Path("shards/pets/train/building").iterdir())
    assert run(capsys, "init", "pets")[0] == 0
    for split in ("train", "val"):
        manifests = [Path(out, f"shards/pets/{split}/manifest.json").read_bytes() for out in ("whole", ".")]
        assert manifests[0] == manifests[1]


def spoil(kind: str) -> str:
    """Put something of the user's where the command would write; returns the file that must be named."""
    if kind == "job":
        Path("pets.yaml").write_text("name: mine\n")
        return "pets.yaml"
    if kind == "link":
        Path("shards/pets").mkdir(parents=True)
        Path("pets.yaml").symlink_to("nowhere.yaml")
        return "pets.yaml"
    path = {
        "notes": Path("shards/pets/train/notes.txt"),
        "manifest": Path("shards/pets/val/manifest.json"),
        "building": Path("shards/pets/train/building/shard-000000.json"),
    }[kind]
    path.parent.mkdir(parents=True)
    path.write_text('{"plan": "another"}')
    return str(path.parent if kind != "building" else path.parents[1])


@pytest.mark.parametrize("kind", ["job", "link", "notes", "manifest", "building"])
def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], folder: Path, kind: str) -> None:
    plain_yolo(folder / "pets", draw())
    named = spoil(kind)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _, errors = run(capsys, "init", "pets")
    assert code == 2 and named in errors and "nothing is overwritten" in errors and "Traceback" not in errors
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_job_that_was_edited_and_another_dataset_of_the_name_are_kept(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    plain_yolo(folder / "a/pets", draw())
    plain_yolo(folder / "b/pets", draw(seed=4))
    assert run(capsys, "init", "a/pets")[0] == 0
    code, _, errors = run(capsys, "init", "b/pets")
    assert code == 2 and "shards/pets/train: holds another dataset (8 images)" in errors and "--overwrite" not in errors
    assert run(capsys, "init", "b/pets", "--name", "others")[0] == 0
    job = Path("pets.yaml")
    job.write_text(job.read_text() + "# mine\n")
    code, _, errors = run(capsys, "init", "a/pets")
    assert code == 2 and "pets.yaml: already exists with other settings" in errors
    assert job.read_text().endswith("# mine\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: no such folder or file"),
        (("pets/classes.txt",), "name a folder of annotated images, a zip, a data.yaml, or a COCO file"),
        (("pets", "--name", "../x"), "--name '../x'"),
        (("pets", "--model", "yolov9"), "no model is called 'yolov9'"),
        (("pets", "--image-size", "100"), "must be a multiple of its largest stride, 32"),
        (("pets/images",), "but no annotations of theirs"),
        (("pets/labels",), "no images here"),
        (("pets", "--out", "s3://bucket"), "name a folder of this machine"),
        (("pets/data.yaml",), "no data.yaml with train and names"),
    ],
)
def test_what_cannot_be_is_said_in_one_message(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    plain_yolo(folder / "pets", draw())
    Path("pets/data.yaml").write_text("path: x\n")
    code, _, errors = run(capsys, "init", *arguments)
    assert code == 2 and message in errors and "Traceback" not in errors
    assert not Path("pets.yaml").exists() and not Path("shards").exists()


def test_names_of_strangers_neither_break_the_job_nor_the_screen(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    root = folder / "pets\x1b[2J\n# x: {y"
    plain_yolo(root, draw())
    (root / "classes.txt").write_text("cat: {\n\x1b[31mdog\n# bird\n")
    code, text, errors = run(capsys, "init", root.name)
    assert code == 0, errors
    (job,) = folder.glob("*.yaml")
    assert JobSpec.load(job).name == job.stem and "\x1b" not in text + errors + job.read_text()


def test_bad_labels_are_counted_on_the_screen(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    images = draw()
    plain_yolo(folder / "pets", images)
    with Path("pets/labels/train/photo_000.txt").open("a") as label:
        label.write("7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n")
    shutil.copy("pets/classes.txt", "pets/images/train/photo_001.png")
    code, text, _ = run(capsys, "init", "pets")
    assert code == 0 and "category_unknown x 1" in text and "label_line_malformed x 1" in text
    assert "image_unknown x 1" in text and "7 images for train" in text


def test_json_holds_the_same_and_nothing_else(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    label_img_yolo(folder / "pets", draw())
    code, text, _ = run(capsys, "init", "pets", "--json", "--val-share", "0.4")
    found = json.loads(text)
    assert code == 0 and found["form"] == "YOLO" and found["command"] == "yolofleet train pets.yaml"
    assert found["notes"][0].startswith("one set: 40% of its images, by a hash of their names")
    assert sum(split["images"] for split in found["splits"].values()) == 12
    assert found["settings"]["data"]["train"] == found["splits"]["train"]["url"] == "shards/pets/train"


@pytest.mark.parametrize("dataset", ["bccd", "coco128"])
def test_real_data_gives_the_boxes_of_its_files(
    capsys: pytest.CaptureFixture[str], test_data: Path, dataset: str
) -> None:
    code, _, errors = run(capsys, "init", test_data / dataset)
    assert code == 0, errors
    for split in ("train", "val"):
        annotations, images = test_data / dataset / f"instances_{split}.json", test_data / dataset / "images"
        assert run(capsys, "data", "shard", annotations, images, f"own/{split}")[0] == 0
        assert boxes(f"own/{split}") == boxes(f"shards/{dataset}/{split}")
