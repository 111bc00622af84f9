"""Notifications: what happened to a run, a search or an alias, sent to addresses that environment variables hold.

A spec names the variables; no address is ever written down, shown or logged. An address that begins with http:// or
https:// is a webhook and gets JSON by POST; all others are Apprise's (https://github.com/caronc/apprise). What cannot
be sent is tried again within seconds, recorded, and never changes the work.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from yolofleet.core.background import BackgroundLoop, gather
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.retry import retry
from yolofleet.core.terminal import note
from yolofleet.core.text import one_line, plural
from yolofleet.specs.tracking import NotifySpec
from yolofleet.storage.lock import LockLostError
from yolofleet.tracking.json_lines import OnRow, Row
from yolofleet.tracking.run_directory import OnEvent, RunDirectory

PATIENCE_SECONDS = 8.0
"""How long an address that does not take a notification is tried."""
DEADLINE_SECONDS = 15.0
"""Longest time for all addresses together."""
ATTEMPT_SECONDS = 5.0
CHECK_SECONDS = 5.0
WEBHOOKS = ("http://", "https://")
ENDS_OF_WAITING = ("starting", "start", "end", "stopped", "failed")


@dataclass(frozen=True)
class Notification:
    """One message."""

    about: str
    """Its kind: end, failure, waiting or champion."""
    title: str
    body: str
    subject: str
    """URL of the run directory, or the version."""

    def document(self) -> dict[str, str]:
        """Return what a webhook gets; ``text`` is what the webhooks of chat programs show."""
        text = f"{self.title}\n{self.body}"
        return {"text": text, "title": self.title, "body": self.body, "about": self.about, "subject": self.subject}


def check_addresses(spec: NotifySpec) -> None:
    """Make sure that every variable holds an address that something here can send to.

    Raises:
        UserError: One is not set, needs Apprise, which is not installed, or is none that Apprise knows.
    """
    for variable in spec.to:
        if not _address(variable).startswith(WEBHOOKS):
            _open_apprise(variable)


def notify(spec: NotifySpec, message: Notification, on_event: OnEvent) -> None:
    """Send a message to every address of a spec, if it is about what the spec wants; never raises.

    Args:
        spec: Who is notified, and of what.
        message: What happened.
        on_event: Takes an event for each address: ``notified``, or ``notification_failed`` with the reason.
    """
    if message.about not in spec.on:
        return
    actions = [partial(_deliver, variable, message) for variable in spec.to]
    for variable, result in zip(spec.to, gather(actions, deadline_seconds=DEADLINE_SECONDS), strict=True):
        if result is True:
            on_event("notified", to=variable, about=message.about)
            continue
        reason = f"no answer within {DEADLINE_SECONDS:g} s" if result is None else _without_address(result, variable)
        note(f"{variable} could not be notified of {message.about}: {reason}")
        on_event("notification_failed", to=variable, about=message.about, reason=reason)


def _deliver(variable: str, message: Notification) -> bool:
    address = _address(variable)
    send = partial(_post, address, message) if address.startswith(WEBHOOKS) else partial(_send, variable, message)
    retry(
        send,
        patience_seconds=PATIENCE_SECONDS,
        is_transient=lambda error: not isinstance(error, UserError),
        longest_pause_seconds=2.0,
    )
    return True


def _without_address(result: object, variable: str) -> str:
    """Return an error's message, from which whatever library raised it may not have kept the address."""
    reason = one_line(result, 200)
    for part in filter(None, (os.environ.get(variable, ""), os.environ.get(variable, "").partition("://")[2])):
        reason = reason.replace(part, "***")
    return reason


def _address(variable: str) -> str:
    address = os.environ.get(variable, "").strip()
    if not address:
        raise UserError(
            f"notify.to: {variable} is not set where this command runs; set it to a webhook (https://...) or an "
            "address of Apprise, or take it out of notify.to"
        )
    return address


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A message goes where the user said and nowhere else."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


