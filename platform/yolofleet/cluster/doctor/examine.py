"""The examination: every check in its order, from a process that is connected to the cluster.

A node that does not answer one question is asked whether it is alive, and left out of the next ones if it is not: each
deadline is waited for once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from yolofleet.cluster.doctor.all_reduce import examine_all_reduce
from yolofleet.cluster.doctor.cluster_checks import cache_need, check_room, examine_tracking, ray_finding
from yolofleet.cluster.doctor.devices import SUBJECT as DEVICES_SUBJECT
from yolofleet.cluster.doctor.devices import check_devices, probe_devices
from yolofleet.cluster.doctor.disk import SUBJECT as DISK_SUBJECT
from yolofleet.cluster.doctor.disk import check_disk, probe_disk
from yolofleet.cluster.doctor.finding import CLUSTER, Finding, Report
from yolofleet.cluster.doctor.node_checks import (
    CLOCK_SUBJECT,
    VERSIONS_SUBJECT,
    Installed,
    Limits,
    check_clock,
    check_open_files,
    check_shared_memory,
    check_versions,
    measure_clock,
    probe_limits,
    probe_versions,
)
from yolofleet.cluster.doctor.nodes import NO_ANSWER_CURE, ExaminedNode, Probes, list_nodes
from yolofleet.cluster.doctor.storage_probe import (
    CREDENTIALS_CURE,
    RUNS_SUBJECT,
    check_data,
    check_runs,
    probe_data,
    probe_runs,
    shared_marker,
)
from yolofleet.core.background import within
from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage import StorageError
from yolofleet.training.setup.worker_cpus import with_cpus
from yolofleet.training.supervision.nodes import alive_offers, free_resources, growth_offers

Notify = Callable[[str], None]
LEFT_OUT = "room for workers, storage, data, shard cache and MLflow: name the JOB that you want to run"
START_SECONDS = 180.0
"""Until an actor runs on a node; a busy host takes long to load torch."""
LOOK_SECONDS = 60.0
"""For what a node knows by itself."""
DISK_SECONDS = 60.0
STORAGE_SECONDS = 120.0
EXCHANGE_SECONDS = 60.0
"""For meeting and summing; the processes have `START_SECONDS` to come up."""
ALIVE_SECONDS = 10.0


def examine(job: JobSpec | None, expected: Installed, notify: Notify) -> Report:
    """Examine every node of the cluster that this process is connected to.

    Args:
        job: What is to run there; without one, the checks that depend on it are left out.
        expected: The versions of the machine that jobs are sent from.
        notify: Called with the subject of the next check.
    """
    import ray

    job = None if job is None else with_cpus(job)
    nodes = list_nodes(ray.nodes(), job.cluster if job is not None else ClusterSpec())
    notify(f"looking at {plural(len(nodes), 'node')}")
    with Probes(nodes) as probes:
        examination = _Examination(job, expected, notify, probes, nodes)
        return Report(tuple(examination.findings()), () if job is not None else (LEFT_OUT,))


class _Examination:
    """One examination and the nodes that still answer."""

    def __init__(
        self, job: JobSpec | None, expected: Installed, notify: Notify, probes: Probes, nodes: list[ExaminedNode]
    ) -> None:
        self._job = job
        self._expected = expected
        self._notify = notify
        self._probes = probes
        self._nodes = nodes

    def findings(self) -> Iterator[Finding]:
        """Yield the findings in the order of the checks."""
        job = self._job
        cluster = None if job is None else job.cluster
        yield ray_finding(self._nodes)
        if cluster is not None:
            yield check_room(cluster, alive_offers(), growth_offers())
        yield from self._ask_nodes(
            VERSIONS_SUBJECT,
            START_SECONDS,
            probe_versions,
            lambda node, found: [check_versions(node.name, found, self._expected)],
        )
        yield from self._ask_clocks()
        gpus_per_worker = None if cluster is None else cluster.gpus_per_worker
        yield from self._ask_nodes(
            DEVICES_SUBJECT,
            LOOK_SECONDS,
            partial(probe_devices, bool(gpus_per_worker)),
            lambda node, found: [check_devices(node.name, found, node.gpus, gpus_per_worker)],
            only_workers=True,
        )
        yield from self._ask_nodes("limits", LOOK_SECONDS, probe_limits, self._check_limits)
        if job is not None:
            yield from self._ask_about_storage(job)
            yield from self._ask_about_cache(job)
            self._notify("MLflow")
            yield examine_tracking(job)
        self._notify("all-reduce")
        yield examine_all_reduce(self._nodes, cluster, free_resources(), START_SECONDS, EXCHANGE_SECONDS)

    def _ask_nodes(
        self,
        subject: str,
        seconds: float,
        question: Callable[[], Any],
        check: Callable[[ExaminedNode, Any], list[Finding]],
        *,
        only_workers: bool = False,
    ) -> Iterator[Finding]:
        """Ask every node that still answers, or those with workers, and check what each has found."""
        self._notify(subject)
        asked = [node for node in self._nodes if node.num_workers or not only_workers]
        answers = self._probes.ask(asked, question, seconds=seconds)
        for node, facts in answers.facts.items():
            yield from check(node, facts)
        for node, missing in answers.missing.items():
            yield Finding(node.name, subject, "fail", missing.reason, NO_ANSWER_CURE)
        dead = self._probes.ask(answers.missing, time.time, seconds=ALIVE_SECONDS).missing
        self._nodes = [node for node in self._nodes if node not in dead]

    def _ask_clocks(self) -> Iterator[Finding]:
        self._notify("clocks")
        for node in list(self._nodes):
            try:
                yield check_clock(node.name, measure_clock(partial(self._time_at, node)))
            except _NoAnswerError as error:
                self._nodes.remove(node)
                yield Finding(node.name, CLOCK_SUBJECT, "fail", str(error), NO_ANSWER_CURE)

    def _time_at(self, node: ExaminedNode) -> float:
        answers = self._probes.ask([node], time.time, seconds=LOOK_SECONDS)
        if node in answers.missing:
            raise _NoAnswerError(answers.missing[node].reason)
        return answers.facts[node]

    def _check_limits(self, node: ExaminedNode, found: Limits) -> list[Finding]:
        files = check_open_files(node.name, found)
        if not node.num_workers:
            return [files]
        num_workers = node.num_workers if self._job is not None else 1
        return [check_shared_memory(node.name, found, node.object_store_bytes, num_workers), files]

    def _ask_about_storage(self, job: JobSpec) -> Iterator[Finding]:
        marker, url = secrets.token_hex(8), job.storage
        try:
            with shared_marker(url, marker):
                yield from self._ask_nodes(
                    RUNS_SUBJECT,
                    STORAGE_SECONDS,
                    partial(probe_runs, url, marker),
                    lambda node, found: check_runs(node.name, found, url),
                )
        except StorageError as error:
            yield Finding(CLUSTER, RUNS_SUBJECT, "fail", str(error), CREDENTIALS_CURE)
        for subject, data_url in (("training data", job.data.train), ("validation data", job.data.val)):
            check = partial(_check_data, subject, data_url)
            yield from self._ask_nodes(subject, STORAGE_SECONDS, partial(probe_data, data_url), check)

    def _ask_about_cache(self, job: JobSpec) -> Iterator[Finding]:
        try:
            need = within(STORAGE_SECONDS, partial(cache_need, job))
        except (UserError, TimeoutError):
            return  # the data cannot be read: the nodes have reported that already
        if need is None:
            yield Finding(CLUSTER, DISK_SUBJECT, "ok", "not used: the data lies in folders")
            return
        yield from self._ask_nodes(
            DISK_SUBJECT,
            DISK_SECONDS,
            partial(probe_disk, need.path),
            lambda node, found: [check_disk(node.name, found, need)],
            only_workers=True,
        )


def _check_data(subject: str, url: str, node: ExaminedNode, found: Any) -> list[Finding]:
    return [check_data(node.name, found, subject, url)]


class _NoAnswerError(Exception):
    """A node gave no answer."""
