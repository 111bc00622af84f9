"""From a trained run to a released model: the best averaged weights, deployed, judged, packed and registered.

Every step leaves its result in the run directory and is repeated without harm, so a release that was interrupted is
finished by the next start of the same command.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolofleet.errors import UserError
from yolofleet.storage import ObjectNotFoundError
from yolofleet.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from yolofleet.evaluation.evaluate import EvaluationResult
    from yolofleet.models.detector import Detector
    from yolofleet.specs.job import JobSpec
    from yolofleet.training.preflight import Readiness

RECORD_KEY = "report/release.json"
NUM_PICTURES = 8


@dataclass(frozen=True)
class Release:
    """What a finished run has made.

    Attributes:
        run: The run directory.
        step: The step whose averaged weights were released.
        num_images: Validation images that they were judged on.
        figures: The twelve COCO figures of the deployed form.
        model: ``models:/NAME/VERSION``, or None where no registration was asked for.
        report: The page of the report.
        pictures: The folder of sample pictures.
        mlflow: The MLflow store, or None.
        skipped: What could not be read, of "training" and of "validation" (see ``training.skips``).
        anchors: Whose anchors it was trained with, and which share of the training boxes they reach.
    """

    run: str
    step: int
    num_images: int
    figures: dict[str, float | None]
    model: str | None
    report: str
    pictures: str
    mlflow: str | None
    skipped: dict[str, Any] = field(default_factory=dict)
    anchors: str = "model"


def release_record(run: RunDirectory) -> Release | None:
    """Return what an earlier release left, or None."""
    try:
        return Release(**json.loads(run.storage.get(RECORD_KEY)))
    except ObjectNotFoundError:
        return None


def release(job: JobSpec, ready: Readiness, tracking_uri: str | None) -> Release:
    """Release the best weights of a finished run.

    Raises:
        UserError: The run has no checkpoint, or MLflow does not answer.
    """
    from yolofleet.evaluation.detector_package import save_detector
    from yolofleet.evaluation.evaluate import evaluate
    from yolofleet.export.exporter import add_network
    from yolofleet.models import deploy
    from yolofleet.registry.judgement import JudgingSettings, judged
    from yolofleet.registry.register import register_run
    from yolofleet.registry.run_background import PAGE_KEY, keep_background
    from yolofleet.training.initial import save_training_form
    from yolofleet.training.judge import Judge, judged_here
    from yolofleet.training.process import driver_device
    from yolofleet.training.skips import read_skipped, skipped_document

    run = ready.run
    device = driver_device(job)
    Judge(run, lambda step: judged_here(job, step, device)).judge_all()  # what nobody came to
    model, step = _best_average(job, ready)
    deployed = deploy(model.eval()).to(device)
    settings = JudgingSettings(
        image_size=job.data.image_size,
        batch_size=job.evaluation.batch_size,
        confidence=job.evaluation.confidence,
        iou=job.evaluation.iou,
        max_detections=job.evaluation.max_detections,
    )
    result = evaluate(deployed, ready.val, device=device, **settings.model_dump())
    with tempfile.TemporaryDirectory(prefix="yolofleet-release-") as folder:
        save_detector(Path(folder), deployed, ready.train.classes, job.data.image_size)
        save_training_form(Path(folder), model)
        if job.release_onnx:
            add_network(Path(folder))
        run.save_model(Path(folder))
    run.record_facts(
        figures=result.figures,
        released_step=step,
        num_images=result.num_images,
    )
    skipped = {
        "training": read_skipped(run.storage),
        "validation": skipped_document(result.skipped, result.num_images),
    }
    keep_background(run, judged(result, ready.val, settings, str(device)), train=ready.train, val=ready.val)
    _write_report(job, ready, result, step, skipped)
    version = None
    if job.tracking.register_as is not None and tracking_uri is not None:
        version = register_run(run, job.tracking.register_as, tracking_uri, experiment=job.tracking.experiment)
    done = Release(
        run=run.url,
        step=step,
        num_images=result.num_images,
        figures=dict(result.figures),
        model=version.uri if version is not None else None,
        report=f"{run.url}/{PAGE_KEY}",
        pictures=f"{run.url}/report/pictures",
        mlflow=tracking_uri,
        skipped=skipped,
        anchors=_anchors(run),
    )
    run.storage.put(RECORD_KEY, json.dumps(asdict(done), indent=1).encode())
    return done


def _best_average(job: JobSpec, ready: Readiness) -> tuple[Detector, int]:
    """Return the averaged model of the best evaluation, in its training form, and its step."""
    from yolofleet.models import build_model
    from yolofleet.training.checkpoint import CheckpointStore
    from yolofleet.training.judgements import best_checkpoint
    from yolofleet.training.preparation import run_table
    from yolofleet.training.state import load_strictly

    checkpoint = best_checkpoint(ready.run, CheckpointStore(ready.run.storage.child("checkpoints")))
    if checkpoint is None:
        raise UserError(f"{ready.run.url}: there is no whole checkpoint to release; train first")
    model = build_model(run_table(job, ready.run), num_classes=len(ready.train.classes))
    load_strictly(model, checkpoint.tensors["average"])
    return model.float(), checkpoint.step


def _anchors(run: RunDirectory) -> str:
    known = run.facts().get("anchors")
    return f"{known['source']}, reach {known['recall']:.1%} of the boxes" if known else "model"


def _write_report(job: JobSpec, ready: Readiness, result: EvaluationResult, step: int, skipped: dict[str, Any]) -> None:
    from yolofleet.evaluation.report import render_report
    from yolofleet.evaluation.samples import draw_samples
    from yolofleet.registry.run_background import PAGE_KEY
    from yolofleet.training.skips import described_skips

    pictures = draw_samples(ready.val, result.detections, count=NUM_PICTURES)
    facts: dict[str, Any] = {
        "run": ready.run.url,
        "model": job.model.name or job.model.spec,
        "training set": f"{job.data.train} ({len(ready.train)} images)",
        "validation set": job.data.val,
        "steps": ready.num_steps,
        "released step": step,
        "skipped in training": described_skips(skipped["training"]),
        "skipped in validation": described_skips(skipped["validation"]),
        "anchors": _anchors(ready.run),
    }
    history = ready.run.metrics()
    page = render_report(result, title=f"Run {job.name}", facts=facts, history=history, pictures=pictures)
    storage = ready.run.storage
    storage.put(PAGE_KEY, page.encode())
    for number, picture in enumerate(pictures):
        storage.put(f"report/pictures/{number:02d}.jpg", picture.jpeg)
