from __future__ import annotations

from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.models import build_model
from yolofleet.models.zoo import zoo_names, zoo_table
from yolofleet.specs.job import JobSpec
from yolofleet.training.setup.builders import build_loss, trained_table


def job(name: str, **changes: Any) -> JobSpec:
    document = {"name": "run", "model": {"name": name}, "data": {"train": "a", "val": "b"}}
    return JobSpec.parse(document | changes, source="job.yaml")


@pytest.mark.parametrize(("name", "expected"), [("yolov7-w6", "coarse_to_fine"), ("yolov7-tiny", "none")])
def test_the_assigner_is_the_published_one_by_default(name: str, expected: str) -> None:
    chosen = job(name, model={"name": name, "transition_width": 0.05, "hidden_width": 0.05})
    model = build_model(trained_table(chosen), num_classes=2)
    loss = build_loss(model, chosen.resolved_hyperparameters(), 64, chosen.assignment)
    assert loss.assigner == expected


def test_every_setting_reaches_the_loss() -> None:
    assignment = {
        "assigner": "coarse_to_fine",
        "matching": "fixed",
        "constraint": True,
        "auxiliary_weight": 0.5,
        "relaxation": 0.75,
    }
    chosen = job("yolov7-w6", assignment=assignment)
    narrow = chosen.model_copy(
        update={"model": chosen.model.model_copy(update={"transition_width": 0.05, "hidden_width": 0.05})}
    )
    model = build_model(trained_table(narrow), num_classes=2)
    loss = build_loss(model, narrow.resolved_hyperparameters(), 64, narrow.assignment)
    assert (loss.assigner, loss.label_assigner.matching) == ("coarse_to_fine", "fixed")
    assert (loss.constraint, loss.auxiliary_weight, loss.label_assigner.relaxation) == (True, 0.5, 0.75)


def test_without_assigner_the_auxiliary_heads_are_not_built() -> None:
    table = trained_table(job("yolov7-w6", assignment={"assigner": "none"}))
    assert table == zoo_table("yolov7-w6").model_copy(update={"auxiliary": None})


@pytest.mark.parametrize("name", zoo_names())
def test_the_default_trains_the_model_as_its_table_says(name: str) -> None:
    assert trained_table(job(name)) == zoo_table(name)


@pytest.mark.parametrize("assigner", ["independent", "lead", "coarse_to_fine"])
def test_an_assigner_without_auxiliary_heads_is_refused_with_the_models_that_have_them(assigner: str) -> None:
    with pytest.raises(UserError, match=f"{assigner} needs auxiliary heads, and yolov7-tiny has none.*yolov7-w6"):
        trained_table(job("yolov7-tiny", assignment={"assigner": assigner}))
    without = {"name": "yolov7-w6", "auxiliary": "none"}
    with pytest.raises(UserError, match=r"model\.auxiliary is none"):
        trained_table(job("yolov7-w6", model=without, assignment={"assigner": assigner}))


@pytest.mark.parametrize(("name", "assigner"), [("yolov7-w6", "lead"), ("yolov7-w6", "none"), ("yolov7-tiny", None)])
def test_a_constraint_without_coarse_set_is_refused(name: str, assigner: str | None) -> None:
    assignment = {"constraint": True} | ({} if assigner is None else {"assigner": assigner})
    with pytest.raises(UserError, match="no coarse set"):
        trained_table(job(name, assignment=assignment))
