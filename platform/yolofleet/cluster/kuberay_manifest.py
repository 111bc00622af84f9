"""A KubeRay manifest for a job or a search: a pure function of its spec and of the Kubernetes settings.

Nothing is applied, and nothing is read but the specs: no environment, no cluster, no data.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import yaml

from yolofleet.cluster.manifest_network import network_policies
from yolofleet.cluster.manifest_pods import (
    head_template,
    labels,
    object_store_option,
    security_context,
    submitter_template,
    worker_template,
)
from yolofleet.cluster.manifest_sizes import GroupSize, group_sizes
from yolofleet.cluster.manifest_work import CAPACITY_LABEL, ON_DEMAND, SPOT, Work, image_for
from yolofleet.core.text import plural
from yolofleet.specs.kubernetes import KubernetesSpec, PoolSpec, RedisSpec

Kind = Literal["RayJob", "RayCluster"]
API_VERSION = "ray.io/v1"
SUBMISSIONS = 2
"""How often the submitter's pod may be lost; a new one finds the same submission."""
IDLE_SECONDS = 600
"""How long a worker node stays without work: a group that starts again must find its nodes."""
AUTOSCALER_AMOUNTS = {"cpu": "500m", "memory": "1Gi"}

Document = dict[str, Any]


def render_manifest(work: Work, settings: KubernetesSpec, *, ray_version: str, kind: Kind = "RayJob") -> list[Document]:
    """Return the documents to apply: the network policies, the work's files, and the job or the cluster.

    Args:
        work: The run or search (`yolofleet.cluster.manifest_work`).
        settings: How jobs run on this Kubernetes.
        ray_version: Ray's version in the image.
        kind: RayJob: a job with its own cluster; RayCluster: a cluster for jobs that you submit.

    Raises:
        UserError: The settings name no image that the work can run in.
    """
    image = image_for(work.job, settings)
    policies = network_policies(work, settings)
    if kind == "RayCluster":
        return [*policies, _cluster(work, settings, _cluster_spec(work, settings, image, ray_version, None))]
    files = _files(work, settings)
    cluster = _cluster_spec(work, settings, image, ray_version, files["metadata"]["name"])
    return [*policies, files, _job(work, settings, image, cluster)]


def manifest_text(documents: list[Document]) -> str:
    """Return documents as YAML that every safe loader reads."""
    return yaml.dump_all(documents, Dumper=_ReadableDumper, sort_keys=False, width=120)


def describe_pods(work: Work, document: Document) -> str:
    """Return how many pods of which size a job or a cluster may have, and where, for its user."""
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    amounts = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["requests"]
    size = plural(work.pod.workers, "worker")
    if work.pod.gpus:
        size += f", {plural(work.pod.gpus, 'GPU')}"
    size += f", {plural(work.pod.cpus, 'CPU')}, {amounts['memory']} of memory, {amounts['ephemeral-storage']} of disk"
    groups = ", ".join(f"{group['maxReplicas']} {group['groupName']}" for group in spec["workerGroupSpecs"])
    begin = "started when the driver has checked the job" if spec.get("enableInTreeAutoscaling") else "started at once"
    return f"worker pods at most: {groups}; each {size}; {begin}"


def _metadata(work: Work, settings: KubernetesSpec) -> Document:
    return {
        "name": work.resource_name,
        "namespace": settings.namespace,
        "labels": labels(work, "run"),
        "annotations": {"yolofleet.io/name": work.name},
    }


def _files(work: Work, settings: KubernetesSpec) -> Document:
    digest = hashlib.sha256(json.dumps(work.files, sort_keys=True).encode()).hexdigest()[:8]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(work, settings) | {"name": f"{work.resource_name}-{digest}"},
        "immutable": True,
        "data": work.files,
    }


def _job(work: Work, settings: KubernetesSpec, image: str, cluster: Document) -> Document:
    deadline = settings.start_deadline_seconds
    return {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": _queued(_metadata(work, settings), settings),
        "spec": {
            **({} if deadline is None else {"preRunningDeadlineSeconds": deadline}),
            "entrypoint": work.command,
            "entrypointNumCpus": 0,  # the driver runs on the head, which offers no CPUs
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": SUBMISSIONS},
            "submitterPodTemplate": submitter_template(work, settings, image),
            "backoffLimit": settings.new_clusters,  # each on a new cluster: the run resumes by its name
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": settings.keep_seconds,
            "rayClusterSpec": cluster,
        },
    }