def _post(address: str, message: Notification) -> None:
    data = json.dumps(message.document()).encode()
    request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=ATTEMPT_SECONDS):
            return
    except urllib.error.HTTPError as error:
        raise WorkError(f"the webhook answered {error.code}") from None
    except (OSError, ValueError) as error:  # their messages may hold the address
        raise WorkError(f"the webhook does not answer ({type(error).__name__})") from None


def _send(variable: str, message: Notification) -> None:
    if not _open_apprise(variable).notify(title=message.title, body=message.body):
        raise WorkError("Apprise could not deliver it")


def _open_apprise(variable: str) -> Any:
    """Return Apprise with the address of a variable.

    Raises:
        UserError: It is not installed, or does not know such an address.
    """
    try:
        import apprise
    except ImportError as error:
        raise UserError(
            f"notify.to: {variable} holds an address that needs Apprise, which is not installed here: pip install "
            "'yolofleet[notify]', or set it to a webhook (https://...)"
        ) from error
    opened = apprise.Apprise()
    if not opened.add(_address(variable)):
        raise UserError(f"notify.to: {variable} holds no address that Apprise knows; its documentation lists them")
    return opened


def _drop(kind: str, **fields: Any) -> None:
    """Record nothing."""


@dataclass
class WorkNotifier:
    """Notifies of one run or search for the length of a with block: its failure, a long wait, and `end`.

    Attributes:
        on_event: Takes the events of what was sent; may be replaced while the work runs.
    """

    spec: NotifySpec
    name: str
    """What is trained or searched, for the title."""
    subject: str
    """URL of its directory."""
    on_event: OnEvent = _drop
    clock: Callable[[], float] = time.monotonic
    _waits_since: float | None = None
    _reason: str = ""
    _loop: BackgroundLoop = field(init=False)

    def __enter__(self) -> WorkNotifier:
        check_addresses(self.spec)
        self._loop = BackgroundLoop(
            self.check_waiting,
            seconds=CHECK_SECONDS,
            name="notifier",
            warning="the notification of a long wait cannot be sent",
        )
        self._loop.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close()
        is_stopped = hasattr(error, "is_wilful")  # by somebody, or by the end of its node; the same command resumes it
        if isinstance(error, Exception) and not is_stopped and not isinstance(error, LockLostError):
            self._notify("failure", f"{self.name} has failed", one_line(error, 500))

    def end(self, result: str) -> None:
        """Notify of the end of the work."""
        self._notify("end", f"{self.name} has ended", result)

    def watching(self, on_row: OnRow) -> OnRow:
        """Return what passes rows and events on, and sees from them how long the work waits."""

        def take(row: Row) -> None:
            if row.get("kind") == "waiting" and self._waits_since is None:
                self._waits_since, self._reason = self.clock(), one_line(row.get("reason", ""))
            elif row.get("kind") in ENDS_OF_WAITING:
                self._waits_since = None
            on_row(row)

        return take

    def check_waiting(self) -> None:
        """Notify once of a wait that is long."""
        since = self._waits_since
        if since is not None and self.clock() - since > 60 * self.spec.waiting_minutes:
            self._waits_since = None  # the next one counts anew
            minutes = (self.clock() - since) / 60
            waited = plural(minutes, "minute", form=".0f")
            self._notify("waiting", f"{self.name} has waited for {waited}", self._reason)

    def _notify(self, about: str, title: str, body: str) -> None:
        notify(
            self.spec,
            Notification(about, f"yolofleet: {title}", f"{body}\n{self.subject}", self.subject),
            self.on_event,
        )


@contextmanager
def notifying(spec: NotifySpec, name: str, open_log: Callable[[], RunDirectory]) -> Iterator[WorkNotifier]:
    """Notify of a run or search for the length of a with block; `WorkNotifier` takes the same.

    Args:
        spec: Who is notified, and of what.
        name: What is trained or searched.
        open_log: Opens its directory, to record what was sent.
    """

    def on_event(kind: str, **fields: Any) -> None:
        with open_log() as directory:
            if directory.exists():
                directory.append_event(kind, **fields)

    with WorkNotifier(spec, name, open_log().url, on_event) as notifier:
        yield notifier
