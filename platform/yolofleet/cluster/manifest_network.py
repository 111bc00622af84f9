"""Who may talk to whom: the pods of one run with each other, the operator with the head, and nobody else with any."""

from __future__ import annotations

from typing import Any

from yolofleet.cluster.manifest_pods import METRICS_PORT, PORTS, RUN_LABEL, labels
from yolofleet.cluster.manifest_work import Work
from yolofleet.specs.kubernetes import KubernetesSpec

DNS_PORT = 53
API_SERVER_PORT = 6443
NODE_METADATA = "169.254.169.254/32"
"""The cloud's address that hands a node's own role to whoever asks."""

Document = dict[str, Any]


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
        "metadata": {
            "name": work.resource_name,
            "namespace": settings.namespace,
            "labels": labels(work, "policy"),
        },
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
