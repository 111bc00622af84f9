"""The claims of a proof, each redone: files, forms, code, packages, tags; for data and figures see `data_claims`.

A claim ends as passed, failed, or not possible: data that is gone, packages that are not installed here. What is not
possible never counts as passed. Files are read, never executed: the code that a version carries is compared, not run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import yaml

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.registry.package import DETECTOR_FOLDER, EVIDENCE_NAME, SERVED_MODULE, is_pickle
from yolofleet.registry.proof import (
    DETECTIONS_NAME,
    FORM_TOLERANCE,
    LINEAGE_FOLDER,
    REPORT_NAME,
    FormError,
    Latency,
    Proof,
    file_digests,
    onnx_comparison,
    training_form_difference,
)
from yolofleet.registry.versions import DIGEST_TAG, TAG_PREFIX, Version, fact_tags
from yolofleet.training.setup.pretrained import TRAINING_FORM

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector

Outcome = Literal["passed", "failed", "not possible", "note"]

MOST_NAMED = 5


FILE_KINDS: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "weights": lambda path: path.startswith(f"{DETECTOR_FOLDER}/") and path.endswith(".safetensors"),
        "spec": lambda path: path == f"{DETECTOR_FOLDER}/{DETECTOR_CARD_NAME}",
        "ONNX": lambda path: path.endswith(".onnx"),
        "inference code": lambda path: path.startswith("code/"),
        "evidence": lambda path: path == EVIDENCE_NAME,
        "detections": lambda path: path == DETECTIONS_NAME,
        "report": lambda path: path == REPORT_NAME,
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
        yield result_of(name, problems, f"{len(recorded)} file{'s' if len(recorded) > 1 else ''} as recorded")


def _kind(path: str) -> str:
    return next((name for name, belongs in FILE_KINDS.items() if belongs(path)), OTHER_FILES)


def pickle_claim(folder: Path) -> Claim:
    """Look for files that run code when they are read."""
    problems = [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file() and is_pickle(path)
    ]
    return result_of("no pickle", [f"{name} is a pickle or an archive of one" for name in problems], "none in any file")


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


def code_claim(folder: Path, proof: Proof) -> Claim:
    """Compare the inference code that the version carries with that of this yolofleet, letter by letter."""
    from yolofleet.registry.inference_code import collect_inference_code

    code = collect_inference_code(SERVED_MODULE)
    if code.package != proof.inference_code:
        detail = (
            f"written with {proof.inference_code} (yolofleet {proof.yolofleet_version}), this yolofleet has "
            f"{code.package}; the other claims were redone with this one"
        )
        return Claim("code version", "not possible", detail)
    own = {f"{code.package}/{name}": source.encode() for name, source in code.files.items()}
    root = folder / "code"
    carried = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    different = sorted(name for name in own.keys() | carried.keys() if own.get(name) != carried.get(name))
    problems = [f"code/{name} is not what yolofleet {proof.yolofleet_version} puts there" for name in different]
    if (loader := _loader_module(folder / "MLmodel")) != code.module(SERVED_MODULE):
        problems.append(f"MLmodel names {loader} to load the model, not {code.module(SERVED_MODULE)}")
    return result_of("code version", problems, f"yolofleet {proof.yolofleet_version}, {code.package}, letter by letter")


def _loader_module(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_bytes())["flavors"]["python_function"]["loader_module"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        return f"nothing ({type(error).__name__})"


def packages_claim(proof: Proof) -> Claim:
    """Compare the packages installed here with those that the proof was written under."""
    others = [
        f"{name} {_version_here(name)} (recorded {version})"
        for name, version in sorted(proof.packages.items())
        if _version_here(name) != version
    ]
    if others:
        detail = f"other versions are installed here: {', '.join(others[:MOST_NAMED])}"
        return Claim("package versions", "not possible", f"{detail}; the other claims were redone with these")
    return Claim("package versions", "passed", f"{len(proof.packages)} packages as recorded")


def tags_claim(folder: Path, version: Version) -> Claim:
    """Compare what MLflow tells of the version with the evidence that travels in it."""
    try:
        document = json.loads((folder / EVIDENCE_NAME).read_bytes())
        evidence = {key: value for key, value in document["evidence"].items() if key != "job"}
        recorded = {DIGEST_TAG: document["digest"], **fact_tags(evidence)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Claim("tags", "failed", f"{EVIDENCE_NAME} cannot be read: {error}")
    tags = {DIGEST_TAG: version.digest, **{TAG_PREFIX + name: value for name, value in version.facts.items()}}
    problems = [
        f"{name} is {_tag(tags.get(name))}, recorded is {_tag(recorded.get(name))}"
        for name in sorted(recorded.keys() | tags.keys())
        if tags.get(name) != recorded.get(name)
    ]
    return result_of("tags", problems, f"{len(recorded)} tags as recorded")


def _tag(value: str | None) -> str:
    return "missing" if value is None else f"{value:.60}"


def latency_note(recorded: Latency, here: Latency) -> Claim:
    """Tell the latency here and where the version was registered; they need not agree."""
    detail = f"{here.milliseconds:.1f} ms for an image of {here.image_size} px on {here.device} here"
    there = f"{recorded.milliseconds:.1f} ms on {recorded.device} where it was registered"
    return Claim("latency", "note", f"{detail}; {there}")


def _version_here(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "is missing"


def result_of(name: str, problems: list[str], done: str) -> Claim:
    """Return a claim that has failed if there is a problem, and else passed, with what was done."""
    if not problems:
        return Claim(name, "passed", done)
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return Claim(name, "failed", "; ".join(problems[:MOST_NAMED]) + more)
