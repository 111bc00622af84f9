"""Evaluation of checkpoints on a cluster: each in a process of its own, with the resources of one more worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from yolofleet.core.errors import WorkError
from yolofleet.specs.job import JobSpec
from yolofleet.training.evaluation.async_evaluation import evaluate_checkpoint
from yolofleet.training.evaluation.checkpoint_evaluations import Figures
from yolofleet.training.loop.worker_progress import StoppedError
from yolofleet.training.supervision.nodes import wanted_resources
from yolofleet.training.supervision.worker import local_device, use_worker_threads

RESULT_POLL_SECONDS = 1.0


class EvaluationActor:
    """A process on the cluster that ends after the one evaluation it was started for."""

    def ready(self) -> None:
        """Answer as soon as the process runs."""

    def evaluate(self, document: dict[str, Any], step: int) -> Figures:
        """Return the figures of a checkpoint of the job."""
        job = JobSpec.parse(document, source="job")
        device = local_device(job)
        use_worker_threads(job, device)
        return dict(evaluate_checkpoint(job, step, device))


class ClusterEvaluation:
    """Evaluates checkpoints on the cluster; waits neither for resources nor for a process that hangs without end.

    Args:
        job: What is trained.
        is_over: Whether the figures are no longer needed.
    """

    def __init__(self, job: JobSpec, is_over: Callable[[], bool]) -> None:
        self._job = job
        self._is_over = is_over

    def __call__(self, step: int) -> Figures:
        """Return the figures of the checkpoint of a step.

        Raises:
            WorkError: The resources were not free in time, or the evaluation took too long.
            StoppedError: The figures are no longer needed.
            RayError: Its process or its node died.
        """
        import ray

        cluster = self._job.cluster
        wanted = wanted_resources(cluster)
        process = (
            ray.remote(EvaluationActor)
            .options(
                num_cpus=wanted["CPU"],
                num_gpus=wanted.get("GPU", 0),
                label_selector=dict(cluster.labels),
                max_restarts=0,
            )
            .remote()
        )
        try:
            self._result(process.ready.remote(), cluster.wait_for_nodes_seconds, "cluster.wait_for_nodes_seconds")
            answer = process.evaluate.remote(self._job.document(), step)
            figures: Figures = self._result(answer, cluster.hang_timeout_seconds, "cluster.hang_timeout_seconds")
            return figures
        finally:
            ray.kill(process)

    def _result(self, reference: Any, limit_seconds: float, setting: str) -> Any:
        import ray

        end = time.monotonic() + limit_seconds
        while not ray.wait([reference], timeout=RESULT_POLL_SECONDS)[0]:
            if self._is_over():
                raise StoppedError("the evaluation was given up: the command was asked to stop")
            if time.monotonic() > end:
                raise WorkError(f"an evaluation beside the training was not ready within {setting} = {limit_seconds:g}")
        return ray.get(reference)
