"""One worker: what each does, whoever started it, and how to run one in this process or as one of torchrun's.

In a collective all workers wait for the slowest, so when one hangs, all of them stop making progress. A thread of each
then stores the stacks of all threads in the run directory and ends the process; whoever started the workers starts them
again. A process that is itself stopped cannot do that: the driver ends it (yolofleet.training.supervision.watches).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from yolofleet.core.background import BackgroundLoop, EndLoop
from yolofleet.core.errors import EXIT_STOPPED, UserError
from yolofleet.core.stopping import ending_signals, kept_handlers
from yolofleet.core.terminal import announce, guard_output, note
from yolofleet.core.text import plural
from yolofleet.specs.job import JobSpec
from yolofleet.storage import Storage
from yolofleet.storage.lock import FencingToken
from yolofleet.tracking.json_lines import OnRow, ignore_row
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.evaluation.checkpoint_evaluations import Validation
from yolofleet.training.loop.train import Outcome, train
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import StoppedError, WorkerProgress

STACKS_FOLDER = "stacks"
EXIT_HUNG = 75
"""Exit code of a process that ended itself because it hung (sysexits' "temporary failure, try again")."""
STORE_TIMEOUT_SECONDS = 15.0
"""How long storing the stacks may take: the storage may be what hangs."""
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def run_in_process(job: JobSpec, token: FencingToken | None = None, *, on_row: OnRow = ignore_row) -> Outcome:
    """Run the job here; as one worker of several where torchrun's environment (RANK, WORLD_SIZE) says so.

    Args:
        job: What to compute.
        token: The run's lock, as its holder has it.
        on_row: Takes the rows and events of this process.

    Raises:
        UserError: There are more processes than micro-batches, or a GPU is asked for where there is none.
        StoppedError: SIGTERM or SIGHUP came (a node about to be taken, the end of an allocation), or Ctrl-C; the state
            was saved.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = local_device(job)
    started = plural(world_size, "process was started", "processes were started")
    if world_size > job.num_micro_batches:
        raise UserError(
            f"{started}, but a global batch of {job.global_batch_size} holds only "
            f"{plural(job.num_micro_batches, 'micro-batch')} of {job.micro_batch_size}; start fewer, or lower "
            "micro_batch_size"
        )
    try:
        job.check_teams([world_size])
    except ValueError as error:
        raise UserError(f"{started}: {error}") from None
    progress = WorkerProgress(on_row=on_row)
    group = WorkerGroup(rank, world_size, device, progress)
    with _leave_on_signal(progress):
        outcome = run_worker(job, group, token) if world_size == 1 else _run_in_group(job, group, token)
    if outcome.left is not None:
        stopped = StoppedError(
            f"stopped ({outcome.left}) with step {outcome.step} saved; resume the run with the same command"
        )
        if outcome.left == signal.SIGINT.name:
            stopped.exit_code = EXIT_STOPPED
        raise stopped
    return outcome


def _run_in_group(job: JobSpec, group: WorkerGroup, token: FencingToken | None) -> Outcome:
    # torchrun keeps its store over restarts, with the addresses of earlier processes in it: hence a prefix for each.
    base, rank, world_size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt-{attempt}", base)  # type: ignore[attr-defined]  # public, but not declared so
    backend = "nccl" if group.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    try:
        # Every process gets the first one's token: all write, and all stop when the lock is lost.
        text = group.concatenate_texts("" if token is None else json.dumps(asdict(token)))
        return run_worker(job, group, FencingToken(**json.loads(text)) if text else None)
    finally:
        dist.destroy_process_group()


@contextmanager
def _leave_on_signal(progress: WorkerProgress) -> Iterator[None]:
    """Let SIGTERM, SIGHUP and Ctrl-C end the run after its current step, with a checkpoint, within a with block.

    A second Ctrl-C stops it at once. The first one must not be an exception: Python drops an exception that is raised
    while it runs a destructor, and the run would continue.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        progress.ask_to_leave(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, interrupt)
            announce("\nstopping (Ctrl-C) when this step is done and saved; a second time ends it at once, unsaved")

    interrupt = signal.getsignal(signal.SIGINT)
    kinds = [*ending_signals(), *([] if interrupt == signal.SIG_IGN else [signal.SIGINT])]
    with kept_handlers() as can_handle:
        for kind in kinds if can_handle else ():
            signal.signal(kind, leave)
        yield


def local_device(job: JobSpec) -> torch.device:
    """Return the device that this process computes on.

    Raises:
        UserError: The job asks for a GPU and this machine has none.
    """
    if job.cluster.gpus_per_worker == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"cluster.gpus_per_worker is {job.cluster.gpus_per_worker:g}, but torch finds no GPU here; "
            "set cluster.gpus_per_worker=0 to train on the CPU"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def use_worker_threads(job: JobSpec, device: torch.device) -> None:
    """Let torch use as many threads as the job gives a worker CPUs."""
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(job.cluster.worker_cpus)))


