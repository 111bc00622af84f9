"""Processes that outlive the command that started them: recorded, found again, and ended by their id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

POLL_SECONDS = 0.2
LOG_TAIL_CHARACTERS = 2000


class ServiceError(Exception):
    """A service did not start; says what its log ends with."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process.

    Attributes:
        name: What it is called, also in its log's name.
        command: The program and its arguments; never a secret, for everybody sees them.
        ready: Returns whether it answers.
        environment: Variables beside those of the command that starts it.
        user: Whom it runs as, where it is not the caller.
        end_signal: What asks it to end in order.
        timeout_seconds: How long it may take to answer, and to end.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    end_signal: signal.Signals = signal.SIGTERM
    timeout_seconds: float = 300.0


@dataclass(frozen=True)
class Running:
    """A process that was started: its id alone could be another's by now.

    Attributes:
        pid: Its id.
        created: When it was created, in seconds since 1970, as the system tells it.
        end_signal: What asks it to end in order.
    """

    pid: int
    created: float
    end_signal: int

    def process(self) -> psutil.Process | None:
        """Return the process; None when it is gone."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if same else None


class Processes:
    """What runs, as ``processes.json`` of a folder records it.

    Args:
        folder: Where the record and the logs lie.
    """

    def __init__(self, folder: Path) -> None:
        self._record = folder / "processes.json"
        self._logs = folder / "logs"
        known = json.loads(self._record.read_text()) if self._record.exists() else {}
        self._running = {name: Running(**entry) for name, entry in known.items()}

    def states(self) -> dict[str, int | None]:
        """Return the process id of each service that was started, None for one that has ended."""
        return {name: entry.pid if entry.process() else None for name, entry in self._running.items()}

    def start(self, service: Service) -> bool:
        """Start a service and wait until it answers; returns whether it was not running already.

        Raises:
            ServiceError: It ended, or did not answer in time.
        """
        known = self._running.get(service.name)
        if known is not None and known.process() is not None:
            return False
        self._logs.mkdir(mode=0o700, exist_ok=True)
        log = self._logs / f"{service.name}.log"
        if log.exists():
            log.replace(log.with_suffix(".before.log"))
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(service.command),
                env=os.environ | dict(service.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=service.user,
                group=service.user,
                cwd="/",
            )
        self._running[service.name] = Running(
            process.pid, psutil.Process(process.pid).create_time(), int(service.end_signal)
        )
        self._write()
        end = time.monotonic() + service.timeout_seconds
        while not service.ready():
            if process.poll() is not None or time.monotonic() > end:
                why = "ended" if process.poll() is not None else f"did not answer in {service.timeout_seconds:g} s"
                raise ServiceError(f"{service.name} {why}; {log} ends with:\n{log.read_text()[-LOG_TAIL_CHARACTERS:]}")
            time.sleep(POLL_SECONDS)
        return True

    def end(self, timeout_seconds: float = 60.0) -> None:
        """End everything, the last started first, and with each what it started itself."""
        for name, entry in reversed(list(self._running.items())):
            if (process := entry.process()) is not None:
                family = _children(process)
                print(f"ending {name} ({entry.pid})", file=sys.stderr)
                _send(process, entry.end_signal)
                _, alive = psutil.wait_procs([process], timeout=timeout_seconds)
                left = [*alive, *(child for child in family if child.is_running())]
                for child in left:
                    _send(child, signal.SIGKILL)
                psutil.wait_procs(left, timeout=timeout_seconds)
            del self._running[name]
            self._write()

    def _write(self) -> None:
        entries = {name: asdict(entry) for name, entry in self._running.items()}
        self._record.write_text(json.dumps(entries, indent=1))


def _send(process: psutil.Process, number: int) -> None:
    """Send a signal; one that has ended meanwhile needs none."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
