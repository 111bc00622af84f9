"""What commit 501c7a7 wrote is read, resumed and verified: shards, runs, searches, versions, predictions, job files.

`tests/golden/before/README.md` tells how the records were made. The tests go through the commands, as a user does who
has upgraded in the middle of a run. ``expected/`` holds what the commands printed then.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from system.older_records import (
    CONFIDENCE,
    FIGURE_TOLERANCE,
    account,
    assert_holds,
    assert_same_detections,
    expected,
    is_same,
    printed,
)
from system.shell import Shell, rows

pytestmark = pytest.mark.system
MAY_BE_IMPOSSIBLE = {"data, train", "code version", "package versions"}
"""The training data lies elsewhere, and code and packages have changed since."""


def test_shards_are_inspected(older: Shell) -> None:
    for part, images in (("train", 12), ("val", 4)):
        then = expected(older, f"inspect-{part}.json")
        assert images in then.values()
        assert_holds(printed(older, "data", "inspect", f"shards/{part}"), then)


@pytest.mark.parametrize("name", ["finished", "unfinished", "fine-tuned", "eventful"])
def test_a_run_is_reported(older: Shell, name: str) -> None:
    then, now = expected(older, f"report-{name}.json"), printed(older, "report", f"runs/{name}")
    for key in ("name", "status", "starts", "step", "has_model", "skipped", "metrics"):
        assert_holds(now[key], then[key], where=key)
    assert now["last_event"]["time"] == then["last_event"]["time"]
    before, after = account(then), account(now)
    for key in ("starts", "failures", "steps_redone", "seconds_lost", "seconds_trained", "goodput"):
        assert_holds(after[key], before[key], where=key)
    assert [line.split()[0] for line in after["history"]] == [line.split()[0] for line in before["history"]]
    text = older.succeed("report", f"runs/{name}")
    assert all(line in text for line in after["history"])


def test_what_was_reported_is_what_happened(older: Shell) -> None:
    """The figures that the test above compares with, so that it never compares nothing with nothing."""
    finished = expected(older, "report-finished.json")
    assert (finished["status"], finished["step"], finished["starts"]) == ("FINISHED", 1350, 2)
    assert account(finished)["failures"] == {"worker": 1}
    assert account(finished)["steps_redone"] == 20
    assert len(account(finished)["history"]) == 2
    unfinished = expected(older, "report-unfinished.json")
    assert (unfinished["status"], unfinished["starts"]) == ("KILLED", 1)
    assert 10 <= unfinished["step"] < 30
    assert "SIGTERM" in account(unfinished)["history"][-1]


def test_every_kind_of_event_is_understood(older: Shell) -> None:
    run = older.folder / "runs/eventful"
    written = {row["time"]: row for log in run.glob("events*.jsonl") for row in rows(log)}
    report = printed(older, "report", "runs/eventful")
    found = account(report)
    assert report["status"] == "KILLED" and report["metrics"]["val_AP"] == 0.625
    assert report["skipped"].startswith("4 of 48")
    assert (found["starts"], found["failures"], found["steps_redone"]) == (4, {"worker": 1, "preemption": 1}, 10)
    assert len(found["history"]) == 20
    then = account(expected(older, "report-eventful.json"))["history"]
    for line, line_then in zip(found["history"], then, strict=True):
        time, _, text = line.partition(" ")
        row = written[time]
        assert "{" not in text, f"{row['kind']} is not understood: {text}"
        facts = [str(value) for key, value in row.items() if key not in ("time", "kind")]
        shown = [fact for fact in facts if fact in line_then.partition(" ")[2]]
        assert shown and all(fact in text for fact in shown), f"{row} is told as {text}, not as {line_then}"


def test_a_stopped_run_of_the_order_without_lanes_is_refused_with_a_cure_that_works(older: Shell) -> None:
    run = older.folder / "runs/unfinished"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "lock" not in path.parts}
    refused = older.run("train", "unfinished.yaml", "--launcher", "process")
    assert refused.returncode == 2 and "sample order of an earlier version" in refused.stderr
    cure = refused.stderr[refused.stderr.index("name=") :].split()
    assert cure[0] == "name=unfinished-2" and cure[1].startswith("initial_weights=") and len(cure) == 2
    assert {path: path.read_bytes() for path in before} == before, "a run that is not resumed is not touched"

    older.succeed("train", "unfinished.yaml", *cure, "--launcher", "process")
    report = printed(older, "report", "runs/unfinished-2")
    assert (report["status"], report["step"], report["has_model"]) == ("FINISHED", 30, True)
    facts = json.loads((older.folder / "runs/unfinished-2/facts.json").read_text())
    assert facts["initial_weights"]["source"].endswith("unfinished"), "the weights are those of the old run"


def test_a_finished_run_is_left_alone_and_another_job_refused(older: Shell) -> None:
    run = older.folder / "runs/finished"
    before = {path: path.read_bytes() for path in run.glob("*.jsonl")}
    older.succeed("train", "job.yaml", "--launcher", "process")
    assert {path: path.read_bytes() for path in run.glob("*.jsonl")} == before
    other = older.run("train", "job.yaml", "seed=1", "--launcher", "process")
    assert other.returncode == 2 and "seed" in other.stderr


def test_models_find_what_they_found(older: Shell) -> None:
    then = expected(older, "evaluation.json")
    facts = json.loads((older.folder / "runs/finished/facts.json").read_text())["figures"]
    assert then["figures"]["AP"] == pytest.approx(facts["AP"]) and facts["AP"] > 0.01
    now = printed(older, "evaluate", "runs/finished", "shards/val")
    assert_holds(now["figures"], then["figures"], tolerance=FIGURE_TOLERANCE)
    judged = printed(older, "evaluate", "results.json", "shards/val")
    assert_holds(judged["figures"], then["figures"])

    found = printed(
        older,
        "predict",
        "models:/shapes/1",
        "images/images/000001.jpg",
        "--out",
        "drawn",
        "--confidence",
        str(CONFIDENCE),
    )
    assert_same_detections(found, expected(older, "predict.json"))
    assert (older.folder / "drawn/000001.jpg").is_file()


def test_versions_are_shown_and_proved(older: Shell) -> None:
    assert_holds(printed(older, "registry", "list", "shapes"), expected(older, "list.json"))
    for version, aliases in ((1, ["champion-previous"]), (2, ["candidate", "champion"])):
        then = expected(older, f"show-{version}.json")
        assert sorted(then["aliases"]) == aliases
        assert_holds(printed(older, "registry", "show", f"shapes/{version}"), then)
    assert then["lineage"]["parents"] == ["models:/shapes/1"], "the second was fine-tuned from the first"
    then = expected(older, "verify-2.json")
    now = printed(older, "registry", "verify", "shapes/2", "--data", "shards/val")
    assert now["proof_sha256"] == then["proof_sha256"]
    passed = {claim["name"] for claim in then["claims"] if claim["outcome"] == "passed"} - MAY_BE_IMPOSSIBLE
    outcomes = {claim["name"]: claim["outcome"] for claim in now["claims"]}
    assert len(passed) >= 14 and all(outcomes.get(name) == "passed" for name in passed), now
    assert "failed" not in outcomes.values(), now


def test_the_history_of_an_alias_goes_on(older: Shell) -> None:
    then = expected(older, "history.json")
    assert [(entry["version"], entry["previous"]) for entry in then] == [(2, 1), (1, None)]
    assert_holds(printed(older, "registry", "history", "shapes"), then)
    gates = ("--policy", "promotion.yaml", "--data", "shards/val")
    older.succeed("registry", "promote", "shapes", "--version", "1", *gates, "--dry-run")
    older.succeed("registry", "rollback", "shapes", "--reason", "misses circles")
    now = printed(older, "registry", "history", "shapes")
    assert (now[0]["version"], now[0]["previous"], now[0]["reason"]) == (1, 2, "misses circles")
    assert_holds(now[1:], then)
    assert "champion" in printed(older, "registry", "show", "shapes/1")["aliases"]


MIXED = """
proof: {may_be_impossible: [code version, package versions, "data, train"]}
lineage: false
against_champion: {largest_drop: 1.0}
"""


@pytest.mark.slow
def test_an_older_version_and_a_new_one_are_compared_and_promoted(older: Shell) -> None:
    command = ("registry", "register", "detector", "--name", "shapes", "--data", "shards/val")
    assert printed(older, *command)["version"] == 3
    archives = [path.parent for path in (older.folder / "runs/_mlflow").rglob("archive.zip")]
    assert len(archives) == 1, "what was registered before has none"
    compared = printed(older, "registry", "compare", "shapes/2", "shapes/3", "--replicates", "100")
    assert compared["figures"][0]["second"] is not None
    (older.folder / "mixed.yaml").write_text(MIXED)
    for version, champion in ((2, None), (3, 2), (2, 3)):
        command = ("registry", "promote", "shapes", "--version", str(version), "--to", "trial")
        now = printed(older, *command, "--policy", "mixed.yaml", "--data", "shards/val")
        assert now["promoted"] and now["champion"] == (champion and f"models:/shapes/{champion}")


SERVED = """
import json, sys, mlflow
detector = mlflow.pyfunc.load_model("models:/shapes/1", model_config={"device": "cpu"})
assert detector.predict([sys.argv[1]]) == [[]], "nothing is that sure"
served = detector._model_impl
assert type(served).__module__.startswith("yolofleet_inference_") and "yolofleet" not in sys.modules
print(json.dumps(served._detector.predict([sys.argv[1]], confidence=float(sys.argv[2]))[0]))
"""


def test_a_version_predicts_with_its_own_code(older: Shell) -> None:
    command = [sys.executable, "-c", SERVED, "images/images/000001.jpg", str(CONFIDENCE)]
    done = subprocess.run(
        command, cwd=older.folder, env=older._environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    then = [entry for entry in expected(older, "predict.json")["annotations"] if entry["score"] > CONFIDENCE * 1.02]
    assert then and all(any(is_same({**entry, "image_id": 1}, other) for entry in found) for other in then)


@pytest.mark.parametrize("name", ["population", "halving"])
def test_a_search_is_reported(older: Shell, name: str) -> None:
    then = expected(older, f"report-{name}.json")
    assert then["scaling_law"].pop("reason")  # a sentence for people, which may change
    assert_holds(printed(older, "report", f"runs/{name}"), then, tolerance=1e-6)


def test_a_stopped_search_is_resumed(older: Shell) -> None:
    record = older.folder / "runs/halving/trials.jsonl"
    before = record.read_bytes()
    measured = [(row["trial"], row["step"]) for row in rows(record) if row["kind"] == "measured"]
    assert len(measured) >= 2
    then = expected(older, "report-halving.json")
    older.succeed("tune", "halving.yaml", "--yes", timeout_seconds=400)
    assert record.read_bytes().startswith(before)
    now = [(row["trial"], row["step"]) for row in rows(record) if row["kind"] == "measured"]
    assert len(set(now)) == len(now) > len(measured), "nothing is trained twice"
    results = printed(older, "report", "runs/halving")
    assert [trial["number"] for trial in results["trials"]] == [0, 1, 2, 3]
    for old, new in zip(then["trials"], results["trials"], strict=False):
        assert_holds((new["values"], new["figures"]), (old["values"], old["figures"]))
    assert any(trial["state"] == "completed" for trial in results["trials"])
    assert results["refused"] >= then["refused"]


@pytest.mark.slow
def test_a_finished_search_is_not_repeated(older: Shell) -> None:
    record = older.folder / "runs/population/trials.jsonl"
    before = record.read_bytes()
    assert b"exchanged" in before
    older.succeed("tune", "population.yaml", "--yes")
    assert record.read_bytes() == before


def test_predictions_in_parts_are_completed(older: Shell) -> None:
    parts = older.folder / "found/parts"
    before = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(before) == 3
    command = ("predict", "detector", "shards/train", "--workers", "1", "--part-size", "2", "--out", "found")
    command += ("--confidence", str(CONFIDENCE))
    older.succeed(*command, "--device", "cpu")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(parts.iterdir())) == 6
    assert_same_detections(
        json.loads((older.folder / "found/detections.json").read_text()), expected(older, "found.json")
    )
    other = older.run(*command, "--confidence", "0.5", "--device", "cpu")
    assert other.returncode == 2 and "confidence" in other.stderr
