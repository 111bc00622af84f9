"""What travels with a job, what stays behind, and following over a connection that breaks anywhere."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import yolofleet
from yolofleet.cli.doctor import job_of
from yolofleet.cli.jobs import exit_code
from yolofleet.cluster.bundle import (
    MODEL_NAME,
    SPEC_NAME,
    VERSIONS_NAME,
    Bundle,
    differences,
    installed_versions,
    read_bundle,
)
from yolofleet.cluster.follow import follow
from yolofleet.cluster.sent_job import SentJob
from yolofleet.cluster.service import NoSuchJobError, _check_address
from yolofleet.core.errors import UserError, WorkError
from yolofleet.models.zoo import load_table
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec

JOB: dict[str, Any] = {
    "name": "shapes",
    "model": {"name": "yolov7-tiny"},
    "data": {"train": "s3://data/train", "val": "shards/val"},
    "storage": "s3://runs",
}
RUNNING = SentJob("yolofleet-x-1", "x", "d", "RUNNING", None, "", 1.0, None)


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(JOB | changes))
    return file


def test_spec_package_and_versions_travel_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-7c1d")
    (tmp_path / "secret.txt").write_text("canary-7c1d")
    bundle = read_bundle(written(tmp_path), ["epochs=7"])
    out = tmp_path / "out"
    out.mkdir()
    bundle.write(out)
    assert {path.name for path in out.iterdir()} == {SPEC_NAME, VERSIONS_NAME, "yolofleet"}
    assert "canary-7c1d" not in "".join(path.read_text() for path in out.rglob("*") if path.is_file())
    job = JobSpec.load(out / SPEC_NAME)
    assert job.epochs == 7
    assert Path(job.data.val).is_absolute()
    assert (out / "yolofleet/models/zoo/yolov7.yaml").is_file() and (
        out / "yolofleet/cli/remote_entrypoint.py"
    ).is_file()
    assert not list(out.rglob("*.pyc"))


def test_every_file_of_the_package_travels(tmp_path: Path) -> None:
    (sent := tmp_path / "sent").mkdir()
    read_bundle(written(tmp_path), []).write(sent)
    source = Path(yolofleet.__file__).parent
    ours = {file for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert [file for file in ours if not (sent / "yolofleet" / file.relative_to(source)).is_file()] == []


def test_a_models_own_table_travels_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: narrow\nbase: yolov7-tiny\ntransition_width: 0.5\n")
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: base.yaml\n")
    bundle = read_bundle(written(tmp_path, model={"spec": str(tmp_path / "mine.yaml")}), [])
    out = tmp_path / "out"
    out.mkdir()
    bundle.write(out)
    assert load_table(out / MODEL_NAME) == load_table(tmp_path / "mine.yaml"), "with what it is derived from"
    assert JobSpec.load(out / SPEC_NAME).model.spec == MODEL_NAME
    with pytest.raises(UserError, match=r"model\.spec: .*gone.yaml: no such file"):
        read_bundle(written(tmp_path, model={"spec": "gone.yaml"}), [])


def test_a_search_travels_with_its_base_job(tmp_path: Path) -> None:
    written(tmp_path)
    space = tmp_path / "space.yaml"
    parameters = {"hyperparameters.lr0": {"log_uniform": [0.001, 0.01]}}
    space.write_text(
        yaml.safe_dump({"name": "s", "job": "job.yaml", "parameters": parameters, "budget": {"trials": 1}})
    )
    bundle = read_bundle(space, [])
    assert (bundle.kind, bundle.name, bundle.document["job"]["name"]) == ("tune", "s", "shapes")
    for choice in (["a.yaml", "b.yaml"], {"a": {"model": {"spec": "a.yaml"}}, "b": {"epochs": 2}}):
        of_files = {"name": "s", "job": "job.yaml", "parameters": {"model.spec": {"choice": choice}}}
        space.write_text(yaml.safe_dump(of_files | {"budget": {"trials": 1}}))
        with pytest.raises(UserError, match=r"parameters\.model\.spec chooses among model specs of this machine"):
            read_bundle(space, [])


@pytest.mark.parametrize("where", ["set", "an override"])
def test_what_a_search_sets_in_its_job_travels_as_the_job_does(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths become absolute, files are sent or refused, and what reads the job alone (the doctor) reads it, too."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, model={"spec": "of_another.yaml"})
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: yolov7-tiny\n")
    (tmp_path / "old.pt").write_bytes(b"x")

    def sent(fields: dict[str, Any]) -> Bundle:
        space = {"name": "s", "job": "job.yaml", "parameters": {"epochs": {"choice": [1, 2]}}, "budget": {"trials": 1}}
        overrides = [f"job.{key}={value}" for key, value in fields.items()] if where != "set" else []
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space | ({"set": fields} if where == "set" else {})))
        return read_bundle(tmp_path / "space.yaml", overrides)

    bundle = sent({"storage": "runs", "model.spec": "mine.yaml", "cluster.workers": 3})
    (out := tmp_path / "out").mkdir()
    bundle.write(out)
    assert bundle.directory == str(tmp_path / "runs" / "s")
    assert load_table(out / MODEL_NAME) == load_table(tmp_path / "mine.yaml"), "with what it is derived from"
    search = SearchSpec.load(out / SPEC_NAME)
    assert search.set == {} and search.parameters.keys() == {"epochs"}
    job = job_of(bundle.document)
    assert (job.storage, job.model.spec, job.cluster.workers) == (str(tmp_path / "runs"), MODEL_NAME, 3)
    with pytest.raises(UserError, match="a file of this machine is not sent with the job"):
        sent({"model.spec": "mine.yaml", "initial_weights": "old.pt"})


def test_the_same_spec_has_the_same_digest(tmp_path: Path) -> None:
    first, again, other = (read_bundle(written(tmp_path), extra).digest for extra in ([], [], ["epochs=3"]))
    assert first == again != other


@pytest.mark.parametrize("key", ["tracking.uri", "storage", "data.train"])
def test_a_password_in_a_url_stays_here(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{key}: http://\*\*\*@host/x holds a secret") as refusal:
        read_bundle(written(tmp_path), [f"{key}=http://me:canary@host/x"])
    assert "canary" not in str(refusal.value)


def test_weights_of_this_machine_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="a file of this machine is not sent with the job"):
        read_bundle(written(tmp_path, initial_weights=str(tmp_path / "old.pt")), [])
    for name in ("shapes@champion", "shapes/3", "models:/shapes@champion"):
        sent = read_bundle(written(tmp_path, name="fine", initial_weights=None), [f"initial_weights={name}"])
        assert sent.document["initial_weights"] == f"models:/{name.removeprefix('models:/')}"


def test_versions_differ_by_name() -> None:
    found = installed_versions()
    assert differences(found, found) == []
    assert differences({"torch": "9"}, {}) == ["torch: 9 where the job was sent from, not installed here"]
    assert not any("+" in version for version in found.values())


@pytest.mark.parametrize("address", ["auto", "ray://host:10001", "127.0.0.1:8265", "http://"])
def test_what_is_no_dashboard_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="it looks like http://HOST:8265"):
        _check_address(address)


@pytest.mark.parametrize(
    ("status", "code", "ours"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 1)]
)
def test_the_exit_code_is_the_jobs(status: str, code: int | None, ours: int) -> None:
    assert exit_code(replace(RUNNING, status=status, exit_code=code)) == ours


class Breaking:
    """A cluster whose connection breaks after so many characters of each answer; then the job ends."""

    address = "http://cluster"

    def __init__(self, text: str, breaks: list[int], size: int) -> None:
        self.text, self.breaks, self.size = text, breaks, size

    async def tail(self, job: SentJob) -> AsyncIterator[str]:
        limit = self.breaks.pop(0) if self.breaks else None
        for start in range(0, len(self.text), self.size):
            if limit is not None and start >= limit:
                raise OSError("the cable was cut")
            yield self.text[start : start + self.size]

    def job(self, name: str) -> SentJob:
        return replace(RUNNING, status="SUCCEEDED", exit_code=0)

    def logs(self, job: SentJob) -> str:
        return self.text + "last words\n"


@settings(max_examples=60)
@given(
    text=st.text(alphabet="ab\nü", max_size=80),
    breaks=st.lists(st.integers(0, 80), max_size=5),
    size=st.integers(1, 20),
)
def test_no_character_is_lost_or_doubled_however_often_the_connection_breaks(
    text: str, breaks: list[int], size: int
) -> None:
    shown: list[str] = []
    service: Any = Breaking(text, list(breaks), size)
    ended = follow(service, RUNNING, shown.append, lambda line: None, retry_seconds=0.0)
    assert "".join(shown) == text + "last words\n"
    assert ended.status == "SUCCEEDED"


class Interrupted(Breaking):
    """A cluster from which a piece comes in the very moment of a Ctrl-C; then nothing more."""

    async def tail(self, job: SentJob) -> AsyncIterator[str]:
        piece: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def both() -> None:
            piece.set_result(self.text)
            signal.raise_signal(signal.SIGINT)

        asyncio.get_running_loop().call_later(0.05, both)
        yield await piece
        await asyncio.sleep(20)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let a Ctrl-C interrupt, as in a shell; who runs tests in several processes may have them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_ctrl_c_is_not_lost_when_a_piece_comes_with_it() -> None:
    service: Any = Interrupted("x", [], 1)
    with pytest.raises(KeyboardInterrupt):
        follow(service, RUNNING, lambda text: None, lambda line: None, quiet_seconds=5.0)


class Forgetful(Breaking):
    """A cluster that was started anew after the connection broke; it may have another job of that name."""

    began: float | None = None

    def job(self, name: str) -> SentJob:
        if self.began is None:
            raise NoSuchJobError(f"{name}: no such job")
        return replace(RUNNING, began=self.began)


@pytest.mark.parametrize("began", [None, 1e9])
def test_a_cluster_that_was_started_anew_is_distinguished_from_one_that_does_not_answer(began: float | None) -> None:
    service: Any = Forgetful("what another job prints", [1], 1)
    service.began = began
    shown: list[str] = []
    with pytest.raises(WorkError, match=r"no longer knows yolofleet-x-1: .*Send it again"):
        follow(service, RUNNING, shown.append, lambda text: None, retry_seconds=0.0)
    assert shown == ["w"]


def test_a_cluster_that_never_answers_again_is_given_up_and_the_job_named() -> None:
    service: Any = Breaking("x", [0] * 1000, 1)
    warnings: list[str] = []
    with pytest.raises(WorkError, match="the job may still run: yolofleet jobs logs yolofleet-x-1 --follow"):
        follow(service, RUNNING, lambda text: None, warnings.append, patience_seconds=0.05, retry_seconds=0.01)
    assert len(warnings) == 1
    assert "http://cluster is lost; trying again. If the cluster's head has ended, so has the job" in warnings[0]
