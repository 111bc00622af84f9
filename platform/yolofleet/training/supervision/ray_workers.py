"""One start of Ray Train's workers: what Ray is asked for, what each worker does, and how it ended.

How Ray Train connects the workers' processes: as it always does, over the network that Ray itself uses.

Gloo asks the host for the address of its own name. Where that is 127.0.1.1, as Debian has it, or belongs to a network
that other hosts do not reach, workers on two hosts never find each other.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ray.train.torch import TorchConfig

from yolofleet.core.errors import UserError, WorkError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.storage.lock import LockLostError
from yolofleet.storage.lock_record import FencingToken
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.worker_group import Reached
from yolofleet.training.supervision.failure_budget import Kind
from yolofleet.training.supervision.heartbeats import Member
from yolofleet.training.supervision.nodes import (
    NodeOffer,
    alive_offers,
    evaluates_apart,
    free_offers,
    num_places,
    wanted_resources,
)
from yolofleet.training.supervision.placement_group_cleanup import holds_room, return_abandoned
from yolofleet.training.supervision.watches import GroupWatch

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
GET_INTERFACE_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux."""


def interface_of(address: str) -> str | None:
    """Return the network interface of this host that has an IPv4 address, None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, GET_INTERFACE_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def name_interface() -> None:
    """Tell gloo which interface to use, unless the host's owner has."""
    import ray

    found = interface_of(ray.util.get_node_ip_address())
    if found is not None:
        os.environ.setdefault(GLOO_INTERFACE, found)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray has no types here
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


class ConnectedTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's settings for torch, with the interface named before the processes connect."""

    @property
    def backend_cls(self) -> type:
        """What Ray Train calls before and after training."""
        return _Backend


COLLECTIVE_TIMEOUT_SECONDS = 1800
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours what workers say."""
FAILURE_KEY = "failure.json"
"""Where a worker leaves the error that no restart cures."""
SETTLE_SECONDS = 15.0
"""How long the group before may take to give its places back."""
NOTICE_SECONDS = 3.0
"""How long Ray may take to tell of places that were given back; what is not free by then is another's, or dead."""


@dataclass(frozen=True)
class Ending:
    """How one start of the workers ended.

    Attributes:
        failure: What kind of failure it was; None: the workers ended by themselves.
        left: Why they left before the end of the run; None: they did not.
        reason: What happened, for people.
        reached: How far the run had come by then.
    """

    failure: Kind | None
    left: str | None
    reason: str
    reached: Reached | None


@contextmanager
def shared_folder(job: JobSpec, num_hosts: int) -> Iterator[str]:
    """Give Ray Train a place for its own small files: a folder of ours on one host, the job's storage on several.

    Nothing in it is ever read again: a place used twice would make Ray go on from its own record.
    """
    if num_hosts > 1:
        yield f"{job.storage.rstrip('/')}/{job.name}/ray/{uuid.uuid4().hex}"
        return
    with tempfile.TemporaryDirectory(prefix="yolofleet-ray-") as folder:
        yield folder


