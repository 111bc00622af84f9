"""Looking at everything, from a process that is connected to the cluster."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from yolofleet.cluster.doctor.all_reduce import look_at_exchange
from yolofleet.cluster.doctor.cluster_checks import cache_need, ray_line, room_line, tracking_line
from yolofleet.cluster.doctor.devices import SUBJECT as DEVICES_SUBJECT
from yolofleet.cluster.doctor.devices import Devices, judge_devices, look_at_devices
from yolofleet.cluster.doctor.disk import SUBJECT as DISK_SUBJECT
from yolofleet.cluster.doctor.disk import CacheNeed, Disk, judge_disk, look_at_disk
from yolofleet.cluster.doctor.finding import CLUSTER, Line, Report
from yolofleet.cluster.doctor.node_checks import (
    CLOCK_SUBJECT,
    VERSIONS_SUBJECT,
    Installed,
    Limits,
    judge_clock,
    judge_open_files,
    judge_shared_memory,
    judge_versions,
    look_at_limits,
    look_at_versions,
    measure_clock,
)
from yolofleet.cluster.doctor.nodes import SILENCE_CURE, Node, Probes, described
from yolofleet.cluster.doctor.storage_probe import (
    CREDENTIALS_CURE,
    RUNS_SUBJECT,
    DataFound,
    RunsFound,
    judge_data,
    judge_runs,
    look_at_data,
    look_at_runs,
    marked,
)
from yolofleet.core.background import within
from yolofleet.core.errors import UserError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage import StorageError
from yolofleet.training.supervision.nodes import alive_offers, free_resources, growth_offers

Told = Callable[[str], None]
LEFT_OUT = "room for workers, storage, data, shard cache and MLflow: name the JOB that is to run"
STILL_THERE_SECONDS = 10.0


@dataclass(frozen=True)
class Deadlines:
    """How long each question may take, in seconds.

    Attributes:
        start: Until a process of ours runs on a node; a busy host takes long to load torch.
        look: What a node knows by itself.
        disk: Writing to its disk.
        storage: Writing to and reading from the storage.
        exchange: Meeting and summing; the start of its processes has `start` besides.
    """

    start: float = 180.0
    look: float = 60.0
    disk: float = 60.0
    storage: float = 120.0
    exchange: float = 60.0


def examine(job: JobSpec | None, wanted: Installed, told: Told, deadlines: Deadlines | None = None) -> Report:
    """Look at every node of the cluster that this process is connected to.

    Args:
        job: What is to run there; without one, what depends on it is left out.
        wanted: What jobs are checked with, where they are sent from.
        told: Called with what is looked at next.
        deadlines: How long each question may take.
    """
    import ray

    limits = deadlines or Deadlines()
    cluster = job.cluster if job is not None else ClusterSpec()
    nodes = described(ray.nodes(), cluster)
    told(f"looking at {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}")
    with Probes(nodes) as probes:
        examination = _Examination(job, wanted, told, limits, probes, nodes)
        return Report(tuple(examination.lines()), () if job is not None else (LEFT_OUT,))


class _Examination:
    """One look at everything; a node that has fallen silent is not asked again."""

    def __init__(
        self,
        job: JobSpec | None,
        wanted: Installed,
        told: Told,
        deadlines: Deadlines,
        probes: Probes,
        nodes: list[Node],
    ) -> None:
        self._job = job
        self._wanted = wanted
        self._told = told
        self._deadlines = deadlines
        self._probes = probes
        self._nodes = nodes

    def lines(self) -> Iterator[Line]:
        """Yield what is found, in the order of looking."""
        yield ray_line(self._nodes)
        if self._job is not None:
            yield room_line(self._job.cluster, alive_offers(), growth_offers())
        yield from self._looked(VERSIONS_SUBJECT, self._deadlines.start, look_at_versions, self._versions)
        yield from self._looked_at_clocks()
        wants_gpus = self._job is not None and self._job.cluster.gpus_per_worker > 0
        yield from self._looked(
            DEVICES_SUBJECT, self._deadlines.look, look_at_devices, self._devices, wants_gpus, only_workers=True
        )
        yield from self._looked("limits", self._deadlines.look, look_at_limits, self._limits)
        if self._job is not None:
            yield from self._looked_at_storage(self._job)
            yield from self._looked_at_cache(self._job)
            self._told("MLflow")
            yield tracking_line(self._job)
        self._told("all-reduce")
        cluster = None if self._job is None else self._job.cluster
        yield look_at_exchange(self._nodes, cluster, free_resources(), self._deadlines.start, self._deadlines.exchange)

    def _looked(
        self,
        subject: str,
        seconds: float,
        look: Callable[..., Any],
        judge: Callable[[Node, Any], Iterable[Line]],
        *arguments: Any,
        only_workers: bool = False,
    ) -> Iterator[Line]:
        """Ask every node that still answers, or those that workers go to, and judge what each has found."""
        self._told(subject)
        asked = [node for node in self._nodes if node.num_workers or not only_workers]
        answers = self._probes.ask(asked, look, *arguments, seconds=seconds)
        for node, found in answers.found.items():
            yield from judge(node, found)
        for node, silence in answers.silent.items():
            yield Line(node.name, subject, "fail", silence.reason, SILENCE_CURE)
        silent = self._probes.ask(answers.silent, time.time, seconds=STILL_THERE_SECONDS).silent
        self._nodes = [node for node in self._nodes if node not in silent]

    def _looked_at_clocks(self) -> Iterator[Line]:
        self._told("clocks")
        for node in list(self._nodes):
            try:
                offset = measure_clock(partial(self._time_at, node))
            except _SilentError as error:
                self._nodes.remove(node)
                yield Line(node.name, CLOCK_SUBJECT, "fail", str(error), SILENCE_CURE)
            else:
                yield judge_clock(node.name, offset)

    def _time_at(self, node: Node) -> float:
        answers = self._probes.ask([node], time.time, seconds=self._deadlines.look)
        if node in answers.silent:
            raise _SilentError(answers.silent[node].reason)
        return answers.found[node]

    def _looked_at_storage(self, job: JobSpec) -> Iterator[Line]:
        mark = secrets.token_hex(8)
        seconds = self._deadlines.storage
        try:
            with marked(job.storage, mark):
                judge = partial(_judged_runs, job.storage)
                yield from self._looked(RUNS_SUBJECT, seconds, look_at_runs, judge, job.storage, mark)
        except StorageError as error:
            yield Line(CLUSTER, RUNS_SUBJECT, "fail", str(error), CREDENTIALS_CURE)
        for subject, url in (("training data", job.data.train), ("validation data", job.data.val)):
            yield from self._looked(subject, seconds, look_at_data, partial(_judged_data, subject, url), url)

    def _looked_at_cache(self, job: JobSpec) -> Iterator[Line]:
        try:
            need = within(self._deadlines.storage, partial(cache_need, job))
        except (UserError, TimeoutError):
            return  # the data cannot be read: the nodes have said so already
        if need is None:
            yield Line(CLUSTER, DISK_SUBJECT, "ok", "not used: the data lies in folders")
            return
        judge = partial(_judged_disk, need)
        seconds = self._deadlines.disk
        yield from self._looked(DISK_SUBJECT, seconds, look_at_disk, judge, need.path, only_workers=True)

    def _versions(self, node: Node, found: Installed) -> Iterator[Line]:
        yield judge_versions(node.name, found, self._wanted)

    def _devices(self, node: Node, found: Devices) -> Iterator[Line]:
        gpus_per_worker = None if self._job is None else self._job.cluster.gpus_per_worker
        yield judge_devices(node.name, found, node.gpus, gpus_per_worker)

    def _limits(self, node: Node, found: Limits) -> Iterator[Line]:
        if node.num_workers:
            num_workers = node.num_workers if self._job is not None else 1
            yield judge_shared_memory(node.name, found, node.object_store_bytes, num_workers)
        yield judge_open_files(node.name, found)


def _judged_runs(url: str, node: Node, found: RunsFound) -> list[Line]:
    return judge_runs(node.name, found, url)


def _judged_data(subject: str, url: str, node: Node, found: DataFound) -> list[Line]:
    return [judge_data(node.name, found, subject, url)]


def _judged_disk(need: CacheNeed, node: Node, found: Disk) -> list[Line]:
    return [judge_disk(node.name, found, need)]


class _SilentError(Exception):
    """A node gives no answer."""
