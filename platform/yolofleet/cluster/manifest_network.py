"""The network policies of a run: its pods reach each other and what the run needs, and nobody else reaches them.

Plain policies name pods by selectors and everything else by addresses. Cilium lets addresses match neither pods nor the
nodes, so services of the cluster are named by selectors here, and a policy of Cilium's own kind names the rest.
"""

from __future__ import annotations

from typing import Any

from yolofleet.cluster.manifest_pods import METRICS_PORT, PORTS, RUN_LABEL, labels
from yolofleet.cluster.manifest_work import HTTPS_PORT, Work, port_of
from yolofleet.core.text import split_url
from yolofleet.specs.kubernetes import KubernetesSpec

DNS_PORT = 53
API_SERVER_PORT = 6443
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
NODE_METADATA = "169.254.169.254/32"
"""The cloud's address that gives a node's own credentials to every pod that asks."""
POD_IDENTITY = "169.254.170.23/32"
"""The agent on an EKS node that gives a pod the role of its service account; it listens on port 80."""
NODE_LOCAL_DNS = "169.254.20.10/32"
"""Where the name service's cache on each node listens, on clusters that have one."""

Document = dict[str, Any]


def network_policies(work: Work, settings: KubernetesSpec) -> list[Document]:
    """Return the policies of a run's pods.

    They reach each other, the name service, and the ports of the storage, MLflow, Redis and the Kubernetes API; with a
    service account, EKS Pod Identity as well. The operator and the submitter reach the head's job service, and
    Prometheus the metrics, where its namespace is named.

    Raises:
        UserError: The address of a service has no valid port.
    """
    policies = [_policy(work, settings)]
    if settings.cilium:
        policies.append(_cilium_policy(work, settings))
    return policies


def _policy(work: Work, settings: KubernetesSpec) -> Document:
    run = {"podSelector": {"matchLabels": {RUN_LABEL: work.resource_name}}}
    operator = {**_namespace(settings.operator_namespace), **_pods("kuberay-operator")}
    ingress = [{"from": [run]}, {"from": [operator], "ports": _tcp(PORTS["dashboard"])}]
    if settings.monitoring_namespace is not None:
        ingress.append({"from": [_namespace(settings.monitoring_namespace)], "ports": _tcp(METRICS_PORT)})

    names = [_namespace("kube-system"), {"ipBlock": {"cidr": NODE_LOCAL_DNS}}]
    outside = {"ipBlock": {"cidr": "0.0.0.0/0", "except": [NODE_METADATA]}}
    endpoints = _endpoints(work, settings)
    egress = [
        {"to": [run]},
        {"to": names, "ports": [{"protocol": kind, "port": DNS_PORT} for kind in ("UDP", "TCP")]},
        {"to": [outside], "ports": _tcp(HTTPS_PORT, API_SERVER_PORT, *(port for _, port in endpoints))},
    ]
    for namespace in sorted({namespace for namespace, _ in endpoints if namespace is not None}):
        ports = [port for other, port in endpoints if other == namespace]
        egress.append({"to": [_namespace(namespace)], "ports": _tcp(*ports)})
    if settings.service_account is not None:
        egress.append({"to": [{"ipBlock": {"cidr": POD_IDENTITY}}], "ports": _tcp(80)})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": work.resource_name, "namespace": settings.namespace, "labels": labels(work, "policy")},
        "spec": {
            "podSelector": run["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _cilium_policy(work: Work, settings: KubernetesSpec) -> Document:
    """Return what only Cilium can say: the API server wherever it runs, and the agents on the pod's own node."""
    agents = [str(DNS_PORT), *(["80"] if settings.service_account is not None else [])]
    on_node = [{"port": port, "protocol": kind} for port in agents for kind in ("UDP", "TCP")]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": work.resource_name, "namespace": settings.namespace, "labels": labels(work, "policy")},
        "spec": {
            "endpointSelector": {"matchLabels": {RUN_LABEL: work.resource_name}},
            "egress": [
                {
                    "toEntities": ["kube-apiserver"],
                    "toPorts": [
                        {"ports": [{"port": str(p), "protocol": "TCP"} for p in (HTTPS_PORT, API_SERVER_PORT)]}
                    ],
                },
                {"toEntities": ["host"], "toPorts": [{"ports": on_node}]},
            ],
        },
    }


def _endpoints(work: Work, settings: KubernetesSpec) -> list[tuple[str | None, int]]:
    """Return namespace (None: outside of the cluster) and port of everything that the pods talk to."""
    urls = [value for name, value in settings.environment.items() if name.startswith("AWS_ENDPOINT_URL")]
    urls += [work.job.tracking.uri] if work.job.tracking.uri else []
    if settings.redis is not None:
        address = settings.redis.address
        urls.append(address if "://" in address else f"redis://{address}")
    return sorted(
        {(_namespace_of(split_url(url).hostname or "", settings.namespace), port_of(url)) for url in urls},
        key=lambda endpoint: (endpoint[0] or "", endpoint[1]),
    )


def _namespace_of(host: str, own: str) -> str | None:
    """Return the namespace of a service by its name: ``NAME``, ``NAME.NAMESPACE`` or ``NAME.NAMESPACE.svc...``."""
    parts = host.split(".")
    if len(parts) == 1:
        return own
    return parts[1] if len(parts) == 2 or parts[2] == "svc" else None


def _namespace(name: str) -> Document:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: name}}}


def _pods(name: str) -> Document:
    return {"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}


def _tcp(*ports: int) -> list[Document]:
    return [{"protocol": "TCP", "port": port} for port in sorted(set(ports))]
