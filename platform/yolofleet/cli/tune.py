"""``yolofleet tune``: from a search space to the best job, its front and its report; run again, it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.session import Session
    from yolofleet.specs.search import SearchSpec
    from yolofleet.storage import Storage
    from yolofleet.storage.holder import Token


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
    from yolofleet.cli.tune_plan import check_room_here, show_plan
    from yolofleet.errors import WorkError
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
        from yolofleet.search.text import summary_lines

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
    from yolofleet.cli.located import located
    from yolofleet.cli.tune_display import following
    from yolofleet.search.controller import run_search
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.initial import keep_initial_weights
    from yolofleet.search.report import write_report
    from yolofleet.tracking.search_mirror import SearchMirror

    directory = SearchDirectory(storage, token=token)
    directory.claim(spec)
    base = session.space.base_job.with_absolute_paths()
    keep_initial_weights(directory, base, lambda uri: located(uri, tracking_uri))
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
