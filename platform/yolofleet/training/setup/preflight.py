"""Checks of a job before the first worker starts: its data, model and storage, and what its run directory holds."""

from __future__ import annotations

import difflib
import hashlib
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from yolofleet import __version__
from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural
from yolofleet.data.dataset import ShardDataset
from yolofleet.export.settings import require_packages
from yolofleet.models import build_model
from yolofleet.specs.job import EXECUTION_DATA_KEYS, EXECUTION_KEYS, JobSpec
from yolofleet.specs.yaml_document import parse_yaml, write_yaml
from yolofleet.storage import Storage, StorageError, open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.setup.builders import open_dataset, trained_table
from yolofleet.training.setup.preparation import Preparation, prepare

if TYPE_CHECKING:
    from yolofleet.training.setup.pretrained import Locate

MOST_CHANGES_SHOWN = 8


@dataclass(frozen=True)
class Readiness:
    """What a checked job will do."""

    job: JobSpec
    """The job, with the micro-batch size that the run has found where the job leaves it open."""
    run: RunDirectory
    num_steps: int
    """Steps of the whole run."""
    done_steps: int
    """Steps of the newest checkpoint; 0 for a fresh run."""
    train: ShardDataset
    val: ShardDataset
    changes: tuple[str, ...] = ()
    """What differs from the spec of the last start, a line for each field."""
    notes: tuple[str, ...] = ()
    """What a fresh run has decided (anchors, initial weights), a line each."""
    ended_early: bool = False
    """Whether the run is over before its last step, as `stop` in the job says."""
    raised_from: float | None = None
    """The epochs of the last start, where this one raises them."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.done_steps >= self.num_steps or self.ended_early


def run_storage(job: JobSpec) -> Storage:
    """Return the storage whose root is the job's run directory, after a request that it answered.

    Raises:
        UserError: It cannot be read.
    """
    storage = open_storage(job.storage).child(job.name)
    try:
        storage.list("lock/")
    except StorageError as error:
        raise UserError(f"storage {job.storage} does not hold the run directory: {error}") from error
    return storage


def check_job(job: JobSpec, locate: Locate | None = None, *, record: bool = True) -> Readiness:
    """Check a job against its data, its model, its storage and what its run directory already holds.

    Args:
        job: What shall be trained.
        locate: Finds registered versions for ``initial_weights``; None where there is no registry.
        record: Write the job and what the run decides into its directory. False only looks: files of the data are not
            verified, and what a fresh run decides stays open.

    Raises:
        UserError: Something cannot work; says what and how to put it right.
    """
    train = open_dataset(job.data, job.data.train, verify=record)
    val = open_dataset(job.data, job.data.val, verify=record)
    _check_classes(job, train, val)
    _check_model(job, len(train.classes))
    if job.release_onnx:
        require_packages("onnx", "onnxscript", "onnxruntime")
    run = RunDirectory.open(job.storage, job.name)
    found: tuple[str, ...] = ()
    if job.micro_batch_size == "auto":
        from yolofleet.training.setup.micro_batch import with_micro_batch_size

        job, found = with_micro_batch_size(job, run, train, measure=record)
    num_steps = job.num_steps(len(train))
    steps = CheckpointStore(run.storage.child("checkpoints")).steps()
    done_steps = steps[-1] if steps else 0
    preparation = prepare(job, run, train, done_steps, locate) if record and done_steps < num_steps else Preparation()
    recorded = _recorded_job(run)
    changes: tuple[str, ...] = ()
    if recorded is not None:
        changes = _compare(job, recorded, run, done_steps, len(train))
    if record:
        _claim(job, recorded, run, done_steps)
    _check_contents(job, run, train, val, record=record)
    preparation.keep(run)
    notes = (*preparation.notes, *found)
    raised_from = recorded.epochs if recorded is not None and recorded.epochs != job.epochs else None
    ended_early = _is_over(job, run, done_steps, None if raised_from is None else done_steps)
    ready = Readiness(job, run, num_steps, done_steps, train, val, changes, notes, ended_early, raised_from)
    if record and not (ready.finished and run.status() == "FINISHED"):
        run.append_event("command")  # the command before it may have been killed without a word
        if ready.finished:
            run.append_event("end", step=done_steps)
        run.close()
    return ready


def _is_over(job: JobSpec, run: RunDirectory, done_steps: int, since_step: int | None = None) -> bool:
    if job.stop is None:
        return False
    from yolofleet.training.evaluation.early_stop import early_end

    return early_end(run, job.stop, done_steps, since_step) is not None


def _check_classes(job: JobSpec, train: ShardDataset, val: ShardDataset) -> None:
    names, expected = ([f"{number}:{name}" for number, name in dataset.classes] for dataset in (val, train))
    if not expected:
        raise UserError(f"{job.data.train}: the dataset has no classes, so there is nothing to detect")
    if sum(train.manifest.class_counts) == 0:
        raise UserError(f"{job.data.train}: no boxes to learn from (crowd regions do not count)")
    if names != expected:
        changes = [line for line in difflib.ndiff(expected, names) if line[0] in "+-"][:6]
        raise UserError(
            f"{job.data.val}: its classes differ from those of {job.data.train}: {', '.join(changes)}; "
            "shard both from annotations with the same categories"
        )
    if sum(val.manifest.class_counts) == 0:
        raise UserError(
            f"{job.data.val}: no boxes to evaluate with in {plural(len(val), 'image')} (crowd regions do not count), "
            f"so no best checkpoint could be chosen; set data.val to labelled images that are not in the training set"
        )


def _check_model(job: JobSpec, num_classes: int) -> None:
    import torch

    with torch.device("meta"):
        model = build_model(trained_table(job), num_classes=num_classes)
    stride = max(model.strides)
    if job.data.image_size % stride:
        low = job.data.image_size // stride * stride
        nearest = " or ".join(str(size) for size in (low, low + stride) if size)
        raise UserError(
            f"data.image_size {job.data.image_size} is not a multiple of the model's largest stride {stride}; "
            f"use {nearest}"
        )


def _recorded_job(run: RunDirectory) -> JobSpec | None:
    """Return the job as it was started last; None for a fresh run."""
    text = run.job_text()
    if text is None:
        return None
    return JobSpec.parse(parse_yaml(text, source=f"{run.url}/job.yaml"), source="job.yaml of the run")


def _compare(job: JobSpec, recorded: JobSpec, run: RunDirectory, done_steps: int, num_samples: int) -> tuple[str, ...]:
    """Check that a job computes the same as the run's, or more epochs of it; returns what has changed."""
    changes = [_name_sources(line, recorded, job) for line in _differences(recorded.computation(), job.computation())]
    if job.epochs != recorded.epochs and len(changes) == 1:
        from yolofleet.training.setup.more_epochs import check_epochs

        num_steps = recorded.num_steps(num_samples)
        check_epochs(job, recorded, run, done_steps, num_steps, _is_over(recorded, run, done_steps))
    elif changes:
        raise UserError(
            f"run '{job.name}' in {job.storage} was started with another spec, and what it computes cannot change:\n  "
            + and_more(changes, MOST_CHANGES_SHOWN, separator="\n  ")
            + "\nUse another name for the new spec, or resume the run with the spec as it was. What may change: "
            f"{', '.join((*EXECUTION_KEYS, *(f'data.{key}' for key in EXECUTION_DATA_KEYS)))}, and of a finished run "
            "epochs, which can be raised"
        )
    return tuple(
        f"{line} (not read again: the run keeps the weights that it started from)" if _is_source(line) else line
        for line in _differences(recorded.document(), job.document())
    )


