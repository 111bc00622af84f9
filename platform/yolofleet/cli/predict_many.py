"""``yolofleet predict --workers``: find objects in very many pictures, in parts, on Ray."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolofleet.cluster.picture_sources import PictureSource
    from yolofleet.cluster.prediction_parts import PredictionPlan
    from yolofleet.evaluation.detector import Detector


def predict_many(
    detector: Detector,
    source: PictureSource,
    out: str,
    plan: PredictionPlan,
    *,
    workers: int,
    device: str,
    batch_size: int,
    json_output: bool,
) -> list[str]:
    """Predict what is missing, put everything together and say what was made; returns what could not be read.

    Raises:
        UserError: the folder holds predictions of something else, or the cluster cannot hold so many workers.
        WorkError: workers died again and again.
    """
    from yolofleet.cli.counting import counting
    from yolofleet.cluster.batch_prediction import predict_parts
    from yolofleet.cluster.prediction_parts import DOCUMENT_KEY, RESULTS_KEY, merge_parts, missing_parts
    from yolofleet.storage import open_storage

    storage = open_storage(out)
    missing = missing_parts(storage, plan)
    if len(missing) < plan.num_parts:
        print(f"{plan.num_parts - len(missing)} of {plan.num_parts} parts are there already", file=sys.stderr)
    if missing:
        with counting("pictures", sum(len(plan.pictures(part)) for part in missing)) as advance:
            predict_parts(
                _package(detector),
                source,
                plan,
                storage.url,
                missing,
                workers=workers,
                device=device,
                batch_size=batch_size,
                on_part=advance,
            )
    counts, problems = merge_parts(storage, plan, detector.classes)
    if json_output:
        print(json.dumps({"detections": f"{out}/{DOCUMENT_KEY}", "results": f"{out}/{RESULTS_KEY}", **counts}))
    else:
        print(f"{out}/{DOCUMENT_KEY}: {counts['annotations']} detections in {counts['images']} pictures")
        print(f"{out}/{RESULTS_KEY}: the same as a COCO result file")
    return problems


def picture_source(images: list[str]) -> PictureSource:
    """Return the pictures that the arguments name: a sharded dataset, or files and folders of them."""
    from yolofleet.cli.picture_paths import picture_paths
    from yolofleet.cluster.picture_sources import FilePictures, ShardPictures
    from yolofleet.data.manifest import MANIFEST_KEY
    from yolofleet.storage import open_storage

    if len(images) == 1 and ("://" in images[0] or open_storage(images[0]).exists(MANIFEST_KEY)):
        return ShardPictures(images[0])
    return FilePictures(list(picture_paths([Path(image) for image in images])))


def _package(detector: Detector) -> dict[str, bytes]:
    """Return the detector package's files, to travel to other hosts."""
    from yolofleet.cluster.part_predictor import PACKAGE_FILES
    from yolofleet.evaluation.detector import save_detector

    with tempfile.TemporaryDirectory(prefix="yolofleet-package-") as folder:
        card = detector.card
        save_detector(Path(folder), detector.model, detector.classes, card.image_size)
        return {name: Path(folder, name).read_bytes() for name in PACKAGE_FILES}
