"""The loop on Ray Train: a connection to a cluster, what must hold before anything starts, and the start.

What happens from then on, failures included, is `yolofleet.training.supervision.supervise`'s.
"""

from __future__ import annotations

import os
import threading

from yolofleet.core.ray_runtime import ray_connection, starts_own_ray
from yolofleet.specs.job import JobSpec
from yolofleet.storage.lock_record import FencingToken
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.evaluation.async_evaluation import Judge
from yolofleet.training.evaluation.evaluation_actor import ClusterEvaluation
from yolofleet.training.loop.worker_group import Reached
from yolofleet.training.metrics.publisher import publishing
from yolofleet.training.supervision.heartbeats import Attendance
from yolofleet.training.supervision.nodes import (
    alive_offers,
    check_reach,
    growth_offers,
    has_room,
    hosts,
    nodes_seen,
    this_machine,
)
from yolofleet.training.supervision.ray_workers import Ending, shared_folder, train_once
from yolofleet.training.supervision.supervise import StopReason, supervise, termination, wait_for_nodes
from yolofleet.training.supervision.watches import NodeWatch


def run_on_ray(
    job: JobSpec,
    token: FencingToken | None = None,
    *,
    show_worker_output: bool = False,
    leave_after_step: int | None = None,
) -> None:
    """Run the job on the cluster at RAY_ADDRESS, or on a Ray of this machine's own that ends with it.

    Args:
        job: What to compute.
        token: The run's lock, as its holder has it.
        show_worker_output: Pass on what Ray and the workers print.
        leave_after_step: Save the state and end after this step; None: train to the end of the run.

    Raises:
        UserError: The cluster can never give what the job asks for, or its hosts do not reach the storage.
        WorkError: The workers failed more often than the job allows.
    """
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(job.cluster.start_timeout_seconds)
    if starts_own_ray():
        has_room(job.cluster, [this_machine()])  # Ray finds no more than this; it takes a while to say so

    with (
        ray_connection(show_worker_output=show_worker_output),
        RunDirectory.open(job.storage, job.name, source="driver", token=token) as run,
        NodeWatch(run, nodes_seen),
        termination() as stop_reason,
    ):
        _train(job, token, run, stop_reason, leave_after_step)


def _train(
    job: JobSpec, token: FencingToken | None, run: RunDirectory, stop_reason: StopReason, leave_after_step: int | None
) -> None:
    """Check the cluster, then start the workers as often as it takes."""
    import ray
    from ray.autoscaler.sdk import request_resources
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def wait_for_room() -> None:
        wait_for_nodes(job, run, alive_offers, lambda bundles: request_resources(bundles=bundles), stop_reason)

    has_room(job.cluster, alive_offers(), growth_offers())  # raises for what can never be
    wait_for_room()
    if len(hosts()) > 1:
        check_reach(job)
    # Not softly: Ray takes that for leave to put it anywhere, and then it dies with a node that is none of ours.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attendance = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Attendance).remote()

    def start(reached: Reached | None) -> Ending:
        with shared_folder(job, len(hosts())) as folder:
            return train_once(job, token, run, folder, attendance, reached, stop_reason, leave_after_step)

    if job.cluster.evaluation == "inline":
        with publishing(job, run, attendance):
            supervise(job, run, start, wait_for_room, stop_reason)
        return
    over = threading.Event()
    evaluation = ClusterEvaluation(job, lambda: over.is_set() or stop_reason() is not None)
    with publishing(job, run, attendance), Judge(run, evaluation) as judge:
        try:
            supervise(job, run, start, wait_for_room, stop_reason)
            judge.judge_all()
        finally:
            over.set()
