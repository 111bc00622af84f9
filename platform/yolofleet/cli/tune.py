"""``yolofleet tune``: from a search space to the best job, its front and its report; run again, it resumes.

Before anything starts, a forecast says what the search will do and what it will cost.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import JsonOption, Verbose, print_result
from yolofleet.core.liveness import describe_start
from yolofleet.core.terminal import SCREEN, doing, note
from yolofleet.core.text import one_line, plural

if TYPE_CHECKING:
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.engine import SegmentResult, TrialSegment
    from yolofleet.search.results import Results
    from yolofleet.search.session import SearchSession
    from yolofleet.specs.search import SearchSpec
    from yolofleet.storage import Storage
    from yolofleet.storage.lock import FencingToken
    from yolofleet.tracking.notifications import WorkNotifier

MOST_MEASURED_GFLOPS = 400.0
"""A step that costs more than this is not run here to measure the speed."""
CANDIDATES_SHOWN = 8
POINTS = 64
"""Candidates that the forecast screens, spread evenly over the space."""


def show_plan(session: SearchSession, *, as_json: bool) -> None:
    """Print the plan: on stderr for people, on stdout as JSON."""
    from yolofleet.search.feasibility import profile_job
    from yolofleet.search.forecast import forecast, forecast_lines
    from yolofleet.search.space import even_point

    doing("forecasting what the search will cost")
    spec, parameters = session.spec, session.space.parameters
    job = session.space.base_job
    is_grid = spec.algorithm.name == "grid"
    points = [even_point(spec.seed, index, len(parameters)) for index in range(POINTS)]
    values = parameters.grid() if is_grid else [parameters.at(point) for point in points]
    screen = session.screen.without_latency()
    candidates = list(zip(values, (screen(entry) for entry in values), strict=True))
    base = profile_job(job, len(session.train.classes))
    expected = forecast(
        spec,
        job,
        [screened for _, screened in candidates],
        num_candidates=parameters.num_candidates,
        samples_per_second=spec.samples_per_second or measure_speed(session, base["gflops_training"]),
        base_gflops=base["gflops_training"],
        at_a_time=spec.concurrency or _trials_at_a_time_here(session),
    )
    if as_json:
        documents = [
            {"values": entry, "figures": result.figures, "violations": result.violations, "problem": result.problem}
            for entry, result in candidates
        ]
        print_result({"forecast": asdict(expected), "candidates": documents}, (), as_json=True)
        return
    note(f"search {spec.name}:")
    for line in forecast_lines(expected, spec):
        note(f"  {line}")
    if is_grid:
        for entry, result in candidates[:CANDIDATES_SHOWN]:
            settings = ", ".join(f"{name}={value}" for name, value in entry.items())
            figures = result.figures
            cost = f"{figures['parameters'] / 1e6:.1f} M, {figures['gflops']:.1f} G" if figures else result.problem
            note(f"    {settings}: {cost}{'' if result.feasible else ' (refused)'}")
        if len(values) > CANDIDATES_SHOWN:
            note(f"    and {len(values) - CANDIDATES_SHOWN} more (--plan --json lists all)")


def measure_speed(session: SearchSession, gflops: float) -> float | None:
    """Return images a second of the base job's training step on one core here; None where it is not measured.

    It is measured only for jobs that train on CPUs of this machine and whose step takes seconds at most.
    """
    job = session.space.base_job
    if (
        job.cluster.gpus_per_worker
        or os.environ.get("RAY_ADDRESS")
        or gflops * job.resolved_micro_batch_size > MOST_MEASURED_GFLOPS
    ):
        return None
    import torch

    from yolofleet.models import build_model

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(job.cluster.worker_cpus)))
    try:
        model = build_model(job.model, num_classes=len(session.train.classes)).train()
        side = job.data.image_size
        images = torch.rand(min(job.resolved_micro_batch_size, 4), 3, side, side)
        seconds = 0.0
        for _ in range(2):  # the first call also allocates what later ones use again
            begin = time.perf_counter()
            sum(level.float().mean() for level in model(images)).backward()
            seconds = time.perf_counter() - begin
        return len(images) / max(seconds, 1e-6)
    finally:
        torch.set_num_threads(before)


def check_room_here(session: SearchSession) -> None:
    """Refuse trials that this machine can never hold, before Ray is started; a cluster is checked once it is connected.

    Raises:
        UserError: Not even one trial fits, or fewer than are asked for.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    from yolofleet.search.controller import concurrency
    from yolofleet.training.supervision.nodes import has_room, num_slots, this_machine

    cluster, here = session.space.base_job.cluster, this_machine()
    has_room(cluster, [here])
    concurrency(session.spec, cluster, num_slots(cluster, [here]), where="this machine")


def _trials_at_a_time_here(session: SearchSession) -> int | None:
    """Return how many trials run at a time on this machine; None where a cluster decides."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    from yolofleet.training.supervision.nodes import num_slots, this_machine

    cluster = session.space.base_job.cluster
    return max(num_slots(cluster, [this_machine()]) // cluster.most_workers, 1)


def tune(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="The search space (YAML), path or s3:// URL.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields to change, e.g. budget.trials=20 job.epochs=5; 'yolofleet schema search --markdown' has all.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show the candidates and their cost; start nothing.")] = False,
    verbose: Verbose = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the best job. The same command resumes a search that was stopped."""
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.session import SearchSession
    from yolofleet.specs.search import load_search
    from yolofleet.storage import open_file, open_storage

    doing("reading the search space, and screening candidates")
    session = SearchSession.open(load_search(open_file(space), overrides or []), source=space)
    show_plan(session, as_json=as_json and plan)
    if plan:
        return
    check_room_here(session)
    directory = SearchDirectory(open_storage(session.space.base_job.storage).child(session.spec.name))
    resumes = directory.exists() and bool(directory.rows())
    if not yes and not resumes and sys.stdin.isatty() and not _confirm():
        note("nothing was started")
        return
    results, lines = run_space(session, verbose=verbose)
    print_result(results.document(), lines, as_json=as_json)


