"""The claims of a proof, each redone: files, forms, figures, data, code, packages.

A claim ends as passed, failed, or not possible: data that is gone, packages that are not installed here. What is not
possible never counts as passed. Files are read, never executed: the code that a version carries is compared, not run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from yolofleet.errors import UserError
from yolofleet.registry.forms import FORM_TOLERANCE, FormError, onnx_comparison, training_form_difference
from yolofleet.registry.judgement import Judged, judge, read_detections
from yolofleet.registry.package import DETECTOR_FOLDER, EVIDENCE_NAME, SERVED_MODULE
from yolofleet.registry.proof import DETECTIONS_NAME, LINEAGE_FOLDER, Latency, Proof, file_digests
from yolofleet.storage import StorageError
from yolofleet.training.initial import CARD_NAME, TRAINING_FORM

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.detector import Detector

Outcome = Literal["passed", "failed", "not possible", "note"]

AP_TOLERANCE = 0.001
"""How far a figure may be from the record: the order of sums differs between devices and batch sizes."""
CHECKED_FIGURES = ("AP", "AP50", "AP75", "AR_100")
"""The figures over all sizes; those of one size rest on few objects and jump with each."""
PICKLE_PROTOCOLS = b"\x02\x03\x04\x05"
MOST_NAMED = 5


FILE_KINDS: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "weights": lambda path: path.startswith(f"{DETECTOR_FOLDER}/") and path.endswith(".safetensors"),
        "spec": lambda path: path == f"{DETECTOR_FOLDER}/{CARD_NAME}",
        "ONNX": lambda path: path.endswith(".onnx"),
        "inference code": lambda path: path.startswith("code/"),
        "evidence": lambda path: path == EVIDENCE_NAME,
        "detections": lambda path: path == DETECTIONS_NAME,
        "data manifests": lambda path: path.startswith(f"{LINEAGE_FOLDER}/"),
    }
)
"""Which claim speaks of which files."""
OTHER_FILES = "other files"
"""The rest: MLflow's description of the model."""


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        name: What is claimed.
        outcome: passed, failed, not possible, or a note that nothing depends on.
        detail: What was found, and where it is not passed, what to do.
    """

    name: str
    outcome: Outcome
    detail: str


def file_claims(folder: Path, proof: Proof) -> Iterator[Claim]:
    """Compare every file with its recorded digest; a claim for each kind of file."""
    found = file_digests(folder)
    for name in (*FILE_KINDS, OTHER_FILES):
        recorded = {path: digest for path, digest in proof.files.items() if _kind(path) == name}
        present = {path: digest for path, digest in found.items() if _kind(path) == name}
        if not recorded and not present:
            continue
        problems = [
            *(f"{path} is missing" for path in sorted(recorded.keys() - present.keys())),
            *(f"{path} is not in the proof" for path in sorted(present.keys() - recorded.keys())),
            *(
                f"{path} has sha256 {present[path][:12]}..., recorded is {recorded[path][:12]}..."
                for path in sorted(recorded.keys() & present.keys())
                if recorded[path] != present[path]
            ),
        ]
        yield _claim(name, problems, f"{len(recorded)} file{'s' if len(recorded) > 1 else ''} as recorded")


def _kind(path: str) -> str:
    return next((name for name, belongs in FILE_KINDS.items() if belongs(path)), OTHER_FILES)


def pickle_claim(folder: Path) -> Claim:
    """Look for files that run code when they are read."""
    problems = [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file() and is_pickle(path)
    ]
    return _claim("no pickle", [f"{name} is a pickle or an archive of one" for name in problems], "none in any file")


def is_pickle(path: Path) -> bool:
    """Return whether a file is a pickle of protocol 2 or later, or a zip as torch.save writes it."""
    with path.open("rb") as file:
        head = file.read(2)
    return (len(head) == 2 and head[0] == 0x80 and head[1] in PICKLE_PROTOCOLS) or zipfile.is_zipfile(path)


def form_claims(folder: Path, proof: Proof, detector: Detector | None) -> Iterator[Claim]:
    """Compare the deployed form with the training form and with each ONNX file."""
    package = folder / DETECTOR_FOLDER
    if proof.training_form_difference is not None or (package / TRAINING_FORM).is_file():
        yield _compared("training form", detector, lambda loaded: _training_form(package, loaded))
    onnx_files = {*proof.onnx_files, *(path.relative_to(folder).as_posix() for path in package.rglob("*.onnx"))}
    for name in sorted(onnx_files):
        yield _compared(f"ONNX Runtime, {Path(name).name}", detector, partial(_onnx, folder / name))


def _training_form(package: Path, detector: Detector) -> tuple[bool, str]:
    difference = training_form_difference(package, detector)
    return True, f"differs by {difference:.2g} of the range of the predictions, allowed is {FORM_TOLERANCE:g}"


def _onnx(path: Path, detector: Detector) -> tuple[bool, str]:
    found = onnx_comparison(path, detector)
    return found.equal, str(found)


def _compared(name: str, detector: Detector | None, measure: Callable[[Detector], tuple[bool, str]]) -> Claim:
    if detector is None:
        return Claim(name, "not possible", "the detector does not load")
    try:
        equal, detail = measure(detector)
    except FormError as error:
        return Claim(name, "not possible", str(error))
    except UserError as error:
        return Claim(name, "failed", str(error))
    return Claim(name, "passed" if equal else "failed", detail)


def data_claim(part: str, digest: str, tagged: str | None, url: str | None) -> tuple[Claim, ShardDataset | None]:
    """Look whether data is still what it was; returns the dataset where it is.

    Args:
        part: ``train`` or ``val``.
        digest: Of its manifest, as the proof says.
        tagged: The same as the version's tag says, where it has one.
        url: Where it lay, or lies now.
    """
    from yolofleet.data.dataset import ShardDataset

    name = f"data, {part}"
    if tagged is not None and tagged != digest:
        return Claim(
            name, "failed", f"the version's tag says manifest {tagged:.12}..., the proof {digest[:12]}..."
        ), None
    if url is None:
        return Claim(name, "not possible", f"where it lay is not recorded; its manifest is {digest[:12]}..."), None
    try:
        dataset = ShardDataset(url)
    except (UserError, StorageError) as error:
        return Claim(name, "not possible", f"the data is gone: {error}"), None
    if dataset.manifest.digest != digest:
        other = dataset.manifest.digest[:12]
        return Claim(name, "not possible", f"{url} holds other data now: {other}..., not {digest[:12]}..."), None
    return Claim(name, "passed", f"{len(dataset):,} images at {url}, manifest {digest[:12]}..."), dataset


def ap_claim(
    proof: Proof, detector: Detector | None, dataset: ShardDataset | None, on_images: Callable[[int], None] | None
) -> tuple[Claim, Judged | None]:
    """Judge the deployed form anew, and compare the figures with the record."""
    recorded = proof.judgement
    if recorded is None:
        return Claim("AP", "not possible", "nobody has judged it: register it with --data DATA"), None
    if detector is None:
        return Claim("AP", "not possible", "the detector does not load"), None
    if dataset is None:
        return Claim(
            "AP", "not possible", "there is no validation set to judge on; name a copy of it with --data"
        ), None
    try:
        found = judge(detector, dataset, recorded.settings, on_images)
    except UserError as error:
        return Claim("AP", "failed", str(error)), None
    problems = [
        f"{name} is {_shown(found.judgement.figures[name])}, recorded is {_shown(recorded.figures.get(name))}"
        for name in CHECKED_FIGURES
        if not _near(found.judgement.figures[name], recorded.figures.get(name))
    ]
    shown = ", ".join(f"{name} {_shown(found.judgement.figures[name])}" for name in CHECKED_FIGURES[:2])
    done = f"{shown} on {found.judgement.num_images} images, as recorded within {AP_TOLERANCE:g}"
    return _claim("AP", [f"{problem} (tolerance {AP_TOLERANCE:g})" for problem in problems], done), found


def detections_claim(folder: Path, found: Judged | None) -> Claim | None:
    """Compare the detections that travel with the version with those found anew; None where none travel."""
    if not (folder / DETECTIONS_NAME).is_file():
        return None
    if found is None:
        return Claim("recorded detections", "not possible", "the detector could not be judged anew")
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.average_precision import coco_average_precision

    try:
        recorded = read_detections(folder / DETECTIONS_NAME)
        truth = ShardDataset(found.judgement.data).annotations()
        figures = coco_average_precision(truth, recorded).figures
    except UserError as error:
        return Claim("recorded detections", "failed", str(error))
    problems = [
        f"they give {name} {_shown(figures[name])}, the detector gives {_shown(found.judgement.figures[name])}"
        for name in CHECKED_FIGURES
        if not _near(figures[name], found.judgement.figures[name])
    ]
    return _claim("recorded detections", problems, f"{len(recorded):,} boxes give the same figures")


def environment_claims(proof: Proof) -> Iterator[Claim]:
    """Compare code and packages here with those that the proof was written under."""
    from yolofleet.registry.inference_code import collect_inference_code

    here = collect_inference_code(SERVED_MODULE).package
    if here == proof.inference_code:
        yield Claim("code version", "passed", f"yolofleet {proof.yolofleet_version}, {here}")
    else:
        detail = f"written with {proof.inference_code} (yolofleet {proof.yolofleet_version}), this yolofleet has {here}"
        yield Claim("code version", "not possible", f"{detail}; the other claims were redone with this one")
    others = [
        f"{name} {_version_here(name)} (recorded {version})"
        for name, version in sorted(proof.packages.items())
        if _version_here(name) != version
    ]
    if others:
        detail = f"other versions are installed here: {', '.join(others[:MOST_NAMED])}"
        yield Claim("package versions", "not possible", f"{detail}; the other claims were redone with these")
    else:
        yield Claim("package versions", "passed", f"{len(proof.packages)} packages as recorded")


def latency_note(recorded: Latency, here: Latency) -> Claim:
    """Tell the latency here and where the version was registered; they need not agree."""
    detail = f"{here.milliseconds:.1f} ms for a picture of {here.image_size} px on {here.device} here"
    there = f"{recorded.milliseconds:.1f} ms on {recorded.device} where it was registered"
    return Claim("latency", "note", f"{detail}; {there}")


def _version_here(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "is missing"


def _claim(name: str, problems: list[str], done: str) -> Claim:
    if not problems:
        return Claim(name, "passed", done)
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return Claim(name, "failed", "; ".join(problems[:MOST_NAMED]) + more)


def _near(found: float | None, recorded: float | None) -> bool:
    if found is None or recorded is None:
        return found is recorded
    return abs(found - recorded) <= AP_TOLERANCE


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
