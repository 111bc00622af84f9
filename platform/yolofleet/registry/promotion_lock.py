"""Who may move an alias next: decided by tags of the registered model, for MLflow's aliases have no compare-and-set.

Whoever wants to move an alias says so in a tag of its own and reads back what the others say: Lamport's bakery. It
first says that it is choosing, takes a number above all that it sees, and waits until nobody is choosing and nobody
has a lower number. So one at a time holds the turn, though the server offers nothing but single writes and reads.

An intent whose process was killed must not block for ever. On the host that it ran on its end is seen at once;
anywhere else it is taken for dead when its tag has not changed for LEASE_SECONDS by the watcher's own clock, while
everybody who waits writes its tag anew well before that. Only whoever holds the turn removes dead intents, and finishes
what one of them had begun (`yolofleet.registry.alias_history`).

What is left open: a process that was stopped (not killed) for longer than the lease between its last look and its
write, on another host. Its write would go through; the next command finds an alias that the history does not explain
and says so.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from yolofleet.registry.versions import TAG_PREFIX
from yolofleet.tracking.run_directory import utc_now

LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.5

Stage = Literal["choosing", "waiting", "committing"]


class TagStore(Protocol):
    """Tags and aliases of one registered model."""

    def read(self) -> tuple[Mapping[str, str], Mapping[str, int]]:
        """Return all tags and all aliases."""

    def set_tag(self, key: str, value: str) -> None:
        """Write a tag."""

    def delete_tag(self, key: str) -> None:
        """Remove a tag; nothing happens if it is gone."""

    def set_alias(self, alias: str, version: int) -> None:
        """Point an alias to a version."""


@dataclass(frozen=True)
class Holder:
    """The process behind an intent."""

    host: str
    pid: int
    started: str
    """What tells it from a later process with the same number."""

    @staticmethod
    def here() -> Holder:
        """Return this process."""
        return Holder(_host(), os.getpid(), _start_of(os.getpid()) or "")

    def is_known_dead(self) -> bool:
        """Return whether it ran on this host and runs no more."""
        return self.host == _host() and _start_of(self.pid) != self.started


@dataclass(frozen=True)
class Intent:
    """What somebody wants to do with an alias.

    Attributes:
        alias: The alias.
        version: What it shall point to.
        expected: What it pointed to when this was decided; None for nothing.
        action: ``promote`` or ``rollback``.
        reason: Why, in words.
        by: Who, as the system calls them.
        holder: The process.
        time: When, in UTC.
        identity: Tells this intent from all others.
        stage: How far it is.
        number: Its place in the line; 0 while it is choosing.
        sequence: Its number in the history, while it is committing.
        forced: Whether gates were overruled.
    """

    alias: str
    version: int
    expected: int | None
    action: str
    reason: str
    by: str
    holder: Holder
    time: str = field(default_factory=utc_now)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    stage: Stage = "choosing"
    number: int = 0
    sequence: int = 0
    forced: bool = False

    @property
    def key(self) -> str:
        """Its tag."""
        return f"{_prefix(self.alias)}{self.identity}"

    def is_before(self, other: Intent) -> bool:
        """Return whether the other one has to wait for this one."""
        return self.stage == "choosing" or (self.number, self.identity) < (other.number, other.identity)

    def text(self, beat: int = 0) -> str:
        """Return the value of its tag; the beat makes it another text each time that it is renewed."""
        return json.dumps({**asdict(self), "beat": beat}, sort_keys=True)


def read_intents(tags: Mapping[str, str], alias: str) -> list[Intent]:
    """Return the intents for an alias among the tags; what cannot be read as one is left out."""
    found = []
    for key, text in tags.items():
        if key.startswith(_prefix(alias)):
            intent = _parsed(text)
            if intent is not None and intent.key == key:
                found.append(intent)
    return sorted(found, key=lambda intent: (intent.number, intent.identity))


class Line:
    """The line in front of an alias, as one process sees it.

    Args:
        store: The tags.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        store: TagStore,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._seen: dict[str, tuple[str, float]] = {}
        self._renewed = clock()
        self._beat = 0

    def write(self, intent: Intent) -> Intent:
        """Write an intent's tag and return the intent."""
        self._beat += 1
        self._store.set_tag(intent.key, intent.text(self._beat))
        self._renewed = self._clock()
        return intent

    def wait_for_turn(self, intent: Intent, still_wanted: Callable[[Mapping[str, int]], None]) -> Intent:
        """Return the intent once it is its turn.

        Args:
            intent: A fresh one.
            still_wanted: Is shown the aliases each time that they are read; raises where waiting makes no sense any
                more.
        """
        self.write(intent)
        tags, _ = self._store.read()
        highest = max((other.number for other in read_intents(tags, intent.alias)), default=0)
        intent = self.write(replace(intent, stage="waiting", number=highest + 1))
        pause = SHORTEST_PAUSE_SECONDS
        while True:
            tags, aliases = self._store.read()
            still_wanted(aliases)
            others = [other for other in read_intents(tags, intent.alias) if other.identity != intent.identity]
            if not any(other.is_before(intent) and not self.is_dead(other, tags) for other in others):
                return intent
            if self._clock() - self._renewed > RENEW_SECONDS:
                self.write(intent)
            self._sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)

    def is_dead(self, intent: Intent, tags: Mapping[str, str]) -> bool:
        """Return whether nobody stands behind an intent any more."""
        text = tags.get(intent.key, "")
        before, since = self._seen.get(intent.key, ("", 0.0))
        if text != before:
            since = self._clock()
            self._seen[intent.key] = (text, since)
        return intent.holder.is_known_dead() or self._clock() - since > LEASE_SECONDS


def _prefix(alias: str) -> str:
    return f"{TAG_PREFIX}intent.{alias}."


def _parsed(text: str) -> Intent | None:
    try:
        document: dict[str, Any] = json.loads(text)
        document.pop("beat", None)
        intent = Intent(**{**document, "holder": Holder(**document["holder"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    whole = all(isinstance(number, int) for number in (intent.number, intent.sequence, intent.version))
    return intent if whole else None


def _host() -> str:
    """Return what tells this host from others: containers may share a name, not a boot and a namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _start_of(pid: int) -> str | None:
    """Return when a process of this host was started, None where there is none; a zombie is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc").is_dir() else _runs(pid)
    return None if status[0] in "ZX" else status[19]


def _runs(pid: int) -> str | None:
    """Return whether there is such a process, where no /proc tells more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