def run_space(session: SearchSession, *, verbose: bool = False) -> tuple[Results, list[str]]:
    """Search for the best job; returns the results, and lines that say them.

    Args:
        session: The search; local paths of its base job count from the working folder.
        verbose: Whether to show what Ray and the workers print.

    Raises:
        UserError: The search cannot run here; nothing was started.
        WorkError: No trial has completed.
    """
    from yolofleet.core.errors import WorkError, require_package
    from yolofleet.search.results import load_results, summary_lines
    from yolofleet.storage import open_storage
    from yolofleet.storage.lock import hold
    from yolofleet.tracking.mlflow_store import check_reachable, job_tracking_uri

    require_package("ray")
    check_room_here(session)
    spec, job = session.spec, session.space.base_job.with_absolute_paths()
    storage = open_storage(job.storage).child(spec.name)
    doing("looking for MLflow and the storage")
    tracking_uri = job_tracking_uri(job.tracking, job.storage)
    if tracking_uri is not None:
        check_reachable(tracking_uri)
    with hold(storage, notify=note) as lock, _notifying(spec, storage, lock.token) as notifier:
        directory = _search(spec, session, storage, lock.token, tracking_uri, job.tracking.experiment, verbose)
        results = load_results(directory)
        if results.best is None:
            failed = [entry.state for entry in results.entries if entry.state.startswith("failed")]
            first = f"; the first to fail {failed[0]}" if failed else ""
            raise WorkError(f"no trial has completed{first}: {directory.url}")
        lines = summary_lines(results, directory.url)
        if notifier is not None:
            notifier.end("\n".join(lines))
    return results, lines


def _confirm() -> bool:
    with SCREEN.drawing(None):
        return typer.confirm("Start?", default=True, err=True)


def _notifying(spec: SearchSpec, storage: Storage, token: FencingToken) -> AbstractContextManager[WorkNotifier | None]:
    if spec.notify is None:
        return nullcontext()
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.tracking.notifications import notifying

    return notifying(spec.notify, f"search {spec.name}", lambda: SearchDirectory(storage, token=token))


def _search(
    spec: SearchSpec,
    session: SearchSession,
    storage: Storage,
    token: FencingToken,
    tracking_uri: str | None,
    experiment: str,
    verbose: bool,
) -> SearchDirectory:
    from yolofleet.cli.model_argument import resolve_weights
    from yolofleet.cli.progress import writing_pages
    from yolofleet.cli.tune_display import watch_search
    from yolofleet.search.controller import run_search
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.optuna_file import dashboard_hint, keep_optuna_file
    from yolofleet.search.report import write_report
    from yolofleet.search.trial_segment import keep_initial_weights
    from yolofleet.tracking.search_mirror import SearchMirror

    directory = SearchDirectory(storage, token=token)
    directory.claim(spec)
    directory.record_facts(started=describe_start(["yolofleet", *sys.argv[1:]]))
    base = session.space.base_job.with_absolute_paths()
    keep_initial_weights(directory, base, lambda uri: resolve_weights(uri, tracking_uri))
    trials = session.trials(directory)
    mirror = (
        SearchMirror(directory, directory.trial_runs, tracking_uri, experiment) if tracking_uri is not None else None
    )
    if mirror is not None:
        mirror.start()
    if (hint := dashboard_hint(directory)) is not None:
        note(f"  watch it in a browser: {hint}")
    try:
        watched = watch_search(session, directory, trials)
        with (
            keep_optuna_file(directory),
            writing_pages(directory.url) as write_page,
            watched as show_segment,
            _record_end(directory),
        ):

            def on_segment(kind: str, segment: TrialSegment, result: SegmentResult | None) -> None:
                show_segment(kind, segment, result)
                if result is not None:
                    write_page()

            run_search(
                spec,
                session.space.base_job.cluster,
                session.engine(trials, directory),
                session.job_of(directory),
                session.measured_objectives,
                on_segment=on_segment,
                show_worker_output=verbose,
                url=directory.url,
                on_event=directory.append_event,
            )
        doing("writing the report")
        write_report(directory)
    except KeyboardInterrupt:
        ended = sum(trial.end is not None for trial in trials.trials.values())
        note(f"saved: {plural(len(trials.trials), 'trial')}, {ended} of them ended: {directory.url}")
        raise
    finally:
        doing("sending the rest to MLflow")
        directory.flush()
        if mirror is not None:
            mirror.close()
        directory.close()
    return directory


@contextmanager
def _record_end(directory: SearchDirectory) -> Iterator[None]:
    """Write events into the search's log when it starts and when it ends."""
    directory.append_event("start")
    try:
        yield
    except BaseException as error:
        kind = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        directory.append_event(kind, reason=one_line(error, 500))
        raise
    directory.append_event("end")
