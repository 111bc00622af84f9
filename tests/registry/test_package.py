"""A version holds code and safetensors, no pickle, and predicts as the detector does, however images come."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.images import ImageReadError
from yolofleet.registry import package
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.package import DETECTOR_FOLDER, PackageError, collect_content, open_archive, write_version
from yolofleet.registry.served_detector import SERVING_VARIABLE, decode_content, list_images

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def version_folder(detector_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version") / "model"
    return write_version(collect_content(detector_package), folder, Evidence({"figures": {"AP": 0.5}}))


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def is_pickle(path: Path) -> bool:
    """Pickles of protocol 2 and later start with 0x80 and their number; torch.save makes a zip of them."""
    head = path.read_bytes()[:2]
    return (head[:1] == b"\x80" and head[1:] in (b"\2", b"\3", b"\4", b"\5")) or zipfile.is_zipfile(path)


def test_no_pickle_anywhere(version_folder: Path, tmp_path: Path) -> None:
    stored = {path.relative_to(version_folder).as_posix() for path in version_folder.rglob("*") if path.is_file()}
    assert stored == {
        "MLmodel", "archive.zip", "conda.yaml", "data/detector/detector.json", "data/detector/model.safetensors",
        "input_example.json", "proof.json", "python_env.yaml", "requirements.txt", "serving_input_example.json",
    }, "each file is a request to a server"  # fmt: skip
    opened = Path(shutil.copytree(version_folder, tmp_path / "opened"))
    open_archive(opened)
    (opened / "archive.zip").unlink()
    files = [path for path in opened.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {path.suffix for path in files} <= {"", ".py", ".json", ".yaml", ".txt", ".safetensors"}
    assert not [path for path in files if is_pickle(path)]
    for path in opened.rglob("*.py"):
        source = path.read_text()
        assert not [
            word for word in ("pickle", "torch.load", "joblib") if f"import {word}" in source or f"{word}(" in source
        ]
    assert "pickle" not in (version_folder / "MLmodel").read_text()


def test_the_scan_finds_a_planted_pickle(tmp_path: Path) -> None:
    import pickle

    import torch

    (tmp_path / "a").write_bytes(pickle.dumps([1]))
    torch.save({}, tmp_path / "b")
    assert is_pickle(tmp_path / "a") and is_pickle(tmp_path / "b")


def test_weights_are_no_pickle_however_long_their_header_is(tmp_path: Path) -> None:
    """The length of 640 begins the file with 80 02, as a pickle begins."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(640)
    for name in ("weights.safetensors", "weights.bin"):
        (tmp_path / name).write_bytes((640).to_bytes(8, "little") + header + b"x")
    (tmp_path / "hidden.safetensors").write_bytes(b"\x80\x02]q\x00.")
    found = {path.name: package.is_pickle(path) for path in tmp_path.iterdir()}
    assert found == {"weights.safetensors": False, "weights.bin": True, "hidden.safetensors": True}


def test_every_form_of_image_gives_what_the_detector_gives(
    version_folder: Path, detector_package: Path, images: list[Any], tmp_path: Path
) -> None:
    import mlflow
    import pandas as pd

    expected = Detector.load(detector_package).predict(images)
    assert sum(len(records) for records in expected) > 0
    files = [png(image) for image in images]
    paths = [tmp_path / f"{index}.png" for index in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    model = mlflow.pyfunc.load_model(str(version_folder))
    forms: dict[str, Any] = {
        "arrays": images,
        "bytes": files,
        "base64": [base64.b64encode(content).decode() for content in files],
        "data URLs": ["data:image/png;base64," + base64.b64encode(content).decode() for content in files],
        "paths": [str(path) for path in paths],
        "path objects": paths,
        "a table": pd.DataFrame({"image": files}),
        "a column": pd.Series(files),
    }
    for name, form in forms.items():
        assert model.predict(form) == expected, name
    assert model.predict(images[0]) == expected[:1]
    assert model.predict(files[0]) == expected[:1]
    assert model.predict(np.stack([images[1], images[1]])) == [expected[1], expected[1]]
    assert {*expected[0][0]} == {"category_id", "category_name", "bbox", "score"}


def test_evidence_and_digest_are_kept(version_folder: Path, detector_package: Path, tmp_path: Path) -> None:
    opened = Path(shutil.copytree(version_folder, tmp_path / "opened"))
    open_archive(opened)
    document = json.loads((opened / "evidence.json").read_text())
    assert document["format"] == 1 and document["evidence"] == {"figures": {"AP": 0.5}}
    assert document["digest"] == collect_content(detector_package).digest
    assert (version_folder / DETECTOR_FOLDER / "model.safetensors").is_file()


def test_the_digest_follows_the_package(own_package: Path) -> None:
    before = collect_content(own_package).digest
    card = own_package / "detector.json"
    card.write_text(card.read_text().replace('"circle"', '"circlet"'))
    assert collect_content(own_package).digest != before


def test_files_that_run_code_are_refused(own_package: Path) -> None:
    (own_package / "extra.pt").write_bytes(b"")
    with pytest.raises(PackageError, match=r"extra\.pt.*remove it"):
        collect_content(own_package)


def test_a_pickle_under_another_name_is_refused(own_package: Path) -> None:
    import pickle

    (own_package / "notes.txt").write_bytes(pickle.dumps({}))
    with pytest.raises(PackageError, match=r"notes\.txt"):
        collect_content(own_package)


def test_onnxruntime_is_required_where_it_predicts(version_folder: Path, onnx_package: Path, tmp_path: Path) -> None:
    assert "onnxruntime" not in (version_folder / "requirements.txt").read_text()
    version = write_version(collect_content(onnx_package), tmp_path / "version", Evidence())
    assert "onnxruntime==" in (version / "requirements.txt").read_text()


def test_a_damaged_package_is_refused(own_package: Path) -> None:
    weights = own_package / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        collect_content(own_package)


def test_over_http_no_text_is_a_path(
    version_folder: Path, images: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(str(version_folder), model_config={"device": "cpu"})
    (tmp_path / "abcd").write_bytes(png(images[0]))
    monkeypatch.chdir(tmp_path)
    assert len(model.predict(["abcd"])) == 1
    monkeypatch.setenv(SERVING_VARIABLE, "true")
    for text in ("abcd", str(tmp_path / "abcd"), "file:///etc/passwd", "http://x/y.png"):
        with pytest.raises(MlflowException, match="image") as refusal:
            model.predict([text])
        refusal.value.message = "the whole request"
        assert "whole" not in refusal.value.serialize_as_json()
        assert refusal.value.get_http_status_code() == 400
    with pytest.raises(ImageReadError, match="data URL"):
        decode_content("data:text/plain,aGVsbG8=")


def test_a_table_with_two_columns_is_refused() -> None:
    import pandas as pd

    with pytest.raises(ImageReadError, match="2"):
        list_images(pd.DataFrame({"a": [1], "b": [2]}))
