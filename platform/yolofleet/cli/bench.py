"""``yolofleet bench`` and ``yolofleet train --measure``: how long the steps of a job take on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JobArgument, JsonOption, Overrides, print_result
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.specs.job import JobSpec
    from yolofleet.training.metrics.rate import Rate


def bench(
    job: JobArgument,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=20, help="Steps to train; the first ten are for warm-up.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """Measure each stage of a training step, and compare it with the least time that this device needs.

    It trains a few steps in a temporary folder and leaves nothing behind.
    """
    from yolofleet.models.wiring import wire
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage import open_file
    from yolofleet.training.loop.update import FORWARD
    from yolofleet.training.metrics.floors import measure_ceilings, stage_floors
    from yolofleet.training.setup.builders import open_dataset, trained_table
    from yolofleet.training.setup.worker_cpus import with_cpus
    from yolofleet.training.supervision.worker import local_device, use_worker_threads

    spec = with_cpus(JobSpec.load(open_file(job), overrides or []).with_absolute_paths())
    rate = _measure(spec, steps)
    import torch

    device = local_device(spec)
    use_worker_threads(spec, device)
    ceilings = measure_ceilings(device, FORWARD[spec.precision] or torch.float32)
    floors = stage_floors(
        wire(trained_table(spec)),
        ceilings,
        num_classes=len(open_dataset(spec.data, spec.data.train).classes),
        image_size=spec.data.image_size,
        micro_batch_size=spec.resolved_micro_batch_size,
        micro_batches=rate.micro_batches,
        precision=spec.precision,
        moments=1 if spec.resolved_hyperparameters().optimizer == "sgd" else 2,
    )
    document = rate.document() | {
        "floors": floors,
        "ceilings": {
            "teraflops_per_second": ceilings.product_flops / 1e12,
            "copy_bytes_per_second": ceilings.copy_bytes,
        },
    }
    print_result(document, _bench_lines(rate, floors, document["ceilings"]), as_json=as_json)


def print_rate(spec: JobSpec, source: str, *, as_json: bool) -> None:
    """Measure a job's rate, and print it as a file that `yolofleet cluster plan --rate` reads, or for people."""
    from yolofleet.training.setup.worker_cpus import with_cpus

    rate = _measure(with_cpus(spec), None)
    plan = f"plan the run: yolofleet cluster plan {source} --rate {rate.seconds_per_step:.4g}"
    print_result(rate.document(), [*_rate_lines(rate), plan], as_json=as_json)


def _measure(spec: JobSpec, steps: int | None) -> Rate:
    from yolofleet.training.metrics.rate import TRIAL_STEPS, busiest_share, measure_rate

    share = busiest_share(spec, spec.cluster.most_workers)
    images = plural(spec.resolved_micro_batch_size, "image")
    note(f"trial of {plural(steps or TRIAL_STEPS, 'step')} of {share} x {images}, in a temporary folder")
    return measure_rate(spec, steps or TRIAL_STEPS)


def _rate_lines(rate: Rate) -> Iterator[str]:
    yield f"{rate.seconds_per_step:.4g} s a step on {rate.device}, over {plural(rate.steps, 'step')} of one worker"
    size = plural(rate.measures["micro_batch_size"], "image")
    yield f"  {plural(rate.micro_batches, 'micro-batch')} of {size}, without an exchange"
    for stage, seconds in sorted(rate.stages.items(), key=lambda item: -item[1]):
        yield f"  {stage.replace('_', ' '):<12}{seconds * 1e3:>10.2f} ms{seconds / rate.seconds_per_step:>8.1%}"
    if rate.flops_utilization is not None:
        yield f"  {rate.flops_utilization:.1%} of the device's peak"


def _bench_lines(rate: Rate, floors: Mapping[str, float], ceilings: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{rate.device}: a matrix product does {ceilings['teraflops_per_second']:.3g} TFLOP/s, a copy "
        f"{ceilings['copy_bytes_per_second'] / 1e9:.3g} GB/s"
    )
    yield f"{'stage':<12}{'measured':>12}{'floor':>12}{'times':>9}{'share':>8}"
    rows = [(stage, rate.stages.get(stage, 0.0), floors[stage]) for stage in floors]
    rows.append(("other", rate.seconds_per_step - sum(seconds for _, seconds, _ in rows), 0.0))
    rows.append(("step", rate.seconds_per_step, sum(floors.values())))
    for stage, seconds, floor in rows:
        times = f"{seconds / floor:.1f}" if floor > 0 else "-"
        yield (
            f"{stage.replace('_', ' '):<12}{seconds * 1e3:>9.2f} ms{floor * 1e3:>9.2f} ms{times:>9}"
            f"{seconds / rate.seconds_per_step:>8.1%}"
        )
