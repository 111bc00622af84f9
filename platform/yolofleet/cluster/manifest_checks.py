"""What a job or a search must not ask for when its workers run in pods, each refused with the cure."""

from __future__ import annotations

from urllib.parse import urlsplit

from yolofleet.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.specs.kubernetes import KubernetesSpec


def is_local(url: str) -> bool:
    """Return whether a URL names a place on one machine."""
    return "://" not in url or url.startswith("file://")


def check_places(job: JobSpec, prefix: str = "") -> None:
    """Refuse places that only one machine has, and credentials within URLs.

    Args:
        job: What the workers train.
        prefix: What stands before a field in an override (``job.`` for a search).

    Raises:
        UserError: Names the field, and what to write instead.
    """
    cures = {
        "storage": "storage=s3://BUCKET/runs",
        "data.train": "data.train=s3://BUCKET/train, written by 'yolofleet data shard ANNOTATIONS IMAGES "
        "s3://BUCKET/train'",
        "data.val": "data.val=s3://BUCKET/val, written by 'yolofleet data shard ANNOTATIONS IMAGES s3://BUCKET/val'",
    }
    places = {"storage": job.storage, "data.train": job.data.train, "data.val": job.data.val}
    for field, url in places.items():
        if is_local(url):
            raise UserError(
                f"job {job.name}: {prefix}{field}: {url} is a folder of one machine, and the pods of a cluster do not "
                f"share it; use {prefix}{cures[field]}"
            )
    weights = job.initial_weights
    if weights is not None and is_local(weights) and not weights.startswith("models:/"):
        raise UserError(
            f"job {job.name}: {prefix}initial_weights: {weights} is a file of this machine, and pods do not see it; "
            "register it (yolofleet registry import) and give models:/NAME@ALIAS, or put it on S3"
        )
    _check_tracking(job, prefix)
    for field, named in (*places.items(), ("initial_weights", weights), ("tracking.uri", job.tracking.uri)):
        if named is not None and "@" in urlsplit(named).netloc:
            raise UserError(
                f"job {job.name}: {prefix}{field} holds a user or a password, which a manifest would show to all; "
                "leave it out of the URL and keep it in a Secret (kubernetes.secrets.storage, "
                "kubernetes.secrets.tracking)"
            )


def _check_tracking(job: JobSpec, prefix: str) -> None:
    uri = job.tracking.uri
    if uri is not None and urlsplit(uri).scheme not in ("http", "https"):
        raise UserError(
            f"job {job.name}: {prefix}tracking.uri: {uri.partition(':')[0]} is opened by one host as a file or a "
            f"database, and a cluster has several; use an MLflow server: {prefix}tracking.uri=http://mlflow:5000"
        )


def image_for(job: JobSpec, settings: KubernetesSpec) -> str:
    """Return the image that the job's pods run.

    Raises:
        UserError: None is named for what the job needs.
    """
    if job.cluster.gpus_per_worker:
        if settings.images.cuda is None:
            raise UserError(
                f"job {job.name} asks for GPUs (cluster.gpus_per_worker = {job.cluster.gpus_per_worker:g}), but no "
                "image with CUDA is named; build the cuda target of infra/docker/Dockerfile and set "
                "kubernetes.images.cuda=REGISTRY/yolofleet:VERSION-cuda, or cluster.gpus_per_worker=0"
            )
        return settings.images.cuda
    image = settings.images.cpu or settings.images.cuda
    if image is None:
        raise UserError(
            f"job {job.name}: no image is named; build the cpu target of infra/docker/Dockerfile and set "
            "kubernetes.images.cpu=REGISTRY/yolofleet:VERSION-cpu"
        )
    return image
