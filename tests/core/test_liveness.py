"""Processes are told apart across hosts and times, and leases are measured by the watcher's own clock."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from yolofleet.core.liveness import LEASE_SECONDS, RENEWALS_PER_LEASE, LeaseWatch, ProcessId, _start_ticks, user_name
from yolofleet.training.supervision.admission import USER_VARIABLE, sender_name


def test_the_end_of_a_process_of_this_host_is_seen() -> None:
    own = ProcessId.current()
    assert own.is_visible() and not own.has_ended()
    assert replace(own, start_ticks=own.start_ticks - 1).has_ended()  # its number was used again
    command = "from yolofleet.core.liveness import ProcessId as P; print(*P.current().__dict__.values(), sep='|')"
    answer = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    host, table, pid, start = answer.strip().split("|")
    assert ProcessId(host, table, int(pid), int(start)).has_ended()


def test_a_process_of_another_host_is_never_known_to_have_ended() -> None:
    other = replace(ProcessId.current(), process_table="another boot", pid=2**30)
    assert not other.is_visible() and not other.has_ended()


def test_a_lease_ends_a_whole_lease_after_the_last_new_sign_of_life() -> None:
    now = 1000.0
    watch = LeaseWatch(clock=lambda: now)
    assert not watch.has_expired("a", 0, 10.0)
    now += 9.0
    assert not watch.has_expired("a", 1, 10.0)
    now += 10.0
    assert not watch.has_expired("a", 1, 10.0) and not watch.has_expired("b", 1, 10.0)
    now += 0.1
    assert watch.has_expired("a", 1, 10.0) and not watch.has_expired("b", 1, 10.0)


def test_a_lease_is_a_minute_and_outlives_two_failed_renewals() -> None:
    """The pages say a minute; a holder that misses two renewals in a row must still be in time with the next."""
    assert LEASE_SECONDS == 60.0
    assert RENEWALS_PER_LEASE == 4


def test_a_process_that_ended_but_was_not_waited_for_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = replace(ProcessId.current(), pid=child.pid, start_ticks=_start_ticks(child.pid))
    assert not process.has_ended()
    child.stdin.close()  # it ends, and stays a zombie until `wait`
    deadline = time.monotonic() + 20
    while not process.has_ended() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.has_ended() and child.returncode is None
    child.wait()


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 1234"), OSError("No username set")])
def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As in a container that runs under any number; Python 3.13 raises another error than the versions before it."""

    def nameless() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.delenv(USER_VARIABLE, raising=False)
    assert user_name() == sender_name() == f"user {os.getuid()}"
    monkeypatch.setenv(USER_VARIABLE, "ada")
    assert sender_name() == "ada"
