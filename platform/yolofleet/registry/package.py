"""Building a registered version: a detector package with the code that runs it, as an MLflow pyfunc without pickle.

MLmodel, requirements.txt, ...         MLflow's description: signature, environment, where what is
data/detector/                         the detector package: detector.json, model.safetensors
proof.json                             every claim of the version, which can be verified at any time
archive.zip                            what is many small files:
  code/yolofleet_inference_DIGEST/     the inference code, under a name of its own
  evidence.json                        the facts of the detector: figures, data, job
  evaluation/detections.safetensors    every box behind its figures
  evaluation/report.html               the evaluation report of the run that made it
  lineage/train.json, lineage/val.json the manifests of its data, with the digests of all shards

A server takes and gives each file by a request of its own, hence the archive; Python imports the code from it. It is a
plain zip: nothing in it is compressed, hidden between its members or there twice, so it unpacks to less than its size.
The proof names it and its members by their digests. In versions of format 1 these files lie beside the others.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import re
import shutil
import struct
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from yolofleet import __version__
from yolofleet.core.errors import UserError
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.inference_code import InferenceCode, collect_inference_code, pin_requirements
from yolofleet.registry.proof import LINEAGE_FOLDER, write_evidence_files, write_proof

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from yolofleet.evaluation.detector import Detector

SERVED_MODULE = "yolofleet.registry.served_detector"
ONNX_RUNTIME = "onnxruntime"
"""Imported only where a detector predicts with it."""
EVIDENCE_NAME = "evidence.json"
EVIDENCE_FORMAT = 1
DETECTOR_FOLDER = "data/detector"
EVALUATION_FOLDER = "evaluation"
CODE_FOLDER = "code"
ARCHIVE_NAME = "archive.zip"
CODE_IN_ARCHIVE = f"{ARCHIVE_NAME}/{CODE_FOLDER}"
"""What MLflow puts before Python's path."""
ARCHIVED = re.compile(
    rf"{CODE_FOLDER}/(\w+/)*\w+\.py|({EVALUATION_FOLDER}|{LINEAGE_FOLDER})/\w[\w.-]*|{re.escape(EVIDENCE_NAME)}",
    re.ASCII,
)
"""The only names in an archive."""
MOST_ARCHIVED = 10_000
LOCAL_HEADER_BYTES, ENTRY_BYTES, END_BYTES = 30, 46, 22
"""Of a zip: before each member, in its list, and after that; names come on top."""
MOST_LIST_BYTES = MOST_ARCHIVED * (ENTRY_BYTES + 200)
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
    from mlflow.models.model import MLMODEL_FILE_NAME

    from yolofleet.export.runtime import OnnxNetwork
    from yolofleet.registry.served_detector import DEFAULT_CONFIG

    in_torch = not isinstance(content.loaded.network, OnnxNetwork)
    imports = content.code.imports - ({ONNX_RUNTIME} if in_torch else set())
    model = Model(run_id=run_id, model_id=model_id)

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
            mlflow_model=model,
        )
    model.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.CODE] = CODE_IN_ARCHIVE
    model.save(str(target / MLMODEL_FILE_NAME))
    document = {"format": EVIDENCE_FORMAT, "digest": content.digest, "evidence": dict(evidence.facts)}
    (target / EVIDENCE_NAME).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_evidence_files(target, evidence)
    pack_archive(target)
    write_proof(target, DETECTOR_FOLDER, content.loaded, evidence, inference_code=content.code.package)
    remove_archived(target)
    return target


def pack_archive(folder: Path) -> None:
    """Write the archive of a version, of its inference code and its evidence; the same files make the same bytes.

    Raises:
        PackageError: They are more than 2 GiB.
    """
    try:
        with zipfile.ZipFile(folder / ARCHIVE_NAME, "w", allowZip64=False) as archive:
            for name in _archived_files(folder):
                entry = zipfile.ZipInfo(name)  # of 1980, whenever it was written
                entry.create_system, entry.file_size = 3, (folder / name).stat().st_size
                with (folder / name).open("rb") as source, archive.open(entry, "w") as member:
                    shutil.copyfileobj(source, member)
    except zipfile.LargeZipFile as error:
        raise PackageError(f"a version keeps evidence of up to 2 GiB: {error}") from error


