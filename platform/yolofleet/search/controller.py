"""Runs a search on Ray Tune, as an executor only: it starts trial segments, restarts lost ones and reports their ends.

Tune's own record, its restore and its schedulers are not used: the engine decides what runs next, and ``trials.jsonl``
holds all that is known, so a search resumes on any cluster. Tune sees each segment as a trial of its own.
`EngineSearch` gives it the segments, and `SegmentTrainable` runs one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.tune import Trainable
from ray.tune.search import Searcher

from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.ray_runtime import HEAD_RESOURCE, shares_cluster, tune_connection
from yolofleet.core.stopping import kept_handlers
from yolofleet.core.text import plural
from yolofleet.search.engine import Engine, Pause, SegmentResult, TrialSegment
from yolofleet.search.trial_segment import SegmentOrder, run_segment
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec
from yolofleet.training.supervision.nodes import num_slots, shortage, wanted_resources

if TYPE_CHECKING:
    from yolofleet.training.supervision.admission import Admission

FINISHED: str = Searcher.FINISHED
HEAD_SHARE = 0.001
"""A trial with several workers only waits for them: it takes this share of the head's resource instead of a CPU."""

OnSegment = Callable[[str, TrialSegment, SegmentResult | None], None]
"""Called with "begin" (no result) when a segment begins, and with "end" when it has ended."""


class EngineSearch(Searcher):  # type: ignore[misc]  # ray has no types
    """Gives Tune the engine's segments as trials, and the engine their results.

    Attributes:
        admission: Says how many trials may run on a cluster that others use, too; None where nobody else does.
    """

    def __init__(
        self, engine: Engine, job_of: Callable[[TrialSegment], JobSpec], objectives: list[str], on_segment: OnSegment
    ) -> None:
        super().__init__()
        self.admission: Admission | None = None
        self.engine = engine
        self.done = False
        self.problem: Exception | None = None
        self._job_of = job_of
        self._objectives = objectives
        self._on_segment = on_segment
        self._segments: dict[str, TrialSegment] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next segment, None to wait, or FINISHED."""
        if self.problem is not None:
            return FINISHED
        if self.admission is not None and not self.admission.begin_trial(len(self._segments)):
            return None
        try:
            segment = self.engine.next_segment()
            if isinstance(segment, TrialSegment):
                order = SegmentOrder(self._job_of(segment).document(), segment.share, self._objectives)
        except Exception as error:  # Tune would only log it; it is raised once Tune has returned
            self.problem = error
            return FINISHED
        if not isinstance(segment, TrialSegment):
            self._give_back()
            self.done = segment is Pause.DONE
            return FINISHED if self.done else None
        self._segments[trial_id] = segment
        self._on_segment("begin", segment, None)
        return {"order": order.to_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore the only result of a segment: Tune passes it to `on_trial_complete` too."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Give the engine the result of a segment."""
        segment = self._segments.pop(trial_id, None)
        if segment is None:
            return
        self._give_back()
        outcome = read_result(None if error or result is None else result.get("segment"))
        try:
            self.engine.complete(segment, outcome)
        except Exception as failure:
            self.problem = self.problem or failure
            return
        self._on_segment("end", segment, outcome)

    def _give_back(self) -> None:
        """Keep the slots of the trials that run only: at each end of a segment others may have them."""
        if self.admission is not None:
            self.admission.end_trial(len(self._segments))

    def __reduce__(self) -> Any:
        """Leave the engine out where Tune stores its searcher: nothing reads that file."""
        return (Searcher, ())

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: ``trials.jsonl`` is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class SegmentTrainable(Trainable):  # type: ignore[misc]  # ray has no types
    """Runs one segment; its process is then reused for the next one, so that torch and Ray are loaded once."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the order."""
        self._order = config["order"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another order."""
        self._order = new_config["order"]
        return True

    def step(self) -> dict[str, Any]:
        """Run the segment to its end."""
        return {"segment": json.dumps(run_segment(self._order)), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the run directory holds the checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing."""


def read_result(text: str | None) -> SegmentResult:
    """Return the result that a segment's process sent; without one its process is lost, so the segment has failed."""
    if text is None:
        return SegmentResult(failure="its process was lost too often (see the messages above)")
    return SegmentResult(**json.loads(text))


def concurrency(spec: SearchSpec, cluster: ClusterSpec, slots: int, *, where: str = "the cluster") -> int:
    """Return how many trials run at a time, each with all its workers.

    Args:
        spec: The search.
        cluster: The resources that each trial asks for.
        slots: Number of workers that there is room for.
        where: Name of the cluster in a message.

    Raises:
        UserError: ``spec.concurrency`` asks for more trials than fit.
    """
    fit = slots // cluster.most_workers or (1 if slots >= cluster.fewest_workers else 0)
    if spec.concurrency is not None and spec.concurrency > fit:
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted_resources(cluster).items())
        workers = plural(cluster.most_workers, "worker")
        raise UserError(
            f"concurrency {spec.concurrency}: {where} has room for {plural(fit, 'trial')} at a time, of {workers} with "
            f"{each} each; ask for at most {fit}, for less per trial (job.cluster...), or add nodes"
        )
    return spec.concurrency or fit


