"""What a rendered manifest must hold: Kubernetes' and KubeRay's own schemas, strictly, and the platform's promises."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

KUBERNETES_SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema" / "v1.33.0-local-strict"
"""Kubernetes' own schemas, in which no object takes a field that it does not name."""
KUBERAY_1_6 = {
    "RayJob": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished",
    "RayCluster": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend upgradeStrategy workerGroupSpecs",
    "authOptions": "enableK8sTokenAuth mode secretName",
    "autoscalerOptions": "env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode "
    "version volumeMounts",
    "gcsFaultToleranceOptions": "externalStorageNamespace redisAddress redisPassword redisUsername",
    "headGroupSpec": "enableIngress headService labels rayStartParams resources serviceType template",
    "workerGroupSpecs": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams "
    "replicas resources scaleStrategy suspend template",
}
"""The fields of KubeRay 1.6.2, as its reference of the ``ray.io/v1`` types lists them; 1.7 has these and more."""
Document = dict[str, Any]


class RuleBrokenError(Exception):
    """A manifest does not hold what it must."""


class Rules:
    """Checks manifests; with KubeRay's resource definitions, where their folder is given, whole ones."""

    def __init__(self, definitions: Path | None) -> None:
        self._schemas: dict[str, list[Draft202012Validator]] = {}
        for name in ("rayjobs", "rayclusters") if definitions is not None else ():
            found = yaml.load((definitions / f"ray.io_{name}.yaml").read_bytes(), yaml.CSafeLoader)
            version = next(entry for entry in found["spec"]["versions"] if entry["name"] == "v1")
            schema = _strict(version["schema"]["openAPIV3Schema"])
            older = _as_of_1_6(schema, found["spec"]["names"]["kind"])
            self._schemas[found["spec"]["names"]["kind"]] = [Draft202012Validator(schema), Draft202012Validator(older)]

    def check(self, documents: list[Document]) -> None:
        """Check everything that is to be applied together.

        Raises:
            RuleBrokenError: Something is wrong; says what.
        """
        for document in documents:
            kind = document["kind"]
            if document["apiVersion"].startswith("ray.io/"):
                for validator in self._schemas.get(kind, ()):
                    _validated(document, validator)
                self._check_ray(document)
            elif kind == "CiliumNetworkPolicy":
                _check_cilium(document)
            else:
                check_kubernetes(document)
        _check_references(documents)

    def _check_ray(self, document: Document) -> None:
        for template in pod_templates(document):
            check_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": template})
            _check_pod(template["spec"])
        spec = document["spec"]
        if document["kind"] == "RayJob":
            _require(spec["shutdownAfterJobFinishes"], "the cluster outlives its job")
            _require(0 <= spec["backoffLimit"] <= 10, "backoffLimit")
            _require(spec["ttlSecondsAfterFinished"] > 0, "the job stays for ever")
            spec = spec["rayClusterSpec"]
        _require(spec["authOptions"]["mode"] == "token", "no token authentication")
        head = spec["headGroupSpec"]
        _require(head["serviceType"] == "ClusterIP" and not head["enableIngress"], "the head is open to all")
        _require(head["rayStartParams"]["num-cpus"] == "0", "work runs on the head")
        mounted = {mount["mountPath"] for mount in head["template"]["spec"]["containers"][0]["volumeMounts"]}
        _require("/cache" not in mounted, "the head, which trains nothing, has a shard cache of the workers' size")
        grows = spec.get("enableInTreeAutoscaling", False)
        for group in spec["workerGroupSpecs"]:
            _require(
                0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 0,
                f"{group['groupName']}: replicas are out of order",
            )
            _require(grows or group["replicas"] > 0, "no pods, and nobody who starts some")
            _check_amounts(group)
        _check_node_groups(head, spec["workerGroupSpecs"], grows=grows)


def pod_templates(document: Document) -> Iterator[Document]:
    """The pod templates of a RayJob or RayCluster."""
    spec = document["spec"]
    if "submitterPodTemplate" in spec:
        yield spec["submitterPodTemplate"]
    spec = spec.get("rayClusterSpec", spec)
    yield spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["template"]


