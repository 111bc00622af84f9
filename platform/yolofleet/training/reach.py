"""Whether the hosts that will train can reach what the job names, asked there and before anything starts."""

from __future__ import annotations

import uuid

from yolofleet.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.storage import StorageError, open_storage
from yolofleet.training.cluster_view import hosts

MANIFEST_KEY = "manifest.json"
TIMEOUT_SECONDS = 120.0


def check_reach(job: JobSpec) -> None:
    """Make sure that every host of the cluster reads the data and writes the run directory.

    Raises:
        UserError: One does not: which, what, and the cure.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    paths = (job.storage, job.name, job.data.train, job.data.val)
    probe = ray.remote(num_cpus=0, max_retries=1)(problem_here)
    asked = {
        host: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*paths)
        for host, node in hosts().items()
    }
    problems: dict[str, str] = {}
    for host, answer in asked.items():
        try:
            problem = ray.get(answer, timeout=TIMEOUT_SECONDS)
        except ray.exceptions.RayError as error:
            problem = f"it gives no answer ({type(error).__name__})"
        if problem is not None:
            problems[host] = problem
    if problems:
        host, problem = next(iter(problems.items()))
        more = f" ({len(problems)} of {len(asked)} hosts have such a problem)" if len(asked) > 1 else ""
        raise UserError(
            f"host {host} cannot train this job: {problem}{more}. Workers run there: use storage that all hosts reach "
            "(s3://, or a folder that is mounted on all of them), and give each the credentials in its environment"
        )


def problem_here(storage_url: str, name: str, *datasets: str) -> str | None:
    """Return what keeps this host from training, or None: the run directory is read and written, the data found."""
    key = f"probe/{uuid.uuid4().hex}"
    try:
        run = open_storage(storage_url).child(name)
        if not run.exists("job.yaml"):
            return f"storage {storage_url} does not show it the run directory that the driver has made there"
        run.put(key, b"")
        run.delete(key)
        for url in datasets:
            if not open_storage(url).exists(MANIFEST_KEY):
                return f"it finds no dataset at {url}"
    except StorageError as error:
        return str(error)
    return None
