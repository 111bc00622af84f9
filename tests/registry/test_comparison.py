"""Two versions side by side: from their records where these hold, and as a page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from registry.archives import unpacked
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.evaluation.image_matches import disagreements
from yolofleet.models import build_model
from yolofleet.registry import comparison
from yolofleet.registry.comparison import compare, evaluate_version
from yolofleet.registry.evaluation_record import EvaluationSettings, Evidence
from yolofleet.registry.register import register_detector
from yolofleet.registry.versions import find_version

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def store(registered_store: Path, trained_package: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Version 1 was evaluated; version 2, whose head is blank, was not."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copy(registered_store / "mlflow.db", folder / "mlflow.db")
    card = Detector.load(trained_package).card
    blank = build_model(card.model, num_classes=len(card.classes), deployed=True)
    for weights in blank.head.parameters():
        weights.data.zero_()
    save_detector(folder / "blank", blank, [(entry.id, entry.name) for entry in card.classes], card.image_size)
    uri = f"sqlite:///{folder}/mlflow.db"
    register_detector(folder / "blank", "shapes", uri, Evidence())
    return uri


def test_figures_are_those_of_the_versions(store: str, known_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = find_version(store, "shapes/1"), find_version(store, "shapes/2")
    evaluated: list[Path] = []
    evaluate = comparison.evaluate_detector

    def counted(detector: Detector, *arguments: object, **options: object) -> object:
        evaluated.append(Path())
        return evaluate(detector, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "evaluate_detector", counted)
    found = compare(store, first, second, num_replicates=100)
    assert len(evaluated) == 1  # the other one has a record
    for entry in found.differences.figures:
        recorded = first.facts.get(f"figures.{entry.name}")
        assert entry.first == (pytest.approx(float(recorded), abs=1e-12) if recorded else None)
    assert found.differences.figure("AP").high is not None and found.differences.figure("AP").high < 0  # type: ignore[operator]
    swapped = compare(store, second, first, num_replicates=100).differences.figure("AP")
    assert swapped.difference == pytest.approx(-(found.differences.figure("AP").difference or 0))
    with pytest.raises(UserError, match="--data"):
        compare(store, second, second, num_replicates=100)


def test_against_another_version_its_thresholds_count(store: str, known_data: Path) -> None:
    version, dataset = find_version(store, "shapes/1"), ShardDataset(known_data)
    recorded = evaluate_version(store, version, dataset, "cpu").record
    other = EvaluationSettings(image_size=4096, confidence=0.5, max_detections=2)
    found = evaluate_version(store, version, dataset, "cpu", thresholds_of=other).record
    assert found.settings == recorded.settings.model_copy(update={"confidence": 0.5, "max_detections": 2})
    assert found.figures["AP"] != recorded.figures["AP"]
    again = evaluate_version(store, version, dataset, "cpu", thresholds_of=recorded.settings).record
    assert again == recorded


def test_a_spoilt_record_is_not_believed(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yolofleet.registry.version_files import artifact_location, local_folder

    version = find_version(store, "shapes/1")
    files = local_folder(artifact_location(store, version))
    assert files is not None
    own = Path(shutil.copytree(files, tmp_path / "files"))
    monkeypatch.setattr("yolofleet.registry.version_files.artifact_location", lambda *_: str(own))
    path = own / "evaluation/detections.safetensors"
    with unpacked(own):
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    evaluated: list[object] = []
    evaluate = comparison.evaluate_detector
    monkeypatch.setattr(
        comparison, "evaluate_detector", lambda *given, **more: evaluated.append(given) or evaluate(*given, **more)
    )
    compare(store, version, version, num_replicates=100)
    assert len(evaluated) == 2


def test_the_command_writes_a_page_with_images(
    store: str, known_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["registry", "compare", "shapes/2", "shapes/1", "--replicates", "100", "--tracking-uri", store]
    assert main([*arguments, "--html", str(tmp_path / "page"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("models:/shapes/1 against models:/shapes/2, 12 images") and "  circle  " in out
    page = (tmp_path / "page/index.html").read_text()
    assert 'class="good"' in page and 'src="data:image/jpeg;base64' in page and "http://" not in page
    images = sorted((tmp_path / "page/images").iterdir())
    assert images and Image.open(images[0]).width > 3 * 64
    assert main([*arguments, "--json", "--data", str(known_data)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest_sha256"] == ShardDataset(known_data).manifest.digest
    assert [entry["name"] for entry in document["per_class"]] == [
        name for name in ("circle", "square", "tree") if any(entry["name"] == name for entry in document["per_class"])
    ]
    assert main([*arguments, "--replicates", "5"]) == 2


def test_the_images_with_the_most_different_mistakes_come_first() -> None:
    truth = {
        "images": [{"id": number} for number in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"image_id": number, "category_id": 1, "bbox": [20 * place, 0, 10, 10]}
            for number in (1, 2, 3)
            for place in range(3)
        ],
    }

    def found(*rows: tuple[int, float, float]) -> Detections:
        return Detections(
            image_ids=np.array([row[0] for row in rows], np.int64),
            category_ids=np.ones(len(rows), np.int64),
            boxes=np.array([[row[1], 0, 10, 10] for row in rows], np.float64).reshape(-1, 4),
            scores=np.array([row[2] for row in rows], np.float64),
        )

    first = found((1, 0, 0.9), (1, 20, 0.9), (1, 40, 0.9), (2, 0, 0.9), (3, 0, 0.9), (3, 20, 0.1))
    second = found((1, 0, 0.9), (1, 500, 0.9), (1, 600, 0.9), (2, 0, 0.9), (3, 0, 0.9), (3, 20, 0.9))
    entries = disagreements(truth, first, second, count=5)
    assert [entry.image_id for entry in entries] == [1, 3]  # in image 2 they do not differ
    assert (entries[0].first_missed, entries[0].first_false) == (0, 0)
    assert (entries[0].second_missed, entries[0].second_false) == (2, 2)
    assert entries[0].fewer_mistakes == -4 and entries[1].fewer_mistakes == 1
