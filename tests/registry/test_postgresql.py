"""The whole life of a version on a server as one runs it for many: PostgreSQL behind it, artifacts on S3."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from registry.servers import free_port, mlflow_server
from yolofleet.data.dataset import ShardDataset
from yolofleet.registry.alias_history import alias_changes
from yolofleet.registry.evaluation_record import Evidence, evaluate_package
from yolofleet.registry.lineage import find_lineage, find_uses
from yolofleet.registry.promotion import check_gates, promote, roll_back
from yolofleet.registry.register import register_detector
from yolofleet.registry.verify import verify
from yolofleet.registry.versions import ModelTags, list_versions
from yolofleet.specs.promotion import PromotionPolicy

pytestmark = [pytest.mark.system, pytest.mark.slow]

DRIVER = "psycopg2"


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian keeps off the path."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of the test's own on loopback; it refuses to run as root, so it does not."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if importlib.util.find_spec(DRIVER) is None:
        pytest.skip(f"the Python driver of PostgreSQL is not installed (pip install {DRIVER}-binary)")
    user = None
    if os.getuid() == 0:
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = "postgres"
    data = Path(tempfile.mkdtemp(prefix="yolofleet-postgresql-"))
    if user:
        shutil.chown(data, user)
    port = free_port()
    command = [folder / "initdb", "-D", data / "data", "-U", "yolofleet", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(command, check=True, user=user, cwd=data, capture_output=True)
    options = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-k", str(data), "-c", "fsync=off"]
    with (data / "log").open("wb") as log:
        server = subprocess.Popen(
            [folder / "postgres", "-D", data / "data", *options], user=user, cwd=data, stdout=log, stderr=log
        )
    try:
        give_up = time.monotonic() + 120
        ready = [folder / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False, capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < give_up, (data / "log").read_text()
            time.sleep(0.2)
        create = [folder / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "yolofleet", "mlflow"]
        subprocess.run(create, check=True, capture_output=True)
        yield f"postgresql+{DRIVER}://yolofleet@127.0.0.1:{port}/mlflow"
    finally:
        server.terminate()
        server.wait(timeout=60)
        shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server in memory with one bucket; it is known to what is started from here on by the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    known = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    ).create_bucket(Bucket="models")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**known, "MLFLOW_S3_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        yield "s3://models/mlflow"
    server.stop()


@pytest.fixture(scope="module")
def server(postgresql: str, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("server")
        stack.enter_context(mlflow_server(folder, port, backend=postgresql, artifacts=s3))
        yield f"http://127.0.0.1:{port}"


def test_from_registration_to_rollback(server: str, trained_package: Path, own_package: Path, known_data: Path) -> None:
    evidence = evaluate_package(trained_package, str(known_data), "cpu")
    manifest = ShardDataset(known_data).manifest
    stored = manifest.to_bytes()
    facts = {**evidence.facts, "data": dict.fromkeys(("train", "val"), hashlib.sha256(stored).hexdigest())}
    manifests = {"train": stored, "val": stored}
    evidence = replace(evidence, facts=facts, manifests=manifests)
    first = register_detector(trained_package, "shapes", server, evidence)
    found = verify(server, first)
    assert not found.with_outcome("failed"), found.document()
    assert {claim.name for claim in found.with_outcome("not possible")} == {"data, train"}  # its URL is not recorded
    lineage = find_lineage(server, first)
    assert lineage.data[0].shards == tuple((shard.name, shard.sha256) for shard in manifest.shards)
    assert [use.version.number for use in find_uses(server, manifest.shards[0].sha256)] == [1]

    policy = PromotionPolicy.parse({"proof": {"may_be_impossible": ["data, train"]}}, source="policy")
    report = check_gates(server, "shapes", 1, "champion", policy)
    assert report.passed, report.document()
    promote(server, report, "the first")
    second = register_detector(own_package, "shapes", server, Evidence())
    assert find_lineage(server, second).data == ()
    refused = check_gates(server, "shapes", 2, "champion", policy)
    assert not refused.passed
    promote(server, refused, "for the test", forced=True)
    assert roll_back(server, "shapes", "champion", "and back").version == 1
    tags, aliases = ModelTags(server, "shapes").read()
    assert aliases == {"candidate": second.number, "champion": 1, "champion-previous": 2}
    assert [(change.version, change.action, change.forced) for change in alias_changes(tags, aliases, "champion")] == [
        (1, "promote", False), (2, "promote", True), (1, "rollback", False),
    ]  # fmt: skip
    assert len(list_versions(server)) == 2
