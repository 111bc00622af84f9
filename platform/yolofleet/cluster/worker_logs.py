"""What the workers of a run have printed: each one's output lies on its node, and Ray's dashboard hands it out.

The driver records in the run's events where each start placed its workers. The dashboard answers at the address that
Ray's own ``ray logs`` asks, with the cluster's token; nothing but HTTP reaches the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from yolofleet.cluster.service import ANSWER_TIMEOUT_SECONDS
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.ray_runtime import own_token
from yolofleet.core.redaction import redact
from yolofleet.core.text import first_line, one_line
from yolofleet.storage import open_storage
from yolofleet.tracking.json_lines import Row, read_rows
from yolofleet.tracking.run_directory import EVENTS

Stream = Literal["out", "err"]
ENDPOINT = "/api/v0/logs/file"
MOST_LINE_CHARACTERS = 20_000
RAY_MARKS = (b":job_id:", b":actor_name:", b":task_name:")
"""How lines begin by which Ray's own log monitor knows whose output follows."""


@dataclass(frozen=True)
class WorkerProcess:
    """A worker of the newest start."""

    rank: int
    process: int
    """Its process on its node."""
    node: str
    """Ray's id of the node."""
    host: str
    """Address of the node."""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


def placed_workers(events: list[Row]) -> list[WorkerProcess]:
    """Return the workers of the newest start by rank, as the driver's events say; none before they all ran."""
    newest = next((event for event in reversed(events) if event.get("kind") == "workers"), None)
    if newest is None:
        return []
    nodes, hosts = newest["nodes"], newest["hosts"]
    return [
        WorkerProcess(rank, int(process), str(nodes[node]), str(hosts[node]))
        for rank, (process, node) in enumerate(newest["processes"])
    ]


def find_workers(directory: str | None, rank: int | None) -> list[WorkerProcess]:
    """Return the worker of a rank in the newest start of a run, or all of them.

    Args:
        directory: The run directory.
        rank: Which one; None: all.

    Raises:
        UserError: It is no run, none of its workers ran yet, or there is no such rank.
    """
    if directory is None:
        raise UserError("only a run has workers with ranks; leave out --rank")
    workers = placed_workers(read_rows(open_storage(directory), f"{EVENTS}.driver"))
    if not workers:
        raise UserError(
            f"{directory}: does not say where its workers ran; did they start? See 'yolofleet report {directory}'"
        )
    if rank is not None and not 0 <= rank < len(workers):
        raise UserError(f"--rank {rank}: the newest start has ranks 0 to {len(workers) - 1}")
    return workers if rank is None else [workers[rank]]


def worker_lines(address: str, worker: WorkerProcess, stream: Stream, *, tail: int | None = None) -> Iterator[str]:
    """Yield the lines that a worker has printed.

    Args:
        address: The cluster's dashboard.
        worker: Which one.
        stream: Its stdout or its stderr.
        tail: Only the last ones.

    Raises:
        WorkError: The dashboard does not hand them out; with the node its files are gone.
    """
    import requests

    token = own_token()
    where = {"node_id": worker.node, "pid": worker.process, "suffix": stream, "lines": -1 if tail is None else tail}
    try:
        with requests.get(
            address + ENDPOINT,
            params={key: str(value) for key, value in where.items()},
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_TIMEOUT_SECONDS,
            stream=True,
        ) as answer:
            if answer.status_code != requests.codes.ok:
                raise WorkError(
                    f"{worker}: its output cannot be read ({answer.status_code}: {one_line(answer.text, 200)}); if "
                    f"its node has left the cluster, its files are lost"
                )
            for line in answer.iter_lines(decode_unicode=False):
                if not line.startswith(RAY_MARKS):
                    yield redact(line.decode(errors="replace"))[:MOST_LINE_CHARACTERS]
    except requests.RequestException as error:
        raise WorkError(f"{worker}: {address} does not answer ({first_line(error)})") from error
