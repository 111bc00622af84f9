"""The resources of the cluster that a job asks for, and the quotas of those who ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from yolofleet.specs.base import Spec, Url

Workers = Annotated[int, Field(ge=1, le=10_000)]


class ClusterSpec(Spec):
    """Workers, their resources, and what happens when they fail."""

    workers: Workers | tuple[Workers, Workers] = 1
    """Number of workers, or [fewest, most] for a run that grows and shrinks with the cluster."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that each worker gets; 0 trains on the CPU."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPUs of each worker, without a GPU its threads, too. auto: this machine's cores shared by the workers; 1 on a
    cluster or in a search; data.loader_threads + 1 for a worker with a GPU. Decided when a run starts, and kept."""
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Price of one worker per hour, in any currency; runs then say what they cost."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have for a worker to be placed there (Ray's node labels)."""
    first_worker_labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the first worker's node: it writes the checkpoints, so choose a node that is not preempted."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Whether workers share nodes or are spread over them (Ray's placement strategies)."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Failures of workers, hangs among them, that a run survives in a row without a checkpoint between them."""
    max_preemptions: Annotated[int, Field(ge=0)] = 20
    """The same for nodes whose preemption was announced."""
    max_start_failures: Annotated[int, Field(ge=0)] = 5
    """The same for groups of workers that did not start, and for Ray's own controller."""
    start_timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long the workers may take to start."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """On a shared cluster, the higher priority gets room first; equal ones in the order of their arrival."""
    project: str | None = None
    """What the work is for; the cluster may have a quota for it."""
    wait_for_room_seconds: Annotated[float, Field(ge=0)] | None = None
    """How long to wait for room that others hold; unset: without limit."""
    wait_for_nodes_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """How long a run waits for nodes that an autoscaler can add, or that it had and lost."""
    hang_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A worker without progress for this long is ended, and its stacks are kept; longer than any evaluation or step."""
    resize_interval_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often a run with fewer than the most workers looks for room to grow."""
    evaluation: Literal["auto", "inline", "apart"] = "auto"
    """Who evaluates the model: the workers between two steps (inline), a separate task with the
    resources of one more worker (apart), or that task if several nodes have such resources free (auto)."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.fewest_workers > self.most_workers:
            raise ValueError(
                f"workers [{self.fewest_workers}, {self.most_workers}]: the first is the fewest, the second the most"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """The number of workers below which the run waits."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def worker_cpus(self) -> float:
        """CPUs of a worker: one where nothing else was decided."""
        return 1.0 if self.cpus_per_worker == "auto" else self.cpus_per_worker

    @property
    def slots_for_evaluation(self) -> int:
        """Worker slots that are kept free for the evaluation, beside the workers."""
        return int(self.evaluation == "apart")

    @property
    def fewest_slots(self) -> int:
        """The number of worker slots below which the run waits."""
        return self.fewest_workers + self.slots_for_evaluation

    @property
    def worker_counts(self) -> range:
        """All numbers of workers that the run may have."""
        return range(self.fewest_workers, self.most_workers + 1)

    @property
    def most_workers(self) -> int:
        """The largest number of workers that the run uses."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class QuotaLimit(Spec):
    """What one user or one project may have: at once, and in GPU hours within the window."""

    gpus: Annotated[float, Field(ge=0)] | None = None
    cpus: Annotated[float, Field(ge=0)] | None = None
    gpu_hours: Annotated[float, Field(ge=0)] | None = None


class QuotaSpec(Spec):
    """The quotas of a cluster that many share; the entry ``default`` holds for each one that is not named."""

    users: dict[str, QuotaLimit] = Field(default_factory=dict)
    projects: dict[str, QuotaLimit] = Field(default_factory=dict)
    window_days: Annotated[float, Field(gt=0, le=3660)] = 30.0
    """GPU hours count for so long."""
    storages: tuple[Url, ...] = ()
    """Storages of the runs whose GPU hours count."""

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if self.limits_hours and not self.storages:
            raise ValueError("gpu_hours are counted from run directories; say where they are: storages: [s3://runs]")
        return self

    @property
    def limits_hours(self) -> bool:
        """Whether anybody's GPU hours are limited."""
        return any(limit.gpu_hours is not None for part in (self.users, self.projects) for limit in part.values())

    def limits(self, user: str, project: str | None, kind: str) -> Iterator[tuple[str, str, float]]:
        """Yield ("user" or "project", its name, the most that it may have) of a kind of Ray's resources."""
        for scope, name, limit in self._limits_of(user, project):
            if (amount := {"GPU": limit.gpus, "CPU": limit.cpus}.get(kind)) is not None:
                yield scope, name, amount

    def hour_limits(self, user: str, project: str | None) -> Iterator[tuple[str, str, float]]:
        """Yield ("user" or "project", its name, the most GPU hours within the window)."""
        for scope, name, limit in self._limits_of(user, project):
            if limit.gpu_hours is not None:
                yield scope, name, limit.gpu_hours

    def _limits_of(self, user: str, project: str | None) -> Iterator[tuple[str, str, QuotaLimit]]:
        for scope, name, limits in (("user", user, self.users), ("project", project, self.projects)):
            limit = limits.get(name or "", limits.get("default") if name else None)
            if name and limit is not None:
                yield scope, name, limit
