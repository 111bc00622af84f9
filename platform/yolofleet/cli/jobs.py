"""``yolofleet jobs``: the jobs of a cluster: their state, output and end, sending them again, removing them."""

from __future__ import annotations

import glob
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import Address, AnyVersion, JsonOption, print_result
from yolofleet.cli.runs import format_steps
from yolofleet.core.durations import format_duration
from yolofleet.core.errors import EXIT_DONE, EXIT_STOPPED, EXIT_WORK_FAILED, UserError, WorkError
from yolofleet.core.terminal import note
from yolofleet.core.terminal import show as print_text

if TYPE_CHECKING:
    from yolofleet.cluster.job_list import ListedJob
    from yolofleet.cluster.sent_job import SentJob
    from yolofleet.cluster.service import JobService

app = typer.Typer(help="Jobs on a cluster: list, show, logs, wait, stop, retry, delete.", no_args_is_help=True)

JobIds = Annotated[list[str], typer.Argument(metavar="JOB", help="Ids, or names of runs.", show_default=False)]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or the name of its run.", show_default=False)]


def refuse_both(follow: bool, as_json: bool) -> None:
    """Refuse ``--follow`` with ``--json``, whose document would end in the middle of other output."""
    if follow and as_json:
        raise UserError("--follow shows output as it comes, --json a whole document: give one of them")


