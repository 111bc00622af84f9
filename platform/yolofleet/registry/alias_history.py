"""Moving an alias from one version to another, and who was champion when.

    1  tag of the intent: choosing, waiting in line        (yolofleet.registry.promotion_lock)
    2  tag of the intent: committing, with its number in the history
    3  the alias                                           <- the only commit point
    4  tag of the history
    5  the alias of the previous version, for a rollback
    6  tag of the intent: removed

Before 3 nothing has happened, after it everything has: what is missing of 4 to 6 stands in the intent, and whoever
moves the alias next puts it right first.
"""

from __future__ import annotations

import getpass
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from yolofleet.core.errors import UserError, WorkError
from yolofleet.registry.promotion_lock import Holder, Intent, Line, TagStore, read_intents
from yolofleet.registry.versions import TAG_PREFIX, RegistryError, VersionGoneError
from yolofleet.tracking.mlflow_store import TrackingError
from yolofleet.tracking.run_directory import utc_now

SETTLE_SECONDS = 2.0
"""How long the last request of a killed process may still be on its way."""
FOUND = "found"


class PromotionLostError(WorkError):
    """Another promotion was first, or the alias was moved meanwhile."""


@dataclass(frozen=True)
class Reign:
    """One entry of an alias's history.

    Attributes:
        sequence: Its number, from 1.
        version: What the alias pointed to from then on.
        previous: What it pointed to before.
        action: promote, rollback, or found: something other than yolofleet had moved it.
        reason: Why.
        by: Who.
        time: When, in UTC.
        identity: Of the intent that it came from.
        forced: Whether gates were overruled.
    """

    sequence: int
    version: int
    previous: int | None
    action: str
    reason: str
    by: str
    time: str
    identity: str
    forced: bool = False


def previous_alias(alias: str) -> str:
    """Return the alias of the version that another alias pointed to before."""
    return f"{alias}-previous"


def move_alias(
    store: TagStore,
    alias: str,
    version: int,
    *,
    expected: int | None,
    action: str,
    reason: str,
    forced: bool = False,
) -> Reign:
    """Point an alias to a version, if it still points to what is expected; one process at a time.

    Args:
        store: Tags and aliases of the registered model.
        alias: The alias.
        version: What it shall point to.
        expected: What it pointed to when this was decided; None for nothing.
        action: ``promote`` or ``rollback``.
        reason: Why, for the history.
        forced: Whether gates were overruled.

    Returns:
        The new entry of the history.

    Raises:
        RegistryError: It points to that version already.
        PromotionLostError: The alias points to something else by now; nothing was changed.
        TrackingError: MLflow does not answer. If it took the alias, the next promotion finishes the rest.
    """
    if version == expected:
        raise RegistryError(f"version {version} is @{alias} already: there is nothing to {action}")
    line = Line(store)
    intent = Intent(alias, version, expected, action, reason, getpass.getuser(), Holder.here(), forced=forced)

    def check(aliases: Mapping[str, int]) -> None:
        if aliases.get(alias) != expected:
            raise PromotionLostError(_lost(store, intent, aliases.get(alias)))

    try:
        intent = line.wait_for_turn(intent, check)
        _repair(store, line, intent)
        tags, aliases = store.read()
        check(aliases)
        if intent.key not in tags:
            raise PromotionLostError(f"version {version} was not promoted: it was taken for dead; run it again")
        sequence = _explained(store, alias, tags, aliases)
        intent = line.write(replace(intent, stage="committing", sequence=sequence + 1))
    except BaseException:
        with suppress(TrackingError):  # it is dead when this process ends; the next one in line removes it
            store.delete_tag(intent.key)
        raise
    store.set_alias(alias, version)
    return _finish(store, intent)


def reigns(tags: Mapping[str, str], aliases: Mapping[str, int], alias: str) -> list[Reign]:
    """Return the history of an alias, the oldest entry first, a commit that was not written down yet included."""
    known = _written(tags, alias)
    identities = {reign.identity for reign in known}
    for intent in read_intents(tags, alias):
        committed = intent.stage == "committing" and aliases.get(alias) == intent.version
        if committed and intent.identity not in identities:
            known.append(_reign(intent))
    return known


