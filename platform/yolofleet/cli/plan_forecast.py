"""The forecast of one run in a plan: the rate that it is made from, what the run takes, and what is advised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolofleet.cli.options import parse_byte_option
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.specs.job import JobSpec
    from yolofleet.training.metrics.rate import Rate


def read_rate(job: JobSpec, given: str | None, like: str | None, workers: int) -> Rate | None:
    """Return the rate that the options name; a bare number is that of the planned workers.

    Raises:
        UserError: It cannot be read, or was measured for other work.
    """
    from yolofleet.core.errors import UserError
    from yolofleet.storage import open_storage
    from yolofleet.tracking.run_directory import RunDirectory
    from yolofleet.training.metrics.rate import Rate, busiest_share, parse_rate, rate_of_run

    if given is not None and like is not None:
        raise UserError("--rate and --like: give one of them")
    if like is not None:
        found, source = rate_of_run(RunDirectory(open_storage(like))), f"--like {like}"
    elif given is None:
        return None
    else:
        source = f"--rate {given}"
        try:
            seconds = float(given)
        except ValueError:
            try:
                found = parse_rate(Path(given).read_text(), source)
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{source}: is neither a number of seconds nor a file that can be read: {error}"
                ) from None
        else:
            if not 0 < seconds < 1e6:
                raise UserError(f"{source}: seconds a step are a number above 0, as 0.25")
            found = Rate(seconds, workers, busiest_share(job, workers))
    found.check_fits(job, source)
    return found


def forecast_facts(
    job: JobSpec,
    dataset: ShardDataset,
    validation_images: int,
    workers: int,
    rate: Rate | None,
    exchange_bandwidth: str | None,
    device_memory: str | None,
) -> dict[str, Any]:
    """Return what the run will take, and what is advised."""
    from yolofleet.cluster.run_forecast import advise, forecast_run
    from yolofleet.cluster.scaling import Link
    from yolofleet.models.wiring import wire
    from yolofleet.training.setup.builders import trained_table

    link = None
    if exchange_bandwidth is not None:
        link = Link(parse_byte_option(exchange_bandwidth.removesuffix("/s"), "--exchange-bandwidth"))
    memory = None if device_memory is None else parse_byte_option(device_memory, "--device-memory")
    graph, num_classes = wire(trained_table(job)), len(dataset.classes)
    forecast = forecast_run(
        job,
        graph,
        num_classes=num_classes,
        images=len(dataset),
        validation_images=validation_images,
        workers=workers,
        rate=rate,
        link=link,
    )
    advice = advise(job, graph, num_classes=num_classes, workers=workers, rate=rate, link=link, memory_bytes=memory)
    price = job.cluster.price_per_hour
    curve = [
        asdict(point)
        | {
            "training_hours": forecast.num_steps * point.seconds_per_step / 3600,
            "training_cost": None if price is None else forecast.num_steps * point.worker_seconds / 3600 * price,
        }
        for point in advice.curve
    ]
    return {"forecast": asdict(forecast), "advice": asdict(advice) | {"curve": curve, "memory_bytes": memory}}


def forecast_lines(forecast: dict[str, Any], advice: dict[str, Any]) -> Iterator[str]:
    """Yield the forecast and the advice for people."""
    yield f"the run: {plural(forecast['num_steps'], 'step')}, {forecast['petaflops']:.3g} PFLOP of training"
    if forecast["wall_hours"] is not None:
        cost = "" if forecast["cost"] is None else f", cost {forecast['cost']:.2f}"
        gpus = f", {forecast['gpu_hours']:.2f} GPU hours" if forecast["gpu_hours"] else ""
        yield (
            f"  {forecast['wall_hours']:.2f} hours with {plural(forecast['workers'], 'worker')} at "
            f"{forecast['seconds_per_step']:.4g} s a step: {forecast['worker_hours']:.2f} worker hours{gpus}{cost}"
        )
        if forecast["evaluation_hours"]:
            yield f"  of that {forecast['evaluation_hours']:.2f} hours for the passes of its evaluations"
    yield from (f"  not known: {line}" for line in forecast["unknown"])
    if advice["curve"]:
        yield f"{'workers':>9}{'s a step':>12}{'efficiency':>12}{'hours':>10}{'cost':>12}"
        for point in advice["curve"]:
            cost = "-" if point["training_cost"] is None else f"{point['training_cost']:.2f}"
            yield (
                f"{point['workers']:>9}{point['seconds_per_step']:>12.4g}{point['efficiency']:>12.0%}"
                f"{point['training_hours']:>10.2f}{cost:>12}"
            )
        yield f"advice: up to {plural(advice['workers'], 'worker')}; with more, over a fifth of their cost is wasted"
    if advice["memory_bytes"] is not None:
        room = format_bytes(advice["memory_bytes"])
        if advice["micro_batch_size"] is not None:
            yield (
                f"advice: micro_batch_size up to {advice['micro_batch_size']} fits {room} by the forecast; another "
                f"size changes what is computed (batch norm), so it needs another run name"
            )
        yield (
            f"advice: strategy {advice['strategy']} fits {room} with this micro-batch"
            if advice["strategy"] is not None
            else f"advice: no strategy fits {room} with this micro-batch; lower micro_batch_size, or use precision bf16"
        )
