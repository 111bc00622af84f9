"""``yolofleet tune``: from a search space to the best job, its front and its report; run again, it goes on.

What a search will do, shown before it starts.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from yolofleet.search.session import Session
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.session import Session
    from yolofleet.specs.search import SearchSpec
    from yolofleet.storage import Storage
    from yolofleet.storage.lock_record import Token

MOST_MEASURED_GFLOPS = 400.0
"""A step that costs more than this is not run here to measure the speed."""
CANDIDATES_SHOWN = 8
POINTS = 64


def show_plan(session: Session, *, as_json: bool) -> None:
    """Print the plan: on stderr for people, on stdout as JSON."""
    from yolofleet.search.feasibility import profile_job
    from yolofleet.search.forecast import forecast, sentences
    from yolofleet.search.space import even_point

    spec, parameters = session.spec, session.space.parameters
    job = session.space.base_job
    points = [even_point(spec.seed, index, len(parameters)) for index in range(POINTS)]
    values = [parameters.at(point) for point in points]
    if spec.algorithm.name == "grid":
        values = parameters.grid()
    cheap = session.screen.without_latency()
    screened = [cheap(entry) for entry in values]
    base = profile_job(job, len(session.train.classes))
    found = forecast(
        spec,
        job,
        screened,
        num_candidates=parameters.num_candidates,
        samples_per_second=spec.samples_per_second or measured_speed(session, base["gflops_training"]),
        base_gflops=base["gflops_training"],
        at_a_time=spec.concurrency or _places_here(session),
    )
    if as_json:
        candidates = [
            {"values": entry, "figures": known.figures, "violations": known.violations, "problem": known.problem}
            for entry, known in zip(values, screened, strict=True)
        ]
        typer.echo(json.dumps({"forecast": asdict(found), "candidates": candidates}, indent=1))
        return
    typer.echo(f"search {spec.name}:", err=True)
    for line in sentences(found, spec):
        typer.echo(f"  {line}", err=True)
    if spec.algorithm.name == "grid":
        for entry, known in list(zip(values, screened, strict=True))[:CANDIDATES_SHOWN]:
            shown = ", ".join(f"{name}={value}" for name, value in entry.items())
            cost = (
                f"{known.figures['parameters'] / 1e6:.1f} M, {known.figures['gflops']:.1f} G" if known.figures else ""
            )
            typer.echo(f"    {shown}: {cost or known.problem}{'' if known.feasible else ' (refused)'}", err=True)
        if len(values) > CANDIDATES_SHOWN:
            typer.echo(f"    and {len(values) - CANDIDATES_SHOWN} more (--plan --json lists all)", err=True)


def measured_speed(session: Session, gflops: float) -> float | None:
    """Return images a second of the base job's training step on one core here; None where that says nothing.

    It is measured only for jobs that train on CPUs of this machine and whose step takes seconds at most.
    """
    job = session.space.base_job
    if (
        job.cluster.gpus_per_worker
        or os.environ.get("RAY_ADDRESS")
        or gflops * job.micro_batch_size > MOST_MEASURED_GFLOPS
    ):
        return None
    import torch

    from yolofleet.models import build_model

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    try:
        model = build_model(job.model, num_classes=len(session.train.classes)).train()
        side = job.data.image_size
        images = torch.rand(min(job.micro_batch_size, 4), 3, side, side)
        seconds = 0.0
        for _ in range(2):  # the first pays for what only the first call needs
            begin = time.perf_counter()
            sum(level.float().mean() for level in model(images)).backward()
            seconds = time.perf_counter() - begin
        return len(images) / max(seconds, 1e-6)
    finally:
        torch.set_num_threads(before)


def check_room_here(session: Session) -> None:
    """Refuse what this machine can never run, before Ray is started for it; a cluster is asked once it is connected.

    Raises:
        UserError: A trial does not fit, or not as many as are asked for.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    from yolofleet.search.controller import concurrency
    from yolofleet.training.supervision.nodes import has_room, num_places, this_machine

    cluster, here = session.space.base_job.cluster, this_machine()
    has_room(cluster, [here])
    concurrency(session.spec, cluster, num_places(cluster, [here]), described="this machine")


