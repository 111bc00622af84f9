"""The Optuna file says what the record says: live, after a restart, and where it was lost, cut off or damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from yolofleet.search.directory import SearchDirectory
from yolofleet.search.history import Observation
from yolofleet.search.optuna_file import OPTUNA_KEY, OptunaFile, dashboard_hint, keep_optuna_file, write_optuna_file
from yolofleet.search.trials import Exchange, Measurement, Trials
from yolofleet.specs.search import SearchSpec
from yolofleet.storage import open_storage
from yolofleet.storage.local import FileStorage
from yolofleet.storage.lock import hold

MakeSpec = Callable[..., SearchSpec]
TWO_OBJECTIVES = [{"metric": "val_AP", "goal": "max"}, {"metric": "gflops", "goal": "min"}]
States = optuna.trial.TrialState


class ObjectStore(FileStorage):
    """A folder that is no path for anybody, as an object store is."""

    def local_path(self, key: str) -> None:  # type: ignore[override]
        return None

    def child(self, prefix: str) -> ObjectStore:
        return ObjectStore(self.root / prefix)


@pytest.fixture(params=[FileStorage, ObjectStore])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> SearchDirectory:
    return SearchDirectory(request.param(tmp_path / "runs/small"))


def begin(directory: SearchDirectory, spec: SearchSpec) -> Trials:
    """Claim a directory, and return the record that writes there."""
    directory.claim(spec)
    return Trials(repeats=spec.repeats, store_row=directory.append_row)


def candidate(number: int) -> Observation:
    values = {"model.transition_width": 0.25 + number / 10, "hyperparameters.lr0": 0.001 * (number + 1)}
    return Observation(values, {"gflops": 1.0 + number, "parameters": 1e6})


def measured(trials: Trials, number: int, share: float, ap: float, repeat: int = 0) -> None:
    trials.measure(number, Measurement(repeat, share, round(8 * share), {"val_AP": ap}, 30.0))


def study_of(directory: SearchDirectory, folder: Path) -> optuna.Study:
    """Open the file as a dashboard does."""
    path = folder / "copy.journal"
    path.write_bytes(directory.storage.get(OPTUNA_KEY))
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.load_study(study_name="small", storage=optuna.storages.JournalStorage(backend))


def facts(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.intermediate_values, t.user_attrs, t.datetime_start)
        for t in study.trials
    ]


def test_trials_appear_change_and_end_as_in_the_record(
    make_spec: MakeSpec, directory: SearchDirectory, tmp_path: Path
) -> None:
    trials = begin(directory, make_spec(objectives=TWO_OBJECTIVES))
    file = OptunaFile(directory)
    file.sync()
    assert study_of(directory, tmp_path).trials == []
    before = directory.storage.get(OPTUNA_KEY)
    for number in range(3):
        trials.suggest(candidate(number))
    trials.refuse(Observation({"model.transition_width": 1.0}, {}, violations={"gflops": 1.0}))
    with directory.trial("0000") as run:
        run.append_metrics({"step": 2, "val_AP": 0.125, "loss": 3.0})
    file.sync()
    study = study_of(directory, tmp_path)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["val_AP", "gflops"]
    assert [trial.state for trial in study.trials] == [States.RUNNING] * 3
    assert [trial.params for trial in study.trials] == [candidate(number).values for number in range(3)]
    assert study.trials[0].intermediate_values == {2: 0.125}
    measured(trials, 0, 0.5, 0.25)
    measured(trials, 0, 1.0, 0.5)
    trials.end(0, "completed")
    measured(trials, 1, 0.5, 0.1)
    trials.end(1, "stopped: not among the best of rung 1")
    trials.end(2, "failed: out of memory")
    file.sync()
    file.close()
    ended = study_of(directory, tmp_path)
    assert [trial.state for trial in ended.trials] == [States.COMPLETE, States.PRUNED, States.FAIL]
    assert ended.trials[0].values == [0.5, 1.0]
    assert ended.trials[0].intermediate_values == {2: 0.125, 4: 0.25, 8: 0.5}
    assert ended.trials[2].user_attrs["state"] == "failed: out of memory"
    attributes = ended.trials[0].user_attrs
    assert (attributes["val_AP"], attributes["parameters"], attributes["worker_seconds"]) == (0.5, 1e6, 60.0)
    assert attributes["run"].endswith("trials/0000")
    assert [trial.number for trial in ended.best_trials] == [0]
    assert directory.storage.get(OPTUNA_KEY).startswith(before)  # what a dashboard has read is never taken back


def build(directory: SearchDirectory, spec: SearchSpec, num_trials: int) -> None:
    """A record of so many trials, every second one still in training."""
    trials = begin(directory, spec)
    trials.replay(directory.rows())
    for number in range(len(trials.trials), num_trials):
        trials.suggest(candidate(number))
        measured(trials, number, 1.0 if number % 2 else 0.5, number / 10)
        if number % 2:
            trials.end(number, "completed")


def sync(directory: SearchDirectory) -> None:
    file = OptunaFile(directory)
    file.sync()
    file.close()


def test_a_file_that_is_missing_behind_or_damaged_becomes_whole(
    make_spec: MakeSpec, directory: SearchDirectory, tmp_path: Path
) -> None:
    spec = make_spec()
    build(directory, spec, 3)
    sync(directory)
    behind = directory.storage.get(OPTUNA_KEY)
    build(directory, spec, 6)
    sync(directory)
    whole, content = facts(study_of(directory, tmp_path)), directory.storage.get(OPTUNA_KEY)
    assert len(whole) == 6
    assert content.startswith(behind)
    sync(directory)
    assert directory.storage.get(OPTUNA_KEY) == content  # nothing was missing
    directory.storage.delete(OPTUNA_KEY)
    sync(directory)
    assert facts(study_of(directory, tmp_path)) == whole
    foreign = content.replace(b'"small"', b'"other"')
    half_a_line = content[: len(content) // 2]
    for damaged in (behind, b"", b"no JSON\n" + content, foreign, half_a_line, b"\x00\xff\n" * 40):
        directory.storage.put(OPTUNA_KEY, damaged)
        sync(directory)
        assert facts(study_of(directory, tmp_path)) == whole


def test_the_file_of_another_record_is_written_anew(
    make_spec: MakeSpec, directory: SearchDirectory, tmp_path: Path
) -> None:
    build(directory, make_spec(), 5)
    sync(directory)
    other = SearchDirectory(type(directory.storage)(tmp_path / "runs/other"))  # type: ignore[call-arg]
    trials = begin(other, make_spec())
    trials.suggest(candidate(7))
    other.storage.put(OPTUNA_KEY, directory.storage.get(OPTUNA_KEY))
    sync(other)
    (trial,) = study_of(other, tmp_path).trials
    assert (trial.params, trial.state) == (candidate(7).values, States.RUNNING)


def test_repeats_are_means_and_exchanges_are_named(make_spec: MakeSpec, tmp_path: Path) -> None:
    directory = SearchDirectory(open_storage(tmp_path / "runs/small"))
    trials = begin(directory, make_spec(repeats=2))
    trials.suggest(candidate(0))
    for repeat, ap in enumerate((0.25, 0.75)):
        measured(trials, 0, 1.0, ap, repeat)
    trials.suggest(candidate(1))
    trials.exchange(1, Exchange(1, 0, {"hyperparameters.lr0": 0.02}), 1)
    trials.end(0, "completed")
    sync(directory)
    first, second = study_of(directory, tmp_path).trials
    assert first.values == [0.5]
    assert second.user_attrs["exchange_1"] == "from trial 0: lr0=0.02"
    assert second.user_attrs["run"].endswith("0001-exchange1")


def test_choices_and_conditions_are_kept(make_spec: MakeSpec, tmp_path: Path) -> None:
    parameters = {
        "row": {"choice": {"base": {"model.depth": 1.0}, "deep": {"model.depth": 2.0}}},
        "anchors": {"choice": ["model", "fit"], "when": {"row": "deep"}},
        "data.image_size": {"integer": [64, 256], "step": 64},
    }
    directory = SearchDirectory(open_storage(tmp_path / "runs/small"))
    trials = begin(directory, make_spec(parameters=parameters))
    values = [{"row": "base", "data.image_size": 64}, {"row": "deep", "anchors": "fit", "data.image_size": 256}]
    for entry in values:
        trials.suggest(Observation(entry))
    sync(directory)
    assert [trial.params for trial in study_of(directory, tmp_path).trials] == values


def test_a_report_writes_the_file_of_an_older_search_but_not_that_of_a_running_one(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    directory = SearchDirectory(open_storage(tmp_path / "runs/small"))
    build(directory, make_spec(), 2)
    with hold(directory.storage):
        write_optuna_file(directory)
        assert not directory.storage.exists(OPTUNA_KEY)
        with keep_optuna_file(directory):
            pass
        assert len(study_of(directory, tmp_path).trials) == 2
        assert dashboard_hint(directory) == f"optuna-dashboard {tmp_path}/runs/small/optuna.journal"
    build(directory, make_spec(), 4)
    write_optuna_file(directory)
    assert len(study_of(directory, tmp_path).trials) == 4


def test_a_mirror_that_cannot_be_written_does_not_end_the_search(
    make_spec: MakeSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = SearchDirectory(open_storage(tmp_path / "runs/small"))
    build(directory, make_spec(), 2)
    (tmp_path / "runs/small" / OPTUNA_KEY).mkdir()
    with keep_optuna_file(directory):
        pass
    assert "optuna.journal is not up to date" in caplog.text
