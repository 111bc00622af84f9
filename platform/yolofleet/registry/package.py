"""Building a registered version: a detector package with the code that runs it, as an MLflow pyfunc without pickle.

MLmodel, requirements.txt, ...       MLflow's description: signature, environment, where what is
code/yolofleet_inference_DIGEST/     the inference code, under a name of its own
data/detector/                       the detector package: detector.json, model.safetensors
evidence.json                        the facts of the detector: figures, data, job
evaluation/detections.safetensors    every box behind its figures
evaluation/report.html               the evaluation report of the run that made it
lineage/train.json, lineage/val.json the manifests of its data, with the digests of all shards
proof.json                           every claim of the version, which can be verified at any time
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from yolofleet import __version__
from yolofleet.core.errors import UserError
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.inference_code import InferenceCode, collect_inference_code, pin_requirements
from yolofleet.registry.proof import write_evidence_files, write_proof

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from yolofleet.evaluation.detector import Detector

SERVED_MODULE = "yolofleet.registry.served_detector"
ONNX_RUNTIME = "onnxruntime"
"""Imported only where a detector predicts with it."""
EVIDENCE_NAME = "evidence.json"
EVIDENCE_FORMAT = 1
DETECTOR_FOLDER = "data/detector"
EXECUTABLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt", ".bin", ".py", ".so")
"""Files that run code when they are read, or may: a detector package must hold none of them."""
PICKLE_PROTOCOLS = b"\x02\x03\x04\x05"


class PackageError(UserError):
    """A folder cannot be registered."""


@dataclass(frozen=True)
class VersionContent:
    """A detector package, checked and loaded, and its inference code: what a registered version will hold."""

    detector: Path
    code: InferenceCode
    digest: str
    """sha256 over package and code: versions with the same digest predict the same."""
    loaded: Detector = field(repr=False)
    """The detector, on the CPU."""


def collect_content(detector: Path) -> VersionContent:
    """Check a detector package and gather what runs it.

    Raises:
        UserError: The folder is no detector package, is damaged, or holds files that run code.
    """
    from yolofleet.export.runtime import load_detector

    loaded = load_detector(detector)
    for path in _files(detector):
        if path.suffix.lower() in EXECUTABLE_SUFFIXES or is_pickle(path):
            raise PackageError(f"{path}: such a file may run code when it is read; remove it from the package")
    code = collect_inference_code(SERVED_MODULE)
    digest = hashlib.sha256(code.package.encode())
    for path in _files(detector):
        digest.update(f"\0{path.relative_to(detector).as_posix()}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return VersionContent(detector, code, digest.hexdigest(), loaded)


def write_version(
    content: VersionContent, target: Path, evidence: Evidence, *, model_id: str | None = None, run_id: str | None = None
) -> Path:
    """Write a version as an MLflow model folder, which must not exist or be empty; return that folder.

    Args:
        content: The detector and its inference code.
        target: The folder.
        evidence: What is known of the detector.
        model_id: MLflow's id of the logged model, where there is one.
        run_id: MLflow's id of the run that made it, where there is one.

    Raises:
        UserError: A training form or an ONNX file in the package computes something else than the package.
    """
    import mlflow
    from mlflow.models import Model

    from yolofleet.export.runtime import OnnxNetwork
    from yolofleet.registry.served_detector import DEFAULT_CONFIG

    in_torch = not isinstance(content.loaded.network, OnnxNetwork)
    imports = content.code.imports - ({ONNX_RUNTIME} if in_torch else set())

    with TemporaryDirectory(prefix="yolofleet-version-") as staging:
        package = content.code.write(Path(staging))
        detector = Path(staging, "detector")
        shutil.copytree(content.detector, detector, ignore=shutil.ignore_patterns(".*"))
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=content.code.module(SERVED_MODULE),
            data_path=str(detector),
            code_paths=[str(package)],
            pip_requirements=list(pin_requirements(imports)),
            signature=_signature(),
            input_example=[_example_image()],
            model_config=dict(DEFAULT_CONFIG),
            metadata={"yolofleet_version": __version__, "yolofleet_digest": content.digest},
            mlflow_model=Model(run_id=run_id, model_id=model_id),
        )
    document = {"format": EVIDENCE_FORMAT, "digest": content.digest, "evidence": dict(evidence.facts)}
    (target / EVIDENCE_NAME).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_evidence_files(target, evidence)
    write_proof(target, DETECTOR_FOLDER, content.loaded, evidence, inference_code=content.code.package)
    return target


def _signature() -> ModelSignature:
    """Return the signature: a list of images in, a list of records per image out.

    MLflow turns every input into a table before it checks types, which breaks arrays of images. A signature that is
    marked as coming from type hints leaves the check to the model, and `ServedDetector` checks each image.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, Map, Schema

    signature = ModelSignature(inputs=Schema([ColSpec(AnyType())]), outputs=Schema([ColSpec(Array(Map(AnyType())))]))
    signature._is_signature_from_type_hint = True
    return signature


def _example_image() -> str:
    """Return a small image as base64 text, as it stands in a request to the served model."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def is_pickle(path: Path) -> bool:
    """Return whether a file is a pickle of protocol 2 or later, or a zip as torch.save writes it."""
    with path.open("rb") as file:
        head = file.read(2)
    return (len(head) == 2 and head[0] == 0x80 and head[1] in PICKLE_PROTOCOLS) or zipfile.is_zipfile(path)


def _files(folder: Path) -> list[Path]:
    """Return the files of a package, none of which blocks or never ends when it is read."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    for path in paths:
        if not path.is_file():
            raise PackageError(f"{path}: is not a regular file (a pipe, a device, a broken link); remove it")
    return paths
