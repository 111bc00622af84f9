"""The mirror loses nothing, doubles nothing, waits for nobody and can be rebuilt."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yolofleet.storage import StorageError, open_storage
from yolofleet.tracking.mirror import Mirror, sync_now
from yolofleet.tracking.mirrored_run import MADE_TAG, flat_params, numbers, unix_milliseconds
from yolofleet.tracking.mlflow_store import default_tracking_uri, open_client
from yolofleet.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.system

EXPERIMENT = "shapes / first try"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database: making its tables takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    open_client(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def storage_folder(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A storage folder whose store exists already; nothing may appear in the current folder."""
    runs = tmp_path / "runs with spaces"
    (runs / "_mlflow").mkdir(parents=True)
    shutil.copy(empty_store, runs / "_mlflow" / "mlflow.db")
    current = tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    yield runs
    assert list(current.iterdir()) == []


def new_run(storage_folder: Path, num_steps: int) -> RunDirectory:
    run = RunDirectory.open(storage_folder, "demo")
    run.write_job("name: demo\ndata: {train: shapes, image_size: 64}\nworkers: [1, 2]\n")
    origin = {"user": "ada", "host": "node-1", "command": "yolofleet train demo.yaml"}
    run.record_facts(data={"train": "0a1b"}, started=origin | {"commit": "c0ffee", "branch": "main"})
    run.append_event("start")
    for step in range(1, num_steps + 1):
        run.append_metrics({"step": step, "loss/box": 1 / step, "phase": "warm-up", "AP(50)": 0.5})
    run.storage.put("report/detections.png", b"picture")
    run.flush()
    return run


def history(uri: str, run_id: str, key: str = "loss/box") -> list[int]:
    return [metric.step for metric in open_client(uri).get_metric_history(run_id, key)]


def uri_of(storage_folder: Path) -> str:
    uri = default_tracking_uri(str(storage_folder))
    assert uri is not None
    return uri


def wait_until(condition: Callable[[], object], timeout_seconds: float = 30.0) -> None:
    end = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_evaluations_that_come_late_arrive_once(storage_folder: Path) -> None:
    """Beside the training they take their time; another one may have been made by the workers meanwhile."""
    run, uri = new_run(storage_folder, 300), uri_of(storage_folder)
    driver = RunDirectory.open(storage_folder, "demo", source="driver")
    run.append_metrics({"step": 300, "val_AP": 0.3})
    run_id = sync_now(run, uri, EXPERIMENT)
    driver.append_metrics({"step": 100, "val_AP": 0.1})
    driver.append_metrics({"step": 100, "val_AP": 0.1, "note": "judged twice"})
    sync_now(run, uri, EXPERIMENT)
    driver.append_metrics({"step": 200, "val_AP": 0.2})
    mirrored = Mirror(run, uri, EXPERIMENT)
    mirrored.start()
    assert mirrored.close()
    sync_now(run, uri, EXPERIMENT)
    assert sorted(history(uri, run_id, "val/AP")) == [100, 200, 300]
    assert history(uri, run_id) == list(range(1, 301))


