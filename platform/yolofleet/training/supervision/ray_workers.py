"""One start of Ray Train's workers: what Ray is asked for, what each worker does, and how it ended."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.retry import retry
from yolofleet.core.stopping import announced_interrupt, kept_handlers
from yolofleet.core.terminal import announce, note
from yolofleet.core.text import one_line
from yolofleet.data.loader_process import LoaderProcessError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.storage import is_transient, open_storage
from yolofleet.storage.lock import FencingToken, LockLostError
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_documents import Document, read_document
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import KnownProgress, WorkerProgress
from yolofleet.training.supervision.group_room import STRICT
from yolofleet.training.supervision.heartbeats import WorkerStatus, own_status, report_heartbeats
from yolofleet.training.supervision.network_interface import ConnectedTorchConfig
from yolofleet.training.supervision.nodes import (
    NodeOffer,
    alive_offers,
    evaluates_separately,
    free_offers,
    room_for,
    wanted_resources,
    worker_labels,
)
from yolofleet.training.supervision.placement_groups import (
    SETTLE_SECONDS,
    holds_placement_groups,
    remove_orphaned_groups,
    returns_room,
)
from yolofleet.training.supervision.watches import GroupWatch
from yolofleet.training.supervision.worker import run_worker

if TYPE_CHECKING:
    from yolofleet.training.supervision.admission import Admission

Failure = Literal["worker", "preemption", "start"]
"""``worker``: one died or hung; ``preemption``: a node was about to go; ``start``: the workers never trained."""
COLLECTIVE_TIMEOUT_SECONDS = 1800
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours the output of workers."""
FAILURE_KEY = "failure.json"
"""Where a worker stores an error that no restart cures."""
ROOM_TAKEN = "others took the room before the workers had it"
"""Why a group left that never started."""
STORAGE_PATIENCE_SECONDS = 600.0
"""How long the driver waits for a storage that does not answer, once the workers have ended."""
NOTICE_SECONDS = 3.0
"""How long Ray may take to list returned resources as free; what is not free by then is in other use, or dead."""


class StoredError(Document):
    """``failure.json``."""

    user_error: bool
    message: str


@dataclass(frozen=True)
class Ending:
    """How one start of the workers ended."""

    failure: Failure | None
    """The kind of failure; None: the workers ended by themselves."""
    left: str | None
    """Why they left before the end of the run; None: they did not."""
    reason: str
    """What happened, for people."""
    progress: KnownProgress | None
    """How far the run had come by then."""


def train_once(
    job: JobSpec,
    token: FencingToken | None,
    run: RunDirectory,
    folder: str,
    board: Any,
    known: KnownProgress | None,
    stop_reason: Callable[[], str | None],
    leave_after_step: int | None = None,
    admission: Admission | None = None,
) -> Ending:
    """Start the workers once, and return how they ended.

    Ray Train keeps a few files of its own in a new and empty folder of this node: its controller runs here.
    Where the cluster has a queue, the admission says how many workers may start, and keeps the slots of those that do.

    Raises:
        UserError: A worker found a mistake in the job or the data.
        WorkError: A worker met an error that no restart cures, or the driver's own node is lost.
    """
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    group = uuid.uuid4().hex
    offers = alive_offers()
    began = time.monotonic()
    scaling = _scaling(job.cluster, _free_slots(job.cluster, offers, admission))
    apart = evaluates_separately(job.cluster, offers)
    if admission is not None:
        apart = job.cluster.evaluation == "apart" or (apart and admission.claim() > scaling.num_workers)
        admission.hold(scaling.num_workers + apart)
    settled = round(time.monotonic() - began, 3)
    try:
        ray.get(board.begin.remote(group))
    except ray.exceptions.RayError as error:
        raise WorkError(
            f"the cluster lost the node that this command runs on ({_explain(error)}); resume the run from the newest "
            "checkpoint with the same command"
        ) from error
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "job": job.document(),
            "token": None if token is None else asdict(token),
            "group": group,
            "board": board,
            "known": None if known is None else asdict(known),
            "leave_after_step": leave_after_step,
            "evaluate_apart": apart,
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
    with GroupWatch(job, run, board, stop_reason, _may_grow(job.cluster, scaling.num_workers, admission)) as watch:
        try:
            with kept_handlers(), announced_interrupt(announce, "the workers end, which takes some seconds"):
                left = trainer.fit().return_value
        except SystemExit as error:  # Ray's own answer to Ctrl-C, after it has stopped the workers
            raise KeyboardInterrupt from error
        except Exception as error:  # Ray wraps a worker's failure in several types
            failure = error
    if failure is not None or left is not None:
        board.begin.remote("")  # nobody trains until the next start: their figures must not stay
    retry(
        run.check_lock,
        patience_seconds=STORAGE_PATIENCE_SECONDS,
        is_transient=is_transient,
        on_retry=lambda error, _: note(f"waiting for the storage: {error}"),
    )
    if (stored := read_document(run.storage, FAILURE_KEY, StoredError, "remove it")) is not None:
        raise (UserError if stored["user_error"] else WorkError)(stored["message"]) from failure
    if failure is None:
        left = watch.leave_reason if left is not None and watch.leave_reason is not None else left
        return Ending(None, left, left or "", watch.progress)
    kind, reason = _classify(failure, watch.workers)
    if kind == "start" and admission is not None and not returns_room(job.cluster, scaling.num_workers):
        return Ending(None, ROOM_TAKEN, reason, watch.progress)
    if watch.hung:
        silent = ", ".join(worker.describe() for worker in watch.hung)
        reason = f"{silent} gave no sign for cluster.hang_timeout_seconds; {reason}"
    return Ending(kind, None, reason, watch.progress)


