"""The work of one worker: predict a part's pictures, write the part."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolofleet.cluster.picture_sources import NumberedPicture, PictureSource
from yolofleet.cluster.prediction_parts import PredictionPlan, part_key
from yolofleet.evaluation.detector_package import CARD_NAME, WEIGHTS_NAME
from yolofleet.evaluation.device import chosen_device
from yolofleet.evaluation.pictures import PictureError
from yolofleet.export.runtime import NETWORK_NAME, load_detector
from yolofleet.storage import open_storage

PACKAGE_FILES = (CARD_NAME, WEIGHTS_NAME, NETWORK_NAME)
"""What a worker needs of a detector package; the last one is not in all."""


class PartPredictor:
    """Predicts parts of a plan with a detector of its own."""

    def __init__(
        self,
        package: Mapping[str, bytes],
        source: PictureSource,
        plan: PredictionPlan,
        out: str,
        *,
        device: str = "auto",
        batch_size: int = 8,
    ) -> None:
        """Load the detector.

        Args:
            package: what there is of `PACKAGE_FILES`, by name: contents travel, paths would lead nowhere on another
                host.
            source: the pictures.
            plan: what is predicted of them.
            out: where the parts are kept.
            device: auto, cpu, cuda or cuda:N.
            batch_size: pictures that pass the network together.
        """
        with tempfile.TemporaryDirectory(prefix="yolofleet-detector-") as folder:
            for name, content in package.items():
                Path(folder, name).write_bytes(content)
            self._detector = load_detector(folder, chosen_device(device, "--device"))
        self._source = source
        self._plan = plan
        self._storage = open_storage(out)
        self._batch_size = batch_size

    def predict(self, part: int) -> int:
        """Predict a part and write it; returns how many pictures it has."""
        document: dict[str, list[Any]] = {"images": [], "annotations": [], "problems": []}
        numbers = self._plan.pictures(part)
        for start in range(0, len(numbers), self._batch_size):
            pictures = []
            for number in numbers[start : start + self._batch_size]:
                try:
                    pictures.append(self._source.read(number))
                except PictureError as error:
                    document["problems"].append(str(error))
            self._add(document, pictures)
        self._storage.put(part_key(part), json.dumps(document).encode())
        return len(numbers)

    def _add(self, document: dict[str, list[Any]], pictures: list[NumberedPicture]) -> None:
        found = self._detector.predict(
            [picture.pixels for picture in pictures],
            confidence=self._plan.confidence,
            iou=self._plan.iou,
            max_detections=self._plan.max_detections,
            image_size=self._plan.image_size,
            batch_size=self._batch_size,
        )
        for picture, records in zip(pictures, found, strict=True):
            height, width = picture.pixels.shape[:2]
            document["images"].append(
                {"id": picture.image_id, "file_name": picture.file_name, "width": width, "height": height}
            )
            document["annotations"] += [
                {
                    "image_id": picture.image_id,
                    "category_id": record["category_id"],
                    "bbox": record["bbox"],
                    "score": record["score"],
                }
                for record in records
            ]
