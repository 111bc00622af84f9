"""Training without Ray: in this process, or as one of torchrun's."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector import select_device
from yolofleet.specs.job import JobSpec
from yolofleet.storage.lock_record import Token
from yolofleet.training.loop.non_finite import shared_text
from yolofleet.training.loop.train import Outcome
from yolofleet.training.loop.worker_group import Pulse, StoppedError, WorkerGroup
from yolofleet.training.supervision.worker import run_worker

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def run_in_process(job: JobSpec, token: Token | None = None) -> Outcome:
    """Run the job here; as one worker of several where torchrun's environment (RANK, WORLD_SIZE) says so.

    Args:
        job: What to compute.
        token: The run's lock, as its holder has it.

    Raises:
        UserError: There are more processes than micro-batches, or a GPU is asked for where there is none.
        StoppedError: SIGTERM came (a node about to be taken, the end of an allocation), or Ctrl-C; the state was saved.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = local_device(job)
    if world_size > job.num_micro_batches:
        raise UserError(
            f"{world_size} processes were started, but a global batch of {job.global_batch_size} holds only "
            f"{job.num_micro_batches} micro-batches of {job.micro_batch_size}; start fewer, or lower micro_batch_size"
        )
    pulse = Pulse()
    with _leaving_on_termination(pulse):
        outcome = _run(job, WorkerGroup(rank, world_size, device, pulse), token)
    if outcome.left is not None:
        raise StoppedError(f"stopped ({outcome.left}) with step {outcome.step} saved; the same command goes on from it")
    return outcome


def _run(job: JobSpec, group: WorkerGroup, token: Token | None) -> Outcome:
    if group.world_size == 1:
        return run_worker(job, group, token)
    # torchrun keeps its store over its restarts, with the addresses of the processes before in it.
    kept, rank, world_size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt-{attempt}", kept)  # type: ignore[attr-defined]  # public, but not declared so
    backend = "nccl" if group.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    try:
        return run_worker(job, group, _shared(token, group))
    finally:
        dist.destroy_process_group()


def _shared(token: Token | None, group: WorkerGroup) -> Token | None:
    """Give every process the first one's proof that it holds the run: all write there, and all stop when it is lost."""
    text = shared_text("" if token is None else json.dumps(asdict(token)), group)
    return Token(**json.loads(text)) if text else None


@contextmanager
def _leaving_on_termination(pulse: Pulse) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the run after the step that it is in, with a checkpoint, within a with block.

    A second Ctrl-C stops it at once. The first one must not be an exception: Python drops one that is raised while
    it runs a destructor, and the run would go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread to take
        return

    def leave(number: int, frame: FrameType | None) -> None:
        pulse.ask_to_leave(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    kinds = [signal.SIGTERM] if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else [signal.SIGTERM, signal.SIGINT]
    before = {kind: signal.signal(kind, leave) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def driver_device(job: JobSpec) -> torch.device:
    """Return the device for what the command itself computes: it may run where the workers' GPUs are not."""
    return torch.device("cpu") if job.cluster.gpus_per_worker == 0 else select_device("auto", "device")


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
