"""Pod templates of the head, the workers and the submitter, and the network policy of a run.

Containers run as a plain user on a read-only root file system. The policy lets the pods of one run reach each other,
and the operator the head; nothing else reaches them.
"""

from __future__ import annotations

from typing import Any

from yolofleet.cluster.manifest_sizes import GIBIBYTE, MEBIBYTE, OBJECT_STORE_BYTES
from yolofleet.cluster.manifest_work import CACHE_FOLDER, FILES_FOLDER, Work
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
DRIVER_GRACE_SECONDS = 300
"""The driver's time to let the workers finish and save their step."""
WORKER_GRACE_SECONDS = 90
KEPT = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Tells the node autoscalers not to evict a pod in order to save a node."""
METRICS_PORT = 8080
"""Where each pod's Ray serves its metrics, by KubeRay's own default."""
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": METRICS_PORT}
DNS_PORT = 53
API_SERVER_PORT = 6443
NODE_METADATA = "169.254.169.254/32"
"""The cloud's address that gives a node's own credentials to every pod that asks."""

Document = dict[str, Any]


def labels(work: Work, role: str) -> dict[str, str]:
    """Return the labels by which the network policy selects a pod."""
    return {"app.kubernetes.io/name": "yolofleet", RUN_LABEL: work.resource_name, ROLE_LABEL: role}


def head_template(work: Work, settings: KubernetesSpec, image: str, files_name: str | None) -> Document:
    """Return the head's pod template.

    Args:
        work: The run or search.
        settings: How jobs run on this Kubernetes.
        image: The image of its container.
        files_name: ConfigMap with the work's files; None for a cluster that jobs are submitted to.
    """
    amounts = {"cpu": f"{settings.head.cpus:g}", "memory": mebibytes(settings.head.memory)}
    container = _ray_container("ray-head", image, settings, amounts)
    container["ports"] = [{"name": name, "containerPort": port} for name, port in PORTS.items()]
    volumes = _volumes(HEAD_SHARED_MEMORY_BYTES, work.pod.cache_bytes, settings)
    if files_name is not None:
        volumes.append({"name": "work", "configMap": {"name": files_name}})
        container["volumeMounts"].append({"name": "work", "mountPath": FILES_FOLDER, "readOnly": True})
    spec = _pod(container, volumes, settings, settings.head.pool, DRIVER_GRACE_SECONDS)
    return {"metadata": {"labels": labels(work, "head"), "annotations": KEPT}, "spec": spec}


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
    amounts = {"cpu": str(pod.cpus), "memory": mebibytes(pod.memory_bytes)}
    extended = {name: str(amount) for name, amount in pool.resources.items()}
    if pod.gpus:
        extended[settings.gpu_resource] = str(pod.gpus)
    container = _ray_container("ray-worker", image, settings, amounts | extended)
    container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    spec = _pod(
        container, _volumes(pod.shared_memory_bytes, pod.cache_bytes, settings), settings, pool, WORKER_GRACE_SECONDS
    )
    spec["automountServiceAccountToken"] = False  # only the head's autoscaler uses the Kubernetes API
    metadata: Document = {"labels": labels(work, "worker")}
    if not may_go:
        metadata["annotations"] = KEPT
    return {"metadata": metadata, "spec": spec}


def submitter_template(work: Work, settings: KubernetesSpec, image: str) -> Document:
    """Return the template of the pod that sends the command to the head and passes its output on."""
    container = _container("submitter", image, {"cpu": "100m", "memory": "512Mi"})
    container["env"] = _ray_environment(settings)
    volumes = [_scratch("tmp", GIBIBYTE), _scratch("home", GIBIBYTE)]
    spec = _pod(container, volumes, settings, settings.head.pool, grace_seconds=30)
    spec["automountServiceAccountToken"] = False
    return {"metadata": {"labels": labels(work, "submitter")}, "spec": spec}


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
    if pool.tolerations:
        spec["tolerations"] = [
            {"operator": "Equal" if "value" in entry else "Exists"} | entry
            for entry in (toleration.document() for toleration in pool.tolerations)
        ]
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
    container["volumeMounts"] += [
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "shard-cache", "mountPath": CACHE_FOLDER},
    ]
    return container


def _ray_environment(settings: KubernetesSpec) -> list[Document]:
    return [
        {"name": "HOME", "value": HOME_FOLDER},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        {"name": "RAY_AUTH_MODE", "value": "token"},
        _from_secret("RAY_AUTH_TOKEN", settings.secrets.ray_token, "auth_token"),
    ]


def _work_environment(settings: KubernetesSpec) -> list[Document]:
    variables: list[Document] = [{"name": "MLFLOW_DISABLE_TELEMETRY", "value": "true"}]
    variables += [{"name": name, "value": value} for name, value in settings.environment.items()]
    secrets = (
        (settings.secrets.storage, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (settings.secrets.tracking, ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")),
    )
    return variables + [_from_secret(key, name, key) for name, keys in secrets if name is not None for key in keys]


def _from_secret(variable: str, secret: str, key: str) -> Document:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _scratch(name: str, num_bytes: int) -> Document:
    return {"name": name, "emptyDir": {"sizeLimit": mebibytes(num_bytes)}}


def _volumes(shared_memory_bytes: int, cache_bytes: int, settings: KubernetesSpec) -> list[Document]:
    cache = _scratch("shard-cache", cache_bytes)
    if settings.cache_storage_class is not None:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": settings.cache_storage_class,
            "resources": {"requests": {"storage": mebibytes(cache_bytes)}},
        }
        cache = {"name": "shard-cache", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return [
        _scratch("tmp", SCRATCH_BYTES),
        _scratch("home", HOME_BYTES),
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": mebibytes(shared_memory_bytes)}},
        cache,
    ]


def network_policy(work: Work, settings: KubernetesSpec) -> Document:
    """Return the policy of a run's pods.

    They reach each other, the name service, and the ports of the storage, of MLflow and of the Kubernetes API; the
    operator and the submitter reach the head's job service, and Prometheus the metrics, where its namespace is named.
    """
    run = {"podSelector": {"matchLabels": {RUN_LABEL: work.resource_name}}}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.operator_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    outside = {"ipBlock": {"cidr": "0.0.0.0/0", "except": [NODE_METADATA]}}
    watched = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.monitoring_namespace}}}
    scraped = {"from": [watched], "ports": [{"protocol": "TCP", "port": METRICS_PORT}]}
    ports = sorted({*work.ports(settings), API_SERVER_PORT})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": work.resource_name, "namespace": settings.namespace, "labels": labels(work, "policy")},
        "spec": {
            "podSelector": run["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [run]},
                {"from": [operator], "ports": [{"protocol": "TCP", "port": PORTS["dashboard"]}]},
                *([scraped] if settings.monitoring_namespace is not None else []),
            ],
            "egress": [
                {"to": [run]},
                {"to": [names], "ports": [{"protocol": kind, "port": DNS_PORT} for kind in ("UDP", "TCP")]},
                {"to": [outside], "ports": [{"protocol": "TCP", "port": port} for port in ports]},
            ],
        },
    }
