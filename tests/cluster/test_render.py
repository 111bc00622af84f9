"""Manifests of every job and search space: valid by Kubernetes' and KubeRay's schemas, safe, and nobody's secret."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifest_rules import RuleBrokenError, Rules, pod_templates
from yolofleet.cli.main import main
from yolofleet.cluster.kuberay_manifest import render_manifest
from yolofleet.cluster.manifest_sizes import Demand, group_sizes, workers_in_pod
from yolofleet.cluster.manifest_work import check_locations, work_of_job
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.kubernetes import KubernetesSpec

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "infra" / "kubernetes" / "settings.yaml"
SPECS = sorted([*ROOT.glob("jobs/*.yaml"), *ROOT.glob("search_spaces/*.yaml")])
JOB = ROOT / "jobs" / "coco-yolov7.yaml"
ON_S3 = ("storage=s3://runs", "data.train=s3://data/train", "data.val=s3://data/val", "tracking.uri=http://mlflow:5000")
CANARY = "canary-3f9c"
SURROUNDINGS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "USER", "HOSTNAME",
)  # fmt: skip

Document = dict[str, Any]
Render = Callable[..., list[Document]]


@pytest.fixture(scope="module")
def rules(request: pytest.FixtureRequest) -> Rules:
    """The rules; KubeRay's own definitions lie beside the test data."""
    if not os.environ.get("YOLOFLEET_TEST_DATA"):
        return Rules(None)
    folder: Path = request.getfixturevalue("reference") / "kuberay"
    return Rules(folder if folder.is_dir() else None)


