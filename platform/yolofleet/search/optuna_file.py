"""The Optuna file of a search, ``optuna.journal`` beside its record: `optuna-dashboard` shows the search from it, live.

It is a mirror of the record and of the evaluations of the trials' first runs, and nothing is ever read from it: a file
that is missing, behind or damaged is brought up to date or written anew. On a disk Optuna's own journal appends to it,
so a dashboard that has it open sees each change; in an object store the whole file is replaced.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from yolofleet.core.background import BackgroundLoop
from yolofleet.core.errors import is_installed
from yolofleet.core.text import plural
from yolofleet.search.directory import RECORD, SearchDirectory
from yolofleet.search.optuna_based import distribution_of, plain_value
from yolofleet.search.results import format_values
from yolofleet.search.space import Space
from yolofleet.search.trials import Exchange, Trial, Trials
from yolofleet.storage import StorageError
from yolofleet.storage.lock import newest_record
from yolofleet.tracking.json_lines import LogReader
from yolofleet.tracking.run_directory import METRICS

OPTUNA_KEY = "optuna.journal"
DISK_SECONDS = 2.0
"""Pause between two passes over a search on a disk."""
OBJECT_STORE_SECONDS = 30.0
"""The same in an object store, where each change writes the whole file."""

logger = logging.getLogger(__name__)


class OptunaFile:
    """The file of one search, for one writer.

    Args:
        directory: The search; its record and the runs of its trials are only read.
    """

    def __init__(self, directory: SearchDirectory) -> None:
        self._directory = directory
        self._spec = directory.spec()
        parameters = Space(self._spec, source=directory.url).parameters
        self._parameters = parameters.by_name
        self._trials = Trials(repeats=self._spec.repeats, parameters=parameters, source=directory.record_url)
        self._times: dict[int, dict[str, datetime]] = {}
        self._record = directory.reader(RECORD)
        self._runs: dict[int, tuple[str, LogReader]] = {}
        self._curves: dict[int, dict[int, float]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="yolofleet-optuna-")
        on_disk = directory.storage.local_path(OPTUNA_KEY)
        self._is_remote = on_disk is None
        self._path = Path(self._folder.name) / OPTUNA_KEY if on_disk is None else on_disk
        self._storage: Any = None
        self._study_id = -1
        self._stored_bytes = -1

    def sync(self) -> None:
        """Bring the file up to date; one that does not fit the record is written anew.

        Raises:
            StorageError: The storage does not answer; call again later.
        """
        self._read_record()
        if self._storage is None:
            self._open()
        try:
            self._write_trials()
        except (StorageError, OSError):
            raise
        except Exception as error:  # whatever a damaged or foreign file makes Optuna raise
            logger.info("%s is written again: %s", self._path, error)
            self._begin_anew()
            self._write_trials()
        if self._is_remote and self._path.stat().st_size != self._stored_bytes:
            self._directory.storage.put(OPTUNA_KEY, self._path)
            self._stored_bytes = self._path.stat().st_size

    def close(self) -> None:
        """Remove what was stored for the time being."""
        self._folder.cleanup()

    def _read_record(self) -> None:
        rows = self._record.new_rows()
        self._trials.replay(rows)  # first, for it refuses a damaged row
        for row in rows:
            if row.get("kind") in ("suggested", "ended") and "time" in row:
                times = self._times.setdefault(int(row["trial"]), {})
                times.setdefault(row["kind"], datetime.fromisoformat(row["time"]))

    def _open(self) -> None:
        """Open the file, and begin it anew where it is not that of this search."""
        if self._is_remote and self._directory.storage.exists(OPTUNA_KEY):
            self._directory.storage.download(OPTUNA_KEY, self._path)
            self._stored_bytes = self._path.stat().st_size
        if not self._path.exists():
            self._begin_anew()
            return
        try:
            self._storage = _open_journal(self._path)
            self._study_id = self._storage.get_study_id_from_name(self._spec.name)
        except Exception as error:  # as in `sync`
            logger.info("%s is written again: %s", self._path, error)
            self._begin_anew()

    def _begin_anew(self) -> None:
        import optuna

        self._stored_bytes = -1
        self._path.unlink(missing_ok=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._storage = _open_journal(self._path)
        objectives = self._spec.objectives
        study = optuna.create_study(
            storage=self._storage,
            study_name=self._spec.name,
            directions=["maximize" if objective.goal == "max" else "minimize" for objective in objectives],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([objective.metric for objective in objectives])
        self._study_id = self._storage.get_study_id_from_name(self._spec.name)

    def _write_trials(self) -> None:
        """Write what the file lacks.

        Raises:
            ValueError: It holds other trials.
        """
        stored = self._storage.get_all_trials(self._study_id, deepcopy=False)
        if len(stored) > len(self._trials.trials):
            raise ValueError(f"it holds {plural(len(stored), 'trial')}, the record {len(self._trials.trials)}")
        for number, trial in enumerate(self._trials.trials.values()):
            if number >= len(stored):
                self._storage.create_new_trial(self._study_id, self._frozen(trial))
            elif not stored[number].state.is_finished():
                self._write_changes(stored[number], self._frozen(trial))
            elif trial.end is None or stored[number].params != self._params(trial):
                raise ValueError(f"its trial {number} is another one")

    def _write_changes(self, stored: Any, wanted: Any) -> None:
        if stored.params != wanted.params:
            raise ValueError(f"its trial {stored.number} is another one")
        identity = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, stored.number)
        for step, value in wanted.intermediate_values.items():
            if stored.intermediate_values.get(step) != value:
                self._storage.set_trial_intermediate_value(identity, step, value)
        for name, value in wanted.user_attrs.items():
            if name not in stored.user_attrs or stored.user_attrs[name] != value:
                self._storage.set_trial_user_attr(identity, name, value)
        if wanted.state.is_finished():
            self._storage.set_trial_state_values(identity, wanted.state, wanted.values)

    def _frozen(self, trial: Trial) -> Any:
        """Return a trial as Optuna knows it."""
        import optuna

        result = trial.result(self._spec.repeats)
        values = [result.value(objective.metric) for objective in self._spec.objectives]
        states = optuna.trial.TrialState
        state = states.RUNNING
        if trial.end is not None:
            is_whole = trial.end == "completed" and None not in values
            state = states.COMPLETE if is_whole else states.FAIL if trial.failed else states.PRUNED
        times = self._times.get(trial.number, {})
        known = {name: value for name, value in (result.figures | result.measured).items() if math.isfinite(value)}
        frozen = optuna.trial.create_trial(
            state=state,
            values=values if state is states.COMPLETE else None,
            params=self._params(trial),
            distributions={name: distribution_of(self._parameters[name]) for name in trial.observation.values},
            intermediate_values=self._curve(trial),
            user_attrs={
                "state": trial.end or "running",
                "run": f"{self._directory.trials_url}/{trial.run_name(0)}",
                "worker_seconds": round(trial.gpu_seconds, 3),
                **{f"exchange_{entry.number}": _exchange_text(entry) for entry in trial.exchanges},
                **known,
            },
        )
        frozen.datetime_start = times.get("suggested", frozen.datetime_start)
        frozen.datetime_complete = times.get("ended", frozen.datetime_complete) if state.is_finished() else None
        return frozen

    def _params(self, trial: Trial) -> dict[str, Any]:
        return {name: plain_value(self._parameters[name], value) for name, value in trial.observation.values.items()}

    def _curve(self, trial: Trial) -> dict[int, float]:
        """Return the first objective by step: the evaluations of the trial's first run, and the rungs."""
        metric = self._spec.objectives[0].metric
        curve = self._curves.setdefault(trial.number, {})
        name = trial.run_name(0)
        if trial.number not in self._runs or self._runs[trial.number][0] != name:  # an exchange begins a new run
            self._runs[trial.number] = (name, self._directory.trial(name).reader(METRICS))
        for row in self._runs[trial.number][1].new_rows(only_due=trial.end is None):
            value = row.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                curve[int(row["step"])] = float(value)
        for entry in trial.measurements:
            if entry.repeat == 0 and metric in entry.values:
                curve[entry.step] = entry.values[metric]
        return dict(sorted(curve.items()))


