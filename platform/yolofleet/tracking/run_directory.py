"""The run directory: everything about one training run, and the state that every start resumes from.

    <storage>/<name>/
        lock/           which process trains it (yolofleet.storage.lock)
        run.json        format of the directory and the run's identity, written once
        job.yaml        the job as it was started
        facts.json      other facts: dataset digests, model figures, versions
        metrics.jsonl   one row a report: {"time": ..., "step": ..., NAME: VALUE, ...}
        metrics.driver.jsonl   the same, of evaluations that were made beside the training
        events.jsonl    what happened: {"time": ..., "kind": ..., ...}; the last of the kinds in
                        yolofleet.tracking.goodput is the status of the run
        checkpoints/    (yolofleet.training)
        model/          the detector package of the best weights
        report/         images and pages; in evaluations/step-N/ the same few images at each evaluation

MLflow holds a copy of it (yolofleet.tracking.mirror); nothing ever reads MLflow to resume a run.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import DETECTOR_CARD_NAME
from yolofleet.core.redaction import redact_values
from yolofleet.core.text import short
from yolofleet.specs.yaml_document import MOST_BYTES, parse_yaml
from yolofleet.storage import ObjectNotFoundError, Storage, open_storage
from yolofleet.storage.lock import Fence, FencingToken
from yolofleet.tracking.goodput import status_after
from yolofleet.tracking.json_lines import LogReader, OnRow, Row, ignore_row, utc_now
from yolofleet.tracking.log_writer import LogWriter, open_log
from yolofleet.tracking.run_documents import Facts, Identity, read_document

FORMAT = 1
IDENTITY_KEY = "run.json"
JOB_KEY = "job.yaml"
FACTS_KEY = "facts.json"
SECTIONS = ("model", "data", "cluster", "evaluation", "tracking")
METRICS = "metrics"
METRICS_LOGS = (METRICS, f"{METRICS}.driver")
EVENTS = "events"
SOURCES = ("driver", "mirror")
"""Who writes beside the training workers."""
EVENTS_LOGS = (EVENTS, *(f"{EVENTS}.{source}" for source in SOURCES))
MODEL_PREFIX = "model"
REPORT_PREFIX = "report"
RELEASE_KEY = f"{REPORT_PREFIX}/release.json"
EVALUATION_IMAGES = f"{REPORT_PREFIX}/evaluations"
OnEvent = Callable[..., None]
"""Takes an event's kind and its fields by keyword, as `RunDirectory.append_event` does."""


