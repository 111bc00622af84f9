"""The claims of a proof about files, forms, code, packages, tags and data; for the AP see `verify`.

A claim ends as passed, failed, or not possible, because data is gone, say, or a package is not installed here. What is
not possible never counts as passed. Files are read, never executed: the code in a version is compared, not run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import yaml

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import DETECTOR_CARD_NAME, TRAINING_FORM
from yolofleet.core.local_files import read_regular
from yolofleet.core.text import and_more, plural
from yolofleet.registry.package import (
    ARCHIVE_NAME,
    ARCHIVED,
    CODE_FOLDER,
    CODE_IN_ARCHIVE,
    DETECTOR_FOLDER,
    EVIDENCE_NAME,
    SERVED_MODULE,
    is_pickle,
    is_plain_archive,
)
from yolofleet.registry.proof import (
    DETECTIONS_NAME,
    FORM_TOLERANCE,
    LINEAGE_FOLDER,
    REPORT_NAME,
    FormError,
    Latency,
    Proof,
    compare_onnx,
    file_digests,
    training_form_difference,
)
from yolofleet.registry.versions import DIGEST_TAG, TAG_PREFIX, Version, fact_tags, is_tagged
from yolofleet.specs.yaml_document import read_yaml

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.detector import Detector

Outcome = Literal["passed", "failed", "not possible", "note"]

MOST_NAMED = 5
MOST_BYTES = 16_000_000
"""Of the evidence, and of MLflow's description of the model."""
MLFLOW_NAME = "registered_model_meta"
"""MLflow writes it beside the files of a version in a local folder, each time that it loads it."""

FILE_KINDS: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "weights": lambda path: path.startswith(f"{DETECTOR_FOLDER}/") and path.endswith(".safetensors"),
        "spec": lambda path: path == f"{DETECTOR_FOLDER}/{DETECTOR_CARD_NAME}",
        "ONNX": lambda path: path.endswith(".onnx"),
        "inference code": lambda path: path.startswith(f"{CODE_FOLDER}/"),
        "evidence": lambda path: path == EVIDENCE_NAME,
        "detections": lambda path: path == DETECTIONS_NAME,
        "report": lambda path: path == REPORT_NAME,
        "data manifests": lambda path: path.startswith(f"{LINEAGE_FOLDER}/"),
    }
)
"""The kind of a file by its path; each kind is a claim."""
OTHER_FILES = "other files"
"""The rest: MLflow's description of the model, and the archive as a whole."""


@dataclass(frozen=True)
class Claim:
    """One claim and its outcome; a note is neither passed nor failed."""

    name: str
    outcome: Outcome
    detail: str
    """What was measured, and the cure where it has not passed."""


def file_claims(folder: Path, proof: Proof, version: Version) -> Iterator[Claim]:
    """Compare every file with its recorded digest; a claim for each kind of file."""
    digests = file_digests(folder)
    is_damaged = ARCHIVE_NAME in digests and not is_plain_archive(folder / ARCHIVE_NAME)
    archived = f", for {ARCHIVE_NAME} is not as yolofleet writes it" if is_damaged else ""
    if MLFLOW_NAME not in proof.files and digests.get(MLFLOW_NAME) in _mlflow_digests(version):
        del digests[MLFLOW_NAME]
    for kind in (*FILE_KINDS, OTHER_FILES):
        recorded = {path: digest for path, digest in proof.files.items() if _kind(path) == kind}
        present = {path: digest for path, digest in digests.items() if _kind(path) == kind}
        problems = [
            *(
                f"{path} is missing{archived if ARCHIVED.fullmatch(path) else ''}"
                for path in sorted(recorded.keys() - present.keys())
            ),
            *(f"{path} is not in the proof" for path in sorted(present.keys() - recorded.keys())),
            *(
                f"{path} has sha256 {present[path][:12]}..., recorded is {recorded[path][:12]}..."
                for path in sorted(recorded.keys() & present.keys())
                if recorded[path] != present[path]
            ),
        ]
        if recorded or present:
            yield claim_of(kind, problems, f"{plural(len(recorded), 'file')} as recorded")


