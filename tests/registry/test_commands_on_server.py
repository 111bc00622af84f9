"""Every command of the registry against a real MLflow server, which is all that reaches its database and files."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_s3 import FaultyProxy
from registry.archives import unpacked
from registry.servers import free_port, mlflow_server
from yolofleet.cli.main import main
from yolofleet.core.local_files import CACHE_VARIABLE
from yolofleet.data.dataset import ShardDataset
from yolofleet.registry import version_files
from yolofleet.registry.package import ARCHIVE_NAME
from yolofleet.tracking import mlflow_store

ARTIFACTS = "/mlflow-artifacts/artifacts"
MOST_ARTIFACT_REQUESTS = 15
"""Of a registration or a promotion, listings included: a server may take a second for each."""

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    store, current = tmp_path / "server", tmp_path / "current"
    store.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    port = free_port()
    with mlflow_server(store, port):
        yield f"http://127.0.0.1:{port}"


def test_from_the_first_registration_to_a_rollback(
    server: str,
    trained_package: Path,
    detector_package: Path,
    known_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["registry", *arguments, "--tracking-uri", server])
        return code, capsys.readouterr().out

    for package in (detector_package, trained_package):  # the second one is worse here
        assert run("register", str(package), "--name", "shapes", "--data", str(known_data))[0] == 0
    code, out = run("list", "shapes")
    head, *rows = (line.split() for line in out.splitlines())
    assert code == 0 and head == ["VERSION", "REGISTERED", "AP", "AP50", "ALIASES"]
    assert [(row[0], *row[5:]) for row in rows] == [("models:/shapes/2", "@candidate"), ("models:/shapes/1",)]
    assert all(re.fullmatch(r"[01]\.\d{4}", figure) for row in rows for figure in row[3:5])
    (shard, *_) = ShardDataset(known_data).manifest.shards
    code, out = run("list", "--data", shard.sha256, "--json")
    assert code == 0 and [(entry["version"], entry["data"]) for entry in json.loads(out)] == [
        (2, ["val"]),
        (1, ["val"]),
    ]
    code, out = run("show", "shapes/1", "--json")
    assert code == 0 and json.loads(out)["lineage"]["data"][0]["shards"][shard.name] == shard.sha256
    code, out = run("verify", "shapes/1", "--device", "cpu")
    assert code == 0 and "0 failed, 0 not possible" in out, out

    policy = tmp_path / "policy.yaml"
    policy.write_text("lineage: false\n")
    code, out = run("promote", "shapes", "--version", "1", "--policy", str(policy), "--reason", "the first")
    assert code == 0 and "models:/shapes/1 is @champion now" in out
    code, out = run("compare", "shapes@champion", "shapes@candidate", "--html", str(tmp_path / "page"))
    assert code == 0 and "models:/shapes/2" in (tmp_path / "page/index.html").read_text()
    code, out = run("promote", "shapes", "--version", "2", "--policy", str(policy))
    assert code == 1, out
    assert run("promote", "shapes", "--version", "2", "--force", "--reason", "a test")[0] == 0
    code, out = run("rollback", "shapes", "--reason", "it was worse")
    assert code == 0 and "models:/shapes/1 is @champion again" in out
    code, out = run("history", "shapes")
    assert code == 0 and len(out.splitlines()) == 3 and "it was worse" in out.splitlines()[0]
    assert main(["predict", "models:/shapes@champion", str(known_data.parent / "images/0.png"), "--out",
                 str(tmp_path / "found"), "--tracking-uri", server]) == 0  # fmt: skip
    assert main(["evaluate", "models:/shapes@champion", str(known_data), "--tracking-uri", server]) == 0
    assert list(Path().iterdir()) == []


def test_few_requests_are_made_and_those_that_fail_are_repeated(
    server: str,
    onnx_package: Path,
    detector_package: Path,
    known_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxy = FaultyProxy(int(server.rpartition(":")[2]))

    def run(*arguments: str) -> tuple[int, Counter[str]]:
        """Return the exit code of a command and its requests for artifacts by method, all others as "other"."""
        proxy.requests.clear()
        capsys.readouterr()
        code = main([*arguments, "--tracking-uri", proxy.url])
        seen = [request.verb if ARTIFACTS in request.path else "other" for request in proxy.requests]
        return code, Counter(seen)

    def forget() -> None:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    try:
        for package in (onnx_package, detector_package):
            code, seen = run("registry", "register", str(package), "--name", "shapes", "--data", str(known_data))
            assert code == 0 and 0 < seen["PUT"] <= MOST_ARTIFACT_REQUESTS and not seen["GET"], seen
        for number in (1, 2):
            promote = ("registry", "promote", "shapes", "--version", str(number), "--force", "--reason", "a test")
            code, seen = run(*promote)
            assert code == 0 and 0 < seen["GET"] <= MOST_ARTIFACT_REQUESTS, (seen, capsys.readouterr())
        code, seen = run("registry", "list")
        assert code == 0 and set(seen) == {"other"} and seen["other"] <= 4, seen

        both = ("registry", "compare", "shapes/1", "shapes/2", "--replicates", "100")
        assert [run(*both)[1]["GET"] for _ in range(2)] == [0, 0], "both were verified here"
        forget()
        assert [run(*both)[1]["GET"] for _ in range(2)] == [4, 0], "proof and archive of each"
        image = str(known_data.parent / "images/0.png")
        predict = ("predict", "models:/shapes/2", image, "--out", str(tmp_path / "found"))
        assert [run(*predict)[1]["GET"] for _ in range(2)] == [2, 0], "weights and card"

        proxy.ending, proxy.plan = ARCHIVE_NAME, ["503", "503", "reset", "503", "truncate"]
        forget()
        assert run(*both)[0] == 0 and not proxy.plan
        monkeypatch.setattr(mlflow_store, "PATIENCE_SECONDS", 1.0)
        monkeypatch.setattr(version_files, "PATIENCE_SECONDS", 1.0)
        proxy.for_ever = "503"
        for command in (("registry", "verify", "shapes/2"), both, ("registry", "show", "shapes/2")):
            forget()
            assert run(*command)[0] == 1
            assert "such a failure may be temporary: run the same command again" in capsys.readouterr().err
        proxy.for_ever = None

        (archive,) = (path for path in (tmp_path / "server").rglob(ARCHIVE_NAME) if not _holds_onnx(path.parent))
        assert run("registry", "verify", "shapes/2", "--device", "cpu")[0] == 0
        with unpacked(archive.parent):
            code_file = next((archive.parent / "code").rglob("nms.py"))
            code_file.write_text(code_file.read_text() + "import os\n")
        assert run("registry", "verify", "shapes/2", "--device", "cpu")[0] == 1, "what is verified is on the server"
    finally:
        proxy.close()


def _holds_onnx(folder: Path) -> bool:
    return (folder / "data/detector/model.onnx").is_file()
