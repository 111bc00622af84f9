"""What one worker does, whoever started it: its own process, torchrun or Ray Train.

A thread that ends its own process when training stands still, and leaves the stacks of all threads behind.

In a collective all workers wait for the slowest, so when one hangs the pulse of every one stops. Each leaves its stacks
in the run directory and dies; whoever started the workers starts them again. A process that is itself stopped cannot
do that: the driver ends it (yolofleet.training.supervision.heartbeats).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from yolofleet.specs.job import JobSpec
from yolofleet.storage import Storage
from yolofleet.storage.lock_record import FencingToken
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.evaluation.checkpoint_evaluations import Validation
from yolofleet.training.loop.train import Outcome, train
from yolofleet.training.loop.worker_group import Pulse, WorkerGroup

STACKS_FOLDER = "stacks"
EXIT_HUNG = 75
"""Exit code of a process that ended itself because it hung (sysexits' "temporary failure, try again")."""
STORE_TIMEOUT_SECONDS = 15.0
"""How long storing the stacks may take: the storage may be what hangs."""


@contextmanager
def watching(
    pulse: Pulse,
    timeout_seconds: float,
    storage: Storage,
    rank: int,
    end_process: Callable[[int], None] = os._exit,
) -> Iterator[None]:
    """End this process when the pulse is silent for longer than ``timeout_seconds`` within the with block.

    Args:
        pulse: What the loop beats.
        timeout_seconds: The longest silence.
        storage: The run directory, which gets ``stacks/step-S-rank-R-TIME.txt``.
        rank: This worker.
        end_process: Ends the process; called with `EXIT_HUNG`.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(1.0, timeout_seconds / 10)):
            if pulse.silence_seconds() > timeout_seconds:
                leave_stacks(storage, pulse, rank, f"no progress for {timeout_seconds:g} s")
                end_process(EXIT_HUNG)
                return

    thread = threading.Thread(target=watch, name="hang-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        pulse.rest()


def leave_stacks(storage: Storage, pulse: Pulse, rank: int, reason: str) -> None:
    """Print this process's stacks on stderr and store them in the run directory, within a bounded time."""
    title = f"rank {rank} in the step after {pulse.step}, process {os.getpid()}: {reason}"
    text = f"{title}\n\n{all_stacks()}"
    print(text, file=sys.stderr, flush=True)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    key = f"{STACKS_FOLDER}/step-{pulse.step}-rank-{rank}-{moment}.txt"
    storing = threading.Thread(target=storage.put, args=(key, text.encode()), name="store-stacks", daemon=True)
    storing.start()
    storing.join(STORE_TIMEOUT_SECONDS)


def all_stacks() -> str:
    """Return the Python stacks of all threads of this process, the main thread first."""
    frames: dict[int, FrameType] = dict(sys._current_frames())
    threads = sorted(threading.enumerate(), key=lambda thread: thread is not threading.main_thread())
    told = []
    for thread in threads:
        if thread.ident in frames and thread is not threading.current_thread():
            stack = "".join(traceback.format_stack(frames[thread.ident]))
            told.append(f"thread {thread.name}:\n{stack}")
    return "\n".join(told)


def run_worker(
    job: JobSpec, group: WorkerGroup, token: FencingToken | None = None, *, evaluate_apart: bool = False
) -> Outcome:
    """Take part in the job's run from where its run directory stands to its end.

    Args:
        job: What to compute.
        group: This worker's place.
        token: The run's lock, as whoever started the workers holds it; None where no one else can know of the run.
        evaluate_apart: Leave the evaluations to others, who find what waits in the run directory.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if group.device.type == "cpu":
        torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    with RunDirectory.open(job.storage, job.name, token=token) as run:

        def report(row: dict[str, Any]) -> None:
            run.append_metrics(row)
            group.pulse.tell(row)

        evaluate = None if evaluate_apart else Validation(job, group)
        with watching(group.pulse, job.cluster.hang_timeout_seconds, run.storage, group.rank):
            return train(job, run, group, evaluate=evaluate, report=report)
