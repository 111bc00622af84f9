from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory import bounded
from yolofleet.core.errors import UserError
from yolofleet.storage import StorageError, open_storage
from yolofleet.training.checkpoint.store import CheckpointStore, DamagedCheckpointError


class Events:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []

    def __call__(self, kind: str, **fields: object) -> None:
        self.events.append((kind, fields))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def store(folder: Path, keep: int = 3) -> tuple[CheckpointStore, Events]:
    events = Events()
    return CheckpointStore(open_storage(folder), keep, on_event=events), events


def save(checkpoints: CheckpointStore, step: int) -> None:
    checkpoints.save(step, {"weights": {"w": torch.full((3,), float(step))}}, {"run": {"x": step}})
    checkpoints.wait()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints, events = store(tmp_path)
    tensors = {"weights": {"w": torch.randn(4, 5)}, "moments": {"w": torch.randn(4, 5).double()}}
    checkpoints.save(7, tensors, {"run": {"step": 7}})
    tensors["weights"]["w"].zero_()  # training goes on while the snapshot is written
    checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.state["run"]) == (7, {"step": 7})
    assert found.tensors["weights"]["w"].abs().sum() > 0
    assert torch.equal(found.tensors["moments"]["w"], tensors["moments"]["w"])
    assert events.kinds() == ["checkpoint"]


def test_an_empty_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert store(tmp_path)[0].newest() is None


