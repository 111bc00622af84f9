"""``yolofleet report``: how a run stands, and MLflow brought level with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer


def report(
    run: Annotated[
        str, typer.Argument(help="The directory of a run or of a search (path or s3:// URL).", show_default=False)
    ],
    sync: Annotated[bool, typer.Option("--sync", help="Send to MLflow what it lacks of the run.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Delete the run in MLflow and send it all anew.")] = False,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow server or database. Default: the job's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")] = False,
) -> None:
    """Show how a run stands; with --sync, bring MLflow level with it."""
    from yolofleet.core.errors import UserError
    from yolofleet.storage import open_storage
    from yolofleet.tracking.mirror import sync_now
    from yolofleet.tracking.mlflow_store import check_reachable, mlflow_errors
    from yolofleet.tracking.run_directory import RunDirectory

    if _is_search(run):
        _report_search(run, sync=sync, rebuild=rebuild, tracking_uri=tracking_uri, as_json=as_json)
        return
    directory = RunDirectory(open_storage(run))
    if not directory.exists():
        raise UserError(
            f"{run}: is no run directory (no job.yaml) and no search's (no search.yaml); give the folder STORAGE/NAME"
        )
    summary = _summary(directory)
    if sync or rebuild:
        uri, experiment = _store_of(directory, tracking_uri)
        check_reachable(uri)
        with mlflow_errors(uri):
            summary["mlflow_run_id"] = sync_now(directory, uri, experiment, rebuild=rebuild)
    if as_json:
        import json

        typer.echo(json.dumps(summary, indent=2))
        return
    history = summary["survival"].pop("history")
    for line in (*_lines(summary), *(["history:"] if history else []), *(f"  {line}" for line in history)):
        typer.echo(line)


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """Give a line for each figure, those that belong together below their name."""
    for key, value in summary.items():
        if isinstance(value, dict):
            yield f"{key}:"
            yield from (f"  {name:<28} {_shown(item)}" for name, item in value.items())
        else:
            yield f"{key}: {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items()) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_search(url: str) -> bool:
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.storage import open_storage

    return SearchDirectory(open_storage(url)).exists()


def _report_search(url: str, *, sync: bool, rebuild: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Make a search's report anew from its record, and show its results."""
    import json

    from yolofleet.search.directory import SearchDirectory, sync_search
    from yolofleet.search.report import write_report
    from yolofleet.search.results import summary_lines
    from yolofleet.storage import open_storage

    directory = SearchDirectory(open_storage(url))
    results = write_report(directory)
    lines = summary_lines(results, directory.url)
    if sync or rebuild:
        lines.append(f"MLflow run: {sync_search(directory, tracking_uri, rebuild=rebuild)}")
    if as_json:
        typer.echo(json.dumps(results.document(), indent=1))
        return
    for line in lines:
        typer.echo(line)


def _summary(directory: Any) -> dict[str, Any]:
    """Return how the run stands, with the newest value of every metric."""
    from dataclasses import asdict

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


def _store_of(directory: Any, given: str | None) -> tuple[str, str]:
    """Return the tracking URI and the experiment of a run, as its job says."""
    from yolofleet.core.errors import UserError
    from yolofleet.specs.document import parse_yaml
    from yolofleet.specs.job import TrackingSpec
    from yolofleet.tracking.mlflow_store import default_tracking_uri

    document = parse_yaml(directory.job_text() or "", source=f"{directory.url}/job.yaml") or {}
    tracking = TrackingSpec.parse(document.get("tracking", {}), source=f"{directory.url}/job.yaml")
    storage_url = directory.url.rstrip("/").rpartition("/")[0]
    uri = given or tracking.uri or default_tracking_uri(storage_url)
    if uri is None:
        raise UserError(f"{directory.url}: the job names no tracking.uri; give one with --tracking-uri")
    return uri, tracking.experiment
