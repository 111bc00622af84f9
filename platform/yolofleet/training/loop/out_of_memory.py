"""Out of memory in a step: the run resumes from its last checkpoint, and takes less memory from then on.

First all blocks are computed again in the backward pass: the gradient stays the same. Only where that was not enough, a
micro-batch passes in two parts, then in four, down to single images: the loss is still that of the whole micro-batch,
but batch norm normalises each part by itself. What was decided is an object of the run directory, so every later start
and every worker computes the same way; without the folder ``out_of_memory/`` a run tries again as its job says.

With several workers the others wait for the one that failed, so all are started again by whoever started them.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass

import torch

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.text import one_line
from yolofleet.models.memory import MemoryUse, recomputed_blocks
from yolofleet.models.memory_saving import MemorySaving
from yolofleet.models.network import Network
from yolofleet.models.wiring import wire
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_documents import Count, Document, read_document
from yolofleet.training.loop.worker_group import WorkerGroup

FOLDER = "out_of_memory/"
EVENT = "out_of_memory"
USES: tuple[MemoryUse, ...] = ("fast", "balanced", "small")
KEY = re.compile(rf"{FOLDER}(?P<use>{'|'.join(USES)})-(?P<parts>[1-9][0-9]{{0,8}})\.json")
CPU_MESSAGES = ("DefaultCPUAllocator", "bad_alloc", "can't start new thread")


class OutOfMeasuresError(WorkError):
    """A step does not fit, although all is done that saves memory."""


class MemoryRecord(Document):
    """A record of `FOLDER`."""

    step: Count
    worker: Count
    reason: str
    measure: str


@dataclass(frozen=True)
class Measures:
    """How a run saves memory, the cheapest first."""

    num_parts: int
    """Parts of a micro-batch that pass one after the other."""
    use: int
    """Position in `USES`."""

    @property
    def key(self) -> str:
        """The key of its record in the run directory."""
        return f"{FOLDER}{USES[self.use]}-{self.num_parts}.json"

    def sentence(self) -> str:
        """Say what it means."""
        if self.num_parts > 1:
            return f"a micro-batch is processed in {self.num_parts} parts, each with its own batch norm"
        return "blocks are computed again in the backward pass (memory: small), to the same gradient"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a step failed because a device or this process has no more memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMeasuresError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)


def measures_in_use(job: JobSpec, run: RunDirectory) -> Measures:
    """Return how the run saves memory: as its job says, or as it had to.

    Raises:
        UserError: Something else lies where it is recorded.
    """
    found = [Measures(1, USES.index(job.memory))]
    for entry in run.storage.list(FOLDER):
        match = KEY.fullmatch(entry.key)
        if match is None:
            raise UserError(f"{run.url}/{entry.key}: is no record of how the run saves memory; remove it")
        found.append(Measures(int(match["parts"]), USES.index(match["use"])))
    return Measures(max(one.num_parts for one in found), max(one.use for one in found))


def save_memory(job: JobSpec, run: RunDirectory, group: WorkerGroup, model: Network) -> None:
    """Let a network save memory as the run has to, the same on every worker; a collective."""
    measures = measures_in_use(job, run) if group.is_first else Measures(1, 0)
    num_parts, use = group.first_value(measures.num_parts), group.first_value(measures.use)
    model.memory_saving = MemorySaving(recomputed_blocks(wire(model.table), USES[use]), num_parts)
    if group.is_first:
        _report(run)


def take_less(
    job: JobSpec, run: RunDirectory, group: WorkerGroup, error: BaseException, model: Network | None = None
) -> None:
    """Record that the run takes less memory from its next start on, after a step that had not enough.

    Args:
        job: What is trained.
        run: Its run directory.
        group: This worker; where several fail in one step, all of them record the same.
        error: What failed.
        model: The network that had not enough; None where it failed before there was one.

    Raises:
        OutOfMeasuresError: There is no less.
    """
    used = measures_in_use(job, run) if model is None else _measures_of(model)
    size = job.resolved_micro_batch_size
    if used.use < len(USES) - 1:
        following = Measures(used.num_parts, len(USES) - 1)
    elif used.num_parts < size:
        following = Measures(min(2 * used.num_parts, size), used.use)
    else:
        raise OutOfMeasuresError(
            f"out of memory in the step after {group.progress.step}, although images pass through the network one by "
            f"one and everything possible is computed again: {one_line(error)}. Under another name, train with a "
            f"smaller "
            "data.image_size or a smaller model"
        ) from None
    run.check_lock()
    measure = following.sentence() + ("" if job.compile == "off" else "; the network is not compiled")
    record = {"step": group.progress.step, "worker": group.rank, "reason": one_line(error, 400), "measure": measure}
    run.storage.put_if_absent(following.key, json.dumps(record).encode())


def _measures_of(model: Network) -> Measures:
    """Return how a network saves memory; not what another worker has just recorded for the next start."""
    saving = model.memory_saving or MemorySaving()
    graph = wire(model.table)
    use = max(number for number, name in enumerate(USES) if recomputed_blocks(graph, name) == saving.blocks)
    return Measures(saving.num_parts, use)


def _report(run: RunDirectory) -> None:
    """Append an event for each record that has none yet."""
    reported = {event.get("key") for event in run.events() if event.get("kind") == EVENT}
    for entry in run.storage.list(FOLDER):
        if entry.key not in reported:
            record = read_document(run.storage, entry.key, MemoryRecord, "start a run of another name") or {}
            run.append_event(EVENT, key=entry.key, **{name: record.get(name) for name in MemoryRecord.model_fields})
