"""Notifications: who gets what, what stays secret, and that one which fails changes nothing."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError, WorkError
from yolofleet.specs.base import SpecError
from yolofleet.specs.job import JobSpec
from yolofleet.specs.tracking import NotifySpec
from yolofleet.storage import StorageError
from yolofleet.storage.lock import LockLostError
from yolofleet.tracking import notifications
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.notifications import Notification, WorkNotifier, check_addresses, notify

MESSAGE = Notification("end", "run a has ended", "AP 0.5", "s3://runs/a")
CANARY = "canary-41d7"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "PATIENCE_SECONDS", 0.5)


class Webhook:
    """A server that takes messages; the first of them it refuses."""

    def __init__(self, refusals: int) -> None:
        self.taken: list[dict[str, str]] = []
        self.num_requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.num_requests += 1
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.startswith("/redirect"):
                    self.send_response(307)
                    self.send_header("Location", "/elsewhere")
                elif outer.num_requests <= refusals:
                    self.send_response(503)
                else:
                    outer.taken.append(json.loads(data))
                    self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{CANARY}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def webhook(request: pytest.FixtureRequest) -> Iterator[Webhook]:
    made = Webhook(getattr(request, "param", 0))
    yield made
    made.server.shutdown()
    made.server.server_close()


class Events(list[dict[str, Any]]):
    """Events as they were appended."""

    def append_event(self, kind: str, **fields: Any) -> None:
        self.append({"kind": kind, **fields})


def spec_of(*variables: str, **fields: Any) -> NotifySpec:
    return NotifySpec.parse({"to": list(variables), **fields}, source="job.yaml: notify")


@pytest.mark.parametrize("webhook", [0, 1], indirect=True)
def test_a_webhook_gets_the_message_once_even_if_it_refuses_at_first(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", webhook.url)
    events = Events()
    notify(spec_of("HOOK"), MESSAGE, events.append_event)
    (taken,) = webhook.taken
    assert taken["text"] == "run a has ended\nAP 0.5" and taken["about"] == "end" and taken["subject"] == "s3://runs/a"
    assert events == [{"kind": "notified", "to": "HOOK", "about": "end"}]


def test_what_fails_is_an_event_without_the_address_and_the_others_are_sent(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GONE", f"http://127.0.0.1:9/{CANARY}")
    monkeypatch.setenv("HOOK", webhook.url)
    monkeypatch.setenv("AWAY", webhook.url.replace(CANARY, f"redirect/{CANARY}"))
    events = Events()
    notify(spec_of("GONE", "HOOK", "AWAY", "NOT_SET"), MESSAGE, events.append_event)
    assert [event["kind"] for event in events] == ["notification_failed", "notified", *["notification_failed"] * 2]
    assert len(webhook.taken) == 1, "and a redirection is not followed"
    assert CANARY not in str(events) + "".join(capsys.readouterr())


def test_only_what_is_wanted_is_sent(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", webhook.url)
    notify(spec_of("HOOK", on=["failure"]), MESSAGE, Events().append_event)
    assert webhook.num_requests == 0


@pytest.fixture
def apprise(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """A module with Apprise's interface, which knows slack:// only; returns what was sent with it."""
    sent: list[tuple[str, str, str]] = []

    class Apprise:
        def __init__(self) -> None:
            self.addresses: list[str] = []

        def add(self, address: str) -> bool:
            self.addresses.append(address)
            return address.startswith("slack://")

        def notify(self, *, title: str, body: str) -> bool:
            sent.extend((address, title, body) for address in self.addresses)
            return not any("refused" in address for address in self.addresses)

    module = types.ModuleType("apprise")
    module.Apprise = Apprise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apprise", module)
    return sent


