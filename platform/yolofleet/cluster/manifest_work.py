"""The work that a manifest is for: a training run or a search, as the head reads and starts it in a pod.

Pods see neither the folders nor the files of one machine, so a job that names any is refused here with the cure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from yolofleet.cluster.bundle import check_choices, read_model_table
from yolofleet.cluster.manifest_sizes import Demand, PodSize, pod_size, worker_bytes, workers_in_pod
from yolofleet.core.errors import UserError
from yolofleet.core.registered_names import registered_uri
from yolofleet.core.text import split_url
from yolofleet.search.feasibility import profile_job
from yolofleet.search.space import Space, even_point
from yolofleet.specs.data import CacheSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.job_paths import flatten, with_fields
from yolofleet.specs.kubernetes import KubernetesSpec
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.yaml_document import write_yaml
from yolofleet.training.setup.worker_cpus import choose_cpus

FILES_FOLDER = "/etc/yolofleet"
CACHE_FOLDER = "/cache"
CAPACITY_LABEL = "yolofleet.io/capacity"
ON_DEMAND, SPOT = "on-demand", "spot"
TYPICAL_CLASSES = 80
"""Classes to estimate a model's memory with: the data's are not read, and hardly matter."""
NUM_CANDIDATES = 32
LONGEST_NAME = 40
"""KubeRay derives names of pods and services from a cluster's, and Kubernetes takes 63 characters."""
HTTPS_PORT = 443


def is_local(url: str) -> bool:
    """Return whether a URL names a folder or file of one machine."""
    return "://" not in url or url.startswith("file://")


def check_locations(job: JobSpec, prefix: str = "") -> None:
    """Refuse folders and files that only one machine has.

    Args:
        job: What the workers train.
        prefix: The start of a field's key in an override (``job.`` for a search).

    Raises:
        UserError: There is one; names the field, and what to write instead.
    """
    cures = {
        "storage": "storage=s3://BUCKET/runs",
        "data.train": "data.train=s3://BUCKET/train, written by 'yolofleet data shard ANNOTATIONS IMAGES "
        "s3://BUCKET/train'",
        "data.val": "data.val=s3://BUCKET/val, written by 'yolofleet data shard ANNOTATIONS IMAGES s3://BUCKET/val'",
    }
    locations = {"storage": job.storage, "data.train": job.data.train, "data.val": job.data.val}
    for field, url in locations.items():
        if is_local(url):
            raise UserError(
                f"job {job.name}: {prefix}{field}: {url} is a folder of one machine, which the pods of a cluster do "
                f"not share; use {prefix}{cures[field]}"
            )
    weights = job.initial_weights
    if weights is not None and is_local(weights) and registered_uri(weights) is None:
        raise UserError(
            f"job {job.name}: {prefix}initial_weights: {weights} is a file of this machine, which pods cannot read; "
            f"register it (yolofleet registry import) and give NAME@ALIAS, or put it on S3"
        )
    _check_tracking(job, prefix)


def _check_tracking(job: JobSpec, prefix: str) -> None:
    uri = job.tracking.uri
    if uri is not None and split_url(uri).scheme not in ("http", "https"):
        raise UserError(
            f"job {job.name}: {prefix}tracking.uri: {uri.partition(':')[0]} can be opened by only one host, and a "
            f"cluster has several; use an MLflow server: {prefix}tracking.uri=http://mlflow:5000"
        )


