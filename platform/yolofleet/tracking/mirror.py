"""The MLflow mirror of a run: a background loop that follows the run directory and that training never waits for.

The run directory is the queue: what the server has not taken stays there, however long it is away and whether or not
this process survives. When the server is back, the next pass catches up; so does `sync_now` at any later time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from yolofleet.core.background import BackgroundLoop, within
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.redaction import redact
from yolofleet.core.text import one_line
from yolofleet.tracking.mirrored_run import MirroredRun, find_run
from yolofleet.tracking.mlflow_store import experiment_id, open_client
from yolofleet.tracking.run_directory import OnEvent, RunDirectory

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""Pause between two passes."""
LONGEST_PAUSE_SECONDS = 60.0
"""The pause doubles up to this while the server does not answer."""
CLOSE_TIMEOUT_SECONDS = 30.0
"""How long `BackgroundSync.close` lets the last pass take."""


def ignore_event(kind: str, **fields: Any) -> None:
    """Do nothing with an event."""


class BackgroundSync:
    """Keeps MLflow synchronised with a directory in the background.

    Args:
        sync: Makes one pass, over everything or over what may have changed; raises where MLflow does not answer.
        source: The directory's URL.
        tracking_uri: The MLflow server or database.
        unaffected: What does not wait for MLflow: "training", "the search".
        poll_seconds: Pause between two passes.
        on_event: Takes the events ``tracking_away`` and ``tracking_back``.
        target: What is synchronised, for messages.
        cure: What sends the rest later.
    """

    def __init__(
        self,
        sync: Callable[[bool], object],
        *,
        source: str,
        tracking_uri: str,
        unaffected: str,
        poll_seconds: float = POLL_SECONDS,
        on_event: OnEvent = ignore_event,
        target: str = "MLflow",
        cure: str = "`yolofleet report {source} --sync`",
    ) -> None:
        self._target = f"{target} at {redact(tracking_uri)}"
        self._cure = cure.format(source=source)
        self._sync = sync
        self._source = source
        self._uri = redact(tracking_uri)
        self._unaffected = unaffected
        self._poll_seconds = poll_seconds
        self._on_event = on_event
        self._failures = 0
        self._synchronised = False
        self._synchronised_at = time.monotonic()
        self._next_pass = 0.0
        self._one_pass_at_a_time = threading.Lock()
        self._loop = BackgroundLoop(
            self._pass_if_due,
            seconds=poll_seconds,
            name="mlflow-mirror",
            warning=f"{self._target} is not synchronised at the moment",
            at_once=True,
            close_timeout_seconds=0.0,  # `close` has a limit of its own
        )

    def start(self) -> None:
        """Start; returns at once, whether or not the server is there."""
        self._loop.start()

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> bool:
        """Make a last pass and end.

        Flush the directory first: only stored rows can be sent.

        Args:
            timeout_seconds: The longest that this call takes.

        Returns:
            Whether MLflow holds everything now. If not, nothing is lost: `yolofleet report --sync` sends the rest.
        """
        self._loop.close()
        self._synchronised = False
        try:
            within(timeout_seconds, lambda: self._pass(everything=True))
        except TimeoutError:
            self._synchronised = False
        if not self._synchronised:
            logger.warning("%s does not hold all of %s; send the rest with %s", self._target, self._source, self._cure)
        return self._synchronised

    def _pass_if_due(self) -> None:
        if time.monotonic() >= self._next_pass:
            self._pass(everything=False)
            longest = max(LONGEST_PAUSE_SECONDS, self._poll_seconds)
            self._next_pass = time.monotonic() + min(self._poll_seconds * 2**self._failures, longest)

    def _pass(self, *, everything: bool) -> None:
        with self._one_pass_at_a_time:
            self._make_pass(everything)

    def _make_pass(self, everything: bool) -> None:
        self._synchronised = False
        try:
            self._sync(everything)
        except Exception as error:  # MLflow, requests, database drivers, storage: all mean "try again later"
            self._failures += 1
            if self._failures == 1:
                reason = one_line(error)
                logger.warning("%s is behind, %s continues: %s", self._target, self._unaffected, reason)
                self._append_event("tracking_away", uri=self._uri, reason=reason)
            return
        if self._failures:
            logger.info("%s has caught up", self._target)
            seconds = round(time.monotonic() - self._synchronised_at, 3)
            self._append_event("tracking_back", uri=self._uri, seconds=seconds)
        self._failures, self._synchronised_at, self._synchronised = 0, time.monotonic(), True

    def _append_event(self, kind: str, **fields: Any) -> None:
        try:
            self._on_event(kind, **fields)
        except (UserError, WorkError) as error:  # the storage is away, too, or another process has taken the run over
            logger.warning("the event %s of %s could not be recorded: %s", kind, self._source, error)


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


def delete_mlflow_run(run: RunDirectory, tracking_uri: str, experiment: str) -> None:
    """Delete what MLflow holds of a run directory; the directory itself is left alone."""
    client = open_client(tracking_uri)
    while (found := find_run(client, experiment_id(client, experiment), run.identity)) is not None:
        client.delete_run(found.info.run_id)
