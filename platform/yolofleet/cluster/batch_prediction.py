"""Predicts the parts of a plan on workers of Ray: each predicts a part's images and writes the part.

Workers are handed a new part as soon as they finish one, and always have the next one waiting, so none stands idle
while a part is written.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolofleet.cluster.prediction_parts import ImageSource, NumberedImage, PredictionPlan, part_key
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.core.ray_runtime import ray_connection
from yolofleet.core.text import one_line, plural
from yolofleet.evaluation.detector import Detector, select_device
from yolofleet.evaluation.detector_package import WEIGHTS_NAME
from yolofleet.evaluation.images import ImageReadError
from yolofleet.export.runtime import NETWORK_NAME, load_detector
from yolofleet.storage import open_storage

PACKAGE_FILES = (DETECTOR_CARD_NAME, WEIGHTS_NAME, NETWORK_NAME)
"""The files of a detector package that a worker needs; the last one is not in all packages."""
PARTS_AHEAD = 2
"""Parts that a worker holds: while it writes one, the next one waits for it."""
RESTARTS = 3


class PartPredictor:
    """Predicts parts of a plan; an actor in a process of Ray's.

    The package comes with each part, by reference: a constructor's argument would be lost when Ray restarts the actor.
    Its contents travel, for paths would lead nowhere on another host.
    """

    def __init__(
        self, source: ImageSource, plan: PredictionPlan, out: str, *, device: str = "auto", batch_size: int = 8
    ) -> None:
        self._source = source
        self._plan = plan
        self._storage = open_storage(out)
        self._device = device
        self._batch_size = batch_size
        self._detector: Detector | None = None

    def predict(self, package: Mapping[str, bytes], part: int) -> int:
        """Predict a part and write it; returns the number of its images.

        Args:
            package: The contents of `PACKAGE_FILES` by name.
            part: Number of the part.
        """
        detector = self.detector(package)
        document: dict[str, list[Any]] = {"images": [], "annotations": [], "problems": []}
        numbers = self._plan.images(part)
        for start in range(0, len(numbers), self._batch_size):
            images = []
            for number in numbers[start : start + self._batch_size]:
                try:
                    images.append(self._source.read(number))
                except ImageReadError as error:
                    document["problems"].append(str(error))
            self._add(document, images, detector)
        self._storage.put(part_key(part), json.dumps(document).encode())
        return len(numbers)

    def detector(self, package: Mapping[str, bytes]) -> Detector:
        """Return the detector of a package, loaded once."""
        if self._detector is None:
            with tempfile.TemporaryDirectory(prefix="yolofleet-detector-") as folder:
                for name, content in package.items():
                    Path(folder, name).write_bytes(content)
                self._detector = load_detector(folder, select_device(self._device, "--device"))
        return self._detector

    def _add(self, document: dict[str, list[Any]], images: list[NumberedImage], detector: Detector) -> None:
        detections = detector.predict(
            [image.pixels for image in images],
            confidence=self._plan.confidence,
            iou=self._plan.iou,
            max_detections=self._plan.max_detections,
            image_size=self._plan.image_size,
            batch_size=self._batch_size,
        )
        for image, records in zip(images, detections, strict=True):
            height, width = image.pixels.shape[:2]
            document["images"].append(
                {"id": image.image_id, "file_name": image.file_name, "width": width, "height": height}
            )
            document["annotations"] += [
                {"image_id": image.image_id} | {key: record[key] for key in ("category_id", "bbox", "score")}
                for record in records
            ]


def predict_parts(
    package: Mapping[str, bytes],
    source: ImageSource,
    plan: PredictionPlan,
    out: str,
    parts: Sequence[int],
    *,
    workers: int,
    device: str = "auto",
    batch_size: int = 8,
    on_part: Callable[[int], None] | None = None,
) -> None:
    """Predict parts on the cluster at RAY_ADDRESS, or on a Ray of this machine's own that ends with it.

    A worker that dies is started again, a few times, and its part with it.

    Args:
        package: The detector package's files by name.
        source: The images; every worker must reach them.
        plan: What is predicted of them.
        out: Where the parts are written; every worker must reach it.
        parts: The parts to predict.
        workers: Number of workers; no more than there are parts are started.
        device: Device of each worker; with auto a GPU each where the cluster has any.
        batch_size: Images that pass through the network together.
        on_part: Called with the number of images of each part that is done.

    Raises:
        UserError: The cluster cannot hold so many workers, or an input cannot be read.
        WorkError: A worker died again and again.
    """
    ray_module = sys.modules.get("ray")
    if os.environ.get("RAY_ADDRESS", "local") == "local" and not (ray_module and ray_module.is_initialized()):
        import torch

        here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        _check_room(workers, device, here)  # starting Ray takes seconds, and it finds no more than this
    with ray_connection(dashboard=False):
        import ray

        kind = _check_room(workers, device, ray.cluster_resources())
        resources = {"num_cpus": int(kind == "CPU"), "num_gpus": int(kind == "GPU")}
        package_reference = ray.put(dict(package))
        actor = ray.remote(PartPredictor).options(max_restarts=RESTARTS, max_task_retries=RESTARTS, **resources)
        pool = [
            actor.remote(source, plan, out, device=device, batch_size=batch_size)
            for _ in range(min(workers, len(parts)))
        ]
        _hand_out_parts(pool, package_reference, list(parts), on_part)


def _hand_out_parts(pool: list[Any], package: Any, parts: list[int], on_part: Callable[[int], None] | None) -> None:
    """Give each worker the next part as soon as it has finished one, until all are done."""
    import ray

    waiting = iter(parts)
    running: dict[Any, Any] = {}

    def hand_out(worker: Any) -> None:
        part = next(waiting, None)
        if part is not None:
            running[worker.predict.remote(package, part)] = worker

    for _ in range(PARTS_AHEAD):
        for worker in pool:
            hand_out(worker)
    while running:
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            worker = running.pop(reference)
            try:
                num_images = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, UserError):
                    raise UserError(str(cause)) from error
                raise WorkError(f"a worker failed: {type(cause).__name__}: {cause}") from error
            except ray.exceptions.RayError as error:
                raise WorkError(
                    f"a worker died {RESTARTS + 1} times: {one_line(error)}. Run the same command again to resume"
                ) from error
            if on_part is not None:
                on_part(num_images)
            hand_out(worker)


def _check_room(workers: int, device: str, resources: Mapping[str, float]) -> str:
    """Return the resource that each worker needs one of.

    Raises:
        UserError: There are too few; Ray would wait for ever.
    """
    kind = "GPU" if device.startswith("cuda") or (device == "auto" and resources.get("GPU", 0) >= 1) else "CPU"
    most = int(resources.get(kind, 0))
    if workers > most:
        raise UserError(f"--workers {workers}: there is room for {plural(most, 'worker')}, as each needs one {kind}")
    return kind
