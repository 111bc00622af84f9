"""The Kustomize base: valid by Kubernetes' own schemas, unprivileged, with its secrets elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifest_rules import RuleBrokenError, check_kubernetes

BASE = Path(__file__).parents[2] / "infra" / "kubernetes" / "base"
Document = dict[str, Any]


def documents() -> list[Document]:
    """Every resource of the base, as its files hold it."""
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in BASE.glob("*.yaml")} == {*listed, "kustomization.yaml"}
    return [document for name in listed for document in yaml.safe_load_all((BASE / name).read_text())]


RESOURCES = documents()
WORKLOADS = [document for document in RESOURCES if document["kind"] in ("Deployment", "StatefulSet", "Job")]


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda entry: f"{entry['kind']}-{entry['metadata']['name']}")
def test_a_resource_is_valid(resource: Document) -> None:
    check_kubernetes(resource)
    with pytest.raises(RuleBrokenError):
        check_kubernetes(resource | {"unknown": 1})


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda entry: entry["metadata"]["name"])
def test_a_pod_may_run_in_a_restricted_namespace(workload: Document) -> None:
    spec = workload["spec"]["template"]["spec"]
    user = spec["securityContext"]
    assert user["runAsNonRoot"] is True and user["runAsUser"] > 0
    assert user["seccompProfile"] == {"type": "RuntimeDefault"} and spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        allowed = container["securityContext"]
        assert allowed["allowPrivilegeEscalation"] is False and allowed["capabilities"] == {"drop": ["ALL"]}
        assert allowed["readOnlyRootFilesystem"] is True
        assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
        assert container["image"] == "yolofleet" or re.search(r":[\w.-]*[0-9]", container["image"])
        if workload["kind"] != "Job":
            assert container["readinessProbe"] and container["livenessProbe"]
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        for entry in container.get("env", ()):
            secret = re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|ROOT_USER|USERNAME", entry["name"])
            assert ("secretKeyRef" in entry.get("valueFrom", {})) == bool(secret), entry["name"]
    assert workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == workload["metadata"]["name"]


def test_no_secret_is_part_of_the_base() -> None:
    assert not any(resource["kind"] == "Secret" for resource in RESOURCES)
    assert not re.search(r"://[^/\s]*:[^/\s]*@", "".join(path.read_text() for path in BASE.iterdir()))


def test_services_find_their_pods_and_pages_name_their_secrets() -> None:
    selected = {
        resource["metadata"]["name"]: resource["spec"]["selector"]["app.kubernetes.io/name"]
        for resource in RESOURCES
        if resource["kind"] == "Service"
    }
    assert {name: name for name in ("minio", "postgres", "mlflow")} == selected
    page = (BASE.parents[2] / "docs" / "kubernetes.md").read_text()
    named = re.findall(r"secretKeyRef: \{name: ([\w-]+), key: (\w+)\}", "".join(p.read_text() for p in BASE.iterdir()))
    for name, key in sorted(set(named)):
        assert name in page and key in page, f"{name}/{key} is not made by docs/kubernetes.md"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: the base is not built")
def test_kustomize_builds_the_base() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True).stdout
    found = list(yaml.safe_load_all(built))
    assert len(found) == len(RESOURCES)
    for resource in found:
        check_kubernetes(resource)
        assert resource["metadata"].get("namespace", "yolofleet") == "yolofleet"
    assert "image: yolofleet\n" not in built, "the image's name is replaced by the registry's"
