"""The MLflow mirror of a search: a parent run, and a child run for each trial, written by one thread.

Each is a mirrored run directory (yolofleet.tracking.mirror), so a pass may be repeated or cut off anywhere, and
the whole can be rebuilt from the storage at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from yolofleet.core.background import BackgroundSync
from yolofleet.core.text import plural
from yolofleet.tracking.mirror import MirroredRun
from yolofleet.tracking.mirrored_run import DESCRIPTION_TAG
from yolofleet.tracking.run_directory import RunDirectory

CLOSE_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class TrialRun:
    """One run of a trial."""

    run: RunDirectory
    tags: dict[str, str]
    """What the search knows of it: why it ended, what it cost."""
    ended: bool
    """Whether nothing will be added to it."""


TrialRuns = Callable[[], Mapping[str, TrialRun]]
"""Returns every run of every trial so far, by name."""


class SearchMirror(BackgroundSync):
    """Keeps the MLflow runs of a search synchronised with its directory, in the background.

    Args:
        search: The search directory; it is only read.
        trial_runs: Returns the runs of its trials.
        tracking_uri: The MLflow server or database.
        experiment: The experiment of all its runs.
    """

    def __init__(self, search: RunDirectory, trial_runs: TrialRuns, tracking_uri: str, experiment: str) -> None:
        self._trial_runs = trial_runs
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._parent = MirroredRun(search, tracking_uri, experiment)
        self._children: dict[str, MirroredRun] = {}
        self._complete: set[str] = set()
        super().__init__(self.sync, source=search.url, tracking_uri=tracking_uri, unaffected="the search")

    def sync(self, everything: bool = True) -> str:
        """Make one pass and return the parent run's id.

        Args:
            everything: As in `MirroredRun.sync`; a trial that has ended is sent whole.

        Raises:
            Exception: Whatever MLflow raises when the server does not answer; call again later.
        """
        runs = self._trial_runs()
        ended = sum(trial.ended for trial in runs.values())
        description = f"Search **{self._parent.run.name}**: {plural(len(runs), 'run')} of trials below, {ended} ended; "
        description += "`report/index.html` among the artifacts compares them, and `report/best.yaml` is the best job"
        parent = self._parent.sync({DESCRIPTION_TAG: description}, everything=everything)
        for name, trial in runs.items():
            if name in self._complete:
                continue
            if name not in self._children:
                if trial.run.job_text() is None:
                    continue
                self._children[name] = MirroredRun(
                    trial.run, self._tracking_uri, self._experiment, parent_run_id=parent
                )
            self._children[name].sync(trial.tags, everything=everything or trial.ended)
            if trial.ended:
                self._complete.add(name)
        return parent
