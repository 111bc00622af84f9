"""``proof.json``: what a version claims about itself, written when it is registered.

It names every file of the version by its digest, what the detector is worth and on which data, how far its forms differ
(as trained, as deployed, as ONNX Runtime runs it), and under which code and packages that was measured. Its own digest
is a tag of the version, in MLflow's database, which nobody can change who can write only the files. Who keeps that
digest elsewhere needs to trust neither.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field

from yolofleet import __version__
from yolofleet.core.errors import UserError, is_installed
from yolofleet.core.file_names import TRAINING_FORM
from yolofleet.core.local_files import read_regular
from yolofleet.registry.evaluation_record import EvaluationRecord, Evidence, Sha256, write_detections
from yolofleet.registry.versions import RegistryError
from yolofleet.specs.base import Spec
from yolofleet.tracking.json_lines import utc_now

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector
    from yolofleet.evaluation.detector_package import DetectorCard
    from yolofleet.export.prediction_comparison import PredictionComparison
    from yolofleet.models.network import Network

PROOF_NAME = "proof.json"
DETECTIONS_NAME = "evaluation/detections.safetensors"
REPORT_NAME = "evaluation/report.html"
LINEAGE_FOLDER = "lineage"
FORMAT = 2
"""From 2 on, code and evidence lie in the archive of the version (`package`)."""
MOST_BYTES_OF_PROOF = 64_000_000
LATENCY_WARM_UP, LATENCY_REPETITIONS = 2, 10
FORM_TOLERANCE = 1e-4
"""Largest difference of raw predictions between training form and deployed form, as a share of their range."""


class FormError(UserError):
    """Two forms of a detector cannot be compared here."""


class Latency(Spec):
    """Time for one image where the version was registered; a note, because no other machine has to agree."""

    milliseconds: float
    """Median of single square images."""
    image_size: int
    device: str
    num_threads: int


class OnnxDifference(Spec):
    """The largest differences between torch and ONNX Runtime on random images."""

    box_pixels: float
    """In pixels of the network's input."""
    score: float


class Proof(Spec):
    """What `proof.json` holds."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    written: str
    """When, in UTC."""
    files: dict[str, Sha256]
    """The digest of every other file of the version by its path, those in its archive included."""
    evaluation: EvaluationRecord | None = Field(
        default=None, validation_alias="judgement", serialization_alias="judgement"
    )
    """What the deployed form is worth; None where it was not evaluated."""
    data: dict[str, Sha256] = Field(default_factory=dict)
    """Digest of the manifest of the data that it was trained on (``train``) and selected by (``val``)."""
    training_form_difference: float | None = None
    """Between deployed and training form, as a share of the range of the predictions; None without a training form."""
    onnx_files: dict[str, OnnxDifference | None] = Field(default_factory=dict)
    """Between torch and ONNX Runtime, by the path of the file; None where it could not be compared."""
    inference_code: str
    """Private name of the package of the inference code, which holds its digest."""
    yolofleet_version: str
    packages: dict[str, str]
    """Versions of the packages that computed all this."""
    latency: Latency


def write_evidence_files(folder: Path, evidence: Evidence) -> None:
    """Write detections, report and manifests into the folder of a version."""
    if evidence.evaluation is not None:
        write_detections(evidence.evaluation.detections, folder / DETECTIONS_NAME)
    files = {f"{LINEAGE_FOLDER}/{part}.json": manifest for part, manifest in evidence.manifests.items()}
    if evidence.report is not None:
        files[REPORT_NAME] = evidence.report
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def write_proof(
    folder: Path, detector_folder: str, detector: Detector, evidence: Evidence, *, inference_code: str
) -> None:
    """Write the proof of a version whose other files are all there.

    Args:
        folder: The folder of the version.
        detector_folder: The detector package in it.
        detector: The package, loaded.
        evidence: What is known of it.
        inference_code: Private name of its inference code.

    Raises:
        UserError: A training form or an ONNX file in the package computes something else than the package.
    """
    package = folder / detector_folder
    has_training_form = detector.card.deployed and (package / TRAINING_FORM).is_file()
    proof = Proof(
        written=utc_now(),
        files=file_digests(folder),
        evaluation=evidence.evaluation.record if evidence.evaluation is not None else None,
        data={part: hashlib.sha256(manifest).hexdigest() for part, manifest in sorted(evidence.manifests.items())},
        training_form_difference=training_form_difference(package, detector) if has_training_form else None,
        onnx_files={
            path.relative_to(folder).as_posix(): _onnx_difference(path, detector)
            for path in sorted(package.rglob("*.onnx"))
        },
        inference_code=inference_code,
        yolofleet_version=__version__,
        packages=installed_packages((folder / "requirements.txt").read_text().split()),
        latency=measure_latency(detector),
    )
    document = proof.model_dump(mode="json", by_alias=True)
    (folder / PROOF_NAME).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_proof(folder: Path) -> Proof:
    """Read the proof of a version.

    Raises:
        RegistryError: There is none, or it is damaged.
    """
    path = folder / PROOF_NAME
    try:
        document = json.loads(read_regular(path, MOST_BYTES_OF_PROOF))
    except OSError as error:
        raise RegistryError(
            f"there is no readable {PROOF_NAME} ({error.strerror}): the version was registered by something else, or "
            "by a yolofleet that wrote none; register it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{PROOF_NAME} is not JSON: {error}") from error
    return Proof.parse(document, source=PROOF_NAME)


def save_training_form(folder: Path, model: Network) -> None:
    """Store a model's weights in training form beside the deployed ones of a detector package."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / TRAINING_FORM)


