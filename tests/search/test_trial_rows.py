"""The record of a search may be a stranger's: a damaged row is named in one line, and numbers are only names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.history import Observation
from yolofleet.search.report import render_search
from yolofleet.search.results import load_results, summary_lines
from yolofleet.search.trials import Measurement, Trials
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.yaml_document import write_yaml
from yolofleet.storage import open_storage
from yolofleet.tracking.json_lines import CorruptLogError

VALUES = {"model.transition_width": 0.5, "hyperparameters.lr0": 0.01}
SUGGESTED: dict[str, Any] = {"kind": "suggested", "trial": 0, "values": VALUES, "figures": {"gflops": 1.0}}
MEASURED: dict[str, Any] = {
    "kind": "measured", "trial": 0, "repeat": 0, "share": 1.0, "step": 5, "measured": {"val_AP": 0.5},
    "gpu_seconds": 1.0,
}  # fmt: skip
ENDED: dict[str, Any] = {"kind": "ended", "trial": 0, "reason": "completed"}
EXCHANGED: dict[str, Any] = {"kind": "exchanged", "trial": 0, "exchange": 1, "donor": 0, "values": VALUES}

Write = Callable[..., SearchDirectory]


@pytest.fixture
def write(make_spec: Callable[..., SearchSpec], tmp_path: Path) -> Write:
    """Write a search with such rows."""

    def search(*rows: dict[str, Any]) -> SearchDirectory:
        (tmp_path / "search.yaml").write_text(write_yaml(make_spec().document()))
        (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SearchDirectory(open_storage(tmp_path))

    return search


def trial(number: int, ap: float) -> list[dict[str, Any]]:
    return [SUGGESTED | {"trial": number}, MEASURED | {"trial": number, "measured": {"val_AP": ap}},
            ENDED | {"trial": number}]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (SUGGESTED | {"trial": 1, "values": None}, "values"),
        (SUGGESTED | {"trial": 1, "values": [1]}, "values"),
        (SUGGESTED | {"trial": 1, "values": {"nope": 1}}, "values.'nope'"),
        (SUGGESTED | {"trial": 1, "values": VALUES | {"hyperparameters.lr0": "x"}}, "values.'hyperparameters.lr0'"),
        (SUGGESTED | {"trial": 1, "figures": {"gflops": "x"}}, "figures.gflops"),
        (SUGGESTED | {"trial": 1, "figures": {"gflops": 10**400}}, "figures.gflops"),
        (SUGGESTED | {"trial": 1, "notes": 3}, "notes"),
        (SUGGESTED | {"trial": "x"}, "trial"),
        (SUGGESTED | {"trial": -5}, "trial"),
        (SUGGESTED | {"trial": 10**400}, "trial"),
        (MEASURED | {"measured": {"val_AP": "x"}}, "measured.val_AP"),
        (MEASURED | {"gpu_seconds": "x"}, "gpu_seconds"),
        (MEASURED | {"share": "x"}, "share"),
        (MEASURED | {"repeat": 10**9}, "repeat"),
        ({key: value for key, value in MEASURED.items() if key != "repeat"}, "repeat"),
        ({"kind": "ended", "trial": 0}, "reason"),
        (EXCHANGED | {"exchange": "../../x"}, "exchange"),
        (EXCHANGED | {"donor": "x"}, "donor"),
        (EXCHANGED | {"donor": 7}, "donor"),
    ],
)
def test_a_damaged_row_is_named_with_its_file_and_key(row: dict[str, Any], key: str, write: Write) -> None:
    directory = write(SUGGESTED, row)
    with pytest.raises(UserError) as caught:
        load_results(directory)
    message = str(caught.value)
    assert "trials.jsonl" in message and key in message and "repair or remove" in message and "\n" not in message


def test_the_best_trial_is_found_whatever_the_order_and_the_numbers_of_trials(write: Write) -> None:
    results = load_results(write(*trial(7, 0.9), *trial(1, 0.1), *trial(0, 0.5)))
    assert results.best == 7 and results.entry(7).measured == {"val_AP": 0.9}
    assert [entry.number for entry in results.entries] == [7, 1, 0]
    assert "0.9000" in "\n".join(summary_lines(results, "runs/small"))
    assert "the best is trial 7" in render_search(results, {})


def test_a_new_trial_gets_a_number_of_its_own_behind_gaps() -> None:
    record = Trials()
    record.replay([SUGGESTED | {"trial": 1}])
    assert record.suggest(record.trials[1].observation).number == 2


def test_what_was_measured_as_infinite_or_nan_counts_as_not_measured(write: Write) -> None:
    rows = trial(0, 0.5)
    for number, text in enumerate(("Infinity", "NaN"), start=1):
        rows += [*trial(number, 0.0)[:1], MEASURED | {"trial": number, "measured": {"val_AP": text}}]
        rows += trial(number, 0.0)[2:]
    results = load_results(write(*rows))
    assert results.best == 0 and results.entry(1).measured == {}


def test_many_measurements_of_one_trial_are_kept_in_order(write: Write) -> None:
    rows = [MEASURED | {"share": number / 2000, "step": number} for number in range(2000)]
    record = Trials()
    record.replay([SUGGESTED, *rows, *rows])
    assert [entry.step for entry in record.trials[0].measurements] == list(range(2000))
    newest = record.trials[0].at(0)
    assert newest is not None and newest.step == 1999


def test_a_search_that_is_no_text_is_damaged(write: Write) -> None:
    directory = write()
    directory.storage.put("search.yaml", b"\xff\xfe\0")
    with pytest.raises(UserError, match=r"search\.yaml: is damaged"):
        load_results(directory)


def test_damage_is_a_corrupt_log(write: Write) -> None:
    with pytest.raises(CorruptLogError):
        load_results(write(SUGGESTED | {"trial": None}))


def test_a_diverging_trial_ends_no_search_and_its_record_is_read_again() -> None:
    rows: list[dict[str, Any]] = []
    trials = Trials(store_row=rows.append)
    trials.suggest(Observation({"learning_rate": 1.0}, {}))
    trials.measure(0, Measurement(0, 1.0, 100, {"val_AP": 0.5, "gradient_norm": 2e30}, 1.5))
    again = Trials()
    again.replay(rows)
    assert again.trials[0].measurements[0].values == {"val_AP": 0.5}


def test_a_row_that_could_not_be_read_is_not_stored() -> None:
    rows: list[dict[str, Any]] = []
    trials = Trials(store_row=rows.append)
    trials.suggest(Observation({"learning_rate": 1.0}, {}))
    with pytest.raises(CorruptLogError):
        trials.measure(0, Measurement(0, 2.0, 100, {"val_AP": 0.5}, 1.5))
    assert len(rows) == 1