def _places_here(session: Session) -> int | None:
    """Return how many trials run at a time on this machine; None where a cluster decides."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    from yolofleet.training.supervision.nodes import num_places, this_machine

    cluster = session.space.base_job.cluster
    return max(num_places(cluster, [this_machine()]) // cluster.most_workers, 1)


def tune(
    space: Annotated[Path, typer.Argument(help="The search space (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, e.g. budget.trials=20 job.epochs=5."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show candidates and cost, start nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray and the trials print.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> int:
    """Search for the best job. The same command goes on with a search that was stopped."""
    from yolofleet.core.errors import WorkError
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.session import Session
    from yolofleet.specs.search import load_search
    from yolofleet.storage import open_storage
    from yolofleet.storage.lock import hold
    from yolofleet.tracking.mlflow_store import check_reachable, default_tracking_uri

    spec = load_search(space, overrides or [])
    session = Session.open(spec, source=str(space))
    job = session.space.base_job.with_absolute_paths()
    storage = open_storage(job.storage).child(spec.name)
    directory = SearchDirectory(storage)
    going_on = directory.exists() and bool(directory.rows())
    show_plan(session, as_json=json_output and plan)
    if plan:
        return 0
    if not yes and not going_on and sys.stdin.isatty() and not typer.confirm("Start?", default=True, err=True):
        typer.echo("nothing was started", err=True)
        return 0
    check_room_here(session)
    tracking_uri = job.tracking.uri or default_tracking_uri(job.storage)
    if tracking_uri is not None:
        check_reachable(tracking_uri)
    with hold(storage, told=lambda line: typer.echo(line, err=True)) as lock:
        directory = _search(spec, session, storage, lock.token, tracking_uri, job.tracking.experiment, verbose)
    from yolofleet.search.results import load_results

    results = load_results(directory)
    if results.best is None:
        failed = [entry.state for entry in results.entries if entry.state.startswith("failed")]
        raise WorkError(
            f"no trial has completed{f'; the first to fail {failed[0]}' if failed else ''}: {directory.url}"
        )
    if json_output:
        typer.echo(json.dumps(results.document(), indent=1))
    else:
        from yolofleet.search.results import summary_lines

        for line in summary_lines(results, directory.url):
            typer.echo(line)
    return 0


def _search(
    spec: SearchSpec,
    session: Session,
    storage: Storage,
    token: Token,
    tracking_uri: str | None,
    experiment: str,
    verbose: bool,
) -> SearchDirectory:
    from yolofleet.cli.model_argument import resolve_weights
    from yolofleet.cli.tune_display import following
    from yolofleet.search.controller import run_search
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.report import write_report
    from yolofleet.search.trial_segment import keep_initial_weights
    from yolofleet.tracking.search_mirror import SearchMirror

    directory = SearchDirectory(storage, token=token)
    directory.claim(spec)
    base = session.space.base_job.with_absolute_paths()
    keep_initial_weights(directory, base, lambda uri: resolve_weights(uri, tracking_uri))
    trials = session.trials(directory)
    mirror = (
        SearchMirror(directory, directory.trial_runs, tracking_uri, experiment) if tracking_uri is not None else None
    )
    if mirror is not None:
        mirror.start()
    try:
        with following(session, directory, trials) as told, _end_noted(directory):
            run_search(
                spec,
                session.space.base_job.cluster,
                session.engine(trials, directory),
                session.job_of(directory),
                session.measured_objectives,
                told=told,
                show_worker_output=verbose,
            )
        write_report(directory)
    finally:
        directory.flush()
        if mirror is not None:
            mirror.close()
        directory.close()
    return directory


@contextmanager
def _end_noted(directory: SearchDirectory) -> Iterator[None]:
    """Note in the search's events how it began and how it ended."""
    directory.append_event("start")
    try:
        yield
    except BaseException as error:
        kind = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        directory.append_event(kind, reason=" ".join(str(error).split())[:500])
        raise
    directory.append_event("end")
