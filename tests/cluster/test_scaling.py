"""The scaling model is bounded by what a ring and an overlap can do; the forecast of a run follows from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.cluster.run_forecast import advise, forecast_run
from yolofleet.cluster.scaling import (
    Link,
    ScalingPoint,
    StepWork,
    advised_workers,
    exposed_seconds,
    ring_seconds,
    scaling_curve,
    step_seconds,
)
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.job import JobSpec
from yolofleet.training.metrics.rate import Rate

COUNTS = (1, 2, 4, 8, 16, 32, 64)
works = st.builds(
    StepWork,
    micro_batches=st.integers(1, 64),
    seconds_per_micro_batch=st.floats(0.01, 1),
    backward_seconds=st.floats(0.0, 0.01),
    seconds_once=st.floats(0, 0.1),
    gradient_bytes=st.integers(1, 10**9),
    every_micro_batch=st.booleans(),
)
links = st.builds(Link, st.floats(1e6, 1e12), st.floats(0, 1e-3))


@given(works, links)
def test_no_number_of_workers_gives_more_than_its_share(work: StepWork, link: Link) -> None:
    for point in scaling_curve(work, COUNTS, link):
        assert 0 < point.efficiency <= 1 + 1e-9
        assert point.seconds_per_step >= step_seconds(work, point.workers, None)
    assert scaling_curve(work, COUNTS, link)[0].efficiency == 1
    assert [point.workers for point in scaling_curve(work, COUNTS, link)] == [
        count for count in COUNTS if count <= work.micro_batches
    ]


@given(works, links, st.integers(2, 64), st.floats(1, 100))
def test_a_faster_link_never_slows_a_step(work: StepWork, link: Link, workers: int, faster: float) -> None:
    quick = Link(link.bytes_per_second * faster, link.latency_seconds)
    assert step_seconds(work, workers, quick) <= step_seconds(work, workers, link) * (1 + 1e-12)


@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 100))
def test_an_exchange_is_hidden_at_most_by_the_backward_pass(exchange: float, backward: float, buckets: int) -> None:
    exposed = exposed_seconds(exchange, backward, buckets)
    assert max(exchange - backward, exchange / buckets) - 1e-9 <= exposed <= exchange + 1e-9
    arrived, sent = 0.0, 0.0
    for bucket in range(1, buckets + 1):  # the same, bucket by bucket
        arrived = backward * bucket / buckets
        sent = max(sent, arrived) + exchange / buckets
    assert exposed == pytest.approx(sent - backward, abs=1e-9)


def test_a_ring_carries_twice_the_bytes_whatever_its_length() -> None:
    link = Link(1e9, 0.0)
    assert ring_seconds(1e9, 2, link) == 1.0
    assert ring_seconds(1e9, 64, link) == pytest.approx(2 * 63 / 64)
    assert ring_seconds(0, 8, Link(1e9, 1e-3)) == pytest.approx(0.014)


def test_the_most_workers_that_earn_their_cost_are_advised() -> None:
    curve = [ScalingPoint(1, 8.0, 1.0), ScalingPoint(2, 4.2, 0.95), ScalingPoint(4, 2.6, 0.77)]
    assert advised_workers(curve) == 2
    assert advised_workers(curve[2:]) == 4, "there is nothing else"


def job(**changes: Any) -> JobSpec:
    document: dict[str, Any] = {
        "name": "run", "model": {"name": "yolov7-tiny"}, "data": {"train": "t", "val": "v"}, "recipe": "tiny",
        "global_batch_size": 64, "micro_batch_size": 8, "epochs": 10,
        "cluster": {"gpus_per_worker": 2, "price_per_hour": 3.0, "workers": 4},
    }  # fmt: skip
    return JobSpec.parse(document | changes, source="job")


def forecast(spec: JobSpec, workers: int, rate: Rate | None, link: Link | None = None) -> Any:
    return forecast_run(
        spec,
        wire(resolve("yolov7-tiny")),
        num_classes=80,
        images=6400,
        validation_images=800,
        workers=workers,
        rate=rate,
        link=link,
    )


TRIAL = Rate(2.0, 1, 2, {"forward": 0.4, "backward": 0.8, "optimizer": 0.2})


def test_a_forecast_is_the_product_of_its_parts() -> None:
    found = forecast(job(), 4, TRIAL)
    assert (found.num_steps, found.seconds_per_step) == (1000, pytest.approx(2.0))
    # Ten evaluations of 800 images, in passes of 0.4 s for 16 images, shared by 4 workers.
    assert found.evaluation_hours == pytest.approx(10 * 800 * 0.4 / 16 / 4 / 3600)
    assert found.wall_hours == pytest.approx(1000 * 2.0 / 3600 + found.evaluation_hours)
    assert found.worker_hours == pytest.approx(4 * found.wall_hours)
    assert found.gpu_hours == pytest.approx(8 * found.wall_hours)
    assert found.cost == pytest.approx(12 * found.wall_hours)
    assert any("--exchange-bandwidth" in line for line in found.unknown)
    slow = forecast(job(), 4, TRIAL, Link(1e7))
    assert slow.seconds_per_step > 2.0 and not any("--exchange-bandwidth" in line for line in slow.unknown)
    eight = forecast(job(), 8, TRIAL)
    assert eight.seconds_per_step == pytest.approx(0.2 + 1.8 / 2), "the optimiser's part is not shared"


def test_what_is_not_known_is_said() -> None:
    found = forecast(job(cluster={"workers": 4}), 4, None)
    assert found.wall_hours is found.cost is found.gpu_hours is None and "--measure" in found.unknown[0]
    assert found.petaflops == pytest.approx(3 * 13.7007e9 * 64_000 / 1e15, rel=1e-4)  # tests/golden/models/counts.json
    priceless = forecast(job(cluster={"workers": 4}), 4, TRIAL)
    assert priceless.cost is None and any("price_per_hour" in line for line in priceless.unknown)
    run = forecast(job(), 4, Rate(1.5, 4, 2, {}, covers_evaluation=True))
    assert run.wall_hours == pytest.approx(1000 * 1.5 / 3600) and run.evaluation_hours is None


def test_advice_fits_the_memory_and_the_batch() -> None:
    graph = wire(resolve("yolov7-tiny"))

    def found(gigabytes: float, **changes: Any) -> Any:
        spec = job(**changes)
        return advise(
            spec, graph, num_classes=80, workers=4, rate=TRIAL, link=Link(1e12), memory_bytes=int(gigabytes * 1e9)
        )

    sizes = [found(gigabytes).micro_batch_size or 0 for gigabytes in (0.1, 2, 8, 80)]
    assert sizes == sorted(sizes) and sizes[0] == 0 and sizes[-1] == 64
    assert found(80).strategy == "ddp" and found(0.1).strategy is None
    assert found(80).workers == 8
    assert advise(job(), graph, num_classes=80, workers=4, rate=None, link=None, memory_bytes=None).workers is None
    assert found(8, memory="small").micro_batch_size > found(8).micro_batch_size
    assert found(8, precision="fp64").micro_batch_size < found(8).micro_batch_size
    assert found(8, hyperparameters={"multi_scale": 0.5}).micro_batch_size < found(8).micro_batch_size
