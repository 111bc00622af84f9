"""The diagnosis of a released model, made when the page of its run is: from the stored detections and the data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.text import one_line
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.manifest import MOST_MANIFEST_BYTES
from yolofleet.evaluation.detections import MOST_DETECTION_BYTES, Detections
from yolofleet.evaluation.diagnosis import diagnose
from yolofleet.evaluation.protocol import parse_protocol
from yolofleet.evaluation.report import name_images
from yolofleet.evaluation.samples import draw_outcomes
from yolofleet.tracking.run_directory import REPORT_PREFIX, RunDirectory
from yolofleet.tracking.run_record import DETECTIONS_DIGEST, DIAGNOSIS_KEY, OUTCOMES_PREFIX

logger = logging.getLogger(__name__)
DETECTIONS_KEY = f"{REPORT_PREFIX}/detections.json"
MANIFEST_KEY = "lineage/val.json"


def add_diagnosis(run: RunDirectory, evaluation: Mapping[str, Any]) -> bool:
    """Diagnose the evaluation of a released model, once; returns whether it was done.

    The detections are those that the release stored; the images are drawn with true and false boxes and the
    objects not found. A page is made without it where the validation set is out of reach, or is another by now.

    Args:
        run: Gets ``report/diagnosis.json``, which names the digest of the detections, and the drawings.
        evaluation: The content of ``report/evaluation.json``.
    """
    try:
        stored = run.storage.get_at_most(DETECTIONS_KEY, MOST_DETECTION_BYTES)
        if hashlib.sha256(stored).hexdigest() != evaluation[DETECTIONS_DIGEST]:
            raise ValueError("its detections are of another release")
        dataset = ShardDataset(str(run.facts()["data_url"]["val"]))
        if dataset.manifest.to_bytes() != run.storage.get_at_most(MANIFEST_KEY, MOST_MANIFEST_BYTES):
            raise ValueError(f"{dataset.storage.url} is not what it was released with")
        detections = Detections.from_records(json.loads(stored), source=f"{run.url}/{DETECTIONS_KEY}")
        truth = dataset.annotations()
        found = diagnose(truth, detections, parse_protocol(int(evaluation["max_detections"]), (), (), False))
        drawn = draw_outcomes(dataset, found.galleries, found.images)
    except (UserError, WorkError, KeyError, ValueError, RecursionError) as error:
        logger.warning("the page of %s has no diagnosis: %s", run.url, one_line(error))
        return False
    for drawing, image in drawn.items():
        run.storage.put(f"{OUTCOMES_PREFIX}{drawing}.jpg", image.jpeg)
    names = {drawing: image.name for drawing, image in drawn.items()}
    run.storage.put(f"{OUTCOMES_PREFIX}names.json", json.dumps(names).encode())
    made = {DETECTIONS_DIGEST: evaluation[DETECTIONS_DIGEST], "diagnosis": name_images(found.as_json(), truth)}
    run.storage.put(DIAGNOSIS_KEY, json.dumps(made).encode())
    return True
