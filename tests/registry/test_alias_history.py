"""One alias and many promotions: one wins, every loser gets an error, and a killed promotion is finished or removed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from yolofleet.core.liveness import LEASE_SECONDS, ProcessId
from yolofleet.registry import alias_history
from yolofleet.registry.alias_history import (
    AliasChange,
    PromotionLostError,
    alias_changes,
    move_alias,
    previous_alias,
    rollback_target,
)
from yolofleet.registry.promotion_lock import LockRequest, PromotionLock, read_requests, report_damaged
from yolofleet.registry.versions import RegistryError, VersionGoneError

ALIAS = "champion"
NUM_WRITES = 7
"""Of one promotion: choosing, waiting, committing, alias, history, previous, removed."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may run after it."""


@dataclass
class Memory:
    """Tags and aliases in memory; single reads and writes are atomic, as a server's are, and nothing else is."""

    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    writes_left: int | None = None
    champions_seen: list[int] = field(default_factory=list)

    def read(self) -> tuple[Mapping[str, str], Mapping[str, int]]:
        time.sleep(0)
        with self.lock:
            return dict(self.tags), dict(self.aliases)

    def _count(self) -> None:
        if self.writes_left == 0:
            raise Killed
        if self.writes_left is not None:
            self.writes_left -= 1

    def set_tag(self, key: str, value: str) -> None:
        self._count()
        with self.lock:
            self.tags[key] = value

    def delete_tag(self, key: str) -> None:
        self._count()
        with self.lock:
            self.tags.pop(key, None)

    def set_alias(self, alias: str, version: int) -> None:
        self._count()
        with self.lock:
            self.aliases[alias] = version
            if alias == ALIAS:
                self.champions_seen.append(version)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_history, "SETTLE_SECONDS", 0.0)


def promote(store: Memory, version: int, expected: int | None, action: str = "promote") -> AliasChange:
    return move_alias(store, ALIAS, version, expected=expected, action=action, reason=f"because of {version}")


def test_a_promotion_moves_the_alias_and_is_remembered() -> None:
    store = Memory()
    promote(store, 1, None)
    promote(store, 4, 1)
    history = alias_changes(store.tags, store.aliases, ALIAS)
    assert [(change.sequence, change.version, change.previous) for change in history] == [(1, 1, None), (2, 4, 1)]
    assert history[1].reason == "because of 4" and history[1].time.endswith("Z") and history[1].by
    assert store.aliases == {ALIAS: 4, previous_alias(ALIAS): 1}
    assert read_requests(store.tags, ALIAS) == []
    with pytest.raises(PromotionLostError, match=r"@champion points to version 4 now .*because of 4.*with version 1"):
        promote(store, 5, 1)
    assert store.aliases[ALIAS] == 4 and read_requests(store.tags, ALIAS) == []


def test_a_rollback_goes_back_and_can_be_taken_back() -> None:
    store = Memory()
    for complaint in ("nothing is @champion", "no version was @champion before version 1"):
        with pytest.raises(RegistryError, match=complaint):
            rollback_target(store.tags, store.aliases, ALIAS)
        if ALIAS not in store.aliases:
            promote(store, 1, None)
    promote(store, 2, 1)
    assert rollback_target(store.tags, store.aliases, ALIAS) == 1
    promote(store, 1, 2, action="rollback")
    assert store.aliases == {ALIAS: 1, previous_alias(ALIAS): 2}
    assert rollback_target(store.tags, store.aliases, ALIAS) == 2


