"""What a run directory holds that its page shows, read once."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.evaluation.samples import SampleImage
from yolofleet.models.profile import Profile, profile
from yolofleet.models.zoo import resolve
from yolofleet.specs.job import JobSpec
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.storage import ObjectNotFoundError, Storage
from yolofleet.tracking.goodput import RunSummary, summarize_run
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_directory import JOB_KEY, RELEASE_KEY, REPORT_PREFIX, RunDirectory
from yolofleet.tracking.run_documents import (
    Names,
    ReleaseRecord,
    StoredDiagnosis,
    StoredEvaluation,
    read_document,
)

logger = logging.getLogger(__name__)
EVALUATION_KEY = f"{REPORT_PREFIX}/evaluation.json"
IMAGES_PREFIX = f"{REPORT_PREFIX}/images/"
NAMES_KEY = f"{IMAGES_PREFIX}names.json"
OUTCOMES_PREFIX = f"{REPORT_PREFIX}/outcomes/"
DIAGNOSIS_KEY = f"{REPORT_PREFIX}/diagnosis.json"
DETECTIONS_DIGEST = "detections_sha256"
"""Which detections an evaluation and a diagnosis are of."""
MOST_IMAGES = 12
MOST_DRAWINGS = 1000
MOST_IMAGE_BYTES = 16 << 20
MOST_PIXELS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run directory holds that its page shows."""

    name: str
    url: str
    job_text: str
    facts: Mapping[str, Any]
    rows: list[Row]
    events: list[Row]
    evaluation: Mapping[str, Any] | None
    """Of the released model, with its diagnosis where there is one of the same detections."""
    release: Mapping[str, Any]
    images: Sequence[SampleImage]
    """Ground truth beside detections."""
    outcomes: Mapping[str, SampleImage]
    """Name -> the drawing of true and false boxes and objects not found, of the images that the diagnosis shows."""

    @cached_property
    def job(self) -> JobSpec | None:
        """The job as it was started; None where this yolofleet cannot read it."""
        try:
            source = f"{self.url}/{JOB_KEY}"
            return JobSpec.parse(parse_yaml(self.job_text, source=source), source=source)
        except UserError:
            return None

    @cached_property
    def summary(self) -> RunSummary:
        """Failures, goodput, cost."""
        return summarize_run(self.events, self.rows)

    @cached_property
    def evaluations(self) -> list[Row]:
        """The rows of evaluations that measured AP, by step."""
        return [
            row
            for row in self.rows
            if "step" in row and isinstance(ap := row.get("val_AP"), int | float) and math.isfinite(ap)
        ]

    @property
    def best(self) -> Row | None:
        """The row of the best evaluation, the first of equal ones."""
        return max(self.evaluations, key=lambda row: float(row["val_AP"]), default=None)

    @property
    def step(self) -> int:
        """The newest step: of its metrics, or of its newest start or end."""
        turns = [event for event in self.events if event.get("kind") in ("start", "left", "end")]
        return max((int(row.get("step", 0)) for row in (*self.rows, *turns[-1:])), default=0)

    @property
    def num_steps(self) -> int | None:
        """The steps of the whole run."""
        planned = [event["num_steps"] for event in self.events if "num_steps" in event]
        return int(planned[-1]) if planned else None

    @cached_property
    def starts(self) -> list[Row]:
        """Its starts, oldest first."""
        return [event for event in self.events if event.get("kind") == "start"]

    @cached_property
    def model(self) -> Profile | None:
        """Parameters and operations of its model; None where its classes or its table are not known here."""
        num_classes = int(self.facts.get("num_classes") or len((self.evaluation or {}).get("per_class", ())))
        if self.job is None or not num_classes:
            return None
        try:
            table = resolve(self.job.model)
            return profile(table, num_classes=num_classes, image_size=self.job.data.image_size)
        except UserError:
            return None


def read_run(run: RunDirectory) -> RunRecord:
    """Read what a page shows of a run.

    Raises:
        UserError: A file of it is damaged.
    """
    storage = run.storage
    keys = sorted(e.key for e in storage.list(IMAGES_PREFIX) if e.key.endswith(".jpg"))[-MOST_IMAGES:]
    names = read_document(storage, NAMES_KEY, Names) or {}
    images = (_read_image(run, key, names.get(name := key.removeprefix(IMAGES_PREFIX), name)) for key in keys)
    drawings = read_document(storage, f"{OUTCOMES_PREFIX}names.json", Names) or {}
    outcomes = {
        drawing: _read_image(run, f"{OUTCOMES_PREFIX}{drawing}.jpg", name)
        for drawing, name in islice(drawings.items(), MOST_DRAWINGS)
    }
    return RunRecord(
        name=run.name,
        url=run.url,
        job_text=run.job_text() or "",
        facts=run.facts(),
        rows=run.metrics(),
        events=run.events(),
        evaluation=_evaluation(storage),
        release=read_document(storage, RELEASE_KEY, ReleaseRecord) or {},
        images=[image for image in images if image is not None],
        outcomes={drawing: image for drawing, image in outcomes.items() if image is not None},
    )


def _evaluation(storage: Storage) -> Mapping[str, Any] | None:
    evaluation = read_document(storage, EVALUATION_KEY, StoredEvaluation)
    made = read_document(storage, DIAGNOSIS_KEY, StoredDiagnosis)
    if evaluation is None or made is None or made[DETECTIONS_DIGEST] != evaluation.get(DETECTIONS_DIGEST):
        return evaluation
    if "num_not_found" not in made["diagnosis"]:  # of an older yolofleet: it is made anew
        return evaluation
    return {**evaluation, "diagnosis": made["diagnosis"]}


def _read_image(run: RunDirectory, key: str, name: str) -> SampleImage | None:
    """Return an image; None where it is damaged, or was taken away while a release draws new ones."""
    from PIL import Image

    try:
        jpeg = run.storage.get_at_most(key, MOST_IMAGE_BYTES)
    except ObjectNotFoundError:
        return None
    try:
        with Image.open(BytesIO(jpeg)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError("more pixels than a drawing has")
            image.load()
            return SampleImage(name=name, jpeg=jpeg, width=image.width, height=image.height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        logger.warning("%s/%s: is damaged, so the page lacks it; release the run again to draw it anew", run.url, key)
        return None
