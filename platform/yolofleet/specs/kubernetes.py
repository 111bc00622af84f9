"""The Kubernetes settings: the pods of a cluster, for all jobs; never a secret, only names of Secrets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from yolofleet.core.redaction import names_secret
from yolofleet.specs.base import Bytes, Count, Spec

KUBERNETES_FORMAT = 1

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A name in Kubernetes: small letters, digits and '-'."""
Image = Annotated[str, Field(min_length=1)]


class TolerationSpec(Spec):
    """A taint that pods tolerate."""

    key: Annotated[str, Field(min_length=1)]
    """The taint's key."""
    value: str | None = None
    """The taint's value; any unless given."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; any unless given."""


class PoolSpec(Spec):
    """The nodes that a group of pods goes to."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: tuple[TolerationSpec, ...] = ()
    """Taints of those nodes."""
    resources: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Further resources of each pod, e.g. ``vpc.amazonaws.com/efa: 32``."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of each pod."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Further annotations of each pod."""
    runtime_class: Name | None = None
    """RuntimeClass of the pods, e.g. ``nvidia`` where it is not the nodes' default."""
    topology_key: Annotated[str, Field(min_length=1)] | None = None
    """Node label whose value all worker pods of a run share, e.g. ``topology.kubernetes.io/zone`` or a rack's."""


class HeadPodSpec(Spec):
    """The head: Ray's own services and the job's driver, which also proves the finished model; no worker runs on it."""

    cpus: Annotated[float, Field(ge=1)] = 4.0
    """CPUs of its pod; Ray counts none of them."""
    memory: Annotated[Bytes, Field(ge=4 * 10**9)] = 16 * 10**9
    """Memory of its pod."""
    pool: PoolSpec = PoolSpec()
    """Where it runs: nodes that are not preempted."""


class ImagesSpec(Spec):
    """The images, each named with its version."""

    cpu: Image | None = None
    """For jobs without GPUs."""
    cuda: Image | None = None
    """For jobs with GPUs."""

    @field_validator("cpu", "cuda")
    @classmethod
    def _pinned(cls, image: str | None) -> str | None:
        if image is None:
            return None
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            raise ValueError(
                f"{image!r} names no version, so two pods may run different code; add a tag (not latest) or a digest"
            )
        return image


class SecretsSpec(Spec):
    """Names of Secrets of the namespace; their contents are never read here."""

    ray_token: Name = "yolofleet-ray-token"
    """Ray's token, under the key ``auth_token``."""
    storage: Name | None = None
    """S3 credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Leave it out where service_account has a role."""
    tracking: Name | None = None
    """MLflow's: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Leave it out where MLflow asks for no login."""
    image_pull: Name | None = None
    """The registry's, where the images are not public."""


class RedisSpec(Spec):
    """A Redis that keeps the state of a run's head, so that a new head pod takes over its cluster."""

    address: Annotated[str, Field(pattern=r"^(rediss?://)?[A-Za-z0-9.-]+:[0-9]{1,5}$")]
    """HOST:PORT, with ``rediss://`` before it for TLS."""
    password: Name | None = None
    """Secret with its password, under the key ``password``."""


class KubernetesSpec(Spec):
    """How jobs run on Kubernetes."""

    format: Annotated[int, Field(ge=1)] = KUBERNETES_FORMAT
    """Version of this file format."""
    namespace: Name = "yolofleet"
    """Namespace of all objects."""
    images: ImagesSpec = ImagesSpec()
    head: HeadPodSpec = HeadPodSpec()
    on_demand: PoolSpec = PoolSpec()
    """Nodes that stay: for all workers, or where there is a spot pool for the first worker of each run."""
    spot: PoolSpec | None = None
    """Nodes that may be preempted, for all workers but the first."""
    gpus_per_node: Count = 8
    """GPUs of a node of the pools: workers of a run share as few pods as fit, with their links and one shard cache."""
    workers_per_pod: Count | None = None
    """Training workers that share a pod; as many as a node has GPUs for unless given, and one where they use none."""
    trials: Count = 4
    """Trials that a search's cluster runs at a time, unless the search says so itself."""
    gpu_resource: Annotated[str, Field(min_length=1)] = "nvidia.com/gpu"
    """Name of a GPU in the device plug-in."""
    gpu_memory: Bytes | None = None
    """Memory of one GPU: a job whose model needs more is refused."""
    memory_per_worker: Bytes | None = None
    """Memory of each worker's share of its pod; computed from the job unless given."""
    interconnect: Literal["efa", "infiniband"] | None = None
    """The network between GPU nodes, for NCCL: without it, a fabric that is not found is silently left for TCP."""
    cache_storage_class: Name | None = None
    """Storage class of the shard-cache volumes; the node's own disk (emptyDir) unless given."""
    secrets: SecretsSpec = SecretsSpec()
    service_account: Name | None = None
    """Service account with a role for the storage."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Plain environment variables, e.g. AWS_ENDPOINT_URL."""
    operator_namespace: Name = "kuberay-system"
    """Where the KubeRay operator runs: it alone, and the job's own pods, reach the head."""
    monitoring_namespace: Name | None = None
    """Where Prometheus runs: pods there may read the metrics of a run's pods."""
    cilium: bool = False
    """Whether Cilium holds the network policies: its own kind of policy then opens what plain ones cannot name."""
    queue: Name | None = None
    """Kueue's local queue."""
    priority: Name | None = None
    """Kueue's workload priority class; needs a queue."""
    priority_class: Name | None = None
    """PriorityClass of the head's and the workers' pods."""
    redis: RedisSpec | None = None
    """Keeps the head's state; without it, KubeRay 1.7 gives a job up whose head is away for 300 s."""
    start_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """How long a job may take to begin, images included, before it counts as failed; no limit unless given."""
    new_clusters: Annotated[int, Field(ge=0)] = 3
    """How often a job whose head was lost starts again, on a new cluster, from the run's newest checkpoint."""
    keep_seconds: Annotated[int, Field(ge=0)] = 600
    """How long the cluster of a finished job is kept, so that its logs can be read."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format > KUBERNETES_FORMAT:
            raise ValueError(
                f"format {self.format} is newer than this version reads ({KUBERNETES_FORMAT}); upgrade yolofleet"
            )
        if self.priority is not None and self.queue is None:
            raise ValueError(
                f"priority {self.priority} is Kueue's and needs a queue; name one, or set priority_class, which is "
                "that of the pods"
            )
        return self

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if names_secret(name):
                raise ValueError(
                    f"{name} looks like a secret, which all readers of the manifest would see; keep it in a "
                    "Secret and name that under secrets.storage or secrets.tracking"
                )
        return environment