def _exchange_text(exchange: Exchange) -> str:
    return f"from trial {exchange.source}: {format_values(exchange.values)}"


def _open_journal(path: Path) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def has_optuna() -> bool:
    """Return whether Optuna is installed (the extra ``search``)."""
    return is_installed("optuna")


def dashboard_hint(directory: SearchDirectory) -> str | None:
    """Return how to watch a search on this machine's disk in a browser; None where there is no file to open."""
    path = directory.storage.local_path(OPTUNA_KEY)
    return f"optuna-dashboard {path}" if path is not None and has_optuna() else None


@contextmanager
def keep_optuna_file(directory: SearchDirectory) -> Iterator[None]:
    """Keep the Optuna file of a running search up to date for the length of a with block, where Optuna is installed."""
    if not has_optuna():
        yield
        return
    file = OptunaFile(directory)
    pause = DISK_SECONDS if directory.storage.local_path(OPTUNA_KEY) is not None else OBJECT_STORE_SECONDS
    warning = f"{OPTUNA_KEY} is not up to date (the search itself is unaffected)"
    loop = BackgroundLoop(file.sync, seconds=pause, name="optuna-file", warning=warning, at_once=True)
    try:
        with loop:
            yield
    finally:
        _sync_once_more(file, warning)


def write_optuna_file(directory: SearchDirectory) -> None:
    """Bring the Optuna file of a search that does not run up to date; a running one is left to its own process."""
    record = newest_record(directory.storage)
    if has_optuna() and (record is None or record.released):
        _sync_once_more(OptunaFile(directory), f"{OPTUNA_KEY} is not up to date")


def _sync_once_more(file: OptunaFile, warning: str) -> None:
    try:
        file.sync()
    except Exception as error:  # a mirror never ends the search that it mirrors
        logger.warning("%s: %s", warning, error)
    finally:
        file.close()