@pytest.mark.parametrize("num_writes", range(NUM_WRITES))
def test_killed_before_any_write_it_leaves_the_old_or_the_new_state(
    num_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Memory()
    promote(store, 1, None)
    store.writes_left = num_writes
    with pytest.raises(Killed):
        promote(store, 2, 1)
    store.writes_left = None
    committed = num_writes > 3
    assert store.aliases[ALIAS] == (2 if committed else 1)
    seen = [change.version for change in alias_changes(store.tags, store.aliases, ALIAS)]
    assert seen == ([1, 2] if committed else [1])  # even before anything was put right
    assert rollback_target(store.tags, store.aliases, ALIAS) == 1 if committed else True
    monkeypatch.setattr(ProcessId, "has_ended", lambda process: process.pid != 0)
    monkeypatch.setattr(ProcessId, "current", lambda: ProcessId("here", "boot", 0, 1))
    promote(store, 3, 2 if committed else 1)
    history = alias_changes(store.tags, store.aliases, ALIAS)
    assert [change.version for change in history] == ([1, 2, 3] if committed else [1, 3])
    assert [change.sequence for change in history] == list(range(1, len(history) + 1))
    assert store.aliases == {ALIAS: 3, previous_alias(ALIAS): 2 if committed else 1}
    assert read_requests(store.tags, ALIAS) == []


@pytest.mark.parametrize("num_writes", range(4, NUM_WRITES + 5))
def test_killed_while_it_finishes_another_the_next_one_finishes_both(
    num_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Memory()
    promote(store, 1, None)
    monkeypatch.setattr(ProcessId, "has_ended", lambda process: True)
    store.writes_left = 4
    with pytest.raises(Killed):
        promote(store, 2, 1)
    store.writes_left = num_writes - 4
    with pytest.raises(Killed):
        promote(store, 3, 2)
    store.writes_left = None
    current = store.aliases[ALIAS]
    promote(store, 5, current)
    versions = [change.version for change in alias_changes(store.tags, store.aliases, ALIAS)]
    assert versions == [1, 2, *([3] if current == 3 else []), 5]
    assert store.aliases[previous_alias(ALIAS)] == current


def test_a_deleted_version_prevents_a_rollback_but_no_promotion(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutTheFirst(Memory):
        def set_alias(self, alias: str, version: int) -> None:
            if version == 1:
                raise VersionGoneError("version 1 was deleted")
            super().set_alias(alias, version)

    store = WithoutTheFirst()
    store.aliases[ALIAS] = 1
    store.writes_left = 5
    with pytest.raises(Killed):
        promote(store, 2, 1)
    assert store.aliases == {ALIAS: 2}
    store.writes_left = None
    monkeypatch.setattr(ProcessId, "has_ended", lambda process: process.pid != 0)
    monkeypatch.setattr(ProcessId, "current", lambda: ProcessId("here", "boot", 0, 1))
    promote(store, 3, 2)
    assert store.aliases == {ALIAS: 3, previous_alias(ALIAS): 2}
    assert read_requests(store.tags, ALIAS) == []


def test_of_many_threads_one_wins_each_round_and_all_others_get_an_error() -> None:
    store = Memory()
    num_threads, num_rounds = 8, 6
    expected: int | None = None
    for round_number in range(num_rounds):
        won: list[int] = []
        lost: list[str] = []
        gate = threading.Barrier(num_threads)

        def work(version: int, against: int | None, gate: threading.Barrier, won: list[int], lost: list[str]) -> None:
            gate.wait()
            try:
                won.append(promote(store, version, against).version)
            except PromotionLostError as error:
                lost.append(str(error))

        threads = [
            threading.Thread(target=work, args=(100 * round_number + thread + 1, expected, gate, won, lost))
            for thread in range(num_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(lost) == num_threads - 1
        assert store.aliases[ALIAS] == won[0]
        expected = won[0]
    assert len(store.champions_seen) == num_rounds  # no loser ever touched the alias
    assert [change.version for change in alias_changes(store.tags, store.aliases, ALIAS)] == store.champions_seen
    assert read_requests(store.tags, ALIAS) == []


def test_an_alias_that_was_moved_by_hand_is_recorded() -> None:
    store = Memory()
    promote(store, 1, None)
    store.aliases[ALIAS] = 9
    promote(store, 2, 9)
    history = alias_changes(store.tags, store.aliases, ALIAS)
    assert [(change.version, change.action) for change in history] == [(1, "promote"), (9, "found"), (2, "promote")]
    assert rollback_target(store.tags, store.aliases, ALIAS) == 9


def test_a_request_of_another_host_blocks_until_its_tag_has_not_changed_for_the_lease() -> None:
    store = Memory()
    other = LockRequest(ALIAS, 7, None, "promote", "", "somebody", ProcessId("elsewhere", "boot", 1, 1))
    other = replace(other, stage="waiting", number=1)
    store.set_tag(other.key, other.to_tag())
    now = 0.0
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += max(seconds, 1.0)
        waited.append(now)
        if now < 100:  # it lives, and renews its tag
            store.set_tag(other.key, other.to_tag(renewals=int(now) // 20))

    lock = PromotionLock(store, clock=lambda: now, sleep=sleep)
    own = LockRequest(ALIAS, 8, None, "promote", "", "me", ProcessId.current())
    own = lock.acquire(own, lambda aliases: None)
    assert own.number == 2 and now > 80 + LEASE_SECONDS
    assert len({text for key, text in store.tags.items() if key == own.key}) == 1


def test_damaged_tags_stop_no_promotion_and_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    store = Memory()
    request = json.loads(OLD_TAGS["yolofleet.intent.champion.0a1b"])
    change = json.loads(OLD_TAGS["yolofleet.history.champion.000001"])
    leads_out = request | {"holder": request["holder"] | {"pid": "../.."}}
    for text in ("", "{", "[]", "[" * 100_000, '{"alias": 1}', *map(json.dumps, (
        request | {"number": "x"}, request | {"stage": [1]}, request | {"sequence": 10**30}, leads_out,
    ))):  # fmt: skip
        store.tags[f"yolofleet.intent.champion.{len(store.tags)}"] = text
    for text in ("", "[]", "[" * 100_000, *map(json.dumps, (
        change | {"sequence": "x"}, change | {"version": "../x"}, change | {"version": 0}, change,
    ))):  # fmt: skip
        store.tags[f"yolofleet.history.champion.{len(store.tags):06d}"] = text
    num_damaged = len(store.tags)
    report_damaged.cache_clear()
    assert promote(store, 1, None).sequence == 1
    assert [entry.version for entry in alias_changes(store.tags, store.aliases, ALIAS)] == [1]
    assert capsys.readouterr().err.count("damaged and left out") == num_damaged, "each is reported once"


OLD_TAGS = {  # as yolofleet wrote them while the request was called an intent
    "yolofleet.intent.champion.0a1b": json.dumps(
        {
            "alias": "champion", "version": 2, "expected": 1, "action": "promote", "reason": "old", "by": "somebody",
            "holder": {"host": "node 12-34 pid:[40]", "pid": 77, "started": "4711"}, "time": "2026-01-01T00:00:00.000Z",
            "identity": "0a1b", "stage": "committing", "number": 1, "sequence": 2, "forced": False, "beat": 3,
        }
    ),
    "yolofleet.history.champion.000001": json.dumps(
        {
            "sequence": 1, "version": 1, "previous": None, "action": "promote", "reason": "the first",
            "by": "somebody", "time": "2025-01-01T00:00:00.000Z", "identity": "ff", "forced": False,
        }
    ),
}  # fmt: skip


def test_tags_of_older_versions_are_read_and_written_alike() -> None:
    (request,) = read_requests(OLD_TAGS, ALIAS)
    assert request.process == ProcessId("node", "12-34 pid:[40]", 77, 4711)
    assert json.loads(request.to_tag(renewals=3)) == json.loads(OLD_TAGS[request.key])
    history = alias_changes(OLD_TAGS, {ALIAS: 2}, ALIAS)
    assert [(change.version, change.reason) for change in history] == [(1, "the first"), (2, "old")]
    assert rollback_target(OLD_TAGS, {ALIAS: 2}, ALIAS) == 1


def test_a_dead_request_of_an_older_version_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessId, "has_ended", lambda process: process.pid == 77)
    store = Memory(tags=dict(OLD_TAGS), aliases={ALIAS: 2})
    promote(store, 3, 2)
    assert [change.version for change in alias_changes(store.tags, store.aliases, ALIAS)] == [1, 2, 3]
    assert read_requests(store.tags, ALIAS) == []
