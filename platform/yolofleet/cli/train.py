"""``yolofleet train``: from a job to a registered model; run again, it goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yolofleet.registry.release import Release
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage.lock_record import Token
    from yolofleet.training.setup.preflight import Readiness


def train(
    job: Annotated[Path, typer.Argument(help="The job spec (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, e.g. data.image_size=320.")
    ] = None,
    launcher: Annotated[
        str, typer.Option(help="'ray': workers on RAY_ADDRESS or on this machine; 'process': this process alone.")
    ] = "ray",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray and the workers print.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> int:
    """Train a model, judge it, and register it. The same command goes on with a run that was stopped."""
    from yolofleet.core.errors import UserError
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage.lock import hold
    from yolofleet.tracking.mlflow_store import default_tracking_uri
    from yolofleet.training.setup.preflight import run_storage

    if launcher not in ("ray", "process"):
        raise UserError(f"--launcher {launcher}: use 'ray' or 'process'")
    spec = JobSpec.load(job, overrides or []).with_absolute_paths()
    tracking_uri = spec.tracking.uri or default_tracking_uri(spec.storage)
    with hold(run_storage(spec), told=lambda line: typer.echo(line, err=True)) as lock:
        if tracking_uri is not None:  # after the storage has proven that it can be written, for it may lie there
            _check_tracking(spec, tracking_uri)
        record, headline = _go_on(spec, launcher, tracking_uri, lock.token, verbose)
    _show(record, headline, as_json=json_output)
    return 0


def _go_on(spec: JobSpec, launcher: str, tracking_uri: str | None, token: Token, verbose: bool) -> tuple[Release, str]:
    """Do what the run still lacks: training, the release, MLflow."""
    from yolofleet.cli.model_argument import resolve_weights
    from yolofleet.registry.release import release, release_record
    from yolofleet.tracking.mirror import Mirror
    from yolofleet.tracking.run_directory import RunDirectory
    from yolofleet.training.setup.preflight import check_job

    ready = check_job(spec, lambda uri: resolve_weights(uri, tracking_uri))
    if ready.finished and (record := release_record(ready.run)) is not None:
        return record, "this run is finished already; nothing was done"
    # A log of its own: the driver of the workers writes another at the same time.
    mirror_log = RunDirectory.open(spec.storage, spec.name, source="mirror", token=token)
    mirror = (
        Mirror(ready.run, tracking_uri, spec.tracking.experiment, told=mirror_log.append_event)
        if tracking_uri is not None
        else None
    )
    if mirror is not None:
        mirror.start()
    try:
        if not ready.finished:
            _run(spec, launcher, ready, token, verbose)
        record = release(spec, ready, _registry(spec, ready, tracking_uri))
    finally:
        if mirror is not None:
            ready.run.flush()
            mirror.close()
            mirror_log.close()
    return record, "done"


def _check_tracking(spec: JobSpec, tracking_uri: str) -> None:
    """Make sure that MLflow answers, or say that it will be told later where the job allows that."""
    from yolofleet.tracking.mlflow_store import TrackingError, check_reachable, check_uri

    check_uri(tracking_uri)
    try:
        check_reachable(tracking_uri)
    except TrackingError as error:
        if spec.tracking.when_away == "fail":
            raise TrackingError(f"{error}. Or train now and send later: tracking.when_away=spool") from error
        typer.echo(f"{error}\n  training all the same; MLflow gets everything when it is back", err=True)


def _registry(spec: JobSpec, ready: Readiness, tracking_uri: str | None) -> str | None:
    """Return the store to register in; None, said so, where it is away and the job does not wait for it."""
    from yolofleet.tracking.mlflow_store import TrackingError, check_reachable

    if tracking_uri is None or spec.tracking.when_away == "fail":
        return tracking_uri
    try:
        check_reachable(tracking_uri)
    except TrackingError as error:
        typer.echo(f"{error}\n  once MLflow is back: yolofleet report {ready.run.url} --sync", err=True)
        if spec.tracking.register_as is not None:
            typer.echo(
                f"  and: yolofleet registry register {ready.run.url} --name {spec.tracking.register_as}", err=True
            )
        return None
    return tracking_uri


def _run(spec: JobSpec, launcher: str, ready: Readiness, token: Token, verbose: bool) -> None:
    from yolofleet.cli.progress import following

    if ready.done_steps:
        typer.echo(f"going on from step {ready.done_steps} of {ready.num_steps}: {ready.run.url}", err=True)
        for change in ready.changes:
            typer.echo(f"  changed since the last start: {change}", err=True)
    else:
        typer.echo(f"training {ready.num_steps} steps: {ready.run.url}", err=True)
        for note in ready.notes:
            typer.echo(f"  {note}", err=True)
    with following(ready.run, ready.num_steps, ready.done_steps), _end_noted(spec, token):
        if launcher == "ray":
            from yolofleet.training.supervision.launch import run_on_ray

            run_on_ray(spec, token, show_worker_output=verbose)
        else:
            from yolofleet.training.supervision.process import run_in_process

            run_in_process(spec, token)


@contextmanager
def _end_noted(spec: JobSpec, token: Token) -> Iterator[None]:
    """Note in the run's events how the training ended if it did not end by itself."""
    from yolofleet.storage.lock import LockLostError
    from yolofleet.tracking.run_directory import RunDirectory
    from yolofleet.training.loop.worker_group import StoppedError

    try:
        yield
    except LockLostError:  # what becomes of the run is for its new holder to note
        raise
    except BaseException as error:
        kind = "stopped" if isinstance(error, KeyboardInterrupt | StoppedError) else "failed"
        with RunDirectory.open(spec.storage, spec.name, source="driver", token=token) as run:
            run.append_event(kind, reason=" ".join(str(error).split())[:500])
        raise


def _show(record: Release, headline: str, *, as_json: bool) -> None:
    """Print a line for each thing that the run made."""
    from yolofleet.training.loop.sample_log import described_skips

    if as_json:
        typer.echo(json.dumps(asdict(record), indent=1))
        return
    lines = {
        "result": f"AP50 {_figure(record.figures['AP50'])}, AP {_figure(record.figures['AP'])} on "
        f"{record.num_images} images, by the deployed model of step {record.step}",
        "skipped": "; ".join(f"{part}: {described_skips(found)}" for part, found in record.skipped.items()) or "none",
        "run directory": record.run,
        "anchors": record.anchors,
        "model": record.model or "not registered (tracking.register_as is not set)",
        "report": record.report,
        "images": record.images,
        "MLflow": _how_to_open(record.mlflow),
    }
    typer.echo(headline)
    for name, text in lines.items():
        typer.echo(f"  {name:<14} {text}")


def _figure(value: float | None) -> str:
    return "none (no objects)" if value is None else f"{value:.4f}"


def _how_to_open(tracking_uri: str | None) -> str:
    if tracking_uri is None:
        return "not used (tracking.uri is not set)"
    if tracking_uri.startswith("http"):
        return tracking_uri
    return f"mlflow ui --backend-store-uri {tracking_uri}   (then open http://127.0.0.1:5000)"
