"""Every command of the registry against a real MLflow server, which is all that reaches its database and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.servers import free_port, mlflow_server
from yolofleet.cli.main import main
from yolofleet.core.local_files import CACHE_VARIABLE
from yolofleet.data.dataset import ShardDataset

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
    assert code == 0 and out.startswith("models:/shapes/2  @candidate") and "models:/shapes/1 " in out
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
