"""What is looked at once, from the command that trains, and not on every node."""

from __future__ import annotations

from collections.abc import Sequence

from yolofleet.cluster.doctor.disk import CacheNeed
from yolofleet.cluster.doctor.line import CLUSTER, Line
from yolofleet.cluster.doctor.nodes import Node
from yolofleet.cluster.doctor.tracking_probe import SUBJECT as TRACKING_SUBJECT
from yolofleet.cluster.doctor.tracking_probe import judge_tracking, look_at_tracking
from yolofleet.errors import UserError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.mlflow_store import default_tracking_uri
from yolofleet.training.capacity import NodeOffer, has_room, num_places
from yolofleet.training.input import open_dataset

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
    places = num_places(cluster, nodes)
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