def _cluster(work: Work, settings: KubernetesSpec, cluster: Document) -> Document:
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": _queued(_metadata(work, settings), settings),
        "spec": cluster,
    }


def _queued(metadata: Document, settings: KubernetesSpec) -> Document:
    """Add Kueue's labels; it then decides when the pods may start."""
    if settings.queue is not None:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
    if settings.priority is not None:
        metadata["labels"]["kueue.x-k8s.io/priority-class"] = settings.priority
    return metadata


def _cluster_spec(
    work: Work, settings: KubernetesSpec, image: str, ray_version: str, files_name: str | None
) -> Document:
    groups = _worker_groups(work, settings, image)
    spec: Document = {
        "rayVersion": ray_version,
        "authOptions": {"mode": "token", "secretName": settings.secrets.ray_token},
    }
    if settings.redis is not None:
        spec["gcsFaultToleranceOptions"] = _fault_tolerance(settings.redis)
    node_groups: Document = {}
    if _is_autoscaled(work, settings):
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": IDLE_SECONDS,
            "resources": {"requests": AUTOSCALER_AMOUNTS, "limits": AUTOSCALER_AMOUNTS},
            "securityContext": security_context(),
        }
        node_groups = {group["groupName"]: _node_group(group) for group in groups}
    head = head_template(work, settings, image, files_name, node_groups)
    if "enableInTreeAutoscaling" not in spec:
        head["spec"]["automountServiceAccountToken"] = False
    spec["headGroupSpec"] = {
        "serviceType": "ClusterIP",
        "enableIngress": False,
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0", **object_store_option()},
        "template": head,
    }
    spec["workerGroupSpecs"] = groups
    return spec


def _is_autoscaled(work: Work, settings: KubernetesSpec) -> bool:
    """Return whether groups begin empty: no GPU is paid for before the driver, on the head, has checked everything.

    Kueue gives a job's pods their quota at once, or not at all.
    """
    return settings.queue is None and work.asks_for_nodes


def _node_group(group: Document) -> Document:
    """Return a group of pods in the form of Ray's cluster launcher."""
    amounts = {kind: float(group["rayStartParams"][f"num-{kind.lower()}s"]) for kind in ("CPU", "GPU")}
    return {"max_workers": group["maxReplicas"], "resources": amounts, "labels": group["labels"]}


def _fault_tolerance(redis: RedisSpec) -> Document:
    options: Document = {"redisAddress": redis.address}
    if redis.password is not None:
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": {"name": redis.password, "key": "password"}}}
    return options


def _worker_groups(work: Work, settings: KubernetesSpec, image: str) -> list[Document]:
    stay, may_go = group_sizes(
        work.demand,
        work.pod.workers,
        has_spot=settings.spot is not None,
        keeps_first=work.job.cluster.most_workers > 1,
    )
    groups = [_worker_group(work, settings, image, ON_DEMAND, settings.on_demand, stay)] if stay.most else []
    if settings.spot is not None and may_go.most:
        groups.append(_worker_group(work, settings, image, SPOT, settings.spot, may_go))
    return groups


def _worker_group(
    work: Work, settings: KubernetesSpec, image: str, capacity: str, pool: PoolSpec, size: GroupSize
) -> Document:
    cluster, pod = work.job.cluster, work.pod
    first = cluster.first_worker_labels if capacity == ON_DEMAND else {}
    fewest = 0 if _is_autoscaled(work, settings) else size.most
    return {
        "groupName": capacity,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": size.most,
        "rayStartParams": {"num-cpus": str(pod.cpus), "num-gpus": str(pod.gpus), **object_store_option()},
        "labels": {**cluster.labels, **first, CAPACITY_LABEL: capacity},
        "template": worker_template(work, settings, image, pool, may_go=capacity == SPOT),
    }


class _ReadableDumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and no anchors for values that appear twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ReadableDumper.add_representer(str, _represent_text)
