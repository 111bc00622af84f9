"""Bringing MLflow level with a search now, from its directory alone."""

from __future__ import annotations

from yolofleet.errors import UserError
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.space import Space
from yolofleet.tracking.mirror import forget
from yolofleet.tracking.mlflow_store import check_reachable, default_tracking_uri, mlflow_errors
from yolofleet.tracking.search_mirror import SearchMirror


def sync_search(directory: SearchDirectory, given: str | None, *, rebuild: bool) -> str:
    """Send to MLflow what it lacks of a search and its trials, and return the parent run's id.

    Args:
        directory: The search; it is only read.
        given: The tracking URI; the base job's unless given.
        rebuild: Delete the runs in MLflow first and send everything anew.

    Raises:
        UserError: No tracking URI is known, or nothing answers there.
    """
    job = Space(directory.spec(), source=directory.url).base_job
    uri = given or job.tracking.uri or default_tracking_uri(directory.url.rstrip("/").rpartition("/")[0])
    if uri is None:
        raise UserError(f"{directory.url}: its job names no tracking.uri; give one with --tracking-uri")
    check_reachable(uri)
    with mlflow_errors(uri):
        if rebuild:
            for run in (directory, *(trial.run for trial in directory.trial_runs().values())):
                if run.exists():
                    forget(run, uri, job.tracking.experiment)
        return SearchMirror(directory, directory.trial_runs, uri, job.tracking.experiment).sync()
