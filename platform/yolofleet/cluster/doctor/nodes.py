"""The nodes of a cluster, and a process on each that answers questions within a deadline.

A node that is stopped or hangs would keep an examination for ever, so every question goes to an actor that is pinned to
one node, is asked together with all others, and is given up after its time. It needs a connection to the cluster.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from yolofleet.core.ray_runtime import HEAD_RESOURCE
from yolofleet.core.text import one_line
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.training.supervision.nodes import NodeOffer, wanted_resources

CONCURRENT = 16
"""Questions that an actor answers at a time: one that hangs must not keep the next ones from being answered."""
NO_ANSWER_CURE = "look at the node's logs and its host; nothing can run there until it answers"

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class ExaminedNode:
    """One node."""

    id: str
    """Ray's id of it."""
    name: str
    """Its address, with a part of the id where several nodes share one."""
    address: str
    """Where the other nodes reach it."""
    resources: Mapping[str, float] = field(compare=False)
    """Amounts by kind, as Ray counts them."""
    num_workers: int
    """Training workers that the empty node has resources for."""

    @property
    def gpus(self) -> float:
        """GPUs that Ray offers there."""
        return self.resources.get("GPU", 0.0)

    @property
    def object_store_bytes(self) -> float:
        """Shared memory that Ray's object store may take there."""
        return self.resources.get("object_store_memory", 0.0)


@dataclass(frozen=True)
class NoAnswer:
    """Stands for an answer that did not come."""

    reason: str
    """Why there is none."""


@dataclass(frozen=True)
class Answers(Generic[Facts]):
    """The nodes' answers to one question."""

    facts: Mapping[ExaminedNode, Facts]
    """What each node that answered has found."""
    missing: Mapping[ExaminedNode, NoAnswer]
    """Why each of the others did not answer."""


def list_nodes(rows: Iterable[Mapping[str, Any]], cluster: ClusterSpec) -> list[ExaminedNode]:
    """Return the nodes that are alive, the head first.

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
        slots = NodeOffer(resources, labels=row.get("Labels")).slots(wanted, cluster.labels)
        num_workers = min(slots, cluster.most_workers)
        nodes.append(ExaminedNode(row["NodeID"], name, row["NodeManagerAddress"], resources, num_workers))
    return sorted(nodes, key=lambda node: (HEAD_RESOURCE not in node.resources, node.name))


class _Probe:
    """An actor that calls what it is given."""

    def run(self, question: Callable[..., Facts], *arguments: Any) -> Facts:
        return question(*arguments)


class Probes:
    """An actor on each node for the length of a with block."""

    def __init__(self, nodes: Iterable[ExaminedNode]) -> None:
        self._nodes = tuple(nodes)
        self._actors: dict[ExaminedNode, Any] = {}

    def __enter__(self) -> Probes:
        self._actors = {node: start_actor(_Probe, node, max_concurrency=CONCURRENT) for node in self._nodes}
        return self

    def __exit__(self, *exception: object) -> None:
        end_actors(self._actors.values())

    def ask(
        self, nodes: Iterable[ExaminedNode], question: Callable[..., Facts], *arguments: Any, seconds: float
    ) -> Answers[Facts]:
        """Call a function on nodes at the same time, and wait for the results no longer than ``seconds``."""
        asked = {node: self._actors[node].run.remote(question, *arguments) for node in nodes}
        answers = dict(zip(asked, await_answers(list(asked.values()), seconds), strict=True))
        missing = {node: answer for node, answer in answers.items() if isinstance(answer, NoAnswer)}
        return Answers({node: answer for node, answer in answers.items() if node not in missing}, missing)


def start_actor(kind: type, node: ExaminedNode, **options: Any) -> Any:
    """Start an actor on one node and no other; it takes none of Ray's resources unless the options say so."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    fixed = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": strategy}
    return ray.remote(kind).options(**fixed, **options).remote()


def end_actors(actors: Iterable[Any]) -> None:
    """Kill actors, whatever they are doing."""
    import ray

    for actor in actors:
        ray.kill(actor)


def await_answers(references: Sequence[Any], seconds: float) -> list[Any]:
    """Return the answers that come within a time, and a `NoAnswer` for each of the others."""
    end = time.monotonic() + seconds
    return [_await_answer(reference, end, seconds) for reference in references]


def _await_answer(reference: Any, end: float, seconds: float) -> Any:
    import ray

    try:
        return ray.get(reference, timeout=max(0.0, end - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return NoAnswer(f"no answer within {seconds:g} s")
    except ray.exceptions.RayTaskError as error:
        return NoAnswer(f"{type(error.cause).__name__}: {one_line(error.cause, 200)}")
    except ray.exceptions.RayError as error:
        return NoAnswer(f"{type(error).__name__}: {one_line(error, 200)}")
