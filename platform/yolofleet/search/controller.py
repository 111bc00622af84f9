"""The search on Ray Tune, of which only the executor is used: it places legs, restarts lost ones and reports ends.

Tune's own record, its restore and its schedulers are not used. What runs next is the engine's to say; what is known is
in ``trials.jsonl``.

The two parts that Ray Tune is given: where legs come from, and what runs one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from typing import Any

from ray.tune import Trainable
from ray.tune.search import Searcher

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.ray_runtime import HEAD_RESOURCE, tune_connection
from yolofleet.search.engine import Engine, Leg, Pause, Result
from yolofleet.search.trial_segment import Order, run_leg
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec
from yolofleet.training.supervision.nodes import num_slots, shortage, wanted_resources

FINISHED: str = Searcher.FINISHED


class EngineSearch(Searcher):  # type: ignore[misc]  # ray has no types
    """Hands the engine's legs to Tune as its trials, and their ends back."""

    def __init__(
        self,
        engine: Engine,
        job_of: Callable[[Leg], JobSpec],
        objectives: list[str],
        told: Callable[[str, Leg, Any], None],
    ) -> None:
        super().__init__()
        self.engine = engine
        self.done = False
        self.problem: Exception | None = None
        self._job_of = job_of
        self._objectives = objectives
        self._told = told
        self._legs: dict[str, Leg] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next leg, None to wait, or FINISHED."""
        if self.problem is not None:
            return FINISHED
        try:
            leg = self.engine.next_leg()
            if isinstance(leg, Leg):
                order = Order(self._job_of(leg).document(), leg.share, self._objectives)
        except Exception as error:  # Tune would only log it; the search ends with it once Tune has returned
            self.problem = error
            return FINISHED
        if leg is Pause.WAIT:
            return None
        if not isinstance(leg, Leg):
            self.done = True
            return FINISHED
        self._legs[trial_id] = leg
        self._told("begin", leg, None)
        return {"order": order.text()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune tells of a leg's only result here too; its end says the same."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take over how a leg ended."""
        leg = self._legs.pop(trial_id, None)
        if leg is None:
            return
        text = None if error or result is None else result.get("leg")
        outcome = result_of(text, "see the messages above")
        try:
            self.engine.complete(leg, outcome)
        except Exception as failure:
            self.problem = self.problem or failure
            return
        self._told("end", leg, outcome)

    def __reduce__(self) -> Any:
        """Leave the engine behind where Tune stores itself: nothing reads that."""
        return (Searcher, ())

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept here: the record is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored from here."""


class LegTrainable(Trainable):  # type: ignore[misc]  # ray has no types
    """Runs one leg; its process then takes the next one, so that torch and Ray are loaded once."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the order."""
        self._order = config["order"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another order."""
        self._order = new_config["order"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the leg to its end."""
        return {"leg": json.dumps(run_leg(self._order)), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run directory is the truth."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run directory is the truth."""


def result_of(text: str | None, error: str | None) -> Result:
    """Return a leg's result from what its process returned, or from why it is gone."""
    if text is None:
        return Result(failure=f"its process was lost too often ({error or 'no reason is known'})")
    return Result(**json.loads(text))


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
    first = engine.next_leg()
    if not isinstance(first, Leg):
        return  # the record holds it all
    engine.interrupt(first)
    with tune_connection(show_worker_output=show_worker_output):
        from yolofleet.training.supervision.nodes import alive_offers

        offers = alive_offers()
        places = num_slots(cluster, offers)
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