def _claim(job: JobSpec, recorded: JobSpec | None, run: RunDirectory, done_steps: int) -> None:
    """Write the job into the run directory, in place of the one that it was compared with."""
    if recorded is None:
        try:
            run.write_job(write_yaml(job.document()))
        except StorageError as error:
            raise UserError(f"storage {job.storage} does not take the run directory: {error}") from error
        return
    if job.epochs != recorded.epochs:
        from yolofleet.training.setup.more_epochs import raise_epochs

        raise_epochs(job, recorded, run, done_steps)
    source = {key: getattr(recorded, key) for key in ("initial_weights", "initial_weights_sha256")}
    run.write_job(write_yaml(job.model_copy(update=source).document()))


def _name_sources(line: str, recorded: JobSpec, job: JobSpec) -> str:
    """Name the initial weights, where the computation says only that there are some."""
    if not line.startswith("initial_weights: "):
        return line
    return f"initial_weights: was {_format(recorded.initial_weights)}, now {_format(job.initial_weights)}"


def _is_source(line: str) -> bool:
    return line.startswith(("initial_weights: ", "initial_weights_sha256: "))


def _check_contents(job: JobSpec, run: RunDirectory, train: ShardDataset, val: ShardDataset, *, record: bool) -> None:
    """Record the contents of the data and the model's table, or check that they are those of the run's start."""
    table = trained_table(job).model_dump_json()
    now = {
        "train": train.manifest.digest,
        "val": val.manifest.digest,
        "model": hashlib.sha256(table.encode()).hexdigest(),
    }
    before = run.facts().get("contents")
    if before is None and not record:
        return
    if before is None:
        run.record_facts(
            contents=now,
            data={"train": now["train"], "val": now["val"]},
            num_classes=len(train.classes),
            environment=_environment(),
        )
        return
    names = {"train": job.data.train, "val": job.data.val, "model": job.model.spec or job.model.name}
    for part, digest in now.items():
        if before.get(part) != digest:
            raise UserError(
                f"run '{job.name}' in {job.storage} was started with another content of {part} ({names[part]}): digest "
                f"{str(before.get(part))[:12]} then, {digest[:12]} now. Use another name, or put the old content back"
            )


def _environment() -> dict[str, str]:
    """Return with what a run is made: versions, and the commit where the code is a git checkout."""
    found = {"yolofleet": __version__, "python": platform.python_version(), "torch": torch.__version__}
    git = shutil.which("git")
    if git is not None:
        command = [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        with suppress(OSError, subprocess.SubprocessError):
            found["commit"] = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=5
            ).stdout.strip()
    return found


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if before == now else [f"{path}: was {_format(before)}, now {_format(now)}"]


def _format(value: Any) -> str:
    return "not set" if value is None else str(value)
