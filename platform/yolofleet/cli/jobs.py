"""``yolofleet submit`` and ``yolofleet jobs``: sends a job or a search to a cluster, and watches or stops it there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import Address, JsonOption, Overrides, print_result
from yolofleet.core.errors import EXIT_DONE, EXIT_STOPPED, EXIT_WORK_FAILED
from yolofleet.core.terminal import note
from yolofleet.core.terminal import show as print_text

if TYPE_CHECKING:
    from yolofleet.cluster.service import JobService, SentJob

app = typer.Typer(help="Jobs on a cluster: their state, their output, stopping them.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or the name of its run.", show_default=False)]


def submit(
    spec: Annotated[Path, typer.Argument(help="A job spec or a search space (YAML).", show_default=False)],
    overrides: Overrides = None,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its output until it has ended.")] = False,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Run it even if the cluster has other versions than this machine.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Send a job or a search to a cluster. The same spec sent again resumes the run, or finds the job running."""
    from yolofleet.cluster.bundle import read_bundle
    from yolofleet.cluster.service import JobService

    bundle = read_bundle(spec, overrides or [])
    service = JobService(address)
    job, is_new = service.send(bundle, any_version=any_version)
    note(f"{'sent' if is_new else f'is there already, {job.status.lower()}'}: {job.id}")
    print_result(asdict(job), (), as_json=as_json)
    if follow:
        return _follow(service, job)
    if not as_json:
        arguments = f"{job.id} --address {service.address}"
        note(f"  yolofleet jobs logs {arguments} --follow\n  yolofleet jobs stop {arguments}")
    return EXIT_DONE


def _follow(service: JobService, job: SentJob) -> int:
    """Show a job's output until it has ended, and return its exit code."""
    from yolofleet.cluster.follow import follow

    try:
        ended = follow(service, job, _pass_on, note)
    except KeyboardInterrupt:
        command = f"yolofleet jobs logs {job.id} --follow --address {service.address}"
        note(f"\nno longer followed; the job still runs: {command}")
        return EXIT_STOPPED
    took = "" if ended.began is None or ended.ended is None else f" after {ended.ended - ended.began:.0f} s"
    note(f"{ended.id}: {ended.status.lower()}{took}")
    return exit_code(ended)


def _pass_on(text: str) -> None:
    """Print a job's output, Ray's colours included."""
    print_text(text.replace("\r\n", "\n").replace("\r", "\n"), keeps_colours=True, end="")


def exit_code(job: SentJob) -> int:
    """Return the exit code of a job that has ended; 1 for one that was stopped or never ran."""
    if job.status == "SUCCEEDED":
        return EXIT_DONE
    return job.exit_code if job.exit_code not in (None, EXIT_DONE) else EXIT_WORK_FAILED


@app.command("list")
def list_jobs(address: Address = None, as_json: JsonOption = False) -> None:
    """List the jobs that the cluster knows, the oldest first."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    jobs = [service.with_waiting(job) for job in service.jobs()]
    lines = [_list_line(job) for job in jobs]
    nothing = f"no job was sent to {service.address} yet"
    print_result([asdict(job) for job in jobs], lines or [nothing], as_json=as_json)


def _list_line(job: SentJob) -> str:
    """Return a job's line; a job that waits for room has a second one, which says for what."""
    state, reason = (job.status, "") if job.waiting is None else ("WAITING", f"\n{'':<10} {job.waiting}")
    return f"{state:<10} {_format_time(job.began):<20} {job.name or '-':<24} {job.id}{reason}"


@app.command()
def show(job: JobId, address: Address = None, as_json: JsonOption = False) -> None:
    """Show the state of a job."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    found = service.with_waiting(service.job(job))
    print_result(asdict(found), _job_lines(found), as_json=as_json)


def _job_lines(job: SentJob) -> Iterator[str]:
    fields = {
        "job": job.id,
        "run": job.name or "-",
        "status": job.status.lower() + ("" if job.exit_code is None else f", exit code {job.exit_code}"),
        **({} if job.waiting is None else {"waiting": job.waiting}),
        "began": _format_time(job.began),
        "ended": _format_time(job.ended),
        "message": job.message,
    }
    return (f"{name:<9} {text}" for name, text in fields.items())


@app.command()
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show further output until it has ended.")] = False,
) -> int:
    """Print a job's output; with --follow its exit code becomes this command's."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    found = service.job(job)
    if follow:
        return _follow(service, found)
    _pass_on(service.logs(found))
    return EXIT_DONE


@app.command()
def stop(
    job: JobId,
    address: Address = None,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for it to end.")] = 150.0,
) -> None:
    """Tell a job to save its state and end. The same spec sent again resumes it."""
    from yolofleet.cluster.service import STOP_SECONDS, JobService
    from yolofleet.core.errors import WorkError

    service = JobService(address)
    found = service.job(job)
    if found.has_ended:
        print_text(f"{found.id}: has ended already ({found.status.lower()})")
        return
    service.stop(found)
    note(f"{found.id}: asked to stop; it has {STOP_SECONDS} s to save its state")
    found = service.await_end(found, wait_seconds)
    if not found.has_ended:
        raise WorkError(f"{found.id}: is still {found.status.lower()} after {wait_seconds:g} s")
    print_text(f"{found.id}: {found.status.lower()}")


def _format_time(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