def load_training_form(folder: Path, card: DetectorCard) -> Network | None:
    """Return the training form that lies beside the deployed weights of a detector package; None without one.

    Raises:
        UserError: It cannot be read, or is not that of the package's model.
    """
    from yolofleet.models import build_model
    from yolofleet.models.checkpoint_reader import open_checkpoint
    from yolofleet.models.weight_differences import load_strictly

    path = folder / TRAINING_FORM
    if not path.is_file():
        return None
    model = build_model(card.model, len(card.classes))
    state = open_checkpoint(path).weights
    load_strictly(model, {name: state[name] for name in state if not name.endswith("num_batches_tracked")})
    return model


def training_form_difference(folder: Path, detector: Detector) -> float:
    """Return by how much the deployed weights of a package differ from its training form, as a share of the range.

    Weights in half precision are compared with those of the training form, folded and rounded in the same way.

    Args:
        folder: The detector package; it holds the training form.
        detector: The package, loaded.

    Raises:
        UserError: The training form cannot be read, is not this model's, or computes something else.
    """
    from yolofleet.models.deployment import deployed_form, half_weights, has_half_weights, prove, random_images

    model = load_training_form(folder, detector.card)
    if model is None:
        raise UserError(f"{TRAINING_FORM} is missing")
    model.to(detector.device).eval()
    if has_half_weights(detector.model):  # what was folded and then rounded is compared with the same
        model = half_weights(deployed_form(model))
    return prove(model, detector.model, random_images(detector.model), FORM_TOLERANCE)


def compare_onnx(path: Path, detector: Detector) -> PredictionComparison:
    """Run an ONNX file beside torch, with or without NMS in it.

    Args:
        path: A file that `yolofleet export` made of this detector.
        detector: The same detector in torch.

    Raises:
        FormError: It cannot be compared: it is quantised, or onnxruntime is not installed.
        UserError: The file cannot be run, or was made of other weights.
    """
    if not is_installed("onnxruntime"):
        raise FormError("onnxruntime is not installed; pip install 'yolofleet[export]'")
    from yolofleet.export.runtime import OnnxNetwork
    from yolofleet.export.settings import InputShape, Thresholds
    from yolofleet.export.verification import random_batches, verify

    card = OnnxNetwork(path).card
    if card.weights_sha256 != detector.card.weights_sha256:
        raise UserError(f"{path.name} was made of other weights ({card.weights_sha256[:12]}...): export it again")
    if card.quantized:
        raise FormError(f"{path.name} is quantised: only its AP can be verified, not its numbers")
    shape = InputShape(batch=1, image_size=card.image_size, dynamic=card.dynamic)
    thresholds = Thresholds(**card.suppression.model_dump()) if card.suppression is not None else None
    return verify(path, "onnx", detector, thresholds, random_batches(shape, max(card.strides)))


def _onnx_difference(path: Path, detector: Detector) -> OnnxDifference | None:
    try:
        comparison = compare_onnx(path, detector)
    except FormError:
        return None
    if not comparison.equal:
        raise RegistryError(f"{path.name} does not compute what the detector does: {comparison}; export it again")
    return OnnxDifference(box_pixels=comparison.box_pixels, score=comparison.score)


def file_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a version except its proof, by path."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_sha256(path) for name, path in files.items() if name != PROOF_NAME}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_packages(requirements: list[str]) -> dict[str, str]:
    """Return the installed versions of the packages that a version requires, local labels (``+cpu``) left out."""
    names = sorted(requirement.partition("==")[0] for requirement in requirements)
    return {name: metadata.version(name).partition("+")[0] for name in names}


def measure_latency(detector: Detector) -> Latency:
    """Measure how long the detector takes for one image, on its device."""
    import torch

    from yolofleet.evaluation.detector import median_milliseconds

    size = detector.card.image_size
    milliseconds = median_milliseconds(
        detector.network, size, detector.device, warm_up=LATENCY_WARM_UP, repetitions=LATENCY_REPETITIONS
    )
    return Latency(
        milliseconds=round(milliseconds, 3),
        image_size=size,
        device=str(detector.device),
        num_threads=torch.get_num_threads(),
    )