def run_worker(
    job: JobSpec, group: WorkerGroup, token: FencingToken | None = None, *, evaluate_apart: bool = False
) -> Outcome:
    """Take part in the job's run, from where its run directory stands to its end.

    Args:
        job: What to compute.
        group: This worker.
        token: The run's lock, as whoever started the workers holds it; None where no one else can know of the run.
        evaluate_apart: Leave the evaluations to another process, which finds the waiting ones in the run directory.
    """
    guard_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    use_worker_threads(job, group.device)
    with RunDirectory.open(job.storage, job.name, token=token, on_row=group.progress.report) as run:
        validation = None if evaluate_apart else Validation(job, group, run)
        with end_when_hung(group.progress, job.cluster.hang_timeout_seconds, run.storage, group.rank):
            outcome = train(job, run, group, evaluate=validation, report=run.append_metrics)
            if validation is not None:
                validation.close()
            return outcome


@contextmanager
def end_when_hung(
    progress: WorkerProgress,
    timeout_seconds: float,
    storage: Storage,
    rank: int,
    end_process: Callable[[int], None] = os._exit,
) -> Iterator[None]:
    """End this process when it makes no progress for longer than ``timeout_seconds`` within the with block.

    Args:
        progress: How far the loop is.
        timeout_seconds: The longest time without progress.
        storage: The run directory, which gets ``stacks/step-S-rank-R-TIME.txt``.
        rank: This worker.
        end_process: Ends the process; called with `EXIT_HUNG`.
    """

    def check() -> None:
        if progress.silence_seconds() > timeout_seconds:
            store_stacks(storage, progress, rank, f"no progress for {timeout_seconds:g} s")
            end_process(EXIT_HUNG)
            raise EndLoop

    warning = "this worker's progress cannot be checked at the moment"
    with BackgroundLoop(check, seconds=min(1.0, timeout_seconds / 10), name="hang-watch", warning=warning):
        try:
            yield
        finally:
            progress.stop()


def store_stacks(storage: Storage, progress: WorkerProgress, rank: int, reason: str) -> None:
    """Print this process's stacks on stderr and store them in the run directory, within a bounded time."""
    title = f"rank {rank} in the step after {progress.step}, process {os.getpid()}: {reason}"
    text = f"{title}\n\n{format_stacks()}"
    note(text)
    key = stacks_key(progress.step, rank)
    storing = threading.Thread(target=storage.put, args=(key, text.encode()), name="store-stacks", daemon=True)
    storing.start()
    storing.join(STORE_TIMEOUT_SECONDS)


def stacks_key(step: int, rank: int) -> str:
    """Return the key for the stacks of a worker that hung now."""
    return f"{STACKS_FOLDER}/step-{step}-rank-{rank}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.txt"


def format_stacks() -> str:
    """Return the Python stacks of all threads of this process, the main thread first."""
    frames: dict[int, FrameType] = dict(sys._current_frames())
    threads = sorted(threading.enumerate(), key=lambda thread: thread is not threading.main_thread())
    return "\n".join(
        f"thread {thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threads
        if thread.ident in frames and thread is not threading.current_thread()
    )
