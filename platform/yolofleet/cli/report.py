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
        str, typer.Argument(help="The directory of a run or of a search (path or s3:// URL).", show_default=False)
    ],
    sync: Annotated[bool, typer.Option("--sync", help="Send to MLflow what it lacks of the run.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Delete the run in MLflow and send it all anew.")] = False,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow server or database. Default: the job's.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show its page in a browser and follow it while it goes; Ctrl-C ends that.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of --serve on 127.0.0.1. Default: a free one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a run and write its page anew; with --sync, bring MLflow up to date with it."""
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
    from yolofleet.tracking.mirror import sync_now
    from yolofleet.tracking.mlflow_store import check_reachable, mlflow_errors

    uri, experiment = _find_store(directory, tracking_uri)
    check_reachable(uri)
    with mlflow_errors(uri):
        return sync_now(directory, uri, experiment, rebuild=rebuild)


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each figure, those that belong together below their name, and the history last."""
    history = summary["survival"]["history"]
    for key, value in summary.items():
        if isinstance(value, dict):
            yield f"{key}:"
            yield from (f"  {name:<28} {_format(item)}" for name, item in value.items() if item is not history)
        else:
            yield f"{key}: {_format(value)}"
    if history:
        yield "history:"
        yield from (f"  {line}" for line in history)


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format(item)}" for name, item in value.items()) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
    from yolofleet.tracking.goodput import summarize_run
    from yolofleet.training.loop.sample_log import format_skips, read_skipped

    rows = directory.metrics()
    newest: dict[str, Any] = {}
    for row in rows:
        newest |= row
    events = directory.events()
    return {
        "name": directory.name,
        "url": directory.url,
        "status": directory.status(),
        "starts": sum(event.get("kind") == "start" for event in events),
        "last_event": events[-1] if events else None,
        "step": newest.pop("step", 0),
        "has_model": directory.has_model(),
        "skipped": format_skips(read_skipped(directory.storage)),
        "survival": asdict(summarize_run(events, rows)),
        "metrics": {key: value for key, value in newest.items() if key != "time"},
    }


def _find_store(directory: RunDirectory, given: str | None) -> tuple[str, str]:
    """Return the tracking URI and the experiment of a run, by its job."""
    from yolofleet.core.errors import UserError
    from yolofleet.specs.job import TrackingSpec
    from yolofleet.specs.yaml_document import parse_yaml
    from yolofleet.tracking.mlflow_store import default_tracking_uri

    source = f"{directory.url}/job.yaml"
    document = parse_yaml(directory.job_text() or "", source=source) or {}
    tracking = TrackingSpec.parse(document.get("tracking", {}), source=source)
    uri = given or tracking.uri or default_tracking_uri(directory.url.rstrip("/").rpartition("/")[0])
    if uri is None:
        raise UserError(f"{directory.url}: the job names no tracking.uri; give one with --tracking-uri")
    return uri, tracking.experiment
