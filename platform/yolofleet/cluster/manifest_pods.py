"""Pod templates of the head, the workers and the submitter of a run.

Containers run as a plain user on a read-only root file system, and request the disk that they may write.
"""

from __future__ import annotations

import json
from typing import Any

from yolofleet.cluster.manifest_sizes import GIBIBYTE, MEBIBYTE, OBJECT_STORE_BYTES
from yolofleet.cluster.manifest_work import CACHE_FOLDER, FILES_FOLDER, Work
from yolofleet.core.file_names import NODE_GROUPS_VARIABLE, SHARD_CACHE_BYTES_VARIABLE, SHARD_CACHE_VARIABLE
from yolofleet.specs.kubernetes import KubernetesSpec, PoolSpec

USER_ID = 10001
"""The image's own user (infra/docker/Dockerfile)."""
HOME_FOLDER = "/home/yolofleet"
RUN_LABEL = "yolofleet.io/run"
ROLE_LABEL = "yolofleet.io/role"
HEAD_SHARED_MEMORY_BYTES = 2 * GIBIBYTE
SCRATCH_BYTES = 20 * GIBIBYTE
"""Ray's logs and sockets, and temporary files of a run, below ``/tmp``."""
HOME_BYTES = 2 * GIBIBYTE
LOG_BYTES = GIBIBYTE
"""What a container prints, which the node keeps for it."""
HEAD_CACHE_BYTES = 10 * GIBIBYTE
"""The driver's share of its scratch space for shards: it reads validation images, one after the other."""
DRIVER_GRACE_SECONDS = 300
"""The driver's time to let the workers finish and save their step."""
WORKER_GRACE_SECONDS = 90
KEPT = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Tells the node autoscalers not to evict a pod in order to save a node."""
METRICS_PORT = 8080
"""Where each pod's Ray serves its metrics, by KubeRay's own default."""
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": METRICS_PORT}
LOST_NODE_SECONDS = 60
"""How long a pod stays bound to a node that does not answer; Kubernetes itself would wait for 300 s."""
INTERCONNECTS: dict[str, dict[str, str]] = {
    "efa": {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "NCCL_DEBUG": "WARN"},
    "infiniband": {"NCCL_NET": "IB", "NCCL_DEBUG": "WARN"},
}
"""Settings of NCCL and libfabric: which fabric, and to say it when they cannot use it (TCP is many times slower)."""

Document = dict[str, Any]


def labels(work: Work, role: str) -> dict[str, str]:
    """Return the labels by which the network policy selects a pod."""
    return {"app.kubernetes.io/name": "yolofleet", RUN_LABEL: work.resource_name, ROLE_LABEL: role}


def head_template(
    work: Work, settings: KubernetesSpec, image: str, files_name: str | None, node_groups: Document
) -> Document:
    """Return the head's pod template.

    Args:
        work: The run or search.
        settings: How jobs run on this Kubernetes.
        image: The image of its container.
        files_name: ConfigMap with the work's files; None for a cluster that jobs are submitted to.
        node_groups: What the autoscaler may start, as `yolofleet.training.supervision.nodes` reads it; may be empty.
    """
    disk = mebibytes(SCRATCH_BYTES + HOME_BYTES + LOG_BYTES)
    amounts = {
        "cpu": f"{settings.head.cpus:g}", "memory": mebibytes(settings.head.memory), "ephemeral-storage": disk,
    }  # fmt: skip
    container = _ray_container("ray-head", image, settings, amounts)
    container["env"] += _plain(
        {SHARD_CACHE_VARIABLE: "/tmp/shards", SHARD_CACHE_BYTES_VARIABLE: str(HEAD_CACHE_BYTES)}
        | ({NODE_GROUPS_VARIABLE: json.dumps(node_groups, sort_keys=True)} if node_groups else {})
    )
    container["ports"] = [{"name": name, "containerPort": port} for name, port in PORTS.items()]
    volumes = _volumes(HEAD_SHARED_MEMORY_BYTES)
    if files_name is not None:
        volumes.append({"name": "work", "configMap": {"name": files_name}})
        container["volumeMounts"].append({"name": "work", "mountPath": FILES_FOLDER, "readOnly": True})
    spec = _pod(container, volumes, settings, settings.head.pool, DRIVER_GRACE_SECONDS)
    return {"metadata": _pod_metadata(work, "head", settings.head.pool, KEPT), "spec": spec}


def worker_template(work: Work, settings: KubernetesSpec, image: str, pool: PoolSpec, *, may_go: bool) -> Document:
    """Return a worker's pod template.

    Args:
        work: The run or search.
        settings: How jobs run on this Kubernetes.
        image: The image of its container.
        pool: The nodes that it is scheduled on.
        may_go: Whether those nodes may be reclaimed.
    """
    pod = work.pod
    cache_on_node = 0 if settings.cache_storage_class is not None else pod.cache_bytes
    amounts = {
        "cpu": str(pod.cpus),
        "memory": mebibytes(pod.memory_bytes),
        "ephemeral-storage": mebibytes(cache_on_node + SCRATCH_BYTES + HOME_BYTES + LOG_BYTES),
    }
    extended = {name: str(amount) for name, amount in pool.resources.items()}
    if pod.gpus:
        extended[settings.gpu_resource] = str(pod.gpus)
    container = _ray_container("ray-worker", image, settings, amounts | extended)
    container["env"] += _plain({SHARD_CACHE_VARIABLE: f"{CACHE_FOLDER}/shards"})  # the volume itself is root's
    if pod.gpus and settings.interconnect is not None:
        container["env"] += _plain(INTERCONNECTS[settings.interconnect])
    container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    container["volumeMounts"].append({"name": "shard-cache", "mountPath": CACHE_FOLDER})
    volumes = [*_volumes(pod.shared_memory_bytes), _cache_volume(pod.cache_bytes, settings)]
    spec = _pod(container, volumes, settings, pool, WORKER_GRACE_SECONDS)
    spec["automountServiceAccountToken"] = False  # only the head's autoscaler uses the Kubernetes API
    if pool.topology_key is not None:
        near = {"labelSelector": {"matchLabels": labels(work, "worker")}, "topologyKey": pool.topology_key}
        spec["affinity"] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}}
    return {"metadata": _pod_metadata(work, "worker", pool, {} if may_go else KEPT), "spec": spec}


def submitter_template(work: Work, settings: KubernetesSpec, image: str) -> Document:
    """Return the template of the pod that sends the command to the head and passes its output on."""
    amounts = {"cpu": "100m", "memory": "512Mi", "ephemeral-storage": mebibytes(3 * GIBIBYTE)}
    container = _container("submitter", settings.images.cpu or image, amounts)  # it needs no CUDA, and pulls less
    container["env"] = _ray_environment(settings)
    volumes = [_scratch("tmp", GIBIBYTE), _scratch("home", GIBIBYTE)]
    spec = _pod(container, volumes, settings, settings.head.pool, grace_seconds=30)
    spec["automountServiceAccountToken"] = False
    return {"metadata": _pod_metadata(work, "submitter", settings.head.pool, {}), "spec": spec}


def security_context() -> Document:
    """Return the rights of a container: none beyond those of a plain user."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def mebibytes(num_bytes: int) -> str:
    """Return an amount of memory or disk as Kubernetes writes it."""
    return f"{-(-num_bytes // MEBIBYTE)}Mi"


