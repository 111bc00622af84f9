"""The search on Ray Tune, of which only the executor is used: it places legs, restarts lost ones and reports ends.

Tune's own record, its restore and its schedulers are not used. What runs next is the engine's to say; what is known is
in ``trials.jsonl``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable

from yolofleet.errors import UserError, WorkError
from yolofleet.search.engine import Engine, Leg, Result
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec
from yolofleet.training.capacity import num_places, shortage, wanted_resources

HEAD_RESOURCE = "node:__internal_head__"
"""A trial with workers of its own only waits for them: it takes a sliver of this instead of a CPU."""
SLIVER = 0.001

Told = Callable[[str, Leg, Result | None], None]
"""Called when a leg begins (no result) and ends."""


def concurrency(spec: SearchSpec, cluster: ClusterSpec, places: int, *, described: str = "the cluster") -> int:
    """Return how many trials run at a time, so that each has all its workers.

    Args:
        spec: The search.
        cluster: What each trial asks for.
        places: Workers that find room.
        described: What to call the cluster in a message.

    Raises:
        UserError: More are asked for than fit.
    """
    fit = places // cluster.most_workers or (1 if places >= cluster.fewest_workers else 0)
    if spec.concurrency is not None and spec.concurrency > fit:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted_resources(cluster).items())
        workers = "1 worker" if cluster.most_workers == 1 else f"{cluster.most_workers} workers"
        raise UserError(
            f"concurrency {spec.concurrency}: {described} has room for {fit} trials at a time, of {workers} with "
            f"{each} each; ask for at most {fit}, for less per trial (job.cluster...), or add nodes"
        )
    return spec.concurrency or fit


def run_search(
    spec: SearchSpec,
    cluster: ClusterSpec,
    engine: Engine,
    job_of: Callable[[Leg], JobSpec],
    objectives: list[str],
    *,
    told: Told = lambda kind, leg, result: None,
    show_worker_output: bool = False,
) -> None:
    """Run legs until the engine has no more.

    Args:
        spec: The search.
        cluster: What each trial asks for.
        engine: What runs next.
        job_of: The job of a leg's run.
        objectives: Metrics that each trial must report.
        told: Called when a leg begins and when it has ended.
        show_worker_output: Pass on what Ray and the trials print.

    Raises:
        UserError: The cluster cannot give what a trial asks for.
        WorkError: Tune itself failed.
    """
    from yolofleet.search.connection import connected_to_ray

    first = engine.next_leg()
    if not isinstance(first, Leg):
        return  # the record holds it all
    engine.interrupt(first)
    with connected_to_ray(show_worker_output=show_worker_output):
        from yolofleet.training.cluster_view import alive_offers

        offers = alive_offers()
        places = num_places(cluster, offers)
        if places < cluster.fewest_workers:
            raise UserError(shortage(cluster, offers))
        _tune(engine, job_of, objectives, concurrency(spec, cluster, places), cluster, told)


def _tune(
    engine: Engine,
    job_of: Callable[[Leg], JobSpec],
    objectives: list[str],
    at_a_time: int,
    cluster: ClusterSpec,
    told: Told,
) -> None:
    from ray import tune

    from yolofleet.search.tune_parts import EngineSearch, LegTrainable

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses record files that nobody reads

    bundle: dict[str, float] = wanted_resources(cluster)
    if cluster.most_workers > 1:
        bundle = {"CPU": 0, HEAD_RESOURCE: SLIVER}
    source = EngineSearch(engine, job_of, objectives, told)
    with tempfile.TemporaryDirectory(prefix="yolofleet-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(LegTrainable, tune.PlacementGroupFactory([bundle])),
            tune_config=tune.TuneConfig(
                search_alg=source, num_samples=-1, max_concurrent_trials=at_a_time, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except SystemExit as error:  # Ray's own answer to Ctrl-C
            raise KeyboardInterrupt from error
    if source.problem is not None:
        raise source.problem
    if not source.done:
        raise WorkError("Ray Tune ended before the search did; the same command goes on from the record")
