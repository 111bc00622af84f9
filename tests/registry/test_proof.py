"""Every claim of a version is redone; whatever is changed is named, and what cannot be redone never passes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from registry.archives import unpacked
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.export.runtime import OnnxNetwork
from yolofleet.export.settings import INPUT_NAME
from yolofleet.models import build_model
from yolofleet.models.deployment import half_weights
from yolofleet.registry.evaluation_record import Evidence, evaluate_package, read_detections, write_detections
from yolofleet.registry.package import ARCHIVE_NAME, open_archive
from yolofleet.registry.proof import PROOF_NAME, Proof, file_sha256
from yolofleet.registry.register import register_detector
from yolofleet.registry.verify import Verification, verify
from yolofleet.registry.version_files import artifact_location, local_folder
from yolofleet.registry.versions import PROOF_TAG, Version, find_version
from yolofleet.tracking.mlflow_store import open_client
from yolofleet.training.setup.pretrained import TRAINING_FORM

pytestmark = pytest.mark.system


@pytest.fixture
def registered(registered_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Version, Path]:
    """A store of the test's own, its version, and a copy of the version's files to spoil."""
    shutil.copy(registered_store / "mlflow.db", tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    version = find_version(uri, "shapes/1")
    files = local_folder(artifact_location(uri, version))
    assert files is not None
    own = Path(shutil.copytree(files, tmp_path / "files"))
    monkeypatch.setattr("yolofleet.registry.version_files.artifact_location", lambda *_: str(own))
    return uri, version, own


def outcomes(found: Verification) -> dict[str, str]:
    return {claim.name: claim.outcome for claim in found.claims}


def details(found: Verification, outcome: str) -> str:
    return "\n".join(f"{claim.name}: {claim.detail}" for claim in found.with_outcome(outcome))


def flip_last_letter(path: Path, near: bytes) -> None:
    """Change one byte of a file, inside a text that it holds."""
    data = bytearray(path.read_bytes())
    position = data.index(near) + len(near) - 1
    data[position] ^= 1
    path.write_bytes(data)


def test_every_claim_of_an_untouched_version_passes(registered: tuple[str, Version, Path]) -> None:
    found = verify(registered[0], registered[1])
    assert found.verdict == "passed", details(found, "failed") + details(found, "not possible")
    assert {name for name, outcome in outcomes(found).items() if outcome == "passed"} >= {
        "proof", "weights", "spec", "inference code", "evidence", "detections", "data manifests", "other files",
        "no pickle", "detector", "training form", "data, train", "data, val", "AP", "recorded detections",
        "code version", "package versions", "tags",
    }  # fmt: skip
    assert outcomes(found)["latency"] == "note" and found.latency is not None
    assert found.evaluation is not None and (found.evaluation.record.figures["AP"] or 0) > 0.2


def test_one_changed_byte_is_named(registered: tuple[str, Version, Path]) -> None:
    uri, version, files = registered
    kept = files.with_name("kept")
    shutil.copytree(files, kept)
    weights = files / "data/detector/model.safetensors"
    code = json.loads((files / PROOF_NAME).read_text())["inference_code"]
    for path, near, claim in (
        (weights, weights.read_bytes()[-40:], "weights"),
        (files / "data/detector/training.safetensors", b"anchors", "weights"),
        (files / "data/detector/detector.json", b'"circle', "spec"),
        (files / "evidence.json", b'"figures', "evidence"),
        (files / "lineage/train.json", b'"sha256":"', "data manifests"),
        (files / "MLmodel", b"loader_modul", "other files"),
        (files / f"code/{code}/evaluation/nms.py", b"suppressio", "inference code"),
        (files / PROOF_NAME, b'"AP": 0.', "proof"),
    ):
        with unpacked(files):
            flip_last_letter(path, near)
        found = verify(uri, version)
        assert found.verdict == "failed"
        failed = [entry for entry in found.with_outcome("failed") if entry.name == claim]
        assert failed and path.relative_to(files).as_posix() in failed[0].detail, (claim, details(found, "failed"))
        shutil.copytree(kept, files, dirs_exist_ok=True)
    assert verify(uri, version).verdict == "passed"


def test_an_archive_that_yolofleet_did_not_write_is_named(registered: tuple[str, Version, Path]) -> None:
    uri, version, files = registered
    archive = files / ARCHIVE_NAME
    kept = archive.read_bytes()
    for changed in (kept + b"\0", kept.replace(b"suppression", b"suppressioN", 1), kept[:-1000], b""):
        archive.write_bytes(changed)
        failed = details(verify(uri, version), "failed")
        assert f"for {ARCHIVE_NAME} is not as yolofleet writes it" in failed and f"{ARCHIVE_NAME} has sha256" in failed
    archive.unlink()
    assert f"other files: {ARCHIVE_NAME} is missing" in details(verify(uri, version), "failed")
    archive.write_bytes(kept)
    with unpacked(files):
        (files / "lineage/more.json").write_text("{}")
    failed = details(verify(uri, version), "failed")
    assert "data manifests: lineage/more.json is not in the proof" in failed and f"{ARCHIVE_NAME} has sha256" in failed


def test_files_of_the_archive_beside_it_are_no_way_around_the_proof(registered: tuple[str, Version, Path]) -> None:
    uri, version, files = registered
    kept = Path(shutil.copytree(files, files.with_name("kept")))
    with unpacked(files):
        code = next((files / "code").rglob("nms.py"))
        code.write_text(code.read_text() + "import os\n")
    open_archive(kept)
    shutil.copytree(kept / "code", files / "code")  # good code for who looks beside the archive that MLflow loads
    rewritten(files, uri, with_tag=True)
    assert "nms.py is not what yolofleet" in details(verify(uri, find_version(uri, version.uri)), "failed")


def test_a_file_too_many_and_one_too_few_are_named(registered: tuple[str, Version, Path]) -> None:
    uri, version, files = registered
    (files / "data/detector/notes.txt").write_text("hello")
    (files / "requirements.txt").unlink()
    failed = details(verify(uri, version), "failed")
    assert "notes.txt is not in the proof" in failed and "requirements.txt is missing" in failed


def test_a_training_form_that_is_gone_is_a_failed_claim(registered: tuple[str, Version, Path]) -> None:
    """Also where the digests of the files do not tell: its claim rests on the difference that the proof records."""
    uri, version, files = registered
    (files / "data/detector" / TRAINING_FORM).unlink()
    found = verify(uri, version)
    assert found.verdict == "failed" and outcomes(found)["training form"] == "failed"
    assert f"training form: {TRAINING_FORM} is missing" in details(found, "failed")


def test_a_planted_pickle_is_found(registered: tuple[str, Version, Path]) -> None:
    uri, version, files = registered
    (files / "code").mkdir()
    torch.save({}, files / "code" / "innocent.txt")
    assert "no pickle: code/innocent.txt" in details(verify(uri, version), "failed")
    (files / "code/innocent.txt").unlink()
    torch.save({}, files / ARCHIVE_NAME)
    assert f"no pickle: {ARCHIVE_NAME}" in details(verify(uri, version), "failed")


def rewritten(files: Path, uri: str, *, with_tag: bool) -> None:
    """Make the digests of the proof, and perhaps the tag, those of the files as they are now."""
    proof = json.loads((files / PROOF_NAME).read_text())
    opened = Path(shutil.copytree(files, files.with_name("opened"), dirs_exist_ok=True))
    open_archive(opened)
    for name in proof["files"]:
        proof["files"][name] = file_sha256(opened / name)
    shutil.rmtree(opened)
    (files / PROOF_NAME).write_text(json.dumps(proof))
    if with_tag:
        open_client(uri).set_model_version_tag("shapes", "1", PROOF_TAG, file_sha256(files / PROOF_NAME))


def test_weights_and_all_digests_replaced_together_do_not_have_the_ap(registered: tuple[str, Version, Path]) -> None:
    uri, version, files = registered
    package = files / "data/detector"
    card = Detector.load(package).card
    torch.manual_seed(99)
    other = build_model(card.model, num_classes=len(card.classes), deployed=True)
    classes = [(entry.id, entry.name) for entry in card.classes]
    save_detector(package, other, classes, card.image_size, confidence=card.confidence, max_detections=20)
    rewritten(files, uri, with_tag=False)
    assert {claim.name for claim in verify(uri, version).with_outcome("failed")} == {
        "proof", "training form", "AP", "recorded detections",
    }  # fmt: skip
    (package / "training.safetensors").unlink()
    proof = json.loads((files / PROOF_NAME).read_text())
    del proof["files"]["data/detector/training.safetensors"]
    proof["training_form_difference"] = None
    (files / PROOF_NAME).write_text(json.dumps(proof))
    rewritten(files, uri, with_tag=True)
    found = verify(uri, find_version(uri, "shapes/1"))
    assert {claim.name for claim in found.with_outcome("failed")} == {"AP", "recorded detections"}
    assert "recorded is" in details(found, "failed")
    pinned = verify(uri, find_version(uri, "shapes/1"), expected_proof_sha256=version.proof_sha256)
    assert "you expect" in next(claim.detail for claim in pinned.with_outcome("failed") if claim.name == "proof")


def test_onnx_is_run_beside_torch_and_a_changed_byte_is_named(
    onnx_package: Path, tracking_uri: str, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(onnx_package, tmp_path / "package"))
    version = register_detector(package, "shapes", tracking_uri, Evidence())
    passed = outcomes(verify(tracking_uri, version))
    assert passed["ONNX"] == passed["ONNX Runtime, model.onnx"] == "passed"
    files = local_folder(artifact_location(tracking_uri, version))
    assert files is not None
    path = files / "data/detector/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    assert "ONNX: data/detector/model.onnx has sha256" in details(verify(tracking_uri, version), "failed")
    (package / "model.onnx").write_bytes(data[: len(data) // 2])
    (package / "notes.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.onnx"):
        register_detector(package, "shapes", tracking_uri, Evidence())


def test_an_onnx_file_that_cannot_be_run_is_named(onnx_package: Path, tracking_uri: str) -> None:
    onnx = pytest.importorskip("onnx")
    version = register_detector(onnx_package, "shapes", tracking_uri, Evidence())
    files = local_folder(artifact_location(tracking_uri, version))
    assert files is not None
    path = files / "data/detector/model.onnx"
    model = onnx.load(path)
    model.graph.input[0].name = "pictures"
    for node in model.graph.node:
        node.input[:] = ["pictures" if used == INPUT_NAME else used for used in node.input]
    onnx.save(model, path)
    found = verify(tracking_uri, version)
    assert {claim.name for claim in found.with_outcome("failed")} == {"ONNX", "ONNX Runtime, model.onnx"}
    assert "cannot be run" in details(found, "failed")


def test_the_weights_are_evaluated_even_if_an_onnx_file_of_good_figures_lies_beside_them(
    registered: tuple[str, Version, Path], onnx_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolofleet.export import runtime

    uri, _, files = registered
    package = files / "data/detector"
    shutil.copy(onnx_package / "model.onnx", package)
    monkeypatch.setattr(runtime, "_equal_network", lambda path, detector: OnnxNetwork(path))  # deceived by the file
    card = Detector.load(package).card
    torch.manual_seed(99)
    other = build_model(card.model, num_classes=len(card.classes), deployed=True)
    classes = [(entry.id, entry.name) for entry in card.classes]
    save_detector(package, other, classes, card.image_size, confidence=card.confidence, max_detections=20)
    proof = json.loads((files / PROOF_NAME).read_text())
    proof["files"]["data/detector/model.onnx"] = ""
    (files / PROOF_NAME).write_text(json.dumps(proof))
    rewritten(files, uri, with_tag=True)
    found = verify(uri, find_version(uri, "shapes/1"))
    assert outcomes(found)["AP"] == "failed"
    assert "AP, model.onnx" in outcomes(found)  # evaluated as well, by itself


def test_what_cannot_be_redone_is_said_and_is_not_passed(
    registered: tuple[str, Version, Path], known_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, version, _ = registered
    found = verify(uri, version, data=str(tmp_path / "nowhere"))
    assert found.verdict == "incomplete" and outcomes(found)["AP"] == outcomes(found)["data, val"] == "not possible"
    assert "the data is gone" in details(found, "not possible")
    copy = shutil.copytree(known_data, tmp_path / "copy")
    assert verify(uri, version, data=str(copy)).verdict == "passed"
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"source_digest": "', '"source_digest": "0'))
    assert "holds other data now" in details(verify(uri, version, data=str(copy)), "not possible")
    monkeypatch.setattr("yolofleet.registry.claims._version_here", lambda name: "0.0")
    assert outcomes(verify(uri, version))["package versions"] == "not possible"


def test_data_that_is_not_all_there_has_not_passed(
    registered: tuple[str, Version, Path], known_data: Path, tmp_path: Path
) -> None:
    uri, version, _ = registered
    copy = shutil.copytree(known_data, tmp_path / "copy")
    shard = next((copy / "shards").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    for spoil, message in (
        (lambda: shard.write_bytes(content), "has sha256"),
        (lambda: shard.write_bytes(content[:-512]), "bytes, not"),
        (shard.unlink, "is missing"),
    ):
        spoil()
        found = verify(uri, version, data=str(copy))
        assert outcomes(found)["data, val"] == outcomes(found)["AP"] == "not possible", message
        assert message in details(found, "not possible") and shard.name in details(found, "not possible")
        assert not found.with_outcome("failed")


def test_replaced_inference_code_is_found_though_all_digests_were_replaced_with_it(
    registered: tuple[str, Version, Path],
) -> None:
    uri, _, files = registered
    archive, description = files / ARCHIVE_NAME, files / "MLmodel"
    kept, described = archive.read_bytes(), description.read_text()
    with unpacked(files):
        code = next((files / "code").rglob("nms.py"))
        code.write_text(code.read_text() + "import os\n")
    rewritten(files, uri, with_tag=True)
    found = verify(uri, find_version(uri, "shapes/1"))
    assert "nms.py is not what yolofleet" in details(found, "failed")
    archive.write_bytes(kept)
    for good, evil in ((".registry.served_detector", ".evil"), (f"{ARCHIVE_NAME}/code", "data/detector")):
        description.write_text(described.replace(good, evil))
        rewritten(files, uri, with_tag=True)
        found = verify(uri, find_version(uri, "shapes/1"))
        assert {claim.name for claim in found.with_outcome("failed")} == {"code version"}
        assert "MLmodel names" in details(found, "failed") and evil in details(found, "failed")


def test_figures_and_origins_that_mlflow_shows_are_those_of_the_evidence(
    registered: tuple[str, Version, Path],
) -> None:
    uri, _, _ = registered
    client = open_client(uri)
    client.set_model_version_tag("shapes", "1", "figures.AP", "0.99")  # somebody's own tags are nobody's concern
    version = find_version(uri, "shapes/1")
    assert version.facts["figures.AP"] != "0.99" and outcomes(verify(uri, version))["tags"] == "passed"
    client.set_model_version_tag("shapes", "1", "yolofleet.figures.AP", "0.99")
    client.set_model_version_tag("shapes", "1", "yolofleet.initial_weights.parent", "models:/best/1")
    found = verify(uri, find_version(uri, "shapes/1"))
    assert {claim.name for claim in found.with_outcome("failed")} == {"tags"}
    assert "figures.AP is 0.99, recorded is" in details(found, "failed")
    assert "initial_weights.parent is models:/best/1, recorded is missing" in details(found, "failed")


def test_a_tag_that_names_other_data_fails(registered: tuple[str, Version, Path]) -> None:
    uri, _, _ = registered
    open_client(uri).set_model_version_tag("shapes", "1", "yolofleet.data.train", "0" * 64)
    assert "data, train: the version's tag says" in details(verify(uri, find_version(uri, "shapes/1")), "failed")


def test_the_command(registered: tuple[str, Version, Path], capsys: pytest.CaptureFixture[str]) -> None:
    uri, version, files = registered
    arguments = ["registry", "verify", "shapes@candidate", "--device", "cpu", "--tracking-uri", uri]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("passed: 18 passed, 0 failed")
    assert main([*arguments, "--data", "/nowhere"]) == 0
    assert main([*arguments, "--data", "/nowhere", "--strict"]) == 1
    assert main([*arguments, "--proof-sha256", "abc"]) == 2
    with unpacked(files):
        flip_last_letter(files / "evidence.json", b'"figures')
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "failed" and document["proof_sha256"] == version.proof_sha256
    assert [claim["name"] for claim in document["claims"] if claim["outcome"] == "failed"] == [
        "evidence", "other files", "tags",
    ]  # fmt: skip


def test_a_version_without_a_proof_fails(registered: tuple[str, Version, Path]) -> None:
    uri, version, files = registered
    (files / PROOF_NAME).unlink()
    assert "register it again" in details(verify(uri, version), "failed")
    (files / PROOF_NAME).write_text('{"format": 1')
    assert "proof.json is not JSON" in details(verify(uri, version), "failed")


def test_detections_travel_number_by_number(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    detections = Detections(
        image_ids=random.integers(0, 2**52, 50),
        category_ids=random.integers(1, 90, 50),
        boxes=np.round(random.uniform(-50, 9000, (50, 4)), 3),
        scores=np.round(random.random(50), 5),
    )
    write_detections(detections, tmp_path / "found.safetensors")
    read = read_detections(tmp_path / "found.safetensors")
    for name in ("image_ids", "category_ids", "boxes", "scores"):
        assert (getattr(read, name) == getattr(detections, name)).all(), name


def test_a_package_registered_with_data_is_evaluated(
    trained_package: Path, known_data: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["registry", "register", str(trained_package), "--name", "shapes", "--tracking-uri", tracking_uri]
    assert main([*arguments, "--json"]) == 0
    bare: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--json", "--data", str(known_data), "--device", "cpu"]) == 0
    evaluated: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (bare["version"], evaluated["version"]) == (1, 2) and float(evaluated["facts"]["figures.AP"]) > 0.2
    assert verify(tracking_uri, find_version(tracking_uri, "shapes/1")).verdict == "incomplete"


def test_weights_in_half_precision_say_what_that_costs(
    trained_package: Path, known_data: Path, tracking_uri: str, tmp_path: Path
) -> None:
    whole = Detector.load(trained_package)
    package = save_detector(
        tmp_path / "half", half_weights(whole.model), whole.classes, whole.card.image_size, max_detections=20
    )
    shutil.copy(trained_package / TRAINING_FORM, package)
    evaluations = [evaluate_package(folder, str(known_data), "cpu") for folder in (trained_package, package)]
    before, after = (evidence.evaluation.record for evidence in evaluations if evidence.evaluation is not None)
    for name, figures, outcome in (
        ("half", before.figures, "passed"),
        ("forged", before.figures | {"AP": (before.figures["AP"] or 0) + 0.01}, "failed"),
    ):
        record = after.model_copy(update={"unrounded_figures": figures})
        evaluation = replace(evaluations[1].evaluation, record=record)  # type: ignore[type-var]
        version = register_detector(package, name, tracking_uri, replace(evaluations[1], evaluation=evaluation))
        found = outcomes(verify(tracking_uri, version, data=str(known_data)))
        assert (found["AP before rounding"], found["training form"], found["AP"]) == (outcome, "passed", "passed")


def test_a_proof_keeps_the_keys_of_older_versions(registered: tuple[str, Version, Path]) -> None:
    document = json.loads((registered[2] / PROOF_NAME).read_text())
    assert document["judgement"]["figures"]["AP"] > 0.2 and "evaluation" not in document
    assert Proof.parse(document, source=PROOF_NAME).model_dump(mode="json", by_alias=True) == document