def rollback_target(tags: Mapping[str, str], aliases: Mapping[str, int], alias: str) -> int:
    """Return the version that a rollback of an alias goes back to.

    Raises:
        RegistryError: There is none.
    """
    history = reigns(tags, aliases, alias)
    current = aliases.get(alias)
    if current is None:
        raise RegistryError(f"nothing is @{alias}: there is nothing to roll back")
    target = aliases.get(previous_alias(alias))
    if history and history[-1].version == current:
        target = history[-1].previous
    if target is None or target == current:
        raise RegistryError(f"no version was @{alias} before version {current}: there is nothing to roll back to")
    return target


def _repair(store: TagStore, line: Line, own: Intent) -> None:
    """Finish or remove what dead intents have left; only the holder of the turn may."""
    tags, _ = store.read()
    dead = [other for other in read_intents(tags, own.alias) if other.identity != own.identity]
    dead = [other for other in dead if line.is_dead(other, tags)]
    if any(other.stage == "committing" for other in dead):
        time.sleep(SETTLE_SECONDS)
        _, aliases = store.read()
    for other in dead:
        if other.stage == "committing" and aliases.get(own.alias) == other.version:
            _finish(store, other)
        else:
            store.delete_tag(other.key)


def _finish(store: TagStore, intent: Intent) -> Reign:
    """Do what comes after the alias; doing it again changes nothing."""
    reign = _reign(intent)
    store.set_tag(_history_key(intent.alias, intent.sequence), json.dumps(asdict(reign), sort_keys=True))
    if intent.expected is not None:
        with suppress(VersionGoneError):  # then there is no way back, but the promotion holds
            store.set_alias(previous_alias(intent.alias), intent.expected)
    store.delete_tag(intent.key)
    return reign


def _explained(store: TagStore, alias: str, tags: Mapping[str, str], aliases: Mapping[str, int]) -> int:
    """Make sure that the history ends with what the alias points to, and return its last number."""
    history = _written(tags, alias)
    last = history[-1] if history else None
    current = aliases.get(alias)
    if current is None or (last is not None and last.version == current):
        return last.sequence if last else 0
    found = Reign(
        sequence=last.sequence + 1 if last else 1,
        version=current,
        previous=last.version if last else None,
        action=FOUND,
        reason="the alias was set by something else, at an unknown time before this",
        by="unknown",
        time=utc_now(),
        identity="",
    )
    store.set_tag(_history_key(alias, found.sequence), json.dumps(asdict(found), sort_keys=True))
    return found.sequence


def _lost(store: TagStore, intent: Intent, current: int | None) -> str:
    tags, aliases = store.read()
    who = next(
        (
            f" ({reign.action} by {reign.by} at {reign.time}{f': {reign.reason}' if reign.reason else ''})"
            for reign in reversed(reigns(tags, aliases, intent.alias))
            if reign.version == current
        ),
        "",
    )
    now = "nothing" if current is None else f"version {current}"
    before = "nothing" if intent.expected is None else f"version {intent.expected}"
    return (
        f"version {intent.version} was not promoted: @{intent.alias} points to {now} now{who}, and it was judged "
        f"against {before}; run the command again to have it judged against {now}"
    )


def _written(tags: Mapping[str, str], alias: str) -> list[Reign]:
    pattern = re.compile(re.escape(_history_key(alias, 0)[: -len("000000")]) + r"\d{6,}")
    entries = []
    for key, text in tags.items():
        if pattern.fullmatch(key):
            try:
                document: dict[str, Any] = json.loads(text)
                entries.append(Reign(**document))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"tag {key} of the registered model is damaged ({error}); remove it in MLflow"
                ) from error
    return sorted(entries, key=lambda reign: reign.sequence)


def _reign(intent: Intent) -> Reign:
    return Reign(
        sequence=intent.sequence,
        version=intent.version,
        previous=intent.expected,
        action=intent.action,
        reason=intent.reason,
        by=intent.by,
        time=intent.time,
        identity=intent.identity,
        forced=intent.forced,
    )


def _history_key(alias: str, sequence: int) -> str:
    return f"{TAG_PREFIX}history.{alias}.{sequence:06d}"
