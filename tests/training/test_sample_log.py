from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.storage import StorageError, open_storage
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.sample_log import (
    FOLDER,
    SampleLog,
    SkippedSamples,
    format_skips,
    read_skipped,
    remove_rows_from,
    skipped_document,
    store_skips,
)
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker


class Batch:
    """What a sample log looks at."""

    def __init__(self, step: int, index: int, skipped: list[tuple[str, str]]) -> None:
        self.step, self.index, self.skipped = step, index, skipped


def observed(folder: Path, rank: int, batches: list[Batch]) -> None:
    log = SampleLog(open_storage(folder), rank, record_digests=False)
    for batch in batches:
        log.observe(batch)  # type: ignore[arg-type]  # as much of a MicroBatch as it needs
    log.close()


def test_skips_are_summed_over_workers_and_starts(tmp_path: Path) -> None:
    damaged, unknown = ("b", "image_damaged"), ("a", "image_unknown")
    observed(tmp_path, 0, [Batch(0, 0, [damaged]), Batch(1, 0, []), Batch(2, 0, [damaged])])
    observed(tmp_path, 1, [Batch(0, 1, [unknown]), Batch(2, 1, [unknown, ("c", "image_unknown")])])
    found = SkippedSamples(open_storage(tmp_path))
    found.update()
    found.update()
    assert found.total == 5
    remove_rows_from(open_storage(tmp_path).child(FOLDER), 2)  # a start at step 2, now with one worker
    observed(tmp_path, 0, [Batch(2, 0, [damaged]), Batch(2, 1, [unknown, ("c", "image_unknown")])])
    again = SkippedSamples(open_storage(tmp_path))
    again.update()
    assert (
        again.document(24)
        == found.document(24)
        == {
            "skipped": 5,
            "seen": 24,
            "share": 5 / 24,
            "reasons": {
                "image_unknown": {"count": 3, "samples": 2, "keys": {"a": 2, "c": 1}},
                "image_damaged": {"count": 2, "samples": 1, "keys": {"b": 2}},
            },
        }
    )


def test_the_report_goes_to_the_run_directory_and_the_metrics(tmp_path: Path) -> None:
    observed(tmp_path, 0, [Batch(0, 0, [("a", "image_empty")])])
    skipped = SkippedSamples(open_storage(tmp_path))
    skipped.update()
    with RunDirectory(open_storage(tmp_path)) as run:
        skipped.write_report(run, step=1, num_seen=8)
        run.flush()
        assert run.metrics()[-1]["skipped_image_empty"] == 1
    assert read_skipped(open_storage(tmp_path)) == skipped.document(8)


def test_a_report_is_one_line_for_people(tmp_path: Path) -> None:
    assert format_skips(read_skipped(open_storage(tmp_path))) == "none"
    pairs = [(f"key-{number}", "image_damaged") for number in range(5)] + [("x", "sample_lost")]
    text = format_skips(skipped_document(pairs, 1200))
    assert text == ("6 of 1,200 (0.50%): image_damaged x 5 (key-0, key-1, key-2 and 2 more); sample_lost x 1 (x)")


class AwayOnce:
    """A method that gets no answer from the storage in one of its calls."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, method: str, call: int) -> None:
        self.calls = 0
        answer = getattr(owner, method)

        def ask(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == call:
                raise StorageError("gave no answer", transient=True)
            return answer(*arguments)

        patch.setattr(owner, method, ask)


@pytest.mark.parametrize(("owner", "method", "call"), [(SampleLog, "flush", 2), (SkippedSamples, "update", 3)])
def test_a_storage_that_does_not_answer_costs_a_checkpoint_and_not_the_run(
    owner: type, method: str, call: int, small_job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    AwayOnce(monkeypatch, owner, method, call)  # a start counts once, too
    job = small_job()
    run = check_job(job).run
    assert run_worker(job, WorkerGroup()).step == 8
    kinds = {event["step"]: event["kind"] for event in run.events() if event["kind"].startswith("checkpoint")}
    assert kinds == {step: "checkpoint" if step != 2 else "checkpoint_failed" for step in range(1, 9)}


def test_the_last_checkpoint_is_stored_or_the_run_does_not_end(
    small_job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job()
    run = check_job(job).run
    AwayOnce(monkeypatch, SkippedSamples, "update", call=9)
    with pytest.raises(StorageError, match="no answer"):
        run_worker(job, WorkerGroup())
    assert not check_job(job).finished and run.status() == "RUNNING"
    assert run_worker(job, WorkerGroup()).step == 8 and check_job(job).finished


class OneOfTwo(WorkerGroup):
    """A worker whose partner could not store its log."""

    def sum(self, tensor: Any) -> None:
        tensor += 1


def test_no_worker_takes_a_log_for_stored_that_another_one_could_not_store(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, "run")
    for rank in range(2):
        log = SampleLog(run.storage, rank, record_digests=False)
        failure = store_skips(log, SkippedSamples(run.storage), run, OneOfTwo(rank, 2), 1, 8)
        assert failure is not None and failure.transient and "another worker" in str(failure)


@pytest.mark.parametrize(
    "content",
    [
        *(b"nojson", b"[1]", b"[" * 9000, b'{"skipped": 1}'),
        b'{"skipped": 1, "seen": 1, "share": 1.0, "reasons": {"x": 1}}',
        b'{"skipped": 1, "seen": 1, "share": 1.0, "reasons": {"x": {"count": 1, "samples": "b", "keys": {}}}}',
    ],
)
def test_a_strange_report_of_skipped_samples_is_damaged(tmp_path: Path, content: bytes) -> None:
    storage = open_storage(tmp_path)
    storage.put("report/skipped.json", content)
    with pytest.raises(UserError, match=r"skipped\.json: is damaged"):
        read_skipped(storage)


def test_what_was_skipped_is_told_on_one_line() -> None:
    entry = {"count": 1, "samples": 1, "keys": {"a\nerror: forged": 1}}
    document = {"skipped": 1, "seen": 2, "share": 0.5, "reasons": {"x\ny": entry}}
    assert "\n" not in format_skips(document)
