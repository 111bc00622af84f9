"""The Jobs API of a Ray cluster: sends jobs, lists them, reads their state and output, stops them.

One private method of Ray's client is overridden, `_do_request`: the client takes no time-out, and would wait for ever
for a host that went away in the middle of an answer.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from yolofleet.cluster.bundle import Bundle
from yolofleet.cluster.sent_job import SentJob, bundle_of, metadata_of, parse_job
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.ray_runtime import environment_variable, use_token
from yolofleet.core.redaction import holds_secret, redact_url
from yolofleet.core.retry import retry
from yolofleet.core.text import first_line
from yolofleet.training.supervision.admission import ADMITTED, SENT_VARIABLE, USER_VARIABLE, WAITING, sender_name

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_TIMEOUT_SECONDS = (10.0, 60.0)
"""How long a connection, and each part of an answer, may take."""
STOP_SECONDS = 120
"""How long a job that is asked to stop may take to save its state."""
FORGET_SECONDS = 3.0
"""Ray's supervisor of a job looks for it once more within this time after the job was deleted."""
START_SECONDS = 60
"""How long sending is retried at a cluster that has just started and takes no jobs yet."""
POLL_SECONDS = 1.0
AWAY_SECONDS = 600.0
"""How long a cluster that does not answer is waited for."""
ENVIRONMENT = {
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
VERBOSE_LOGGERS = ("ray.dashboard", "ray._private.runtime_env.packaging")
"""Loggers of Ray that report every upload and connection."""
PREFIX = "yolofleet"
ANYWAY = "anyway"
"""Tells the job to run whatever versions the cluster has."""


class NoSuchJobError(UserError):
    """The cluster answers and does not know the job."""


class JobService:
    """The Jobs API at an address.

    Args:
        address: The cluster's dashboard, ``http://HOST:PORT``.

    Raises:
        UserError: No cluster answers there, or it refuses this user's token.
    """

    def __init__(self, address: str | None) -> None:
        self.address = _check_address(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        use_token()
        from ray.job_submission import JobSubmissionClient

        class PatientClient(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types here
            """Ray's client with time-outs."""

            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, timeout=ANSWER_TIMEOUT_SECONDS, **options)

        for name in VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._user_errors(), environment_variable(ADDRESS_VARIABLE, self.address):  # Ray prefers it
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
        # Two users who send at once choose the same id, and the cluster takes it once. Jobs of before may be deleted.
        begin = f"{PREFIX}-{bundle.name}-{bundle.digest[:8]}-"
        numbers = (job.id.removeprefix(begin) for job in earlier if job.id.startswith(begin))
        submission_id = f"{begin}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
        command = f"python -m yolofleet.cli.remote_entrypoint {bundle.kind}{f' {ANYWAY}' if any_version else ''}"
        with tempfile.TemporaryDirectory(prefix="yolofleet-submit-") as folder, self._user_errors():
            bundle.write(Path(folder))
            environment = {"working_dir": folder, "env_vars": ENVIRONMENT | _sender()}
            resources = {f"entrypoint_num_{key}": value for key, value in bundle.resources.items() if value}
            try:
                # A cluster that has just started may not take jobs yet.
                retry(
                    lambda: self._client.submit_job(
                        entrypoint=command,
                        submission_id=submission_id,
                        metadata=metadata_of(bundle),
                        runtime_env=environment,
                        **resources,
                    ),
                    patience_seconds=START_SECONDS,
                    is_transient=lambda error: isinstance(error, RuntimeError) and "No available agent" in str(error),
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return self.job(submission_id), False
        return self.job(submission_id), True

    def bundle_of(self, job: SentJob) -> Bundle:
        """Return what was sent as a job, to send it again.

        Raises:
            UserError: The cluster does not have it.
        """
        with self._user_errors():
            return bundle_of(job.id, self._client.get_job_info(job.id).metadata or {})

    def jobs(self) -> list[SentJob]:
        """Return the jobs that were sent to the cluster, the oldest first."""
        with self._user_errors():
            jobs = [parse_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.began or 0.0)

    def with_waiting(self, job: SentJob) -> SentJob:
        """Return a job with the reason why it waits for room, which its driver has printed."""
        if job.status != "RUNNING":
            return job
        try:
            return replace(job, waiting=waiting_reason(self.logs(job)))
        except WorkError:  # it has just ended, or its node has: the next look shows that
            return job

    def job(self, name: str) -> SentJob:
        """Return a job by its id, or the newest of a name.

        Raises:
            NoSuchJobError: There is none.
        """
        jobs = self.jobs()
        matches = [job for job in jobs if name in (job.id, job.name)]
        if not matches:
            names = ", ".join(sorted({job.name or job.id for job in jobs})) or "none"
            raise NoSuchJobError(f"{name}: no such job at {self.address}; those there: {names}")
        return matches[-1]

    def await_end(self, job: SentJob, patience_seconds: float) -> SentJob:
        """Return a job's state when it has ended, or when the patience is over."""
        end = time.monotonic() + patience_seconds
        while not job.has_ended and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            job = self.job(job.id)
        return job

    def await_all(
        self, jobs: list[SentJob], patience_seconds: float, on_end: Callable[[SentJob], None]
    ) -> list[SentJob]:
        """Return the jobs' states, in their order, when all have ended, or when the patience is over.

        Args:
            jobs: Which ones.
            patience_seconds: Longest wait.
            on_end: Takes each job when it has ended.
        """
        end = time.monotonic() + patience_seconds
        states = {job.id: job for job in jobs}
        reported: set[str] = set()
        while True:
            for job in states.values():
                if job.has_ended and job.id not in reported:
                    reported.add(job.id)
                    on_end(job)
            waiting = [job for job in states.values() if not job.has_ended]
            if not waiting or time.monotonic() >= end:
                return [states[job.id] for job in jobs]
            time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0.0)))
            known = {job.id: job for job in retry(self.jobs, patience_seconds=AWAY_SECONDS, is_transient=_is_away)}
            for job in waiting:
                if job.id not in known:
                    raise NoSuchJobError(f"{job.id}: the cluster at {self.address} no longer knows it")
                states[job.id] = known[job.id]

    def logs(self, job: SentJob) -> str:
        """Return everything that a job has printed so far."""
        with self._user_errors():
            return str(self._client.get_job_logs(job.id))

    def tail(self, job: SentJob) -> AsyncIterator[str]:
        """Iterate over what a job prints, from its beginning to its end."""
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job.id)
        return pieces

    def stop(self, job: SentJob) -> None:
        """Tell a job to save its state and end; it is ended after `STOP_SECONDS`."""
        with self._user_errors():
            self._client.stop_job(job.id)

    def forget(self, job: SentJob) -> None:
        """Remove a job that has ended from the cluster's list; one that still runs is stopped, and stays there."""
        with self._user_errors():
            if not self.job(job.id).has_ended:
                self._client.stop_job(job.id)
                return
            self._client.delete_job(job.id)
            # Ray's supervisor of the job looks once more, misses it, and records that it has failed.
            time.sleep(FORGET_SECONDS)
            if any(listed.id == job.id for listed in self.jobs()):
                self._client.delete_job(job.id)

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turn Ray's errors into errors that name their cure."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except (ConnectionError, OSError) as error:
            raise UserError(
                f"{self.address}: no Ray cluster answers there ({first_line(error)}); is it running, and is --address "
                "that of its dashboard (http://HOST:8265)?"
            ) from error
        except AuthenticationError as error:
            raise UserError(
                f"{self.address}: the cluster does not let this user in; set RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
            ) from error
        except RuntimeError as error:
            raise WorkError(f"{self.address}: {first_line(error)}") from error


def _check_address(address: str) -> str:
    if holds_secret(address):
        raise UserError(f"--address {redact_url(address)}: takes no secret; give the token in RAY_AUTH_TOKEN")
    try:
        parts, _ = urlsplit(address), urlsplit(address).port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address}: is not the address of a dashboard; it looks like http://HOST:8265")
    return address.rstrip("/")


def _is_away(error: Exception) -> bool:
    return isinstance(error, UserError | WorkError) and isinstance(error.__cause__, ConnectionError | OSError)


def _sender() -> dict[str, str]:
    """Return what the cluster's queue has to know of the sender: whose quota counts, and when the job was sent."""
    return {USER_VARIABLE: sender_name(), SENT_VARIABLE: f"{time.time():.3f}"}


def waiting_reason(output: str) -> str | None:
    """Return why a job waits for room by what it has printed; None: it does not wait, or no longer."""
    lines = [line for line in output.splitlines() if line.startswith((WAITING, ADMITTED))]
    return lines[-1].removeprefix(WAITING) if lines and lines[-1].startswith(WAITING) else None
