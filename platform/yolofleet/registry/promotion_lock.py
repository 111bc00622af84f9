"""The lock of an alias: whose promotion is next, decided by tags of the registered model.

MLflow sets an alias without any condition, and its server offers nothing but single writes and reads. So promotions use
Lamport's bakery. A process writes a request in a tag of its own, first with the stage "choosing"; it takes a number
above all that it sees, and waits until nobody is choosing and no living request has a lower number.

The request of a killed process must not block the others for ever: it counts as dead as soon as its process is known to
have ended, or when its tag has not changed for a lease (`yolofleet.core.liveness`, as for `yolofleet.storage.lock`).
Who waits renews its tag well before that. Only the process that holds the lock removes dead requests, and finishes
what one of them had begun (`yolofleet.registry.alias_history`).

Weaker than a lock in storage: nothing can check a fencing token when the alias is written. A process on another host
that was stopped (not killed) for longer than the lease between its last read and its write still writes. The next
command finds an alias that the history does not explain, and records it. A lock at the server's artifact storage would
not help, because clients that reach the server over HTTP have no key for it.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field

from yolofleet.core.liveness import LEASE_SECONDS, NOT_RUNNING, RENEWALS_PER_LEASE, LeaseWatch, ProcessId
from yolofleet.core.terminal import note
from yolofleet.core.text import one_line, short
from yolofleet.registry.versions import TAG_PREFIX
from yolofleet.tracking.json_lines import utc_now

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.5

Stage = Literal["choosing", "waiting", "committing"]
VersionNumber = Annotated[int, Field(ge=1, lt=2**63)]
Sequence = Annotated[int, Field(ge=0, lt=10**12)]


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
class LockRequest:
    """A request for the lock of an alias, with the change that its process wants to make."""

    alias: str
    version: int
    """The version that it will point to."""
    expected: int | None
    """The version that it pointed to when this was decided; None for none."""
    action: str
    """``promote`` or ``rollback``."""
    reason: str
    """Why, in words."""
    by: str
    """The user."""
    process: ProcessId
    time: str = field(default_factory=utc_now)
    """When, in UTC."""
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    """What no other request has."""
    stage: Stage = "choosing"
    """How far it is."""
    number: int = 0
    """Its position in the queue; 0 while it is choosing."""
    sequence: int = 0
    """Its number in the history, while it is committing."""
    forced: bool = False
    """Whether gates were overruled."""

    @property
    def key(self) -> str:
        """The key of its tag."""
        return f"{_key_prefix(self.alias)}{self.identity}"

    def precedes(self, other: LockRequest) -> bool:
        """Return whether the other request has to wait for this one; number 0, still choosing, precedes all."""
        return (self.number, self.identity) < (other.number, other.identity)

    def to_tag(self, renewals: int = 0) -> str:
        """Return the value of its tag; each renewal makes it another text."""
        document = asdict(self)
        process = document.pop("process")
        holder = {
            "host": f"{process['host']} {process['process_table']}",
            "pid": process["pid"],
            "started": str(process["start_ticks"]),
        }
        return json.dumps({**document, "holder": holder, "beat": renewals}, sort_keys=True)

    @staticmethod
    def from_tag(text: str) -> LockRequest:
        """Return the request that a tag holds.

        Raises:
            ValueError: It holds none.
        """
        document = dict(_RequestTag.model_validate_json(text, strict=True))
        holder: _LockHolder = document.pop("holder")
        host, _, process_table = holder.host.partition(" ")
        process = ProcessId(host, process_table, holder.pid, int(holder.started or NOT_RUNNING))
        return LockRequest(process=process, **document)


class _LockHolder(BaseModel):
    host: str
    pid: Annotated[int, Field(ge=0, lt=2**63)]
    started: Annotated[str, Field(pattern=r"^-?\d{0,20}$")]


class _RequestTag(BaseModel):
    """The value of a request's tag, which anybody may have written."""

    alias: str
    version: VersionNumber
    expected: VersionNumber | None
    action: str
    reason: str
    by: str
    holder: _LockHolder
    time: str
    identity: str
    stage: Stage
    number: int
    sequence: Sequence
    forced: bool = False


def read_requests(tags: Mapping[str, str], alias: str) -> list[LockRequest]:
    """Return the requests for an alias in the order of the queue; damaged tags are reported and left out."""
    requests = []
    for key, text in tags.items():
        if key.startswith(_key_prefix(alias)):
            try:
                request = LockRequest.from_tag(text)
                if request.key != key:
                    raise ValueError(f"it belongs to {short(request.key)}")
                requests.append(request)
            except ValueError as error:
                report_damaged(key, one_line(error))
    return sorted(requests, key=lambda request: (request.number, request.identity))


@lru_cache(maxsize=1000)
def report_damaged(key: str, reason: str) -> None:
    """Note that a tag is damaged and left out; once, however often it is read."""
    note(f"tag {short(key, 200)} of the registered model is damaged and left out ({reason}); remove it in MLflow")


class PromotionLock:
    """The queue for an alias, as one process sees it.

    Args:
        store: The tags.
        clock: Monotonic seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self, store: TagStore, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._watch = LeaseWatch(clock)
        self._renewed = clock()
        self._renewals = 0

    def write(self, request: LockRequest) -> LockRequest:
        """Write the tag of this process's request, which renews it, and return the request."""
        self._renewals += 1
        self._store.set_tag(request.key, request.to_tag(self._renewals))
        self._renewed = self._clock()
        return request

    def acquire(self, request: LockRequest, check_aliases: Callable[[Mapping[str, int]], None]) -> LockRequest:
        """Return the request once it holds the lock.

        Args:
            request: A new one.
            check_aliases: Called with the aliases each time that they are read; raises where waiting is useless.
        """
        # While this request is choosing, others wait for it: nobody overlooks the number that it will take.
        self.write(request)
        tags, _ = self._store.read()
        highest = max((other.number for other in read_requests(tags, request.alias)), default=0)
        # Two that choose at once may take the same number; then their identities decide.
        request = self.write(replace(request, stage="waiting", number=highest + 1))
        pause = SHORTEST_PAUSE_SECONDS
        while True:
            tags, aliases = self._store.read()
            check_aliases(aliases)
            others = [other for other in read_requests(tags, request.alias) if other.identity != request.identity]
            if not [other for other in others if other.precedes(request) and not self.is_dead(other, tags)]:
                return request
            if self._clock() - self._renewed > LEASE_SECONDS / RENEWALS_PER_LEASE:
                self.write(request)
            self._sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)

    def is_dead(self, request: LockRequest, tags: Mapping[str, str]) -> bool:
        """Return whether the process of a request has ended, as far as can be known."""
        expired = self._watch.has_expired(request.key, tags.get(request.key, ""))
        return request.process.has_ended() or expired


def _key_prefix(alias: str) -> str:
    return f"{TAG_PREFIX}intent.{alias}."