def test_other_addresses_are_apprises(apprise: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT", f"slack://{CANARY}")
    monkeypatch.setenv("REFUSED", f"slack://refused-{CANARY}")
    events = Events()
    check_addresses(spec_of("CHAT", "REFUSED"))
    notify(spec_of("CHAT", "REFUSED"), MESSAGE, events.append_event)
    assert (f"slack://{CANARY}", "run a has ended", "AP 0.5") in apprise
    assert [event["kind"] for event in events] == ["notified", "notification_failed"]
    assert CANARY not in str(events)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "HOOK is not set where this command runs"),
        ("  ", "HOOK is not set where this command runs"),
        (f"unheard://{CANARY}", "holds no address that Apprise knows"),
    ],
)
@pytest.mark.usefixtures("apprise")
def test_addresses_are_checked_before_anything_starts(
    address: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    if address is not None:
        monkeypatch.setenv("HOOK", address)
    with pytest.raises(UserError, match=said) as refusal:
        check_addresses(spec_of("HOOK"))
    assert CANARY not in str(refusal.value)


def test_without_apprise_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    monkeypatch.setenv("HOOK", "slack://x")
    with pytest.raises(UserError, match=r"pip install 'yolofleet\[notify\]', or set it to a webhook"):
        check_addresses(spec_of("HOOK"))


@pytest.mark.parametrize("value", [f"https://hooks/{CANARY}", [f"https://hooks/{CANARY}"], [], ["A"] * 21, [7], {}])
def test_an_address_in_a_spec_is_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(SpecError, match=r"to: takes (a list of 1 to 20 )?names of environment variables") as refusal:
        NotifySpec.parse({"to": value}, source="job.yaml")
    assert CANARY not in str(refusal.value)


def test_who_is_notified_is_no_part_of_what_is_computed() -> None:
    job = {"name": "a", "model": {"name": "yolov7"}, "data": {"train": "t", "val": "v"}}
    plain, with_notify = (JobSpec.parse(entry, source="x") for entry in (job, job | {"notify": {"to": ["HOOK"]}}))
    assert plain.digest() == with_notify.digest()
    assert "notify" not in plain.document(), "so jobs of before have the same document"


class AskedToStopError(WorkError):
    is_wilful = True


@pytest.mark.parametrize(
    ("error", "about"),
    [
        (WorkError("the workers failed"), ["failure"]),
        (StorageError("s3://runs: AccessDenied"), ["failure"]),
        (ValueError("a bug"), ["failure"]),
        (KeyboardInterrupt(), []),
        (AskedToStopError("SIGTERM"), []),
        (LockLostError("another has it"), []),
        (None, []),
    ],
)
def test_a_failure_is_notified_and_passes_on_and_a_stop_is_none(
    error: BaseException | None, about: list[str], webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", webhook.url)
    raised: BaseException | None = None
    try:
        with WorkNotifier(spec_of("HOOK"), "run a", "s3://runs/a"):
            if error is not None:
                raise error
    except BaseException as found:
        raised = found
    assert raised is error
    assert [entry["about"] for entry in webhook.taken] == about


def test_a_long_wait_is_notified_once_and_a_short_one_is_not(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", webhook.url)
    now = 0.0
    passed: list[Row] = []
    with WorkNotifier(spec_of("HOOK", waiting_minutes=30), "run a", "s3://runs/a", clock=lambda: now) as notifier:
        take = notifier.watching(passed.append)

        def after(minutes: float, kind: str | None = None) -> int:
            nonlocal now
            now += minutes * 60
            if kind is not None:
                take({"kind": kind, "reason": "no GPU is free"})
            notifier.check_waiting()
            return len(webhook.taken)

        assert [after(0, "waiting"), after(29), after(0, "starting"), after(60)] == [0, 0, 0, 0]
        assert [after(0, "waiting"), after(20, "waiting"), after(11), after(100)] == [0, 0, 1, 1]
    assert "no GPU is free" in webhook.taken[0]["text"] and "31 minutes" in webhook.taken[0]["title"]
    assert [row["kind"] for row in passed] == ["waiting", "starting", "waiting", "waiting"]


def test_a_job_that_fails_before_it_starts_notifies_too(
    webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", webhook.url)
    job = {
        "name": "a", "model": {"name": "yolov7-tiny"}, "data": {"train": str(tmp_path / "no"), "val": "no"},
        "storage": str(tmp_path / "runs"), "notify": {"to": ["HOOK"]},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert main(["train", str(tmp_path / "job.yaml"), "--launcher", "process"]) == 2
    assert [entry["title"] for entry in webhook.taken] == ["yolofleet: run a has failed"]
    monkeypatch.delenv("HOOK")
    assert main(["train", str(tmp_path / "job.yaml"), "--launcher", "process"]) == 2
    assert webhook.num_requests == 1