def _mlflow_digests(version: Version) -> set[str]:
    """Return the digests of what MLflow may write as `MLFLOW_NAME`: the version, as a text or as a number."""
    names = ({"model_name": version.name, "model_version": number} for number in (version.number, str(version.number)))
    texts = (yaml.safe_dump(name, default_flow_style=False, allow_unicode=True) for name in names)
    return {hashlib.sha256(text.encode()).hexdigest() for text in texts}


def _kind(path: str) -> str:
    return next((kind for kind, belongs in FILE_KINDS.items() if belongs(path)), OTHER_FILES)


def pickle_claim(folder: Path) -> Claim:
    """Look for files that run code when they are read."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    archive = folder / ARCHIVE_NAME
    pickles = [path for path in files if is_pickle(path) and not (path == archive and is_plain_archive(path))]
    problems = [f"{path.relative_to(folder).as_posix()} is a pickle or an archive of one" for path in pickles]
    return claim_of("no pickle", problems, "none in any file")


def form_claims(folder: Path, proof: Proof, detector: Detector | None) -> Iterator[Claim]:
    """Compare the deployed form with the training form and with each ONNX file."""
    package = folder / DETECTOR_FOLDER
    if proof.training_form_difference is not None or (package / TRAINING_FORM).is_file():
        yield _form_claim("training form", detector, lambda loaded: _compare_training_form(package, loaded))
    onnx_files = {*proof.onnx_files, *(path.relative_to(folder).as_posix() for path in package.rglob("*.onnx"))}
    for name in sorted(onnx_files):
        yield _form_claim(f"ONNX Runtime, {Path(name).name}", detector, partial(_compare_onnx, folder / name))


def _compare_training_form(package: Path, detector: Detector) -> tuple[bool, str]:
    difference = training_form_difference(package, detector)
    return True, f"differs by {difference:.2g} of the range of the predictions, allowed is {FORM_TOLERANCE:g}"


def _compare_onnx(path: Path, detector: Detector) -> tuple[bool, str]:
    comparison = compare_onnx(path, detector)
    return comparison.equal, str(comparison)


def _form_claim(name: str, detector: Detector | None, compare: Callable[[Detector], tuple[bool, str]]) -> Claim:
    if detector is None:
        return Claim(name, "not possible", "the detector does not load")
    try:
        equal, detail = compare(detector)
    except FormError as error:
        return Claim(name, "not possible", str(error))
    except UserError as error:
        return Claim(name, "failed", str(error))
    return Claim(name, "passed" if equal else "failed", detail)


def code_claim(folder: Path, proof: Proof) -> Claim:
    """Compare the inference code in the version with that of this yolofleet, letter by letter."""
    from yolofleet.registry.inference_code import collect_inference_code

    code = collect_inference_code(SERVED_MODULE)
    if code.package != proof.inference_code:
        detail = (
            f"written with {proof.inference_code} (yolofleet {proof.yolofleet_version}), this yolofleet has "
            f"{code.package}; the other claims were verified with this one"
        )
        return Claim("code version", "not possible", detail)
    own = {
        f"{CODE_FOLDER}/{code.package}/{name}": hashlib.sha256(source.encode()).hexdigest()
        for name, source in code.files.items()
    }
    carried = {name: digest for name, digest in file_digests(folder).items() if name.startswith(f"{CODE_FOLDER}/")}
    different = sorted(name for name in own.keys() | carried.keys() if own.get(name) != carried.get(name))
    problems = [f"{name} is not what yolofleet {proof.yolofleet_version} puts there" for name in different]
    loaded = {
        "loader_module": code.module(SERVED_MODULE),
        "code": CODE_FOLDER if proof.format == 1 else CODE_IN_ARCHIVE,
        "data": DETECTOR_FOLDER,
    }
    described = _python_function(folder / "MLmodel")
    problems += [
        f"MLmodel names {described.get(key)!r:.80} as the {key} of the model, not {value}"
        for key, value in loaded.items()
        if described.get(key) != value
    ]
    return claim_of("code version", problems, f"yolofleet {proof.yolofleet_version}, {code.package}, letter by letter")


def _python_function(path: Path) -> dict[str, Any]:
    """Return how MLflow loads the model; nothing where the file does not say it."""
    try:
        return dict(read_yaml(path)["flavors"]["python_function"])
    except (UserError, KeyError, TypeError, ValueError):
        return {}


def packages_claim(proof: Proof) -> Claim:
    """Compare the packages installed here with those recorded in the proof."""
    others = [
        f"{name} {_version_here(name)} (recorded {version})"
        for name, version in sorted(proof.packages.items())
        if _version_here(name) != version
    ]
    if others:
        detail = f"other versions are installed here: {', '.join(others[:MOST_NAMED])}"
        return Claim("package versions", "not possible", f"{detail}; the other claims were verified with these")
    return Claim("package versions", "passed", f"{plural(len(proof.packages), 'package')} as recorded")


def tags_claim(folder: Path, version: Version) -> Claim:
    """Compare the tags of the version in MLflow with the evidence in its files."""
    try:
        document = json.loads(read_regular(folder / EVIDENCE_NAME, MOST_BYTES))
        evidence = {key: value for key, value in document["evidence"].items() if key != "job"}
        recorded = {DIGEST_TAG: document["digest"], **fact_tags(evidence)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Claim("tags", "failed", f"{EVIDENCE_NAME} cannot be read: {error}")
    tags = {DIGEST_TAG: version.digest, **{TAG_PREFIX + name: value for name, value in version.facts.items()}}
    problems = [
        f"{name} is {_format_tag(tags.get(name))}, recorded is {_format_tag(recorded.get(name))}"
        for name in sorted(recorded.keys() | tags.keys())
        if tags.get(name) != recorded.get(name)
        and (name in tags or is_tagged(name.removeprefix(TAG_PREFIX), recorded[name]))
    ]
    return claim_of("tags", problems, f"{plural(len(recorded), 'tag')} as recorded")


def _format_tag(value: str | None) -> str:
    return "missing" if value is None else f"{value:.60}"


def data_claim(part: str, digest: str, tagged: str | None, url: str | None) -> tuple[Claim, ShardDataset | None]:
    """Check whether the data at a URL has the manifest digest of the proof and the tag; return the dataset if so."""
    from yolofleet.data.dataset import ShardDataset

    name = f"data, {part}"
    if tagged is not None and tagged != digest:
        detail = f"the version's tag says manifest {tagged:.12}..., the proof {digest[:12]}..."
        return Claim(name, "failed", detail), None
    if url is None:
        return Claim(name, "not possible", f"where it was is not recorded; its manifest is {digest[:12]}..."), None
    try:
        dataset = ShardDataset(url)
        if dataset.manifest.digest != digest:
            other = dataset.manifest.digest[:12]
            return Claim(name, "not possible", f"{url} holds other data now: {other}..., not {digest[:12]}..."), None
        problem = _shard_problem(dataset, whole=part == "val")
    except UserError as error:
        return Claim(name, "not possible", f"the data is gone: {error}"), None
    if problem is not None:
        return Claim(name, "not possible", f"{url} is not what it was: {problem}"), None
    how = "every shard read" if part == "val" else "every shard there and of its size"
    return Claim(name, "passed", f"{plural(len(dataset), 'image')} at {url}, manifest {digest[:12]}..., {how}"), dataset


def _shard_problem(dataset: ShardDataset, *, whole: bool) -> str | None:
    """Return what is wrong with the first bad shard: missing, of another size or, read as a whole, of other content."""
    from yolofleet.data.verification import digest_problems, size_problem

    sizes = {entry.key: entry.size_bytes for entry in dataset.storage.list("shards/")}
    for shard in dataset.manifest.shards:
        problem = size_problem(shard, sizes) or (next(digest_problems(dataset, shard), None) if whole else None)
        if problem is not None:
            return problem
    return None


def latency_note(recorded: Latency, here: Latency) -> Claim:
    """Report the latency here and where the version was registered; they need not agree."""
    detail = f"{here.milliseconds:.1f} ms for an image of {here.image_size} px on {here.device} here"
    there = f"{recorded.milliseconds:.1f} ms on {recorded.device} where it was registered"
    return Claim("latency", "note", f"{detail}; {there}")


def _version_here(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "is missing"


def claim_of(name: str, problems: list[str], done: str) -> Claim:
    """Return a claim that has failed if there is a problem, and else passed with what was done."""
    if problems:
        return Claim(name, "failed", and_more(problems, MOST_NAMED, separator="; "))
    return Claim(name, "passed", done)
