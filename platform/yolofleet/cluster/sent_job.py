"""A job as the cluster keeps it: its state in Ray's words, and what the sender wrote down with it."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from yolofleet.cluster.bundle import Bundle, Kind
from yolofleet.core.errors import UserError
from yolofleet.core.liveness import user_name
from yolofleet.core.text import one_line

MOST_SPEC_CHARACTERS = 48_000
"""Ray hands a job's metadata to its process as one variable of the environment, which Linux limits to 128 KiB."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class SentJob:
    """A job as the cluster knows it."""

    id: str
    """Its submission id."""
    name: str | None
    """Name of the run or search; None for a job that yolofleet did not send."""
    digest: str | None
    """Digest of its bundle."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """Its exit code, where it ended by itself."""
    message: str
    """The cluster's message on its state."""
    began: float | None
    """When it started, in seconds since 1970."""
    ended: float | None
    kind: str | None = None
    """The command that runs it: train, tune, doctor, or command for other work."""
    user: str | None = None
    """Who sent it, as that machine names its users."""
    host: str | None = None
    """The machine that it was sent from."""
    directory: str | None = None
    """Where its run or search keeps its state."""
    waiting: str | None = None
    """Why it waits for room, where it does."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ENDED


def bundle_of(job_id: str, metadata: Mapping[str, str]) -> Bundle:
    """Return what was sent as a job, by what the cluster keeps of it.

    Raises:
        UserError: The cluster does not keep its spec.
    """
    try:
        document, table = json.loads(metadata["spec"])
        if metadata["kind"] not in get_args(Kind) or not isinstance(document, dict):
            raise ValueError
        return Bundle(metadata["kind"], metadata["name"], document, table)  # type: ignore[arg-type]  # checked above
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{job_id}: the cluster does not have its spec (too large, or sent by another version); send the spec "
            f"with 'yolofleet submit'"
        ) from error


def metadata_of(bundle: Bundle) -> dict[str, str]:
    """Return what the cluster keeps of a job; its spec lets another user send it again."""
    spec = json.dumps([bundle.document, bundle.model_table])
    found: dict[str, str | None] = {
        "name": bundle.name,
        "digest": bundle.digest,
        "kind": bundle.kind,
        "user": user_name(),
        "host": socket.gethostname(),
        "directory": bundle.directory,
        "spec": spec if len(spec) <= MOST_SPEC_CHARACTERS else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def parse_job(details: Any) -> SentJob:
    """Return a job by Ray's details of it."""
    metadata = details.metadata or {}
    return SentJob(
        id=str(details.submission_id),
        name=metadata.get("name"),
        digest=metadata.get("digest"),
        status=str(getattr(details.status, "value", details.status)),
        exit_code=details.driver_exit_code,
        message=one_line(details.message or ""),
        began=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        kind=metadata.get("kind"),
        user=metadata.get("user"),
        host=metadata.get("host"),
        directory=metadata.get("directory"),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
