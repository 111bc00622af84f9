"""Checks made once and not on every node: Ray itself, room for the workers, the cache's need, and MLflow.

MLflow is asked from here because the command that trains talks to it; no worker does. Only an entry of the registry and
a file are written: a deleted run or experiment stays in MLflow's database, a deleted registered model does not.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from yolofleet.cluster.doctor.disk import CacheNeed
from yolofleet.cluster.doctor.finding import CLUSTER, Finding
from yolofleet.cluster.doctor.nodes import ExaminedNode
from yolofleet.core.background import within
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.redaction import redact
from yolofleet.core.text import one_line, plural, split_url
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.tracking import TrackingSpec
from yolofleet.tracking.mlflow_store import (
    check_reachable,
    default_tracking_uri,
    mlflow_errors,
    open_client,
    sqlite_path,
)
from yolofleet.training.setup.builders import open_dataset
from yolofleet.training.supervision.nodes import NodeOffer, has_room, num_slots

ROOM_SUBJECT = "room for workers"
TRACKING_SUBJECT = "MLflow"
REACH_SECONDS = 30.0
USE_SECONDS = 120.0
SLOW_SECONDS = 3.0
NAME = "yolofleet-doctor"
TAG = "looked_at"


def ray_finding(nodes: Sequence[ExaminedNode]) -> Finding:
    """Return the finding that names Ray's version and counts its nodes."""
    import ray

    seen = f"{ray.__version__}, {plural(len(nodes), 'node')}"
    return Finding(CLUSTER, "Ray", "ok", seen, measured={"nodes": float(len(nodes))})


def check_room(cluster: ClusterSpec, nodes: Sequence[NodeOffer], may_grow: Sequence[NodeOffer]) -> Finding:
    """Check whether the cluster can hold a job's workers.

    Args:
        cluster: What the job asks for.
        nodes: The nodes that are there.
        may_grow: The nodes that an autoscaler may have running at most.
    """
    finding = partial(Finding, CLUSTER, ROOM_SUBJECT)
    try:
        has_room_now = has_room(cluster, nodes, may_grow)
    except UserError as error:
        problem, _, cure = str(error).rpartition(". ")
        return finding("fail", problem, cure[:1].lower() + cure[1:])
    slots = num_slots(cluster, nodes)
    fewest, most = cluster.fewest_workers, cluster.most_workers
    seen = f"for {plural(slots, 'worker')}, the job wants {most if fewest == most else f'{fewest} to {most}'}"
    if has_room_now:
        return finding("ok", seen, measured={"workers": float(slots)})
    cure = f"the job waits {cluster.wait_for_nodes_seconds:g} s for the autoscaler (cluster.wait_for_nodes_seconds)"
    return finding("warn", seen, cure, {"workers": float(slots)})


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
        path=str(datasets[0].cache_settings.path),
        most_bytes=datasets[0].cache_settings.max_bytes,
        data_bytes=sum(entry.bytes for entry in shards),
        largest_bytes=max(entry.bytes for entry in shards),
    )


@dataclass(frozen=True)
class TrackingFound:
    """What was found at the tracking URI."""

    problem: str | None = None
    """What did not work; None: all of it did."""
    read_seconds: float = 0.0
    """How long looking up the experiment took."""
    write_seconds: float | None = None
    """How long writing, reading and removing an entry took; None where the first training makes the database."""
    artifact_seconds: float | None = None
    """How long uploading, downloading and removing a file took; None where the first training makes the folder."""


def probe_tracking(tracking_uri: str, experiment: str) -> TrackingFound:
    """Look up the experiment; write, read and remove a registry entry, and a file beside the experiment's runs."""
    database = sqlite_path(tracking_uri)
    if database is not None and not database.exists():
        return _probe_folder(database)
    try:
        check_reachable(tracking_uri, REACH_SECONDS)
        return within(USE_SECONDS, lambda: _use_tracking(tracking_uri, experiment))
    except TimeoutError:
        return TrackingFound(f"MLflow at {redact(tracking_uri)} answers, but not within {USE_SECONDS:g} s")
    except (UserError, WorkError) as error:
        return TrackingFound(str(error))


