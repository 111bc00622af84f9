"""Training on Ray: check the cluster, start the workers, and start them again until the run is done.

Ray is asked to restart nothing: its budgets know nothing of a run's progress, and it would restart without looking
whether there is still room. Every start reads the run directory, which is the same after a dead worker, a dead node and
a dead driver; the driver records what happened in ``events.driver.jsonl``.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from yolofleet.core.errors import WorkError
from yolofleet.core.ray_runtime import ray_connection, shares_cluster, starts_own_ray
from yolofleet.core.stopping import ending_signals, kept_handlers
from yolofleet.core.terminal import note
from yolofleet.core.text import plural
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage.lock import FencingToken
from yolofleet.tracking.goodput import PAUSED
from yolofleet.tracking.json_lines import OnRow, ignore_row
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.async_evaluation import CheckpointEvaluator
from yolofleet.training.evaluation.cluster_evaluation import ClusterEvaluation
from yolofleet.training.loop.worker_progress import DRIVER_NODE_ENDS, KnownProgress, StoppedError, furthest
from yolofleet.training.metrics.publisher import publish_metrics
from yolofleet.training.supervision.heartbeats import HeartbeatBoard
from yolofleet.training.supervision.nodes import (
    NodeOffer,
    alive_offers,
    check_reach,
    draining_nodes,
    fits,
    growth_offers,
    has_room,
    hosts,
    shortage,
    this_machine,
    training_hosts,
    wanted_resources,
    worker_labels,
)
from yolofleet.training.supervision.ray_workers import Ending, Failure, train_once
from yolofleet.training.supervision.watches import PREEMPTION, NodeWatch, list_nodes

if TYPE_CHECKING:
    from yolofleet.training.supervision.admission import Admission

NODE_POLL_SECONDS = 5.0
SETTINGS: dict[Failure, str] = {
    "worker": "cluster.max_failures",
    "preemption": "cluster.max_preemptions",
    "start": "cluster.max_start_failures",
}
StopReason = Callable[[], str | None]
"""Says why the driver was asked to stop, None if it was not."""


def run_on_ray(
    job: JobSpec,
    token: FencingToken | None = None,
    *,
    on_row: OnRow = ignore_row,
    show_worker_output: bool = False,
    leave_after_step: int | None = None,
    in_queue: bool = True,
) -> None:
    """Run the job on the cluster at RAY_ADDRESS, or on a Ray of this machine's own that ends with it.

    Args:
        job: What to compute.
        token: The run's lock, as its holder has it.
        on_row: Takes the rows and events of the driver, and those of the workers with their heartbeats.
        show_worker_output: Pass on what Ray and the workers print.
        leave_after_step: Save the state and end after this step; None: train to the end of the run.
        in_queue: Wait for a turn on a cluster that others use, too; False for a trial, whose search waited for it.

    Raises:
        UserError: The cluster can never give what the job asks for, or its hosts do not reach the storage.
        WorkError: The workers failed more often than the job allows.
    """
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(job.cluster.start_timeout_seconds)
    if starts_own_ray():
        has_room(job.cluster, [this_machine()])  # Ray has no more than this, and would take a while to say so
    with (
        ray_connection(show_worker_output=show_worker_output, dashboard=False),
        RunDirectory.open(job.storage, job.name, source="driver", token=token, on_row=on_row) as run,
        NodeWatch(run, list_nodes),
        termination() as stop_reason,
    ):
        if in_queue and shares_cluster():
            from yolofleet.training.supervision.admission import join_queue, ticket_of

            most = job.cluster.most_workers + (job.cluster.evaluation != "inline")
            ticket = ticket_of(job.cluster, job.name, run.url, most=most)
            with join_queue(ticket, run.append_event) as admission:
                _train(job, token, run, stop_reason, leave_after_step, admission)
        else:
            _train(job, token, run, stop_reason, leave_after_step, None)


def _train(
    job: JobSpec,
    token: FencingToken | None,
    run: RunDirectory,
    signalled: StopReason,
    leave_after_step: int | None,
    admission: Admission | None,
) -> None:
    """Check the cluster, then start the workers as often as it takes."""
    import ray
    from ray.autoscaler.sdk import request_resources
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own_node = ray.get_runtime_context().get_node_id()

    def stop_reason() -> str | None:
        return signalled() or (DRIVER_NODE_ENDS if own_node in draining_nodes() else None)

    def request(bundles: list[dict[str, float]], labels: list[dict[str, str]] | None = None) -> None:
        request_resources(bundles=bundles, bundle_label_selectors=labels or [{} for _ in bundles])

    def check_stop() -> None:
        if (stop := stop_reason()) is not None:
            raise _stopped(stop, "while waiting for room; resume the run with the same command")

    def wait_for_room() -> None:
        has_turn = False
        while not has_turn:
            wait_for_nodes(job, run, alive_offers, request, stop_reason)
            has_turn = admission is None or admission.wait(job.cluster.wait_for_room_seconds, check_stop, request)

    has_room(job.cluster, alive_offers(), growth_offers())  # raises for what the cluster can never give
    wait_for_room()
    if len(hosts()) > 1:
        check_reach(job, training_hosts(job.cluster))
    # Not soft: Ray would be free to place the actor anywhere, and it would die with another node.
    here = NodeAffinitySchedulingStrategy(own_node, soft=False)
    board = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(HeartbeatBoard).remote()

    def start(known: KnownProgress | None) -> Ending:
        with tempfile.TemporaryDirectory(prefix="yolofleet-ray-") as folder:
            return train_once(job, token, run, folder, board, known, stop_reason, leave_after_step, admission)

    if job.cluster.evaluation == "inline":
        with publish_metrics(job, run, board):
            supervise(job, run, start, wait_for_room, stop_reason)
        return
    over = threading.Event()
    evaluation = ClusterEvaluation(job, lambda: over.is_set() or stop_reason() is not None)
    with publish_metrics(job, run, board), CheckpointEvaluator(run, evaluation) as evaluator:
        try:
            supervise(job, run, start, wait_for_room, stop_reason)
            if admission is not None:
                admission.hold(1)  # for the evaluations that are left
            evaluator.evaluate_all()
        finally:
            over.set()


def supervise(
    job: JobSpec,
    run: RunDirectory,
    start: Callable[[KnownProgress | None], Ending],
    wait_for_room: Callable[[], None],
    stop_reason: StopReason,
) -> None:
    """Start the workers until the run is done, a failure budget is spent, or the driver is asked to stop.

    Args:
        job: What is trained.
        run: Its run directory, for the driver's events.
        start: Starts the workers, given how far the run had come, and returns how they ended.
        wait_for_room: Returns once the fewest workers have room.
        stop_reason: Why the driver was asked to stop.

    Raises:
        StoppedError: The driver was asked to stop.
        WorkError: A budget is spent.
    """
    store = CheckpointStore(run.storage.child("checkpoints"))
    budget = FailureBudget.of(job.cluster, _newest_step(store))
    known: KnownProgress | None = None
    while True:
        ending = start(known)
        known = furthest(known, ending.progress)
        if (stop := stop_reason()) is not None and (ending.failure or ending.left):
            raise _stopped(stop, f"at step {_newest_step(store)}; resume the run with the same command")
        if ending.failure is None and ending.left in (None, PAUSED):
            return
        failure: Failure | None = ending.failure or ("preemption" if ending.left == PREEMPTION else None)
        step = None if ending.progress is None else ending.progress.step
        if failure is None:
            run.append_event("resize", reason=ending.left, reached=step)
        else:
            again = budget.charge(failure, _newest_step(store))
            run.append_event("failure", failure=failure, reason=ending.reason, reached=step, again=again)
            if not again:
                raise WorkError(
                    f"{budget.explain(failure)}; the last one: {ending.reason}. Resume the run from the newest "
                    "checkpoint with the same command"
                )
        wait_for_room()  # the nodes were there at the start, so they may come back


@dataclass
class FailureBudget:
    """Counts failures since the newest checkpoint, each kind against a limit of its own.

    A run that continues makes progress, and it has an end: so a budget that checkpoints renew has an end, too.
    """

    limits: dict[Failure, int]
    """Failures of each kind that a run survives in a row without a checkpoint between them."""
    checkpoint_step: int = 0
    """The newest checkpoint that is known."""
    counts: Counter[Failure] = field(default_factory=Counter)
    """Failures since then."""

    @classmethod
    def of(cls, cluster: ClusterSpec, checkpoint_step: int) -> FailureBudget:
        """Return the budget that a job asks for."""
        limits: dict[Failure, int] = {
            "worker": cluster.max_failures,
            "preemption": cluster.max_preemptions,
            "start": cluster.max_start_failures,
        }
        return cls(limits, checkpoint_step)

    def charge(self, failure: Failure, checkpoint_step: int) -> bool:
        """Count a failure, and return whether the run may start again."""
        if checkpoint_step > self.checkpoint_step:
            self.checkpoint_step = checkpoint_step
            self.counts.clear()
        self.counts[failure] += 1
        return self.counts[failure] <= self.limits[failure]

    def explain(self, failure: Failure) -> str:
        """Return why the run ends, as a sentence."""
        limit = f"more than {SETTINGS[failure]} = {self.limits[failure]}"
        failures = f"{plural(self.counts[failure], 'failure')} ({failure})"
        return f"{failures} without a checkpoint since step {self.checkpoint_step}, {limit}"


def _stopped(reason: str, where: str) -> StoppedError:
    error = StoppedError(f"stopped ({reason}) {where}")
    error.is_wilful = reason != DRIVER_NODE_ENDS
    return error


def _newest_step(store: CheckpointStore) -> int:
    return max(store.steps(), default=0)


def wait_for_nodes(
    job: JobSpec,
    run: RunDirectory,
    offers: Callable[[], list[NodeOffer]],
    request: Callable[[list[dict[str, float]], list[dict[str, str]]], None],
    stop_reason: StopReason,
) -> None:
    """Return once the fewest workers have room; asks the autoscaler, if there is one, for what is needed.

    Args:
        job: What is to be trained.
        run: Its run directory, for the driver's events.
        offers: Returns the nodes that are there.
        request: Asks an autoscaler for room for bundles of resources, each on a node with its labels.
        stop_reason: Why the driver was asked to stop.

    Raises:
        WorkError: The nodes did not come in time.
        StoppedError: The driver was asked to stop.
    """
    cluster = job.cluster
    if fits(cluster, offers()):
        return
    limit = cluster.wait_for_nodes_seconds
    message = f"waiting up to {limit:g} s for nodes: {shortage(cluster, offers())}"
    note(message)
    run.append_event("waiting", reason=message)
    request([wanted_resources(cluster)] * cluster.fewest_slots, worker_labels(cluster, cluster.fewest_slots))
    end = time.monotonic() + limit
    try:
        while not fits(cluster, offers()):
            if (stop := stop_reason()) is not None:
                raise _stopped(stop, "while waiting for nodes; resume the run with the same command")
            if time.monotonic() > end:
                raise WorkError(
                    f"{shortage(cluster, offers())}. No such nodes came within "
                    f"cluster.wait_for_nodes_seconds = {limit:g}"
                )
            time.sleep(min(NODE_POLL_SECONDS, max(limit / 10, 0.1)))
    finally:
        request([], [])


@contextmanager
def termination() -> Iterator[StopReason]:
    """Yield a function that returns which signal asked this process to end within the with block, or None."""
    received: list[str] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    with kept_handlers() as can_handle:
        for kind in ending_signals() if can_handle else ():
            signal.signal(kind, receive)
        yield lambda: received[0] if received else None
