"""What the driver watches while workers train: silent workers, reasons to leave, nodes that come and go, free room."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.worker_progress import KnownProgress
from yolofleet.training.supervision.heartbeats import StallWarning, WorkerStatus, newest_progress, silent_workers
from yolofleet.training.supervision.nodes import (
    draining_nodes,
    free_offers,
    growth_offers,
    num_slots,
    wanted_resources,
)
from yolofleet.training.supervision.placement_groups import remove_orphaned_groups
from yolofleet.training.supervision.worker import stacks_key

NODE_POLL_SECONDS = 2.0
POLL_SECONDS = 1.0
ANSWER_TIMEOUT_SECONDS = 10.0
END_TIMEOUT_SECONDS = 30.0
UNKNOWN = "Ray gives no reason"
PREEMPTION = "a node is about to be taken away"
GROWTH = "there is room for more workers"


@dataclass(frozen=True)
class NodeRecord:
    """A node that the cluster has or had, as Ray lists it."""

    name: str
    """Its address."""
    offers: str
    """Its resources, for people."""
    alive: bool
    """Whether it is part of the cluster."""
    end: str
    """Why it left; empty while it is alive."""


def list_nodes() -> dict[str, NodeRecord]:
    """Return every node that the cluster has or had, by Ray's id."""
    import ray

    return {
        str(node["NodeID"]): NodeRecord(
            name=str(node["NodeManagerAddress"]),
            offers=", ".join(f"{node['Resources'].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU")),
            alive=bool(node["Alive"]),
            end=" ".join(str(node.get("DeathReasonMessage", "")).split()),
        )
        for node in ray.nodes()
    }


class NodeWatch:
    """Appends an event for each node that joins or leaves, for the length of a with block.

    Args:
        run: Gets the events ``node_joined`` and ``node_gone``.
        list_nodes: Returns every node that the cluster has or had, by its id.
        poll_seconds: Pause between two looks.
    """

    def __init__(
        self,
        run: RunDirectory,
        list_nodes: Callable[[], dict[str, NodeRecord]],
        *,
        poll_seconds: float = NODE_POLL_SECONDS,
    ) -> None:
        self._run = run
        self._list_nodes = list_nodes
        self._known: set[str] | None = None
        self._loop = BackgroundLoop(
            self.update,
            seconds=poll_seconds,
            name="node-watch",
            warning="the cluster's nodes cannot be watched at the moment",
            at_once=True,
        )

    def __enter__(self) -> NodeWatch:
        self._loop.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.close()

    def update(self) -> None:
        """Append what has changed since the last call; the first one appends nothing."""
        nodes = self._list_nodes()
        alive = {node for node, record in nodes.items() if record.alive}
        if self._known is not None:
            for node in sorted(alive - self._known):
                self._run.append_event("node_joined", node=nodes[node].name, node_id=node, offers=nodes[node].offers)
            for node in sorted(self._known - alive):
                gone = nodes.get(node)
                name, reason = (node[:8], "") if gone is None else (gone.name, gone.end)
                self._run.append_event("node_gone", node=name, node_id=node, reason=reason or UNKNOWN)
        self._known = alive


