"""The MLflow mirror of a run: a background loop that follows the run directory and that training never waits for.

The run directory is the queue: what the server has not taken stays there, however long it is away and whether or not
this process survives. The server knows what it has already, so a pass needs no memory of its own: it finds its run by
the directory's identity (a tag), asks for the last step of each metric and sends only later ones, because MLflow keeps
both rows when a step is logged twice. A pass may be repeated, cut off anywhere, or made against an empty server: the
result is the same. Rows of one metric come in the order of their steps, except evaluations: one that was made beside
the training may come late, so the server is asked for all of its steps.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from yolofleet.core.background import POLL_SECONDS, BackgroundSync, ignore_event
from yolofleet.core.redaction import redact
from yolofleet.storage import ObjectNotFoundError
from yolofleet.tracking.goodput import account_rows, status_after
from yolofleet.tracking.json_lines import Row, encode_row
from yolofleet.tracking.mirrored_run import (
    DESCRIPTION_TAG,
    LOCATION_TAG,
    LONGEST_TAG,
    OLD_NAMES,
    SentImages,
    create_run,
    delete_mlflow_run,
    describe_run,
    find_run,
    flat_params,
    grouped_name,
    last_steps,
    numbers,
    readable_tags,
    send_checkpoints,
    send_datasets,
    unix_milliseconds,
)
from yolofleet.tracking.mlflow_store import experiment_id, open_client
from yolofleet.tracking.run_directory import (
    EVALUATION_IMAGES,
    EVENTS_LOGS,
    FACTS_KEY,
    JOB_KEY,
    METRICS_LOGS,
    REPORT_PREFIX,
    OnEvent,
    RunDirectory,
)
from yolofleet.tracking.run_documents import MOST_DOCUMENT_BYTES

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

EVALUATION_PREFIX = "val_"
MOST_METRICS_IN_BATCH = 1000
MOST_PARAMS_IN_BATCH = 100

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
        self._name: Callable[[str], str] = grouped_name  # of a metric in MLflow
        self._found: Run
        self._images: SentImages | None = None
        self._newest: dict[str, Any] = {}  # value of each metric
        self._forget_sent()

    def _forget_sent(self) -> None:
        """Begin anew: what the server has is asked again."""
        self._metrics = self.run.reader(*METRICS_LOGS)
        self._events = self.run.reader(*EVENTS_LOGS)
        self._uploaded: dict[str, tuple[int, ...] | bytes] = {}
        self._sent_facts: dict[str, Any] | None = None
        self._described: str | None = None
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
                self._send_metrics(client, run_id, self._metrics.new_rows(only_due=not everything))
                self._send_tags(client, run_id, dict(tags or {}))
                if news or everything:
                    self._send_facts(client, run_id)
                    self._send_files(client, run_id)
                if news:
                    self._send_events(client, run_id)
                elif everything:
                    self._describe(client, run_id, self.run.events())
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
            found = create_run(client, experiment, self.run, self._parent_run_id)
        self._last_steps = last_steps(found)
        self._name = str if any(name in self._last_steps for name in OLD_NAMES) else grouped_name
        self._found, self._images = found, None
        self._forget_sent()
        self._status = found.info.status
        self._send_params(client, found)
        self._client, self.run_id = client, str(found.info.run_id)
        return client, self.run_id

    def _send_params(self, client: MlflowClient, found: Run) -> None:
        """Send the job's settings; MLflow lets no parameter change, so a later edit shows in ``job.yaml`` only."""
        from mlflow.entities import Param

        settings = flat_params(self.run.job_document())
        params = [Param(key, value) for key, value in settings.items() if key not in found.data.params]
        for start in range(0, len(params), MOST_PARAMS_IN_BATCH):
            client.log_batch(found.info.run_id, params=params[start : start + MOST_PARAMS_IN_BATCH])

    def _send_facts(self, client: MlflowClient, run_id: str) -> None:
        """Send who started the run and the directory's present location as tags, and the data as inputs."""
        from mlflow.entities import RunTag

        facts = self.run.facts()
        if facts == self._sent_facts:
            return
        tags = [RunTag(key, value) for key, value in (readable_tags(facts) | {LOCATION_TAG: self.run.url}).items()]
        client.log_batch(run_id, tags=tags)
        send_datasets(client, self._found, self.run, facts)
        self._sent_facts = facts

    def _describe(self, client: MlflowClient, run_id: str, events: list[Row]) -> None:
        if self.run.spec_key != JOB_KEY:  # a search is described by its mirror
            return
        text = describe_run(self.run, self._sent_facts or {}, events, self._newest)
        if text != self._described:
            client.set_tag(run_id, DESCRIPTION_TAG, text)
            self._described = text

    def _send_tags(self, client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            if self._sent_tags.get(key) != value:
                client.set_tag(run_id, key, redact(value)[:LONGEST_TAG])
        self._sent_tags = tags

    def _send_metrics(self, client: MlflowClient, run_id: str, rows: list[Row]) -> None:
        metrics = [*self._unsent(client, run_id, rows)]
        for start in range(0, len(metrics), MOST_METRICS_IN_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS_IN_BATCH])

    def _unsent(self, client: MlflowClient, run_id: str, rows: list[Row]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for row in rows:
            step, milliseconds = int(row.get("step", 0)), unix_milliseconds(str(row.get("time", "")))
            self._newest |= row
            for plain, value in numbers(row):
                key = self._name(plain)
                evaluated = plain.startswith(EVALUATION_PREFIX)
                late = step <= self._last_steps.get(key, -1)
                if late and not (evaluated and self._lacks(client, run_id, key, step)):
                    continue
                self._last_steps[key] = max(step, self._last_steps.get(key, -1))
                if evaluated:
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
                if (data := storage.get_at_most(key, MOST_DOCUMENT_BYTES)) != self._uploaded.get(key):
                    client.log_text(run_id, data.decode(errors="replace"), key)
                    self._uploaded[key] = data
        entries = storage.list(f"{REPORT_PREFIX}/")
        others = [entry for entry in entries if not entry.key.startswith(f"{EVALUATION_IMAGES}/")]
        if len(others) < len(entries):
            self._images = self._images or SentImages(client, run_id)
            self._images.send(self.run, [entry.key for entry in entries])
        for entry in others:
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
        if any(event.get("kind") in ("checkpoint", "end") for event in events):
            self._send_metrics(client, run_id, [*account_rows(events)])  # the cost at each checkpoint
        self._describe(client, run_id, events)
        status = status_after(events) or "RUNNING"
        if status != self._status:
            if status == "RUNNING":
                client.update_run(run_id, status=status)
            else:
                send_checkpoints(client, self._found, self.run, self._name)
                ended = unix_milliseconds(str(events[-1].get("time", "")))
                client.set_terminated(run_id, status=status, end_time=ended)
            self._status = status


class Mirror(BackgroundSync):
    """Keeps the MLflow run of a run directory synchronised with it, in the background.

    Args:
        run: The run directory. It is only read, so the mirror may run in any process that reaches it.
        tracking_uri: The MLflow server or database.
        experiment: The experiment of the run.
        poll_seconds: Pause between two passes.
        on_event: Takes the events ``tracking_away`` and ``tracking_back``.
    """

    def __init__(
        self,
        run: RunDirectory,
        tracking_uri: str,
        experiment: str,
        *,
        poll_seconds: float = POLL_SECONDS,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self._mirrored = MirroredRun(run, tracking_uri, experiment)
        super().__init__(
            lambda everything: self._mirrored.sync(everything=everything),
            source=run.url,
            tracking_uri=tracking_uri,
            unaffected="training",
            poll_seconds=poll_seconds,
            on_event=on_event,
        )

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, None until the server has answered once."""
        return self._mirrored.run_id


def sync_now(run: RunDirectory, tracking_uri: str, experiment: str, *, rebuild: bool = False) -> str:
    """Synchronise MLflow with a run directory now, and return the MLflow run's id.

    Args:
        run: The run directory; it is only read.
        tracking_uri: The MLflow server or database.
        experiment: The experiment of the run.
        rebuild: Delete the run's MLflow run first and send everything anew.

    Raises:
        TrackingError: The tracking URI or the experiment cannot be used.
        Exception: Whatever MLflow raises when the server does not answer.
    """
    if rebuild:
        delete_mlflow_run(run, tracking_uri, experiment)
    return MirroredRun(run, tracking_uri, experiment).sync()
