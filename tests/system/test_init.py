"""Two commands from a folder to a training: for the exports of tools, and for real data in three formats."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from data.tool_exports import EXPORTS
from system.shell import rows
from yolofleet.cli.main import main
from yolofleet.data.dataset import ShardDataset

pytestmark = [pytest.mark.system, pytest.mark.slow]
ONE_STEP = (
    "epochs=0.0001",
    "global_batch_size=2",
    "micro_batch_size=2",
    "data.image_size=64",
    "cluster.cpus_per_worker=1",
)
NARROW = ("model.transition_width=0.25", "model.hidden_width=0.25", "evaluation.batch_size=8")
Boxes = dict[str, list[tuple[str, tuple[float, ...]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("init")


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def init_and_train(source: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the two commands; the second one makes a single step of a narrow model."""
    assert main(["init", str(source), "--name", name]) == 0, capsys.readouterr().err
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command == ["yolofleet", "train", f"{name}.yaml"]
    assert main([*command[1:], "--launcher", "process", *ONE_STEP, *NARROW]) == 0, capsys.readouterr().err
    (first, *_) = [row for row in rows(Path("runs", name, "metrics.jsonl")) if "loss" in row]
    assert first["loss"] > 0 and Path("runs", name, "model").is_dir()


@pytest.mark.parametrize("tool", EXPORTS)
def test_the_export_of_a_tool_is_trained(folder: Path, tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    write, annotations, _ = EXPORTS[tool]
    source = folder / "exports" / tool
    source.mkdir(parents=True)
    write(source)
    init_and_train(source / annotations if annotations.endswith(".zip") else source, tool, capsys)


def write_formats(dataset: Path, out: Path) -> dict[str, Path]:
    """Write a COCO dataset as a YOLO folder and as a VOC folder; crowds, which YOLO does not know, are left out."""
    for split in ("train", "val"):
        document = json.loads((dataset / f"instances_{split}.json").read_text())
        names = [entry["name"] for entry in document["categories"]]
        index_of = {entry["id"]: number for number, entry in enumerate(document["categories"])}
        lines, objects = defaultdict(list), defaultdict(list)
        images = {image["id"]: image for image in document["images"]}
        for entry in document["annotations"]:
            if entry["iscrowd"]:
                continue
            x, y, width, height = entry["bbox"]
            image, number = images[entry["image_id"]], index_of[entry["category_id"]]
            shares = [(x + width / 2) / image["width"], (y + height / 2) / image["height"]]
            shares += [width / image["width"], height / image["height"]]
            lines[image["id"]].append(" ".join(map(repr, [number, *shares])))
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + width, y + height), strict=True)
            corners = "".join(f"<{side}>{value!r}</{side}>" for side, value in sides)
            objects[image["id"]].append(f"<object><name>{names[number]}</name><bndbox>{corners}</bndbox></object>")
        for path in (
            f"yolo/images/{split}",
            f"yolo/labels/{split}",
            *("voc/JPEGImages", "voc/Annotations", "voc/ImageSets/Main"),
        ):
            (out / path).mkdir(parents=True, exist_ok=True)
        for image in images.values():
            name, stem = image["file_name"], Path(image["file_name"]).stem
            for target in (out / f"yolo/images/{split}", out / "voc/JPEGImages"):
                shutil.copy(dataset / "images" / name, target)
            (out / f"yolo/labels/{split}/{stem}.txt").write_text("\n".join(lines[image["id"]]))
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
            text = f"<annotation><filename>{name}</filename>{size}{''.join(objects[image['id']])}</annotation>"
            (out / f"voc/Annotations/{stem}.xml").write_text(text)
        stems = [Path(image["file_name"]).stem for image in images.values()]
        (out / f"voc/ImageSets/Main/{split}.txt").write_text("\n".join(stems))
    (out / "yolo/data.yaml").write_text(
        f"path: /content/{dataset.name}\ntrain: images/train\nval: images/val\nnames: {json.dumps(names)}\n"
    )
    return {"coco": dataset, "yolo": out / "yolo", "voc": out / "voc"}


def boxes(url: Path) -> Boxes:
    """Named boxes by image, without crowds."""
    dataset = ShardDataset(url)
    names = [name for _, name in dataset.classes]
    found: Boxes = {}
    for _, record in dataset.records():
        kept = zip(record.classes, record.boxes.tolist(), record.iscrowd, strict=True)
        key = record.file_name.rpartition("/")[2]
        named = [(names[number], tuple(box)) for number, box, is_crowd in kept if not is_crowd]
        found[key] = sorted(named, key=lambda row: (row[0], [round(value, 2) for value in row[1]]))
    return found


@pytest.mark.parametrize("dataset", ["bccd", "coco128"])
def test_real_data_gives_the_same_boxes_in_each_format_and_is_trained(
    folder: Path, test_data: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected: dict[str, Boxes] = {}
    for form, source in write_formats(test_data / dataset, folder / "real" / dataset).items():
        name = f"{dataset}-{form}"
        init_and_train(source, name, capsys)
        for split in ("train", "val"):
            found = boxes(folder / "shards" / name / split)
            wanted = expected.setdefault(split, found)
            assert found.keys() == wanted.keys()
            for image, rows_of_image in found.items():
                assert [row[0] for row in rows_of_image] == [row[0] for row in wanted[image]]
                for (_, box), (_, other) in zip(rows_of_image, wanted[image], strict=True):
                    assert box == pytest.approx(other, abs=1e-6)
