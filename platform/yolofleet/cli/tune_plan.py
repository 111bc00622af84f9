"""What a search will do, shown before it starts."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from yolofleet.search.session import Session
    from yolofleet.training.capacity import NodeOffer

MOST_MEASURED_GFLOPS = 400.0
"""A step that costs more than this is not run here to measure the speed."""
CANDIDATES_SHOWN = 8
POINTS = 64


def show_plan(session: Session, *, as_json: bool) -> None:
    """Print the plan: on stderr for people, on stdout as JSON."""
    from yolofleet.search.feasibility import profile_job
    from yolofleet.search.forecast import forecast, sentences
    from yolofleet.search.samples import even_point

    spec, parameters = session.spec, session.space.parameters
    job = session.space.base_job
    points = [even_point(spec.seed, index, len(parameters)) for index in range(POINTS)]
    values = [parameters.at(point) for point in points]
    if spec.algorithm.name == "grid":
        values = parameters.grid()
    cheap = session.screen.without_latency()
    screened = [cheap(entry) for entry in values]
    base = profile_job(job, len(session.train.classes))
    found = forecast(
        spec,
        job,
        screened,
        num_candidates=parameters.num_candidates,
        samples_per_second=spec.samples_per_second or measured_speed(session, base["gflops_training"]),
        base_gflops=base["gflops_training"],
        at_a_time=spec.concurrency or _places_here(session),
    )
    if as_json:
        candidates = [
            {"values": entry, "figures": known.figures, "violations": known.violations, "problem": known.problem}
            for entry, known in zip(values, screened, strict=True)
        ]
        typer.echo(json.dumps({"forecast": asdict(found), "candidates": candidates}, indent=1))
        return
    typer.echo(f"search {spec.name}:", err=True)
    for line in sentences(found, spec):
        typer.echo(f"  {line}", err=True)
    if spec.algorithm.name == "grid":
        for entry, known in list(zip(values, screened, strict=True))[:CANDIDATES_SHOWN]:
            shown = ", ".join(f"{name}={value}" for name, value in entry.items())
            cost = (
                f"{known.figures['parameters'] / 1e6:.1f} M, {known.figures['gflops']:.1f} G" if known.figures else ""
            )
            typer.echo(f"    {shown}: {cost or known.problem}{'' if known.feasible else ' (refused)'}", err=True)
        if len(values) > CANDIDATES_SHOWN:
            typer.echo(f"    and {len(values) - CANDIDATES_SHOWN} more (--plan --json lists all)", err=True)


def measured_speed(session: Session, gflops: float) -> float | None:
    """Return images a second of the base job's training step on one core here; None where that says nothing.

    It is measured only for jobs that train on CPUs of this machine and whose step takes seconds at most.
    """
    job = session.space.base_job
    if (
        job.cluster.gpus_per_worker
        or os.environ.get("RAY_ADDRESS")
        or gflops * job.micro_batch_size > MOST_MEASURED_GFLOPS
    ):
        return None
    import torch

    from yolofleet.models import build_model

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    try:
        model = build_model(job.model, num_classes=len(session.train.classes)).train()
        side = job.data.image_size
        images = torch.rand(min(job.micro_batch_size, 4), 3, side, side)
        seconds = 0.0
        for _ in range(2):  # the first pays for what only the first call needs
            begin = time.perf_counter()
            sum(level.float().mean() for level in model(images)).backward()
            seconds = time.perf_counter() - begin
        return len(images) / max(seconds, 1e-6)
    finally:
        torch.set_num_threads(before)


def check_room_here(session: Session) -> None:
    """Refuse what this machine can never run, before Ray is started for it; a cluster is asked once it is connected.

    Raises:
        UserError: A trial does not fit, or not as many as are asked for.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    from yolofleet.search.controller import concurrency
    from yolofleet.training.capacity import has_room, num_places

    cluster, here = session.space.base_job.cluster, _this_machine()
    has_room(cluster, [here])
    concurrency(session.spec, cluster, num_places(cluster, [here]), described="this machine")


def _places_here(session: Session) -> int | None:
    """Return how many trials run at a time on this machine; None where a cluster decides."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    from yolofleet.training.capacity import num_places

    cluster = session.space.base_job.cluster
    return max(num_places(cluster, [_this_machine()]) // cluster.most_workers, 1)


def _this_machine() -> NodeOffer:
    import torch

    from yolofleet.training.capacity import NodeOffer

    return NodeOffer({"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}, name="this machine")
