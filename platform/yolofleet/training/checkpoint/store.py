"""Checkpoints of a run: ``checkpoints/step-N/``, whole or not at all.

A checkpoint is a few safetensors files and ``state.json``; ``COMMITTED``, with their sizes and SHA-256 digests, is
written last. A folder without it, or with a file that does not match, is damaged: the checkpoint before it is taken,
and an event says so. Saving copies the tensors into packed files in memory, and a thread writes these while training
continues. The memory is used again for the next checkpoint, which therefore waits until this one is stored, or is
skipped if that takes too long; an event reports either. So at most two periods are lost, and
`CheckpointSpec.period_steps` is half of what may be lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from yolofleet.core.errors import UserError
from yolofleet.core.text import one_line, plural
from yolofleet.models.tensor_file import TensorFileError, parse_tensors
from yolofleet.storage import ObjectNotFoundError, Storage, StorageError
from yolofleet.training.checkpoint.packing import PackedTensors, Tensors

FORMAT = 1
COMMIT_KEY = "COMMITTED"
MOST_COMMIT_BYTES = 1_000_000
STATE_KEY = "state.json"
LONGEST_WAIT_SECONDS = 60.0
"""How long a checkpoint that is due waits for the one before it to be stored, before it is skipped."""
LONG_WAIT_SECONDS = 1.0
"""A longer wait is an event."""

Sizes = Mapping[str, int]
"""The sizes of a checkpoint's files, by name."""
logger = logging.getLogger(__name__)


class DamagedCheckpointError(UserError):
    """A checkpoint is torn, incomplete or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint, read and verified."""

    step: int
    """Steps that were done when it was taken."""
    state: dict[str, Any]
    """All values that are not tensors."""
    tensors: dict[str, dict[str, torch.Tensor]]
    """Tensors by file (``weights``, ``average``, ``moments``) and name."""


