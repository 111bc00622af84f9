"""``yolofleet report``: shows the state of a run or a search, and brings MLflow up to date with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JsonOption, print_result
from yolofleet.core.terminal import note

if TYPE_CHECKING:
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.tracking.run_directory import RunDirectory


def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The directory of a run or of a search (path or s3:// URL).", show_default=False
        ),
    ],
    sync: Annotated[bool, typer.Option("--sync", help="Send to MLflow what it does not have yet.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete the run in MLflow and send everything again.")
    ] = False,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow server or database. Default: the job's.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve its live page for a browser until Ctrl-C.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of --serve on 127.0.0.1. Default: a free one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a run and update its page; with --sync, also send it to MLflow."""
    from yolofleet.core.errors import UserError
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.storage import open_storage
    from yolofleet.tracking.run_directory import RunDirectory

    storage = open_storage(run)
    search = SearchDirectory(storage)
    if port is not None and not serve:
        raise UserError("--port: is for --serve")
    if serve:
        from yolofleet.search.live_page import serve_page

        serve_page(storage, port or 0, note)
        return
    if search.exists():
        _report_search(search, sync=sync, rebuild=rebuild, tracking_uri=tracking_uri, as_json=as_json)
        return
    directory = RunDirectory(storage)
    if not directory.exists():
        raise UserError(
            f"{run}: is the directory of neither a run (no job.yaml) nor a search (no search.yaml); give the folder "
            "STORAGE/NAME"
        )
    summary = _summarize(directory)
    if directory.job_text() is not None:
        summary["page"] = _write_page(directory)
    if sync or rebuild:
        summary["mlflow_run_id"] = _sync(directory, tracking_uri, rebuild=rebuild)
    if not as_json and storage.exists(PAGE):
        summary["page"] = f"{directory.url}/{PAGE}"
    print_result(summary, _lines(summary), as_json=as_json)


def _write_page(directory: RunDirectory) -> str | None:
    """Return where the page lies; None, with a note, where the storage does not take it."""
    from yolofleet.core.errors import UserError
    from yolofleet.core.text import one_line
    from yolofleet.storage import StorageError
    from yolofleet.tracking.run_page import write_run_page

    try:
        return write_run_page(directory)
    except (StorageError, UserError, PermissionError) as error:
        note(f"its page was not written: {one_line(error)}")
        return None


def _sync(directory: RunDirectory, tracking_uri: str | None, *, rebuild: bool) -> str | None:
    from yolofleet.tracking.foreign_store import named_by_user, refuse_foreign
    from yolofleet.tracking.mirror import sync_now
    from yolofleet.tracking.mlflow_store import check_reachable, mlflow_errors

    uri, experiment = _find_store(directory, tracking_uri)
    refuse_foreign(uri, (named_by_user(tracking_uri),), f"{directory.url}/job.yaml")
    check_reachable(uri)
    with mlflow_errors(uri):
        return sync_now(directory, uri, experiment, rebuild=rebuild)


