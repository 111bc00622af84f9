"""Parts of a prediction dealt out to workers of Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yolofleet.cluster.part_predictor import PartPredictor
from yolofleet.cluster.picture_sources import PictureSource
from yolofleet.cluster.prediction_parts import PredictionPlan
from yolofleet.errors import UserError, WorkError
from yolofleet.training.launch import RAY_ENVIRONMENT, RayConnection, make_token

PARTS_AHEAD = 2
"""Parts that a worker holds: while it writes one, the next one waits at its door."""
RESTARTS = 3


def predict_parts(
    package: Mapping[str, bytes],
    source: PictureSource,
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
        source: the pictures; every worker must reach them.
        plan: what is predicted of them.
        out: where the parts are kept; every worker must reach it.
        parts: which ones.
        workers: how many; no more than there are parts are started.
        device: what each works with; with auto a GPU each where the cluster has any.
        batch_size: pictures that pass the network together.
        on_part: called with the number of pictures of each part that is done.

    Raises:
        UserError: The cluster cannot hold so many workers, or an input cannot be read.
        WorkError: A worker died again and again.
    """
    os.environ.update({name: value for name, value in RAY_ENVIRONMENT.items() if name not in os.environ})
    ray_module = sys.modules.get("ray")
    if os.environ.get("RAY_ADDRESS", "local") == "local" and not (ray_module and ray_module.is_initialized()):
        _check_room(workers, device, _this_machine())  # starting Ray takes seconds, and it finds no more than this
        if ray_module is None:
            make_token()
    with RayConnection(show_worker_output=False, dashboard=False):
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
                num_pictures = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, UserError):
                    raise UserError(str(cause)) from error
                raise WorkError(f"a worker failed: {type(cause).__name__}: {cause}") from error
            except ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())[:300]
                raise WorkError(f"a worker died {RESTARTS + 1} times: {reason}; the same command goes on") from error
            if on_part is not None:
                on_part(num_pictures)
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
