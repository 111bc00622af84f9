from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolofleet.cli.main import main
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.storage import open_storage


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anchors")
    write_synthetic_dataset(folder, 20, seed=1, image_size=96)
    problems = ProblemLog()
    source = parse_coco((folder / "instances.json").read_bytes(), "instances.json", problems)
    build_dataset(source, open_storage(folder / "images"), open_storage(folder / "shards"), BuildOptions(), problems)
    return folder / "shards"


def test_the_table_shows_both_sets(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "anchors", str(shards), "--model", "yolov7-w6", "--image-size", "128", "--fit"]) == 0
    out = capsys.readouterr().out
    assert "boxes on 20 images, at 128 px" in out
    assert "within reach" in out and "stride 64" in out
    assert "anchors of yolov7-w6: [[19, 27, 44, 40, 38, 94]" in out
    assert "anchors of fitted: [[" in out


def test_too_low_a_recall_is_reported_with_the_cure(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "anchors", str(shards), "--model", "yolov7", "--image-size", "4096"]) == 0
    assert "Boxes out of reach are never learned" in capsys.readouterr().out


def test_json_is_json_alone(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "anchors", str(shards), "--model", "yolov7-tiny", "--fit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["image_size"] == 640
    assert found["anchors"]["fitted"]["recall"] >= found["anchors"]["model"]["recall"] - 0.01
    assert len(found["anchors"]["fitted"]["anchors"]) == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["SHARDS", "--model", "yolov7-tin"], "did you mean 'yolov7-tiny'"),
        (["nowhere", "--model", "yolov7"], "no dataset here"),
        (["SHARDS"], "Missing option '--model'"),
    ],
)
def test_wrong_input_is_named(
    arguments: list[str], part: str, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "anchors", *(str(shards) if text == "SHARDS" else text for text in arguments)]) == 2
    assert part in capsys.readouterr().err
