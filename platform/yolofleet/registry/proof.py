"""``proof.json``: what a version claims about itself, written when it is registered.

It names every file of the version by its digest, what the detector was worth and on which data, how far its forms lie
apart, and under which code and packages that was found. Its own digest is a tag of the version, in MLflow's database:
who can change the files of a version cannot change that, and who holds the digest on paper needs to trust neither.

The forms of one detector, compared on random images: as trained, as deployed, as ONNX Runtime runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.core.errors import UserError

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector
    from yolofleet.export.prediction_comparison import Comparison
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from yolofleet import __version__
from yolofleet.registry.evaluation_record import Judged, Judgement, Sha256, write_detections
from yolofleet.registry.versions import RegistryError
from yolofleet.specs.base import Spec
from yolofleet.tracking.run_directory import utc_now
from yolofleet.training.setup.pretrained import TRAINING_FORM

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector

FORM_TOLERANCE = 1e-4
"""Largest difference of raw predictions between training form and deployed form, as a share of their range."""


class FormError(UserError):
    """Two forms of a detector cannot be compared here."""


def training_form_difference(folder: Path, detector: Detector) -> float:
    """Return by how much the deployed weights of a package differ from its training form, as a share of the range.

    Args:
        folder: The detector package; it holds the training form.
        detector: The package, loaded.

    Raises:
        UserError: The training form cannot be read, is not this model's, or computes something else.
    """
    from yolofleet.models import build_model
    from yolofleet.models.deployment import prove, random_images
    from yolofleet.models.weights import read_checkpoint
    from yolofleet.training.checkpoint.run_state import load_strictly
    from yolofleet.training.setup.pretrained import TRAINING_FORM

    model = build_model(detector.card.model, len(detector.card.classes))
    state = read_checkpoint(folder / TRAINING_FORM)
    load_strictly(model, {name: state[name] for name in state if not name.endswith("num_batches_tracked")})
    model.to(detector.device).eval()
    return prove(model, detector.model, random_images(detector.model), FORM_TOLERANCE)


def onnx_comparison(path: Path, detector: Detector) -> Comparison:
    """Run an ONNX file beside torch, with suppression inside or without.

    Args:
        path: A file that `yolofleet export` made of this detector.
        detector: The same detector in torch.

    Raises:
        FormError: It cannot be compared: it is quantised, or onnxruntime is not installed.
        UserError: The file cannot be run, or was made of other weights.
    """
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        raise FormError("onnxruntime is not installed; pip install 'yolofleet[export]'")
    from yolofleet.export.runtime import OnnxNetwork
    from yolofleet.export.settings import InputShape, Thresholds
    from yolofleet.export.verification import random_batches, verify

    card = OnnxNetwork(path).card
    if card.weights_sha256 != detector.card.weights_sha256:
        raise UserError(f"{path.name} was made of other weights ({card.weights_sha256[:12]}...): export it again")
    if card.quantized:
        raise FormError(f"{path.name} is quantised: its AP tells what it is worth, not its numbers")
    shape = InputShape(batch=1, image_size=card.image_size, dynamic=card.dynamic)
    thresholds = Thresholds(**card.suppression.model_dump()) if card.suppression is not None else None
    return verify(path, "onnx", detector, thresholds, random_batches(shape, max(card.strides)))


PROOF_NAME = "proof.json"
DETECTIONS_NAME = "evaluation/detections.safetensors"
REPORT_NAME = "evaluation/report.html"
LINEAGE_FOLDER = "lineage"
FORMAT = 1
MOST_BYTES_OF_PROOF = 64_000_000
LATENCY_WARM_UP, LATENCY_REPETITIONS = 2, 10


class Latency(Spec):
    """How long one image took where the version was registered: a note, for no other machine has to agree."""

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

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    written: str
    """When, in UTC."""
    files: dict[str, Sha256]
    """The digest of every other file of the version, by its path."""
    judgement: Judgement | None = None
    """What the deployed form is worth; None where nobody has judged it."""
    data: dict[str, Sha256] = Field(default_factory=dict)
    """Digest of the manifest of the data that it was trained on (``train``) and chosen by (``val``)."""
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


@dataclass(frozen=True)
class Background:
    """What stands behind a proof besides the detector package.

    Attributes:
        judged: What it is worth, with its detections.
        manifests: The manifests of its data as they are stored, by ``train`` and ``val``.
        report: The page of its evaluation report.
    """

    judged: Judged | None = None
    manifests: Mapping[str, bytes] = field(default_factory=dict)
    report: bytes | None = None


def write_background(folder: Path, background: Background) -> None:
    """Put detections, report and manifests into the folder of a version."""
    if background.judged is not None:
        write_detections(background.judged.detections, folder / DETECTIONS_NAME)
    if background.report is not None:
        (folder / REPORT_NAME).parent.mkdir(exist_ok=True)
        (folder / REPORT_NAME).write_bytes(background.report)
    for part, manifest in background.manifests.items():
        path = folder / LINEAGE_FOLDER / f"{part}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(manifest)


def write_proof(
    folder: Path, detector_folder: str, detector: Detector, background: Background, *, inference_code: str
) -> Path:
    """Write the proof of a version whose other files are all there.

    Args:
        folder: The folder of the version.
        detector_folder: The detector package in it.
        detector: The package, loaded.
        background: What stands behind it.
        inference_code: Private name of its inference code.

    Raises:
        UserError: A training form or an ONNX file in the package computes something else than the package.
    """
    package = folder / detector_folder
    has_training_form = detector.card.deployed and (package / TRAINING_FORM).is_file()
    proof = Proof(
        written=utc_now(),
        files=file_digests(folder),
        judgement=background.judged.judgement if background.judged is not None else None,
        data={part: hashlib.sha256(manifest).hexdigest() for part, manifest in sorted(background.manifests.items())},
        training_form_difference=training_form_difference(package, detector) if has_training_form else None,
        onnx_files={
            path.relative_to(folder).as_posix(): _onnx_difference(path, detector)
            for path in sorted(package.rglob("*.onnx"))
        },
        inference_code=inference_code,
        yolofleet_version=__version__,
        packages=installed_packages((folder / "requirements.txt").read_text().split()),
        latency=measured_latency(detector),
    )
    path = folder / PROOF_NAME
    path.write_text(json.dumps(proof.model_dump(mode="json"), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path


def _onnx_difference(path: Path, detector: Detector) -> OnnxDifference | None:
    try:
        found = onnx_comparison(path, detector)
    except FormError:
        return None
    if not found.equal:
        raise RegistryError(f"{path.name} does not compute what the detector does: {found}; export it again")
    return OnnxDifference(box_pixels=found.box_pixels, score=found.score)


def read_proof(folder: Path) -> Proof:
    """Read the proof of a version.

    Raises:
        RegistryError: There is none, or it is damaged.
    """
    path = folder / PROOF_NAME
    try:
        if path.stat().st_size > MOST_BYTES_OF_PROOF:
            raise RegistryError(f"{PROOF_NAME} has {path.stat().st_size:,} bytes: it is no proof")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise RegistryError(
            f"there is no {PROOF_NAME} ({error.strerror}): the version was registered by something else, or by a "
            "yolofleet that wrote none; register it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{PROOF_NAME} is not JSON: {error}") from error
    return Proof.parse(document, source=PROOF_NAME)


def file_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a version except its proof, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    return {name: digest for name, digest in digests.items() if name != PROOF_NAME}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_packages(requirements: list[str]) -> dict[str, str]:
    """Return the installed versions of the packages that a version requires, local labels (``+cpu``) left out."""
    names = sorted(requirement.partition("==")[0] for requirement in requirements)
    return {name: metadata.version(name).partition("+")[0] for name in names}


def measured_latency(detector: Detector) -> Latency:
    """Measure how long the detector takes for one image, on its device."""
    import torch

    from yolofleet.evaluation.detector import median_milliseconds

    size = detector.card.image_size
    found = median_milliseconds(
        detector.network, size, detector.device, warm_up=LATENCY_WARM_UP, repetitions=LATENCY_REPETITIONS
    )
    return Latency(
        milliseconds=round(found, 3), image_size=size, device=str(detector.device), num_threads=torch.get_num_threads()
    )