def follow_job(service: JobService, job: SentJob, grep: str | None = None) -> int:
    """Show a job's output until it has ended, of it only lines that hold a text, and return its exit code."""
    from yolofleet.cluster.follow import follow, whole_lines

    show, show_rest = (
        (_pass_on, None) if grep is None else whole_lines(lambda line: _pass_on(line) if grep in line else None)
    )
    try:
        ended = follow(service, job, show, note)
        if show_rest is not None:
            show_rest()
    except KeyboardInterrupt:
        command = f"yolofleet jobs logs {job.id} --follow --address {service.address}"
        note(f"\nno longer followed; the job still runs: {command}")
        return EXIT_STOPPED
    note(_end_of(ended))
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
def list_jobs(
    address: Address = None,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only in this state, e.g. running, failed, waiting; repeatable.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only those that this user sent.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Only names that match this pattern, e.g. 'coco-*'.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Jobs on a page.")] = 20,
    page: Annotated[int, typer.Option("--page", min=1, help="Which page; the first has the newest.")] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show the jobs' ids.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the jobs that the cluster knows, the newest first: who sent them, and how far their runs are."""
    from yolofleet.cluster.job_list import JobFilter, list_jobs
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    states = None if state is None else frozenset(word.upper() for word in state)
    shown, num_found = list_jobs(
        [service.with_waiting(job) for job in service.jobs()], JobFilter(states, user, name), page=page, limit=limit
    )
    which = "such job is" if any((state, user, name)) or page > 1 else "job was sent"
    nothing = f"no {which} {'there' if which.startswith('such') else 'yet'}: {service.address}"
    print_result(
        [entry.document() for entry in shown], job_table(shown, ids=ids) if shown else [nothing], as_json=as_json
    )
    if not as_json and num_found > len(shown) and shown:
        older = f"; --page {page + 1} shows older ones" if page * limit < num_found else ""
        note(f"{len(shown)} of {num_found}{older}")


def job_table(entries: Sequence[ListedJob], *, ids: bool) -> Iterator[str]:
    """Yield a line for each job, within the terminal's width and never less than 80 characters wide."""
    room = max(0, shutil.get_terminal_size().columns - 80)
    name_width, sender_width = 16 + room * 2 // 3, 14 + room // 3
    head = "ID" if ids else "NAME"
    sender = "" if ids else f" {'FROM':<{sender_width}}"
    name_width += sender_width + 1 if ids else 0
    yield f"{'STATE':<9} {head:<{name_width}}{sender} {'AGE':>4} {'STEP':>12} {'ETA':>4} {'AP':>5} {'COST':>6}"
    for entry in entries:
        job, run = entry.job, entry.figures
        shown = job.id if ids else _cut(job.name or job.id, name_width)
        sent_by = _cut(f"{job.user or '?'}@{job.host or '?'}", sender_width)
        origin = "" if ids else f" {sent_by:<{sender_width}}"
        step = "-" if run is None else format_steps(run, job.kind)
        eta = "-" if run is None or run.eta_seconds is None else format_duration(run.eta_seconds)
        ap = "-" if run is None or run.ap is None else f"{run.ap:.3f}"
        cost = "-" if run is None or run.cost is None else f"{run.cost:.2f}"
        age = "-" if job.began is None else format_duration(time.time() - job.began)
        yield f"{entry.state:<9} {shown:<{name_width}}{origin} {age:>4} {step:>12} {eta:>4} {ap:>5} {cost:>6}"
        if job.waiting is not None:
            yield f"  {job.waiting}"
        if run is not None and run.problem is not None:
            yield f"  {job.directory}: {run.problem}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 2]}.."


@app.command()
def show(job: JobId, address: Address = None, as_json: JsonOption = False) -> None:
    """Show the state of a job, and how far its run is."""
    from yolofleet.cluster.job_list import JobFilter, list_jobs
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    found = service.with_waiting(service.job(job))
    ((entry, *_), _) = list_jobs([found], JobFilter(name=glob.escape(found.id)), page=1, limit=1)
    print_result(entry.document(), _job_lines(entry), as_json=as_json)


def _job_lines(entry: ListedJob) -> Iterator[str]:
    job, run = entry.job, entry.figures
    fields = {
        "job": job.id,
        "run": job.name or "-",
        "sent by": f"{job.user or '?'} on {job.host or '?'}",
        "status": entry.state.lower() + ("" if job.exit_code is None else f", exit code {job.exit_code}"),
        **({} if job.waiting is None else {"waiting": job.waiting}),
        "began": _format_time(job.began),
        "ended": _format_time(job.ended),
        "message": job.message,
    }
    if job.directory is not None:
        fields["directory"] = job.directory
    if run is not None:
        ap = "-" if run.ap is None else f"{run.ap:.4f}"
        fields["step"] = f"{format_steps(run, job.kind)}, AP {ap}" if run.problem is None else run.problem
    if run is not None and run.cost is not None:
        forecast = "" if run.forecast_cost is None else f", {run.forecast_cost:.2f} at its end"
        fields["cost"] = f"{run.cost:.2f} so far{forecast}"
    return (f"{name:<9} {text}" for name, text in fields.items())


@app.command()
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show further output until it has ended.")] = False,
    rank: Annotated[
        str | None, typer.Option("--rank", help="What the worker of this rank printed, or 'all' of them.")
    ] = None,
    grep: Annotated[str | None, typer.Option("--grep", help="Only lines that contain this text.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", min=1, help="Only the last lines.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Print a job's output; with --follow, exit with the job's exit code."""
    from yolofleet.cluster.service import JobService

    if follow and (rank is not None or tail is not None):
        raise UserError("--follow shows everything that the job itself prints: leave out --rank and --tail")
    refuse_both(follow, as_json)
    service = JobService(address)
    found = service.job(job)
    if follow:
        return follow_job(service, found, grep)
    lines = service.logs(found).splitlines() if rank is None else _worker_lines(service, found, rank, grep, tail)
    wanted = deque((line for line in lines if grep is None or grep in line), maxlen=tail)
    if as_json:
        print_result(asdict(found) | {"lines": list(wanted)}, (), as_json=True)
        return EXIT_DONE
    for line in wanted:
        _pass_on(f"{line}\n")
    return EXIT_DONE


def _worker_lines(service: JobService, job: SentJob, rank: str, grep: str | None, tail: int | None) -> Iterator[str]:
    """Yield what workers have printed; of several, each line with its rank before it."""
    from yolofleet.cluster.worker_logs import find_workers, worker_lines

    if rank != "all" and not rank.isdecimal():
        raise UserError(f"--rank {rank}: a number from 0 on, or all")
    workers = find_workers(job.directory, None if rank == "all" else int(rank))
    most = tail if grep is None and len(workers) == 1 else None
    for worker in workers:
        try:
            for stream in ("out", "err"):
                for line in worker_lines(service.address, worker, stream, tail=most):
                    yield line if len(workers) == 1 else f"rank {worker.rank}: {line}"
        except WorkError as error:
            if len(workers) == 1:
                raise
            note(f"{error}")


@app.command()
def wait(
    jobs: JobIds,
    address: Address = None,
    timeout_seconds: Annotated[float | None, typer.Option("--timeout-seconds", min=0, help="Longest wait.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Wait until jobs have ended; the exit code is that of the first one that did not succeed."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    found = [service.job(name) for name in jobs]
    tell = note if as_json else print_text
    patience = math.inf if timeout_seconds is None else timeout_seconds
    ended = service.await_all(found, patience, lambda job: tell(_end_of(job)))
    print_result([asdict(job) for job in ended], (), as_json=as_json)
    if running := [job.id for job in ended if not job.has_ended]:
        raise WorkError(f"still not ended after {timeout_seconds:g} s: {', '.join(running)}")
    return next((code for job in ended if (code := exit_code(job)) != EXIT_DONE), EXIT_DONE)


def _end_of(job: SentJob) -> str:
    took = "" if job.began is None or job.ended is None else f" after {job.ended - job.began:.0f} s"
    return f"{job.id}: {job.status.lower()}{took}"


@app.command()
def retry(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its output until it has ended.")] = False,
    any_version: AnyVersion = False,
    as_json: JsonOption = False,
) -> int:
    """Send an ended job again with its spec; a run resumes from its newest checkpoint."""
    from yolofleet.cluster.service import JobService

    refuse_both(follow, as_json)
    service = JobService(address)
    found = service.job(job)
    if not found.has_ended:
        raise UserError(f"{found.id}: is {found.status.lower()}; only a job that has ended is sent again")
    sent, is_new = service.send(service.bundle_of(found), any_version=any_version)
    note(f"{'sent' if is_new else f'already exists, {sent.status.lower()}'}: {sent.id}")
    print_result(asdict(sent), (), as_json=as_json)
    return follow_job(service, sent) if follow else EXIT_DONE


@app.command()
def delete(jobs: JobIds, address: Address = None, as_json: JsonOption = False) -> None:
    """Remove ended jobs from the cluster's list, with their output; run directories stay ('yolofleet runs remove')."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    found = [service.job(name) for name in jobs]
    if running := [job.id for job in found if not job.has_ended]:
        raise UserError(f"{', '.join(running)}: has not ended; stop it first with 'yolofleet jobs stop {running[0]}'")
    for job in found:
        service.forget(job)
        (note if as_json else print_text)(f"{job.id}: removed from the list")
    print_result([asdict(job) for job in found], (), as_json=as_json)


@app.command()
def stop(
    job: JobId,
    address: Address = None,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for it to end.")] = 150.0,
    as_json: JsonOption = False,
) -> None:
    """Tell a job to save its state and end. The same spec sent again resumes it."""
    from yolofleet.cluster.service import STOP_SECONDS, JobService

    service = JobService(address)
    found = service.job(job)
    if found.has_ended:
        line = f"{found.id}: has ended already ({found.status.lower()})"
        print_result(asdict(found), [line], as_json=as_json)
        return
    service.stop(found)
    note(f"{found.id}: asked to stop; it has {STOP_SECONDS} s to save its state")
    found = service.await_end(found, wait_seconds)
    if not found.has_ended:
        raise WorkError(f"{found.id}: is still {found.status.lower()} after {wait_seconds:g} s")
    print_result(asdict(found), [f"{found.id}: {found.status.lower()}"], as_json=as_json)


def _format_time(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