def _probe_folder(database: Path) -> TrackingFound:
    """Return whether a database that does not exist yet can be made."""
    parent = next(folder for folder in database.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return TrackingFound(f"{database}: cannot be made, for {parent} cannot be written; set tracking.uri")
    return TrackingFound()


def _use_tracking(tracking_uri: str, experiment: str) -> TrackingFound:
    client = open_client(tracking_uri)
    name, value = f"{NAME}-{secrets.token_hex(4)}", secrets.token_hex(8)
    with mlflow_errors(tracking_uri):
        began = time.monotonic()
        entry = client.get_experiment_by_name(experiment)
        if entry is not None and entry.lifecycle_stage != "active":
            return TrackingFound(
                f"the MLflow experiment '{experiment}' at {redact(tracking_uri)} was deleted; restore it, "
                "or set another tracking.experiment"
            )
        read = time.monotonic()
        client.create_registered_model(name)
        try:
            client.set_registered_model_tag(name, TAG, value)
            seen = client.get_registered_model(name).tags.get(TAG)
        finally:
            client.delete_registered_model(name)
        location = (entry or client.get_experiment("0")).artifact_location
    if seen != value:
        return TrackingFound(f"MLflow at {redact(tracking_uri)} does not give back what was written there")
    written = time.monotonic()
    if is_made_by_first_run(location):
        return TrackingFound(None, read - began, written - read)
    if problem := artifact_problem(tracking_uri, location, f"{name}.txt", value):
        return TrackingFound(
            f"MLflow at {redact(tracking_uri)} keeps records, but no files at {redact(location)}: {problem}"
        )
    return TrackingFound(None, read - began, written - read, time.monotonic() - written)


def check_tracking(found: TrackingFound, tracking_uri: str, tracking: TrackingSpec) -> Finding:
    """Check what was found at MLflow; a job that may train without MLflow is only delayed by its absence."""
    finding = partial(Finding, CLUSTER, TRACKING_SUBJECT)
    if found.problem is not None:
        may_wait = tracking.when_away == "spool"
        cure = "check the server, or correct tracking.uri" + ("" if may_wait else "; or tracking.when_away=spool")
        return finding("warn" if may_wait else "fail", found.problem, cure)
    name = redact(tracking_uri)
    if found.write_seconds is None:
        return finding("ok", f"{name}: is made by the first training")
    measured = {"read_seconds": found.read_seconds, "write_seconds": found.write_seconds}
    seen = f"{name}: read in {found.read_seconds:.2g} s, written in {found.write_seconds:.2g} s"
    if found.artifact_seconds is not None:
        measured["artifact_seconds"] = found.artifact_seconds
        seen += f", a file kept and fetched in {found.artifact_seconds:.2g} s"
    if max(found.read_seconds, found.write_seconds) > SLOW_SECONDS:
        cure = "training does not wait for it, but its end does: give the server more workers, or a nearer database"
        return finding("warn", seen, cure, measured)
    return finding("ok", seen, measured=measured)


def examine_tracking(job: JobSpec) -> Finding:
    """Probe the job's MLflow and check what was found."""
    uri = job.tracking.uri or default_tracking_uri(job.storage)
    if uri is None:
        return Finding(CLUSTER, TRACKING_SUBJECT, "ok", "not used (tracking.uri is not set)")
    return check_tracking(probe_tracking(uri, job.tracking.experiment), uri, job.tracking)


def is_made_by_first_run(location: str) -> bool:
    """Return whether an artifact location is a folder that does not exist before the first run."""
    parts = split_url(location)
    return parts.scheme in ("", "file") and not Path(parts.path).is_dir()


def artifact_problem(tracking_uri: str, location: str, name: str, text: str) -> str | None:
    """Store a file, fetch it and remove it; return why that fails, None if it does not.

    Args:
        tracking_uri: The MLflow that the location belongs to; it may be the server that keeps the files.
        location: An experiment's artifact location.
        name: Name of the file, used by nothing else there.
        text: Content of the file.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory(prefix="yolofleet-artifact-") as folder:
        file, fetched = Path(folder, name), Path(folder, "fetched")
        file.write_text(text)
        fetched.mkdir()
        try:
            store = get_artifact_repository(location, tracking_uri=tracking_uri)
            store.log_artifact(str(file))
            try:
                seen = Path(store.download_artifacts(name, dst_path=str(fetched))).read_text()
            finally:
                store.delete_artifacts(name)
        except Exception as error:  # every kind of store raises what its own library does
            return one_line(error)
    return None if seen == text else "the fetched file differs from the stored one"
