"""The directory of a search: all its state, read by every start of it.

<storage>/<name>/
run.json, facts.json, events.jsonl    as in a run directory
search.yaml                           the search as it was started, its base job in it
initial/                              the weights that all trials start from, where the base job names some
trials.jsonl                          the record (yolofleet.search.trials)
trials/NUMBER/                        the run directory of each trial
report/                               the results
best.yaml                             the best job, ready to train

A search resumes from here on any machine, and MLflow can be brought up to date from here alone (`sync_search`).
"""

from __future__ import annotations

from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.search.space import Space
from yolofleet.search.trials import Trials
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.yaml_document import parse_yaml, write_yaml
from yolofleet.storage import Storage
from yolofleet.storage.lock import FencingToken
from yolofleet.tracking.foreign_store import named_by_user, refuse_foreign
from yolofleet.tracking.json_lines import Row, encode_row, read_rows, utc_now
from yolofleet.tracking.mirrored_run import delete_mlflow_run
from yolofleet.tracking.mlflow_store import check_reachable, default_tracking_uri, mlflow_errors
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.search_mirror import SearchMirror, TrialRun

SEARCH_KEY = "search.yaml"
BEST_KEY = "best.yaml"
RECORD = "trials"
TRIALS_FOLDER = "trials"

CHANGEABLE_KEYS = ("budget", "concurrency", "notify", "paper", "samples_per_second")
"""What may change between two starts of one search; everything else decides what its trials mean."""


class SearchDirectory(RunDirectory):
    """The directory of one search, for its one writer and any number of readers."""

    def __init__(self, storage: Storage, *, token: FencingToken | None = None) -> None:
        super().__init__(storage, token=token)

    @property
    def spec_key(self) -> str:
        """The file that holds the spec: a run has its job there."""
        return SEARCH_KEY

    def exists(self) -> bool:
        """Return whether a search was started here."""
        return self.storage.exists(SEARCH_KEY)

    def spec(self) -> SearchSpec:
        """Return the search as it was started.

        Raises:
            UserError: No search was started here, or its file cannot be read.
        """
        text = self.job_text()
        if text is None:
            raise UserError(f"{self.url}: is not a search directory (no {SEARCH_KEY})")
        return SearchSpec.parse(parse_yaml(text, source=f"{self.url}/{SEARCH_KEY}"), source=f"{self.url}/{SEARCH_KEY}")

    def claim(self, spec: SearchSpec) -> None:
        """Write the search's spec; where one is stored already, check that only changeable keys differ.

        Raises:
            UserError: Another search was started under this name; names the keys that differ.
        """
        if self.exists():
            before, now = _fixed_keys(self.spec()), _fixed_keys(spec)
            changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
            if changed:
                raise UserError(
                    f"search '{spec.name}' in {self.url} was started with another {', '.join(changed)}; its trials "
                    f"cannot be compared with the new ones. Use another name, or the space as it was "
                    f"({self.url}/{SEARCH_KEY}). "
                    f"What may change: {', '.join(CHANGEABLE_KEYS)}"
                )
        self.storage.put(SEARCH_KEY, write_yaml(spec.document()).encode())

    def rows(self) -> list[Row]:
        """Return the record."""
        return read_rows(self.storage, RECORD)

    def append_row(self, row: Row) -> None:
        """Append a row to the record; returns when it is stored.

        Raises:
            StorageError: The row was not stored; the search must not continue without it.
        """
        encode_row(row)
        writer = self._writer(RECORD)
        writer.append({"time": utc_now(), **row})
        writer.flush()

    def trial(self, run_name: str, *, source: str | None = None) -> RunDirectory:
        """Return the run directory of a trial's run."""
        return RunDirectory(self.storage.child(f"{TRIALS_FOLDER}/{run_name}"), source=source)

    def trial_runs(self) -> dict[str, TrialRun]:
        """Return all runs of all trials by name, for the MLflow mirror."""
        trials = Trials(source=self.record_url)
        trials.replay(self.rows())
        repeats = self.spec().repeats
        runs: dict[str, TrialRun] = {}
        for trial in trials.trials.values():
            tags = {
                "yolofleet.trial": str(trial.number),
                "yolofleet.trial_state": trial.end or "running",
                **{f"yolofleet.{name}": f"{value:.6g}" for name, value in trial.observation.figures.items()},
            }
            for repeat in range(repeats):
                name = trial.run_name(repeat)
                runs[name] = TrialRun(self.trial(name), tags, trial.end is not None)
        return runs

    @property
    def record_url(self) -> str:
        """The record, for messages."""
        return f"{self.url.rstrip('/')}/{RECORD}.jsonl"

    @property
    def trials_url(self) -> str:
        """The storage of the trials' run directories."""
        return f"{self.url.rstrip('/')}/{TRIALS_FOLDER}"


def _fixed_keys(spec: SearchSpec) -> dict[str, Any]:
    return {key: value for key, value in spec.document().items() if key not in CHANGEABLE_KEYS}


def sync_search(directory: SearchDirectory, given: str | None, *, rebuild: bool) -> str:
    """Send to MLflow everything that it lacks of a search and its trials, and return the parent run's id.

    Args:
        directory: The search; it is only read.
        given: The tracking URI; None: the base job's.
        rebuild: Delete the runs in MLflow first and send everything anew.

    Raises:
        UserError: No tracking URI is known, or no server answers there.
    """
    job = Space(directory.spec(), source=directory.url).base_job
    uri = given or job.tracking.uri or default_tracking_uri(directory.url.rstrip("/").rpartition("/")[0])
    if uri is None:
        raise UserError(f"{directory.url}: its job names no tracking.uri; give one with --tracking-uri")
    refuse_foreign(uri, (named_by_user(given),), f"{directory.url}/{SEARCH_KEY}")
    check_reachable(uri)
    with mlflow_errors(uri):
        if rebuild:
            for run in (directory, *(trial.run for trial in directory.trial_runs().values())):
                if run.exists():
                    delete_mlflow_run(run, uri, job.tracking.experiment)
        return SearchMirror(directory, directory.trial_runs, uri, job.tracking.experiment).sync()
