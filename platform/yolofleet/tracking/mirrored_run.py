"""One pass of the mirror: synchronise one MLflow run with its run directory.

The run directory holds everything and the server knows what it has already, so a pass needs no memory of its own: it
finds its run by the directory's identity (a tag), asks the server for the last step of each metric and sends only later
ones, because MLflow keeps both rows when a step is logged twice. A pass may be repeated, cut off anywhere, or made
against an empty server: the result is the same. Rows of one metric come in the order of their steps, except
evaluations: one that was made beside the training may come late, so the server is asked for all of its steps.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from yolofleet.core.redaction import redact, redact_values
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.storage import ObjectNotFoundError
from yolofleet.tracking.json_lines import Row, encode_row
from yolofleet.tracking.mlflow_store import experiment_id, open_client
from yolofleet.tracking.run_directory import (
    EVENTS_LOGS,
    FACTS_KEY,
    METRICS_LOGS,
    REPORT_PREFIX,
    RunDirectory,
    status_after,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

IDENTITY_TAG = "yolofleet.run_id"
LOCATION_TAG = "yolofleet.run_directory"
EVALUATION_PREFIX = "val_"
PARENT_TAG = "mlflow.parentRunId"
FACT_TAG_PREFIX = "yolofleet."
MOST_METRICS_IN_BATCH = 1000
MOST_PARAMS_IN_BATCH = 100
LONGEST_PARAM = 6000
LONGEST_TAG = 5000
LONGEST_NAME = 250

_one_pass_at_a_time = threading.Lock()
"""The mirror's thread and `sync_now` may meet in one process; both would create the same run."""


