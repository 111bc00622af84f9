"""How many pods of which size a job needs: plain numbers; the YAML is made elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.loader import choose_loader
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.kubernetes import KubernetesSpec

MEBIBYTE = 2**20
GIBIBYTE = 2**30
PROCESS_BYTES = 3 * GIBIBYTE
"""A worker's process before it does anything: Python, torch, on a GPU the host's part of its context."""
STATE_COPIES = 3
"""Weights, moments and average of a checkpoint that is being uploaded, each as large as the weights."""
THREAD_BYTES = 64 * MEBIBYTE
"""Images that a loader thread is decoding."""
LOADER_PROCESS_BYTES = 128 * MEBIBYTE
"""A loader process before it decodes anything."""
AHEAD_PER_THREAD = 2
"""Micro-batches that a loader thread prepares ahead of training."""
OBJECT_STORE_BYTES = GIBIBYTE
"""Ray's object store, of which training uses next to nothing."""
COLLECTIVE_BYTES = GIBIBYTE
"""Shared memory of one worker, through which NCCL and gloo exchange tensors within a pod."""
HEADROOM = 1.25


@dataclass(frozen=True)
class PodSize:
    """The resources of each worker pod."""

    workers: int
    """Workers that share it."""
    cpus: int
    gpus: int
    memory_bytes: int
    """Memory, shared memory included."""
    shared_memory_bytes: int
    """Size of ``/dev/shm``."""
    cache_bytes: int
    """Size of the shard-cache volume."""


@dataclass(frozen=True)
class GroupSize:
    """The smallest and the largest number of pods of a group."""

    fewest: int
    """Pods without which the job waits."""
    most: int
    """Pods that the job can use."""


@dataclass(frozen=True)
class Demand:
    """How many workers run at a time."""

    runs: int
    """Training runs at a time: one for a job, several for a search."""
    fewest: int
    """Slots for workers, evaluation included, without which the work waits."""
    most: int
    """Slots that it can use."""

    @classmethod
    def of_job(cls, cluster: ClusterSpec) -> Demand:
        """Return the demand of one run."""
        return cls(1, cluster.fewest_slots, cluster.most_workers + cluster.slots_for_evaluation)

    @classmethod
    def of_search(cls, cluster: ClusterSpec, trials: int) -> Demand:
        """Return the demand of a search: it sets its concurrency by the nodes that are there when it starts."""
        slots = trials * cluster.most_workers  # trials evaluate between their steps
        return cls(trials, slots, slots)


def group_sizes(
    demand: Demand, workers_per_pod: int, *, has_spot: bool, keeps_first: bool
) -> tuple[GroupSize, GroupSize]:
    """Return the sizes of the on-demand and of the spot group.

    Args:
        demand: How many workers run at a time.
        workers_per_pod: Workers that share a pod.
        has_spot: Whether there are spot nodes.
        keeps_first: Whether the first worker of each run is kept on nodes that stay.
    """
    fewest, most = math.ceil(demand.fewest / workers_per_pod), math.ceil(demand.most / workers_per_pod)
    if not has_spot:
        return GroupSize(fewest, most), GroupSize(0, 0)
    stay = min(fewest, demand.runs) if keeps_first else 0
    return GroupSize(stay, stay), GroupSize(fewest - stay, most - stay)


