"""The jobs of a cluster: the cluster says who sent them and when, their run directories how far they have come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from yolofleet.cluster.sent_job import SentJob
from yolofleet.storage import open_storage
from yolofleet.tracking.run_catalog import DEADLINE_SECONDS, WAITING, RunFigures, figures_at, gather_figures

PATIENCE_SECONDS = 5.0
"""How long one request waits for a run directory that does not answer."""


@dataclass(frozen=True)
class ListedJob:
    """A job, and how far its run has come."""

    job: SentJob
    figures: RunFigures | None = None
    """None for other work, and for a job whose run a later one has taken over."""

    @property
    def state(self) -> str:
        """The cluster's word, or what the run waits for."""
        waits = self.job.waiting is not None or (self.figures is not None and self.figures.state == WAITING)
        return WAITING if waits and not self.job.has_ended else self.job.status

    def document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        figures = {key: value for key, value in asdict(self.figures).items() if key != "state"} if self.figures else {}
        return {**asdict(self.job), "state": self.state, "run": figures or None}


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are meant; None: whatever."""

    states: frozenset[str] | None = None
    user: str | None = None
    name: str | None = None
    """A pattern of the run's name or the job's id, e.g. ``coco-*``."""

    def fits(self, job: SentJob) -> bool:
        """Return whether a job's sender and name are meant."""
        names = (job.name or "", job.id)
        return self.user in (None, job.user) and (
            self.name is None or any(fnmatchcase(entry, self.name) for entry in names)
        )


def list_jobs(
    jobs: Sequence[SentJob],
    wanted: JobFilter,
    *,
    page: int,
    limit: int,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> tuple[list[ListedJob], int]:
    """Return one page of the jobs that are meant, the newest first, and how many are meant in all.

    Only the run directories of jobs that are shown are read, or, where a state is asked for, of those that have not
    ended: a run may wait for room.
    """
    newest_first = sorted(jobs, key=lambda job: -(job.began or 0.0))
    owners: dict[str, str] = {}
    for job in newest_first:
        if job.directory is not None:
            owners.setdefault(job.directory, job.id)
    meant = [job for job in newest_first if wanted.fits(job)]
    start, end = (page - 1) * limit, page * limit
    if wanted.states is None:
        return _with_figures(meant[start:end], owners, deadline_seconds), len(meant)
    running = _with_figures([job for job in meant if not job.has_ended], owners, deadline_seconds)
    known = {entry.job.id: entry for entry in running}
    found = [entry for entry in (known.get(job.id, ListedJob(job)) for job in meant) if entry.state in wanted.states]
    shown = found[start:end]
    ended = {
        entry.job.id: entry
        for entry in _with_figures([entry.job for entry in shown if entry.job.has_ended], owners, deadline_seconds)
    }
    return [ended.get(entry.job.id, entry) for entry in shown], len(found)


def _with_figures(jobs: Sequence[SentJob], owners: dict[str, str], deadline_seconds: float) -> list[ListedJob]:
    """Read the run directories of jobs, several at a time."""
    directories = {job.id: job.directory for job in jobs if job.directory and owners[job.directory] == job.id}
    figures = gather_figures([partial(_read, directory) for directory in directories.values()], deadline_seconds)
    known = dict(zip(directories, figures, strict=True))
    return [ListedJob(job, known.get(job.id)) for job in jobs]


def _read(directory: str) -> RunFigures:
    return figures_at(open_storage(directory, patience_seconds=PATIENCE_SECONDS))
