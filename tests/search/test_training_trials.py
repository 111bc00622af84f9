"""Searches over real trainers, run in this process segment by segment: pauses, results, copied weights, reports."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.published_tables import published_tables
from yolofleet.core.errors import UserError, WorkError
from yolofleet.search import trial_segment
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.engine import SegmentResult, TrialSegment
from yolofleet.search.report import write_report
from yolofleet.search.session import SearchSession
from yolofleet.search.trial_segment import SegmentOrder, keep_initial_weights, run_segment
from yolofleet.specs.job import JobSpec
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search import SearchSpec, load_search
from yolofleet.storage import StorageError, open_storage
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.setup.pretrained import Locate

MakeSpec = Callable[..., SearchSpec]


def unknown(models_uri: str) -> tuple[Path, str]:
    """Fail: these searches need no registry."""
    raise AssertionError(models_uri)


def search(
    spec: SearchSpec, most_segments: int = 100, locate: Locate = unknown
) -> tuple[SearchDirectory, list[TrialSegment]]:
    """Run a search in this process, up to a number of segments."""
    session = SearchSession.open(spec, source="space.yaml")
    directory = SearchDirectory(open_storage(session.space.base_job.storage).child(spec.name))
    directory.claim(spec)
    keep_initial_weights(directory, session.space.base_job.with_absolute_paths(), locate)
    engine = session.engine(session.trials(directory), directory)
    job_of = session.job_of(directory)
    done: list[TrialSegment] = []
    while len(done) < most_segments and isinstance(segment := engine.next_segment(), TrialSegment):
        order = SegmentOrder(job_of(segment).document(), segment.share, session.measured_objectives)
        engine.complete(segment, SegmentResult(**run_segment(order.to_json())))
        done.append(segment)
    directory.close()
    return directory, done


@pytest.mark.slow
def test_a_search_ends_in_a_report_and_a_job_that_is_valid(make_spec_over_data: MakeSpec) -> None:
    spec = make_spec_over_data(
        budget={"trials": 2},
        objectives=[{"metric": "val_AP", "goal": "max"}, {"metric": "gflops", "goal": "min"}],
        constraints={"parameters": {"max": 5e5}},
    )
    directory, segments = search(spec)
    assert len(segments) == 2
    results = write_report(directory)
    assert results.best is not None
    assert all("val_AP" in entry.measured and entry.completed for entry in results.entries)
    job = JobSpec.parse(yaml.safe_load(directory.storage.get("best.yaml")), source="best.yaml")
    assert job.model.transition_width == results.entry(results.best).values["model.transition_width"]
    page = directory.storage.get("report/index.html").decode()
    assert "No scaling law" in page
    assert 'class="dot"' in page and "../trials/" in page
    assert json.loads(directory.storage.get("report/results.json"))["best"]["number"] == results.best
    _, segments = search(spec)
    assert segments == []
    with pytest.raises(UserError, match="was started with another"):
        search(make_spec_over_data(budget={"trials": 2}, parameters={"hyperparameters.lr0": {"choice": [0.01]}}))


@pytest.mark.slow
def test_every_trial_starts_from_the_same_registered_weights(make_spec_over_data: MakeSpec) -> None:
    """An alias may name another version during a search; the weights that its trials start from stay the same."""
    trained, _ = search(make_spec_over_data(name="trained", budget={"trials": 1}))
    asked: list[str] = []

    def locate(models_uri: str) -> tuple[Path, str]:
        asked.append(models_uri)
        path = trained.trial("0000").storage.local_path("job.yaml")
        assert path is not None
        return path.parent, "models:/shapes/3"

    spec = make_spec_over_data(
        name="tuned",
        parameters={"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}},
        budget={"trials": 2},
        set={"initial_weights": "models:/shapes@champion", "model.transition_width": width_of_first_trial(trained)},
    )
    directory, segments = search(spec, locate=locate)
    search(spec, locate=locate)
    assert asked == ["models:/shapes@champion"]
    digests = [directory.trial(segment.run_name).facts()["initial_weights"]["sha256"] for segment in segments]
    assert len(digests) == 2 and len(set(digests)) == 1
    (event,) = [event for event in directory.events() if event["kind"] == "initial_weights"]
    assert (event["parent"], event["source"]) == ("models:/shapes/3", "models:/shapes@champion")


def width_of_first_trial(directory: SearchDirectory) -> float:
    """The width of the first trial's model."""
    return float(yaml.safe_load(directory.trial("0000").job_text() or "")["model"]["transition_width"])