class RunDirectory:
    """One run's directory, for its one writer and any number of readers.

    Args:
        storage: The storage whose root is the run directory, ``<storage>/<name>``; links below it that lead out are
            not followed.
        source: Which process writes, where two do: one of `SOURCES` beside the training workers; each has files of
            its own, ``events.SOURCE.jsonl`` and ``metrics.SOURCE.jsonl``, because an object store has no append.
        token: The run's lock as its holder has it: nothing is written once another process has taken the run over.
        on_row: Takes each row and event as it is appended here, before it is stored.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        source: str | None = None,
        token: FencingToken | None = None,
        on_row: OnRow = ignore_row,
    ) -> None:
        if source is not None and source not in SOURCES:
            raise ValueError(f"an event source is one of {', '.join(SOURCES)}, not {source!r}")
        self.storage = storage.confined()
        self.on_row = on_row
        self._fence = None if token is None else Fence(storage, token)
        self._events_name = EVENTS if source is None else f"{EVENTS}.{source}"
        self._metrics_name = METRICS if source is None else f"{METRICS}.{source}"
        self._writers: dict[str, LogWriter] = {}
        self._writers_lock = threading.Lock()  # the thread that saves checkpoints appends events, too

    @classmethod
    def open(
        cls,
        storage_url: str | Path,
        name: str,
        *,
        source: str | None = None,
        token: FencingToken | None = None,
        on_row: OnRow = ignore_row,
    ) -> RunDirectory:
        """Open the run ``name`` below ``storage_url``; nothing is written yet."""
        return cls(open_storage(storage_url).child(name), source=source, token=token, on_row=on_row)

    @property
    def url(self) -> str:
        """Where the run directory is: a path or an ``s3://`` URL."""
        return self.storage.url

    @property
    def name(self) -> str:
        """The run's name: the directory's last part."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def spec_key(self) -> str:
        """The key of what was started here."""
        return JOB_KEY

    @cached_property
    def identity(self) -> str:
        """The run's identity: created on first use and kept in ``run.json``, wherever the directory moves.

        Raises:
            UserError: The directory was written by a newer yolofleet, or ``run.json`` is damaged.
        """
        document = self._read_identity()
        if document is None:
            fresh: dict[str, Any] = {"format": FORMAT, "id": uuid.uuid4().hex, "created": utc_now()}
            self.storage.put_if_absent(IDENTITY_KEY, json.dumps(fresh).encode() + b"\n")
            document = self._read_identity() or fresh  # another process may have been first
        if document["format"] > FORMAT:
            raise UserError(
                f"{self.url}/{IDENTITY_KEY}: the run directory has format {document['format']}, this yolofleet reads "
                f"up to {FORMAT}; upgrade yolofleet"
            )
        return str(document["id"])

    def _read_identity(self) -> dict[str, Any] | None:
        return read_document(self.storage, IDENTITY_KEY, Identity, "restore it from a copy, or use another run name")

    def exists(self) -> bool:
        """Return whether a run was ever started here."""
        return self.storage.exists(JOB_KEY) or self.storage.exists(IDENTITY_KEY)

    def job_text(self) -> str | None:
        """Return the job, or search, as it was started (YAML), or None before the first start.

        Raises:
            UserError: Its file is damaged.
        """
        try:
            return self.storage.get_at_most(self.spec_key, MOST_BYTES).decode()
        except ObjectNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.url}/{self.spec_key}: is damaged ({error}); restore it from a copy") from error

    def job_document(self) -> dict[str, Any]:
        """Return the parsed job, or search, as it was started; empty before the first start.

        Raises:
            UserError: It is damaged: no YAML, or something else where a mapping of keys belongs.
        """
        source = f"{self.url}/{self.spec_key}"
        document = parse_yaml(self.job_text() or "", source=source)
        parts = {"": document} | ({key: document.get(key) for key in SECTIONS} if isinstance(document, dict) else {})
        for key, part in parts.items():
            if not isinstance(part, dict | None):
                where = f"{source}: {key}" if key else source
                raise UserError(f"{where}: a mapping of keys is needed here, not {short(part)}; restore it from a copy")
        return document or {}

    def write_job(self, text: str) -> None:
        """Store the job's YAML; the caller decides whether it may be replaced."""
        self.storage.put(JOB_KEY, text.encode())

    def facts(self) -> dict[str, Any]:
        """Return the recorded facts, {} before the first.

        Raises:
            UserError: ``facts.json`` is damaged.
        """
        return read_document(self.storage, FACTS_KEY, Facts, "remove it, the next start writes it") or {}

    def record_facts(self, **facts: Any) -> None:
        """Store facts of the run (plain JSON values) without the secrets of URLs, beside those recorded already."""
        merged = {**self.facts(), **redact_values(facts)}
        self.storage.put(FACTS_KEY, json.dumps(merged, indent=2, sort_keys=True).encode() + b"\n")

    def status(self) -> str | None:
        """Return the run's status by its events (RUNNING, FINISHED, FAILED, KILLED), None before the first."""
        return status_after(self.events())

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row of numbers and its ``time``; neither waits for the storage nor fails because of it.

        Raises:
            ValueError: The row has no whole, non-negative ``step``.
            TypeError: A value is not plain (text, number, boolean, None).
        """
        step = row.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"a metrics row needs a whole step of at least 0, this one has step={step!r}: {dict(row)}")
        self._append(self._metrics_name, row)

    def append_event(self, kind: str, **fields: Any) -> None:
        """Add an event: its kind, the time, and its fields, without the secrets of URLs."""
        self._append(self._events_name, {"kind": kind, **redact_values(fields)})

    def _append(self, log: str, fields: Mapping[str, Any]) -> None:
        row = {"time": utc_now(), **fields}
        self._writer(log).append(row)
        self.on_row(row)
        # Faults of the storage that this process has waited out: no other process saw them.
        if (outage := self.storage.outages.take()) is not None:
            self.append_event("storage_back", **asdict(outage))

    def metrics(self) -> list[Row]:
        """Return all stored metrics rows of all sources, in the order of their steps."""
        return sorted(self.reader(*METRICS_LOGS).new_rows(), key=lambda row: int(row.get("step", 0)))

    def events(self) -> list[Row]:
        """Return all stored events of all sources, oldest first."""
        return sorted(self.reader(*EVENTS_LOGS).new_rows(), key=lambda row: str(row.get("time", "")))

    def reader(self, *logs: str) -> LogReader:
        """Return a reader of some of its logs."""
        return LogReader(self.storage, logs)

    def truncate_metrics_after(self, step: int) -> None:
        """Remove this process's rows of later steps: a run that resumes from a checkpoint writes them again."""
        self._writer(self._metrics_name).truncate(lambda row: int(row.get("step", 0)) <= step)

    def save_model(self, package: Path) -> None:
        """Copy a detector package into ``model/``, and remove what else lies there.

        Its ``detector.json`` is written last: a half-copied package does not count.

        Raises:
            UserError: The folder holds no ``detector.json``.
        """
        files = sorted(path for path in package.rglob("*") if path.is_file())
        keys = {path: f"{MODEL_PREFIX}/{path.relative_to(package).as_posix()}" for path in files}
        index = package / DETECTOR_CARD_NAME
        if index not in keys:
            raise UserError(f"{package}: holds no {DETECTOR_CARD_NAME}, so it is not a detector package")
        for path in [*(path for path in files if path != index), index]:
            self.storage.put(keys[path], path)
        for entry in self.storage.list(f"{MODEL_PREFIX}/"):
            if entry.key not in keys.values():
                self.storage.delete(entry.key)

    def has_model(self) -> bool:
        """Return whether ``model/`` holds a whole detector package."""
        return self.storage.exists(f"{MODEL_PREFIX}/{DETECTOR_CARD_NAME}")

    def fetch_model(self, folder: Path) -> Path:
        """Return a local folder with the run's detector package: ``model/`` itself, or its copy in ``folder``.

        Raises:
            UserError: The run has no model yet.
        """
        index_key = f"{MODEL_PREFIX}/{DETECTOR_CARD_NAME}"
        if not self.storage.exists(index_key):
            raise UserError(f"{self.url}: the run has no model yet (no {index_key}); let the training end first")
        if (local := self.storage.local_path(index_key)) is not None:
            return local.parent
        for entry in self.storage.list(f"{MODEL_PREFIX}/"):
            self.storage.download(entry.key, folder / entry.key.removeprefix(f"{MODEL_PREFIX}/"))
        return folder

    def check_lock(self) -> None:
        """Return if this process may still write the run.

        Raises:
            LockLostError: Another process has taken it over.
        """
        if self._fence is not None:
            self._fence.check()

    def flush(self) -> None:
        """Return when all rows and events are stored durably, and this process may still write the run.

        Raises:
            StorageError: The storage does not take them; they are kept and written later.
            LockLostError: Another process has taken the run over.
        """
        self.check_lock()
        with self._writers_lock:
            writers = list(self._writers.values())
        for writer in writers:
            writer.flush()

    def close(self) -> None:
        """Flush and release the logs; a later append opens them again."""
        while True:
            with self._writers_lock:
                if not self._writers:
                    return
                _, writer = self._writers.popitem()
            writer.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _writer(self, name: str) -> LogWriter:
        with self._writers_lock:
            if name not in self._writers:
                self._writers[name] = open_log(self.storage, name, self.check_lock)
            return self._writers[name]
