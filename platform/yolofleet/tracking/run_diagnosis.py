"""The diagnosis of a released model, made when the page of its run is: from the stored detections and the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.text import one_line
from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.diagnosis import diagnose
from yolofleet.evaluation.protocol import parse_protocol
from yolofleet.evaluation.report import with_diagnosis
from yolofleet.evaluation.samples import draw_outcomes
from yolofleet.tracking.run_directory import REPORT_PREFIX, RunDirectory
from yolofleet.tracking.run_record import EVALUATION_KEY, OUTCOMES_PREFIX

logger = logging.getLogger(__name__)
DETECTIONS_KEY = f"{REPORT_PREFIX}/detections.json"


def add_diagnosis(run: RunDirectory, evaluation: Mapping[str, Any]) -> bool:
    """Diagnose the evaluation of a released model, once; returns whether the run directory holds it now.

    The detections are those that the release stored; the images are drawn with their true, false and missed boxes. A
    page is made without it where the validation set is out of reach.

    Args:
        run: Gets the diagnosis in ``report/evaluation.json``, and the drawings.
        evaluation: The content of that file.
    """
    if "diagnosis" in evaluation:
        return True
    try:
        source = f"{run.url}/{DETECTIONS_KEY}"
        detections = Detections.from_records(json.loads(run.storage.get(DETECTIONS_KEY)), source=source)
        dataset = ShardDataset(str(run.facts()["data_url"]["val"]))
        truth = dataset.annotations()
        found = diagnose(truth, detections, parse_protocol(int(evaluation["max_detections"]), (), (), False))
        drawn = draw_outcomes(dataset, found.galleries, found.images)
    except (UserError, WorkError, KeyError, ValueError) as error:
        logger.warning("the page of %s has no diagnosis: %s", run.url, one_line(error))
        return False
    for image_id, image in drawn.items():
        run.storage.put(f"{OUTCOMES_PREFIX}{image_id}.jpg", image.jpeg)
    names = {str(image_id): image.name for image_id, image in drawn.items()}
    run.storage.put(f"{OUTCOMES_PREFIX}names.json", json.dumps(names).encode())
    run.storage.put(EVALUATION_KEY, json.dumps(with_diagnosis(evaluation, found.as_json(), truth)).encode())
    return True
