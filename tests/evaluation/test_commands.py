"""`yolofleet evaluate` and `yolofleet predict`: what they print, write and refuse."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluation.reference_figures import evaluate_with_pycocotools
from yolofleet.cli.main import main
from yolofleet.cli.model_argument import open_detector
from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.error_types import ERROR_KINDS
from yolofleet.storage.local import FileStorage

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with its model/."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    shutil.copytree(package, folder / "model")
    return folder


def test_evaluate_prints_tables_and_writes_what_was_asked_for(
    run: Path, drawn: Path, tmp_path: Path, capsys: Captured
) -> None:
    results, report = tmp_path / "results.json", tmp_path / "report"
    arguments = ["evaluate", str(run), str(drawn / "dataset"), "--results", str(results), "--report", str(report)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for words in ("The model finds", "20 images", "AP_small", "AR_large", "F1: the best", str(results), "index.html"):
        assert words in text.replace("\n", "")
    assert isinstance(json.loads(results.read_text()), list)
    page = (report / "index.html").read_text()
    assert page.count("data:image/jpeg") > 0 and "What goes wrong" in page


def test_evaluate_json_is_exact_and_a_result_file_gives_the_same(
    run: Path, drawn: Path, dataset: ShardDataset, tmp_path: Path, capsys: Captured
) -> None:
    results = tmp_path / "results.json"
    shards = str(drawn / "dataset")
    assert main(["evaluate", str(run / "model"), shards, "--json", "--results", str(results)]) == 0
    document = json.loads(capsys.readouterr().out)
    reference = evaluate_with_pycocotools({"info": {}, **dataset.annotations()}, json.loads(results.read_text()))
    expected = [None if value == -1 else float(value) for value in reference.stats]
    assert list(document["figures"].values()) == expected
    assert [entry["kind"] for entry in document["diagnosis"]["errors"]] == list(ERROR_KINDS)
    for data in (shards, str(drawn / "instances.json")):
        assert main(["evaluate", str(results), data, "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        for key in ("figures", "per_class", "diagnosis"):
            assert again[key] == document[key]


def test_the_published_protocol_is_rectangular_and_says_so(run: Path, drawn: Path, capsys: Captured) -> None:
    def document(*options: str) -> dict[str, Any]:
        assert main(["evaluate", str(run), str(drawn / "dataset"), "--json", "--device", "cpu", *options]) == 0
        return dict(json.loads(capsys.readouterr().out))

    published, rectangular, square = document("--protocol", "published"), document("--rectangular"), document()
    assert published["settings"] == rectangular["settings"]
    assert published["settings"] == {**square["settings"], "rectangular": True}
    assert square["settings"]["precision"] == "fp32" and square["settings"]["device"] == "cpu"
    assert published["figures"] == rectangular["figures"] != square["figures"]
    assert main(["evaluate", str(run), str(drawn / "dataset"), "--protocol", "published", "--device", "cpu"]) == 0
    assert "published protocol: rectangular inputs, 96 px, fp32 on cpu, confidence 0.001, IoU 0.65" in (
        capsys.readouterr().out.replace("\n", "")
    )
    augmented = document("--augment", "--precision", "fp16")
    assert augmented["settings"] == {**square["settings"], "augment": True, "precision": "fp16"}
    assert augmented["num_detections"] > 0 and augmented["figures"] != square["figures"]


def test_table_10_of_any_model_by_one_command(run: Path, drawn: Path, capsys: Captured) -> None:
    arguments = ["evaluate", str(run), str(drawn / "dataset"), "--table10", "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["precision"], row["iou"]) for row in document["rows"]] == [
        ("fp16", 0.65),
        ("fp16", 0.7),
        ("fp32", 0.65),
        ("fp32", 0.7),
    ]
    assert main([*arguments[:3], "--rectangular", "--iou", "0.7", "--json", "--device", "cpu"]) == 0
    assert document["rows"][3]["figures"] == json.loads(capsys.readouterr().out)["figures"]
    assert {row["AP"] for row in document["paper_yolov7_x_on_val2017"]} == {52.9, 53.0, 53.1}
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "rounds weights and the output of every layer to float16" in text.replace("\n", " ")
    assert [line.split()[-1] for line in text.splitlines()[1:5]] == ["52.9", "53.0", "53.0", "53.1"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--protocol", "published", "--iou", "0.7"], "--protocol published fixes --iou"),
        (["--protocol", "published", "--augment", "--confidence", "0.1"], "fixes --confidence, --augment"),
        (["--table10", "--results", "a.json", "--precision", "fp16"], "leave out --precision, --results"),
        (["--table10", "--area", "all=0-", "--classes", "circle"], "leave out --area, --classes"),
        (["--table10", "--class-agnostic", "--max-detections", "9"], "leave out --max-detections, --class-agnostic"),
        (["--table10", "--confidence", "0.1"], "leave out --confidence"),
        (["--boxes", "nonsense"], "is no file of detections: leave out --boxes"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], words: str, run: Path, drawn: Path, capsys: Captured
) -> None:
    assert main(["evaluate", str(run), str(drawn / "dataset"), *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--augment"],
        ["--protocol", "published"],
        ["--image-size", "64", "--batch-size", "2", "--confidence", "0.5", "--iou", "0.65", "--device", "cpu"],
    ],
)
def test_how_a_model_detects_is_no_question_of_a_result_file(
    tmp_path: Path, drawn: Path, capsys: Captured, options: list[str]
) -> None:
    (tmp_path / "found.json").write_text("[]")
    assert main(["evaluate", str(tmp_path / "found.json"), str(drawn / "dataset"), *options]) == 2
    named = ", ".join(option for option in options if option.startswith("--"))
    assert f"holds detections, and no model runs: leave out {named}" in capsys.readouterr().err


def test_a_test_set_without_annotations_becomes_a_result_file_to_submit(
    run: Path, drawn: Path, tmp_path: Path, capsys: Captured
) -> None:
    """As COCO's image_info_test-dev2017.json: the same detections as with annotations, under the ids of the list."""
    document = json.loads((drawn / "instances.json").read_text())
    del document["annotations"]
    images = {entry["id"]: entry for entry in document["images"]}
    listed = tmp_path / "image_info_test-dev2017.json"
    listed.write_text(json.dumps(document))
    assert main(["data", "shard", str(listed), str(drawn / "images"), str(tmp_path / "test")]) == 0
    found = []
    for data in (tmp_path / "test", drawn / "dataset"):
        capsys.readouterr()
        results = tmp_path / f"{data.name}.json"
        assert main(["evaluate", str(run), str(data), "--json", "--results", str(results)]) == 0
        figures = json.loads(capsys.readouterr().out)["figures"]
        assert (figures["AP"] is None) == (data.name == "test")
        records = json.loads(results.read_text())
        found.append(sorted(json.dumps(record, sort_keys=True) for record in records))
    assert found[0] == found[1] and {json.loads(record)["image_id"] for record in found[0]} <= images.keys()
    categories = {entry["id"] for entry in document["categories"]}
    for record in map(json.loads, found[0]):
        assert record.keys() == {"image_id", "category_id", "bbox", "score"} and record["category_id"] in categories


