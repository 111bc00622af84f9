"""The MLflow mirror of a search: a parent run, and a child run for each trial, written by one thread.

Each is a mirrored run directory (yolofleet.tracking.mirrored_run), so a pass may be repeated or cut off anywhere, and
the whole can be rebuilt from the storage at any time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from yolofleet.tracking.mirrored_run import MirroredRun
from yolofleet.tracking.mlflow_store import shown
from yolofleet.tracking.run_directory import RunDirectory

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
CLOSE_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class TrialRun:
    """One run of a trial.

    Attributes:
        run: Its run directory.
        tags: What the search knows of it: why it ended, what it cost.
        ended: Whether nothing will be added to it.
    """

    run: RunDirectory
    tags: dict[str, str]
    ended: bool


TrialRuns = Callable[[], Mapping[str, TrialRun]]
"""Gives every run of every trial so far, by name."""


class SearchMirror:
    """Keeps the MLflow runs of a search level with its directory, in the background.

    Args:
        search: The search directory; it is only read.
        trial_runs: Gives the runs of its trials.
        tracking_uri: The MLflow server or database.
        experiment: The experiment of all its runs.
        poll_seconds: Pause between two passes.
    """

    def __init__(
        self,
        search: RunDirectory,
        trial_runs: TrialRuns,
        tracking_uri: str,
        experiment: str,
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._search = search
        self._trial_runs = trial_runs
        self._uri = tracking_uri
        self._experiment = experiment
        self._poll_seconds = poll_seconds
        self._parent = MirroredRun(search, tracking_uri, experiment)
        self._children: dict[str, MirroredRun] = {}
        self._complete: set[str] = set()
        self._ended = threading.Event()
        self._level = False
        self._thread = threading.Thread(target=self._follow, name="mlflow-search-mirror", daemon=True)

    def start(self) -> None:
        """Begin to follow the directory; returns at once."""
        self._thread.start()

    def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> bool:
        """Make a last pass and end; returns whether MLflow holds everything now."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        if not self._level:
            logger.warning(
                "MLflow at %s does not hold all of %s; send the rest with `yolofleet report %s --sync`",
                shown(self._uri),
                self._search.url,
                self._search.url,
            )
        return self._level

    def sync(self) -> str:
        """Make one pass and return the parent run's id.

        Raises:
            Exception: Whatever MLflow raises when the server does not answer; call again later.
        """
        parent = self._parent.sync()
        for name, trial in self._trial_runs().items():
            if name in self._complete or not trial.run.exists():
                continue
            if name not in self._children:
                self._children[name] = MirroredRun(trial.run, self._uri, self._experiment, parent_run_id=parent)
            self._children[name].sync(trial.tags)
            if trial.ended:
                self._complete.add(name)
        return parent

    def _follow(self) -> None:
        failing = False
        while True:
            last = self._ended.is_set()
            try:
                self.sync()
                self._level, failing = True, False
            except Exception as error:  # MLflow, requests, database drivers, storage: all mean "try again later"
                self._level = False
                if not failing:
                    reason = " ".join(str(error).split())[:300]
                    logger.warning("MLflow at %s is behind, the search goes on: %s", shown(self._uri), reason)
                failing = True
            if last:
                return
            self._ended.wait(self._poll_seconds)
