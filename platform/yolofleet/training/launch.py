"""The loop on Ray Train: a connection to a cluster, what must hold before anything starts, and the start.

What happens from then on, failures included, is `yolofleet.training.supervise`'s.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from typing import Any

from yolofleet.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.storage.holder import Token
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.attendance import Attendance
from yolofleet.training.capacity import NodeOffer, has_room
from yolofleet.training.cluster_view import alive_offers, growth_offers, hosts, nodes_seen
from yolofleet.training.evaluator import ClusterEvaluation
from yolofleet.training.judge import Judge
from yolofleet.training.node_watch import NodeWatch
from yolofleet.training.publisher import publishing
from yolofleet.training.pulse import Reached
from yolofleet.training.ray_group import Ending, shared_folder, train_once
from yolofleet.training.reach import check_reach
from yolofleet.training.supervise import StopReason, supervise, termination, wait_for_nodes

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the driver's own watch looks for nodes that are about to go
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets anything else on the machine slow training down
}


def run_on_ray(
    job: JobSpec,
    token: Token | None = None,
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
    os.environ.update({name: value for name, value in RAY_ENVIRONMENT.items() if name not in os.environ})
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(job.cluster.start_timeout_seconds)
    if "ray" not in sys.modules and os.environ.get("RAY_ADDRESS", "local") == "local":
        has_room(job.cluster, [_this_machine()])  # Ray finds no more than this; it takes a while to say so
        make_token()

    with (
        RayConnection(show_worker_output),
        RunDirectory.open(job.storage, job.name, source="driver", token=token) as run,
        NodeWatch(run, nodes_seen),
        termination() as stop_reason,
    ):
        _train(job, token, run, stop_reason, leave_after_step)


def _train(
    job: JobSpec, token: Token | None, run: RunDirectory, stop_reason: StopReason, leave_after_step: int | None
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


class RayConnection:
    """A connection to a cluster for the length of a with block; a Ray that was started for it is stopped after it."""

    def __init__(self, show_worker_output: bool, *, dashboard: bool = True) -> None:
        self._show_worker_output = show_worker_output
        self._dashboard = dashboard

    def __enter__(self) -> None:
        import ray

        self._ours = not ray.is_initialized()
        if not self._ours:
            return
        address = os.environ.get("RAY_ADDRESS", "local")
        try:
            ray.init(
                address=address,
                log_to_driver=self._show_worker_output,
                logging_level="warning",
                **_local_options(address, dashboard=self._dashboard),
            )
        except ConnectionError as error:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from error

    def __exit__(self, *_: object) -> None:
        import ray

        if self._ours:
            ray.shutdown()


def _local_options(address: str, *, dashboard: bool) -> dict[str, Any]:
    if address != "local":
        return {}
    if not dashboard:
        return {"include_dashboard": False}
    # With the dashboard's API a stopped worker group gives its placement group back; it listens on loopback only.
    return {"include_dashboard": True, "dashboard_host": "127.0.0.1"}


def make_token() -> None:
    """Give a Ray of our own a token that lives as long as it does; Ray itself would keep one in the home folder.

    It takes effect only before ray is imported.
    """
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _this_machine() -> NodeOffer:
    """Return the most that a Ray of this machine's own can offer."""
    import torch

    return NodeOffer({"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}, name="this machine")