def _free_slots(cluster: ClusterSpec, offers: Sequence[NodeOffer], admission: Admission | None = None) -> int:
    """Return how many workers have room now on the nodes that stay; a group of one size takes all that it asks for."""
    if cluster.fewest_workers == cluster.most_workers:
        return cluster.most_workers
    beside = cluster.slots_for_evaluation
    wanted = min(cluster.most_workers, room_for(cluster, offers).slots(beside) - beside)
    began = returned = time.monotonic()

    def count() -> int:
        return (room_for(cluster, free_offers()).slots(beside) if admission is None else admission.claim()) - beside

    while (free := count()) < wanted:
        remove_orphaned_groups()
        if holds_placement_groups():
            returned = time.monotonic()
        if time.monotonic() > min(returned + NOTICE_SECONDS, began + SETTLE_SECONDS):
            break
        time.sleep(0.2)
    return min(free, wanted)


def _may_grow(cluster: ClusterSpec, num_workers: int, admission: Admission | None) -> Callable[[], bool] | None:
    """Return what says whether there is room for more workers; None: what is free on the nodes does."""
    if admission is not None:
        return lambda: admission.peek() > admission.holds
    if cluster.placement in STRICT:  # what is free on a node that has a worker may be no room for another
        return lambda: room_for(cluster, free_offers()).slots() > num_workers
    return None


def _scaling(cluster: ClusterSpec, slots: int) -> Any:
    """Return what Ray Train is asked for: as many workers as have room, within the job's limits.

    Ray could choose the number itself, but it would count what the previous group has not given back yet, and it would
    grow the group abruptly, without a checkpoint (`GroupWatch` does it with one).
    """
    from ray.train import ScalingConfig

    most = max(cluster.fewest_workers, min(cluster.most_workers, slots))
    labels: list[dict[str, str]] | None = None
    if cluster.labels or cluster.first_worker_labels:
        labels = worker_labels(cluster, most)
    return ScalingConfig(
        num_workers=most,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=wanted_resources(cluster),
        placement_strategy=cluster.placement,
        label_selector=labels,
    )


def _classify(error: Exception, workers: list[WorkerStatus]) -> tuple[Failure, str]:
    """Return the kind of failure that an exception of `fit` is, and what it says of which workers."""
    from ray.train import WorkerGroupError

    if not isinstance(error, WorkerGroupError):
        return "start", _explain(error)
    errors = error.worker_failures
    preempted = any(getattr(failure, "preempted", False) for failure in errors.values())
    names = {worker.rank: worker.describe() for worker in workers}
    died = {rank for rank, failure in errors.items() if type(failure).__name__ == "WorkerHealthCheckFailedError"}
    # The dead come first: the others only say that they lost them.
    reason = "; ".join(
        f"{names.get(rank, f'rank {rank}')} " + ("died" if rank in died else f"failed: {_explain(errors[rank])}")
        for rank in sorted(errors, key=lambda rank: (rank not in died, rank))[:4]
    )
    return ("preemption" if preempted else "worker"), reason


def _explain(error: Exception) -> str:
    """Return an exception as one line; of a worker's traceback in it, only the last line."""
    lines = [line.strip() for line in COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if any(line.startswith('File "') for line in lines):
        lines = lines[-1:]
    return one_line(f"{type(error).__name__}: {' '.join(lines)}", 400)


def train_worker(config: dict[str, Any]) -> str | None:
    """Be one worker of Ray Train's group; returns why it left before the end of the run, None at its end."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    job = JobSpec.parse(config["job"], source="job")
    token = None if config["token"] is None else FencingToken(**config["token"])
    known = None if config["known"] is None else KnownProgress(**config["known"])
    progress = WorkerProgress(known, leave_after_step=config["leave_after_step"])
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    group = WorkerGroup(rank, world_size, device, progress)
    try:
        with report_heartbeats(config["board"], own_status(config["group"], rank, world_size), progress, device):
            return run_worker(job, group, token, evaluate_apart=config["evaluate_apart"]).left
    except LockLostError:
        raise  # the run directory is another's now, failure.json with it
    except LoaderProcessError:
        raise  # a restart may cure it, as it cures the loss of a worker
    except (UserError, WorkError) as error:
        if is_transient(error):
            raise  # the storage may be back when the workers start again
        # A restart would meet the same error again: the driver reads this file and starts no further one.
        document = {"user_error": isinstance(error, UserError), "message": str(error)}
        open_storage(job.storage).child(job.name).put(FAILURE_KEY, json.dumps(document).encode())
        raise
