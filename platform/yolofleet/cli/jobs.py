"""``yolofleet jobs``: what was sent to a cluster."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from yolofleet.cli.submit import AddressOption, described, followed, pass_on

app = typer.Typer(help="Jobs on a cluster: how they stand, what they print, stopping them.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(help="The job's id, or the name of its run.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("list")
def list_jobs(address: AddressOption = None, json_output: JsonOption = False) -> int:
    """List the jobs that the cluster knows, the oldest first."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    jobs = service.jobs()
    if json_output:
        typer.echo(json.dumps([described(job) for job in jobs], indent=1))
        return 0
    if not jobs:
        typer.echo(f"no job was sent to {service.address} yet")
    for job in jobs:
        typer.echo(f"{job.status:<10} {_moment(job.began):<20} {job.name or '-':<24} {job.id}")
    return 0


@app.command()
def show(job: JobArgument, address: AddressOption = None, json_output: JsonOption = False) -> int:
    """Show how a job stands."""
    from yolofleet.cluster.service import JobService

    found = JobService(address).job(job)
    if json_output:
        typer.echo(json.dumps(described(found), indent=1))
        return 0
    lines = {
        "job": found.id,
        "run": found.name or "-",
        "status": found.status.lower() + ("" if found.exit_code is None else f", exit code {found.exit_code}"),
        "began": _moment(found.began),
        "ended": _moment(found.ended),
        "message": found.message,
    }
    for name, text in lines.items():
        typer.echo(f"{name:<9} {text}")
    return 0


@app.command()
def logs(
    job: JobArgument,
    address: AddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
) -> int:
    """Print what a job has printed; with --follow its exit code becomes this command's."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    found = service.job(job)
    if follow:
        return followed(service, found)
    pass_on(service.logs(found))
    return 0


@app.command()
def stop(
    job: JobArgument,
    address: AddressOption = None,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for it to end.")] = 150.0,
) -> int:
    """Tell a job to save its state and end. The same spec sent again goes on from there."""
    from yolofleet.cluster.service import STOP_SECONDS, JobService
    from yolofleet.errors import WorkError

    service = JobService(address)
    found = service.job(job)
    if found.has_ended:
        typer.echo(f"{found.id}: has ended already ({found.status.lower()})")
        return 0
    service.stop(found)
    typer.echo(f"{found.id}: told to stop; it has {STOP_SECONDS} s to save its state", err=True)
    end = time.monotonic() + wait_seconds
    while not (found := service.job(found.id)).has_ended:
        if time.monotonic() > end:
            raise WorkError(f"{found.id}: is still {found.status.lower()} after {wait_seconds:g} s")
        time.sleep(1.0)
    typer.echo(f"{found.id}: {found.status.lower()}")
    return 0


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
