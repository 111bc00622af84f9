"""Verifying a registered version: every claim of its proof is redone.

Every file is checked against the proof's digests, and the proof against its own digest, which is a tag of the version
in MLflow's database. Who can write both the files and the tags can forge all digests, but not the AP of other weights:
the figures are measured again on the data (`ap_claim`). Who can forge the data and the figures too is detected only by
a digest of the proof that was kept elsewhere (``expected_proof_sha256``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.models.network import Network
from yolofleet.registry.claims import (
    Claim,
    Outcome,
    claim_of,
    code_claim,
    data_claim,
    file_claims,
    form_claims,
    latency_note,
    packages_claim,
    pickle_claim,
    tags_claim,
)
from yolofleet.registry.evaluation_record import Evaluation, evaluate_detector, read_detections
from yolofleet.registry.package import DETECTOR_FOLDER
from yolofleet.registry.proof import (
    DETECTIONS_NAME,
    PROOF_NAME,
    Latency,
    Proof,
    file_sha256,
    load_training_form,
    measure_latency,
    read_proof,
)
from yolofleet.registry.version_files import version_files
from yolofleet.registry.versions import RegistryError, Version
from yolofleet.storage import StorageError

if TYPE_CHECKING:
    import torch

    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.detector import Detector

AP_TOLERANCE = 0.001
"""How far a figure may be from the record: the order of sums differs between devices and batch sizes."""
CHECKED_FIGURES = ("AP", "AP50", "AP75", "AR_100")
"""The figures over all sizes; those of one size rest on few objects and jump with each."""


@dataclass(frozen=True)
class Verification:
    """The outcome of every claim of a version, and what was measured on the way."""

    version: Version
    claims: tuple[Claim, ...]
    evaluation: Evaluation | None = field(default=None, repr=False)
    latency: Latency | None = None
    trained_on: str | None = None
    """Digest of the manifest of its training data, if that manifest is in the version."""

    def with_outcome(self, outcome: Outcome) -> list[Claim]:
        """Return the claims that have an outcome."""
        return [claim for claim in self.claims if claim.outcome == outcome]

    @property
    def verdict(self) -> Literal["passed", "failed", "incomplete"]:
        """Failed if any claim failed, incomplete if some could not be redone."""
        if self.with_outcome("failed"):
            return "failed"
        return "incomplete" if self.with_outcome("not possible") else "passed"

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "uri": self.version.uri,
            "verdict": self.verdict,
            "proof_sha256": self.version.proof_sha256,
            "claims": [asdict(claim) for claim in self.claims],
        }


def verify(
    tracking_uri: str,
    version: Version,
    device: torch.device | str = "cpu",
    *,
    data: str | None = None,
    expected_proof_sha256: str | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Verification:
    """Redo every claim of a version; nothing in its files is executed.

    Args:
        tracking_uri: The MLflow server or database.
        version: The version.
        device: Where to compute.
        data: Where the validation set is now; by default where it was. It must be the very same data.
        expected_proof_sha256: Digest of the proof as the caller knows it from elsewhere.
        on_images: Called with a number of images each time that some were evaluated.

    Raises:
        RegistryError: The version's files cannot be read.
        TrackingError: MLflow does not answer.
    """
    with version_files(tracking_uri, version) as folder:
        proof_claim = _proof_claim(folder, version, expected_proof_sha256)
        try:
            proof = read_proof(folder)
        except UserError as error:
            return Verification(version, (Claim("proof", "failed", str(error)), pickle_claim(folder)))
        return _verify_files(folder, version, proof, proof_claim, device, data, on_images)


def _verify_files(
    folder: Path,
    version: Version,
    proof: Proof,
    proof_claim: Claim,
    device: torch.device | str,
    data: str | None,
    on_images: Callable[[int], None] | None,
) -> Verification:
    from yolofleet.export.runtime import NETWORK_NAME

    claims = [proof_claim, *file_claims(folder, proof, version), pickle_claim(folder), tags_claim(folder, version)]
    load_claim, detector = _load_claim(folder, device)
    claims += [load_claim, *form_claims(folder, proof, detector)]
    datasets: dict[str, ShardDataset | None] = {}
    for part, digest in _data_digests(version, proof).items():
        url = _data_url(part, version, proof, data)
        claim, datasets[part] = data_claim(part, digest, version.facts.get(f"data.{part}"), url)
        claims.append(claim)
    ap, evaluation = ap_claim("AP", proof, detector, datasets.get("val"), on_images)
    claims.append(ap)
    if proof.evaluation is not None and proof.evaluation.unrounded_figures is not None:
        claims.append(unrounded_claim(folder, proof, detector, datasets.get("val"), on_images))
    if (folder / DETECTIONS_NAME).is_file():
        claims.append(detections_claim(folder, proof, evaluation))
    in_onnx_runtime = _onnx_runtime_detector(folder) if detector is not None else None
    if in_onnx_runtime is not None:
        claims.append(ap_claim(f"AP, {NETWORK_NAME}", proof, in_onnx_runtime, datasets.get("val"), on_images)[0])
    claims += [code_claim(folder, proof), packages_claim(proof)]
    latency = None
    if detector is not None:
        on_cpu = detector.device.type == "cpu"
        latency = measure_latency(in_onnx_runtime if on_cpu and in_onnx_runtime is not None else detector)
        claims.append(latency_note(proof.latency, latency))
    return Verification(version, tuple(claims), evaluation, latency, proof.data.get("train"))


def _proof_claim(folder: Path, version: Version, expected: str | None) -> Claim:
    path = folder / PROOF_NAME
    if not path.is_file():
        return Claim("proof", "failed", f"there is no {PROOF_NAME}")
    sha256 = file_sha256(path)
    for known, where in ((expected, "you expect"), (version.proof_sha256, "the version's tag says")):
        if known is not None and known != sha256:
            return Claim("proof", "failed", f"{PROOF_NAME} has sha256 {sha256}, {where} {known}")
    if version.proof_sha256 is None:
        return Claim("proof", "failed", f"the version has no tag with the digest of its {PROOF_NAME}")
    return Claim("proof", "passed", f"{PROOF_NAME} is what the version's tag names, sha256 {sha256}")


def _load_claim(folder: Path, device: torch.device | str) -> tuple[Claim, Detector | None]:
    from yolofleet.evaluation.detector import Detector

    try:
        detector = Detector.load(folder / DETECTOR_FOLDER, device)
    except UserError as error:
        return Claim("detector", "failed", str(error).replace(f"{folder}/", "")), None
    card = detector.card
    form = "deployed" if card.deployed else "training"
    seen = f"{card.model.name}, {plural(len(card.classes), 'class')}, {form} form"
    return Claim("detector", "passed", seen), detector


def _onnx_runtime_detector(folder: Path) -> Detector | None:
    """Return the detector as it predicts on CPUs, if it does so in ONNX Runtime."""
    from yolofleet.export.runtime import NETWORK_NAME, OnnxNetwork, load_detector

    if not (folder / DETECTOR_FOLDER / NETWORK_NAME).is_file():
        return None
    detector = load_detector(folder / DETECTOR_FOLDER)
    return detector if isinstance(detector.network, OnnxNetwork) else None


def _data_digests(version: Version, proof: Proof) -> dict[str, str]:
    """Return the manifest digests of the data: from the manifests in the version, or else from its tags."""
    tagged = {part: version.facts[f"data.{part}"] for part in ("train", "val") if f"data.{part}" in version.facts}
    evaluated = {"val": proof.evaluation.manifest_sha256} if proof.evaluation is not None else {}
    return {**tagged, **proof.data, **evaluated}


def _data_url(part: str, version: Version, proof: Proof, data: str | None) -> str | None:
    if part == "val" and (data is not None or proof.evaluation is not None):
        return data or (proof.evaluation.data if proof.evaluation is not None else None)
    return version.facts.get(f"data_url.{part}")


def ap_claim(
    name: str,
    proof: Proof,
    detector: Detector | None,
    dataset: ShardDataset | None,
    on_images: Callable[[int], None] | None,
) -> tuple[Claim, Evaluation | None]:
    """Evaluate a detector again, and compare the figures with the recorded ones."""
    recorded = proof.evaluation
    if recorded is None:
        return Claim(name, "not possible", "it was never evaluated: register it with --data DATA"), None
    if detector is None:
        return Claim(name, "not possible", "the detector does not load"), None
    if dataset is None:
        detail = "there is no validation set to evaluate on; name a copy of it with --data"
        return Claim(name, "not possible", detail), None
    settings = recorded.settings
    if not isinstance(detector.network, Network):
        settings = settings.model_copy(update={"precision": "fp32"})  # all that an ONNX file computes in
    try:
        evaluation = evaluate_detector(detector, dataset, settings, on_images)
    except StorageError as error:
        return Claim(name, "not possible", f"the data is gone: {error}"), None
    except UserError as error:
        return Claim(name, "failed", str(error)), None
    figures = evaluation.record.figures
    problems = [
        f"{figure} is {_format_figure(figures[figure])}, recorded is {_format_figure(recorded.figures.get(figure))} "
        f"(tolerance {AP_TOLERANCE:g})"
        for figure in CHECKED_FIGURES
        if not _is_near(figures[figure], recorded.figures.get(figure))
    ]
    shown = ", ".join(f"{figure} {_format_figure(figures[figure])}" for figure in CHECKED_FIGURES[:2])
    done = f"{shown} on {plural(evaluation.record.num_images, 'image')}, as recorded within {AP_TOLERANCE:g}"
    if settings.protocol != "square":
        done += f", by the {settings.protocol} protocol in {settings.precision}"
    return claim_of(name, problems, done), evaluation


def unrounded_claim(
    folder: Path,
    proof: Proof,
    detector: Detector | None,
    dataset: ShardDataset | None,
    on_images: Callable[[int], None] | None,
) -> Claim:
    """Evaluate the training form, deployed anew but not rounded, of a detector in half precision."""
    from yolofleet.models import deploy

    name = "AP before rounding"
    model = None
    try:
        if detector is not None:
            model = load_training_form(folder / DETECTOR_FOLDER, detector.card)
    except UserError as error:
        return Claim(name, "failed", str(error))
    if proof.evaluation is None or detector is None or model is None:
        return Claim(name, "not possible", "the version has no training form that loads")
    whole = deploy(model.eval()).to(detector.device)
    record = proof.evaluation.model_copy(update={"figures": proof.evaluation.unrounded_figures})
    claimed = proof.model_copy(update={"evaluation": record})
    return ap_claim(name, claimed, replace(detector, model=whole, network=whole), dataset, on_images)[0]


def detections_claim(folder: Path, proof: Proof, evaluation: Evaluation | None) -> Claim:
    """Compute the figures of the detections in a version with pycocotools.

    They must be exactly the recorded figures, and nearly those of the evaluation made here.
    """
    name = "recorded detections"
    if evaluation is None or proof.evaluation is None:
        return Claim(name, "not possible", "the detector could not be evaluated again")
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.reference_ap import reference_average_precision, reference_differences, reference_name

    try:
        recorded = read_detections(folder / DETECTIONS_NAME)
        figures = reference_average_precision(ShardDataset(evaluation.record.data).annotations(), recorded)
    except UserError as error:
        return Claim(name, "failed", str(error))
    evaluated = evaluation.record.figures
    problems = reference_differences(proof.evaluation.figures, figures) + [
        f"they give {figure} {_format_figure(figures[figure])}, the detector gives {_format_figure(evaluated[figure])}"
        for figure in CHECKED_FIGURES
        if not _is_near(figures[figure], evaluated[figure])
    ]
    boxes_give = plural(len(recorded), "box gives", "boxes give")
    return claim_of(name, problems, f"{boxes_give} the same figures, by {reference_name()}")


def _is_near(figure: float | None, recorded: float | None) -> bool:
    if figure is None or recorded is None:
        return figure is recorded
    return abs(figure - recorded) <= AP_TOLERANCE


def _format_figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def check_sha256(text: str | None) -> None:
    """Raise `RegistryError` for a text of a user that is not a sha256."""
    if text is not None and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        raise RegistryError(
            f"{text!r:.80} is not a sha256: 64 hexadecimal digits, as proof_sha256 of `registry verify --json`"
        )
