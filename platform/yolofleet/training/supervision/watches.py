"""The driver's watch over a group of Ray workers: silent ones are ended, and the group leaves when it is time to.

Which nodes come and go while a run lasts, noted in its events: a thread of the driver.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.worker_group import Reached
from yolofleet.training.supervision.heartbeats import Member, Stall, reached, silent_members
from yolofleet.training.supervision.nodes import NodeSeen, draining_nodes, free_offers, num_places
from yolofleet.training.supervision.placement_group_cleanup import return_abandoned
from yolofleet.training.supervision.worker import STACKS_FOLDER

NODE_POLL_SECONDS = 2.0
CLOSE_TIMEOUT_SECONDS = 10.0
UNKNOWN = "Ray gives no reason"

logger = logging.getLogger(__name__)


class NodeWatch:
    """Notes nodes that join and leave for the length of a with block.

    Args:
        run: Gets the events ``node_joined`` and ``node_gone``.
        nodes_seen: Returns every node that the cluster has ever had, by its id.
        poll_seconds: Pause between two looks.
    """

    def __init__(
        self,
        run: RunDirectory,
        nodes_seen: Callable[[], dict[str, NodeSeen]],
        *,
        poll_seconds: float = NODE_POLL_SECONDS,
    ) -> None:
        self._run = run
        self._poll_seconds = poll_seconds
        self._nodes_seen = nodes_seen
        self._known: set[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)

    def __enter__(self) -> NodeWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=CLOSE_TIMEOUT_SECONDS)

    def look(self) -> None:
        """Note what is different from the last look; the first one notes nothing."""
        seen = self._nodes_seen()
        alive = {node for node, found in seen.items() if found.alive}
        if self._known is not None:
            for node in sorted(alive - self._known):
                self._run.append_event("node_joined", node=seen[node].name, node_id=node, offers=seen[node].offers)
            for node in sorted(self._known - alive):
                gone = seen.get(node)
                name, reason = (node[:8], "") if gone is None else (gone.name, gone.end)
                self._run.append_event("node_gone", node=name, node_id=node, reason=reason or UNKNOWN)
        self._known = alive

    def _watch(self) -> None:
        failing = False
        while True:
            try:
                self.look()
                failing = False
            except Exception as error:  # Ray's head may be away; the nodes are looked at again when it is back
                if not failing:
                    logger.warning("the cluster's nodes cannot be looked at: %s", error)
                failing = True
            if self._over.wait(self._poll_seconds):
                return


POLL_SECONDS = 1.0
ANSWER_TIMEOUT_SECONDS = 10.0
END_TIMEOUT_SECONDS = 30.0
PREEMPTION = "a node is about to be taken away"
GROWTH = "there is room for more workers"


class GroupWatch:
    """Watches one start of the workers for the length of a with block.

    Args:
        job: What is trained.
        run: The run directory, which gets the stacks of silent workers, and an event when the group stands still.
        attendance: The handle of the actor with the list of workers.
        stop_reason: Returns why the driver itself was told to stop, None if it was not.

    Attributes:
        reached: How far the group was when it was last heard of.
        hung: The workers that were ended because they were silent.
        members: Everyone's last report.
        asked: Why the group was asked to leave, None if it was not.
    """

    def __init__(self, job: JobSpec, run: RunDirectory, attendance: Any, stop_reason: Any) -> None:
        self.reached: Reached | None = None
        self.hung: list[Member] = []
        self.members: list[Member] = []
        self.asked: str | None = None
        self._job = job
        self._storage = run.storage
        self._stall = Stall(run.append_event, job.cluster.hang_timeout_seconds)
        self._attendance = attendance
        self._stop_reason = stop_reason
        self._over = threading.Event()
        self._next_look = time.monotonic() + job.cluster.resize_interval_seconds
        self._thread = threading.Thread(target=self._watch, name="group-watch", daemon=True)

    def __enter__(self) -> GroupWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=ANSWER_TIMEOUT_SECONDS)

    def _watch(self) -> None:
        import ray

        failing = False
        while not self._over.wait(POLL_SECONDS):
            try:
                self._look(ray)
                failing = False
            except Exception as error:  # a watch that ends leaves the run without one: it tries again
                if not failing:
                    logger.warning("the workers cannot be watched at the moment: %s", error)
                failing = True

    def _look(self, ray: Any) -> None:
        return_abandoned()  # the workers may be waiting for it
        now, members = ray.get(self._attendance.members.remote(), timeout=ANSWER_TIMEOUT_SECONDS)
        self.members = members
        self.reached = reached(now, members) or self.reached
        self._stall.look(now, members)
        for member in silent_members(now, members, self._job.cluster.hang_timeout_seconds):
            if member not in self.hung:
                self.hung.append(member)
                self._end(ray, member)
        reason = self._stop_reason() or self._time_to_leave(members)
        if reason is not None and self.asked is None:
            self.asked = reason
            self._attendance.ask_to_leave.remote(reason)

    def _time_to_leave(self, members: list[Member]) -> str | None:
        if {member.node for member in members} & draining_nodes():
            return PREEMPTION
        cluster = self._job.cluster
        if not members or members[0].num_workers >= cluster.most_workers or time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + cluster.resize_interval_seconds
        return GROWTH if num_places(cluster, free_offers()) > cluster.places_for_evaluation else None

    def _end(self, ray: Any, member: Member) -> None:
        """Look at a silent worker from its own node, and kill it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(member.node, soft=False)
        examine = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(examined_and_killed)
        try:
            told = ray.get(examine.remote(member.process), timeout=END_TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            told = f"its node does not answer: {error}"
        title = f"rank {member.rank} in the step after {member.step}, process {member.process} on {member.host}: silent"
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        key = f"{STACKS_FOLDER}/step-{member.step}-rank-{member.rank}-{moment}.txt"
        self._storage.put(key, f"{title}\n\n{told}".encode())


def examined_and_killed(process: int) -> str:
    """Return what can be seen of a process of this machine from outside, and kill it."""
    told = []
    try:
        state = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("State")]
        told += [*state, f"waits in {Path(f'/proc/{process}/wchan').read_text()}"]
        beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        command = [shutil.which("py-spy", path=beside) or "py-spy", "dump", "--nonblocking", "--pid", str(process)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        told.append(done.stdout or f"py-spy: {done.stderr.strip()}")
    except (OSError, subprocess.TimeoutExpired) as error:
        told.append(f"no stack: {error}")
    try:
        os.kill(process, signal.SIGKILL)
        told.append("killed")
    except ProcessLookupError:
        told.append("is gone already")
    return "\n".join(told)