STATUSES = {None: "not started", "RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
PAGE = "report/index.html"


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the state of a run in a few lines: the newest figures, what its failures cost, and what to do next."""
    from yolofleet.core.text import one_line

    survival, metrics = summary["survival"], summary["metrics"]
    yield f"{summary['name']}: {STATUSES.get(summary['status'], summary['status'])}, step {summary['step']:,}"
    yield from (f"  {name:<12} {one_line(text, 2000)}" for name, text in _facts(summary, survival, metrics) if text)
    if survival["history"]:
        yield "  history"
        yield from (f"    {line}" for line in survival["history"])


def _facts(
    summary: dict[str, Any], survival: dict[str, Any], metrics: dict[str, Any]
) -> Iterator[tuple[str, str | None]]:
    from yolofleet.core.durations import describe_duration
    from yolofleet.core.text import plural

    validation = {key.removeprefix("val_"): value for key, value in metrics.items() if key.startswith("val_")}
    figures = [f"{key} {_format(validation[key])}" for key in ("AP50", "AP", "loss") if key in validation]
    yield "validation", ", ".join(figures)
    others = {key: value for key, value in metrics.items() if not key.startswith("val_")}
    yield "training", ", ".join(f"{key.replace('_', ' ')} {_format(value)}" for key, value in others.items())
    goodput = "" if survival["goodput"] is None else f", {survival['goodput']:.1%} of it not lost to failures"
    hours = ", " + plural(survival["worker_hours"], "worker hour", form=".3g")
    cost = "" if survival["cost"] is None else f", cost {survival['cost']:.2f}"
    if survival["forecast_cost"] not in (None, survival["cost"]):
        cost += f" so far, {survival['forecast_cost']:.2f} at its end"
    trained = describe_duration(survival["seconds_trained"])
    yield "time", f"{trained} in {plural(survival['starts'], 'start')}{goodput}{hours}{cost}"
    failures = ", ".join(f"{count} ({kind})" for kind, count in survival["failures"].items())
    redone = f"; {plural(survival['steps_redone'], 'step')} done twice" if survival["steps_redone"] else ""
    yield "failures", failures and failures + redone
    yield "left out", None if summary["skipped"] == "none" else summary["skipped"]
    yield "model", f"{summary['url']}/model" if summary["has_model"] else "none yet"
    yield "version", summary["version"]
    yield "report page", summary.get("page")
    yield "MLflow run", summary.get("mlflow_run_id")
    if summary["version"]:
        yield "next", f"yolofleet registry promote {str(summary['version']).removeprefix('models:/')}"
    elif summary["has_model"]:
        yield "next", f"yolofleet registry register {summary['url']} --name NAME"
    elif summary["status"] in ("FAILED", "KILLED"):
        yield "next", "resume it with the command that started it"


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _report_search(
    directory: SearchDirectory, *, sync: bool, rebuild: bool, tracking_uri: str | None, as_json: bool
) -> None:
    """Write a search's report anew from its record, and show its results."""
    from yolofleet.search.directory import sync_search
    from yolofleet.search.optuna_file import write_optuna_file
    from yolofleet.search.report import write_report
    from yolofleet.search.results import summary_lines

    results = write_report(directory)
    write_optuna_file(directory)
    lines = summary_lines(results, directory.url)
    if sync or rebuild:
        lines.append(f"MLflow run: {sync_search(directory, tracking_uri, rebuild=rebuild)}")
    print_result(results.document(), lines, as_json=as_json)


def _summarize(directory: RunDirectory) -> dict[str, Any]:
    """Return the state of the run, with the newest value of every metric."""
    from yolofleet.registry.release import release_record
    from yolofleet.tracking.goodput import summarize_run
    from yolofleet.training.loop.sample_log import format_skips, read_skipped

    rows = directory.metrics()
    newest: dict[str, Any] = {}
    for row in rows:
        newest |= row
    events = directory.events()
    release = release_record(directory)
    return {
        "name": directory.name,
        "url": directory.url,
        "status": directory.status(),
        "starts": sum(event.get("kind") == "start" for event in events),
        "last_event": events[-1] if events else None,
        "step": newest.pop("step", 0),
        "has_model": directory.has_model(),
        "version": release.model if release else None,
        "skipped": format_skips(read_skipped(directory.storage)),
        "survival": asdict(summarize_run(events, rows)),
        "metrics": {key: value for key, value in newest.items() if key != "time"},
    }


def _find_store(directory: RunDirectory, given: str | None) -> tuple[str, str]:
    """Return the tracking URI and the experiment of a run, by its job."""
    from yolofleet.core.errors import UserError
    from yolofleet.specs.tracking import TrackingSpec
    from yolofleet.tracking.mlflow_store import default_tracking_uri

    tracking = TrackingSpec.parse(directory.job_document().get("tracking") or {}, source=f"{directory.url}/job.yaml")
    uri = given or tracking.uri or default_tracking_uri(directory.url.rstrip("/").rpartition("/")[0])
    if uri is None:
        raise UserError(f"{directory.url}: the job names no tracking.uri; give one with --tracking-uri")
    return uri, tracking.experiment
