"""Runs that go: only those that a rule takes, only while nobody trains them, and never so that a part looks whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.conftest import MemoryStorage
from yolofleet.storage import Storage, StorageError
from yolofleet.storage.lock import LockHeldError, hold
from yolofleet.tracking.run_catalog import catalog
from yolofleet.tracking.run_removal import (
    RAY_FOLDER,
    TRIAL_CHECKPOINTS,
    Candidate,
    Retention,
    folders_matching,
    is_in_use,
    remove_folders,
    remove_run,
)

KEYS = (
    "job.yaml", "run.json", "events.jsonl", "metrics.jsonl", "checkpoints/step-10/COMMITTED",
    "checkpoints/step-10/model.safetensors", "model/detector.json", "model/weights.safetensors",
    "report/release.json", "report/index.html", f"ray/{'0' * 32}/x.json",
)  # fmt: skip


def filled(storage: Storage) -> Storage:
    for key in KEYS:
        storage.put(key, b"x")
    return storage


def ignore(line: str) -> None:
    """Drop it."""


candidates = st.lists(
    st.builds(
        Candidate,
        name=st.text("abcdef", min_size=1, max_size=6),
        kind=st.sampled_from(["run", "search", "leftover"]),
        state=st.sampled_from(["FINISHED", "FAILED", "KILLED", "RUNNING", "WAITING", "INTERRUPTED", "UNKNOWN"]),
        changed_at=st.floats(0, 100),
    ),
    unique_by=lambda entry: entry.name,
    max_size=12,
)


@given(candidates, st.none() | st.integers(1, 5), st.none() | st.floats(0, 100))
def test_a_rule_takes_only_what_it_names(entries: list[Candidate], keep_last: int | None, age: float | None) -> None:
    gone = Retention(keep_last, age).expired(entries, now=100.0)
    assert len(gone) == len(set(gone)) and set(gone) <= set(entries)
    assert all(entry.kind == "leftover" or entry.state == "FINISHED" for entry in gone)
    if age is not None:
        assert all(100.0 - entry.changed_at > age for entry in gone)
    kept = [entry for entry in entries if entry not in gone and entry.kind != "leftover" and entry.state == "FINISHED"]
    if keep_last is not None:
        ended = [entry for entry in entries if entry.kind != "leftover" and entry.state == "FINISHED"]
        assert len(kept) >= min(keep_last, len(ended))
    runs_gone = [entry for entry in gone if entry.kind != "leftover"]
    assert all(old.changed_at <= new.changed_at for old in runs_gone for new in kept), "the oldest go first"


def test_all_goes_but_the_record_of_the_lock(new_storage: Callable[[], Storage]) -> None:
    storage = filled(new_storage().child("a"))
    remove_run(storage, ignore)
    assert [entry.key for entry in storage.list()] == ["lock/00000001.json"]
    assert catalog(new_storage()) == []
    with hold(new_storage().child("a")) as lock:
        assert lock.token.number == 2, "a start afterwards counts on"


def test_what_is_in_use_stays_whole(new_storage: Callable[[], Storage]) -> None:
    storage = filled(new_storage().child("a"))
    with hold(storage):
        assert is_in_use(new_storage().child("a")) is not None
        with pytest.raises(LockHeldError, match="is in use by"):
            remove_run(new_storage().child("a"), ignore)
    assert {*KEYS} < {entry.key for entry in storage.list()}
    assert is_in_use(storage) is None


class Failing(MemoryStorage):
    """An object store that fails after so many deletions."""

    deletions_left = 0

    def delete(self, key: str) -> None:
        if key in KEYS:
            if self.deletions_left == 0:
                raise StorageError("the store is down")
            self.deletions_left -= 1
        super().delete(key)


@pytest.mark.parametrize("deletions", range(len(KEYS)))
def test_a_removal_that_is_cut_off_leaves_nothing_that_looks_whole_and_the_next_one_ends_it(deletions: int) -> None:
    storage = Failing()
    filled(storage)
    storage.deletions_left = deletions
    with pytest.raises(StorageError, match="is down"):
        remove_run(storage, ignore)
    left = {entry.key for entry in storage.list()}
    if left & {"checkpoints/step-10/COMMITTED"}:
        assert {*KEYS} <= left, "a whole checkpoint: nothing has gone yet"
    if "job.yaml" not in left:
        assert not left & {"checkpoints/step-10/COMMITTED", "model/detector.json", "report/release.json"}
    if left & {"model/detector.json"}:
        assert "model/weights.safetensors" in left
    storage.deletions_left = len(KEYS)
    remove_run(storage, ignore)
    assert all(entry.key.startswith("lock/") for entry in storage.list())


def test_folders_go_and_the_run_stays(object_storage: MemoryStorage) -> None:
    storage: Any = object_storage.child("a")
    filled(storage)
    for key in ("trials/0001/checkpoints/step-1/COMMITTED", "trials/0001/metrics.jsonl", "ray/notes.txt"):
        storage.put(key, b"x")
    (run,) = catalog(object_storage)
    ray, trials = (folders_matching(run, pattern) for pattern in (RAY_FOLDER, TRIAL_CHECKPOINTS))
    assert ray == {f"ray/{'0' * 32}": 1} and trials == {"trials/0001/checkpoints": 1}
    remove_folders(storage, [*ray, *trials], ignore)
    left = {entry.key for entry in storage.list()}
    assert {"ray/notes.txt", "trials/0001/metrics.jsonl", *KEYS[:-1]} <= left
    assert not any(key.startswith((f"ray/{'0' * 32}", "trials/0001/checkpoints")) for key in left)
