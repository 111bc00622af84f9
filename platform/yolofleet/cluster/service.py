"""The Jobs API of a Ray cluster: what was sent to it, how it stands, what it printed."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from yolofleet.cluster.bundle import Bundle
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.ray_runtime import use_token
from yolofleet.core.redaction import holds_password, without_passwords

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_TIMEOUT_SECONDS = (10.0, 60.0)
"""How long a connection, and each part of an answer, may take."""
STOP_SECONDS = 120
"""How long a job that is told to stop may take to save its state."""
FORGET_SECONDS = 3.0
"""After this long nobody at the cluster looks for a job that has been taken from the list."""
START_SECONDS = 60
"""How long a cluster that has just started is asked again whether it takes jobs."""
ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
TALKATIVE = ("ray.dashboard", "ray._private.runtime_env.packaging")
"""Loggers of Ray's that tell of every upload and connection."""
PREFIX = "yolofleet"
ANYWAY = "anyway"
"""Tells the job to run whatever versions the cluster has."""


class NoSuchJobError(UserError):
    """The cluster answers, and does not know the job."""


@dataclass(frozen=True)
class SentJob:
    """A job as the cluster knows it.

    Attributes:
        id: Its submission id.
        name: Name of the run or search; None for a job that was not sent by us.
        digest: Digest of its bundle.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: What it ended with, where it ended by itself.
        message: What the cluster says of it.
        began: When it started, in seconds since 1970.
        ended: When it ended.
    """

    id: str
    name: str | None
    digest: str | None
    status: str
    exit_code: int | None
    message: str
    began: float | None
    ended: float | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED


class JobService:
    """The Jobs API at an address.

    Args:
        address: Where the cluster's dashboard answers, ``http://HOST:PORT``.

    Raises:
        UserError: Nobody answers there, or it does not let us in.
    """

    def __init__(self, address: str | None) -> None:
        self.address = _checked_address(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS)
        use_token()
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray takes it before what it is given
        from ray.job_submission import JobSubmissionClient

        class PatientClient(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types here
            """Ray's client waits for ever for a host that went away in the middle of an answer."""

            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, timeout=ANSWER_TIMEOUT_SECONDS, **options)

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._told():
            self._client = PatientClient(self.address)

    def send(self, bundle: Bundle, *, any_version: bool = False) -> tuple[SentJob, bool]:
        """Send a job unless it is there already, waiting or running.

        Returns:
            The job, and whether it was sent now.

        Raises:
            UserError: A job of the same name but with another spec is running.
        """
        earlier = [job for job in self.jobs() if job.name == bundle.name]
        for job in earlier:
            if not job.has_ended and job.digest != bundle.digest:
                raise UserError(
                    f"'{bundle.name}' is {job.status.lower()} at {self.address} with another spec (job {job.id}); "
                    f"stop it with 'yolofleet jobs stop {job.id}', or use another name"
                )
            if not job.has_ended:
                return job, False
        # Two that send at once choose the same id, and the cluster takes it once.
        submission_id = f"{PREFIX}-{bundle.name}-{bundle.digest[:8]}-{len(earlier) + 1}"
        command = f"python -m yolofleet.cli.remote_entrypoint {bundle.kind}{f' {ANYWAY}' if any_version else ''}"
        with tempfile.TemporaryDirectory(prefix="yolofleet-submit-") as folder, self._told():
            bundle.write(Path(folder))
            environment = {"working_dir": folder, "env_vars": ENVIRONMENT}
            metadata = {"name": bundle.name, "digest": bundle.digest, "kind": bundle.kind}
            try:
                self._submit(command, submission_id, environment, metadata)
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return self.job(submission_id), False
        return self.job(submission_id), True

    def _submit(self, command: str, submission_id: str, environment: dict[str, Any], metadata: dict[str, str]) -> None:
        """Submit; a cluster that has just started may not take jobs yet."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self._client.submit_job(
                    entrypoint=command, submission_id=submission_id, metadata=metadata, runtime_env=environment
                )
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(1.0)

    def jobs(self) -> list[SentJob]:
        """Return the jobs that were sent to the cluster, the oldest first."""
        with self._told():
            found = [_sent(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.began or 0.0)

    def job(self, name: str) -> SentJob:
        """Return a job by its id, or the newest of a name.

        Raises:
            NoSuchJobError: There is none.
        """
        known = self.jobs()
        found = [job for job in known if name in (job.id, job.name)]
        if not found:
            listed = ", ".join(sorted({job.name or job.id for job in known})) or "none"
            raise NoSuchJobError(f"{name}: no such job at {self.address}; those there: {listed}")
        return found[-1]

    def logs(self, job: SentJob) -> str:
        """Return everything that a job has printed so far."""
        with self._told():
            return str(self._client.get_job_logs(job.id))

    def tail(self, job: SentJob) -> AsyncIterator[str]:
        """Iterate over what a job prints, from its beginning to its end."""
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job.id)
        return pieces

    def stop(self, job: SentJob) -> None:
        """Tell a job to save its state and end; it is ended after `STOP_SECONDS`."""
        with self._told():
            self._client.stop_job(job.id)

    def forget(self, job: SentJob) -> None:
        """Take a job that has ended from the cluster's list; one that still runs is stopped, and stays there."""
        with self._told():
            if not self.job(job.id).has_ended:
                self._client.stop_job(job.id)
                return
            self._client.delete_job(job.id)
            # Whoever watches the job at the cluster looks once more, misses it, and notes that it has failed.
            time.sleep(FORGET_SECONDS)
            if any(known.id == job.id for known in self.jobs()):
                self._client.delete_job(job.id)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what Ray raises into what a user can do about it."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except (ConnectionError, OSError) as error:
            raise UserError(
                f"{self.address}: no Ray cluster answers there ({_first_line(error)}); is it running, and is --address "
                "that of its dashboard (http://HOST:8265)?"
            ) from error
        except AuthenticationError as error:
            raise UserError(
                f"{self.address}: the cluster does not let this user in; set RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
            ) from error
        except RuntimeError as error:
            raise WorkError(f"{self.address}: {_first_line(error)}") from error


def _checked_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address}: is not the address of a dashboard; it looks like http://HOST:8265")
    if holds_password(address):
        raise UserError(f"--address {without_passwords(address)}: takes no password; give the token in RAY_AUTH_TOKEN")
    return address.rstrip("/")


def _sent(details: Any) -> SentJob:
    metadata = details.metadata or {}
    return SentJob(
        id=str(details.submission_id),
        name=metadata.get("name"),
        digest=metadata.get("digest"),
        status=str(getattr(details.status, "value", details.status)),
        exit_code=details.driver_exit_code,
        message=" ".join((details.message or "").split())[:300],
        began=_seconds(details.start_time),
        ended=_seconds(details.end_time),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
