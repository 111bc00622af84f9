"""Follows a job's output through the Jobs API: every character once, however often the connection breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from yolofleet.cluster.sent_job import SentJob
from yolofleet.cluster.service import JobService, NoSuchJobError
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.text import plural

RETRY_SECONDS = 3.0
PATIENCE_SECONDS = 600.0
"""How long connecting to a cluster that does not answer is retried."""
QUIET_SECONDS = 120.0
"""A connection that carried nothing for this long may be dead without an error: it is made anew."""

Show = Callable[[str], None]


def follow(
    service: JobService,
    job: SentJob,
    show: Show,
    warn: Show,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
    quiet_seconds: float = QUIET_SECONDS,
) -> SentJob:
    """Show a job's output until it has ended, and return its last state.

    The cluster sends the whole output on every connection; what was shown already is left out.

    Args:
        service: The cluster.
        job: The job.
        show: Takes the output.
        warn: Takes warnings about the connection.
        patience_seconds: How long the cluster may not answer.
        retry_seconds: Pause between two attempts.
        quiet_seconds: How long a connection may carry nothing before another is made.

    Raises:
        WorkError: The cluster did not answer for too long; the job may still run. Or it no longer knows the job.
    """
    num_shown = 0
    broken_since: float | None = None
    while True:
        try:
            if broken_since is not None and service.job(job.id).began != job.began:
                raise NoSuchJobError(f"{job.id}: another job has its name")
            num_shown = asyncio.run(_show_from(service.tail(job), num_shown, show, quiet_seconds))
            now = service.job(job.id)
            broken_since = None
            if now.has_ended:
                show(service.logs(now)[num_shown:])  # what came between the last piece and the end
                return now
        except NoSuchJobError as error:
            raise WorkError(
                f"{service.address} no longer knows {job.id}: the cluster was restarted. Send it again with "
                "'yolofleet submit' to resume the run from its newest checkpoint"
            ) from error
        except (UserError, WorkError, OSError, RuntimeError, _BrokenError) as error:
            num_shown = error.num_shown if isinstance(error, _BrokenError) else num_shown
            if broken_since is None:
                broken_since = time.monotonic()
                warn(
                    f"the connection to {service.address} is lost; trying again. If the cluster's head has ended, so "
                    f"has the job: start a head again, then resume the run with the same 'yolofleet submit'"
                )
            if time.monotonic() - broken_since > patience_seconds:
                raise WorkError(
                    f"{service.address} has not answered for {patience_seconds:g} s; the job may still run: "
                    f"yolofleet jobs logs {job.id} --follow --address {service.address}"
                ) from error
        time.sleep(retry_seconds)


def whole_lines(show: Show) -> tuple[Show, Callable[[], None]]:
    """Return what takes pieces of text and shows them line by line, and what shows a last line without an end."""
    unfinished = ""

    def take(text: str) -> None:
        nonlocal unfinished
        *lines, unfinished = (unfinished + text).split("\n")
        for line in lines:
            show(f"{line}\n")

    def finish() -> None:
        if unfinished:
            show(f"{unfinished}\n")

    return take, finish


class _BrokenError(Exception):
    """The connection broke after so many characters."""

    def __init__(self, num_shown: int) -> None:
        super().__init__(f"broken after {plural(num_shown, 'character')}")
        self.num_shown = num_shown


async def _show_from(pieces: AsyncIterator[str], num_shown: int, show: Show, quiet_seconds: float) -> int:
    """Show the pieces without their first characters until they end or none comes.

    Returns:
        The number of characters shown in all.
    """
    position = 0
    try:
        while True:
            async with asyncio.timeout(quiet_seconds):  # wait_for may lose a Ctrl-C that comes together with a piece
                piece = await anext(pieces)
            fresh = piece[max(0, num_shown - position) :]
            position += len(piece)
            if fresh:
                show(fresh)
                num_shown = max(num_shown, position)
    except (StopAsyncIteration, TimeoutError):
        return num_shown
    except Exception as error:  # aiohttp and Ray raise many kinds of errors for a lost connection
        raise _BrokenError(num_shown) from error
