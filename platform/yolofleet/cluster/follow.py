"""Following a job from afar: what it prints, once, however often the connection breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from yolofleet.cluster.service import JobService, NoSuchJobError, SentJob
from yolofleet.core.errors import UserError, WorkError

RETRY_SECONDS = 3.0
PATIENCE_SECONDS = 600.0
"""How long a cluster that does not answer is asked again."""
QUIET_SECONDS = 120.0
"""A connection over which nothing came for so long may be dead without anybody having said so: it is made anew."""

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
    """Show what a job prints until it has ended, and return how it ended.

    The cluster sends all from the beginning on every connection; what was shown already is left out.

    Args:
        service: Where the job is.
        job: The job.
        show: Takes what it prints.
        warn: Takes what is to be said of the connection.
        patience_seconds: How long the cluster may not answer.
        retry_seconds: Pause between two tries.
        quiet_seconds: How long a connection may carry nothing before another is made.

    Raises:
        WorkError: The cluster did not answer for too long; the job may go on. Or it answers and does not know the job.
    """
    shown = 0
    broken_since: float | None = None
    while True:
        try:
            if broken_since is not None and service.job(job.id).began != job.began:
                raise NoSuchJobError(f"{job.id}: another job has its name")
            shown = asyncio.run(_shown_from(service.tail(job), shown, show, quiet_seconds))
            now = service.job(job.id)
            broken_since = None
            if now.has_ended:
                text = service.logs(now)  # what came between the last piece and the end
                show(text[shown:])
                return now
        except NoSuchJobError as error:
            raise WorkError(
                f"{service.address} does not know {job.id} any more, as a cluster that was started anew; send it again "
                "with 'yolofleet submit': the run goes on from its newest checkpoint"
            ) from error
        except (UserError, WorkError, OSError, RuntimeError, _BrokenError) as error:
            shown = error.shown if isinstance(error, _BrokenError) else shown
            if broken_since is None:
                broken_since = time.monotonic()
                warn(f"the connection to {service.address} is lost; the job goes on, trying again")
            if time.monotonic() - broken_since > patience_seconds:
                raise WorkError(
                    f"{service.address} has not answered for {patience_seconds:g} s; the job may go on: "
                    f"yolofleet jobs logs {job.id} --follow --address {service.address}"
                ) from error
        time.sleep(retry_seconds)


class _BrokenError(Exception):
    """The connection broke after ``shown`` characters."""

    def __init__(self, shown: int) -> None:
        super().__init__(f"broken after {shown} characters")
        self.shown = shown


async def _shown_from(pieces: AsyncIterator[str], already: int, show: Show, quiet_seconds: float) -> int:
    """Show the pieces without their first ``already`` characters until they end or nothing comes.

    Returns:
        How many characters have been shown in all.
    """
    position, shown = 0, already
    try:
        while True:
            async with asyncio.timeout(quiet_seconds):  # wait_for may lose a Ctrl-C that comes together with a piece
                piece = await anext(pieces)
            fresh = piece[max(0, shown - position) :]
            position += len(piece)
            if fresh:
                show(fresh)
                shown = max(shown, position)
    except (StopAsyncIteration, TimeoutError):
        return shown
    except Exception as error:  # aiohttp and Ray have many words for a connection that is gone
        raise _BrokenError(shown) from error
