"""Releasing a trained run: its best averaged weights are deployed, evaluated, packed and registered.

Every step stores its result in the run directory and can be repeated, so the next start of the same command finishes an
interrupted release. Beside the detector package it writes:

report/judgement.json        what the released weights are worth, and on which data
report/detections.json       every box, as a COCO result file
report/evaluation.json       the figures, classes and curves that the page shows
report/images/               images with their boxes
report/index.html            the page of the run, its images inside
lineage/train.json, val.json the manifests of the data, as they were when the model was released
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolofleet.core.errors import UserError
from yolofleet.core.terminal import doing, note
from yolofleet.core.text import one_line, plural
from yolofleet.evaluation.detections import MOST_DETECTION_BYTES, Detections
from yolofleet.registry.evaluation_record import Evaluation, EvaluationRecord, EvaluationSettings, Evidence
from yolofleet.registry.proof import LINEAGE_FOLDER, save_training_form
from yolofleet.storage import ObjectNotFoundError
from yolofleet.tracking.run_directory import RELEASE_KEY, RunDirectory
from yolofleet.tracking.run_documents import MOST_DOCUMENT_BYTES
from yolofleet.tracking.run_record import EVALUATION_KEY as SHOWN_EVALUATION_KEY
from yolofleet.tracking.run_record import IMAGES_PREFIX, NAMES_KEY

if TYPE_CHECKING:
    from yolofleet.evaluation.average_precision import EvaluationResult
    from yolofleet.models.network import Network
    from yolofleet.specs.job import JobSpec
    from yolofleet.training.setup.preflight import Readiness

EVALUATION_KEY = "report/judgement.json"
DETECTIONS_KEY = "report/detections.json"
PAGE_KEY = "report/index.html"
NUM_IMAGES = 8
PAGE_SECONDS = 120.0
"""How long the page of a run or a search may take."""

logger = logging.getLogger(__name__)


def run_evidence(run: RunDirectory) -> Evidence:
    """Return what a run directory knows of its model: its facts, its job, and what its release stored.

    Raises:
        UserError: A file of it is damaged.
    """
    job_text = run.job_text() or ""
    facts = {
        **run.facts(),
        "run_directory": run.url,
        "job_sha256": hashlib.sha256(job_text.encode()).hexdigest(),
        "job": run.job_document(),
    }
    manifests = {part: _read(run, f"{LINEAGE_FOLDER}/{part}.json") for part in ("train", "val")}
    return Evidence(
        facts,
        _stored_evaluation(run),
        {part: manifest for part, manifest in manifests.items() if manifest is not None},
        _read(run, PAGE_KEY),
    )


def _stored_evaluation(run: RunDirectory) -> Evaluation | None:
    record, detections = _read(run, EVALUATION_KEY), _read(run, DETECTIONS_KEY)
    if record is None or detections is None:
        return None
    where, beside = f"{run.url}/{EVALUATION_KEY}", f"{run.url}/{DETECTIONS_KEY}"
    values = _parsed(record, where), _parsed(detections, beside)
    return Evaluation(
        EvaluationRecord.parse(values[0], source=where), Detections.from_records(values[1], source=beside)
    )


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is damaged ({one_line(error)}); remove it and release the run again") from None


def _store_evidence(ready: Readiness, evaluation: Evaluation) -> None:
    """Store in the run directory what a later registration needs, even if the data is gone by then."""
    run = ready.run
    for part, dataset in (("train", ready.train), ("val", ready.val)):
        run.storage.put(f"{LINEAGE_FOLDER}/{part}.json", dataset.manifest.to_bytes())
    run.record_facts(data_url={"train": ready.train.storage.url, "val": ready.val.storage.url})
    run.storage.put(DETECTIONS_KEY, json.dumps(evaluation.detections.records()).encode())
    run.storage.put(EVALUATION_KEY, json.dumps(evaluation.record.model_dump(mode="json"), indent=1).encode() + b"\n")


def _read(run: RunDirectory, key: str) -> bytes | None:
    try:
        return run.storage.get_at_most(key, MOST_DETECTION_BYTES)
    except ObjectNotFoundError:
        return None


@dataclass(frozen=True)
class Release:
    """The results of a finished run, and where they are."""

    run: str
    step: int
    """The step whose averaged weights were released."""
    num_images: int
    figures: dict[str, float | None]
    """The twelve COCO figures of the deployed form."""
    model: str | None
    """``models:/NAME/VERSION``; None where the job registers no model."""
    report: str
    images: str
    mlflow: str | None
    skipped: dict[str, Any] = field(default_factory=dict)
    """Samples that could not be read, of "training" and of "validation"."""
    anchors: str = "model"
    """Where the anchors came from, and which share of the training boxes they reach."""
    ended_early: str | None = None
    """Why and after which step the run ended before its last one."""
    more: str | None = None
    """The overrides with which the finished run trains on."""
    trained_steps: int | None = None
    """Steps that were done when it was released: a run that was trained on since is not released yet."""


def release_record(run: RunDirectory) -> Release | None:
    """Return the record of an earlier release, or None.

    Raises:
        UserError: It is damaged.
    """
    try:
        document = json.loads(run.storage.get_at_most(RELEASE_KEY, MOST_DOCUMENT_BYTES))
        document["images"] = document.pop("pictures", None) or document["images"]  # the key of older releases
        return Release(**document)
    except ObjectNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{run.url}/{RELEASE_KEY}: not the record of a release ({one_line(str(error))}); remove it, and the same "
            "command as before releases the run again"
        ) from None


def release(job: JobSpec, ready: Readiness, tracking_uri: str | None) -> Release:
    """Release the best weights of a finished run.

    Raises:
        UserError: The run has no checkpoint, or MLflow does not answer.
    """
    from yolofleet.evaluation.detector_package import save_detector
    from yolofleet.evaluation.evaluate import evaluate, evaluation_precision
    from yolofleet.export.exporter import add_network
    from yolofleet.models import deploy
    from yolofleet.models.deployment import half_weights
    from yolofleet.registry.register import register_run
    from yolofleet.training.checkpoint.store import CheckpointStore
    from yolofleet.training.evaluation.async_evaluation import CheckpointEvaluator, evaluate_checkpoint
    from yolofleet.training.evaluation.early_stop import early_end, overrides_to_train_on
    from yolofleet.training.loop.sample_log import read_skipped, skipped_document
    from yolofleet.training.setup.builders import driver_device

    run = ready.run
    device = driver_device(job)
    doing("evaluating the checkpoints that are left")
    CheckpointEvaluator(
        run, lambda step: evaluate_checkpoint(job, step, device)
    ).evaluate_all()  # checkpoints that are left
    trained_steps = max(CheckpointStore(run.storage.child("checkpoints")).steps(), default=0)
    end = early_end(run, job.stop, trained_steps)
    ended_early = None
    if end is not None and end.step < ready.num_steps:
        ended_early = f"after step {end.step} of {ready.num_steps}: {end.reason}"
    model, step = _best_average(job, ready)
    unrounded = deploy(model.eval()).to(device)
    deployed = half_weights(unrounded) if job.release_precision == "fp16" else unrounded
    settings = EvaluationSettings(
        image_size=job.data.image_size,
        batch_size=job.evaluation.batch_size,
        confidence=job.evaluation.confidence,
        iou=job.evaluation.iou,
        max_detections=job.evaluation.max_detections,
        rectangular=job.evaluation.protocol == "published",
        precision=evaluation_precision(job.evaluation.protocol, device),
    )
    doing(f"evaluating the deployed model of step {step} on {plural(len(ready.val), 'image')}")
    result = evaluate(deployed, ready.val, device=device, **settings.model_dump())
    before: dict[str, float | None] | None = None
    if deployed is not unrounded:
        doing("evaluating it before its weights were rounded")
        before = dict(evaluate(unrounded, ready.val, device=device, **settings.model_dump()).figures)
        note(_rounding_cost(before["AP"], result.figures["AP"]))
    doing("packing the detector")
    with tempfile.TemporaryDirectory(prefix="yolofleet-release-") as folder:
        save_detector(Path(folder), deployed, ready.train.classes, job.data.image_size)
        save_training_form(Path(folder), model)
        if job.release_onnx:
            add_network(Path(folder))
        run.save_model(Path(folder))
    run.record_facts(
        figures=result.figures, evaluation=settings.facts(), released_step=step, num_images=result.num_images
    )
    skipped = {"training": read_skipped(run.storage), "validation": skipped_document(result.skipped, len(ready.val))}
    doing("writing the report")
    evaluation = Evaluation.from_result(result, ready.val, settings, str(device))
    record = evaluation.record.model_copy(update={"unrounded_figures": before})
    _store_evidence(ready, replace(evaluation, record=record))
    _store_report(ready, result)
    version = None
    if job.tracking.register_as is not None and tracking_uri is not None:
        _write_page(run.url)  # the version holds it
        doing(f"registering the model as {job.tracking.register_as}")
        version = register_run(run, job.tracking.register_as, tracking_uri, experiment=job.tracking.experiment)
    done = Release(
        run=run.url,
        step=step,
        num_images=result.num_images,
        figures=dict(result.figures),
        model=version.uri if version is not None else None,
        report=f"{run.url}/{PAGE_KEY}",
        images=f"{run.url}/report/images",
        mlflow=tracking_uri,
        skipped=skipped,
        anchors=_anchors(run),
        ended_early=ended_early,
        more=overrides_to_train_on(job, run, trained_steps, ready.num_steps),
        trained_steps=trained_steps,
    )
    run.storage.put(RELEASE_KEY, json.dumps(asdict(done), indent=1).encode())
    _write_page(run.url)
    return done


def _rounding_cost(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "weights in half precision"
    return f"weights in half precision: AP {after:.4f}, {after - before:+.4f} by the rounding"


def _best_average(job: JobSpec, ready: Readiness) -> tuple[Network, int]:
    """Return the averaged model of the best evaluation, in its training form, and its step."""
    from yolofleet.models import build_model
    from yolofleet.models.weight_differences import load_strictly
    from yolofleet.training.checkpoint.store import CheckpointStore
    from yolofleet.training.evaluation.checkpoint_evaluations import best_checkpoint
    from yolofleet.training.setup.preparation import run_table

    checkpoint = best_checkpoint(ready.run, CheckpointStore(ready.run.storage.child("checkpoints")))
    if checkpoint is None:
        raise UserError(f"{ready.run.url}: there is no complete checkpoint to release; train first")
    model = build_model(run_table(job, ready.run), num_classes=len(ready.train.classes))
    load_strictly(model, checkpoint.tensors["average"])
    return model.float(), checkpoint.step


def _anchors(run: RunDirectory) -> str:
    match run.facts().get("anchors"):
        case {"source": str(source), "recall": float(recall)}:
            return f"{source}, reach {recall:.1%} of the boxes"
    return "model"


def _store_report(ready: Readiness, result: EvaluationResult) -> None:
    """Store what the run's page shows of its model: the evaluation, and images with their boxes."""
    from yolofleet.evaluation.samples import draw_samples

    storage = ready.run.storage
    images = {f"{n:02d}.jpg": i for n, i in enumerate(draw_samples(ready.val, result.detections, count=NUM_IMAGES))}
    for name, image in images.items():
        storage.put(f"{IMAGES_PREFIX}{name}", image.jpeg)
    names = {name: image.name for name, image in images.items()}
    storage.put(NAMES_KEY, json.dumps(names).encode())
    digest = hashlib.sha256(storage.get(DETECTIONS_KEY)).hexdigest()  # a diagnosis of other detections is not shown
    storage.put(SHOWN_EVALUATION_KEY, json.dumps({**result.page_document(), "detections_sha256": digest}).encode())


def start_page(url: str) -> subprocess.Popen[bytes]:
    """Write the page of the run or search at ``url`` anew, in a process that no training waits for."""
    package = Path(__file__).parents[2]
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "yolofleet", "report", url],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _write_page(url: str) -> None:
    """Write the page of a run, and wait for it; a page that cannot be written fails nothing."""
    try:
        process = start_page(url)
    except OSError as error:
        logger.warning("the page of %s was not written: %s", url, one_line(error))
        return
    try:
        _, errors = process.communicate(timeout=PAGE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    if process.returncode:
        reason = one_line(errors.decode(errors="replace"))
        logger.warning("the page of %s was not written; `yolofleet report %s` does: %s", url, url, reason)