@settings(max_examples=25)
@given(damage=st.sampled_from(["flip", "cut", "gone", "uncommitted", "nonsense"]), file=st.integers(0, 1))
def test_a_damaged_checkpoint_is_passed_over_with_an_event(damage: str, file: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints, events = store(folder)
    save(checkpoints, 1)
    save(checkpoints, 2)
    victim = folder / "step-2" / ["weights.safetensors", "state.json"][file]
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "cut":
        victim.write_bytes(data[:-1])
    elif damage == "gone":
        victim.unlink()
    elif damage == "uncommitted":
        (folder / "step-2" / "COMMITTED").unlink()
    else:
        (folder / "step-2" / "COMMITTED").write_text("{")
    found = checkpoints.newest()
    assert found is not None and found.step == 1
    assert ("checkpoint_passed_over" in events.kinds()) == (damage != "uncommitted")


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints, _ = store(tmp_path, keep=2)
    checkpoints.protected_steps = lambda steps: {2} & set(steps)
    for step in range(1, 7):
        save(checkpoints, step)
    assert checkpoints.steps() == [2, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-5", "step-6"]


def test_a_storage_that_takes_nothing_costs_the_checkpoint_not_the_run(tmp_path: Path, monkeypatch) -> None:
    checkpoints, events = store(tmp_path)

    def full(key: str, data: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(checkpoints.storage, "put", full)
    save(checkpoints, 1)
    assert events.kinds() == ["checkpoint_failed"]
    monkeypatch.undo()
    save(checkpoints, 2)
    assert checkpoints.steps() == [2]


def test_a_storage_that_fails_after_the_commit_costs_nothing(tmp_path: Path) -> None:
    checkpoints, events = store(tmp_path, keep=1)

    def away(steps: list[int]) -> set[int]:
        raise StorageError("503")

    checkpoints.protected_steps = away
    save(checkpoints, 1)
    save(checkpoints, 2)
    assert checkpoints.steps() == [1, 2]
    assert events.kinds() == ["checkpoint", "checkpoint"]


def test_an_unforeseen_failure_is_not_lost_in_its_thread(tmp_path: Path, monkeypatch) -> None:
    checkpoints, _ = store(tmp_path)
    monkeypatch.setattr(checkpoints.storage, "put", lambda key, data: 1 / 0)
    checkpoints.save(1, {"weights": {}}, {})
    with pytest.raises(ZeroDivisionError):
        checkpoints.wait()


def test_what_is_written_is_the_state_at_the_call(tmp_path: Path, monkeypatch) -> None:
    checkpoints, _ = store(tmp_path)
    going = threading.Event()
    put = checkpoints.storage.put
    monkeypatch.setattr(checkpoints.storage, "put", lambda key, data: (going.wait(5), put(key, data)))
    run = {"step": 1}
    checkpoints.save(1, {"weights": {"w": torch.ones(2)}}, {"run": run})
    run["step"] = 2  # training goes on
    going.set()
    checkpoints.wait()
    assert checkpoints.load(1).state["run"] == {"step": 1}


def test_one_that_is_due_while_the_last_is_stored_waits_or_is_left_out_with_an_event(
    tmp_path: Path, monkeypatch
) -> None:
    checkpoints, events = store(tmp_path)
    monkeypatch.setattr("yolofleet.training.checkpoint.store.LONGEST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr("yolofleet.training.checkpoint.store.LONG_WAIT_SECONDS", 0.1)
    put = checkpoints.storage.put
    monkeypatch.setattr(checkpoints.storage, "put", lambda key, data: (time.sleep(0.1), put(key, data)))
    for step, skippable in ((1, False), (2, True), (3, False)):
        checkpoints.save(step, {"weights": {"w": torch.full((2,), float(step))}}, {}, skippable=skippable)
    checkpoints.wait()
    assert events.kinds() == ["checkpoint_skipped", "checkpoint", "checkpoint_waited", "checkpoint"]
    assert checkpoints.steps() == [1, 3]
    for step in (1, 3):  # the memory that both used never mixed them
        assert checkpoints.load(step).tensors["weights"]["w"].tolist() == [step, step]


def test_a_full_disk_is_left_as_empty_as_before(tmp_path: Path, monkeypatch) -> None:
    checkpoints, events = store(tmp_path)
    save(checkpoints, 1)
    put = checkpoints.storage.put

    def full(key: str, data: bytes) -> None:
        if key.endswith("state.json"):
            raise StorageError("the disk is full", transient=True)
        put(key, data)

    monkeypatch.setattr(checkpoints.storage, "put", full)
    save(checkpoints, 2)
    assert events.kinds() == ["checkpoint", "checkpoint_failed"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    monkeypatch.undo()
    save(checkpoints, 3)
    assert checkpoints.steps() == [1, 3]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    checkpoints, _ = store(tmp_path)
    save(checkpoints, 1)
    (tmp_path / "step-2").mkdir()
    (tmp_path / "step-2" / "weights.safetensors").write_bytes(b"half")
    save(checkpoints, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-3"]


def test_a_newer_format_is_refused_with_the_cure(tmp_path: Path) -> None:
    checkpoints, _ = store(tmp_path)
    save(checkpoints, 1)
    commit = tmp_path / "step-1" / "COMMITTED"
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="upgrade"):
        checkpoints.newest()


@pytest.mark.parametrize(
    "commit",
    [
        {"files": []}, {"files": {"weights.safetensors": 1}}, {"files": {"state.json": {"bytes": "x", "sha256": 1}}},
        {"format": "x", "files": {}}, {"files": {"../../secret": {"bytes": 3, "sha256": "0" * 64}}}, {},
        {"files": {"weights.safetensors": {"bytes": 2**60, "sha256": "0" * 64}}}, {"files": None, "format": [1]},
        {"files": {}, "much": "a" * 1_100_000},
    ],
    ids=lambda commit: str(commit)[:50],
)  # fmt: skip
def test_a_commit_that_lies_is_a_damaged_checkpoint(commit: dict, tmp_path: Path) -> None:
    checkpoints, events = store(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    (tmp_path / "step-2" / "COMMITTED").write_text(json.dumps(commit))
    found = checkpoints.newest()
    assert found is not None and found.step == 1
    assert events.kinds()[-1] == "checkpoint_passed_over"
    with pytest.raises(DamagedCheckpointError):
        checkpoints.file_digest(2, "weights")


def test_a_file_of_another_size_than_committed_is_not_read(tmp_path: Path) -> None:
    checkpoints, _ = store(tmp_path)
    save(checkpoints, 1)
    os.truncate(tmp_path / "step-1" / "weights.safetensors", 2**40)
    with bounded(), pytest.raises(DamagedCheckpointError, match=r"weights\.safetensors has 1,099,511,627,776 bytes"):
        checkpoints.load(1)


@pytest.mark.parametrize("step", ["\u0663", "9" * 200, "-1"])
def test_only_plain_numbers_are_steps(tmp_path: Path, step: str) -> None:
    storage = open_storage(tmp_path)
    storage.put(f"step-{step}/COMMITTED", b"{}")
    assert CheckpointStore(storage).steps() == []
