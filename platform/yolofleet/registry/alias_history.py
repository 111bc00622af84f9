"""Moving an alias from one version to another, and the history of its changes.

    1  tag of the request: choosing, then waiting          (yolofleet.registry.promotion_lock)
    2  tag of the request: committing, with its number in the history
    3  the alias                                           <- the only commit point
    4  tag of the history
    5  the alias of the previous version, for a rollback
    6  tag of the request: removed

A promotion that is killed before step 3 has not happened; after step 3 it has. The request holds what is missing of
steps 4 to 6, and the process that moves the alias next finishes them first.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter

from yolofleet.core.errors import WorkError
from yolofleet.core.liveness import ProcessId, user_name
from yolofleet.core.redaction import redact
from yolofleet.core.text import one_line
from yolofleet.registry.promotion_lock import (
    LockRequest,
    PromotionLock,
    Sequence,
    TagStore,
    VersionNumber,
    read_requests,
    report_damaged,
)
from yolofleet.registry.versions import TAG_PREFIX, RegistryError, VersionGoneError
from yolofleet.tracking.json_lines import utc_now
from yolofleet.tracking.mlflow_store import TrackingError, TrackingFailureError

SETTLE_SECONDS = 2.0
"""After this long the last request of a killed process has arrived."""
FOUND = "found"
"""Action of a change that yolofleet did not make."""


class PromotionLostError(WorkError):
    """Another promotion was first, or the alias was moved meanwhile."""


@dataclass(frozen=True)
class AliasChange:
    """One entry of an alias's history: the alias points to ``version`` from then on, and no more to ``previous``."""

    sequence: Sequence
    """Its number, from 1."""
    version: VersionNumber
    previous: VersionNumber | None
    action: str
    """promote, rollback or `FOUND`."""
    reason: str
    by: str
    time: str
    identity: str
    """That of the lock request which made the change."""
    forced: bool = False
    """Whether gates were overruled."""

    @staticmethod
    def of_request(request: LockRequest) -> AliasChange:
        """Return the change that a committing request makes."""
        origin = (request.action, request.reason, request.by, request.time, request.identity)
        return AliasChange(request.sequence, request.version, request.expected, *origin, forced=request.forced)


_CHANGE = TypeAdapter(AliasChange)


def previous_alias(alias: str) -> str:
    """Return the alias of the version that another alias pointed to before."""
    return f"{alias}-previous"


def move_alias(
    store: TagStore, alias: str, version: int, *, expected: int | None, action: str, reason: str, forced: bool = False
) -> AliasChange:
    """Point an alias to a version, if it still points to the expected one; one process at a time.

    Args:
        store: Tags and aliases of the registered model.
        alias: The alias.
        version: The version that it will point to.
        expected: The version that it pointed to when this was decided; None for none.
        action: ``promote`` or ``rollback``.
        reason: Why, for the history.
        forced: Whether gates were overruled.

    Returns:
        The new entry of the history.

    Raises:
        RegistryError: It points to that version already.
        PromotionLostError: The alias points to another version by now; nothing was changed.
        TrackingError, TrackingFailureError: MLflow does not answer. If the alias was moved, the next promotion finishes
            the rest.
    """
    if version == expected:
        raise RegistryError(f"version {version} is @{alias} already: there is nothing to {action}")
    lock = PromotionLock(store)
    request = LockRequest(
        alias, version, expected, action, redact(reason), user_name(), ProcessId.current(), forced=forced
    )

    def check_aliases(aliases: Mapping[str, int]) -> None:
        if aliases.get(alias) != expected:
            raise PromotionLostError(_lost_message(store, request, aliases.get(alias)))

    try:
        request = lock.acquire(request, check_aliases)
        _clean_up(store, lock, request)
        tags, aliases = store.read()
        check_aliases(aliases)
        if request.key not in tags:
            raise PromotionLostError(
                f"version {version} was not promoted: another process took this one for dead; run it again"
            )
        sequence = _complete_history(store, alias, tags, aliases)
        request = lock.write(replace(request, stage="committing", sequence=sequence + 1))
    except BaseException:
        with suppress(TrackingError, TrackingFailureError):  # else the next in the queue removes it after our end
            store.delete_tag(request.key)
        raise
    store.set_alias(alias, version)
    return _finish(store, request)


