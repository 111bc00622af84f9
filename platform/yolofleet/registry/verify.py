"""Redoing what a registered version claims about itself.

What the verdict rests on: every file is held by the proof's digests, the proof by its own digest. That one is a tag of
the version in MLflow's database. Who can write both the files and the tags can forge all digests, but not what the
weights are worth: the figures are taken anew from the data. Who could forge the data and the figures, too, is found out
only by a digest of the proof that was kept elsewhere (``expected_proof_sha256``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolofleet.core.errors import UserError
from yolofleet.registry.claims import (
    Claim,
    code_claim,
    file_claims,
    form_claims,
    latency_note,
    packages_claim,
    pickle_claim,
    tags_claim,
)
from yolofleet.registry.data_claims import ap_claim, data_claim, detections_claim
from yolofleet.registry.evaluation_record import Judged
from yolofleet.registry.package import DETECTOR_FOLDER
from yolofleet.registry.proof import PROOF_NAME, Latency, Proof, file_sha256, measured_latency, read_proof
from yolofleet.registry.version_files import version_files
from yolofleet.registry.versions import RegistryError, Version

if TYPE_CHECKING:
    import torch

    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.detector import Detector


@dataclass(frozen=True)
class Verification:
    """What became of the claims of a version.

    Attributes:
        version: The version.
        claims: Each claim.
        judged: What the detector was found to be worth, where it could be judged.
        latency: Measured here, where the detector loads.
        trained_on: Digest of the manifest of its training data, if that manifest travels in the version.
    """

    version: Version
    claims: tuple[Claim, ...]
    judged: Judged | None = field(default=None, repr=False)
    latency: Latency | None = None
    trained_on: str | None = None

    def named(self, outcome: str) -> list[Claim]:
        """Return the claims that ended so."""
        return [claim for claim in self.claims if claim.outcome == outcome]

    @property
    def verdict(self) -> Literal["passed", "failed", "incomplete"]:
        """Failed if any claim failed, incomplete if some could not be redone."""
        if self.named("failed"):
            return "failed"
        return "incomplete" if self.named("not possible") else "passed"

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
    """Redo every claim of a version; nothing that it carries is executed.

    Args:
        tracking_uri: The MLflow server or database.
        version: The version.
        device: Where to compute.
        data: Where the validation set lies now; by default where it lay. It must be the very same data.
        expected_proof_sha256: Digest of the proof as the caller knows it from elsewhere.
        on_images: Told how many images were judged, each time some are.

    Raises:
        RegistryError: The version's files cannot be had.
        TrackingError: MLflow does not answer.
    """
    with version_files(tracking_uri, version) as folder:
        anchor = _anchor_claim(folder, version, expected_proof_sha256)
        try:
            proof = read_proof(folder)
        except UserError as error:
            return Verification(version, (Claim("proof", "failed", str(error)), pickle_claim(folder)))
        return _redone(folder, version, proof, anchor, device, data, on_images)


def _redone(
    folder: Path,
    version: Version,
    proof: Proof,
    anchor: Claim,
    device: torch.device | str,
    data: str | None,
    on_images: Callable[[int], None] | None,
) -> Verification:
    from yolofleet.export.runtime import NETWORK_NAME

    claims = [anchor, *file_claims(folder, proof), pickle_claim(folder), tags_claim(folder, version)]
    loads, detector = _loads(folder, device)
    claims += [loads, *form_claims(folder, proof, detector)]
    dataset: ShardDataset | None = None
    for part, digest in _data_digests(version, proof).items():
        claim, found = data_claim(part, digest, version.facts.get(f"data.{part}"), _url_of(part, version, proof, data))
        claims.append(claim)
        dataset = found if part == "val" else dataset
    ap, judged = ap_claim("AP", proof, detector, dataset, on_images)
    claims.append(ap)
    if (recorded := detections_claim(folder, proof, judged)) is not None:
        claims.append(recorded)
    in_onnx_runtime = _in_onnx_runtime(folder) if detector is not None else None
    if in_onnx_runtime is not None:
        claims.append(ap_claim(f"AP, {NETWORK_NAME}", proof, in_onnx_runtime, dataset, on_images)[0])
    claims += [code_claim(folder, proof), packages_claim(proof)]
    latency = None
    if detector is not None:
        on_cpu = detector.device.type == "cpu"
        latency = measured_latency(in_onnx_runtime if on_cpu and in_onnx_runtime is not None else detector)
        claims.append(latency_note(proof.latency, latency))
    return Verification(version, tuple(claims), judged, latency, proof.data.get("train"))


def _anchor_claim(folder: Path, version: Version, expected: str | None) -> Claim:
    path = folder / PROOF_NAME
    if not path.is_file():
        return Claim("proof", "failed", f"there is no {PROOF_NAME}")
    found = file_sha256(path)
    for known, where in ((expected, "you expect"), (version.proof_sha256, "the version's tag says")):
        if known is not None and known != found:
            return Claim("proof", "failed", f"{PROOF_NAME} has sha256 {found}, {where} {known}")
    if version.proof_sha256 is None:
        return Claim("proof", "failed", f"the version has no tag with the digest of its {PROOF_NAME}")
    return Claim("proof", "passed", f"{PROOF_NAME} is what the version's tag names, sha256 {found}")


def _loads(folder: Path, device: torch.device | str) -> tuple[Claim, Detector | None]:
    from yolofleet.evaluation.detector import Detector

    try:
        detector = Detector.load(folder / DETECTOR_FOLDER, device)
    except UserError as error:
        reason = str(error).replace(f"{folder}/", "")
        return Claim("detector", "failed", reason), None
    card = detector.card
    form = "deployed" if card.deployed else "training"
    return Claim("detector", "passed", f"{card.model.name}, {len(card.classes)} classes, {form} form"), detector


def _in_onnx_runtime(folder: Path) -> Detector | None:
    """Return the detector as it predicts on CPUs, if it does so in ONNX Runtime."""
    from yolofleet.export.runtime import NETWORK_NAME, OnnxNetwork, load_detector

    if not (folder / DETECTOR_FOLDER / NETWORK_NAME).is_file():
        return None
    detector = load_detector(folder / DETECTOR_FOLDER)
    return detector if isinstance(detector.network, OnnxNetwork) else None


def _data_digests(version: Version, proof: Proof) -> dict[str, str]:
    """Return the manifest digests of the data, from the manifests that travel along or else from the tags."""
    tagged = {part: version.facts[f"data.{part}"] for part in ("train", "val") if f"data.{part}" in version.facts}
    judged = {"val": proof.judgement.manifest_sha256} if proof.judgement is not None else {}
    return {**tagged, **proof.data, **judged}


def _url_of(part: str, version: Version, proof: Proof, data: str | None) -> str | None:
    if part == "val" and (data is not None or proof.judgement is not None):
        return data or (proof.judgement.data if proof.judgement is not None else None)
    return version.facts.get(f"data_url.{part}")


def check_sha256(text: str | None) -> str | None:
    """Return a digest that a user gave.

    Raises:
        RegistryError: It is none.
    """
    if text is not None and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        raise RegistryError(
            f"{text!r:.80} is no sha256: 64 hexadecimal digits, as `yolofleet registry show` prints them"
        )
    return text
