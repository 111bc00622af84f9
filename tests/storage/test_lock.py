"""One process at a time holds the lock of a storage; dead holders are succeeded, living ones are not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.core.retry import retry
from yolofleet.storage import Storage, StorageError, lock, open_storage
from yolofleet.storage.local import FileStorage
from yolofleet.storage.lock import Fence, Lock, LockHeldError, LockLostError, hold

HOLDING = """
import sys, time
from yolofleet.storage import open_storage
from yolofleet.storage.lock import hold
hold(open_storage(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def from_elsewhere(storage: Storage, **changes: Any) -> None:
    """Make the newest lock look as if a process of another host had written it."""
    key = storage.list("lock/")[-1].key
    document = json.loads(storage.get(key))
    storage.put(key, json.dumps(document | {"place": "elsewhere", "host": "far"} | changes).encode())


def test_one_of_many_at_once_gets_the_lock(storage: Storage) -> None:
    locks: list[Lock] = []
    refusals: list[str] = []

    def attempt() -> None:
        try:
            locks.append(hold(storage))
        except LockHeldError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(locks), len(refusals)) == (1, 5)
    assert all(f"kill {os.getpid()}" in refusal and "use another name" in refusal for refusal in refusals)
    locks[0].fence.check()
    locks[0].release()
    with hold(storage) as second:
        assert second.token.number == locks[0].token.number + 1
        with pytest.raises(LockLostError):
            locks[0].fence.check()


def test_a_dead_process_of_this_host_is_succeeded_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    storage = open_storage(tmp_path)
    with pytest.raises(LockHeldError, match=f"process {holder.pid} .* is alive"):
        hold(storage)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lines: list[str] = []
    with hold(storage, notify=lines.append):
        assert "that process has ended" in lines[0]


def test_a_reused_process_number_is_another_process(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lock = hold(storage)
    key = storage.list("lock/")[-1].key
    document = json.loads(storage.get(key))
    storage.put(key, json.dumps(document | {"process_began": 1}).encode())
    hold(storage, notify=lambda line: None).release()
    lock.release()


def test_the_silent_holder_of_another_host_is_succeeded_after_its_lease(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    old = hold(storage)
    old._renewals.close()  # it renews no more
    from_elsewhere(storage, lease_seconds=0.5, since="2099-01-01T00:00:00+00:00")  # its clock is far ahead
    lines: list[str] = []
    with hold(storage, notify=lines.append) as new:
        assert [line.partition(" ")[0] for line in lines] == [str(tmp_path), "taking"]
        new.fence.check()
        with pytest.raises(LockLostError, match="was taken over by process"):
            old.fence.check()
    old.release()  # too late to matter
    assert json.loads(storage.get("lock/00000002.json"))["released"]


def test_waiting_for_a_lease_and_checking_it_list_and_look_up_nothing(tmp_path: Path, monkeypatch) -> None:
    storage = open_storage(tmp_path)
    hold(storage)._renewals.close()
    from_elsewhere(storage, lease_seconds=0.5)
    asked: list[str] = []
    list_all, look_up = FileStorage.list, FileStorage.size_bytes
    monkeypatch.setattr(FileStorage, "list", lambda self, prefix="": asked.append(prefix) or list_all(self, prefix))
    monkeypatch.setattr(FileStorage, "size_bytes", lambda self, key: asked.append(key) or look_up(self, key))
    with hold(storage, notify=lambda line: None) as lock:
        assert len(asked) == 2  # before and after the wait
        lock.fence.check()
        lock._renew()
        assert len(asked) == 2


def test_waiting_for_a_lease_pauses_between_two_looks(tmp_path: Path, monkeypatch) -> None:
    storage = open_storage(tmp_path)
    hold(storage)._renewals.close()
    from_elsewhere(storage, lease_seconds=1.0)
    pauses: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr("yolofleet.storage.lock.time.sleep", lambda seconds: pauses.append(seconds) or sleep(seconds))
    hold(storage, notify=lambda line: None).release()
    assert len(pauses) >= 5 and max(pauses) <= 0.2, "a tenth of the lease"


def test_a_renewing_holder_of_another_host_is_left_alone(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lock = hold(storage)
    lock._renewals.close()
    from_elsewhere(storage, lease_seconds=5.0, since="1999-01-01T00:00:00+00:00")
    renewal = threading.Timer(0.7, lambda: from_elsewhere(storage, lease_seconds=5.0, renewals=1))
    renewal.start()
    with pytest.raises(LockHeldError, match="on far, since"):
        hold(storage, notify=lambda line: None)
    renewal.join()
    lock.release()


def test_a_lock_is_renewed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with hold(storage, lease_seconds=0.2) as lock:
        threading.Event().wait(0.3)
        assert json.loads(storage.get("lock/00000001.json"))["renewals"] >= 1
        lock.fence.check()


def test_a_removed_lock_is_lost(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lock = hold(storage)
    storage.delete_prefix("lock/")
    with pytest.raises(LockLostError, match="removed"):
        Fence(storage, lock.token).check()
    lock.release()


def test_a_lock_that_could_not_be_released_is_as_soon_as_the_storage_answers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)
    storage = open_storage(tmp_path / "run")
    held, put = hold(storage), FileStorage.put
    answers = threading.Event()

    def put_if_there(self: FileStorage, key: str, data: bytes) -> None:
        if not answers.is_set():
            raise StorageError("no answer", transient=True)
        put(self, key, data)

    monkeypatch.setattr(FileStorage, "put", put_if_there)
    held.release()
    with pytest.raises(LockHeldError):
        hold(storage)
    answers.set()
    again = retry(
        lambda: hold(storage), patience_seconds=30, is_transient=lambda error: isinstance(error, LockHeldError)
    )
    again.release()


def test_old_records_are_removed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for _ in range(6):
        hold(storage).release()
    assert [entry.key for entry in storage.list("lock/")] == ["lock/00000005.json", "lock/00000006.json"]


@pytest.mark.parametrize(
    "changes",
    [
        *({"lease_seconds": lease} for lease in ("x", 1e9, -1, 0, float("nan"), True, None)),
        *({"number": number} for number in ("x", 99, 10**30, 1.0)),
        *({"host": host} for host in ("h\nerror: you were hacked", "h" * 1000, 5)),
        *({"mark": [1]}, {"process": "../.."}, {"renewals": {}}, {"released": "no"}, {"another": 1}),
    ],
)
def test_a_strange_record_is_damaged_and_nobody_waits_for_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    storage = open_storage(tmp_path)
    hold(storage)._renewals.close()
    from_elsewhere(storage, **changes)
    with pytest.raises(UserError, match=r"lock/00000001\.json: is damaged") as caught:
        hold(storage, notify=lambda line: None)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_nested_deeply_is_damaged(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.put("lock/00000001.json", b"[" * 9000)
    with pytest.raises(UserError, match="is damaged"):
        hold(storage)


@pytest.mark.parametrize("name", ["9" * 200, "\u0663" * 8, "1", "000000002"])
def test_only_the_names_of_records_are_numbers(tmp_path: Path, name: str) -> None:
    storage = open_storage(tmp_path)
    with hold(storage):
        storage.put(f"lock/{name}.json", b"{}")
        with pytest.raises(LockHeldError):
            hold(storage)


def test_a_user_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "DOMAIN\u00a0" + "x" * 300)
    storage = open_storage(tmp_path)
    with hold(storage), pytest.raises(LockHeldError, match=r"DOMAIN\\xa0xxx"), hold(storage):
        pass
