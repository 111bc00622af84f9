"""Checkpoints of a run: ``checkpoints/step-N/``, whole or not at all.

A checkpoint is a few safetensors files and ``state.json``; ``COMMITTED``, with their sizes and SHA-256 digests, is
written last. One without it, or with a file that does not match, is no checkpoint: the one before it is taken, and
the user is told. Saving clones the tensors in memory and writes them from a thread while training goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from yolofleet.errors import UserError
from yolofleet.storage import ObjectNotFoundError, Storage, StorageError

FORMAT = 1
COMMIT_KEY = "COMMITTED"
STATE_KEY = "state.json"

logger = logging.getLogger(__name__)
Tensors = Mapping[str, torch.Tensor]


class DamagedCheckpointError(UserError):
    """A checkpoint is torn, incomplete or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint, read and verified.

    Attributes:
        step: Steps that were done when it was taken.
        state: Everything that is no tensor.
        tensors: Tensors by file (``weights``, ``average``, ``moments``) and name.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]


class CheckpointStore:
    """The checkpoints of one run, for its one writer and any number of readers.

    Args:
        storage: The run's ``checkpoints/`` folder.
        keep: Newest checkpoints that are kept; the best is kept besides.
        told: Called with (kind, fields) when something happened that the user should know.
        before_commit: Called before a checkpoint is committed, to store what must not be younger than it.
        fenced: Called before anything is written or removed; raises where another process has taken the run over.
    """

    def __init__(
        self,
        storage: Storage,
        keep: int = 3,
        told: Callable[..., None] | None = None,
        before_commit: Callable[[], None] = lambda: None,
        fenced: Callable[[], None] = lambda: None,
    ) -> None:
        self.storage = storage
        self.keep = keep
        self._before_commit = before_commit
        self._fenced = fenced
        self._told = told or (lambda kind, **fields: logger.warning("%s %s", kind, fields))
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(
        self, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], *, best_step: int | None = None
    ) -> None:
        """Take a checkpoint; it is written in the background, after the one before it has been."""
        snapshot = {file: {name: _copied(tensor) for name, tensor in group.items()} for file, group in tensors.items()}
        document = {"format": FORMAT, "step": step, **state}
        self.wait()
        self._writing = threading.Thread(
            target=self._write_or_tell, args=(step, snapshot, document, best_step), name=f"checkpoint-{step}"
        )
        self._writing.start()

    def wait(self) -> None:
        """Return when no checkpoint is being written; raises what went wrong in writing, storage apart."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write_or_tell(self, step: int, tensors: dict[str, Any], state: dict[str, Any], best_step: int | None) -> None:
        """Write; a storage that does not take it costs this checkpoint, not the run."""
        try:
            self._write(step, tensors, state)
            self._told("checkpoint", step=step)
            self._retire(step, best_step)
        except StorageError as error:
            self._told("checkpoint_failed", step=step, reason=str(error))
        except Exception as error:  # nobody sees what a thread raises: the next `wait` raises it
            self._failure = error

    def _write(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        folder = f"step-{step}"
        self._fenced()
        self.storage.delete(f"{folder}/{COMMIT_KEY}")  # a damaged one of the same step may lie there
        files = {f"{name}.safetensors": safetensors.torch.save(group) for name, group in tensors.items()}
        files[STATE_KEY] = json.dumps(state, indent=1).encode()
        for name, data in files.items():
            self._fenced()
            self.storage.put(f"{folder}/{name}", data)
        digests = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        self._before_commit()
        self._fenced()
        self.storage.put(f"{folder}/{COMMIT_KEY}", json.dumps({"format": FORMAT, "files": digests}, indent=1).encode())

    def _retire(self, newest: int, best_step: int | None) -> None:
        steps = [step for step in self.steps() if step <= newest]
        for step in steps[: -self.keep]:
            if step != best_step:
                self._fenced()
                self.storage.delete(f"step-{step}/{COMMIT_KEY}")  # first: what is left is then no checkpoint
                self.storage.delete_prefix(f"step-{step}/")

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, the newest first."""
        for later in reversed([found for found in self.steps() if found > step]):
            self._fenced()
            self.storage.delete(f"step-{later}/{COMMIT_KEY}")
            self.storage.delete_prefix(f"step-{later}/")

    def steps(self) -> list[int]:
        """Return the steps of all committed checkpoints, oldest first; their files are not looked at."""
        found = (re.fullmatch(rf"step-(\d+)/{COMMIT_KEY}", entry.key) for entry in self.storage.list("step-"))
        return sorted(int(match[1]) for match in found if match)

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None; damaged ones are passed over and told of.

        Args:
            at_most: The latest step that is looked for; None: any.
        """
        for step in reversed([found for found in self.steps() if at_most is None or found <= at_most]):
            try:
                return self.load(step)
            except DamagedCheckpointError as error:
                self._told("checkpoint_passed_over", step=step, reason=str(error))
        return None

    def load(self, step: int) -> Checkpoint:
        """Read one checkpoint and verify every byte of it.

        Raises:
            DamagedCheckpointError: A file is missing or does not match its digest.
        """
        folder = f"step-{step}"
        where = f"{self.storage.url}/{folder}"
        try:
            commit = _parsed(self.storage.get(f"{folder}/{COMMIT_KEY}"), f"{where}/{COMMIT_KEY}")
            _check_format(commit, f"{where}/{COMMIT_KEY}")
            files = {name: self.storage.get(f"{folder}/{name}") for name in commit["files"]}
        except (ObjectNotFoundError, KeyError) as error:
            raise DamagedCheckpointError(f"{where}: incomplete: {error}") from error
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != commit["files"][name]["sha256"]:
                raise DamagedCheckpointError(f"{where}/{name}: does not match the digest in {COMMIT_KEY}")
        state = _parsed(files.pop(STATE_KEY, b""), f"{where}/{STATE_KEY}")
        try:
            tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(data) for name, data in files.items()}
        except safetensors.SafetensorError as error:
            raise DamagedCheckpointError(f"{where}: {error}") from error
        return Checkpoint(step, state, tensors)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DamagedCheckpointError(f"{where}: is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise DamagedCheckpointError(f"{where}: is not a JSON object")
    return document


def _check_format(document: dict[str, Any], where: str) -> None:
    if int(document.get("format", 0)) > FORMAT:
        raise UserError(f"{where}: format {document['format']} is newer than this version reads; upgrade yolofleet")
