"""Every check of the doctor: what makes it ok, a warning, a failure. Facts go in, no cluster is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from yolofleet.cluster.doctor.access import REPORT_PREFIX, parse_report
from yolofleet.cluster.doctor.all_reduce import AllReduceResult, bandwidth, check_all_reduce, examine_all_reduce
from yolofleet.cluster.doctor.authentication import Address, ProbeResult, check_access, check_authentication
from yolofleet.cluster.doctor.cluster_checks import TrackingFound, check_room, check_tracking
from yolofleet.cluster.doctor.devices import Devices, Gpu, check_devices, parse_gpus
from yolofleet.cluster.doctor.disk import CacheNeed, Disk, check_disk, file_system_of
from yolofleet.cluster.doctor.finding import CLUSTER, Finding, Report
from yolofleet.cluster.doctor.node_checks import (
    ClockOffset,
    Installed,
    Limits,
    check_clock,
    check_open_files,
    check_shared_memory,
    check_versions,
    measure_clock,
    probe_versions,
)
from yolofleet.cluster.doctor.nodes import ExaminedNode, list_nodes
from yolofleet.cluster.doctor.storage_probe import DataFound, RunsFound, check_data, check_runs
from yolofleet.core.errors import UserError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.tracking import TrackingSpec
from yolofleet.training.supervision.nodes import NodeOffer

GB, MB = 10**9, 10**6
NODE = "10.0.0.7"
WANTED = Installed({"python": "3.11", "ray": "2.60.0", "torch": "2.13.0"}, "0.1.0")
H100 = Gpu("NVIDIA H100", "580.10")
TWO = Devices((H100, H100), driver_cuda=(13, 0), torch_cuda=(13, 0))
DISK = Disk(500 * GB, 0, "ext4", 400e6)
NEED = CacheNeed("/mnt/cache", 100 * GB, 60 * GB, GB)
TOKEN_URL = "http://me:hidden-word@mlflow:5000"


def verdict(found: Finding | Iterable[Finding]) -> list[str]:
    return [finding.verdict for finding in ([found] if isinstance(found, Finding) else found)]


def test_a_line_that_is_not_ok_has_a_cure_and_no_other() -> None:
    with pytest.raises(ValueError, match="cure"):
        Finding(NODE, "x", "fail", "seen")
    with pytest.raises(ValueError, match="cure"):
        Finding(NODE, "x", "ok", "seen", "do this")


def test_a_report_travels_as_json_and_fails_with_its_worst_line() -> None:
    sound = Finding(NODE, "clock", "ok", "within 0.1 s", measured={"offset_seconds": 0.05})
    warned = Finding(CLUSTER, "authentication", "warn", "no token", "set one")
    report = Report((sound, warned), ("MLflow",))
    assert report.exit_code == 0 and report.nodes == [CLUSTER, NODE]
    document = json.loads(json.dumps(report.document()))
    assert Report.from_document(document) == report
    assert [line["place"] for line in document["lines"]] == [NODE, CLUSTER]
    assert replace(report, findings=(*report.findings, Finding(NODE, "x", "fail", "y", "z"))).exit_code == 1


@pytest.mark.parametrize(
    ("change", "expected", "seen"),
    [
        ({}, "ok", "torch 2.13.0"),
        ({"versions": WANTED.versions | {"torch": "2.11.0"}}, "fail", "torch 2.11.0 (2.13.0 is wanted)"),
        ({"versions": {"python": "3.11", "ray": "2.60.0"}}, "fail", "torch missing"),
        ({"unmet": ("boto3 1.0 (needs >=1.43)",)}, "fail", "boto3 1.0"),
        ({"yolofleet": "0.0.9"}, "warn", "yolofleet 0.0.9 (0.1.0 is wanted)"),
        ({"yolofleet": None}, "ok", "yolofleet sent with each job"),
    ],
)
def test_versions(change: dict[str, object], expected: str, seen: str) -> None:
    finding = check_versions(NODE, replace(WANTED, **change), WANTED)
    assert finding.verdict == expected and seen in finding.seen


def test_the_versions_of_this_machine_satisfy_what_it_requires() -> None:
    found = probe_versions()
    assert {"python", "ray", "torch"} <= found.versions.keys() and found.unmet == ()
    assert check_versions(NODE, found, found).verdict == "ok"


@pytest.mark.parametrize(
    ("seconds", "uncertainty", "expected"),
    [
        (0.2, 0.01, "ok"),
        (-0.9, 0.0, "ok"),
        (3.0, 2.5, "ok"),
        (1.2, 0.1, "warn"),
        (-29.0, 0.5, "warn"),
        (31.0, 0.5, "fail"),
        (-3600.0, 5.0, "fail"),
    ],
)
def test_clock(seconds: float, uncertainty: float, expected: str) -> None:
    finding = check_clock(NODE, ClockOffset(seconds, uncertainty))
    assert finding.verdict == expected
    if expected != "ok":
        assert ("ahead" if seconds > 0 else "behind") in finding.seen


def test_the_quickest_answer_tells_the_time_best() -> None:
    ours = iter([0.0, 10.0, 20.0, 20.2, 30.0, 34.0])
    theirs = iter([105.0, 120.1, 133.0])
    offset = measure_clock(lambda: next(theirs), now=lambda: next(ours))
    assert offset.seconds == pytest.approx(100.0) and offset.uncertainty_seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("found", "by_ray", "per_worker", "expected", "seen"),
    [
        (TWO, 2, 1.0, "ok", "2 x NVIDIA H100, driver 580.10, CUDA 13.0"),
        (Devices(), 0, 0.0, "ok", "none needed"),
        (Devices(), 0, None, "ok", "none needed"),
        (Devices(), 0, 1.0, "warn", "each worker of the job needs 1"),
        (Devices(), 2, None, "fail", "Ray offers 2, the system has none"),
        (TWO, 1, 1.0, "warn", "Ray offers 1"),
        (replace(TWO, torch_cuda=None), 2, 1.0, "fail", "CPU build"),
        (replace(TWO, torch_cuda=None), 0, 0.0, "warn", "CPU build"),
        (replace(TWO, driver_cuda=(12, 4)), 2, 1.0, "fail", "runs CUDA 12.4 at most, torch was built for 13.0"),
        (replace(TWO, driver_cuda=(13, 0), torch_cuda=(13, 2)), 2, 1.0, "ok", "CUDA 13.2"),
        (Devices(problem="NVML: Driver/library version mismatch"), 2, 1.0, "fail", "version mismatch"),
        (Devices(problem="NVML: Driver/library version mismatch"), 0, None, "warn", "gives no answer"),
    ],
)
def test_devices(found: Devices, by_ray: float, per_worker: float | None, expected: str, seen: str) -> None:
    finding = check_devices(NODE, found, by_ray, per_worker)
    assert finding.verdict == expected and seen in finding.seen


def test_what_nvidia_smi_lists_is_read() -> None:
    assert parse_gpus("NVIDIA H100 80GB HBM3, 580.10\nTesla, V100, 470.1\n") == (
        Gpu("NVIDIA H100 80GB HBM3", "580.10"),
        Gpu("Tesla, V100", "470.1"),
    )
    with pytest.raises(ValueError):
        parse_gpus("No devices were found")


@pytest.mark.parametrize(
    ("size", "free", "store", "workers", "expected"),
    [
        (16 * GB, 15 * GB, 4 * GB, 2, "ok"),
        (64 * MB, 64 * MB, 4 * GB, 2, "fail"),
        (16 * GB, 50 * MB, 4 * GB, 1, "fail"),
        (3 * GB, 3 * GB, 4 * GB, 1, "warn"),
        (5 * GB, 5 * GB, 4 * GB, 8, "warn"),
    ],
)
def test_shared_memory(size: int, free: int, store: float, workers: int, expected: str) -> None:
    finding = check_shared_memory(NODE, Limits(size, free, 65536), store, workers)
    assert finding.verdict == expected and (expected == "ok" or "--shm-size" in str(finding.cure))


@pytest.mark.parametrize(
    ("limit", "expected"), [(65536, "ok"), (-1, "ok"), (4096, "warn"), (1024, "warn"), (256, "fail")]
)
def test_open_files(limit: int, expected: str) -> None:
    assert check_open_files(NODE, Limits(GB, GB, limit)).verdict == expected


@pytest.mark.parametrize(
    ("change", "expected", "seen"),
    [
        ({}, "ok", "500 GB free, writes 400 MB/s"),
        ({"problem": "/mnt: Read-only file system", "bytes_per_second": None}, "fail", "Read-only"),
        ({"free_bytes": GB // 2}, "fail", "the largest shard alone has 1.0 GB"),
        ({"free_bytes": 20 * GB}, "warn", "wants to keep 60.0 GB"),
        ({"free_bytes": 20 * GB, "held_bytes": 40 * GB}, "ok", "20.0 GB free"),
        ({"file_system": "tmpfs"}, "warn", "takes memory"),
        ({"file_system": "nfs4"}, "warn", "network disk"),
        ({"bytes_per_second": 5e6}, "warn", "slow"),
    ],
)
def test_shard_cache(change: dict[str, object], expected: str, seen: str) -> None:
    finding = check_disk(NODE, replace(DISK, **change), NEED)
    assert finding.verdict == expected and seen in finding.seen


def test_the_file_system_under_a_path_is_the_last_mount_above_it() -> None:
    mounts = (
        "/dev/a / ext4 rw 0 0\ntmpfs /mnt tmpfs rw 0 0\nhost:/x /mnt/my\\040cache nfs4 rw 0 0\n/dev/b / xfs rw 0 0\n"
    )
    kinds = {path: file_system_of(Path(path), mounts) for path in ("/", "/mnt/a", "/mnt/my cache/b", "/mnt/my")}
    assert kinds == {"/": "xfs", "/mnt/a": "tmpfs", "/mnt/my cache/b": "nfs4", "/mnt/my": "tmpfs"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (RunsFound(None, 100e6, 200e6, True), ["ok", "ok", "ok"]),
        (RunsFound(None, 100e6, 200e6, False), ["ok", "warn", "ok"]),
        (RunsFound(None, 100e6, 200e6, True, False), ["ok", "ok", "warn"]),
        (RunsFound(None, 100e6, 2e6, True), ["warn", "ok", "ok"]),
        (RunsFound("s3://runs: was refused (AccessDenied)"), ["fail"]),
    ],
)
def test_storage_of_runs(found: RunsFound, expected: list[str]) -> None:
    assert verdict(check_runs(NODE, found, "s3://runs")) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (DataFound(None, 80 * MB, 1.0), "ok"),
        (DataFound(None, 10 * MB, 5.1), "warn"),
        (DataFound(None, MB, 0.5), "ok"),
        (DataFound(None, MB, 5.1), "warn"),
        (DataFound("no dataset here"), "fail"),
        (DataFound(), "fail"),
    ],
)
def test_data(found: DataFound, expected: str) -> None:
    assert verdict(check_data(NODE, found, "training data", "s3://data/train")) == [expected]


@pytest.mark.parametrize(
    ("found", "when_away", "expected"),
    [
        (TrackingFound(None, 0.1, 0.2), "fail", "ok"),
        (TrackingFound(), "fail", "ok"),
        (TrackingFound(None, 0.1, 9.0), "fail", "warn"),
        (TrackingFound("nothing answers"), "fail", "fail"),
        (TrackingFound("nothing answers"), "spool", "warn"),
    ],
)
def test_tracking(found: TrackingFound, when_away: str, expected: str) -> None:
    finding = check_tracking(found, TOKEN_URL, TrackingSpec(when_away=when_away))
    assert finding.verdict == expected and "hidden-word" not in f"{finding.seen}{finding.cure}"


def test_room() -> None:
    cluster = ClusterSpec(workers=(2, 4), gpus_per_worker=1)
    offers = [NodeOffer({"CPU": 8.0, "GPU": 1.0}, name=f"n{number}") for number in range(3)]
    finding = check_room(cluster, offers, [])
    assert finding.verdict == "ok" and finding.seen == "for 3 workers, the job wants 2 to 4"
    waits = check_room(cluster, offers[:1], [replace(offers[0], count=5)])
    assert waits.verdict == "warn" and "autoscaler" in str(waits.cure)
    never = check_room(cluster, offers[:1], [])
    assert never.verdict == "fail" and "room for 1" in never.seen and str(never.cure).startswith("ask for fewer")


@pytest.mark.parametrize(
    ("backend", "found", "expected", "seen"),
    [
        ("gloo", [AllReduceResult(0.05, True)] * 2, "ok", "336 MB/s"),
        ("gloo", [AllReduceResult(0.05, True), AllReduceResult(4.0, True)], "warn", "4.2 MB/s"),
        ("nccl", [AllReduceResult(1.0, True)] * 2, "warn", "134 MB/s"),
        ("nccl", [AllReduceResult(0.001, True)] * 8, "ok", "235 GB/s"),
        ("nccl", [AllReduceResult(0.001, True)], "ok", "no other to exchange with"),
        ("gloo", [AllReduceResult(0.05, True), AllReduceResult(0.05, False)], "fail", "the sum is wrong"),
        ("gloo", [AllReduceResult(0.05, True), "10.0.0.8: no answer within 60 s"], "fail", "10.0.0.8: no answer"),
        ("nccl", ["a: x", "b: y"], "fail", "and 1 more"),
    ],
)
def test_all_reduce(backend: str, found: list[AllReduceResult | str], expected: str, seen: str) -> None:
    finding = check_all_reduce(backend, "two", found)  # type: ignore[arg-type]
    assert finding.verdict == expected and seen in finding.seen


def test_of_two_each_link_carries_the_tensor_once() -> None:
    assert bandwidth("gloo", 2, 1.0) == 16 * 2**20
    assert bandwidth("gloo", 1000, 1.0) == pytest.approx(2 * 16 * 2**20, rel=0.01)


def test_gpus_that_others_use_are_left_to_them() -> None:
    nodes = [ExaminedNode("a", "n1", "n1", {"GPU": 8.0}, 8), ExaminedNode("b", "n2", "n2", {"GPU": 8.0}, 8)]
    free = {"a": {"GPU": 8.0}, "b": {"CPU": 1.0}}
    finding = examine_all_reduce(nodes, ClusterSpec(gpus_per_worker=1), free, 1.0, 1.0)
    assert finding.verdict == "warn" and finding.seen == "not tried: no GPU is free on n2"
    assert examine_all_reduce([], None, free, 1.0, 1.0).verdict == "fail"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://ray.example:8265/", "http://ray.example:8265"),
        ("https://ray.example", "https://ray.example:443"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        ("[fd00::1]:6379", "[fd00::1]:6379"),
        ("ray://head:10001", "ray://head:10001"),
    ],
)
def test_addresses(text: str, expected: str) -> None:
    assert Address.parse(text).text == expected


@pytest.mark.parametrize(
    "text", ["", "head", "ftp://head:1", "http://", "head:port", "ray://head", "http://h:99999", "::1"]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--address"):
        Address.parse(text)


def test_an_address_with_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(UserError) as caught:
        Address.parse("http://me:hidden-word@head:8265")
    assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (ProbeResult("silent", "refused"), "nothing answers"),
        (ProbeResult("refused", "HTTP 401"), "a token; none is set"),
    ],
)
def test_a_cluster_that_cannot_be_examined(
    result: ProbeResult, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    address = Address.parse("http://head:8265")
    finding = check_access(address, result)
    assert finding is not None and finding.verdict == "fail" and expected in finding.seen
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden-word")
    finding = check_access(address, ProbeResult("refused", "HTTP 403"))
    assert finding is not None and "refuses this token" in finding.seen and "hidden-word" not in finding.seen
    assert check_access(address, ProbeResult("accepted")) is None


@pytest.mark.parametrize(
    ("address", "without_token", "expected"),
    [
        ("http://10.0.0.1:8265", ProbeResult("refused", "HTTP 401"), "ok"),
        ("http://127.0.0.1:8265", ProbeResult("accepted"), "warn"),
        ("localhost:6379", ProbeResult("accepted"), "warn"),
        ("http://10.0.0.1:8265", ProbeResult("accepted"), "fail"),
        ("head:6379", ProbeResult("accepted"), "fail"),
    ],
)
def test_authentication(address: str, without_token: ProbeResult, expected: str) -> None:
    assert check_authentication(Address.parse(address), without_token).verdict == expected


def test_nodes_are_named_apart_and_know_how_many_workers_they_take() -> None:
    rows = [
        {"Alive": True, "NodeID": "b" * 56, "NodeManagerAddress": "h1", "Resources": {"CPU": 4.0}, "Labels": {}},
        {"Alive": True, "NodeID": "a" * 56, "NodeManagerAddress": "h2", "Resources": {"node:__internal_head__": 1.0}},
        {"Alive": True, "NodeID": "c" * 56, "NodeManagerAddress": "h1", "Resources": {"CPU": 1.0}, "Labels": {}},
        {"Alive": False, "NodeID": "d" * 56, "NodeManagerAddress": "h4", "Resources": {"CPU": 1.0}},
    ]
    nodes = list_nodes(rows, ClusterSpec(workers=2, cpus_per_worker=1))
    assert [(node.name, node.num_workers) for node in nodes] == [("h2", 0), ("h1 bbbbbb", 2), ("h1 cccccc", 1)]


def test_a_report_comes_back_in_the_log_whatever_else_is_printed() -> None:
    report = Report((Finding(CLUSTER, "Ray", "ok", "2.60.0, 1 node"),))
    log = f"versions\n{REPORT_PREFIX}{json.dumps(report.document())}\n(raylet) something of Ray's\n"
    assert parse_report(log, "") == report
    lost = parse_report("a\nb\nModuleNotFoundError: No module named 'pydantic'\n", "failed")
    assert isinstance(lost, Finding) and lost.verdict == "fail" and "pydantic" in lost.seen
    never = parse_report("", "the runtime environment could not be made")
    assert isinstance(never, Finding) and "could not be made" in never.seen


@pytest.mark.parametrize("earlier", [None, "10.0.0.9:6379"])
def test_the_environment_is_as_before_behind_a_doctor(monkeypatch: pytest.MonkeyPatch, earlier: str | None) -> None:
    """Whatever happens while Ray is asked: later commands of the process would take the address for theirs."""
    from yolofleet.cluster.doctor import access

    def fails(**_: object) -> None:
        seen.append(os.environ.get("RAY_ADDRESS"))
        raise RuntimeError("versions differ")

    seen: list[str | None] = []
    monkeypatch.setattr(access, "tune_connection", fails)
    monkeypatch.setattr(access, "probe", lambda *_: None)
    monkeypatch.setattr(access, "check_access", lambda *_: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if earlier is not None:
        monkeypatch.setenv("RAY_ADDRESS", earlier)
    for address in (None, Address.parse("127.0.0.1:6379")):
        report = access.examine_by_connection(address, None, lambda _: None)
        assert report.exit_code == 1 and "versions differ" in report.findings[0].seen
    assert seen == [None, "127.0.0.1:6379"]
    assert os.environ.get("RAY_ADDRESS") == earlier