def workers_in_pod(cluster: ClusterSpec, demand: Demand, settings: KubernetesSpec) -> int:
    """Return how many workers share a pod: as few pods as fit the nodes, of one size, each of whole CPUs and GPUs.

    NCCL uses NVLink and shared memory within a pod only, and each pod has a shard cache of its own. So the workers of a
    run are spread evenly over the fewest pods that nodes of ``gpus_per_node`` can hold, and small trials of a search
    share one.

    Args:
        cluster: What each run asks for.
        demand: How many workers run at a time.
        settings: How jobs run on this Kubernetes.

    Raises:
        UserError: A node has too few GPUs for one worker.
    """
    if settings.workers_per_pod is not None:
        return settings.workers_per_pod
    whole = math.lcm(_denominator(cluster.gpus_per_worker), _denominator(cluster.worker_cpus))
    if not cluster.gpus_per_worker:
        return whole
    fit = int(settings.gpus_per_node / cluster.gpus_per_worker + 1e-6) // whole * whole
    if not fit:
        raise UserError(
            f"cluster.gpus_per_worker = {cluster.gpus_per_worker:g}, but a node has kubernetes.gpus_per_node = "
            f"{plural(settings.gpus_per_node, 'GPU')}, and a pod gets whole CPUs and GPUs; ask for less, or name "
            "larger nodes"
        )
    of_run = demand.most // demand.runs
    if of_run >= fit:
        count = math.ceil(of_run / math.ceil(of_run / fit))
    else:
        pods = math.ceil(demand.runs / (fit // of_run))
        count = of_run * math.ceil(demand.runs / pods)
    return math.ceil(count / whole) * whole


def pod_size(job: JobSpec, settings: KubernetesSpec, profile: dict[str, float], workers: int) -> PodSize:
    """Return the size of a worker pod.

    Args:
        job: What its workers train.
        settings: How jobs run on this Kubernetes.
        profile: What the job's model costs (`yolofleet.search.feasibility.profile_job`).
        workers: Workers that share a pod.

    Raises:
        UserError: A pod would have a part of a CPU or GPU, or the model does not fit a GPU.
    """
    cluster = job.cluster
    if cluster.gpus_per_worker and settings.gpu_memory and profile["training_bytes"] > settings.gpu_memory:
        raise UserError(
            f"job {job.name}: training needs {profile['training_bytes'] / 1e9:.1f} GB of GPU memory for a micro-batch "
            f"of {job.micro_batch_size}, but kubernetes.gpu_memory is {settings.gpu_memory / 1e9:.1f} GB; use a "
            "smaller micro_batch_size, precision bf16, or GPUs with more memory"
        )
    shared_memory = OBJECT_STORE_BYTES + workers * COLLECTIVE_BYTES
    memory = workers * (settings.memory_per_worker or worker_bytes(job, profile)) + shared_memory
    cache = job.data.cache.max_bytes if job.data.cache is not None else 0
    return PodSize(
        workers=workers,
        cpus=_whole(cluster.worker_cpus, workers, "cluster.cpus_per_worker"),
        gpus=_whole(cluster.gpus_per_worker, workers, "cluster.gpus_per_worker"),
        memory_bytes=math.ceil(memory / GIBIBYTE) * GIBIBYTE,
        shared_memory_bytes=shared_memory,
        cache_bytes=math.ceil(cache * 1.05 / GIBIBYTE) * GIBIBYTE,
    )


def worker_bytes(job: JobSpec, profile: dict[str, float]) -> int:
    """Return the main memory of one worker: its process, prefetched images, a checkpoint, on a CPU the training."""
    image = 3 * job.data.image_size**2
    number = job.data.loader_threads
    ahead = number * AHEAD_PER_THREAD * job.resolved_micro_batch_size * image
    processes = number if choose_loader(job.data.loader, number, job.data.image_size) == "processes" else 0
    state = STATE_COPIES * 4 * profile["parameters_training"]
    training = 0.0 if job.cluster.gpus_per_worker else profile["training_bytes"]
    loader = processes * LOADER_PROCESS_BYTES + number * THREAD_BYTES + ahead
    return int((PROCESS_BYTES + loader + state + training) * HEADROOM)


def _whole(amount: float, workers: int, key: str) -> int:
    total = amount * workers
    if abs(total - round(total)) > 1e-6:
        raise UserError(
            f"{key} = {amount:g} with kubernetes.workers_per_pod = {workers} makes {total:g} a pod, and a pod gets "
            f"whole ones; set kubernetes.workers_per_pod to a multiple of {_denominator(amount)}"
        )
    return round(total)


def _denominator(amount: float) -> int:
    """Return how many workers of this amount make a whole CPU or GPU."""
    return Fraction(amount).limit_denominator(100).denominator