def test_everything_arrives_once(storage_folder: Path) -> None:
    run, uri = new_run(storage_folder, 1200), uri_of(storage_folder)
    run_id = sync_now(run, uri, EXPERIMENT)
    client = open_client(uri)
    found = client.get_run(run_id)
    assert found.data.params == {"name": "demo", "data.train": "shapes", "data.image_size": "64", "workers": "[1, 2]"}
    tags = dict(found.data.tags)
    assert tags.pop("mlflow.note.content").startswith("**demo**: training")
    assert int(tags.pop(MADE_TAG)) > 0
    assert tags == {
        "yolofleet.run_id": run.identity,
        "yolofleet.run_directory": run.url,
        "mlflow.runName": "demo",
        "mlflow.user": "ada",
        "mlflow.source.name": "yolofleet train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c0ffee",
        "mlflow.source.git.branch": "main",
        "user": "ada",
        "host": "node-1",
        "command": "yolofleet train demo.yaml",
        "commit": "c0ffee",
        "branch": "main",
    }
    assert [
        (entry.dataset.name, entry.dataset.digest, entry.tags[0].value) for entry in found.inputs.dataset_inputs
    ] == [("shapes", "0a1b", "training")]
    assert client.get_experiment(found.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    assert found.data.metrics == {"loss/box": pytest.approx(1 / 1200), "AP_50_": 0.5}
    assert found.info.status == "RUNNING"
    assert found.info.start_time == unix_milliseconds(run.events()[0]["time"])
    paths = {item.path for item in client.list_artifacts(run_id)} | {
        item.path for item in client.list_artifacts(run_id, "report")
    }
    assert paths == {"job.yaml", "facts.json", "events.jsonl", "report", "report/detections.png"}
    assert history(uri, run_id) == list(range(1, 1201))
    assert sync_now(RunDirectory.open(storage_folder, "demo"), uri, EXPERIMENT) == run_id
    assert history(uri, run_id) == list(range(1, 1201))


ROW = {"loss": 0.5, "loss_box": 0.25, "learning_rate": 0.01, "samples_per_second": 9.0, "skipped_image_damaged": 1}
GROUPED = {"loss/total", "loss/box", "schedule/learning_rate", "system/samples_per_second"}
GROUPED |= {"system/skipped_image_damaged", "val/AP", "loss/val_loss"}


def add_evaluations(run: RunDirectory) -> None:
    """Add what a run leaves: rows, images of its evaluations, two checkpoints, of which one was evaluated."""
    for step in (10, 20):
        run.append_metrics({"step": step, **ROW})
        run.append_metrics({"step": step, "val_AP": step / 100, "val_loss": 0.5})
        for number in range(2):
            jpeg = io.BytesIO()
            Image.new("RGB", (8, 4), (step, 0, number)).save(jpeg, "JPEG")
            run.storage.put(f"report/evaluations/step-{step}/{number:02d}.jpg", jpeg.getvalue())
    for step in (20, 30):
        run.storage.put(f"checkpoints/step-{step}/COMMITTED", b"{}")
    run.append_event("end")
    run.flush()


def test_metrics_have_groups_and_evaluations_their_images_and_models(storage_folder: Path) -> None:
    run, uri = new_run(storage_folder, 0), uri_of(storage_folder)
    add_evaluations(run)
    run_id = sync_now(run, uri, EXPERIMENT)
    assert sync_now(RunDirectory.open(storage_folder, "demo"), uri, EXPERIMENT) == run_id
    client = open_client(uri)
    found = client.get_run(run_id)
    assert found.data.metrics.keys() == GROUPED
    assert history(uri, run_id, "val/AP") == [10, 20]
    images = [item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    assert sorted(re.findall(r"image-(\d+)[+%]step[+%](\d+)", " ".join(images))) == [
        ("00", "10"), ("00", "20"), ("01", "10"), ("01", "20"),
    ]  # fmt: skip
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert (model.name, model.status, model.source_run_id) == ("step-20", "READY", run_id)
    assert {metric.key: metric.value for metric in model.metrics} == {"val/AP": 0.2, "loss/val_loss": 0.5}
    assert "AP 0.2000 at the newest evaluation" in found.data.tags["mlflow.note.content"]


def test_a_run_of_an_older_version_keeps_the_names_of_its_metrics(storage_folder: Path) -> None:
    run, uri = new_run(storage_folder, 0), uri_of(storage_folder)
    run_id = sync_now(run, uri, EXPERIMENT)
    open_client(uri).log_metric(run_id, "val_AP", 0.1, step=10)
    add_evaluations(run)
    sync_now(run, uri, EXPERIMENT)
    assert history(uri, run_id, "val_AP") == [10, 20]
    assert not history(uri, run_id, "val/AP")


def test_hours_and_cost_are_metrics_at_every_checkpoint_once(storage_folder: Path) -> None:
    run, uri = new_run(storage_folder, 4), uri_of(storage_folder)
    run.append_event("start", workers=2, gpus_per_worker=4.0, price_per_hour=30.0)
    run.append_event("checkpoint", step=2)
    run_id = sync_now(run, uri, EXPERIMENT)
    run.append_event("checkpoint", step=4)
    for _ in range(2):
        sync_now(run, uri, EXPERIMENT)
    assert history(uri, run_id, "system/gpu_hours") == history(uri, run_id, "system/cost") == [2, 4]
    before, after = (metric.value for metric in open_client(uri).get_metric_history(run_id, "system/worker_hours"))
    assert 0 <= before <= after


def test_artifacts_lie_beside_the_database(storage_folder: Path) -> None:
    sync_now(new_run(storage_folder, 1), uri_of(storage_folder), EXPERIMENT)
    assert list((storage_folder / "_mlflow" / "artifacts").rglob("detections.png"))


def test_a_resumed_run_sends_no_step_twice(storage_folder: Path) -> None:
    run, uri = new_run(storage_folder, 8), uri_of(storage_folder)
    run_id = sync_now(run, uri, EXPERIMENT)
    run.close()
    again = RunDirectory.open(storage_folder, "demo")
    again.truncate_metrics_after(5)
    again.append_event("start", step=5)
    for step in range(6, 13):
        again.append_metrics({"step": step, "loss/box": 1 / step})
    again.append_event("end")
    again.close()
    assert sync_now(again, uri, EXPERIMENT) == run_id
    assert history(uri, run_id) == list(range(1, 13))
    assert open_client(uri).get_run(run_id).info.status == "FINISHED"


def test_a_resumed_run_is_running_again(storage_folder: Path) -> None:
    run, uri = new_run(storage_folder, 1), uri_of(storage_folder)
    for kind, status in (("failed", "FAILED"), ("start", "RUNNING"), ("stopped", "KILLED")):
        run.append_event(kind)
        run.flush()
        assert open_client(uri).get_run(sync_now(run, uri, EXPERIMENT)).info.status == status


def test_a_batch_whose_answer_was_lost_is_not_doubled(storage_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    run, uri = new_run(storage_folder, 2500), uri_of(storage_folder)
    log_batch, calls = mlflow.MlflowClient.log_batch, []

    def losing(self: Any, *arguments: Any, **named: Any) -> None:
        log_batch(self, *arguments, **named)
        calls.append(named)
        if len(calls) in (3, 4):
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", losing)
    mirror = Mirror(run, uri, EXPERIMENT, poll_seconds=0.01)
    mirror.start()
    wait_until(lambda: len(calls) > 6)
    assert mirror.close()
    assert mirror.run_id is not None
    assert history(uri, mirror.run_id) == list(range(1, 2501))


def test_a_server_that_is_away_and_comes_back(storage_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    run, uri = new_run(storage_folder, 5), uri_of(storage_folder)
    noted: list[tuple[str, dict[str, Any]]] = []
    mirror = Mirror(
        run, uri, EXPERIMENT, poll_seconds=0.02, on_event=lambda kind, **fields: noted.append((kind, fields))
    )
    mirror.start()
    wait_until(lambda: mirror.run_id)
    attempts: list[int] = []

    def refused(*_: Any, **__: Any) -> None:
        attempts.append(1)
        raise ConnectionError("nobody there")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", refused)
        for step in range(6, 20):
            begin = time.monotonic()
            run.append_metrics({"step": step, "loss/box": 1 / step})
            assert time.monotonic() - begin < 1.0
        wait_until(lambda: len(attempts) > 2)
    for step in range(20, 30):
        run.append_metrics({"step": step, "loss/box": 1 / step})
    run.flush()
    assert mirror.close()
    assert mirror.run_id is not None
    assert history(uri, mirror.run_id) == list(range(1, 30))
    assert [kind for kind, _ in noted] == ["tracking_away", "tracking_back"]
    assert "nobody there" in noted[0][1]["reason"] and noted[1][1]["seconds"] > 0


def test_a_storage_that_is_away_as_well_does_not_end_the_mirror(
    storage_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    def not_now(kind: str, **fields: Any) -> None:
        told.append(kind)
        raise StorageError("the store is down", transient=True)

    told: list[str] = []
    run, uri = new_run(storage_folder, 5), uri_of(storage_folder)
    mirror = Mirror(run, uri, EXPERIMENT, poll_seconds=0.02, on_event=not_now)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
        mirror.start()
        wait_until(lambda: told)
    assert mirror.close()
    assert mirror.run_id is not None
    assert history(uri, mirror.run_id) == [1, 2, 3, 4, 5]


def test_closing_does_not_wait_for_a_server_that_hangs(
    storage_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    run, uri = new_run(storage_folder, 2), uri_of(storage_folder)
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: time.sleep(5))
    mirror = Mirror(run, uri, EXPERIMENT)
    mirror.start()
    assert mirror.close(timeout_seconds=0.2) is False
    assert "--sync" in caplog.text
    monkeypatch.undo()
    run_id = sync_now(run, uri, EXPERIMENT)
    assert history(uri, run_id) == [1, 2]


def test_a_lost_store_is_rebuilt(storage_folder: Path, empty_store: Path, tmp_path: Path) -> None:
    run, uri = new_run(storage_folder, 7), uri_of(storage_folder)
    first = sync_now(run, uri, EXPERIMENT)
    second = sync_now(run, uri, EXPERIMENT, rebuild=True)
    assert first != second
    assert history(uri, second) == list(range(1, 8))
    shutil.copy(empty_store, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    assert history(other, sync_now(run, other, EXPERIMENT)) == list(range(1, 8))


def test_a_moved_run_directory_is_the_same_run(storage_folder: Path) -> None:
    uri = uri_of(storage_folder)
    run_id = sync_now(new_run(storage_folder, 2), uri, EXPERIMENT)
    (storage_folder / "demo").rename(storage_folder / "renamed")
    moved = RunDirectory(open_storage(storage_folder / "renamed"))
    assert sync_now(moved, uri, EXPERIMENT) == run_id


def test_a_sync_while_the_mirror_runs_meets_the_same_run(storage_folder: Path) -> None:
    run, uri = new_run(storage_folder, 50), uri_of(storage_folder)
    mirror = Mirror(run, uri, EXPERIMENT, poll_seconds=0.01)
    mirror.start()
    run_id = sync_now(run, uri, EXPERIMENT)
    assert mirror.close()
    assert mirror.run_id == run_id
    assert history(uri, run_id) == list(range(1, 51))


def test_two_that_make_the_run_at_once_agree(storage_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    run, uri = new_run(storage_folder, 3), uri_of(storage_folder)
    create_run, made = mlflow.MlflowClient.create_run, []

    def overtaken(self: Any, *arguments: Any, **named: Any) -> Any:
        if not made:
            earlier = named | {"tags": named["tags"] | {MADE_TAG: str(int(named["tags"][MADE_TAG]) - 1)}}
            made.append(create_run(self, *arguments, **earlier).info.run_id)
        return create_run(self, *arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", overtaken)
    assert sync_now(run, uri, EXPERIMENT) == made[0]
    assert history(uri, made[0]) == [1, 2, 3]


def test_only_finite_names_and_numbers_reach_mlflow() -> None:
    row = {"step": 3, "time": "x", "a": 1, "b": True, "c": "text", "d": None, "AP of <tree>": 0.5}
    assert dict(numbers(row)) == {"a": 1.0, "AP of _tree_": 0.5}
    assert flat_params({"a": {"b": [1, None]}, "c": None, "d": "xyz"}, longest=9) == {"a.b": "[1, null]", "d": "xyz"}
