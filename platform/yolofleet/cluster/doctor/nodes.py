"""The nodes of the cluster, and a probe on each that is asked with a deadline; needs a connection to the cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

from yolofleet.core.ray_runtime import HEAD_RESOURCE
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision.nodes import NodeOffer, wanted_resources

CONCURRENT = 16
"""A question that hangs on a node must not keep the next ones from being answered."""

SILENCE_CURE = "see the node's logs and its host; no work gets done there until it answers"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        id: Ray's own name for it.
        name: What to call it: its address, with a part of the id where several share one.
        address: Where the other nodes reach it.
        resources: Amounts by kind, as Ray counts them.
        num_workers: Training workers that find room there, were it empty.
    """

    id: str
    name: str
    address: str
    resources: Mapping[str, float] = field(compare=False)
    num_workers: int

    @property
    def gpus(self) -> float:
        """GPUs that Ray gives away there."""
        return self.resources.get("GPU", 0.0)

    @property
    def object_store_bytes(self) -> float:
        """Shared memory that Ray's object store may take there."""
        return self.resources.get("object_store_memory", 0.0)


@dataclass(frozen=True)
class Silence:
    """What comes instead of an answer.

    Attributes:
        reason: Why there is none.
    """

    reason: str


@dataclass(frozen=True)
class Answers(Generic[Found]):
    """What the nodes said to one question.

    Attributes:
        found: What each node found that did answer.
        silent: Why each of the others did not.
    """

    found: Mapping[Node, Found]
    silent: Mapping[Node, Silence]


def described(rows: Iterable[Mapping[str, Any]], cluster: ClusterSpec) -> list[Node]:
    """Return the nodes that are there, the head first.

    Args:
        rows: What Ray knows of its nodes (``ray.nodes()``).
        cluster: What a job asks for.
    """
    alive = [row for row in rows if row["Alive"]]
    shared = Counter(row["NodeManagerAddress"] for row in alive)
    wanted = wanted_resources(cluster)
    nodes = []
    for row in alive:
        resources, name = row["Resources"], row["NodeManagerAddress"]
        if shared[name] > 1:
            name += f" {row.get('Labels', {}).get('name') or row['NodeID'][:6]}"
        places = NodeOffer(resources, labels=row.get("Labels")).slots(wanted, cluster.labels)
        most = min(places, cluster.most_workers)
        nodes.append(Node(row["NodeID"], name, row["NodeManagerAddress"], resources, most))
    return sorted(nodes, key=lambda node: (HEAD_RESOURCE not in node.resources, node.name))


class _Probe:
    """Runs on a node what it is handed."""

    def run(self, look: Callable[..., Found], *arguments: Any) -> Found:
        return look(*arguments)


class Probes:
    """A process of ours on each node for the length of a with block."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = tuple(nodes)
        self._actors: dict[Node, Any] = {}

    def __enter__(self) -> Probes:
        self._actors = {node: pinned(_Probe, node, max_concurrency=CONCURRENT) for node in self._nodes}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        release(self._actors.values())

    def ask(self, nodes: Iterable[Node], look: Callable[..., Found], *arguments: Any, seconds: float) -> Answers[Found]:
        """Ask nodes the same question at the same time, and wait for their answers no longer than ``seconds``."""
        asked = {node: self._actors[node].run.remote(look, *arguments) for node in nodes}
        answers = dict(zip(asked, awaited(list(asked.values()), seconds), strict=True))
        silent = {node: answer for node, answer in answers.items() if isinstance(answer, Silence)}
        return Answers({node: answer for node, answer in answers.items() if node not in silent}, silent)


def pinned(kind: type, node: Node, **options: Any) -> Any:
    """Start a process on one node and no other; it takes nothing of what Ray counts unless the options say so."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node.id, soft=False)
    fixed = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": place}
    return ray.remote(kind).options(**fixed, **options).remote()


def awaited_for(reference: Any, seconds: float) -> Any:
    """Return an answer that comes within a time, or the silence in its place."""
    return awaited([reference], seconds)[0]


def awaited(references: Sequence[Any], seconds: float) -> list[Any]:
    """Return all answers that come within a time, and the silence in place of each of the others."""
    end = time.monotonic() + seconds
    return [_awaited(reference, end, seconds) for reference in references]


def _awaited(reference: Any, end: float, seconds: float) -> Any:
    import ray

    try:
        return ray.get(reference, timeout=max(0.0, end - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return Silence(f"no answer within {seconds:g} s")
    except ray.exceptions.RayTaskError as error:
        return Silence(f"{type(error.cause).__name__}: {_one_line(error.cause)}")
    except ray.exceptions.RayError as error:
        return Silence(f"{type(error).__name__}: {_one_line(error)}")


def release(actors: Iterable[Any]) -> None:
    """End processes, whatever they hang in."""
    import ray

    for actor in actors:
        ray.kill(actor)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
