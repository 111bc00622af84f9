"""MLflow from the command that trains: read, written, and left as it was."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from yolofleet.cluster.doctor.line import Line
from yolofleet.errors import UserError
from yolofleet.specs.job import TrackingSpec
from yolofleet.tracking.artifact_place import artifact_problem, is_yet_to_be_made
from yolofleet.tracking.deadline import within
from yolofleet.tracking.mlflow_store import check_reachable, mlflow_errors, open_client, shown, sqlite_path

SUBJECT = "MLflow"
REACH_SECONDS = 30.0
USE_SECONDS = 120.0
SLOW_SECONDS = 3.0
NAME = "yolofleet-doctor"
TAG = "looked_at"


@dataclass(frozen=True)
class TrackingFound:
    """What was found at the tracking URI.

    Attributes:
        problem: What did not work; None: all of it did.
        read_seconds: What looking up the experiment took.
        write_seconds: What writing, reading and removing an entry took; None where the database is yet to be made.
        artifact_seconds: What keeping, fetching and removing a file took; None where the folder is yet to be made.
    """

    problem: str | None = None
    read_seconds: float = 0.0
    write_seconds: float | None = None
    artifact_seconds: float | None = None


def look_at_tracking(tracking_uri: str, experiment: str) -> TrackingFound:
    """Look up the experiment; write, read and remove an entry of the registry, and a file beside the experiment's runs.

    Neither leaves a trace: a deleted run or experiment stays in MLflow's database, a deleted registered model does not.
    """
    database = sqlite_path(tracking_uri)
    if database is not None and not database.exists():
        return _yet_to_be_made(database)
    try:
        check_reachable(tracking_uri, REACH_SECONDS)
        return within(USE_SECONDS, lambda: _used(tracking_uri, experiment))
    except TimeoutError:
        return TrackingFound(f"MLflow at {shown(tracking_uri)} answers, but not within {USE_SECONDS:g} s")
    except UserError as error:
        return TrackingFound(str(error))


def _yet_to_be_made(database: Path) -> TrackingFound:
    there = next(folder for folder in database.parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return TrackingFound(f"{database}: cannot be made, for {there} cannot be written; set tracking.uri")
    return TrackingFound()


def _used(tracking_uri: str, experiment: str) -> TrackingFound:
    client = open_client(tracking_uri)
    name, mark = f"{NAME}-{secrets.token_hex(4)}", secrets.token_hex(8)
    with mlflow_errors(tracking_uri):
        began = time.monotonic()
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage != "active":
            return TrackingFound(
                f"the MLflow experiment '{experiment}' at {shown(tracking_uri)} was deleted; restore it, or set "
                "another tracking.experiment"
            )
        read = time.monotonic()
        client.create_registered_model(name)
        try:
            client.set_registered_model_tag(name, TAG, mark)
            seen = client.get_registered_model(name).tags.get(TAG)
        finally:
            client.delete_registered_model(name)
        place = (found or client.get_experiment("0")).artifact_location
    if seen != mark:
        return TrackingFound(f"MLflow at {shown(tracking_uri)} does not give back what was written there")
    written = time.monotonic()
    if is_yet_to_be_made(place):
        return TrackingFound(None, read - began, written - read)
    if problem := artifact_problem(tracking_uri, place, f"{name}.txt", mark):
        return TrackingFound(
            f"MLflow at {shown(tracking_uri)} keeps records, but no files at {shown(place)}: {problem}"
        )
    return TrackingFound(None, read - began, written - read, time.monotonic() - written)


def judge_tracking(place: str, found: TrackingFound, tracking_uri: str, tracking: TrackingSpec) -> Line:
    """Judge MLflow; a job that may wait for it is only slowed by its absence."""
    if found.problem is not None:
        may_wait = tracking.when_away == "spool"
        cure = "see to the server, or correct tracking.uri" + ("" if may_wait else "; or tracking.when_away=spool")
        return Line(place, SUBJECT, "warn" if may_wait else "fail", found.problem, cure)
    where = shown(tracking_uri)
    if found.write_seconds is None:
        return Line(place, SUBJECT, "ok", f"{where}: is made by the first training")
    measured = {"read_seconds": found.read_seconds, "write_seconds": found.write_seconds}
    seen = f"{where}: read in {found.read_seconds:.2g} s, written in {found.write_seconds:.2g} s"
    if found.artifact_seconds is not None:
        measured["artifact_seconds"] = found.artifact_seconds
        seen += f", a file kept and fetched in {found.artifact_seconds:.2g} s"
    if max(found.read_seconds, found.write_seconds) > SLOW_SECONDS:
        cure = "training does not wait for it, its end does: give the server more workers, or a nearer database"
        return Line(place, SUBJECT, "warn", seen, cure, measured)
    return Line(place, SUBJECT, "ok", seen, measured=measured)
