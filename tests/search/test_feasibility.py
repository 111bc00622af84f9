"""Figures of candidates before anything trains, and the limits that refuse them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from yolofleet.core.errors import UserError
from yolofleet.models.profile import profile
from yolofleet.models.zoo import resolve
from yolofleet.search.feasibility import Screen, check_feasible
from yolofleet.search.space import Space, even_point
from yolofleet.specs.search import SearchSpec

MakeSpec = Callable[..., SearchSpec]


def test_figures_are_those_of_the_profile(make_spec: MakeSpec) -> None:
    space = Space(make_spec())
    values = space.parameters.at([1.0 - 1e-9, 0.5])
    screened = Screen(space, num_classes=3, num_samples=80)(values)
    job = space.job(values)
    expected = profile(resolve(job.model), num_classes=3, image_size=64)
    assert screened.feasible
    assert screened.figures["parameters"] == expected.parameters_deployed
    assert screened.figures["gflops"] == pytest.approx(expected.gflops_deployed, abs=1e-4)
    # 3 passes x 20 steps x 8 images
    assert screened.figures["training_petaflops"] == pytest.approx(3 * 20 * 8 * expected.gflops * 1e9 / 1e15, rel=1e-3)


def test_a_broken_limit_is_reported_as_a_share_of_it(make_spec: MakeSpec) -> None:
    space = Space(make_spec(constraints={"parameters": {"max": 1000.0}}))
    screened = Screen(space)(space.parameters.at([0.5, 0.5]))
    assert screened.violations["parameters"] == pytest.approx(screened.figures["parameters"] / 1000 - 1)


def test_a_candidate_that_cannot_be_built_is_refused_with_its_reason(make_spec: MakeSpec) -> None:
    space = Space(make_spec(parameters={"data.image_size": {"choice": [64, 72]}}))
    screen = Screen(space)
    assert screen({"data.image_size": 64}).feasible
    refused = screen({"data.image_size": 72})
    assert not refused.feasible
    assert "multiple of its largest stride" in str(refused.problem)


def test_limits_that_nothing_meets_are_refused_with_the_nearest_candidate(make_spec: MakeSpec) -> None:
    space = Space(make_spec(constraints={"parameters": {"max": 1000.0}}))
    points = [even_point(0, number, 2) for number in range(50)]
    with pytest.raises(UserError, match=r"none of 50 .* The nearest is model.transition_width=0.25"):
        check_feasible(space.parameters, Screen(space), points, source="space.yaml")


def test_latency_is_measured_only_for_what_meets_the_other_limits(make_spec: MakeSpec) -> None:
    asked = []

    def measure(job: object, num_classes: int) -> float:
        asked.append(job)
        return 5.0

    space = Space(
        make_spec(
            constraints={"parameters": {"max": 500_000.0}, "latency_milliseconds": {"max": 4.0}}, latency_device="cpu"
        )
    )
    screen = Screen(space, measure_latency=measure)
    small, large = space.parameters.at([0.0, 0.5]), space.parameters.at([0.99, 0.5])
    assert set(screen(large).violations) == {"parameters"}
    assert not asked
    assert screen(small).violations == {"latency_milliseconds": pytest.approx(0.25)}
    screen(space.parameters.at([0.0, 0.9]))  # another learning rate, the same model
    assert len(asked) == 1