def test_predict_draws_images_and_writes_a_coco_document(
    run: Path, drawn: Path, tmp_path: Path, capsys: Captured
) -> None:
    one = sorted((drawn / "images").iterdir())[0]
    twin = tmp_path / "other" / one.name
    twin.parent.mkdir()
    shutil.copy(one, twin)
    out = tmp_path / "out"
    assert main(["predict", str(run), str(drawn / "images"), str(twin), "--out", str(out), "--batch-size", "3"]) == 0
    assert "detections in 21 images" in capsys.readouterr().out
    document = json.loads((out / "detections.json").read_text())
    assert [entry["id"] for entry in document["images"]] == list(range(1, 22))
    assert {entry["image_id"] for entry in document["annotations"]} <= set(range(1, 22))
    images = sorted(out.glob("*.jpg"))
    assert len(images) == 21 and f"{one.stem}_2.jpg" in {path.name for path in images}
    assert min(max(Image.open(path).size) for path in images) >= 480


def test_the_document_of_predict_can_be_evaluated(run: Path, drawn: Path, tmp_path: Path, capsys: Captured) -> None:
    arguments = ["predict", str(run), str(drawn / "images"), "--out", str(tmp_path), "--confidence", "0.001"]
    assert main(arguments) == 0
    document = json.loads((tmp_path / "detections.json").read_text())
    names = {entry["id"]: Path(entry["file_name"]).name for entry in document["images"]}
    truth = json.loads((drawn / "instances.json").read_text())
    numbers = {entry["file_name"]: entry["id"] for entry in truth["images"]}
    records = [{**entry, "image_id": numbers[names[entry["image_id"]]]} for entry in document["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(records))
    figures = []
    for name in ("detections.json", "results.json"):
        for data in ("instances.json", "dataset"):
            capsys.readouterr()
            assert main(["evaluate", str(tmp_path / name), str(drawn / data), "--json"]) == 0
            figures.append(json.loads(capsys.readouterr().out)["figures"])
    assert len(records) > 20 and all(entry == figures[0] for entry in figures)


def test_predict_json_prints_only_json(run: Path, drawn: Path, tmp_path: Path, capsys: Captured) -> None:
    one = sorted((drawn / "images").iterdir())[0]
    assert main(["predict", str(run), str(one), "--out", str(tmp_path), "--json", "--confidence", "0.9"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["file_name"] == str(one)


def test_predict_does_all_it_can_and_then_names_what_it_could_not(
    run: Path, test_data: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = test_data / "hostile" / "images"
    names = ("ok_000.jpg", "text.jpg", "bomb_30000.png", "exif6.jpg")
    assert main(["predict", str(run), *(str(folder / name) for name in names), "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "2 of 4 images cannot be read" in message and "text.jpg" in message and "bomb_30000.png" in message
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["exif6.jpg", "ok_000.jpg"]
    assert Image.open(tmp_path / "exif6.jpg").size == (360, 480)  # shown upright


def test_a_registered_version_is_looked_up_in_the_registry(
    run: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []
    registry = types.ModuleType("yolofleet.registry.version_files")

    def detector_folder(models_uri: str, tracking_uri: str | None = None) -> Path:
        asked.append((models_uri, tracking_uri))
        return run / "model"

    registry.detector_folder = detector_folder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    one = str(sorted((drawn / "images").iterdir())[0])
    arguments = ["predict", "models:/shapes@candidate", one, "--out", str(tmp_path), "--tracking-uri", "http://x:5000"]
    assert main(arguments) == 0
    assert asked == [("models:/shapes@candidate", "http://x:5000")]


def test_a_run_in_remote_storage_is_downloaded_and_leaves_nothing_behind(
    run: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStorage, "local_path", lambda self, key: None)  # as if it were an object store
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    detector = open_detector(f"file://{run}", "cpu")
    assert detector.classes == ShardDataset(drawn / "dataset").classes
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "{tmp}/none", "{data}"], "none is not a model: there is no such file or folder"),
        (["evaluate", "{tmp}", "{data}"], "holds neither detector.json nor model/detector.json"),
        (["evaluate", "{tmp}/file.txt", "{data}"], "file.txt is not a model: it is a file"),
        (["evaluate", "{tmp}/none.json", "{data}"], "cannot read {tmp}/none.json"),
        (["evaluate", "{run}", "{tmp}"], "manifest"),
        (["evaluate", "{run}", "{drawn}/instances.json"], "yolofleet data shard"),
        (["evaluate", "{run}", "{data}", "--device", "abacus"], "--device abacus"),
        (["evaluate", "{run}", "{data}", "--image-size", "100"], "100"),
        (["evaluate", "{tmp}/empty.json", "{tmp}/empty.json"], "not a COCO annotation file"),
        (["predict", "{run}", "{tmp}/none.jpg"], "there is no image {tmp}/none.jpg"),
        (["predict", "{run}", "{tmp}"], "a folder without images"),
        (["predict", "{run}", "{drawn}/images", "--out", "{drawn}/images"], "would overwrite"),
        (["predict", "{run}", "{tmp}/file.txt", "--out", "{tmp}/file.txt"], "cannot make the folder"),
        (["predict", "{tmp}/none", "{tmp}/file.txt"], "none is not a model"),
        (["predict", "{run}", "{tmp}/file.txt", "--part-size", "9"], "without --workers images are not predicted in"),
    ],
)
def test_wrong_input_is_exit_code_2_and_one_message(
    run: Path, drawn: Path, tmp_path: Path, capsys: Captured, arguments: list[str], words: str
) -> None:
    (tmp_path / "file.txt").write_text("not an image")
    (tmp_path / "empty.json").write_text("[]")
    paths = {"tmp": tmp_path, "run": run, "drawn": drawn, "data": drawn / "dataset"}
    assert main([argument.format(**paths) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert words.format(**paths) in captured.err
    assert captured.out == "" and "Traceback" not in captured.err
