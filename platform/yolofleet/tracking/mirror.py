"""The MLflow mirror of a run: a thread that follows the run directory and that training never waits for.

The run directory is the queue: what the server has not taken stays there, however long it is away and whether or not
this process lives on. When the server is back, the next pass catches up; so does `sync_now` at any later time.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

from yolofleet.core.errors import UserError, WorkError
from yolofleet.tracking.mirrored_run import MirroredRun, find_run
from yolofleet.tracking.mlflow_store import experiment_id, open_client, shown
from yolofleet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""Pause between two passes."""
LONGEST_PAUSE_SECONDS = 60.0
"""The pause doubles up to this while the server does not answer."""
CLOSE_TIMEOUT_SECONDS = 30.0
"""How long `Mirror.close` lets the last pass take."""


class Told(Protocol):
    """Takes an event, as `RunDirectory.append_event` does."""

    def __call__(self, kind: str, **fields: Any) -> None:
        """Note an event."""


def nobody(kind: str, **fields: Any) -> None:
    """Tell nobody."""


class Mirror:
    """Keeps the MLflow run of a run directory level with it, in the background.

    Args:
        run: The run directory. It is only read, so the mirror may run in any process that reaches it.
        tracking_uri: The MLflow server or database.
        experiment: The experiment of the run.
        poll_seconds: Pause between two passes.
        told: Takes the events ``tracking_away`` and ``tracking_back``.
    """

    def __init__(
        self,
        run: RunDirectory,
        tracking_uri: str,
        experiment: str,
        *,
        poll_seconds: float = POLL_SECONDS,
        told: Told = nobody,
    ) -> None:
        self._run = run
        self._mirrored = MirroredRun(run, tracking_uri, experiment)
        self._poll_seconds = poll_seconds
        self._told = told
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._level = False
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id, None until the server has answered once."""
        return self._mirrored.run_id

    def start(self) -> None:
        """Begin to follow the run directory; returns at once, whether or not the server is there."""
        self._thread.start()

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> bool:
        """Make a last pass and end.

        Flush the run directory first: only what is stored can be sent.

        Args:
            timeout_seconds: The longest that this call takes.

        Returns:
            Whether MLflow holds everything now. If not, nothing is lost: `sync_now` sends the rest at any later time.
        """
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        level = self._level and not self._thread.is_alive()
        if not level:
            logger.warning(
                "MLflow at %s does not hold all of run %s; send the rest with `yolofleet report %s --sync`",
                shown(self._mirrored.tracking_uri),
                self._run.name,
                self._run.url,
            )
        return level

    def _follow(self) -> None:
        failures = 0
        level_at = time.monotonic()
        while True:
            last_pass = self._closing.is_set()
            self._level = False
            try:
                self._mirrored.sync()
            except Exception as error:  # MLflow, requests, database drivers, storage: all mean "try again later"
                failures += 1
                if failures == 1:
                    reason = " ".join(str(error).split())[:300]
                    uri = shown(self._mirrored.tracking_uri)
                    logger.warning("MLflow at %s is behind, training goes on: %s", uri, reason)
                    self._tell("tracking_away", uri=uri, reason=reason)
            else:
                now = time.monotonic()
                if failures:
                    uri = shown(self._mirrored.tracking_uri)
                    logger.info("MLflow at %s has caught up", uri)
                    self._tell("tracking_back", uri=uri, seconds=round(now - level_at, 3))
                failures, level_at = 0, now
                self._level = True
            if last_pass:
                return
            self._wake.wait(min(self._poll_seconds * 2**failures, max(LONGEST_PAUSE_SECONDS, self._poll_seconds)))
            self._wake.clear()

    def _tell(self, kind: str, **fields: Any) -> None:
        """Note an event; where that is not possible the mirror goes on without."""
        try:
            self._told(kind, **fields)
        except (UserError, WorkError) as error:  # the storage is away too, or the run is another's by now
            logger.warning("%s of run %s could not be noted: %s", kind, self._run.name, error)


def sync_now(run: RunDirectory, tracking_uri: str, experiment: str, *, rebuild: bool = False) -> str:
    """Bring MLflow level with a run directory now, and return the MLflow run's id.

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
        forget(run, tracking_uri, experiment)
    return MirroredRun(run, tracking_uri, experiment).sync()


def forget(run: RunDirectory, tracking_uri: str, experiment: str) -> None:
    """Delete what MLflow holds of a run directory; the directory itself is left alone."""
    client = open_client(tracking_uri)
    while (found := find_run(client, experiment_id(client, experiment), run.identity)) is not None:
        client.delete_run(found.info.run_id)
