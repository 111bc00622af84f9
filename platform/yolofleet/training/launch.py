"""The loop on Ray Train: start a worker group, let Ray restart it, and leave the state to the run directory.

Ray is told of no checkpoint. Its own record of one lags behind the storage, so a group that died would go on from an
older one or from nothing; every start reads the run directory instead, which is the same after a dead worker, a dead
node and a dead driver.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from yolofleet.errors import UserError, WorkError
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.storage.lock import LockLostError, Token

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets anything else on the machine slow training down
}
COLLECTIVE_TIMEOUT_SECONDS = 1800
FAILURE_KEY = "failure.json"
"""Where a worker leaves the error that no restart cures."""


def run_on_ray(job: JobSpec, token: Token | None = None, *, show_worker_output: bool = False) -> None:
    """Run the job on the cluster at RAY_ADDRESS, or on a Ray of this machine's own that ends with it.

    Args:
        job: What to compute.
        token: The run's lock, as its holder has it.
        show_worker_output: Pass on what Ray and the workers print.

    Raises:
        UserError: The cluster cannot give what the job asks for.
        WorkError: The workers failed more often than the job allows.
    """
    os.environ.update({name: value for name, value in RAY_ENVIRONMENT.items() if name not in os.environ})
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(job.cluster.start_timeout_seconds)
    if "ray" not in sys.modules and os.environ.get("RAY_ADDRESS", "local") == "local":
        _check_feasible(job, [_this_machine()])  # Ray finds no more than this; it takes a while to say so
        _protect()
    import ray

    with _connected(show_worker_output):
        _check_feasible(job, ray.nodes())
        with _shared_folder(job, ray.nodes()) as folder:
            _fit(job, folder, token)


class _connected:  # noqa: N801 - reads as a verb in a with statement
    """A connection to a cluster for the length of a with block; a Ray that was started for it is stopped after it."""

    def __init__(self, show_worker_output: bool) -> None:
        self._show_worker_output = show_worker_output

    def __enter__(self) -> None:
        import ray

        self._ours = not ray.is_initialized()
        if not self._ours:
            return
        address = os.environ.get("RAY_ADDRESS", "local")
        try:
            ray.init(
                address=address,
                log_to_driver=self._show_worker_output,
                logging_level="warning",
                **_local_options(address),
            )
        except ConnectionError as error:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from error

    def __exit__(self, *_: object) -> None:
        import ray

        if self._ours:
            ray.shutdown()


def _local_options(address: str) -> dict[str, Any]:
    if address != "local":
        return {}
    # With the dashboard's API a stopped worker group gives its placement group back; it listens on loopback only.
    return {"include_dashboard": True, "dashboard_host": "127.0.0.1"}


def _protect() -> None:
    """Give a Ray of our own a token that lives as long as it does; Ray itself would keep one in the home folder.

    It takes effect only before ray is imported.
    """
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _this_machine() -> dict[str, Any]:
    """Return the most that a Ray of this machine's own can offer, in the form of one of Ray's nodes."""
    import torch

    return {"Alive": True, "Resources": {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}}


def _check_feasible(job: JobSpec, nodes: list[dict[str, Any]]) -> None:
    """Refuse what the nodes can never give, worker by worker: resources of two nodes do not add up to one worker."""
    wanted = {"CPU": job.cluster.cpus_per_worker, "GPU": job.cluster.gpus_per_worker}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    places = 0
    for resources in alive:
        counts = [int(resources.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount > 0]
        places += min(counts)
    fewest = job.cluster.fewest_workers
    if places < fewest:
        has = "; ".join(f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU" for resources in alive)
        raise UserError(
            f"cluster.workers asks for at least {fewest} workers of {wanted['CPU']:g} CPU and {wanted['GPU']:g} GPU "
            f"each, but the cluster has room for {places} (its nodes: {has}). Ask for fewer workers, for less per "
            "worker (cluster.cpus_per_worker, cluster.gpus_per_worker), or add nodes"
        )


@contextmanager
def _shared_folder(job: JobSpec, nodes: list[dict[str, Any]]) -> Iterator[str]:
    """Give Ray Train a place for its own small files: a folder of ours on one host, the job's storage on several.

    Nothing in it is ever read again: a place used twice would make Ray go on from its own record.
    """
    hosts = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    if len(hosts) > 1:
        yield f"{job.storage.rstrip('/')}/{job.name}/ray/{uuid.uuid4().hex}"
        return
    with tempfile.TemporaryDirectory(prefix="yolofleet-ray-") as folder:
        yield folder


def _fit(job: JobSpec, folder: str, token: Token | None) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": job.cluster.cpus_per_worker}
    if job.cluster.gpus_per_worker:
        resources["GPU"] = job.cluster.gpus_per_worker
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job.document(), "token": None if token is None else asdict(token)},
        scaling_config=ScalingConfig(
            num_workers=job.cluster.workers,
            use_gpu=job.cluster.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        run_config=RunConfig(
            name=f"{job.name}-{job.digest()[:8]}",
            storage_path=folder,
            failure_config=FailureConfig(
                max_failures=job.cluster.max_failures, controller_failure_limit=job.cluster.max_failures
            ),
        ),
    )
    storage = open_storage(job.storage).child(job.name)
    storage.delete(FAILURE_KEY)
    failure: Exception | None = None
    try:
        trainer.fit()
    except SystemExit as error:  # Ray's own answer to Ctrl-C, after it has stopped the workers
        raise KeyboardInterrupt from error
    except Exception as error:  # whatever Ray wraps a worker's failure in
        failure = error
    if storage.exists(FAILURE_KEY):
        told = json.loads(storage.get(FAILURE_KEY))
        raise (UserError if told["user_error"] else WorkError)(told["message"]) from failure
    if failure is not None:
        raise WorkError(
            f"the workers failed more than cluster.max_failures = {job.cluster.max_failures} times; the last failure: "
            f"{' '.join(str(failure).split())[:600]}. The same command goes on from the newest checkpoint"
        ) from failure


def train_worker(config: dict[str, Any]) -> None:
    """Be one worker of Ray Train's group."""
    import ray.train
    import ray.train.torch

    from yolofleet.training.group import WorkerGroup
    from yolofleet.training.worker import run_worker

    context = ray.train.get_context()
    job = JobSpec.parse(config["job"], source="job")
    token = None if config["token"] is None else Token(**config["token"])
    device = ray.train.torch.get_device()
    try:
        run_worker(job, WorkerGroup(context.get_world_rank(), context.get_world_size(), device), token)
    except LockLostError:
        raise  # the run directory is another's now, failure.json with it
    except (UserError, WorkError) as error:
        # A restart would meet the same again, so Ray sees a worker that is done; the driver reads what happened.
        told = {"user_error": isinstance(error, UserError), "message": str(error)}
        open_storage(job.storage).child(job.name).put(FAILURE_KEY, json.dumps(told).encode())