def _check_pod(spec: Document) -> None:
    user = spec["securityContext"]
    _require(user["runAsNonRoot"] is True and user["runAsUser"] > 0, "runs as root")
    _require(not any("hostPath" in volume for volume in spec["volumes"]), "mounts a folder of the node")
    _require(not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), "shares the node's namespaces")
    for container in spec["containers"]:
        allowed = container["securityContext"]
        _require(allowed["readOnlyRootFilesystem"] is True, "its root filesystem can be written")
        _require(allowed["allowPrivilegeEscalation"] is False and not allowed.get("privileged"), "is privileged")
        _require(allowed["capabilities"]["drop"] == ["ALL"], "keeps capabilities")
        _require("memory" in container["resources"]["limits"], "its memory has no limit")
        disk = sum(_mebibytes(volume["emptyDir"]["sizeLimit"]) for volume in spec["volumes"]
                   if "sizeLimit" in volume.get("emptyDir", {}) and "medium" not in volume["emptyDir"])  # fmt: skip
        asked = _mebibytes(container["resources"]["requests"]["ephemeral-storage"])
        _require(asked >= disk, f"writes up to {disk} MiB, and asks the node for {asked} MiB")
        _require("@sha256:" in container["image"] or ":" in container["image"].rpartition("/")[2], "image")
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        _require({"/tmp", "/home/yolofleet"} <= mounted, "nowhere to write")
        variables = {entry["name"]: entry for entry in container["env"]}
        _require(variables["RAY_AUTH_MODE"]["value"] == "token", "RAY_AUTH_MODE")
        for name, entry in variables.items():
            if any(word in name for word in ("TOKEN", "PASSWORD", "KEY", "USERNAME")):
                named = "value" not in entry and "secretKeyRef" in entry.get("valueFrom", {})
                _require(named, f"{name} is in the manifest")
    memory = [volume["emptyDir"] for volume in spec["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"]
    _require(all("sizeLimit" in volume for volume in memory), "shared memory without a limit")


def _check_amounts(group: Document) -> None:
    resources = group["template"]["spec"]["containers"][0]["resources"]
    params = group["rayStartParams"]
    _require(params["num-cpus"] == resources["requests"]["cpu"], "Ray gets other CPUs than the pod")
    _require(params["num-gpus"] == resources["limits"].get("nvidia.com/gpu", "0"), "Ray gets other GPUs")
    mounted = {mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}
    _require({"/dev/shm", "/cache"} <= mounted, "no shared memory or no shard cache")
    variables = {entry["name"]: entry.get("value") for entry in group["template"]["spec"]["containers"][0]["env"]}
    _require(variables["YOLOFLEET_SHARD_CACHE"].startswith("/cache/"), "the shards are not kept in the cache volume")


def _check_node_groups(head: Document, groups: list[Document], *, grows: bool) -> None:
    """What the driver reads of the autoscaler is what KubeRay gives it."""
    variables = {entry["name"]: entry.get("value") for entry in head["template"]["spec"]["containers"][0]["env"]}
    declared = json.loads(variables.get("YOLOFLEET_NODE_GROUPS") or "{}")
    expected = {
        group["groupName"]: {
            "max_workers": group["maxReplicas"],
            "labels": group["labels"],
            "resources": {kind: float(group["rayStartParams"][f"num-{kind.lower()}s"]) for kind in ("CPU", "GPU")},
        }
        for group in groups
    }
    _require(declared == (expected if grows else {}), "the driver believes in other groups than there are")


def _check_cilium(document: Document) -> None:
    """No schema of Cilium's is at hand: the fields that its documentation names, and entities that exist."""
    spec = document["spec"]
    _require(document["apiVersion"] == "cilium.io/v2" and set(spec) == {"endpointSelector", "egress"}, "fields")
    for rule in spec["egress"]:
        _require(set(rule) == {"toEntities", "toPorts"} and bool(rule["toPorts"]), "a rule that opens everything")
        _require(set(rule["toEntities"]) <= {"kube-apiserver", "host"}, "an entity that is not needed")
        for entry in (port for ports in rule["toPorts"] for port in ports["ports"]):
            _require(isinstance(entry["port"], str) and entry["protocol"] in ("TCP", "UDP"), "a port is text")


def _mebibytes(amount: str) -> int:
    return int(amount.removesuffix("Mi"))


def _check_references(documents: list[Document]) -> None:
    """Every ConfigMap that is mounted is rendered, and the policy selects every pod."""
    maps = {document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"}
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    ray = [document for document in documents if document["apiVersion"].startswith("ray.io/")]
    _require(len(policies) == 1 and len(ray) == 1, "one network policy and one cluster")
    _require(policies[0]["policyTypes"] == ["Ingress", "Egress"], "the policy leaves a direction open")
    _require(all(rule.get("from") for rule in policies[0]["ingress"]), "a rule lets everybody in")
    selected = policies[0]["podSelector"]["matchLabels"].items()
    for template in pod_templates(ray[0]):
        _require(selected <= template["metadata"]["labels"].items(), "a pod is outside of the network policy")
        mounted = {volume["configMap"]["name"] for volume in template["spec"]["volumes"] if "configMap" in volume}
        _require(mounted <= maps, f"{mounted - maps} is mounted and not there")
        names = {volume["name"] for volume in template["spec"]["volumes"]}
        for container in template["spec"]["containers"]:
            _require({mount["name"] for mount in container["volumeMounts"]} <= names, "a volume that is not there")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise RuleBrokenError(problem)


def _validated(document: Document, validator: Draft202012Validator) -> None:
    for error in validator.iter_errors(document):
        raise RuleBrokenError(f"{error.json_path}: {error.message[:300]}")


def check_kubernetes(document: Document) -> None:
    """Check a document against the strict schema of its kind."""
    group, _, version = document["apiVersion"].rpartition("/")
    name = "-".join(part for part in (document["kind"].lower(), group.partition(".")[0], version) if part)
    _validated(document, _kubernetes_validator(name))


@cache
def _kubernetes_validator(name: str) -> Draft202012Validator:
    """Return the validator of a kind, by the name of its schema, with its version (``configmap-v1``)."""
    try:
        schema = json.loads((KUBERNETES_SCHEMAS / f"{name}.json").read_text())
    except FileNotFoundError as error:
        raise RuleBrokenError(f"{name}: Kubernetes knows no such kind") from error
    return Draft202012Validator(schema, registry=_kubernetes_definitions())


@cache
def _kubernetes_definitions() -> Registry[Any]:
    found = Resource.from_contents(json.loads((KUBERNETES_SCHEMAS / "_definitions.json").read_text()))
    return found @ Registry()


def _as_of_1_6(schema: Document, kind: str) -> Document:
    """Return a strict schema of 1.7 with the fields that 1.6 had."""
    older = copy.deepcopy(schema)
    spec = older["properties"]["spec"]
    if kind == "RayJob":
        _keep(spec, KUBERAY_1_6["RayJob"])
        spec = spec["properties"]["rayClusterSpec"]
    _keep(spec, KUBERAY_1_6["RayCluster"])
    for name in ("authOptions", "autoscalerOptions", "gcsFaultToleranceOptions", "headGroupSpec"):
        _keep(spec["properties"][name], KUBERAY_1_6[name])
    _keep(spec["properties"]["workerGroupSpecs"]["items"], KUBERAY_1_6["workerGroupSpecs"])
    return older


def _keep(schema: Document, names: str) -> None:
    wanted = set(names.split())
    assert wanted <= set(schema["properties"]), f"1.7 has lost {wanted - set(schema['properties'])}"
    schema["properties"] = {name: entry for name, entry in schema["properties"].items() if name in wanted}


def _strict(schema: Any) -> Any:
    """Return a schema that refuses fields which it does not name, as the API server drops them without a word."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
        if "metadata" in schema["properties"] and "apiVersion" in schema["properties"]:
            result["properties"]["metadata"] = {"type": "object"}
    return result