def remove_archived(folder: Path) -> None:
    """Remove what is in the archive of a version from beside it."""
    for name in _archived_files(folder):
        (folder / name).unlink()
    for top in (CODE_FOLDER, EVALUATION_FOLDER, LINEAGE_FOLDER):
        shutil.rmtree(folder / top, ignore_errors=True)


def open_archive(folder: Path) -> None:
    """Unpack the archive of a version, if it has one, beside the archive; nothing there wins over what is in it.

    One that yolofleet does not write is left packed: its members are missing then, and it is a zip, both of which fail
    the proof. Somebody else may replace or change the archive meanwhile: it is opened once, and what is unpacked is the
    list of members that was checked.

    Raises:
        PackageError: Something in the folder has the name of a folder in the archive, or the archive changed.
    """
    path = folder / ARCHIVE_NAME
    if not path.is_file():
        return
    with path.open("rb") as file:
        archive = _open_plain(file)
        if archive is None:
            return
        try:
            _unpack(archive, folder)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise PackageError(f"{error.filename}: is in the way of what {ARCHIVE_NAME} holds") from error
        except (zipfile.BadZipFile, EOFError) as error:
            raise PackageError(f"{path}: changed while it was read ({error}); try again") from error


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    """Write the members of an archive into a folder; a name or a link that leads out of it is refused."""
    root = folder.resolve()
    for entry in archive.infolist():
        if not ARCHIVED.fullmatch(entry.filename):
            raise PackageError(
                f"{folder / ARCHIVE_NAME}: {entry.filename!r:.120} is no name in an archive of a version"
            )
        target = root / entry.filename
        if target.parent.resolve() != target.parent:  # a link, which may lead out
            raise FileExistsError(errno.EEXIST, "is a link", str(target.parent))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        with archive.open(entry) as member, target.open("xb") as file:
            shutil.copyfileobj(member, file)


def _archived_files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if ARCHIVED.fullmatch(name))


def is_plain_archive(path: Path) -> bool:
    """Return whether a file is a zip whose members are all named as ours, stored as they are, and whole.

    They lie without gaps one after the other, then their list, then the end: whatever reads it finds the same files.
    """
    try:
        with path.open("rb") as file:
            return _open_plain(file) is not None
    except OSError:
        return False


def _open_plain(file: BinaryIO) -> zipfile.ZipFile | None:
    """Return the archive in an open file; None if it is not plain."""
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(-END_BYTES, os.SEEK_END)
        list_bytes = struct.unpack("<4s4H2LH", file.read())[5]
        if list_bytes > MOST_LIST_BYTES:
            return None
        archive = zipfile.ZipFile(file)
        entries, position = archive.infolist(), 0
        for entry in entries:
            is_stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            is_named = entry.filename == entry.orig_filename and ARCHIVED.fullmatch(entry.filename)
            has_more = entry.flag_bits or entry.extra or entry.comment
            if not is_stored or not is_named or has_more or entry.header_offset != position:
                return None
            position += LOCAL_HEADER_BYTES + len(entry.filename) + entry.file_size
        end = position + sum(ENTRY_BYTES + len(entry.filename) for entry in entries) + END_BYTES
        is_whole = (archive.start_dir, size) == (position, end) and archive.testzip() is None
        has_each_once = len({entry.filename for entry in entries}) == len(entries) <= MOST_ARCHIVED
        return archive if is_whole and has_each_once else None
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, RuntimeError, EOFError, OverflowError):
        return None


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
    """Return whether a file is a pickle of protocol 2 or later, or a zip as torch.save writes it.

    One of 2,000 files of weights begins as a pickle does: the first bytes of safetensors are the length of its header.
    """
    from yolofleet.models.tensor_file import TensorFileError, read_header

    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            with suppress(TensorFileError):
                read_header(file)
                return False
            file.seek(0)
        head = file.read(2)
    return (len(head) == 2 and head[0] == 0x80 and head[1] in PICKLE_PROTOCOLS) or zipfile.is_zipfile(path)


def _files(folder: Path) -> list[Path]:
    """Return the files of a package, none of which blocks or never ends when it is read."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() and not path.name.startswith("."))
    for path in paths:
        if not path.is_file():
            raise PackageError(f"{path}: is not a regular file (a pipe, a device, a broken link); remove it")
    return paths
