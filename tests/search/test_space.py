"""Points of the unit cube become candidates, and candidates become jobs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memory import bounded
from yolofleet.core.errors import UserError
from yolofleet.search.space import Space, even_point, random_point
from yolofleet.specs.search import SearchSpec

MakeSpec = Callable[..., SearchSpec]


def test_a_candidate_becomes_a_job(make_spec: MakeSpec) -> None:
    space = Space(make_spec())
    values = space.parameters.at([0.0, 0.5])
    job = space.job(values, {"name": "0001", "seed": 7})
    assert job.model.transition_width == 0.25
    assert job.resolved_hyperparameters().lr0 == pytest.approx(0.01)
    assert (job.name, job.seed, job.global_batch_size) == ("0001", 7, 8)


def test_a_choice_may_set_several_fields(make_spec: MakeSpec) -> None:
    rows = {"base": {}, "wide": {"model.transition_width": 1.0, "hyperparameters": {"lr0": 0.02}}}
    space = Space(make_spec(parameters={"variant": {"choice": rows}}))
    job = space.job({"variant": "wide"})
    assert (job.model.transition_width, job.hyperparameters["lr0"]) == (1.0, 0.02)
    assert space.job({"variant": "base"}).model.transition_width == 0.25


def test_a_parameter_may_follow_another_one_or_the_job(make_spec: MakeSpec) -> None:
    space = Space(
        make_spec(
            parameters={
                "model.depth": {"choice": [1.0, 4.0]},
                "model.hidden_width": {"follows": "model.depth", "power": 0.5, "factor": 0.5},
                "global_batch_size": {"follows": "micro_batch_size", "factor": 3},
            }
        )
    )
    job = space.job({"model.depth": 4.0})
    assert (job.model.hidden_width, job.global_batch_size) == (1.0, 12)
    assert len(space.parameters) == 1


def test_a_conditional_parameter_is_active_when_its_condition_is_met(make_spec: MakeSpec) -> None:
    space = Space(
        make_spec(
            parameters={
                "hyperparameters.schedule": {"choice": ["cosine", "linear"]},
                "hyperparameters.lrf": {"choice": [0.1, 0.2], "when": {"hyperparameters.schedule": "linear"}},
            }
        )
    )
    assert space.parameters.at([0.0, 0.9]) == {"hyperparameters.schedule": "cosine"}
    assert space.parameters.at([0.9, 0.9]) == {"hyperparameters.schedule": "linear", "hyperparameters.lrf": 0.2}
    assert len(space.parameters.grid()) == space.parameters.num_candidates == 3


def test_values_that_make_no_valid_job_are_refused_at_once(make_spec: MakeSpec) -> None:
    with pytest.raises(UserError, match=r"parameters\.epochs"):
        Space(make_spec(parameters={"epochs": {"uniform": [-2, -1]}}))
    with pytest.raises(UserError, match="base job"):
        Space(make_spec(set={"epochs": -1}))


@pytest.mark.parametrize("draw", [random_point, even_point])
def test_points_depend_on_seed_and_number_alone(draw: Callable[[int, int, int], list[float]]) -> None:
    assert draw(1, 5, 25) == draw(1, 5, 25)
    assert draw(1, 5, 25) != draw(2, 5, 25) != draw(1, 6, 25)
    points = [draw(0, number, 3) for number in range(64)]
    assert all(0 <= coordinate < 1 for point in points for coordinate in point)


def test_even_points_fill_the_cube() -> None:
    points = [even_point(3, number, 2) for number in range(64)]
    cells = {(int(x * 4), int(y * 4)) for x, y in points}
    assert len(cells) == 16


def test_a_grid_without_end_is_refused_at_once(make_spec: MakeSpec) -> None:
    endless = {"seed": {"integer": [0, 10**9]}, "epochs": {"uniform": [1, 2], "step": 1e-9}}
    parameters = Space(make_spec(parameters=endless)).parameters
    with bounded(seconds=1), pytest.raises(UserError, match=r"algorithm grid: .* combinations are more than"):
        parameters.grid()


@pytest.mark.parametrize(
    "parameter",
    [
        {"uniform": [0, 1], "step": 1e-320},
        {"integer": [0, 10**400]},
        {"log_integer": [1, 10**30]},
        {"choice": list(range(2000))},
    ],
)
def test_ranges_that_cannot_be_counted_are_refused(parameter: dict[str, object], make_spec: MakeSpec) -> None:
    with bounded(seconds=1), pytest.raises(UserError, match=r"parameters\.epochs"):
        make_spec(parameters={"epochs": parameter})
