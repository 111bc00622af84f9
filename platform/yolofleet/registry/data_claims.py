"""The claims of a proof that rest on data: whether it is still there, and what the detector is worth on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from yolofleet.core.errors import UserError
from yolofleet.registry.claims import Claim, result_of
from yolofleet.registry.evaluation_record import Judged, judge, read_detections
from yolofleet.registry.proof import DETECTIONS_NAME, Proof
from yolofleet.storage import StorageError

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.detector import Detector

AP_TOLERANCE = 0.001
"""How far a figure may be from the record: the order of sums differs between devices and batch sizes."""
CHECKED_FIGURES = ("AP", "AP50", "AP75", "AR_100")
"""The figures over all sizes; those of one size rest on few objects and jump with each."""
PIECE_BYTES = 1 << 20


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
    try:
        problem = _shard_problem(dataset, whole=part == "val")
    except StorageError as error:
        return Claim(name, "not possible", f"the data is gone: {error}"), None
    if problem is not None:
        return Claim(name, "not possible", f"{url} is not what it was: {problem}"), None
    how = "every shard read" if part == "val" else "every shard there and of its size"
    return Claim(name, "passed", f"{len(dataset):,} images at {url}, manifest {digest[:12]}..., {how}"), dataset


def _shard_problem(dataset: ShardDataset, *, whole: bool) -> str | None:
    """Return what is wrong with the first bad shard of a dataset: missing, of another size, or of other content.

    Args:
        dataset: The dataset.
        whole: Whether to read all of each shard; else its size will do.
    """
    sizes = {entry.key: entry.size_bytes for entry in dataset.storage.list("shards/")}
    for shard in dataset.manifest.shards:
        if (size := sizes.get(shard.tar_key)) != shard.bytes:
            return f"{shard.tar_key} {'is missing' if size is None else f'has {size:,} bytes, not {shard.bytes:,}'}"
        if shard.index_key not in sizes:
            return f"{shard.index_key} is missing"
        if whole:
            found = _sha256(dataset.storage.open_stream(shard.tar_key))
            if found != shard.sha256:
                return f"{shard.tar_key} has sha256 {found[:12]}..., not {shard.sha256[:12]}..."
    return None


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    with stream:
        while piece := stream.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def ap_claim(
    name: str,
    proof: Proof,
    detector: Detector | None,
    dataset: ShardDataset | None,
    on_images: Callable[[int], None] | None,
) -> tuple[Claim, Judged | None]:
    """Judge a detector anew, and compare the figures with the record of its deployed form."""
    recorded = proof.judgement
    if recorded is None:
        return Claim(name, "not possible", "nobody has judged it: register it with --data DATA"), None
    if detector is None:
        return Claim(name, "not possible", "the detector does not load"), None
    if dataset is None:
        return Claim(
            name, "not possible", "there is no validation set to judge on; name a copy of it with --data"
        ), None
    try:
        found = judge(detector, dataset, recorded.settings, on_images)
    except StorageError as error:
        return Claim(name, "not possible", f"the data is gone: {error}"), None
    except UserError as error:
        return Claim(name, "failed", str(error)), None
    problems = [
        f"{figure} is {_shown(found.judgement.figures[figure])}, recorded is {_shown(recorded.figures.get(figure))}"
        for figure in CHECKED_FIGURES
        if not _near(found.judgement.figures[figure], recorded.figures.get(figure))
    ]
    shown = ", ".join(f"{figure} {_shown(found.judgement.figures[figure])}" for figure in CHECKED_FIGURES[:2])
    done = f"{shown} on {found.judgement.num_images} images, as recorded within {AP_TOLERANCE:g}"
    return result_of(name, [f"{problem} (tolerance {AP_TOLERANCE:g})" for problem in problems], done), found


def detections_claim(folder: Path, proof: Proof, found: Judged | None) -> Claim | None:
    """Compute the figures of the detections that travel with the version, by pycocotools; None where none travel.

    They must be the figures recorded, exactly, and those of the detector found anew, nearly.
    """
    if not (folder / DETECTIONS_NAME).is_file():
        return None
    if found is None or proof.judgement is None:
        return Claim("recorded detections", "not possible", "the detector could not be judged anew")
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.reference_ap import reference_average_precision, reference_differences, reference_name

    try:
        recorded = read_detections(folder / DETECTIONS_NAME)
        truth = ShardDataset(found.judgement.data).annotations()
        figures = reference_average_precision(truth, recorded)
    except UserError as error:
        return Claim("recorded detections", "failed", str(error))
    problems = reference_differences(proof.judgement.figures, figures)
    problems += [
        f"they give {name} {_shown(figures[name])}, the detector gives {_shown(found.judgement.figures[name])}"
        for name in CHECKED_FIGURES
        if not _near(figures[name], found.judgement.figures[name])
    ]
    done = f"{len(recorded):,} boxes give the same figures, by {reference_name()}"
    return result_of("recorded detections", problems, done)


def _near(found: float | None, recorded: float | None) -> bool:
    if found is None or recorded is None:
        return found is recorded
    return abs(found - recorded) <= AP_TOLERANCE


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
