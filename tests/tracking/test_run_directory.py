"""The run directory survives kills, disks and object stores without losing or doubling a row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.storage import Storage, StorageError, open_storage
from yolofleet.tracking import json_lines
from yolofleet.tracking.json_lines import CorruptLogError, Cursor, list_parts, read_new_rows, read_rows
from yolofleet.tracking.log_writer import ObjectLogWriter
from yolofleet.tracking.run_directory import METRICS_LOGS, RunDirectory

NewStorage = Callable[[], Storage]


def steps(run: RunDirectory) -> list[int]:
    return [row["step"] for row in run.metrics()]


def test_rows_come_back_in_order_and_with_a_time(new_storage: NewStorage) -> None:
    with RunDirectory(new_storage()) as run:
        for step in range(5):
            run.append_metrics({"step": step, "loss": 1.0 / (step + 1), "phase": "träin\n"})
    rows = RunDirectory(new_storage()).metrics()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[3]["loss"] == 0.25 and rows[3]["phase"] == "träin\n"
    assert all(row["time"].endswith("Z") for row in rows)


def test_non_finite_numbers_survive_and_the_file_stays_json(tmp_path: Path) -> None:
    with RunDirectory(open_storage(tmp_path)) as run:
        run.append_metrics({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf})
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    (row,) = run.metrics()
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_a_torn_last_line_is_ignored_and_then_repaired(tmp_path: Path) -> None:
    with RunDirectory(open_storage(tmp_path)) as run:
        run.append_metrics({"step": 1})
        run.append_metrics({"step": 2})
    log = tmp_path / "metrics.jsonl"
    whole = log.read_bytes()
    for torn in (b'{"step":3,"los', b'{"step":3}', b"\0\0\0\0", b'\0\0\0\n{"st\n'):
        log.write_bytes(whole + torn)
        assert steps(RunDirectory(open_storage(tmp_path))) == [1, 2]
        with RunDirectory(open_storage(tmp_path)) as again:
            again.append_metrics({"step": 3})
        assert steps(again) == [1, 2, 3]


def test_every_cut_of_a_log_reads_as_a_prefix(tmp_path: Path) -> None:
    with RunDirectory(open_storage(tmp_path)) as run:
        for step in range(3):
            run.append_metrics({"step": step, "text": "ä"})
    log = tmp_path / "metrics.jsonl"
    whole = log.read_bytes()
    for size in range(len(whole) + 1):
        log.write_bytes(whole[:size])
        assert steps(run) == list(range(whole[:size].count(b"\n")))


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step":1}\nrubbish\n{"step":2}\n')
    with pytest.raises(CorruptLogError, match=r"metrics\.jsonl: the line at byte 11.*rubbish"):
        RunDirectory(open_storage(tmp_path)).metrics()


def test_resume_removes_later_steps(new_storage: NewStorage) -> None:
    with RunDirectory(new_storage()) as run:
        for step in range(1, 8):
            run.append_metrics({"step": step, "attempt": 1})
    with RunDirectory(new_storage()) as run:
        run.truncate_metrics_after(4)
        run.append_metrics({"step": 5, "attempt": 2})
    assert steps(run) == [1, 2, 3, 4, 5]
    assert run.metrics()[-1]["attempt"] == 2


def test_a_metrics_row_needs_a_step(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    for wrong in ({}, {"step": -1}, {"step": 1.5}, {"step": True}):
        with pytest.raises(ValueError, match="step"):
            run.append_metrics(wrong)


def test_events_of_two_sources_are_merged_by_time(new_storage: NewStorage) -> None:
    trainer, driver = RunDirectory(new_storage()), RunDirectory(new_storage(), source="driver")
    trainer.append_event("started", step=0)
    driver.append_event("worker_died", rank=1, signal=9)
    trainer.append_event("resumed", step=3)
    trainer.close()
    driver.close()
    events = RunDirectory(new_storage()).events()
    assert {event["kind"] for event in events} == {"started", "worker_died", "resumed"}
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    with pytest.raises(ValueError, match="one of driver, mirror"):
        RunDirectory(new_storage(), source="node-7")


def test_identity_is_made_once(new_storage: NewStorage) -> None:
    assert not RunDirectory(new_storage()).exists()
    first = RunDirectory(new_storage()).identity
    assert RunDirectory(new_storage()).identity == first
    assert RunDirectory(new_storage()).exists()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 2, "id": "x"}')
    with pytest.raises(UserError, match=r"format 2.*upgrade"):
        _ = RunDirectory(open_storage(tmp_path)).identity
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        _ = RunDirectory(open_storage(tmp_path)).identity


def test_job_text_round_trips(new_storage: NewStorage) -> None:
    run = RunDirectory(new_storage())
    assert run.job_text() is None
    run.write_job("name: ä\n")
    assert RunDirectory(new_storage()).job_text() == "name: ä\n"


@pytest.mark.parametrize(
    "text", ["[]", "5", "name: x\nmodel: [1]", "tracking: no", "cluster: 2", "data: [a", "evaluation: x"]
)
def test_a_damaged_job_is_named(tmp_path: Path, text: str) -> None:
    run = RunDirectory(open_storage(tmp_path))
    assert run.job_document() == {}
    run.write_job("name: x\nmodel:\n")
    assert run.job_document() == {"name": "x", "model": None}
    run.write_job(text)
    with pytest.raises(UserError, match=r"job\.yaml.*(a mapping of keys is needed here|not readable as YAML)"):
        run.job_document()


def test_model_is_saved_and_fetched(new_storage: NewStorage, tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "extra").mkdir(parents=True)
    run = RunDirectory(new_storage())
    with pytest.raises(UserError, match="no model yet"):
        run.fetch_model(tmp_path / "copy")
    with pytest.raises(UserError, match=r"detector\.json"):
        run.save_model(package)
    (package / "detector.json").write_text("{}")
    (package / "extra" / "model.safetensors").write_bytes(b"weights")
    run.save_model(package)
    folder = RunDirectory(new_storage()).fetch_model(tmp_path / "copy")
    assert (folder / "extra" / "model.safetensors").read_bytes() == b"weights"
    assert run.has_model()
    (package / "extra" / "model.safetensors").rename(package / "weights.safetensors")
    run.save_model(package)
    folder = run.fetch_model(tmp_path / "second")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["detector.json", "weights.safetensors"]


def test_a_reader_sees_only_what_is_new_and_starts_again_after_a_cut(new_storage: NewStorage) -> None:
    run = RunDirectory(new_storage())
    for step in range(1, 5):
        run.append_metrics({"step": step})
    run.flush()
    reader = run.reader(*METRICS_LOGS)
    assert [row["step"] for row in reader.new_rows()] == [1, 2, 3, 4]
    assert reader.new_rows() == []
    run.append_metrics({"step": 5})
    run.flush()
    assert [row["step"] for row in reader.new_rows()] == [5]
    run.truncate_metrics_after(3)
    for step in range(4, 9):
        run.append_metrics({"step": step, "attempt": 2})
    run.flush()
    assert [row["step"] for row in reader.new_rows()] == [1, 2, 3, 4, 5, 6, 7, 8]
    run.close()


def test_an_object_log_grows_in_bounded_parts(object_storage: Any) -> None:
    storage = object_storage
    writer = ObjectLogWriter(storage, "metrics", part_bytes=200)
    for step in range(100):
        writer.append({"step": step})
    writer.close()
    assert len(list_parts(storage, "metrics")) > 3
    assert max(storage.put_bytes) <= 220
    assert [row["step"] for row in read_rows(storage, "metrics")] == list(range(100))
    again = ObjectLogWriter(storage, "metrics", part_bytes=200)
    again.truncate(lambda row: row["step"] <= 30)
    again.append({"step": 31})
    again.close()
    rows, cursor = read_new_rows(storage, "metrics", Cursor())
    assert [row["step"] for row in rows] == list(range(32))
    assert read_new_rows(storage, "metrics", cursor)[0] == []


def test_an_object_log_copied_to_a_disk_continues_there(tmp_path: Path, object_storage: Any) -> None:
    storage = object_storage
    writer = ObjectLogWriter(storage, "metrics", part_bytes=60)
    for step in range(10):
        writer.append({"step": step})
    writer.close()
    for key, data in storage.objects.items():
        (tmp_path / key).write_bytes(data)
    with RunDirectory(open_storage(tmp_path)) as run:
        run.append_metrics({"step": 10})
    assert steps(run) == list(range(11))


def test_an_object_store_that_is_down_loses_nothing(object_storage: Any) -> None:
    storage = object_storage
    writer = ObjectLogWriter(storage, "metrics", put_interval_seconds=0.01)
    writer.append({"step": 1})
    writer.flush()
    storage.down = True
    writer.append({"step": 2})
    with pytest.raises(StorageError, match="down"):
        writer.flush()
    storage.down = False
    writer.append({"step": 3})
    writer.close()
    assert [row["step"] for row in read_rows(storage, "metrics")] == [1, 2, 3]


def test_rows_that_come_during_a_put_wait_for_the_next_one(object_storage: Any, monkeypatch: Any) -> None:
    writer, put = ObjectLogWriter(object_storage, "metrics"), object_storage.put
    steps = iter(range(1, 100))

    def slow(key: str, data: bytes) -> None:
        writer.append({"step": next(steps)})  # training does not wait for it
        put(key, data)

    monkeypatch.setattr(object_storage, "put", slow)
    writer.append({"step": 0})
    writer.flush()
    assert len(object_storage.put_bytes) == 1
    writer.flush()
    assert [row["step"] for row in read_rows(object_storage, "metrics")] == [0, 1]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(open_storage(tmp_path))
    run.append_metrics({"step": 1})
    real_write = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        if len(data) > 4:
            return real_write(descriptor, data[:-4])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("yolofleet.tracking.log_writer.os.write", half_then_full)
        run.append_metrics({"step": 2})
        run.append_metrics({"step": 3})
        with pytest.raises(StorageError, match="No space"):
            run.flush()
        assert steps(run) == [1]
    run.append_metrics({"step": 4})
    run.close()
    assert steps(run) == [1, 2, 3, 4]


def test_past_faults_of_the_storage_are_an_event(new_storage: Callable[[], Storage]) -> None:
    storage = new_storage()
    with RunDirectory(storage) as run:
        run.append_metrics({"step": 1})
        storage.outages.note_fault("slow down")
        run.append_metrics({"step": 2})
        storage.outages.note_answer()
        run.append_metrics({"step": 3})
        run.append_metrics({"step": 4})
    [event] = RunDirectory(storage).events()
    assert (event["kind"], event["tries"], event["reason"]) == ("storage_back", 1, "slow down")
    assert len(RunDirectory(storage).metrics()) == 4


def test_no_log_or_document_is_reached_through_a_link(tmp_path: Path) -> None:
    victim, root = tmp_path / "victim.txt", tmp_path / "run"
    root.mkdir()
    for name, target in (("events.driver.jsonl", "../victim.txt"), ("facts.json", "../victim.txt")):
        (root / name).symlink_to(target)
    (root / "metrics.jsonl").symlink_to("job.yaml")
    for content in ("{}\n", "important\nlines\n"):
        victim.write_text(content)
        (root / "job.yaml").write_text(content)
        run = RunDirectory(open_storage(root), source="driver")
        for action in (lambda run=run: run.append_event("x"), run.facts, run.events):
            with pytest.raises(StorageError, match="leads out of"):
                action()
        with pytest.raises(StorageError, match="is a link"):
            RunDirectory(open_storage(root)).append_metrics({"step": 1})
        assert victim.read_text() == (root / "job.yaml").read_text() == content
    os.mkfifo(root / "events.jsonl")
    with pytest.raises(StorageError, match="no regular file"):
        RunDirectory(open_storage(root)).append_event("x")


@pytest.mark.parametrize(
    "field",
    [
        *('"step":"abc"', '"step":[1]', '"step":"Infinity"', '"step":-1', '"step":true', f'"step":{10**400}'),
        *('"workers":"many"', '"num_steps":1.5', '"price_per_hour":"x"', '"seconds_lost":[]', '"hosts":5'),
        *('"non_finite_steps":"NaN"', '"data_wait_share":"x"', '"time":{}', '"kind":[1]', f'"loss":{10**30}'),
        *('"a\\nb":1', f'"{"a" * 300}":1'),
    ],
)
def test_a_row_with_a_field_of_another_type_is_named(tmp_path: Path, field: str) -> None:
    run = RunDirectory(open_storage(tmp_path))
    for line in (f'{{"n":1,{field}}}\n', f'{{"n":1,{field}}}\n{{"step":2}}\n'):
        (tmp_path / "metrics.jsonl").write_text(line)
        with pytest.raises(CorruptLogError, match=r"metrics\.jsonl: a row is damaged") as caught:
            run.metrics()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_number_that_is_null_is_no_field(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step":null,"workers":null,"val_AP":null}\n')
    assert RunDirectory(open_storage(tmp_path)).metrics() == [{"val_AP": None}]


@pytest.mark.parametrize("line", [b"[" * 200_000, b'{"a":' * 200_000])
def test_a_line_that_is_nested_deeply_is_no_row(tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step":1}\n' + line + b"\n")
    assert steps(RunDirectory(open_storage(tmp_path))) == [1]
    log.write_bytes(b'{"step":1}\n' + line + b'\n{"step":2}\n')
    with pytest.raises(CorruptLogError, match="the line at byte 11 is not a JSON row"):
        RunDirectory(open_storage(tmp_path)).metrics()


def test_files_of_many_gigabytes_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "facts.json", "run.json", "job.yaml"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
    run = RunDirectory(open_storage(tmp_path))
    for action in (run.metrics, run.facts, run.job_text, lambda: run.identity, lambda: run.append_metrics({"step": 1})):
        with pytest.raises(UserError, match=r"is no log of rows|too many for such a file|hold no row"):
            action()


def test_a_log_of_many_blocks_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 7)
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 40)
    log = tmp_path / "metrics.jsonl"
    whole = b"".join(b'{"step":%d,"x":"%s"}\n' % (step, b"y" * (step % 5)) for step in range(40))
    for size in (len(whole), len(whole) - 1, len(whole) - 13):
        log.write_bytes(whole[:size])
        assert steps(RunDirectory(open_storage(tmp_path))) == [*range(whole[:size].count(b"\n"))]


@pytest.mark.parametrize("identity", ['{"format":"x","id":"a"}', '{"format":1,"id":"a\' or \'b"}', "[" * 9000, "[1]"])
def test_a_strange_identity_is_damaged(tmp_path: Path, identity: str) -> None:
    (tmp_path / "run.json").write_text(identity)
    with pytest.raises(UserError, match=r"run\.json: is damaged"):
        _ = RunDirectory(open_storage(tmp_path)).identity


def test_a_row_that_is_too_long_is_named_and_never_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 100)
    line = b'{"time":"2026-01-01T00:00:00.000Z","kind":"start","text":"' + b"x" * 100 + b'"}\n'
    (tmp_path / "events.jsonl").write_bytes(line)
    with RunDirectory(open_storage(tmp_path)) as run:
        with pytest.raises(CorruptLogError, match=r"events\.jsonl: a row has more than"):
            run.events()
        with pytest.raises(CorruptLogError, match=r"events\.jsonl: a row has more than"):
            run.append_event("end")
    assert (tmp_path / "events.jsonl").read_bytes() == line


def test_a_text_may_be_the_word_for_a_number(tmp_path: Path) -> None:
    with RunDirectory(open_storage(tmp_path)) as run:
        run.append_event("skipped_sample", skipped="NaN", user="Infinity")
        (event,) = run.events()
    assert (event["skipped"], event["user"]) == ("NaN", "Infinity")


def test_facts_may_hold_names_that_are_not_utf_8(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    run.record_facts(started={"command": os.fsdecode(b"yolofleet train caf\xe9/job.yaml")})
    assert os.fsencode(run.facts()["started"]["command"]).endswith(b"caf\xe9/job.yaml")
