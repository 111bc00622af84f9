"""Searches over real trainers, run in this process leg by leg: pauses, results, copied weights, reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from yolofleet.core.errors import UserError, WorkError
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.engine import Leg, Result
from yolofleet.search.report import write_report
from yolofleet.search.session import Session
from yolofleet.search.trial_segment import Order, keep_initial_weights, run_leg
from yolofleet.specs.job import JobSpec
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search import SearchSpec, load_search
from yolofleet.storage import open_storage
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.setup.pretrained import Locate

Written = Callable[..., SearchSpec]


def unknown(models_uri: str) -> tuple[Path, str]:
    """There is no registry."""
    raise AssertionError(models_uri)


def search(spec: SearchSpec, most_legs: int = 100, locate: Locate = unknown) -> tuple[SearchDirectory, list[Leg]]:
    """Run a search here, as far as its legs are allowed."""
    session = Session.open(spec, source="space.yaml")
    directory = SearchDirectory(open_storage(session.space.base_job.storage).child(spec.name))
    directory.claim(spec)
    keep_initial_weights(directory, session.space.base_job.with_absolute_paths(), locate)
    engine = session.engine(session.trials(directory), directory)
    job_of = session.job_of(directory)
    done: list[Leg] = []
    while len(done) < most_legs and isinstance(leg := engine.next_leg(), Leg):
        order = Order(job_of(leg).document(), leg.share, session.measured_objectives)
        engine.complete(leg, Result(**run_leg(order.text())))
        done.append(leg)
    directory.close()
    return directory, done


@pytest.mark.slow
def test_a_search_ends_in_a_report_and_a_job_that_is_valid(over_data: Written) -> None:
    spec = over_data(
        budget={"trials": 2},
        objectives=[{"metric": "val_AP", "goal": "max"}, {"metric": "gflops", "goal": "min"}],
        constraints={"parameters": {"max": 5e5}},
    )
    directory, legs = search(spec)
    assert len(legs) == 2
    results = write_report(directory)
    assert results.best is not None
    assert all("val_AP" in entry.measured and entry.completed for entry in results.entries)
    job = JobSpec.parse(yaml.safe_load(directory.storage.get("best.yaml")), source="best.yaml")
    assert job.model.transition_width == results.entry(results.best).values["model.transition_width"]
    page = directory.storage.get("report/index.html").decode()
    assert "no scaling law" in page
    assert "<circle" in page
    assert json.loads(directory.storage.get("report/results.json"))["best"]["number"] == results.best
    _, legs = search(spec)
    assert legs == []
    with pytest.raises(UserError, match="was started with another"):
        search(over_data(budget={"trials": 2}, parameters={"hyperparameters.lr0": {"choice": [0.01]}}))


@pytest.mark.slow
def test_every_trial_starts_from_the_same_registered_weights(over_data: Written) -> None:
    """Which version an alias names may change during a search; the weights that it began with do not."""
    donor, _ = search(over_data(name="donor", budget={"trials": 1}))
    asked: list[str] = []

    def locate(models_uri: str) -> tuple[Path, str]:
        asked.append(models_uri)
        path = donor.trial("0000").storage.local_path("job.yaml")
        assert path is not None
        return path.parent, "models:/shapes/3"

    spec = over_data(
        name="tuned",
        parameters={"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}},
        budget={"trials": 2},
        set={"initial_weights": "models:/shapes@champion", "model.transition_width": donor_width(donor)},
    )
    directory, legs = search(spec, locate=locate)
    search(spec, locate=locate)
    assert asked == ["models:/shapes@champion"]
    found = [directory.trial(leg.run_name).facts()["initial_weights"]["sha256"] for leg in legs]
    assert len(found) == 2 and len(set(found)) == 1
    (event,) = [event for event in directory.events() if event["kind"] == "initial_weights"]
    assert (event["parent"], event["source"]) == ("models:/shapes/3", "models:/shapes@champion")


def donor_width(directory: SearchDirectory) -> float:
    """The width of the model that the first trial trained."""
    return float(yaml.safe_load(directory.trial("0000").job_text() or "")["model"]["transition_width"])


def test_a_rung_pauses_a_run_and_the_next_leg_goes_on_from_it(over_data: Written) -> None:
    spec = over_data(budget={"trials": 3}, scheduler={"name": "asha", "reduction": 2.0, "rungs": 1})
    directory, legs = search(spec)
    assert sorted(leg.share for leg in legs) == [0.5, 0.5, 0.5, 1.0]
    promoted = legs[-1] if legs[-1].share == 1 else next(leg for leg in legs if leg.share == 1)
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
def test_a_member_of_a_population_begins_with_its_donors_weights(over_data: Written) -> None:
    spec = over_data(
        budget={"trials": 4},
        parameters={"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}},
        scheduler={"name": "population", "rungs": 1, "quantile": 0.25},
    )
    directory, legs = search(spec)
    changed = [leg for leg in legs if leg.donor is not None]
    assert len(changed) == 1
    leg = changed[0]
    assert leg.donor is not None
    run, donor = directory.trial(leg.run_name), directory.trial(leg.donor.run_name)
    cloned = next(event for event in run.events() if event["kind"] == "cloned")
    first = next(row for row in run.events() if row["kind"] == "start")
    assert (cloned["source"], cloned["step"], first["step"]) == (leg.donor.run_name, 4, 4)
    folder = f"checkpoints/step-{leg.donor.step}"
    theirs = json.loads(donor.storage.get(f"{folder}/COMMITTED"))["files"]["weights.safetensors"]["sha256"]
    assert cloned["weights_sha256"] == theirs
    assert CheckpointStore(run.storage.child("checkpoints")).newest() is not None
    job = yaml.safe_load(run.job_text() or "")
    assert job["hyperparameters"]["lr0"] == leg.values["hyperparameters.lr0"]


def test_what_cannot_change_in_training_is_no_part_of_a_population(over_data: Written) -> None:
    with pytest.raises(UserError, match="cannot change while a model trains"):
        Session.open(over_data(scheduler={"name": "population"}), source="space.yaml")


def test_a_search_whose_every_trial_fails_is_stopped_and_told(over_data: Written) -> None:
    spec = over_data(budget={"trials": 9})
    session = Session.open(spec, source="space.yaml")
    directory = SearchDirectory(open_storage(session.space.base_job.storage).child(spec.name))
    engine = session.engine(session.trials(directory), directory)
    with pytest.raises(WorkError, match="3 trials failed one after the other and none has given a result"):
        while isinstance(leg := engine.next_leg(), Leg):
            engine.complete(leg, Result(failure="there is no GPU"))
    assert len(directory.rows()) == 6


@pytest.mark.slow
def test_a_trial_that_goes_wrong_is_told_and_the_search_goes_on(over_data: Written, shards: Path) -> None:
    spec = over_data(
        parameters={"hyperparameters.lr0": {"choice": [0.01, 1e30]}}, algorithm={"name": "grid"}, budget={"trials": 2}
    )
    directory, legs = search(spec)
    ends = {row["trial"]: row["reason"] for row in directory.rows() if row["kind"] == "ended"}
    assert len(legs) == 2
    assert ends[0] == "completed"
    assert ends[1].startswith(("failed: ", "completed"))
    assert write_report(directory).best == 0


SPACES = Path(__file__).parents[2] / "search_spaces"
SMALL_TABLES = sorted(path.stem for path in SPACES.glob("table*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*SMALL_TABLES, "compound-scaling", "hyperparameters-p5", "learning-rate", "quickstart"]
)
def test_a_published_space_runs_in_the_small_to_a_report(name: str, shards: Path, tmp_path: Path) -> None:
    """Thin models on drawn images, two steps a trial: every row ends in the report beside the paper's."""
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
    if not name.startswith("table"):
        overrides += ["budget.trials=4"]
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
    if spec.paper is not None:
        assert all(entry.completed for entry in results.entries)
        assert f"<h2>{spec.paper.table}</h2>" in page
    JobSpec.parse(yaml.safe_load(directory.storage.get("best.yaml")), source="best.yaml")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objectives": [{"metric": "val_mAP", "goal": "max"}]}, "no trial reports 'val_mAP'; did you mean 'val_AP'?"),
        ({"objectives": [{"metric": "gflops", "goal": "min"}]}, "all are known without training"),
        ({"constraints": {"gflops": {"max": 1e-6}}}, "The nearest is"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_it_starts(
    over_data: Written, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        Session.open(over_data(**changes), source="space.yaml")
    assert told in str(caught.value)
