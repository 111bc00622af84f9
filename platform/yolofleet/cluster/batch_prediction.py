"""Parts of a prediction dealt out to workers of Ray.

The work of one worker: predict a part's images, write the part.
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
from yolofleet.evaluation.detector import select_device
from yolofleet.evaluation.detector_package import WEIGHTS_NAME
from yolofleet.evaluation.images import ImageReadError
from yolofleet.export.runtime import NETWORK_NAME, load_detector
from yolofleet.storage import open_storage

PACKAGE_FILES = (DETECTOR_CARD_NAME, WEIGHTS_NAME, NETWORK_NAME)
"""What a worker needs of a detector package; the last one is not in all."""


class PartPredictor:
    """Predicts parts of a plan with a detector of its own."""

    def __init__(
        self,
        package: Mapping[str, bytes],
        source: ImageSource,
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
            source: the images.
            plan: what is predicted of them.
            out: where the parts are kept.
            device: auto, cpu, cuda or cuda:N.
            batch_size: images that pass the network together.
        """
        with tempfile.TemporaryDirectory(prefix="yolofleet-detector-") as folder:
            for name, content in package.items():
                Path(folder, name).write_bytes(content)
            self._detector = load_detector(folder, select_device(device, "--device"))
        self._source = source
        self._plan = plan
        self._storage = open_storage(out)
        self._batch_size = batch_size

    def predict(self, part: int) -> int:
        """Predict a part and write it; returns how many images it has."""
        document: dict[str, list[Any]] = {"images": [], "annotations": [], "problems": []}
        numbers = self._plan.images(part)
        for start in range(0, len(numbers), self._batch_size):
            images = []
            for number in numbers[start : start + self._batch_size]:
                try:
                    images.append(self._source.read(number))
                except ImageReadError as error:
                    document["problems"].append(str(error))
            self._add(document, images)
        self._storage.put(part_key(part), json.dumps(document).encode())
        return len(numbers)

    def _add(self, document: dict[str, list[Any]], images: list[NumberedImage]) -> None:
        found = self._detector.predict(
            [image.pixels for image in images],
            confidence=self._plan.confidence,
            iou=self._plan.iou,
            max_detections=self._plan.max_detections,
            image_size=self._plan.image_size,
            batch_size=self._batch_size,
        )
        for image, records in zip(images, found, strict=True):
            height, width = image.pixels.shape[:2]
            document["images"].append(
                {"id": image.image_id, "file_name": image.file_name, "width": width, "height": height}
            )
            document["annotations"] += [
                {
                    "image_id": image.image_id,
                    "category_id": record["category_id"],
                    "bbox": record["bbox"],
                    "score": record["score"],
                }
                for record in records
            ]


PARTS_AHEAD = 2
"""Parts that a worker holds: while it writes one, the next one waits at its door."""
RESTARTS = 3


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
        package: the detector package's files by name.
        source: the images; every worker must reach them.
        plan: what is predicted of them.
        out: where the parts are kept; every worker must reach it.
        parts: which ones.
        workers: how many; no more than there are parts are started.
        device: what each works with; with auto a GPU each where the cluster has any.
        batch_size: images that pass the network together.
        on_part: called with the number of images of each part that is done.

    Raises:
        UserError: The cluster cannot hold so many workers, or an input cannot be read.
        WorkError: A worker died again and again.
    """
    ray_module = sys.modules.get("ray")
    if os.environ.get("RAY_ADDRESS", "local") == "local" and not (ray_module and ray_module.is_initialized()):
        _check_room(workers, device, _this_machine())  # starting Ray takes seconds, and it finds no more than this
    with ray_connection(dashboard=False):
        import ray

        resources = _resources(workers, device)
        held = ray.put(dict(package))
        actor = ray.remote(_Worker).options(max_restarts=RESTARTS, max_task_retries=RESTARTS, **resources)
        pool = [
            actor.remote(source, plan, out, device=device, batch_size=batch_size)
            for _ in range(min(workers, len(parts)))
        ]
        _deal(pool, held, list(parts), on_part)


class _Worker:
    """A predictor in a process of Ray's.

    The package comes with each part, by reference: what a constructor got would be gone when Ray starts a worker again.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._arguments, self._options = arguments, options
        self._predictor: PartPredictor | None = None

    def predict(self, package: Mapping[str, bytes], part: int) -> int:
        if self._predictor is None:
            self._predictor = PartPredictor(package, *self._arguments, **self._options)
        return self._predictor.predict(part)


def _deal(pool: list[Any], package: Any, parts: list[int], on_part: Callable[[int], None] | None) -> None:
    """Give each worker the next part as soon as it has room, until all are done."""
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
                reason = " ".join(str(error).split())[:300]
                raise WorkError(f"a worker died {RESTARTS + 1} times: {reason}; the same command goes on") from error
            if on_part is not None:
                on_part(num_images)
            hand_out(worker)


def _resources(workers: int, device: str) -> dict[str, float]:
    """Return what each worker reserves.

    Raises:
        UserError: The cluster has less than all of them need.
    """
    import ray

    kind = _check_room(workers, device, ray.cluster_resources())
    return {"num_cpus": 0 if kind == "GPU" else 1, "num_gpus": 1 if kind == "GPU" else 0}


def _check_room(workers: int, device: str, there: Mapping[str, float]) -> str:
    """Return what each worker needs one of, or refuse: Ray would wait for ever."""
    kind = "GPU" if device.startswith("cuda") or (device == "auto" and there.get("GPU", 0) >= 1) else "CPU"
    most = int(there.get(kind, 0))
    if workers > most:
        raise UserError(f"--workers {workers}: there are {most} {kind}s, and each worker needs one")
    return kind


def _this_machine() -> dict[str, float]:
    import torch

    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