@pytest.fixture
def render(capsys: pytest.CaptureFixture[str]) -> Render:
    """Runs the command, as a user does, and reads what it prints."""

    def rendered(spec: Path, *arguments: str) -> list[Document]:
        code = main(["cluster", "render", str(spec), *arguments, "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        documents: list[Document] = json.loads(captured.out)
        return documents

    return rendered


def on_s3(spec: Path) -> list[str]:
    """Overrides that put what a spec keeps in a folder on S3."""
    if "demo" not in spec.read_text() and "quickstart" not in spec.read_text():
        return []
    return [f"job.{entry}" if spec.parent.name == "search_spaces" else entry for entry in ON_S3]


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_every_spec_renders_to_valid_manifests(
    spec: Path, kind: str, render: Render, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SURROUNDINGS:
        monkeypatch.setenv(name, CANARY)
    documents = render(spec, "--kind", kind, "--kubernetes", str(SETTINGS), *on_s3(spec))
    rules.check(documents)
    assert documents[-1]["kind"] == kind
    assert [entry["kind"] for entry in documents[:-1]] == ["NetworkPolicy", "ConfigMap"][: len(documents) - 1]
    assert CANARY not in json.dumps(documents), "nothing of the environment gets in"


def test_json_and_yaml_hold_the_same(render: Render, capsys: pytest.CaptureFixture[str]) -> None:
    documents = render(JOB, "--kubernetes", str(SETTINGS))
    assert main(["cluster", "render", str(JOB), "--kubernetes", str(SETTINGS)]) == 0
    text = capsys.readouterr().out
    assert list(yaml.safe_load_all(text)) == documents
    assert "&id" not in text and "\n    name: coco-yolov7\n" in text, "the job can be read in its manifest"


def test_a_manifest_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.yaml"
    assert main(["cluster", "render", str(JOB), "--kubernetes", str(SETTINGS), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "nothing is applied" in captured.err
    assert "worker pods at most: 1 on-demand; each 8 workers, 8 GPUs, 96 CPUs, " in captured.err
    assert "started when the driver has checked the job" in captured.err
    assert [entry["kind"] for entry in yaml.safe_load_all(out.read_text())][-1] == "RayJob"
    missing = tmp_path / "no" / "run.yaml"
    assert main(["cluster", "render", str(JOB), "--kubernetes", str(SETTINGS), "--out", str(missing)]) == 2


def test_the_head_reads_the_job_that_was_given(render: Render) -> None:
    documents = render(JOB, "--kubernetes", str(SETTINGS), "epochs=7")
    job = JobSpec.parse(yaml.safe_load(documents[1]["data"]["job.yaml"]), source="job.yaml")
    given = JobSpec.load(JOB, ["epochs=7"])
    assert job.computation() == given.computation(), "the run goes on by its name, so it must compute the same"
    assert job.cluster.first_worker_labels == {"yolofleet.io/capacity": "on-demand"}
    assert documents[1]["metadata"]["name"] in str(documents[2])


@pytest.mark.parametrize(
    ("changes", "on_demand", "spot"),
    [
        (["kubernetes.workers_per_pod=1"], 1, 7),
        (["kubernetes.workers_per_pod=1", "cluster.workers=[2,8]"], 1, 7),
        (["kubernetes.workers_per_pod=1", "cluster.workers=1"], None, 1),
        (["kubernetes.workers_per_pod=1", "cluster.workers=[2,7]", "cluster.evaluation=apart"], 1, 7),
        ([], 1, None),
        (["cluster.workers=1"], None, 1),
        (["cluster.workers=32", "global_batch_size=512"], 1, 3),
        (["kubernetes.gpus_per_node=4"], 1, 1),
        (["kubernetes.spot=null", "cluster.workers=[2,32]", "global_batch_size=512"], 4, None),
    ],
)
def test_groups_hold_as_many_pods_as_the_job_has_workers(
    changes: list[str], on_demand: int | None, spot: int | None, render: Render
) -> None:
    """No pod with GPUs is there before the driver has checked the job, and asks for it."""
    spec = render(JOB, "--kubernetes", str(SETTINGS), *changes)[-1]["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in spec["workerGroupSpecs"])
    found = {group["groupName"]: group["maxReplicas"] for group in spec["workerGroupSpecs"]}
    assert (found.get("on-demand"), found.get("spot")) == (on_demand, spot)


@pytest.mark.parametrize(
    ("workers", "gpus", "runs", "pods"),
    [
        # Worker slots of a run, GPUs of a worker, runs at a time: pods x workers on nodes of 8 GPUs.
        (1, 1.0, 1, (1, 1)), (2, 1.0, 1, (1, 2)), (8, 1.0, 1, (1, 8)), (9, 1.0, 1, (2, 5)), (12, 1.0, 1, (2, 6)),
        (64, 1.0, 1, (8, 8)), (4, 2.0, 1, (1, 4)), (4, 8.0, 1, (4, 1)), (16, 0.5, 1, (1, 16)), (1, 0.5, 1, (1, 2)),
        (1, 1.0, 4, (1, 4)), (1, 1.0, 12, (2, 6)), (4, 1.0, 4, (2, 8)), (3, 1.0, 4, (2, 6)), (4, 1.0, 1, (1, 4)),
    ],
)  # fmt: skip
def test_workers_share_the_fewest_pods_that_the_nodes_can_hold(
    workers: int, gpus: float, runs: int, pods: tuple[int, int]
) -> None:
    cluster = ClusterSpec(workers=workers, gpus_per_worker=gpus, cpus_per_worker=4)
    demand = Demand.of_search(cluster, runs)
    count = workers_in_pod(cluster, demand, KubernetesSpec())
    assert (group_sizes(demand, count, has_spot=False, keeps_first=False)[0].most, count) == pods
    assert count * gpus <= 8 and (count * gpus).is_integer()
    assert workers_in_pod(cluster, demand, KubernetesSpec(workers_per_pod=3)) == 3


def test_a_search_has_room_for_all_its_trials(render: Render) -> None:
    space = ROOT / "search_spaces" / "compound-scaling.yaml"  # 4 workers a trial
    shared = render(space, "--kubernetes", str(SETTINGS))[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [(group["replicas"], group["rayStartParams"]["num-gpus"]) for group in shared] == [(2, "8")]
    for changes, trials in (([], 4), (["concurrency=3"], 3), (["kubernetes.trials=2"], 2)):
        changes = [*changes, "kubernetes.workers_per_pod=1"]
        documents = render(space, "--kubernetes", str(SETTINGS), *changes)
        groups = documents[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert [(group["groupName"], group["replicas"]) for group in groups] == [
            ("on-demand", trials),
            ("spot", 3 * trials),
        ], "the first worker of each trial stays"
        assert documents[-1]["spec"]["entrypoint"].startswith("yolofleet tune ")


def test_a_pod_gets_what_its_workers_need(render: Render) -> None:
    def requests(*changes: str) -> Document:
        spec = render(JOB, "--kubernetes", str(SETTINGS), *changes)[-1]["spec"]["rayClusterSpec"]
        return dict(spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["requests"])

    one, eight = requests("kubernetes.workers_per_pod=1"), requests()
    assert one["cpu"] == "12" and one["nvidia.com/gpu"] == "1"
    assert eight["cpu"] == "96" and eight["nvidia.com/gpu"] == "8"
    assert mebibytes(eight["memory"]) > 6 * mebibytes(one["memory"])
    on_cpus = ("cluster.gpus_per_worker=0", "precision=fp32", "kubernetes.spot=null")
    small, large = requests(*on_cpus, "micro_batch_size=8"), requests(*on_cpus, "data.image_size=1280")
    assert "nvidia.com/gpu" not in small
    # What the activations take is known: 0.59 GB for an image of 640 pixels in half precision, twice that in fp32.
    assert mebibytes(large["memory"]) > mebibytes(small["memory"]) > mebibytes(one["memory"])
    threads, processes = (
        requests(f"data.loader={loader}", "data.loader_threads=16") for loader in ("threads", "processes")
    )
    assert mebibytes(processes["memory"]) > mebibytes(threads["memory"])
    forty = requests("kubernetes.memory_per_worker=40GB", "kubernetes.workers_per_pod=1")
    assert mebibytes(forty["memory"]) == 39 * 1024 + 1024
    cached, elsewhere = requests(), requests("kubernetes.cache_storage_class=local-nvme")
    cache = mebibytes(cached["ephemeral-storage"]) - mebibytes(elsewhere["ephemeral-storage"])
    assert cache == 196 * 1024, "200 GB and a twentieth of it, in GiB, on the node's disk or on a volume"
    assert requests("kubernetes.on_demand.resources={vpc.amazonaws.com/efa: 4}")["vpc.amazonaws.com/efa"] == "4"


def mebibytes(amount: str) -> int:
    return int(amount.removesuffix("Mi"))


def test_kueue_gives_all_or_nothing(render: Render, rules: Rules) -> None:
    queued = ("kubernetes.queue=gpu", "kubernetes.priority=batch", "cluster.workers=[2,8]")
    documents = render(JOB, "--kubernetes", str(SETTINGS), *queued)
    rules.check(documents)
    job = documents[-1]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "batch"
    spec = job["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in spec
    assert all(group["minReplicas"] == group["maxReplicas"] for group in spec["workerGroupSpecs"])


def test_volumes_secrets_and_account_can_be_chosen(render: Render, rules: Rules) -> None:
    choices = ("kubernetes.cache_storage_class=local-nvme", "kubernetes.secrets.storage=null",
               "kubernetes.service_account=trainer", "kubernetes.secrets.image_pull=registry")  # fmt: skip
    documents = render(JOB, "--kubernetes", str(SETTINGS), *choices)
    rules.check(documents)
    head, *workers = list(pod_templates(documents[-1]))[1:]
    assert not any(volume["name"] == "shard-cache" for volume in head["spec"]["volumes"])
    assert head["spec"]["serviceAccountName"] == "trainer"
    egress = documents[0]["spec"]["egress"]
    identity = [rule for rule in egress if rule.get("ports") == [{"protocol": "TCP", "port": 80}]]
    assert [rule["to"] for rule in identity] == [[{"ipBlock": {"cidr": "169.254.170.23/32"}}]], "EKS Pod Identity"
    for template in workers:
        spec = template["spec"]
        assert spec["serviceAccountName"] == "trainer" and spec["imagePullSecrets"] == [{"name": "registry"}]
        cache = next(volume for volume in spec["volumes"] if volume["name"] == "shard-cache")
        assert cache["ephemeral"]["volumeClaimTemplate"]["spec"]["storageClassName"] == "local-nvme"
        assert not any(entry["name"].startswith("AWS_SECRET") for entry in spec["containers"][0]["env"])


@pytest.mark.parametrize(
    ("uri", "namespaces"),
    [
        ("http://mlflow:5000", {"yolofleet": [5000, 9000]}),
        ("http://mlflow.tools:5000", {"tools": [5000], "yolofleet": [9000]}),
        ("http://mlflow.tools.svc.cluster.local:80", {"tools": [80], "yolofleet": [9000]}),
        ("https://mlflow.example.com", {"yolofleet": [9000]}),
    ],
)
def test_services_of_the_cluster_are_reached_by_selectors(
    uri: str, namespaces: dict[str, list[int]], render: Render, rules: Rules
) -> None:
    """Cilium lets addresses match no pod: what lies in the cluster is named by its namespace."""
    documents = render(JOB, "--kubernetes", str(SETTINGS), f"tracking.uri={uri}", "kubernetes.cilium=true")
    rules.check(documents)
    found = {}
    for rule in documents[0]["spec"]["egress"]:
        selectors = [entry.get("namespaceSelector", {}).get("matchLabels") for entry in rule["to"]]
        if selectors[0] and selectors[0]["kubernetes.io/metadata.name"] != "kube-system":
            found[selectors[0]["kubernetes.io/metadata.name"]] = [entry["port"] for entry in rule["ports"]]
    assert found == namespaces
    cilium = documents[1]["spec"]
    assert cilium["endpointSelector"] == documents[0]["spec"]["podSelector"]
    assert [rule["toEntities"] for rule in cilium["egress"]] == [["kube-apiserver"], ["host"]]
    assert "CiliumNetworkPolicy" not in str(render(JOB, "--kubernetes", str(SETTINGS)))


def test_what_a_cluster_wants_besides_is_passed_on(render: Render, rules: Rules) -> None:
    choices = ("kubernetes.priority_class=research", "kubernetes.on_demand.runtime_class=nvidia",
               "kubernetes.on_demand.topology_key=topology.kubernetes.io/zone", "kubernetes.interconnect=infiniband",
               "kubernetes.on_demand.annotations={team: vision}", "kubernetes.on_demand.labels={cost: vision}",
               "kubernetes.on_demand.labels={yolofleet.io/run: other}", "kubernetes.start_deadline_seconds=3600",
               "kubernetes.redis={address: 'redis.cache:6379', password: redis}")  # fmt: skip
    documents = render(JOB, "--kubernetes", str(SETTINGS), *choices)
    rules.check(documents)
    spec = documents[-1]["spec"]
    assert spec["preRunningDeadlineSeconds"] == 3600
    options = spec["rayClusterSpec"]["gcsFaultToleranceOptions"]
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "password"}
    assert {"port": 6379, "protocol": "TCP"} in [
        port
        for rule in documents[0]["spec"]["egress"]
        for port in rule.get("ports", ())
        if "ipBlock" not in rule["to"][0]
    ]
    submitter, head, worker = pod_templates(documents[-1])
    assert submitter["spec"]["containers"][0]["image"].endswith("-cpu"), "it needs no CUDA"
    assert head["spec"]["priorityClassName"] == worker["spec"]["priorityClassName"] == "research"
    assert worker["spec"]["runtimeClassName"] == "nvidia" and "runtimeClassName" not in head["spec"]
    (near,) = worker["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["labelSelector"]["matchLabels"].items() <= worker["metadata"]["labels"].items()
    assert worker["metadata"]["annotations"]["team"] == "vision"
    assert worker["metadata"]["labels"]["yolofleet.io/run"] == "coco-yolov7", "the network policy still selects it"
    assert {"name": "NCCL_NET", "value": "IB"} in worker["spec"]["containers"][0]["env"]
    for template in (head, worker):
        lost = [entry for entry in template["spec"]["tolerations"] if entry["key"].endswith("/unreachable")]
        assert [entry["tolerationSeconds"] for entry in lost] == [60], "before KubeRay gives the job up"


@pytest.mark.parametrize("name", ["Yolo_v7.COCO", "7-coco", "x" * 90, "...".join("ab"), "A"])
def test_any_run_name_becomes_a_name_that_kubernetes_takes(name: str, render: Render, rules: Rules) -> None:
    documents = render(JOB, "--kubernetes", str(SETTINGS), f"name={name}")
    rules.check(documents)
    found = documents[-1]["metadata"]["name"]
    assert found.replace("-", "").isalnum() and found == found.lower() and found[0].isalpha() and len(found) <= 40
    other = render(JOB, "--kubernetes", str(SETTINGS), f"name={name}x")[-1]["metadata"]["name"]
    assert other != found, "two runs never share a cluster"
    assert documents[-1]["metadata"]["annotations"]["yolofleet.io/name"] == name


def test_a_model_of_ones_own_travels_along(tmp_path: Path, render: Render) -> None:
    table = ROOT / "platform" / "yolofleet" / "models" / "zoo" / "yolov7-tiny.yaml"
    documents = render(JOB, "--kubernetes", str(SETTINGS), f"model={{spec: {table}}}")
    assert documents[1]["data"]["model.yaml"] == table.read_text()
    assert yaml.safe_load(documents[1]["data"]["job.yaml"])["model"]["spec"] == "/etc/yolofleet/model.yaml"
    assert str(ROOT) not in yaml.safe_dump_all(documents)


def cluster_spec(documents: list[Document]) -> Document:
    return dict(documents[-1]["spec"]["rayClusterSpec"])


def worker(documents: list[Document]) -> Document:
    return dict(cluster_spec(documents)["workerGroupSpecs"][0])


def pod(documents: list[Document]) -> Document:
    return dict(worker(documents)["template"]["spec"])


def container(documents: list[Document]) -> Document:
    return dict(pod(documents)["containers"][0])


def variable(documents: list[Document], name: str) -> Document:
    return next(dict(found=entry) for entry in container(documents)["env"] if entry["name"] == name)["found"]


MUTATIONS: dict[str, Callable[[list[Document]], object]] = {
    "an unknown field of KubeRay's job": lambda d: d[-1]["spec"].update(retries=3),
    "an unknown field of KubeRay's cluster": lambda d: d[-1]["spec"]["rayClusterSpec"].update(headGroup={}),
    "an unknown field of a pod": lambda d: worker(d)["template"]["spec"].update(restart="Never"),
    "an unknown field of a container": lambda d: pod(d)["containers"][0].update(memory="8Gi"),
    "a misspelt security context": lambda d: container(d)["securityContext"].update(runAsNonroot=True),
    "a number in a start parameter of KubeRay's": lambda d: cluster_spec(d)["headGroupSpec"]["rayStartParams"].update(
        {"num-gpus": 0}
    ),
    "text as the backoff of KubeRay's": lambda d: d[-1]["spec"].update(backoffLimit="3"),
    "no name of a group": lambda d: d[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
    "a head without a template": lambda d: cluster_spec(d)["headGroupSpec"].pop("template"),
    "an authentication mode that is none of KubeRay's": lambda d: cluster_spec(d)["authOptions"].update(
        mode="password"
    ),
    "no authentication": lambda d: cluster_spec(d)["authOptions"].update(mode="disabled"),
    "more at least than at most": lambda d: cluster_spec(d)["workerGroupSpecs"][0].update(minReplicas=9),
    "work on the head": lambda d: cluster_spec(d)["headGroupSpec"]["rayStartParams"].update({"num-cpus": "4"}),
    "a head that is open to all": lambda d: cluster_spec(d)["headGroupSpec"].update(serviceType="LoadBalancer"),
    "a pod as root": lambda d: pod(d)["securityContext"].update(runAsUser=0),
    "a root filesystem that can be written": lambda d: container(d)["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "a privileged container": lambda d: container(d)["securityContext"].update(privileged=True),
    "a folder of the node": lambda d: pod(d)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "the node's network": lambda d: worker(d)["template"]["spec"].update(hostNetwork=True),
    "a secret in plain text": lambda d: variable(d, "AWS_SECRET_ACCESS_KEY").update(value="hunter2"),
    "a secret instead of its name": lambda d: (
        variable(d, "RAY_AUTH_TOKEN").pop("valueFrom"),
        variable(d, "RAY_AUTH_TOKEN").update(value="hunter2"),
    ),
    "a Secret's key left out": lambda d: variable(d, "RAY_AUTH_TOKEN")["valueFrom"]["secretKeyRef"].pop("key"),
    "a taint's effect that is none": lambda d: pod(d)["tolerations"][0].update(effect=["NoSchedule"]),
    "no memory limit": lambda d: container(d)["resources"]["limits"].pop("memory"),
    "other GPUs than Ray gets": lambda d: container(d)["resources"]["limits"].update({"nvidia.com/gpu": "2"}),
    "no shared memory": lambda d: pod(d)["containers"][0].update(volumeMounts=container(d)["volumeMounts"][:2]),
    "a volume that is not there": lambda d: pod(d)["volumes"].pop(),
    "disk that nobody reserves": lambda d: container(d)["resources"]["requests"].update(
        {"ephemeral-storage": "1024Mi"}
    ),
    "no request for disk": lambda d: container(d)["resources"]["requests"].pop("ephemeral-storage"),
    "shards outside of the cache volume": lambda d: variable(d, "YOLOFLEET_SHARD_CACHE").update(value="/tmp/shards"),
    "a shard cache on the head": lambda d: cluster_spec(d)["headGroupSpec"]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ].append({"name": "tmp", "mountPath": "/cache"}),
    "other groups than the driver knows": lambda d: cluster_spec(d)["workerGroupSpecs"][0].update(maxReplicas=9),
    "no pods and nobody who starts some": lambda d: d[-1]["spec"]["rayClusterSpec"].pop("enableInTreeAutoscaling"),
    "a field of KubeRay's that 1.6 does not know": lambda d: cluster_spec(d)["workerGroupSpecs"][0].update(priority=1),
    "fault tolerance of KubeRay's that 1.6 does not know": lambda d: d[-1]["spec"]["rayClusterSpec"].update(
        gcsFaultToleranceOptions={"backend": "rocksdb"}
    ),
    "a cluster that outlives its job": lambda d: d[-1]["spec"].update(shutdownAfterJobFinishes=False),
    "a job that stays for ever": lambda d: d[-1]["spec"].update(ttlSecondsAfterFinished=0),
    "a pod outside of the network policy": lambda d: worker(d)["template"]["metadata"].update(labels={}),
    "a policy that lets everybody in": lambda d: d[0]["spec"]["ingress"].append({}),
    "a policy without a way out": lambda d: d[0]["spec"].update(policyTypes=["Ingress"]),
    "a policy's port as text of a protocol": lambda d: d[0]["spec"]["ingress"][1]["ports"][0].update(port=[8265]),
    "files that are not rendered": lambda d: d.pop(1),
}


@pytest.fixture(scope="module")
def whole(rules: Rules) -> list[Document]:
    """A manifest that holds."""
    settings = KubernetesSpec.load(SETTINGS)
    documents = render_manifest(work_of_job(JobSpec.load(JOB), settings), settings, ray_version="2.60.0")
    rules.check(documents)
    return documents


def test_prometheus_is_let_in_where_its_namespace_is_named(render: Render, rules: Rules) -> None:
    unwatched, watched = (
        render(JOB, "--kubernetes", str(SETTINGS), *more) for more in ([], ["kubernetes.monitoring_namespace=watchers"])
    )
    rules.check(watched)
    (added,) = [rule for rule in watched[0]["spec"]["ingress"] if rule not in unwatched[0]["spec"]["ingress"]]
    assert added["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "watchers"}
    (port,) = {entry["port"] for entry in added["ports"]}
    for template in pod_templates(watched[-1]):
        container = template["spec"]["containers"][0]
        if container["name"] != "submitter":
            assert {"name": "metrics", "containerPort": port} in container["ports"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_manifest_is_refused(
    name: str, whole: list[Document], rules: Rules, request: pytest.FixtureRequest
) -> None:
    if "of KubeRay's" in name:
        request.getfixturevalue("reference")  # only KubeRay's own definitions know
    broken = copy.deepcopy(whole)
    MUTATIONS[name](broken)
    assert broken != whole
    with pytest.raises((RuleBrokenError, KeyError)):
        rules.check(broken)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cluster.workers=[8,2]"], "workers [8, 2]: the first is the fewest, the second the most"),
        (["kubernetes.images.cuda=null"], "no image with CUDA is named; build the cuda target of infra/docker"),
        (["kubernetes.images.cuda=yolofleet"], "names no version"),
        (["kubernetes.images.cuda=host:5000/yolofleet:latest"], "add a tag (not latest)"),
        (["tracking.uri=sqlite:///mlflow.db"], "tracking.uri: sqlite can be opened by only one host"),
        (["tracking.uri=null"], "tracking.register_as=null"),
        (["tracking.uri=http://me:hunter2@mlflow:5000"], "tracking.uri: http://***@mlflow:5000 holds a secret"),
        (["tracking.uri=http://mlflow:none"], "write http://HOST:PORT"),
        (["tracking.uri=http://[mlflow:5000"], "write http://HOST:PORT"),
        (["storage=runs"], "use storage=s3://BUCKET/runs"),
        (["storage=file:///mnt/runs"], "use storage=s3://BUCKET/runs"),
        (["data.train=shards/train"], "yolofleet data shard ANNOTATIONS IMAGES s3://BUCKET/train"),
        (["data.val=/shards/val"], "data.val: /shards/val is a folder of one machine"),
        (["initial_weights=yolov7.pt"], "yolofleet registry import"),
        (["model={spec: nowhere.yaml}"], "nowhere.yaml"),
        (["cluster.gpus_per_worker=0.5", "kubernetes.workers_per_pod=1"], "workers_per_pod to a multiple of 2"),
        (["cluster.gpus_per_worker=16"], "but a node has kubernetes.gpus_per_node = 8 GPUs"),
        (["kubernetes.redis={address: redis}"], "redis.address: string should match"),
        (["kubernetes.gpu_memory=4GB"], "but kubernetes.gpu_memory is 4.0 GB; use a smaller micro_batch_size"),
        (["kubernetes.environment.AWS_SECRET_ACCESS_KEY=x"], "keep it in a Secret"),
        (["kubernetes.priority=high"], "needs a queue"),
        (["kubernetes.namespace=Team_A"], "namespace"),
        (["kubernetes.spott={}"], "did you mean 'spot'?"),
        (["kubernetes.format=2"], "newer than this version reads"),
        (["cluster.wrkers=2"], "did you mean 'workers'?"),
        (["--kind", "RayService"], "RayService"),
    ],
)  # fmt: skip
def test_what_cannot_run_in_pods_is_refused_with_the_cure(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["cluster", "render", str(JOB), "--kubernetes", str(SETTINGS), *arguments])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and "Traceback" not in captured.err
    assert message in " ".join(captured.err.split()), captured.err
    assert "hunter2" not in captured.err


@pytest.mark.parametrize("weights", ["shapes@champion", "shapes/3", "models:/shapes/3", "s3://runs/first"])
def test_weights_of_the_registry_are_no_file_of_one_machine(weights: str) -> None:
    check_locations(JobSpec.load(JOB, [f"initial_weights={weights}"]))


def test_a_search_is_refused_with_overrides_that_fit_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ROOT / "search_spaces" / "quickstart.yaml"
    assert main(["cluster", "render", str(space), "--kubernetes", str(SETTINGS)]) == 2
    assert "use job.storage=s3://BUCKET/runs" in capsys.readouterr().err
    assert main(["cluster", "render", str(space), *on_s3(space)]) == 2
    assert "kubernetes.images.cpu=REGISTRY/yolofleet:VERSION-cpu" in capsys.readouterr().err
    document = JobSpec.load(JOB).document() | {"model": {"spec": "a.yaml"}}
    written = tmp_path / "space.yaml"
    written.write_text(
        yaml.safe_dump(
            {
                "name": "tables",
                "job": document,
                "parameters": {"model.spec": {"choice": ["a.yaml", "b.yaml"]}},
                "budget": {"trials": 2},
            }
        )
    )
    assert main(["cluster", "render", str(written), "--kubernetes", str(SETTINGS)]) == 2
    assert "chooses among model specs of this machine" in capsys.readouterr().err
