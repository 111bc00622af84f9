"""The doctor's probes on real things: disks, storage over the wire, MLflow that is away, processes that meet or not."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.exchange_worker import take_part
from faulty_s3 import FaultyProxy, faulty_s3
from yolofleet.cluster.doctor import all_reduce
from yolofleet.cluster.doctor.authentication import Address, probe
from yolofleet.cluster.doctor.cluster_checks import check_tracking, probe_tracking
from yolofleet.cluster.doctor.devices import probe_devices
from yolofleet.cluster.doctor.disk import CacheNeed, check_disk, probe_disk
from yolofleet.cluster.doctor.node_checks import probe_limits
from yolofleet.cluster.doctor.storage_probe import check_runs, probe_data, probe_runs, shared_marker
from yolofleet.specs.tracking import TrackingSpec
from yolofleet.storage import StorageError, open_storage

MARKER_NAME = "mark"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """An S3 server that can be made to fail, with an empty bucket."""
    import boto3

    from yolofleet.storage.s3 import _s3_client

    with faulty_s3() as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        _s3_client.cache_clear()
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield proxy
        _s3_client.cache_clear()


def test_storage_is_used_and_left_as_it_was(s3: FaultyProxy) -> None:
    url = "s3://bucket/runs"
    with shared_marker(url, MARKER_NAME):
        found = probe_runs(url, MARKER_NAME)
        assert found.problem is None and found.honours_conditions and found.holds_markers
        assert found.write_bytes_per_second > 0 < found.read_bytes_per_second
    assert open_storage(url).list() == []


def test_storage_that_ignores_conditions_is_found_out(s3: FaultyProxy) -> None:
    s3.ignores_conditions = True
    with shared_marker("s3://bucket/runs", MARKER_NAME):
        found = probe_runs("s3://bucket/runs", MARKER_NAME)
    assert found.problem is None and not found.honours_conditions
    assert open_storage("s3://bucket/runs").list() == []


def test_storage_that_hides_what_is_below_a_marker_is_found_out(s3: FaultyProxy) -> None:
    s3.ending, s3.for_ever = "-marker/object", "500"  # as rclone's server does
    with shared_marker("s3://bucket/runs", MARKER_NAME):
        found = probe_runs("s3://bucket/runs", MARKER_NAME)
    assert found.problem is None and found.honours_conditions and not found.holds_markers
    (line,) = [line for line in check_runs("a", found, "s3://bucket/runs") if line.subject == "directory marker"]
    assert line.verdict == "warn" and "hides all objects below" in line.seen
    assert open_storage("s3://bucket/runs").list() == []


def test_storage_that_refuses_is_a_problem_with_the_cure(s3: FaultyProxy) -> None:
    with shared_marker("s3://bucket/runs", MARKER_NAME):
        s3.ending, s3.for_ever = "", "403"
        found = probe_runs("s3://bucket/runs", MARKER_NAME)
        s3.for_ever = None
    assert found.problem is not None and "AWS_ACCESS_KEY_ID" in found.problem and "secret" not in found.problem
    missing = probe_runs("s3://no-such-bucket/runs", MARKER_NAME)
    assert missing.problem is not None


def test_a_folder_that_is_not_shared_is_found_out(tmp_path: Path) -> None:
    with shared_marker(str(tmp_path / "runs"), MARKER_NAME):
        here = probe_runs(str(tmp_path / "runs"), MARKER_NAME)
        assert here.problem is None and here.honours_conditions
        elsewhere = probe_runs(str(tmp_path / "other"), MARKER_NAME)
    assert elsewhere.problem is not None and "not shared" in elsewhere.problem
    assert list(tmp_path.iterdir()) == [], "the folders that were made for it are gone"


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StorageError, match="/proc/runs"), shared_marker("/proc/runs", MARKER_NAME):
        pass


def test_data_is_read_or_the_reason_named(tmp_path: Path) -> None:
    found = probe_data(str(tmp_path))
    assert found.problem is not None and "no dataset here" in found.problem


def test_a_disk_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    found = probe_disk(str(tmp_path / "deep" / "cache"))
    assert found.problem is None and found.bytes_per_second is not None and found.free_bytes > 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    blocked = probe_disk(str(tmp_path / "file"))
    assert blocked.problem is not None and "is a file" in blocked.problem
    closed = probe_disk("/proc/cache")
    assert closed.problem is not None and check_disk("n", closed, CacheNeed("/proc/cache", 1, 1, 1)).verdict == "fail"


def test_the_disk_is_that_of_the_folder_which_the_node_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOFLEET_SHARD_CACHE", str(tmp_path / "own"))
    need = CacheNeed("/proc/cache", 1, 1, 1)
    found = probe_disk(need.path)
    assert found.problem is None and f"{tmp_path}/own" in check_disk("n", found, need).seen
    monkeypatch.setenv("YOLOFLEET_SHARD_CACHE", "/proc/own")
    refused = check_disk("n", probe_disk(need.path), need)
    assert refused.verdict == "fail" and "set YOLOFLEET_SHARD_CACHE of the node to a folder" in str(refused.cure)


def test_a_full_disk_is_a_problem(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here (it takes root)")
    try:
        found = probe_disk(str(tmp_path))
        assert found.problem is not None and "No space left" in found.problem and found.file_system == "tmpfs"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_limits_and_devices_of_this_machine_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe_limits()
    assert found.shared_memory_bytes >= found.shared_memory_free_bytes and found.open_files != 0
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    problem = probe_devices(False).problem
    assert problem is not None and "version mismatch" in problem


def test_mlflow_that_does_not_answer_or_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    away = probe_tracking(f"http://127.0.0.1:{free_port()}", "yolofleet").problem
    assert away is not None and "nothing answers" in away
    fresh = tmp_path / "_mlflow" / "mlflow.db"
    assert probe_tracking(f"sqlite:///{fresh}", "yolofleet").problem is None and not fresh.parent.exists()
    (tmp_path / "file").write_text("")
    closed = probe_tracking(f"sqlite:///{tmp_path}/file/mlflow.db", "yolofleet").problem
    assert closed is not None and "cannot be made" in closed


@pytest.mark.slow
def test_mlflow_is_used_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yolofleet.tracking.mlflow_store import open_client

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_client(uri)
    experiment = client.create_experiment("mine")
    found = probe_tracking(uri, "mine")
    assert found.problem is None and found.write_seconds is not None and found.artifact_seconds is None
    assert list(client.search_registered_models()) == [] and len(client.search_experiments()) == 2
    kept = tmp_path / "kept"
    kept.mkdir()
    client.create_experiment("ours", artifact_location=str(kept))
    found = probe_tracking(uri, "ours")
    assert found.problem is None and found.artifact_seconds is not None
    assert list(kept.iterdir()) == [], "nothing is left"
    client.create_experiment("nowhere", artifact_location="s3://bucket/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    lost = probe_tracking(uri, "nowhere")
    assert lost.problem is not None and "no files at s3://bucket/nowhere" in lost.problem
    assert check_tracking(lost, uri, TrackingSpec()).verdict == "fail"
    client.delete_experiment(experiment)
    deleted = probe_tracking(uri, "mine").problem
    assert deleted is not None and "was deleted" in deleted


class _Guarded(BaseHTTPRequestHandler):
    followed = False

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        _Guarded.followed = _Guarded.followed or self.path == "/elsewhere"
        self.send_response({None: 401, "Bearer right": 200, "Bearer moved": 302}.get(given, 403))
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def test_a_dashboard_is_asked_with_a_token_and_without() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = Address.parse(f"http://127.0.0.1:{server.server_port}")
    assert [probe(address, token).outcome for token in ("right", "wrong", None)] == ["accepted", "refused", "refused"]
    assert probe(address, "moved").outcome == "silent" and not _Guarded.followed, "no token is sent on"
    server.shutdown()
    server.server_close()
    assert probe(address, "right").outcome == "silent"


def test_a_server_of_another_protocol_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        port = listener.getsockname()[1]
        assert probe(Address.parse(f"http://127.0.0.1:{port}"), None).outcome == "silent"
        assert probe(Address.parse(f"127.0.0.1:{port}"), None).outcome == "silent"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1], ids=["all are there", "one is missing"])
def test_two_processes_sum_or_report_that_one_is_missing(missing: int) -> None:
    context = multiprocessing.get_context("spawn")
    ports, answers = context.Queue(), context.Queue()
    processes = [context.Process(target=take_part, args=(rank, 2 + missing, ports, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    if missing:
        assert all(isinstance(answer, str) for answer in found)
    else:
        assert all(isinstance(answer, all_reduce.AllReduceResult) and answer.is_right for answer in found)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