def object_store_option() -> dict[str, str]:
    """Return the option of ``ray start`` for the size of the object store, which lies in shared memory."""
    return {"object-store-memory": str(OBJECT_STORE_BYTES)}


def _pod_metadata(work: Work, role: str, pool: PoolSpec, annotations: dict[str, str]) -> Document:
    """Return a pod's labels and annotations; a pool's own cannot take a pod out of the network policy."""
    metadata: Document = {"labels": {**pool.labels, **labels(work, role)}}
    if annotations or pool.annotations:
        metadata["annotations"] = {**annotations, **pool.annotations}
    return metadata


def _pod(
    container: Document, volumes: list[Document], settings: KubernetesSpec, pool: PoolSpec, grace_seconds: int
) -> Document:
    spec: Document = {
        "restartPolicy": "Never",  # a lost pod is another node to Ray
        "terminationGracePeriodSeconds": grace_seconds,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if settings.service_account is not None:
        spec["serviceAccountName"] = settings.service_account
    if settings.secrets.image_pull is not None:
        spec["imagePullSecrets"] = [{"name": settings.secrets.image_pull}]
    if pool.node_selector:
        spec["nodeSelector"] = dict(pool.node_selector)
    if pool.runtime_class is not None:
        spec["runtimeClassName"] = pool.runtime_class
    if settings.priority_class is not None:
        spec["priorityClassName"] = settings.priority_class
    spec["tolerations"] = [
        {"operator": "Equal" if "value" in entry else "Exists"} | entry
        for entry in (toleration.document() for toleration in pool.tolerations)
    ]
    spec["tolerations"] += [
        {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute",
         "tolerationSeconds": LOST_NODE_SECONDS}
        for state in ("not-ready", "unreachable")
    ]  # fmt: skip
    return spec


def _container(name: str, image: str, amounts: dict[str, str]) -> Document:
    limits = {kind: amount for kind, amount in amounts.items() if kind != "cpu"}  # a limit would only throttle
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": amounts, "limits": limits},
        "securityContext": security_context(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME_FOLDER}],
    }


def _ray_container(name: str, image: str, settings: KubernetesSpec, amounts: dict[str, str]) -> Document:
    container = _container(name, image, amounts)
    container["env"] = [*_ray_environment(settings), *_work_environment(settings)]
    container["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return container


def _ray_environment(settings: KubernetesSpec) -> list[Document]:
    return [
        {"name": "HOME", "value": HOME_FOLDER},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        {"name": "RAY_AUTH_MODE", "value": "token"},
        _from_secret("RAY_AUTH_TOKEN", settings.secrets.ray_token, "auth_token"),
    ]


def _work_environment(settings: KubernetesSpec) -> list[Document]:
    variables = _plain({"MLFLOW_DISABLE_TELEMETRY": "true"} | settings.environment)
    secrets = (
        (settings.secrets.storage, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (settings.secrets.tracking, ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    )
    return variables + [_from_secret(key, name, key) for name, keys in secrets if name is not None for key in keys]


def _plain(variables: dict[str, str]) -> list[Document]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _from_secret(variable: str, secret: str, key: str) -> Document:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _scratch(name: str, num_bytes: int) -> Document:
    return {"name": name, "emptyDir": {"sizeLimit": mebibytes(num_bytes)}}


def _volumes(shared_memory_bytes: int) -> list[Document]:
    return [
        _scratch("tmp", SCRATCH_BYTES),
        _scratch("home", HOME_BYTES),
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": mebibytes(shared_memory_bytes)}},
    ]


def _cache_volume(num_bytes: int, settings: KubernetesSpec) -> Document:
    if settings.cache_storage_class is None:
        return _scratch("shard-cache", num_bytes)
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": settings.cache_storage_class,
        "resources": {"requests": {"storage": mebibytes(num_bytes)}},
    }
    return {"name": "shard-cache", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