def alias_changes(tags: Mapping[str, str], aliases: Mapping[str, int], alias: str) -> list[AliasChange]:
    """Return the history of an alias, the oldest entry first, with a commit that was not written down yet."""
    changes = _read_changes(tags, alias)
    identities = {change.identity for change in changes}
    for request in read_requests(tags, alias):
        committed = request.stage == "committing" and aliases.get(alias) == request.version
        if committed and request.identity not in identities:
            changes.append(AliasChange.of_request(request))
    return changes


def rollback_target(tags: Mapping[str, str], aliases: Mapping[str, int], alias: str) -> int:
    """Return the version that a rollback of an alias goes back to.

    Raises:
        RegistryError: There is none.
    """
    history = alias_changes(tags, aliases, alias)
    current = aliases.get(alias)
    if current is None:
        raise RegistryError(f"nothing is @{alias}: there is nothing to roll back")
    target = aliases.get(previous_alias(alias))
    if history and history[-1].version == current:
        target = history[-1].previous
    if target is None or target == current:
        raise RegistryError(f"no version was @{alias} before version {current}: there is nothing to roll back to")
    return target


def _clean_up(store: TagStore, lock: PromotionLock, own: LockRequest) -> None:
    """Finish or remove what dead requests have left; only the process that holds the lock may."""
    tags, aliases = store.read()
    dead = [other for other in read_requests(tags, own.alias) if other.identity != own.identity]
    dead = [other for other in dead if lock.is_dead(other, tags)]
    if any(other.stage == "committing" for other in dead):
        time.sleep(SETTLE_SECONDS)
        _, aliases = store.read()
    for other in dead:
        if other.stage == "committing" and aliases.get(own.alias) == other.version:
            _finish(store, other)
        else:
            store.delete_tag(other.key)


def _finish(store: TagStore, request: LockRequest) -> AliasChange:
    """Do what comes after the alias; doing it again changes nothing."""
    change = AliasChange.of_request(request)
    _write_change(store, request.alias, change)
    if request.expected is not None:
        with suppress(VersionGoneError):  # then there is no way back, but the promotion holds
            store.set_alias(previous_alias(request.alias), request.expected)
    store.delete_tag(request.key)
    return change


def _complete_history(store: TagStore, alias: str, tags: Mapping[str, str], aliases: Mapping[str, int]) -> int:
    """Make the history end with the version that the alias points to, and return its last number."""
    history = _read_changes(tags, alias)
    last = history[-1] if history else None
    current = aliases.get(alias)
    if current is None or (last is not None and last.version == current):
        return last.sequence if last else 0
    change = AliasChange(
        sequence=last.sequence + 1 if last else 1,
        version=current,
        previous=last.version if last else None,
        action=FOUND,
        reason="the alias was set by something else, at an unknown time before this",
        by="unknown",
        time=utc_now(),
        identity="",
    )
    _write_change(store, alias, change)
    return change.sequence


def _lost_message(store: TagStore, request: LockRequest, current: int | None) -> str:
    tags, aliases = store.read()
    changes = alias_changes(tags, aliases, request.alias)
    cause = next((change for change in reversed(changes) if change.version == current), None)
    why = f": {cause.reason}" if cause is not None and cause.reason else ""
    who = "" if cause is None else f" ({cause.action} by {cause.by} at {cause.time}{why})"
    now = "nothing" if current is None else f"version {current}"
    before = "nothing" if request.expected is None else f"version {request.expected}"
    return (
        f"version {request.version} was not promoted: @{request.alias} points to {now} now{who}, and it was compared "
        f"with {before}; run the command again to compare it with {now}"
    )


def _read_changes(tags: Mapping[str, str], alias: str) -> list[AliasChange]:
    """Return what the tags of an alias say of its history; damaged ones are reported and left out."""
    pattern = re.compile(re.escape(_history_prefix(alias)) + r"(\d{6,12})")
    changes = []
    for key, text in tags.items():
        if match := pattern.fullmatch(key):
            try:
                change = _CHANGE.validate_json(text, strict=True)
                if change.sequence != int(match[1]):
                    raise ValueError(f"it is number {change.sequence}")
                changes.append(change)
            except ValueError as error:
                report_damaged(key, one_line(error))
    return sorted(changes, key=lambda change: change.sequence)


def _write_change(store: TagStore, alias: str, change: AliasChange) -> None:
    store.set_tag(f"{_history_prefix(alias)}{change.sequence:06d}", json.dumps(asdict(change), sort_keys=True))


def _history_prefix(alias: str) -> str:
    return f"{TAG_PREFIX}history.{alias}."