class CheckpointStore:
    """The checkpoints of one run, for its one writer and any number of readers.

    Args:
        storage: The run's ``checkpoints/`` folder.
        keep: Newest checkpoints that are kept.
        on_event: Takes what the user should know, as (kind, fields).
        before_commit: Called before a checkpoint is committed, to store what must not be younger than it.
        check_lock: Called before anything is written or removed; raises where another process has taken the run over.

    Attributes:
        protected_steps: Given the files of all checkpoints by step, returns the steps that are kept whatever their age.
    """

    def __init__(
        self,
        storage: Storage,
        keep: int = 3,
        on_event: Callable[..., None] | None = None,
        before_commit: Callable[[], None] = lambda: None,
        check_lock: Callable[[], None] = lambda: None,
    ) -> None:
        self.storage = storage
        self.keep = keep
        self.protected_steps: Callable[[Mapping[int, Sizes]], set[int]] = lambda files: set()
        self._before_commit = before_commit
        self._check_lock = check_lock
        self._on_event = on_event or (lambda kind, **fields: logger.warning("%s %s", kind, fields))
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None
        self._packed: dict[str, PackedTensors] = {}

    def prepare(self, tensors: Mapping[str, Tensors]) -> None:
        """Allocate the memory of tensors like these, so that the first checkpoint is as quick as the others."""
        for file, group in tensors.items():
            if file not in self._packed or not self._packed[file].fits(group):
                self._packed[file] = PackedTensors(group)

    def save(
        self, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], *, skippable: bool = False
    ) -> None:
        """Take a checkpoint; it is written in the background, after the one before it has been.

        Args:
            step: Steps done.
            tensors: Tensors by file and name.
            state: Values that are not tensors, as JSON.
            skippable: Leave this one out, with an event, if the one before it is not stored within
                `LONGEST_WAIT_SECONDS`; otherwise wait as long as that takes.
        """
        began = time.monotonic()
        if not self.wait(LONGEST_WAIT_SECONDS if skippable else None):
            self._on_event("checkpoint_skipped", step=step, reason="the one before it is still being stored")
            return
        waited = time.monotonic() - began
        if waited > LONG_WAIT_SECONDS:
            self._on_event("checkpoint_waited", step=step, seconds=round(waited, 3))
        self.prepare(tensors)
        for file, group in tensors.items():
            self._packed[file].fill(group)
        files: dict[str, bytes | bytearray] = {f"{file}.safetensors": self._packed[file].data for file in tensors}
        files[STATE_KEY] = json.dumps({"format": FORMAT, "step": step, **state}, indent=1).encode()
        self._writing = threading.Thread(target=self._write_and_report, args=(step, files), name=f"checkpoint-{step}")
        self._writing.start()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until no checkpoint is being written; returns False where the time is over before.

        Raises:
            Exception: What went wrong in writing, except a storage that does not take it.
        """
        if self._writing is not None:
            self._writing.join(timeout_seconds)
            if self._writing.is_alive():
                return False
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return True

    def _write_and_report(self, step: int, files: dict[str, bytes | bytearray]) -> None:
        """Write; a storage that does not take it costs this checkpoint, not the run."""
        began = time.monotonic()
        try:
            self._write(step, files)
        except StorageError as error:
            self._on_event("checkpoint_failed", step=step, reason=str(error))
            try:
                self._remove(step, files)  # half a checkpoint would only fill a disk that is full
            except StorageError as left:
                logger.warning("the torn checkpoint of step %d could not be removed: %s", step, left)
            return
        except Exception as error:  # raised by the next `wait`: a thread's error is seen by no one
            self._failure = error
            return
        self._on_event("checkpoint", step=step, seconds=round(time.monotonic() - began, 3))
        try:
            self._retire(step)
        except StorageError as error:  # the next checkpoint removes them
            logger.warning("older checkpoints stay for now: %s", error)
        except Exception as error:
            self._failure = error

    def _write(self, step: int, files: dict[str, bytes | bytearray]) -> None:
        folder = f"step-{step}"
        self._check_lock()
        self.storage.delete(f"{folder}/{COMMIT_KEY}")  # a damaged one of the same step may lie there
        for name, data in files.items():
            self._check_lock()
            self.storage.put(f"{folder}/{name}", data)
        digests = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        self._before_commit()
        self._check_lock()
        self.storage.put(f"{folder}/{COMMIT_KEY}", json.dumps({"format": FORMAT, "files": digests}, indent=1).encode())

    def _retire(self, newest: int) -> None:
        """Remove checkpoints older than the newest ``keep`` that are not protected, and what is left of torn ones."""
        begun = self._list()
        committed = {step: files for step, files in begun.items() if step <= newest and COMMIT_KEY in files}
        kept = {*[*committed][-self.keep :], *self.protected_steps(committed)}
        for step, files in begun.items():
            if step not in kept and step < newest:
                self._remove(step, files)

    def _remove(self, step: int, files: Iterable[str]) -> None:
        self._check_lock()
        for name in dict.fromkeys((COMMIT_KEY, *files)):  # it first, so that a half-removed checkpoint does not count
            self.storage.delete(f"step-{step}/{name}")

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, the newest first."""
        for later, files in reversed(self.committed().items()):
            if later > step:
                self._remove(later, files)

    def steps(self) -> list[int]:
        """Return the steps of all committed checkpoints, oldest first; their files are not read."""
        return [*self.committed()]

    def committed(self) -> dict[int, Sizes]:
        """Return the files of all committed checkpoints by step, oldest first; it is one listing."""
        return {step: files for step, files in self._list().items() if COMMIT_KEY in files}

    def _list(self, prefix: str = "step-") -> dict[int, Sizes]:
        """Return the files of all checkpoints by step, oldest first, also of those that are not committed."""
        found: dict[int, dict[str, int]] = {}
        for entry in self.storage.list(prefix):
            if match := re.fullmatch(r"step-([0-9]{1,12})/(.+)", entry.key, re.DOTALL):
                found.setdefault(int(match[1]), {})[match[2]] = entry.size_bytes
        return dict(sorted(found.items()))

    def state(self, step: int, sizes: Sizes | None = None) -> dict[str, Any]:
        """Return the values of a committed checkpoint that are not tensors; its other files are not read.

        Args:
            step: Which one.
            sizes: Its files, if they are known.

        Raises:
            DamagedCheckpointError: It is not there, or not as it was committed.
        """
        return self._read(step, lambda name: name == STATE_KEY, sizes)[0]

    def file_digest(self, step: int, file: str, sizes: Sizes | None = None) -> str:
        """Return the SHA-256 of a tensor file of a committed checkpoint, as it was committed.

        Args:
            step: Which one.
            file: The tensor file.
            sizes: Its files, if they are known.

        Raises:
            DamagedCheckpointError: The checkpoint or the file is not there.
        """
        committed = self._digests(step, sizes)
        if f"{file}.safetensors" not in committed:
            raise DamagedCheckpointError(f"{self.storage.url}/step-{step}: incomplete: it has no {file}.safetensors")
        return committed[f"{file}.safetensors"]

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None; damaged ones are passed over, each with an event.

        Args:
            at_most: The latest step that counts; None: any.
        """
        for step in reversed([step for step in self.steps() if at_most is None or step <= at_most]):
            try:
                return self.load(step)
            except DamagedCheckpointError as error:
                self._on_event("checkpoint_passed_over", step=step, reason=str(error))
        return None

    def load(self, step: int) -> Checkpoint:
        """Read one checkpoint and verify every byte of it.

        Raises:
            DamagedCheckpointError: A file is missing or does not match its digest.
        """
        state, files = self._read(step, lambda name: True)
        try:
            tensors = {name.removesuffix(".safetensors"): parse_tensors(data) for name, data in files.items()}
        except TensorFileError as error:
            raise DamagedCheckpointError(f"{self.storage.url}/step-{step}: {error}") from error
        return Checkpoint(step, state, tensors)

    def _read(
        self, step: int, wanted: Callable[[str], bool], sizes: Sizes | None = None
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return the state and the wanted other files of a checkpoint, each as it was committed."""
        folder = f"step-{step}"
        where = f"{self.storage.url}/{folder}"
        committed = self._digests(step, sizes)
        try:
            files = {name: self.storage.get(f"{folder}/{name}") for name in committed if wanted(name)}
        except ObjectNotFoundError as error:
            raise DamagedCheckpointError(f"{where}: incomplete: {error}") from error
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != committed[name]:
                raise DamagedCheckpointError(f"{where}/{name}: does not match the digest in {COMMIT_KEY}")
        return _parse_object(files.pop(STATE_KEY, b""), f"{where}/{STATE_KEY}"), files

    def _digests(self, step: int, sizes: Sizes | None) -> dict[str, str]:
        """Return the digests of the files of a checkpoint; files of another size than was committed are not read."""
        folder = f"step-{step}"
        where = f"{self.storage.url}/{folder}"
        record = f"{where}/{COMMIT_KEY}"
        sizes = self._list(f"{folder}/").get(step, {}) if sizes is None else sizes
        if sizes.get(COMMIT_KEY, 0) > MOST_COMMIT_BYTES:
            raise DamagedCheckpointError(f"{record}: has {plural(sizes[COMMIT_KEY], 'byte')}, and lists a few files")
        try:
            commit = _parse_object(self.storage.get_at_most(f"{folder}/{COMMIT_KEY}", MOST_COMMIT_BYTES), record)
            if int(commit.get("format", 0)) > FORMAT:
                newer = f"format {commit['format']} is newer than this version reads; upgrade yolofleet"
                raise UserError(f"{record}: {newer}")
            files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in commit["files"].items()}
        except ObjectNotFoundError as error:
            raise DamagedCheckpointError(f"{where}: incomplete: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedCheckpointError(f"{record}: lists no files: {one_line(error)}") from error
        for name, (num_bytes, _) in files.items():
            if sizes.get(name) != num_bytes:
                stored = plural(sizes.get(name, 0), "byte")
                raise DamagedCheckpointError(
                    f"{where}: incomplete: {name} has {stored}, not the committed {num_bytes:,}"
                )
        return {name: sha256 for name, (_, sha256) in files.items()}


def _parse_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{where}: is not JSON ({one_line(error)})") from error
    if not isinstance(document, dict):
        raise DamagedCheckpointError(f"{where}: is not a JSON object")
    return document
