"""Starting the workers again and again until the run is done, its budget is spent, or it is told to stop.

Ray is asked to restart nothing: its budgets know nothing of progress, and it would restart without looking whether
there is still room. Every start reads the run directory, which is the same after a dead worker, a dead node and a dead
driver; the driver notes what happened in ``events.driver.jsonl``.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from yolofleet.core.errors import WorkError
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.loop.worker_group import PAUSED, Reached, StoppedError
from yolofleet.training.supervision.failure_budget import FailureBudget, Kind
from yolofleet.training.supervision.nodes import NodeOffer, num_places, shortage, wanted_resources
from yolofleet.training.supervision.ray_workers import Ending
from yolofleet.training.supervision.watches import PREEMPTION

NODE_POLL_SECONDS = 5.0

StopReason = Callable[[], str | None]
"""Says why the driver was told to stop, None if it was not."""


def supervise(
    job: JobSpec,
    run: RunDirectory,
    start: Callable[[Reached | None], Ending],
    wait_for_room: Callable[[], None],
    stop_reason: StopReason,
) -> None:
    """Start the workers until the run is done, its budget is spent, or it is told to stop.

    Args:
        job: What is trained.
        run: Its run directory, for the driver's events.
        start: Starts the workers, told how far the run had come, and returns how they ended.
        wait_for_room: Returns once the fewest workers find room.
        stop_reason: Why the driver was told to stop.

    Raises:
        StoppedError: The driver was told to stop.
        WorkError: A budget is spent.
    """
    store = CheckpointStore(run.storage.child("checkpoints"))
    budget = FailureBudget.of(job.cluster, _newest_step(store))
    reached: Reached | None = None
    while True:
        ending = start(reached)
        reached = ending.reached or reached
        if stop_reason() is not None and (ending.failure or ending.left):
            raise StoppedError(
                f"stopped ({stop_reason()}) at step {_newest_step(store)}; the same command goes on from there"
            )
        if ending.failure is None and ending.left in (None, PAUSED):
            return
        kind: Kind | None = ending.failure or ("preemption" if ending.left == PREEMPTION else None)
        step = None if ending.reached is None else ending.reached.step
        if kind is None:
            run.append_event("resize", reason=ending.left, reached=step)
        else:
            again = budget.charge(kind, _newest_step(store))
            run.append_event("failure", failure=kind, reason=ending.reason, reached=step, again=again)
            if not again:
                raise WorkError(
                    f"{budget.spent(kind)}; the last one: {ending.reason}. The same command goes on from the newest "
                    "checkpoint"
                )
        wait_for_room()  # it had the nodes when it began: they may come back


def _newest_step(store: CheckpointStore) -> int:
    steps = store.steps()
    return steps[-1] if steps else 0


def wait_for_nodes(
    job: JobSpec,
    run: RunDirectory,
    offers: Callable[[], list[NodeOffer]],
    request: Callable[[list[dict[str, float]]], None],
    stop_reason: StopReason,
) -> None:
    """Return once the fewest workers find room; asks the autoscaler, if there is one, for what is needed.

    Args:
        job: What is to be trained.
        run: Its run directory, for the driver's events.
        offers: Returns the nodes that are there.
        request: Asks an autoscaler for room for these bundles of resources.
        stop_reason: Why the driver was told to stop.

    Raises:
        WorkError: The nodes did not come in time.
        StoppedError: The driver was told to stop.
    """
    cluster = job.cluster
    if num_places(cluster, offers()) >= cluster.fewest_places:
        return
    limit = cluster.wait_for_nodes_seconds
    told = f"waiting up to {limit:g} s for nodes: {shortage(cluster, offers())}"
    print(told, file=sys.stderr, flush=True)
    run.append_event("waiting", reason=told)
    request([wanted_resources(cluster)] * cluster.fewest_places)
    end = time.monotonic() + limit
    try:
        while num_places(cluster, offers()) < cluster.fewest_places:
            if stop_reason() is not None:
                raise StoppedError(f"stopped ({stop_reason()}) while waiting for nodes")
            if time.monotonic() > end:
                raise WorkError(
                    f"{shortage(cluster, offers())}. No such nodes came within "
                    f"cluster.wait_for_nodes_seconds = {limit:g}"
                )
            time.sleep(min(NODE_POLL_SECONDS, max(limit / 10, 0.1)))
    finally:
        request([])


@contextmanager
def termination() -> Iterator[StopReason]:
    """Give a function that says whether this process was told to end (SIGTERM) within the with block."""
    told: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # signals are for the main thread to take
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append("SIGTERM"))
    try:
        yield lambda: told[0] if told else None
    finally:
        signal.signal(signal.SIGTERM, before)
