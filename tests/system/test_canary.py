"""Secrets of the environment are found nowhere afterwards: not in files, output, what is sent, or MLflow's database."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster.fake_jobs import fake_jobs
from system.shell import Shell, write_job
from yolofleet.cli.main import main
from yolofleet.storage import StorageError, open_storage

pytestmark = pytest.mark.system
CANARY = "canary4f1d9c77e2"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": f"aws-{CANARY}",
    "AWS_SESSION_TOKEN": f"session-{CANARY}",
    "MLFLOW_TRACKING_USERNAME": "someone",
    "MLFLOW_TRACKING_PASSWORD": f"mlflow-{CANARY}",
    "MLFLOW_TRACKING_TOKEN": f"token-{CANARY}",
    "MLFLOW_TRACKING_URI": f"http://someone:{CANARY}@127.0.0.1:9",
    "PGPASSWORD": f"pg-{CANARY}",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": CANARY.ljust(64, "0"),
    "AWS_ENDPOINT_URL": f"http://someone:{CANARY}@127.0.0.1:9",
    "AWS_REGION": "us-east-1",
}
LOGIN = f"someone:{CANARY}@127.0.0.1"
S3 = {"storage": "s3://runs", "data": {"train": "s3://data/train", "val": "s3://data/val", "image_size": 64}}


@dataclass
class Trusted:
    """Runs commands in this process, which has the secrets, as a user's and a node's have them."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> tuple[int, str]:
        """Return a command's exit code, and everything that it printed."""
        code = main(list(arguments))
        captured = self.capture.readouterr()
        return code, captured.out + captured.err


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trusted:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.chdir(tmp_path)
    return Trusted(tmp_path, capsys)


def holders(folder: Path) -> list[str]:
    """The files below a folder that hold the canary, its name or as bytes anywhere (databases, archives' members)."""
    found = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    return [str(path.relative_to(folder)) for path in found]


def check(told: Iterable[str]) -> None:
    for text in told:
        assert CANARY not in text, text[max(0, text.find(CANARY) - 300) : text.find(CANARY) + 40]


def test_a_job_that_is_sent_takes_no_secret_along(trusted: Trusted, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_job(trusted.folder, Path("nowhere"), **S3)
    with fake_jobs() as jobs:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", jobs.address)
        told = []
        for command in (["submit", str(job)], ["jobs", "list"], ["jobs", "list", "--json"], ["jobs", "show", "small"]):
            code, printed = trusted.run(*command)
            assert code == 0, printed
            told.append(printed)
        (request,) = jobs.requests
        assert request["entrypoint"] == "python -m yolofleet.cli.remote_entrypoint train"
        sent = list(jobs.texts())
        assert any("s3://runs" in text for text in sent), "the archive was looked into"
        assert set(request["runtime_env"]) <= {"working_dir", "env_vars", "_ray_commit"}
        check([*sent, *told])
    assert holders(trusted.folder) == []


def test_what_is_rendered_holds_no_secret(trusted: Trusted) -> None:
    job = write_job(trusted.folder, Path("nowhere"), tracking={"uri": "http://mlflow:5000"}, **S3)
    code, printed = trusted.run("cluster", "render", str(job), "kubernetes.images.cpu=r/y:1", "--out", "run.yaml")
    assert code == 0, printed
    check([printed, (trusted.folder / "run.yaml").read_text()])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tracking.uri", f"http://{LOGIN}:5000"),
        ("tracking.uri", f"postgresql://{LOGIN}/db"),
        ("storage", f"s3://{LOGIN}/runs"),
        ("data.train", f"s3://{LOGIN}/train"),
        ("tracking.url", f"http://{LOGIN}:5000"),
        ("epochs", f"http://{LOGIN}"),
    ],
)
def test_a_spec_with_a_password_is_refused_and_the_password_not_repeated(
    field: str, value: str, trusted: Trusted
) -> None:
    job = write_job(trusted.folder, Path("nowhere"))
    for command in (["train"], ["submit"], ["cluster", "render"]):
        code, printed = trusted.run(*command, str(job), f"{field}={value}")
        assert code == 2 and field in printed, printed
        check([printed])
    assert holders(trusted.folder) == []


@pytest.mark.parametrize(
    "command",
    [
        ["registry", "list"],
        ["registry", "list", "--tracking-uri", f"postgresql://{LOGIN}:9/db"],
        ["registry", "list", "--tracking-uri", f"mysql://{LOGIN}/db"],
        ["data", "inspect", f"s3://{LOGIN}/train"],
        ["jobs", "list", "--address", f"http://{LOGIN}:9"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_reached_is_told_without_its_password(command: list[str], trusted: Trusted) -> None:
    code, printed = trusted.run(*command)
    assert code in (1, 2) and printed
    check([printed])


def test_an_endpoint_with_a_login_is_told_without_it(trusted: Trusted) -> None:
    storage = open_storage("s3://data/train", patience_seconds=0)
    with pytest.raises(StorageError, match=r"http://\*\*\*@127\.0\.0\.1:9") as refused:
        storage.get("manifest.json")
    check([str(refused.value)])


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for what Ray leaves; its sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["process", "ray"])
def test_a_run_leaves_no_secret_behind(launcher: str, shell: Shell, drawn: Path, ray_folder: Path) -> None:
    shell.environment = SECRETS | {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_TMPDIR": str(ray_folder)}
    job = write_job(shell.folder, drawn, epochs=0.5, cluster__workers=1, tracking={"register_as": "shapes"})
    done = shell.run("train", str(job), "--launcher", launcher, "--json", timeout_seconds=900)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout)
    assert record["model"].startswith("models:/shapes/")
    again = shell.run("report", "runs/small", "--json")
    assert again.returncode == 0, again.stderr
    check([done.stdout, done.stderr, again.stdout, again.stderr])
    assert (shell.folder / "runs/_mlflow/mlflow.db").is_file(), "MLflow's database is among what is searched"
    assert (launcher == "process") == (not list(ray_folder.rglob("*.log"))), "and so are Ray's logs"
    assert holders(shell.folder) == [] and holders(ray_folder) == []
    assert yaml.safe_load((shell.folder / "runs/small/job.yaml").read_text())["name"] == "small"
