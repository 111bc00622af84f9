"""``yolofleet train``: from a job to a registered model; run again, it resumes and does what is still missing."""

from __future__ import annotations

import shlex
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import JobArgument, JsonOption, Overrides, Verbose, print_result, result_lines
from yolofleet.core.errors import UserError, WorkError, require_package
from yolofleet.core.liveness import describe_start
from yolofleet.core.terminal import doing, note
from yolofleet.core.text import one_line, plural

if TYPE_CHECKING:
    from yolofleet.registry.release import Release
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage.lock import FencingToken
    from yolofleet.tracking.json_lines import OnRow, Row
    from yolofleet.tracking.notifications import WorkNotifier
    from yolofleet.tracking.run_directory import RunDirectory
    from yolofleet.training.setup.preflight import Readiness

MOST_ROWS_WAITING = 1000
"""Rows that wait to be shown; the oldest are left out where a terminal is stopped for long."""


def train(
    job: JobArgument,
    overrides: Overrides = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="'ray': workers on the cluster at RAY_ADDRESS, or on this machine; 'process': only this process."
        ),
    ] = "ray",
    plan: Annotated[bool, typer.Option("--plan", help="Print what would happen; start and write nothing.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Only time 30 steps, here and in a temporary folder, for 'cluster plan'.")
    ] = False,
    verbose: Verbose = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model, evaluate it, and register it. The same command resumes a run that was stopped."""
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage import open_file

    if plan and measure:
        raise UserError("--plan and --measure: give one of them")
    doing("reading the job")
    spec = JobSpec.load(open_file(job), overrides or [])
    if plan:
        from yolofleet.cli.train_plan import plan_lines, plan_run
        from yolofleet.tracking.mlflow_store import job_tracking_uri

        spec = spec.with_absolute_paths()
        document = plan_run(spec, job_tracking_uri(spec.tracking, spec.storage), launcher)
        print_result(document, plan_lines(document), as_json=as_json)
        return
    if measure:
        from yolofleet.cli.bench import print_rate

        print_rate(spec.with_absolute_paths(), job, as_json=as_json)
        return
    record, headline = run_job(spec, launcher, verbose=verbose)
    more = None if record.more is None else _command(job, overrides or [], launcher, record.more.split())
    print_result(asdict(record), result_lines(record, headline, more), as_json=as_json)


def _command(job: str, overrides: list[str], launcher: str, others: list[str]) -> str:
    """Return the same command with other values of some keys, to be pasted into a shell."""
    keys = {override.partition("=")[0] for override in others}
    kept = [override for override in overrides if override.partition("=")[0] not in keys]
    option = [] if launcher == "ray" else ["--launcher", launcher]
    return shlex.join(["yolofleet", "train", job, *option, *kept, *others])


def run_job(spec: JobSpec, launcher: str, *, verbose: bool = False) -> tuple[Release, str]:
    """Train, evaluate and register; returns the results, and whether there was anything to do.

    Args:
        spec: The job; its local paths count from the working folder.
        launcher: ``ray`` or ``process``.
        verbose: Whether to show what Ray and the workers print.

    Raises:
        UserError: The job cannot run here; nothing was started, and nothing is left.
    """
    from yolofleet.storage import open_storage
    from yolofleet.storage.lock import forget, hold
    from yolofleet.tracking.mlflow_store import job_tracking_uri
    from yolofleet.tracking.run_directory import RunDirectory
    from yolofleet.training.setup.preflight import run_storage
    from yolofleet.training.setup.worker_cpus import with_cpus

    if launcher not in ("ray", "process"):
        raise UserError(f"--launcher {launcher}: use 'ray' or 'process'")
    if launcher == "ray":
        require_package("ray", ", or train in this process: --launcher process")
    spec = spec.with_absolute_paths()
    tracking_uri = job_tracking_uri(spec.tracking, spec.storage)
    doing("checking the storage")
    storage = run_storage(spec)
    spec = with_cpus(spec, RunDirectory(storage), launcher=launcher)
    if not RunDirectory(storage).exists():
        _check_devices(spec, launcher)
    try:
        with hold(storage, notify=note) as lock, _notifying(spec, lock.token) as notifier:
            if tracking_uri is not None:  # only now: it may lie in the storage, which has just taken a write
                doing("looking for MLflow")
                _check_tracking(spec, tracking_uri)
            return _Work(spec, launcher, verbose, tracking_uri, lock.token, notifier).finish()
    except UserError:
        with suppress(UserError, WorkError):  # a storage that does not answer
            if not RunDirectory(storage).exists():  # the start was refused: it leaves nothing
                forget(open_storage(spec.storage), spec.name)
        raise


def _check_devices(spec: JobSpec, launcher: str) -> None:
    """Refuse, before anything is written, what this machine can never give."""
    if launcher == "process":
        from yolofleet.training.supervision.worker import local_device

        local_device(spec)
        return
    from yolofleet.core.ray_runtime import starts_own_ray

    if starts_own_ray():
        from yolofleet.training.supervision.nodes import has_room, this_machine

        has_room(spec.cluster, [this_machine()])


def _notifying(spec: JobSpec, token: FencingToken) -> AbstractContextManager[WorkNotifier | None]:
    if spec.notify is None:
        return nullcontext()
    from yolofleet.tracking.notifications import notifying
    from yolofleet.tracking.run_directory import RunDirectory

    def open_log() -> RunDirectory:
        return RunDirectory.open(spec.storage, spec.name, source="mirror", token=token)

    return notifying(spec.notify, f"run {spec.name}", open_log)


@dataclass(frozen=True)
class _Work:
    """What a start of the command has to do."""

    spec: JobSpec
    launcher: str
    verbose: bool
    tracking_uri: str | None
    token: FencingToken
    notifier: WorkNotifier | None

    def finish(self) -> tuple[Release, str]:
        """Do what the run still lacks: training, the release, MLflow."""
        from yolofleet.cli.model_argument import resolve_weights
        from yolofleet.registry.release import release, release_record
        from yolofleet.training.setup.preflight import check_job

        doing("checking the data and the model")
        ready = check_job(self.spec, lambda uri: resolve_weights(uri, self.tracking_uri))
        record = release_record(ready.run) if ready.finished else None
        if record is not None and record.trained_steps in (None, ready.done_steps) and not self.lacks_version(record):
            return record, "this run is finished already; nothing was done"
        rows: deque[Row] = deque(maxlen=MOST_ROWS_WAITING)
        on_row = rows.append if self.notifier is None else self.notifier.watching(rows.append)
        with self.mirrored(ready, on_row):
            if not ready.finished:
                self.train(ready, rows, on_row)
            record = release(ready.job, ready, _find_registry(ready, self.tracking_uri))
        if self.notifier is not None:
            self.notifier.end("\n".join(result_lines(record, "done")))
        return record, "done"

    def lacks_version(self, record: Release) -> bool:
        """Return whether the model of a released run is to be registered, and is not: the job did not say so before."""
        return record.model is None and self.spec.tracking.register_as is not None and self.tracking_uri is not None

    @contextmanager
    def mirrored(self, ready: Readiness, on_row: OnRow) -> Iterator[None]:
        """Copy the run to MLflow, and for TensorBoard where the job says so, for the length of a with block."""
        from yolofleet.tracking.mirror import Mirror
        from yolofleet.tracking.run_directory import RunDirectory

        spec, notifier = ready.job, self.notifier
        with ExitStack() as mirrors:
            if spec.tracking.tensorboard:
                from yolofleet.tracking.tensorboard_mirror import TensorBoardMirror

                mirrors.enter_context(closing(TensorBoardMirror(ready.run))).start()
            if self.tracking_uri is None:
                yield
                return
            # A log of its own: the driver of the workers writes another at the same time.
            log = RunDirectory.open(spec.storage, spec.name, source="mirror", token=self.token, on_row=on_row)
            mirror = Mirror(ready.run, self.tracking_uri, spec.tracking.experiment, on_event=log.append_event)
            mirror.start()
            alone = None if notifier is None else notifier.on_event
            if notifier is not None:
                notifier.on_event = log.append_event  # a log has one writer
            try:
                yield
            finally:
                if notifier is not None and alone is not None:
                    notifier.on_event = alone
                ready.run.flush()
                doing("sending the rest to MLflow")
                mirror.close()
                log.close()

    def train(self, ready: Readiness, rows: deque[Row], on_row: OnRow) -> None:
        """Train to the end of the run, and show it."""
        from yolofleet.cli.progress import show_run, writing_pages

        if ready.done_steps:
            note(f"resuming from step {ready.done_steps} of {ready.num_steps}: {ready.run.url}")
            for change in ready.changes:
                note(f"  changed since the last start: {change}")
        else:
            note(f"training {plural(ready.num_steps, 'step')}: {ready.run.url}")
            for line in ready.notes:
                note(f"  {line}")
        ready.run.record_facts(started=describe_start(["yolofleet", *sys.argv[1:]]))
        first = "starting Ray" if self.launcher == "ray" else "building the model, and reading the first shards"
        with (
            writing_pages(ready.run.url) as write_page,
            show_run(rows, ready.num_steps, ready.done_steps, first, _best_row(ready)),
            _record_failure(ready.job, self.token),
        ):

            def take(row: Row) -> None:
                on_row(row)
                if "val_AP" in row:
                    write_page()

            if self.launcher == "ray":
                from yolofleet.training.supervision.launch import run_on_ray

                run_on_ray(ready.job, self.token, on_row=take, show_worker_output=self.verbose)
            else:
                from yolofleet.training.supervision.worker import run_in_process

                run_in_process(ready.job, self.token, on_row=take)


def _check_tracking(spec: JobSpec, tracking_uri: str) -> None:
    """Make sure that MLflow answers, or say that it gets the run later where the job allows that."""
    from yolofleet.tracking.mlflow_store import TrackingError, TrackingFailureError, check_reachable, check_uri

    check_uri(tracking_uri)
    try:
        check_reachable(tracking_uri)
    except (TrackingError, TrackingFailureError) as error:
        if spec.tracking.when_away == "fail":
            raise type(error)(f"{error}. Or train now and send later: tracking.when_away=spool") from error
        note(f"{error}\n  training anyway; MLflow gets everything when it is back")


def _find_registry(ready: Readiness, tracking_uri: str | None) -> str | None:
    """Return the store to register in; None where it does not answer and the job does not wait for it."""
    from yolofleet.tracking.mlflow_store import TrackingError, TrackingFailureError, check_reachable

    spec = ready.job
    if tracking_uri is None or spec.tracking.when_away == "fail":
        return tracking_uri
    try:
        check_reachable(tracking_uri)
    except (TrackingError, TrackingFailureError) as error:
        note(f"{error}\n  once MLflow is back: yolofleet report {ready.run.url} --sync")
        if spec.tracking.register_as is not None:
            note(f"  and: yolofleet registry register {ready.run.url} --name {spec.tracking.register_as}")
        return None
    return tracking_uri


def _best_row(ready: Readiness) -> Row | None:
    """Return the row of the best evaluation that the run resumes behind."""
    rows = ready.run.metrics() if ready.done_steps else []
    scored = [row for row in rows if row.get("val_AP") is not None and row["step"] <= ready.done_steps]
    return max(scored, key=lambda row: float(row["val_AP"]), default=None)


@contextmanager
def _record_failure(spec: JobSpec, token: FencingToken) -> Iterator[None]:
    """Write an event into the run's log where the training is stopped or fails."""
    from yolofleet.storage.lock import LockLostError
    from yolofleet.tracking.run_directory import RunDirectory
    from yolofleet.training.loop.worker_progress import StoppedError

    try:
        yield
    except LockLostError:  # the run belongs to the lock's new holder, who writes its events
        raise
    except BaseException as error:
        kind = "stopped" if isinstance(error, KeyboardInterrupt | StoppedError) else "failed"
        with RunDirectory.open(spec.storage, spec.name, source="driver", token=token) as run:
            wilful = {} if getattr(error, "is_wilful", True) else {"is_wilful": False}
            run.append_event(kind, reason=one_line(error, 500), **wilful)
        if kind == "stopped":
            _say_what_is_saved(run)
        raise


def _say_what_is_saved(run: RunDirectory) -> None:
    from yolofleet.training.checkpoint.store import CheckpointStore

    with suppress(WorkError, UserError):  # a storage that is away
        steps = CheckpointStore(run.storage.child("checkpoints")).steps()
        saved = f"the checkpoint of step {steps[-1]}, the log and the report" if steps else "the log; no checkpoint yet"
        note(f"saved: {saved}: {run.url}")
