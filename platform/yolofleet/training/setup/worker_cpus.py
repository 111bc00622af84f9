"""``cluster.cpus_per_worker: auto``: the CPUs of a worker, decided once and kept in the run's ``job.yaml``.

The number of threads decides in which order numbers are added, so a resumed run keeps its number.
"""

from __future__ import annotations

import os

from yolofleet.core.cores import num_cores
from yolofleet.core.ray_runtime import shares_cluster
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory


def with_cpus(job: JobSpec, run: RunDirectory | None = None, *, launcher: str = "ray") -> JobSpec:
    """Return a job of ``cpus_per_worker: auto`` with a number: the run's own, where the cores here suffice for it.

    Args:
        job: What is trained.
        run: Its run directory, which may hold the job of an earlier start.
        launcher: ``ray``: workers on RAY_ADDRESS or on this machine; ``process``: this process, or torchrun's.
    """
    if job.cluster.cpus_per_worker != "auto":
        return job
    cores, workers = here(job, launcher)
    number = None if run is None else _recorded(run)
    if number is None or (cores is not None and number * workers > cores):
        number = float(choose_cpus(job, cores, workers, os.environ.get("OMP_NUM_THREADS")))
    return job.model_copy(update={"cluster": job.cluster.model_copy(update={"cpus_per_worker": number})})


def _recorded(run: RunDirectory) -> float | None:
    """Return the number that a run has decided; None where it has none, also in a damaged job, which others refuse."""
    number = (run.job_document().get("cluster") or {}).get("cpus_per_worker")
    return float(number) if isinstance(number, int | float) and not isinstance(number, bool) and number > 0 else None


def here(job: JobSpec, launcher: str) -> tuple[int | None, int]:
    """Return the cores of this machine, None where a cluster has the workers, and the workers that share them."""
    if launcher == "process":
        return num_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None if shares_cluster() else num_cores(), job.cluster.most_workers + job.cluster.slots_for_evaluation


def choose_cpus(job: JobSpec, cores: int | None, workers: int, most_threads: str | None) -> int:
    """Return the CPUs of a worker.

    A GPU's worker gets what its loader works with and one for itself. On a CPU the threads compute: a worker gets its
    share of this machine, but one core of a cluster, which is others' too.

    Args:
        job: What is trained.
        cores: Of this machine; None: the workers are on a cluster.
        workers: Workers that share them.
        most_threads: ``OMP_NUM_THREADS``, a limit of the threads that compute.
    """
    if job.cluster.gpus_per_worker > 0:
        wanted = job.data.loader_threads + 1
        return wanted if cores is None else max(1, min(wanted, cores // workers))
    share = 1 if cores is None else max(1, cores // workers)
    return min(share, int(most_threads)) if most_threads and most_threads.isdecimal() and int(most_threads) else share
