"""What a space says, and what is said to a user who got it wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.errors import UserError
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search import SearchSpec, load_search

SPACE: dict[str, Any] = {
    "name": "small",
    "job": {"name": "base", "model": {"name": "yolov7-tiny"}, "data": {"train": "train", "val": "val"}},
    "parameters": {"model.depth": {"uniform": [0.5, 2.0]}, "recipe": {"choice": ["p5", "tiny"]}},
    "budget": {"trials": 4},
}

KINDS = [
    Parameter(choice=["a", 2, None]),
    Parameter(choice={"one": {"model.depth": 1.0}, "two": {"model.depth": 2.0}}),
    Parameter(uniform=(0.5, 2.0)),
    Parameter(uniform=(0.5, 2.0), step=0.1),
    Parameter(log_uniform=(1e-4, 0.3)),
    Parameter(integer=(320, 1280), step=64),
    Parameter(integer=(1, 7)),
    Parameter(log_integer=(1, 500)),
    Parameter(uniform=(1.0, 1.0)),
]


@pytest.mark.parametrize("parameter", KINDS, ids=lambda parameter: parameter.kind)
@given(coordinate=st.floats(0, 1, exclude_max=True))
def test_a_coordinate_and_its_value_belong_together(parameter: Parameter, coordinate: float) -> None:
    value = parameter.at(coordinate)
    assert 0 <= parameter.coordinate(value) <= 1
    again = parameter.at(min(parameter.coordinate(value), 1 - 1e-12))
    assert again == (pytest.approx(value) if isinstance(value, float) else value)
    if parameter.num_values is not None:
        assert value in parameter.values()
    elif isinstance(value, float):
        assert parameter.range[0] <= value <= parameter.range[1]


def test_quantised_values_are_plain_numbers() -> None:
    assert Parameter(uniform=(0.1, 0.5), step=0.1).values() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert Parameter(integer=(320, 500), step=64).values() == [320, 384, 448]


def wrong(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        SearchSpec.parse(copy.deepcopy(SPACE) | changes, source="space.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"model.dept": {"uniform": [1, 2]}}}, "no field 'model.dept'; did you mean 'model.depth'?"),
        ({"parameters": {"lr0": {"uniform": [1, 2]}}}, "did you mean 'hyperparameters.lr0'?"),
        ({"parameters": {"model.depth": {"choice": []}}}, "choice is empty"),
        ({"parameters": {"model.depth": {"uniform": [2, 1]}}}, "uniform [2, 1]: the first is the lowest"),
        ({"parameters": {"model.depth": {"log_uniform": [0, 1]}}}, "both must be above 0"),
        ({"parameters": {"model.depth": {}}}, "exactly one of"),
        ({"parameters": {"model.depth": {"uniform": [1, 2], "choice": [1]}}}, "choice and uniform"),
        ({"parameters": {"storage": {"choice": ["a"]}}}, "does not change what is computed"),
        ({"set": {"name": "a"}}, "given to each trial by the search"),
        ({"parameters": {}}, "parameters"),
        ({"parameters": {"v": {"choice": {"x": {"model.dpth": 1}}}}}, "did you mean 'model.depth'?"),
        ({"constraints": {"gflop": {"max": 1}}}, "did you mean 'gflops'"),
        ({"constraints": {"gflops": {}}}, "needs max, min, or both"),
        ({"constraints": {"latency_milliseconds": {"max": 5}}}, "latency_device"),
        ({"algorithm": {"name": "grid"}}, "a grid has no end; give a step"),
        ({"algorithm": {"name": "tpee"}}, "did you mean 'tpe'?"),
        ({"budget": {}}, "needs trials, gpu_hours or wall_hours"),
        ({"format": 99}, "format 99 is newer"),
        ({"trails": 3}, "unknown key"),
        (
            {"parameters": {"model.depth": {"uniform": [1, 2], "when": {"recipe": "p5"}}}},
            "'recipe' is no parameter of this space",
        ),
    ],
)
def test_a_wrong_space_is_refused_with_its_cure(changes: dict[str, Any], message: str) -> None:
    assert message in wrong(**changes)


def test_overrides_reach_the_job_the_parameters_and_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SPACE["job"]))
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE | {"job": "base.yaml", "set": {"model.depth": 1.5}}))
    spec = load_search(
        path,
        [
            "job.data.image_size=320",
            "job.model.depth=2.0",
            "parameters.model.depth.choice=[1.0, 1.5]",
            "parameters.hyperparameters.lr0={log_uniform: [1e-3, 1e-2]}",
            "budget.trials=9",
            "algorithm.name=grid",
            "parameters.hyperparameters.lr0.choice=[0.01]",
        ],
    )
    assert spec.job["name"] == "base"
    assert spec.set == {"data.image_size": 320, "model.depth": 2.0}
    assert spec.parameters["model.depth"].choice == [1.0, 1.5]
    assert spec.parameters["hyperparameters.lr0"].choice == [0.01]
    assert (spec.budget.trials, spec.algorithm.name) == (9, "grid")


def test_a_job_in_place_of_a_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(SPACE["job"]))
    with pytest.raises(UserError, match="is a job, not a search space; train it with"):
        load_search(path)


def test_sizes_may_carry_units() -> None:
    spec = SearchSpec.parse(SPACE | {"constraints": {"activation_bytes": {"max": "8GB"}}}, source="space.yaml")
    assert spec.constraints["activation_bytes"].max == 8e9