class MirroredRun:
    """A run directory's MLflow run.

    Args:
        run: The run directory; it is only read.
        tracking_uri: The MLflow server or database.
        experiment: The experiment of the run.
        parent_run_id: The MLflow run that it is shown under, for a trial of a search.
    """

    def __init__(
        self, run: RunDirectory, tracking_uri: str, experiment: str, *, parent_run_id: str | None = None
    ) -> None:
        self.run = run
        self._parent_run_id = parent_run_id
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.run_id: str | None = None
        self._client: MlflowClient | None = None
        self._last_steps: dict[str, int] = {}
        self._evaluated: defaultdict[str, set[int]] = defaultdict(set)  # steps sent, by metric
        self._asked: set[str] = set()  # metrics of which the server was asked for all steps
        self._status: str | None = None
        self._forget_sent()

    def _forget_sent(self) -> None:
        """Begin anew: what the server has is asked again."""
        self._metrics = self.run.reader(*METRICS_LOGS)
        self._events = self.run.reader(*EVENTS_LOGS)
        self._uploaded: dict[str, tuple[int, ...] | bytes] = {}
        self._sent_facts: dict[str, Any] | None = None
        self._sent_tags: dict[str, str] = {}
        self._evaluated.clear()
        self._asked.clear()

    def sync(self, tags: Mapping[str, str] | None = None, *, everything: bool = True) -> str:
        """Send what the server lacks and return the MLflow run's id.

        Args:
            tags: Other facts of the run now.
            everything: Look at every log and file; else at logs that are due, and at files where events are new.

        Raises:
            TrackingError: The tracking URI or the experiment cannot be used.
            Exception: Whatever MLflow and its drivers raise when the server does not answer; call again later.
        """
        with _one_pass_at_a_time:
            try:
                client, run_id = self._connect()
                news = bool(self._events.new_rows(only_due=not everything))
                self._send_metrics(client, run_id, only_due=not everything)
                self._send_tags(client, run_id, dict(tags or {}))
                if news or everything:
                    self._send_facts(client, run_id)
                    self._send_files(client, run_id)
                if news:
                    self._send_events(client, run_id)
            except BaseException:
                self._client = None  # the server may have taken a request whose answer was lost: ask it again
                raise
            return run_id

    def _connect(self) -> tuple[MlflowClient, str]:
        """Find or create the MLflow run, and ask what it holds."""
        if self._client is not None and self.run_id is not None:
            return self._client, self.run_id
        client = open_client(self.tracking_uri)
        experiment = experiment_id(client, self.experiment)
        found = find_run(client, experiment, self.run.identity)
        if found is None:
            found = _create_run(client, experiment, self.run, self._parent_run_id)
        self._last_steps = last_steps(found)
        self._forget_sent()
        self._status = found.info.status
        self._send_params(client, found)
        self._client, self.run_id = client, str(found.info.run_id)
        return client, self.run_id

    def _send_params(self, client: MlflowClient, found: Run) -> None:
        """Send the job's settings; MLflow lets no parameter change, so a later edit shows in ``job.yaml`` only."""
        from mlflow.entities import Param

        document = parse_yaml(self.run.job_text() or "", source=f"{self.run.url}/{self.run.spec_key}") or {}
        values = flat_params(document)
        params = [Param(key, value) for key, value in values.items() if key not in found.data.params]
        for start in range(0, len(params), MOST_PARAMS_IN_BATCH):
            client.log_batch(found.info.run_id, params=params[start : start + MOST_PARAMS_IN_BATCH])

    def _send_facts(self, client: MlflowClient, run_id: str) -> None:
        """Send the facts as tags, which may change, and the directory's present location."""
        from mlflow.entities import RunTag

        facts = self.run.facts()
        if facts == self._sent_facts:
            return
        values = {FACT_TAG_PREFIX + key: value for key, value in flat_params(facts, longest=LONGEST_TAG).items()}
        tags = [RunTag(key, value) for key, value in {**values, LOCATION_TAG: self.run.url}.items()]
        for start in range(0, len(tags), MOST_PARAMS_IN_BATCH):
            client.log_batch(run_id, tags=tags[start : start + MOST_PARAMS_IN_BATCH])
        self._sent_facts = facts

    def _send_tags(self, client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            if self._sent_tags.get(key) != value:
                client.set_tag(run_id, key, redact(value)[:LONGEST_TAG])
        self._sent_tags = tags

    def _send_metrics(self, client: MlflowClient, run_id: str, *, only_due: bool) -> None:
        batch: list[Metric] = []
        for metric in self._unsent(client, run_id, self._metrics.new_rows(only_due=only_due)):
            batch.append(metric)
            if len(batch) == MOST_METRICS_IN_BATCH:
                client.log_batch(run_id, metrics=batch)
                batch = []
        if batch:
            client.log_batch(run_id, metrics=batch)

    def _unsent(self, client: MlflowClient, run_id: str, rows: list[Row]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for row in rows:
            step, milliseconds = int(row.get("step", 0)), unix_milliseconds(str(row.get("time", "")))
            for key, value in numbers(row):
                late = step <= self._last_steps.get(key, -1)
                if late and not (key.startswith(EVALUATION_PREFIX) and self._lacks(client, run_id, key, step)):
                    continue
                self._last_steps[key] = max(step, self._last_steps.get(key, -1))
                if key.startswith(EVALUATION_PREFIX):
                    self._evaluated[key].add(step)
                yield Metric(key, value, milliseconds, step)

    def _lacks(self, client: MlflowClient, run_id: str, key: str, step: int) -> bool:
        """Return whether the server has no evaluation of a step yet; asks for all steps of a metric once."""
        if key not in self._asked:
            self._evaluated[key].update(int(metric.step) for metric in client.get_metric_history(run_id, key))
            self._asked.add(key)
        return step not in self._evaluated[key]

    def _send_files(self, client: MlflowClient, run_id: str) -> None:
        """Upload the job, the facts and the report's files, each when it has changed."""
        storage = self.run.storage
        for key in (self.run.spec_key, FACTS_KEY):
            with suppress(ObjectNotFoundError):
                if (data := storage.get(key)) != self._uploaded.get(key):
                    client.log_text(run_id, data.decode(errors="replace"), key)
                    self._uploaded[key] = data
        for entry in storage.list(f"{REPORT_PREFIX}/"):
            key, path = entry.key, storage.local_path(entry.key)
            state = (entry.size_bytes,) if path is None else (entry.size_bytes, path.stat().st_mtime_ns)
            if self._uploaded.get(key) == state:
                continue
            with TemporaryDirectory(prefix="yolofleet-mirror-") as folder:
                if path is None:
                    path = Path(folder, key.rpartition("/")[2])
                    storage.download(key, path)
                client.log_artifact(run_id, str(path), key.rpartition("/")[0] or None)
            self._uploaded[key] = state

    def _send_events(self, client: MlflowClient, run_id: str) -> None:
        """Upload the events and the run's status."""
        events = self.run.events()
        client.log_text(run_id, b"".join(encode_row(event) for event in events).decode(), "events.jsonl")
        self._send_accounts(client, run_id, events)
        status = status_after(events) or "RUNNING"
        if status != self._status:
            if status == "RUNNING":
                client.update_run(run_id, status=status)
            else:
                ended = unix_milliseconds(str(events[-1].get("time", "")))
                client.set_terminated(run_id, status=status, end_time=ended)
            self._status = status

    def _send_accounts(self, client: MlflowClient, run_id: str, events: list[Row]) -> None:
        """Send what the run had cost at each checkpoint, in hours and, where the job names a price, in money."""
        if not any(event.get("kind") in ("checkpoint", "end") for event in events):
            return
        from yolofleet.tracking.goodput import account_rows

        metrics = [*self._unsent(client, run_id, [*account_rows(events)])]
        for start in range(0, len(metrics), MOST_METRICS_IN_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS_IN_BATCH])


def find_run(client: MlflowClient, experiment: str, identity: str) -> Run | None:
    """Return the MLflow run of a run directory, the oldest if there are several, or None."""
    found = client.search_runs([experiment], f"tags.`{IDENTITY_TAG}` = '{identity}'")
    return min(found, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def _create_run(client: MlflowClient, experiment: str, run: RunDirectory, parent_run_id: str | None) -> Run:
    """Create the MLflow run of a run directory; two processes that do so at once end with the same one."""
    tags = {IDENTITY_TAG: run.identity, LOCATION_TAG: run.url}
    if parent_run_id is not None:
        tags[PARENT_TAG] = parent_run_id
    made = client.create_run(experiment, run_name=run.name, tags=tags)
    found = find_run(client, experiment, run.identity)
    if found is None or found.info.run_id == made.info.run_id:
        return made
    client.delete_run(made.info.run_id)
    return found


def last_steps(run: Run) -> dict[str, int]:
    """Return for each metric of an MLflow run the last step that the server holds."""
    return {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}


def numbers(row: Row) -> Iterator[tuple[str, float]]:
    """Yield the names and values of a metrics row that MLflow can draw: its numbers, except step and time."""
    for key, value in row.items():
        if key not in ("step", "time") and isinstance(value, int | float) and not isinstance(value, bool):
            yield valid_name(key), float(value)


def valid_name(name: str) -> str:
    """Return the name with what MLflow forbids in names replaced by ``_``."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:LONGEST_NAME]


def unix_milliseconds(time: str) -> int:
    """Return an ISO 8601 time as MLflow counts it; 0 (1970) for a row without a readable time."""
    try:
        return math.floor(datetime.fromisoformat(time).timestamp() * 1000)
    except ValueError:
        return 0


def flat_params(document: Mapping[str, Any], prefix: str = "", longest: int = LONGEST_PARAM) -> dict[str, str]:
    """Return a document's leaves as text by dotted path: ``{"data": {"side": 640}}`` -> ``{"data.side": "640"}``.

    What is None is left out; a text longer than ``longest`` is cut.
    """
    leaves: dict[str, str] = {}
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= flat_params(value, f"{path}.", longest)
        elif value is not None:
            leaves[valid_name(path)] = _text(redact_values(value))[:longest]
    return leaves


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
