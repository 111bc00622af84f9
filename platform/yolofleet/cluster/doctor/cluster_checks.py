"""What is looked at once, from the command that trains, and not on every node.

MLflow from the command that trains: read, written, and left as it was.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolofleet.cluster.doctor.disk import CacheNeed
from yolofleet.cluster.doctor.finding import CLUSTER, Line
from yolofleet.cluster.doctor.nodes import Node
from yolofleet.core.background import within
from yolofleet.core.errors import UserError
from yolofleet.core.redaction import without_passwords
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec, TrackingSpec
from yolofleet.tracking.mlflow_store import (
    artifact_problem,
    check_reachable,
    default_tracking_uri,
    is_made_by_first_run,
    mlflow_errors,
    open_client,
    sqlite_path,
)
from yolofleet.training.setup.builders import open_dataset
from yolofleet.training.supervision.nodes import NodeOffer, has_room, num_slots

TRACKING_SUBJECT = "MLflow"
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
        return TrackingFound(f"MLflow at {without_passwords(tracking_uri)} answers, but not within {USE_SECONDS:g} s")
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
                f"the MLflow experiment '{experiment}' at {without_passwords(tracking_uri)} was deleted; restore it, "
                "or set another tracking.experiment"
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
        return TrackingFound(f"MLflow at {without_passwords(tracking_uri)} does not give back what was written there")
    written = time.monotonic()
    if is_made_by_first_run(place):
        return TrackingFound(None, read - began, written - read)
    if problem := artifact_problem(tracking_uri, place, f"{name}.txt", mark):
        return TrackingFound(
            f"MLflow at {without_passwords(tracking_uri)} keeps records, but no files at "
            f"{without_passwords(place)}: {problem}"
        )
    return TrackingFound(None, read - began, written - read, time.monotonic() - written)


def judge_tracking(place: str, found: TrackingFound, tracking_uri: str, tracking: TrackingSpec) -> Line:
    """Judge MLflow; a job that may wait for it is only slowed by its absence."""
    if found.problem is not None:
        may_wait = tracking.when_away == "spool"
        cure = "see to the server, or correct tracking.uri" + ("" if may_wait else "; or tracking.when_away=spool")
        return Line(place, TRACKING_SUBJECT, "warn" if may_wait else "fail", found.problem, cure)
    where = without_passwords(tracking_uri)
    if found.write_seconds is None:
        return Line(place, TRACKING_SUBJECT, "ok", f"{where}: is made by the first training")
    measured = {"read_seconds": found.read_seconds, "write_seconds": found.write_seconds}
    seen = f"{where}: read in {found.read_seconds:.2g} s, written in {found.write_seconds:.2g} s"
    if found.artifact_seconds is not None:
        measured["artifact_seconds"] = found.artifact_seconds
        seen += f", a file kept and fetched in {found.artifact_seconds:.2g} s"
    if max(found.read_seconds, found.write_seconds) > SLOW_SECONDS:
        cure = "training does not wait for it, its end does: give the server more workers, or a nearer database"
        return Line(place, TRACKING_SUBJECT, "warn", seen, cure, measured)
    return Line(place, TRACKING_SUBJECT, "ok", seen, measured=measured)


ROOM_SUBJECT = "room for workers"


def ray_line(nodes: Sequence[Node]) -> Line:
    """Return what Ray says of itself."""
    import ray

    shown = f"{ray.__version__}, {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}"
    return Line(CLUSTER, "Ray", "ok", shown, measured={"nodes": float(len(nodes))})


def room_line(cluster: ClusterSpec, nodes: Sequence[NodeOffer], may_grow: Sequence[NodeOffer]) -> Line:
    """Judge whether a job's workers find room.

    Args:
        cluster: What the job asks for.
        nodes: The nodes that are there.
        may_grow: The nodes that an autoscaler may have running at most.
    """
    try:
        now = has_room(cluster, nodes, may_grow)
    except UserError as error:
        what, _, cure = str(error).rpartition(". ")
        return Line(CLUSTER, ROOM_SUBJECT, "fail", what, cure[:1].lower() + cure[1:])
    places = num_slots(cluster, nodes)
    seen = f"for {places} workers, the job wants {_span(cluster)}"
    if now:
        return Line(CLUSTER, ROOM_SUBJECT, "ok", seen, measured={"workers": float(places)})
    cure = f"the job waits {cluster.wait_for_nodes_seconds:g} s for the autoscaler (cluster.wait_for_nodes_seconds)"
    return Line(CLUSTER, ROOM_SUBJECT, "warn", seen, cure, {"workers": float(places)})


def tracking_line(job: JobSpec) -> Line:
    """Look at MLflow and judge it."""
    uri = job.tracking.uri or default_tracking_uri(job.storage)
    if uri is None:
        return Line(CLUSTER, TRACKING_SUBJECT, "ok", "not used (tracking.uri is not set)")
    return judge_tracking(CLUSTER, look_at_tracking(uri, job.tracking.experiment), uri, job.tracking)


def cache_need(job: JobSpec) -> CacheNeed | None:
    """Return what the job wants to keep on each node; None where its data lies in folders.

    Raises:
        UserError: The data cannot be read.
    """
    datasets = [open_dataset(job.data, url) for url in (job.data.train, job.data.val)]
    shards = [entry for dataset in datasets if dataset.is_remote for entry in dataset.manifest.shards]
    if not shards:
        return None
    return CacheNeed(
        path=str(datasets[0].cache_path),
        most_bytes=datasets[0].cache_bytes,
        data_bytes=sum(entry.bytes for entry in shards),
        largest_bytes=max(entry.bytes for entry in shards),
    )


def _span(cluster: ClusterSpec) -> str:
    fewest, most = cluster.fewest_workers, cluster.most_workers
    return str(most) if fewest == most else f"{fewest} to {most}"