def train_once(
    job: JobSpec,
    token: FencingToken | None,
    run: RunDirectory,
    folder: str,
    attendance: Any,
    reached: Reached | None,
    stop_reason: Callable[[], str | None],
    leave_after_step: int | None = None,
) -> Ending:
    """Start the workers once and see how they end."""
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    group = uuid.uuid4().hex
    offers = alive_offers()
    began = time.monotonic()
    scaling = _scaling(job.cluster, _free_places(job.cluster, offers))
    settled = round(time.monotonic() - began, 3)
    try:
        ray.get(attendance.begin.remote(group))
    except ray.exceptions.RayError as error:
        raise WorkError(
            f"the cluster lost the node that this command runs on ({_one_line(error)}); the same command goes on from "
            "the newest checkpoint"
        ) from error
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "job": job.document(),
            "token": None if token is None else asdict(token),
            "group": group,
            "attendance": attendance,
            "reached": None if reached is None else asdict(reached),
            "leave_after_step": leave_after_step,
            "evaluate_apart": evaluates_apart(job.cluster, offers),
        },
        scaling_config=scaling,
        torch_config=ConnectedTorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        run_config=RunConfig(
            name=f"{job.name}-{group[:8]}",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    run.storage.delete(FAILURE_KEY)
    run.append_event("starting", workers=scaling.num_workers, settled_seconds=settled)
    left: str | None = None
    failure: Exception | None = None
    with GroupWatch(job, run, attendance, stop_reason) as watch:
        try:
            left = trainer.fit().return_value
        except SystemExit as error:  # Ray's own answer to Ctrl-C, after it has stopped the workers
            raise KeyboardInterrupt from error
        except Exception as error:  # whatever Ray wraps a worker's failure in
            failure = error
    run.check_held()
    if run.storage.exists(FAILURE_KEY):
        told = json.loads(run.storage.get(FAILURE_KEY))
        raise (UserError if told["user_error"] else WorkError)(told["message"]) from failure
    if failure is None:
        left = watch.asked if left is not None and watch.asked is not None else left
        return Ending(None, left, left or "", watch.reached)
    kind, reason = _judged(failure, watch.members)
    if watch.hung:
        silent = ", ".join(member.described() for member in watch.hung)
        reason = f"{silent} gave no sign for cluster.hang_timeout_seconds; {reason}"
    return Ending(kind, None, reason, watch.reached)


def _free_places(cluster: ClusterSpec, offers: Sequence[NodeOffer]) -> int:
    """Return how many workers find room now on the nodes that stay; a group of one size takes what it takes."""
    if cluster.fewest_workers == cluster.most_workers:
        return cluster.most_workers
    wanted = min(cluster.most_workers, num_places(cluster, offers) - cluster.places_for_evaluation)
    began = returned = time.monotonic()
    while (free := num_places(cluster, free_offers())) < wanted:
        return_abandoned()
        if holds_room():
            returned = time.monotonic()
        if time.monotonic() > min(returned + NOTICE_SECONDS, began + SETTLE_SECONDS):
            break
        time.sleep(0.2)
    return min(free, wanted)


def _scaling(cluster: ClusterSpec, places: int) -> Any:
    """Return what Ray Train is asked for: as many workers as find room, within the job's limits.

    Ray would also judge that by itself at each start, but by what the group before has not given back yet, and would
    start again with more abruptly, without a checkpoint (`GroupWatch` sees to it).
    """
    from ray.train import ScalingConfig

    most = max(cluster.fewest_workers, min(cluster.most_workers, places))
    labels: list[dict[str, str]] | None = None
    if cluster.labels or cluster.first_worker_labels:
        labels = [dict(cluster.labels) for _ in range(most)]
        labels[0] |= cluster.first_worker_labels
    return ScalingConfig(
        num_workers=most,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=wanted_resources(cluster),
        placement_strategy=cluster.placement,
        label_selector=labels,
    )


def _judged(failure: Exception, members: list[Member]) -> tuple[Kind, str]:
    """Return what kind of failure an exception of `fit` is, and what it says of which workers."""
    from ray.train import WorkerGroupError

    if not isinstance(failure, WorkerGroupError):
        return "start", _one_line(failure)
    errors = failure.worker_failures
    preempted = any(getattr(error, "preempted", False) for error in errors.values())
    names = {member.rank: member.described() for member in members}
    died = {rank for rank, error in errors.items() if type(error).__name__ == "WorkerHealthCheckFailedError"}
    # The dead first: what the others say is only that they have lost them.
    told = "; ".join(
        f"{names.get(rank, f'rank {rank}')} " + ("died" if rank in died else f"failed: {_one_line(errors[rank])}")
        for rank in sorted(errors, key=lambda rank: (rank not in died, rank))[:4]
    )
    return ("preemption" if preempted else "worker"), told


def _one_line(error: Exception, longest: int = 400) -> str:
    """Return what an exception says in a line; of a worker's traceback in it, only what it ends with."""
    lines = [line.strip() for line in COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if any(line.startswith('File "') for line in lines):
        lines = lines[-1:]
    return f"{type(error).__name__}: {' '.join(' '.join(lines).split())}"[:longest]


def train_worker(config: dict[str, Any]) -> str | None:
    """Be one worker of Ray Train's group; returns why it left before the end of the run, None at its end."""
    import ray.train
    import ray.train.torch

    from yolofleet.training.loop.worker_group import Pulse, WorkerGroup
    from yolofleet.training.supervision.heartbeats import attending, this_member
    from yolofleet.training.supervision.worker import run_worker

    context = ray.train.get_context()
    job = JobSpec.parse(config["job"], source="job")
    token = None if config["token"] is None else FencingToken(**config["token"])
    reached = None if config["reached"] is None else Reached(**config["reached"])
    pulse = Pulse(reached, leave_after_step=config["leave_after_step"])
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    group = WorkerGroup(rank, world_size, device, pulse)
    try:
        with attending(config["attendance"], this_member(config["group"], rank, world_size), pulse, device):
            return run_worker(job, group, token, evaluate_apart=config["evaluate_apart"]).left
    except LockLostError:
        raise  # the run directory is another's now, failure.json with it
    except (UserError, WorkError) as error:
        # A restart would meet the same again: the driver reads this and starts none.
        told = {"user_error": isinstance(error, UserError), "message": str(error)}
        open_storage(job.storage).child(job.name).put(FAILURE_KEY, json.dumps(told).encode())
        raise