class GroupWatch:
    """Watches one start of the workers for the length of a with block.

    Args:
        job: What is trained.
        run: The run directory, which gets the stacks of silent workers, and an event when the group makes no progress;
            its ``on_row`` gets the workers' rows.
        board: The handle of the heartbeat board's actor.
        stop_reason: Returns why the driver itself was asked to stop, None if it was not.
        may_grow: Returns whether there is room for more workers than the group has; None: asks Ray.

    Attributes:
        progress: How far the group was at its last report.
        hung: The workers that were ended because they were silent.
        workers: The last reports.
        leave_reason: Why the group was asked to leave, None if it was not.
    """

    def __init__(
        self,
        job: JobSpec,
        run: RunDirectory,
        board: Any,
        stop_reason: Callable[[], str | None],
        may_grow: Callable[[], bool] | None = None,
    ) -> None:
        self.progress: KnownProgress | None = None
        self.hung: list[WorkerStatus] = []
        self.workers: list[WorkerStatus] = []
        self.leave_reason: str | None = None
        self._is_recorded = False
        self._job = job
        self._run = run
        self._stall_warning = StallWarning(run.append_event, job.cluster.hang_timeout_seconds)
        self._board = board
        self._stop_reason = stop_reason
        self._may_grow = may_grow or (lambda: num_slots(job.cluster, free_offers()) > job.cluster.slots_for_evaluation)
        self._next_growth_check = time.monotonic() + job.cluster.resize_interval_seconds
        self._growth = GrowthRequest(job.cluster)
        self._loop = BackgroundLoop(
            self._update,
            seconds=POLL_SECONDS,
            name="group-watch",
            warning="the workers cannot be watched at the moment",
        )

    def __enter__(self) -> GroupWatch:
        self._loop.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.close()
        with suppress(Exception):
            self._growth.withdraw()
        with suppress(Exception):
            self._take_rows()  # the last ones

    def _take_rows(self) -> None:
        import ray

        for row in ray.get(self._board.take_rows.remote(), timeout=ANSWER_TIMEOUT_SECONDS):
            self._run.on_row(row)

    def _update(self) -> None:
        import ray

        remove_orphaned_groups()  # the workers may be waiting for their resources
        now, workers = ray.get(self._board.workers.remote(), timeout=ANSWER_TIMEOUT_SECONDS)
        self.workers = workers
        self.progress = newest_progress(now, workers) or self.progress
        self._stall_warning.update(now, workers)
        self._record_workers(workers)
        for worker in silent_workers(now, workers, self._job.cluster.hang_timeout_seconds):
            if worker not in self.hung:
                self.hung.append(worker)
                self._end(ray, worker)
        reason = self._stop_reason() or self._cluster_change(workers)
        if reason is not None and self.leave_reason is None:
            self.leave_reason = reason
            self._board.ask_to_leave.remote(reason)
        self._take_rows()

    def _record_workers(self, workers: list[WorkerStatus]) -> None:
        """Append an event once all workers are there: where each runs, for who looks for its output."""
        if self._is_recorded or not workers or len(workers) < workers[0].num_workers:
            return
        self._is_recorded = True
        hosts = {worker.node: worker.host for worker in workers}
        nodes = sorted(hosts)
        processes = [[worker.process, nodes.index(worker.node)] for worker in workers]
        self._run.append_event("workers", nodes=nodes, hosts=[hosts[node] for node in nodes], processes=processes)

    def _cluster_change(self, workers: list[WorkerStatus]) -> str | None:
        """Return which change of the cluster is a reason for the group to leave, None if there is none."""
        if {worker.node for worker in workers} & draining_nodes():
            return PREEMPTION
        cluster = self._job.cluster
        if not workers or workers[0].num_workers >= cluster.most_workers or time.monotonic() < self._next_growth_check:
            return None
        self._next_growth_check = time.monotonic() + cluster.resize_interval_seconds
        if self._may_grow():
            return GROWTH
        most = min(cluster.most_workers, num_slots(cluster, growth_offers()) - cluster.slots_for_evaluation)
        if most > workers[0].num_workers:
            self._growth.ask(most - workers[0].num_workers)
        return None

    def _end(self, ray: Any, worker: WorkerStatus) -> None:
        """Examine a silent worker from its own node, and kill it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = NodeAffinitySchedulingStrategy(worker.node, soft=False)
        examine = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=node)(examine_and_kill)
        try:
            evidence = ray.get(examine.remote(worker.process), timeout=END_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            evidence = f"its node does not answer: {error}"
        title = f"rank {worker.rank} in the step after {worker.step}, process {worker.process} on {worker.host}: silent"
        self._run.storage.put(stacks_key(worker.step, worker.rank), f"{title}\n\n{evidence}".encode())


class GrowthRequest:
    """Asks the autoscaler for room for more workers, beside what others ask it for.

    Ray's autoscaler adds nodes for tasks that wait for resources. A task here does nothing, so it uses no room once
    there is some, and all of them end with the driver. Of `ray.autoscaler.sdk.request_resources` the last caller in the
    whole cluster counts alone, and its request stays when the driver is killed: nodes would be paid for until somebody
    noticed.

    Args:
        cluster: What each worker needs.
    """

    def __init__(self, cluster: ClusterSpec) -> None:
        self._cluster = cluster
        self._waiting: list[Any] = []

    def ask(self, num_workers: int) -> None:
        """Ask for room for this many workers more, all together; what was asked for before is part of them."""
        import ray

        if self._waiting:
            _, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=0)
        amounts = wanted_resources(self._cluster)
        task = ray.remote(max_retries=0, num_cpus=amounts["CPU"], num_gpus=amounts.get("GPU", 0))(_do_nothing)
        selector = dict(self._cluster.labels) or None
        for _ in range(num_workers - len(self._waiting)):
            self._waiting.append(task.options(label_selector=selector).remote())

    def withdraw(self) -> None:
        """Ask for nothing more."""
        import ray

        waiting, self._waiting = self._waiting, []
        for task in waiting:
            ray.cancel(task)


def _do_nothing() -> None:
    """Take a worker's resources for no time."""


def examine_and_kill(process: int) -> str:
    """Return what can be seen of a process of this machine from outside, and kill it."""
    lines = []
    try:
        state = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("State")]
        lines += [*state, f"waits in {Path(f'/proc/{process}/wchan').read_text()}"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        command = [shutil.which("py-spy", path=path) or "py-spy", "dump", "--nonblocking", "--pid", str(process)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        lines.append(done.stdout or f"py-spy: {done.stderr.strip()}")
    except (OSError, subprocess.TimeoutExpired) as error:
        lines.append(f"no stack: {error}")
    try:
        os.kill(process, signal.SIGKILL)
        lines.append("killed")
    except ProcessLookupError:
        lines.append("is gone already")
    return "\n".join(lines)
