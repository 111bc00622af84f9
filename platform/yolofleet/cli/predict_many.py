"""``yolofleet predict --workers``: find objects in very many pictures, in parts, on Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolofleet.cluster.picture_sources import PictureSource
    from yolofleet.cluster.prediction_parts import PredictionPlan
    from yolofleet.evaluation.detector_package import DetectorCard


def predict_many(
    package: Mapping[str, bytes],
    classes: list[tuple[int, str]],
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
                package,
                source,
                plan,
                storage.url,
                missing,
                workers=workers,
                device=device,
                batch_size=batch_size,
                on_part=advance,
            )
    counts, problems = merge_parts(storage, plan, classes)
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


def read_package(model: str, tracking_uri: str | None) -> tuple[dict[str, bytes], DetectorCard]:
    """Return what a worker needs of a detector package, to travel to other hosts, and its description.

    Raises:
        UserError: There is no such model, or it is damaged.
    """
    from yolofleet.cli.model_argument import package_folder
    from yolofleet.cluster.part_predictor import PACKAGE_FILES
    from yolofleet.evaluation.detector import Detector

    with package_folder(model, tracking_uri) as folder:
        card = Detector.load(folder).card
        return {name: (folder / name).read_bytes() for name in PACKAGE_FILES if (folder / name).is_file()}, card