def test_a_rung_pauses_a_run_and_the_next_segment_resumes_it(make_spec_over_data: MakeSpec) -> None:
    spec = make_spec_over_data(budget={"trials": 3}, scheduler={"name": "asha", "reduction": 2.0, "rungs": 1})
    directory, segments = search(spec)
    assert sorted(segment.share for segment in segments) == [0.5, 0.5, 0.5, 1.0]
    promoted = segments[-1] if segments[-1].share == 1 else next(segment for segment in segments if segment.share == 1)
    kinds = [(event["kind"], event.get("step")) for event in directory.trial(promoted.run_name).events()]
    assert ("left", 4) in kinds
    assert ("start", 4) in kinds
    assert ("end", 8) in kinds
    ends = [row["reason"] for row in directory.rows() if row["kind"] == "ended"]
    assert sorted(end.partition(":")[0] for end in ends) == ["completed", "stopped", "stopped"]
    stopped = next(row["trial"] for row in directory.rows() if row["kind"] == "ended" and row["reason"] != "completed")
    assert directory.trial(f"{stopped:04d}").status() == "KILLED"
    newest = directory.metrics()[-1]
    assert newest["step"] == 3
    assert newest["best_val_AP"] >= 0


@pytest.mark.slow
def test_a_member_of_a_population_starts_from_the_weights_of_its_source(make_spec_over_data: MakeSpec) -> None:
    spec = make_spec_over_data(
        budget={"trials": 4},
        parameters={"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}},
        scheduler={"name": "population", "rungs": 1, "quantile": 0.25},
    )
    directory, segments = search(spec)
    changed = [segment for segment in segments if segment.source is not None]
    assert len(changed) == 1
    segment = changed[0]
    assert segment.source is not None
    run, source = directory.trial(segment.run_name), directory.trial(segment.source.run_name)
    cloned = next(event for event in run.events() if event["kind"] == "cloned")
    first = next(row for row in run.events() if row["kind"] == "start")
    assert (cloned["source"], cloned["step"], first["step"]) == (segment.source.run_name, 4, 4)
    folder = f"checkpoints/step-{segment.source.step}"
    copied = json.loads(source.storage.get(f"{folder}/COMMITTED"))["files"]["weights.safetensors"]["sha256"]
    assert cloned["weights_sha256"] == copied
    assert CheckpointStore(run.storage.child("checkpoints")).newest() is not None
    job = yaml.safe_load(run.job_text() or "")
    assert job["hyperparameters"]["lr0"] == segment.values["hyperparameters.lr0"]


def test_a_population_refuses_parameters_that_cannot_change_in_training(make_spec_over_data: MakeSpec) -> None:
    with pytest.raises(UserError, match="cannot change while a model trains"):
        SearchSession.open(make_spec_over_data(scheduler={"name": "population"}), source="space.yaml")


def test_a_search_whose_every_trial_fails_ends_with_the_reason(make_spec_over_data: MakeSpec) -> None:
    spec = make_spec_over_data(budget={"trials": 9})
    session = SearchSession.open(spec, source="space.yaml")
    directory = SearchDirectory(open_storage(session.space.base_job.storage).child(spec.name))
    engine = session.engine(session.trials(directory), directory)
    with pytest.raises(WorkError, match="3 trials failed one after the other and none has given a result"):
        while isinstance(segment := engine.next_segment(), TrialSegment):
            engine.complete(segment, SegmentResult(failure="there is no GPU"))
    assert len(directory.rows()) == 6


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StorageError("s3://b: got no answer", transient=True), "outage"),
        (StorageError("s3://b: was refused"), "failure"),
        (UserError("the job is wrong"), "failure"),
    ],
)
def test_a_storage_that_does_not_answer_is_no_failure_of_the_trial(
    error: UserError, kind: str, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(job: JobSpec) -> None:
        raise UserError(f"the job cannot be checked: {error}") from error

    monkeypatch.setattr(trial_segment, "check_job", check)
    job = make_spec().document()["job"] | {"storage": str(tmp_path)}
    result = run_segment(SegmentOrder(job, 1.0, ["val_AP"]).to_json())
    assert str(error) in result.pop(kind) and result.keys() == {"gpu_seconds"}


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_the_search_continues(make_spec_over_data: MakeSpec, shards: Path) -> None:
    spec = make_spec_over_data(
        parameters={"hyperparameters.lr0": {"choice": [0.01, 1e30]}}, algorithm={"name": "grid"}, budget={"trials": 2}
    )
    directory, segments = search(spec)
    ends = {row["trial"]: row["reason"] for row in directory.rows() if row["kind"] == "ended"}
    assert len(segments) == 2
    assert ends[0] == "completed"
    assert ends[1].startswith(("failed: ", "completed"))
    assert write_report(directory).best == 0


SPACES = Path(__file__).parents[2] / "search_spaces"
SEEDS = 3
SMALL_TABLES = sorted(path.stem for path in SPACES.glob("table*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*SMALL_TABLES, "compound-scaling", "hyperparameters-p5", "learning-rate", "quickstart"]
)
def test_a_published_space_runs_in_the_small_to_a_report(name: str, shards: Path, tmp_path: Path) -> None:
    """Thin models on drawn images, a few steps a trial: every row ends in the report beside the paper's."""
    overrides = [
        f"job.data.train={shards / 'train'}",
        f"job.data.val={shards / 'val'}",
        "job.data.cache=null",
        "job.data.image_size=64",
        "job.data.loader_threads=1",
        f"job.storage={tmp_path / 'runs'}",
        "job.epochs=0.5",
        "job.evaluation={every_epochs: 0.1, batch_size: 8}",
        "job.global_batch_size=4",
        "job.micro_batch_size=2",
        "job.precision=fp32",
        "job.cluster={workers: 1, gpus_per_worker: 0, cpus_per_worker: 1}",
    ]
    if name.startswith("table3") or name == "compound-scaling":
        table = tmp_path / "thin.yaml"
        table.write_text("name: thin\nbase: yolov7-x-light\ntransition_width: 0.125\nhidden_width: 0.125\n")
        overrides += ["job.model.name=null", f"job.model.spec={table}"]
    else:
        overrides += ["job.model.transition_width=0.125"]
        overrides += [] if name.startswith("table5") else ["job.model.hidden_width=0.125"]
    if name == "compound-scaling":
        overrides += ["parameters.data.image_size.integer=[64, 128]", "parameters.data.image_size.step=64"]
    overrides += [f"repeats={SEEDS}"] if name.startswith("table") else ["budget.trials=4"]
    spec = load_search(SPACES / f"{name}.yaml", overrides)
    if name.startswith("table5"):  # its rows set the size of the image themselves
        rows = {
            label: {path: 64 if path == "data.image_size" else value for path, value in fields.items()}
            for label, fields in dict(spec.parameters["variant"].choice or {}).items()  # type: ignore[arg-type]
        }
        parameters = {"variant": Parameter(choice=rows)}
        spec = spec.model_copy(update={"parameters": parameters})
    directory, _ = search(spec)
    results = write_report(directory)
    assert results.best is not None
    assert not [entry.state for entry in results.entries if entry.state.startswith("failed")]
    page = directory.storage.get("report/index.html").decode()
    if name.startswith("table"):
        check_paper_table(directory, published_tables()[name.partition("-")[0]], page)
    JobSpec.parse(yaml.safe_load(directory.storage.get("best.yaml")), source="best.yaml")


def starts(page: str, num_numbers: int) -> list[list[str]]:
    """The first cells of every row of a page's tables: its head and so many numbers."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row)[: 1 + num_numbers] for row in rows]


def check_paper_table(directory: SearchDirectory, printed: list[dict[str, Any]], page: str) -> None:
    """Compare the report with the paper's table and with the record: every figure, and the mean of all seeds."""
    table = json.loads(directory.storage.get("report/results.json"))["paper"]
    digits = 2 if table["table"] in ("Table 4", "Table 5") else 1
    measured: dict[int, list[dict[str, float]]] = {}
    for row in directory.rows():
        if row["kind"] == "measured":
            measured.setdefault(row["trial"], []).append(row["measured"])
    assert {len(runs) for runs in measured.values()} == {SEEDS}
    assert sorted(row["trial"] for row in table["rows"] if row["trial"] is not None) == sorted(measured)
    for row, expected in zip(table["rows"], printed, strict=False):  # trials without a row follow
        assert row["paper"] == {name: value for name, value in expected.items() if name in row["paper"]}
        assert ["paper", *(f"{value:.{digits}f}" for value in row["paper"].values())] in starts(page, len(row["paper"]))
    for row in table["rows"]:
        if row["trial"] is None:
            continue
        runs = [run["val_AP"] for run in measured[row["trial"]]]
        assert row["here"]["ap"] == pytest.approx(100 * sum(runs) / SEEDS)
        assert row["spread"]["ap"] == pytest.approx(100 * statistics.stdev(runs))
        assert ["here", f"{row['here']['ap']:.{digits}f}"] in starts(page, 1)
        assert ["±", f"{row['spread']['ap']:.{digits}f}"] in starts(page, 1)
    for order in table["order"].values():
        assert {label for pairs in order.values() for pair in pairs for label in pair} <= {
            r["label"] for r in table["rows"]
        }


def test_halving_is_planned_where_only_the_smallest_candidate_is_feasible(make_spec_over_data: MakeSpec) -> None:
    space = SearchSession.open(make_spec_over_data(), source="space.yaml")
    smallest = space.screen(space.space.parameters.at([0.0, 0.0])).figures["gflops"]
    spec = make_spec_over_data(constraints={"gflops": {"max": smallest}}, scheduler={"name": "asha"})
    session = SearchSession.open(spec, source="space.yaml")
    directory = SearchDirectory(open_storage(session.space.base_job.storage).child(spec.name))
    session.engine(session.trials(directory), directory)
    directory.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": [{"metric": "val_mAP", "goal": "max"}]}, "no trial reports 'val_mAP'; did you mean 'val_AP'?"),
        ({"objectives": [{"metric": "gflops", "goal": "min"}]}, "all are known without training"),
        ({"constraints": {"gflops": {"max": 1e-6}}}, "The nearest is"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_it_starts(
    make_spec_over_data: MakeSpec, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        SearchSession.open(make_spec_over_data(**changes), source="space.yaml")
    assert message in str(caught.value)