def image_for(job: JobSpec, settings: KubernetesSpec) -> str:
    """Return the image that the job's pods run.

    Raises:
        UserError: The settings name none that the job can run in.
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


@dataclass(frozen=True)
class Work:
    """A run or a search that a cluster is started for."""

    name: str
    """The run's or the search's name: a start under the same name resumes."""
    job: JobSpec
    """The job, or the base job of the search, as the head reads it."""
    files: dict[str, str]
    """The files of the head's ConfigMap, by name."""
    command: str
    """The head's command."""
    demand: Demand
    """How many workers run at a time."""
    pod: PodSize
    """The size of each worker pod."""
    asks_for_nodes: bool
    """Whether the driver, once it has checked everything, asks the autoscaler for its workers' nodes; a search counts
    the nodes that are there when it starts."""

    @property
    def resource_name(self) -> str:
        """The name as Kubernetes takes it; different names stay different."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        if plain == self.name and plain[0].isalpha() and len(plain) <= LONGEST_NAME:
            return plain
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:6]
        return f"{plain if plain[:1].isalpha() else f'r-{plain}'}"[: LONGEST_NAME - 7].strip("-") + f"-{digest}"


def work_of_job(job: JobSpec, settings: KubernetesSpec) -> Work:
    """Return the work of a training run.

    Raises:
        UserError: It cannot run in pods; names the reason and what to write instead.
    """
    check_locations(job)
    demand = Demand.of_job(job.cluster)
    files, changes = _for_pods(job, settings)
    document = with_fields(job.document(), changes)
    executed = JobSpec.parse(document, source=f"job {job.name}")
    files["job.yaml"] = write_yaml(document)
    workers = workers_in_pod(executed.cluster, demand, settings)
    pod = pod_size(executed, settings, profile_job(job, TYPICAL_CLASSES), workers)
    return Work(job.name, executed, files, f"yolofleet train {FILES_FOLDER}/job.yaml --launcher ray", demand, pod, True)


def work_of_search(spec: SearchSpec, settings: KubernetesSpec, *, source: str) -> Work:
    """Return the work of a search.

    Raises:
        UserError: It cannot run in pods; names the reason and what to write instead.
    """
    space = Space(spec, source=source)
    job = space.base_job
    check_locations(job, prefix="job.")
    check_choices(spec, source)
    demand = Demand.of_search(job.cluster, spec.concurrency or settings.trials)
    files, changes = _for_pods(job, settings)
    document = spec.document() | {"set": flatten(spec.set) | changes}
    executed = Space(SearchSpec.parse(document, source=source), source=source).base_job
    files["space.yaml"] = write_yaml(document)
    profiles = list(_profiles(space))
    if not profiles:
        raise UserError(f"{source}: none of {NUM_CANDIDATES} candidates makes a valid job; see 'yolofleet tune'")
    largest = max(profiles, key=lambda entry: worker_bytes(*entry))
    memory = {"memory_per_worker": settings.memory_per_worker or worker_bytes(*largest)}
    workers = workers_in_pod(executed.cluster, demand, settings)
    pod = pod_size(executed, settings.model_copy(update=memory), profile_job(job, TYPICAL_CLASSES), workers)
    return Work(spec.name, executed, files, f"yolofleet tune {FILES_FOLDER}/space.yaml --yes", demand, pod, False)


def _profiles(space: Space) -> Iterator[tuple[JobSpec, dict[str, float]]]:
    """Yield jobs spread over the space with the cost of their models; invalid candidates are left out."""
    for index in range(NUM_CANDIDATES):
        point = even_point(space.spec.seed, index, len(space.parameters))
        try:
            job = space.job(space.parameters.at(point))
            yield job, profile_job(job, TYPICAL_CLASSES)
        except UserError:
            continue


def _for_pods(job: JobSpec, settings: KubernetesSpec) -> tuple[dict[str, str], dict[str, Any]]:
    """Return further files that the head needs, and the fields of the job that differ in pods."""
    files: dict[str, str] = {}
    changes: dict[str, Any] = {"data.cache.path": f"{CACHE_FOLDER}/shards"}  # as the pods' environment says, too
    if job.cluster.cpus_per_worker == "auto":
        changes["cluster.cpus_per_worker"] = choose_cpus(job, None, 1, None)
    if settings.spot is not None and job.cluster.most_workers > 1:
        changes["cluster.first_worker_labels"] = job.cluster.first_worker_labels | {CAPACITY_LABEL: ON_DEMAND}
    if job.model.spec is not None:
        files["model.yaml"] = read_model_table(job.model.spec, "model.spec")
        changes["model.spec"] = f"{FILES_FOLDER}/model.yaml"
    if job.data.cache is None:
        changes["data.cache.max_bytes"] = CacheSpec(path=CACHE_FOLDER).max_bytes
    return files, changes


def port_of(url: str) -> int:
    """Return the TCP port of a service.

    Raises:
        UserError: It is none.
    """
    parts = split_url(url)
    return parts.port or (80 if parts.scheme == "http" else HTTPS_PORT)