def run_search(
    spec: SearchSpec,
    cluster: ClusterSpec,
    engine: Engine,
    job_of: Callable[[TrialSegment], JobSpec],
    objectives: list[str],
    *,
    on_segment: OnSegment = lambda kind, segment, result: None,
    show_worker_output: bool = False,
    url: str = "",
    on_event: Callable[..., object] = lambda kind, **fields: None,
) -> None:
    """Run segments until the engine has no more, on a cluster that others use in as many slots as are its share.

    Args:
        spec: The search.
        cluster: The resources that each trial asks for.
        engine: Decides what runs next.
        job_of: Builds the job of a segment's run.
        objectives: Metrics that each trial must report.
        on_segment: Called when a segment begins and when it has ended.
        show_worker_output: Print the output of Ray and of the trials.
        url: The search's directory.
        on_event: Appends an event to it.

    Raises:
        UserError: The cluster has too few resources for a trial.
        WorkError: Tune failed.
    """
    first = engine.next_segment()
    if not isinstance(first, TrialSegment):
        return  # all segments have ended in an earlier start
    engine.interrupt(first)
    is_shared = shares_cluster()
    with tune_connection(show_worker_output=show_worker_output):
        from yolofleet.training.supervision.nodes import alive_offers

        offers = alive_offers()
        slots = num_slots(cluster, offers)
        if slots < cluster.fewest_workers:
            raise UserError(shortage(cluster, offers))
        source = EngineSearch(engine, job_of, objectives, on_segment)
        at_a_time = concurrency(spec, cluster, slots)
        if is_shared:
            from yolofleet.training.supervision.admission import join_queue, ticket_of

            step = min(cluster.most_workers, slots)
            ticket = ticket_of(cluster, spec.name, url, most=at_a_time * step, step=step, shares=True)
            with join_queue(ticket, on_event) as source.admission:
                source.admission.wait(cluster.wait_for_room_seconds, lambda: None, _request_resources)
                _run_tune(source, cluster, at_a_time, reuse_actors=False)
        else:
            _run_tune(source, cluster, at_a_time, reuse_actors=True)
    if source.problem is not None:
        raise source.problem
    if not source.done:
        raise WorkError("Ray Tune ended before the search did; run the same command again: it resumes from the record")


def _request_resources(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def _run_tune(source: EngineSearch, cluster: ClusterSpec, at_a_time: int, *, reuse_actors: bool) -> None:
    """Run the segments; an actor that Tune keeps for reuse keeps its resources, too, which others may wait for."""
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns about its own record files, which are not used
    bundle: dict[str, float] = wanted_resources(cluster)
    if cluster.most_workers > 1:
        bundle = {"CPU": 0, HEAD_RESOURCE: HEAD_SHARE}
    with tempfile.TemporaryDirectory(prefix="yolofleet-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(SegmentTrainable, tune.PlacementGroupFactory([bundle])),
            tune_config=tune.TuneConfig(
                search_alg=source, num_samples=-1, max_concurrent_trials=at_a_time, reuse_actors=reuse_actors
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
                verbose=0,
            ),
        )
        try:
            with kept_handlers():
                tuner.fit()
        except SystemExit as error:  # what Ray raises on Ctrl-C
            raise KeyboardInterrupt from error
