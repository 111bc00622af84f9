from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory import bounded
from yolofleet.core.errors import UserError
from yolofleet.specs.hyperparameters import Hyperparameters, merged, recipe
from yolofleet.specs.job import CheckpointSpec, JobSpec

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))
MINIMAL: dict[str, Any] = {"name": "run", "model": {"name": "yolov7-tiny"}, "data": {"train": "a", "val": "b"}}


def parse(**changes: Any) -> JobSpec:
    return JobSpec.parse(MINIMAL | changes, source="job.yaml")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_of_the_project_is_valid(path: Path) -> None:
    job = JobSpec.load(path)
    assert JobSpec.parse(job.document(), source="again") == job


def test_there_are_jobs() -> None:
    assert JOBS


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"micro_batchsize": 16}, ["micro_batchsize", "unknown key", "did you mean 'micro_batch_size'", "16"]),
        ({"data": {"train": "a", "val": "b", "imagesize": 1}}, ["data.imagesize", "did you mean 'image_size'"]),
        ({"Epochs": 3}, ["Epochs: unknown key", "did you mean 'epochs'"]),
        ({"a[[": 3}, ["a[[: unknown key"]),
        ({"epochs": "many"}, ["epochs", '"many"']),
        ({"recipe": "p7"}, ["recipe", '"p7"', "p5", "did you mean"]),
        (
            {"storage": "s3://runs", "tracking": {"register_as": "shapes"}},
            ["tracking.register_as is shapes", "s3://runs", "set tracking.uri", "tracking.register_as=null"],
        ),
        ({"global_batch_size": 60}, ["60", "micro_batch_size 16", "48 or 64"]),
        ({"cluster": {"workers": 8}}, ["8 workers", "4 micro-batches"]),
        ({"cluster": {"workers": [3, 2]}}, ["workers", "fewest"]),
        ({"cluster": {"workers": 0}}, ["cluster.workers", "0"]),
        ({"hyperparameters": {"lr": 0.1}}, ["hyperparameters", "lr", "unknown key"]),
        ({"hyperparameters": {"lr0": -1}}, ["hyperparameters", "lr0", "-1"]),
        ({"name": "../up"}, ["name", "../up"]),
        ({"format": 99}, ["format 99", "upgrade"]),
        ({"data": {"train": "a", "val": "b", "cache": {"path": "c", "max_bytes": "many"}}}, ["'many' is not a size"]),
        (
            {"assignment": {"assigner": "coarse"}},
            ["assignment.assigner", "did you mean 'coarse_to_fine'?"],
        ),
        ({"assignment": {"relaxation": 1.5}}, ["assignment.relaxation", "1.5"]),
        ({"assignment": {"aux_weight": 1.0}}, ["assignment.aux_weight", "did you mean 'auxiliary_weight'"]),
        ({"model": {"name": "a", "spec": "b"}}, ["model", "one of the two"]),
    ],
)
def test_errors_name_file_key_value_and_cure(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(**changes)
    message = str(caught.value)
    assert message.startswith("job.yaml: ")
    for part in parts:
        assert part in message


def test_all_problems_are_in_one_message() -> None:
    with pytest.raises(UserError) as caught:
        parse(epochs="x", seed=-1, recipe="p9")
    assert len(str(caught.value).splitlines()) == 3


def test_sizes_may_carry_units() -> None:
    job = parse(data={"train": "a", "val": "b", "cache": {"path": "c", "max_bytes": "1.5GB"}})
    assert job.data.cache is not None
    assert job.data.cache.max_bytes == 1_500_000_000


def test_recipes_differ_where_the_published_ones_do() -> None:
    p5, p6, tiny = recipe("p5"), recipe("p6"), recipe("tiny")
    assert (p5.lrf, p6.lrf, tiny.lrf) == (0.1, 0.2, 0.01)
    assert (p5.cls, tiny.cls, p5.obj, tiny.obj) == (0.3, 0.5, 0.7, 1.0)
    assert (p5.scale, tiny.scale, p5.mixup, tiny.mixup) == (0.9, 0.5, 0.15, 0.05)
    for values in (p5, p6, tiny):
        assert (values.lr0, values.momentum, values.weight_decay, values.box) == (0.01, 0.937, 0.0005, 0.05)


def test_every_hyperparameter_is_documented() -> None:
    assert [name for name, field in Hyperparameters.model_fields.items() if not field.description] == []


@given(st.sampled_from(["p5", "p6", "tiny"]), st.floats(1e-5, 1.0))
def test_an_override_changes_its_value_only(name: Any, lr0: float) -> None:
    assert merged(name, {"lr0": lr0}) == recipe(name).model_copy(update={"lr0": lr0})


def test_identity_is_what_is_computed_not_how() -> None:
    moved = {"train": "/elsewhere/a", "val": "/elsewhere/b", "loader": "processes", "loader_threads": 7}
    moved["augment_on"] = "device"
    assert parse().digest() == parse(storage="elsewhere", cluster={"workers": 2}, data=moved).digest()
    assert parse().digest() != parse(seed=1).digest()


# A run's identity must not change under it: this is what the first released version wrote for the minimal job.
MINIMAL_DIGEST = "c540780d518ffb3590f1276f06b5997bee12698b2630f2d9994c7364046bbb00"


def test_later_settings_at_their_default_leave_earlier_runs_their_identity() -> None:
    assert parse().digest() == MINIMAL_DIGEST
    assert parse(assignment={"matching": "fixed"}).digest() != MINIMAL_DIGEST
    assert parse(assignment={"assigner": "none"}).digest() != MINIMAL_DIGEST
    assert parse(evaluation={"protocol": "square"}).digest() == MINIMAL_DIGEST
    assert parse(evaluation={"protocol": "published"}).digest() != MINIMAL_DIGEST


@pytest.mark.parametrize("every_steps", [1, 2, 3, 20, 501])
def test_two_periods_of_checkpoints_are_no_more_than_a_failure_may_cost(every_steps: int) -> None:
    period = CheckpointSpec(every_steps=every_steps).period_steps
    assert period >= 1
    assert 2 * period <= every_steps or every_steps == 1  # then training waits for each


@pytest.mark.parametrize("workers", [10**9, 10**30, [1, 10**9], [1, 10_000], 10_000, [9_999, 10_000]])
@pytest.mark.parametrize("batch", [10**9, 2**20, 64])
@pytest.mark.parametrize("strategy", ["zero2", "ddp"])
def test_no_number_of_workers_takes_time_or_memory(workers: Any, batch: int, strategy: str) -> None:
    """Nothing counts up to a number that was read."""
    with bounded(seconds=1), contextlib.suppress(UserError):
        parse(strategy=strategy, global_batch_size=batch, micro_batch_size=1, cluster={"workers": workers})


def test_the_bound_on_workers_names_key_value_and_bound() -> None:
    with pytest.raises(UserError, match=r"job\.yaml: cluster\.workers: .*equal to 10000, not 1000000000"):
        parse(strategy="zero2", cluster={"workers": 10**9})


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"initial_weights": "https://host.example/v7.pt"}, "can change; give initial_weights_sha256=DIGEST"),
        (
            {"initial_weights": "http://host.example/v7.pt", "initial_weights_sha256": "0" * 64},
            "files are only fetched from https://",
        ),
        ({"initial_weights_sha256": "0" * 64}, "is of a file, and there is none"),
        ({"initial_weights": "v7.pt", "initial_weights_sha256": "0" * 63}, "initial_weights_sha256"),
        (
            {"initial_weights": "https://me:secret@host.example/v7.pt", "initial_weights_sha256": "0" * 64},
            "holds a secret",
        ),
    ],
)
def test_weights_behind_a_url_need_https_and_a_digest(changes: dict[str, str], part: str) -> None:
    with pytest.raises(UserError, match=part) as refused:
        parse(**changes)
    assert "secret@" not in str(refused.value)


def test_neither_the_address_nor_the_digest_of_initial_weights_is_part_of_what_is_computed() -> None:
    digests = {
        parse(initial_weights="v7.pt").digest(),
        parse(initial_weights="https://host.example/v7.pt", initial_weights_sha256="A" * 64).digest(),
    }
    assert len(digests) == 1 and parse().digest() not in digests
