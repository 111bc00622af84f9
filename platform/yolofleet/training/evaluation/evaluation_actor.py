"""Evaluation in a process of its own on the cluster, in the place of one more worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from yolofleet.core.errors import WorkError
from yolofleet.specs.job import JobSpec
from yolofleet.training.evaluation.async_evaluation import judged_here
from yolofleet.training.evaluation.checkpoint_evaluations import Figures
from yolofleet.training.loop.worker_group import StoppedError
from yolofleet.training.supervision.nodes import wanted_resources
from yolofleet.training.supervision.process import local_device

RESULT_POLL_SECONDS = 1.0


class Evaluator:
    """The process; it ends with the evaluation that it was started for."""

    def ready(self) -> None:
        """Answer as soon as the process has its place."""

    def judge(self, document: dict[str, Any], step: int) -> Figures:
        """Return the figures of a checkpoint of the job."""
        import torch

        job = JobSpec.parse(document, source="job")
        device = local_device(job)
        if device.type == "cpu":
            torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
        return dict(judged_here(job, step, device))


class ClusterEvaluation:
    """Judges checkpoints on the cluster; neither a missing place nor a stuck process is waited for without end.

    Args:
        job: What is trained.
        is_over: Whether nobody waits for the figures any more.
    """

    def __init__(self, job: JobSpec, is_over: Callable[[], bool]) -> None:
        self._job = job
        self._is_over = is_over

    def __call__(self, step: int) -> Figures:
        """Return the figures of the checkpoint of a step.

        Raises:
            WorkError: There was no place for it in time, or it took too long.
            StoppedError: Nobody waits any more.
            RayError: Its process or its node died.
        """
        import ray

        cluster = self._job.cluster
        wanted = wanted_resources(cluster)
        place = ray.remote(Evaluator).options(
            num_cpus=wanted["CPU"],
            num_gpus=wanted.get("GPU", 0),
            label_selector=dict(cluster.labels),
            max_restarts=0,
        )
        process = place.remote()
        try:
            self._result(process.ready.remote(), cluster.wait_for_nodes_seconds, "cluster.wait_for_nodes_seconds")
            figures: Figures = self._result(
                process.judge.remote(self._job.document(), step),
                cluster.hang_timeout_seconds,
                "cluster.hang_timeout_seconds",
            )
            return figures
        finally:
            ray.kill(process)

    def _result(self, reference: Any, limit_seconds: float, setting: str) -> Any:
        import ray

        end = time.monotonic() + limit_seconds
        while not ray.wait([reference], timeout=RESULT_POLL_SECONDS)[0]:
            if self._is_over():
                raise StoppedError("the evaluation was given up: the command was told to stop")
            if time.monotonic() > end:
                raise WorkError(f"an evaluation beside the training was not ready within {setting} = {limit_seconds:g}")
        return ray.get(reference)
