"""``yolofleet cluster plan``: what a job needs of each node, how long it will take and what it will cost.

Nothing is downloaded but the manifests, and no cluster is needed. Time and cost come from a rate that was measured: a
plan without one says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JobArgument, JsonOption, Overrides, parse_byte_option, print_result
from yolofleet.cli.plan_forecast import forecast_facts, forecast_lines, read_rate
from yolofleet.cli.progress import show_progress
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.specs.job import JobSpec


def plan(
    job: JobArgument,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes; each has its own shard cache.")] = 1,
    then_nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Number of nodes from the second epoch on, to see what a change downloads."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers on all nodes together. Default: the largest number of the job.")
    ] = None,
    bandwidth: Annotated[str, typer.Option(help="Download speed of one node, per second.")] = "100MB",
    store_bandwidth: Annotated[
        str | None,
        typer.Option(help="Speed of the object store for all nodes together, per second. Default: no limit."),
    ] = None,
    steps_per_second: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1e6,
            help="Steps per second without waiting for data. Default: that of the rate, otherwise 1.",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Seconds per step with these workers, or the file of 'train JOB --measure --json'."),
    ] = None,
    like: Annotated[str | None, typer.Option(help="Take the rate of this run (STORAGE/NAME).")] = None,
    exchange_bandwidth: Annotated[
        str | None,
        typer.Option(help="Bytes per second of an all-reduce between the workers, as 'cluster doctor' measures it."),
    ] = None,
    device_memory: Annotated[
        str | None, typer.Option(help="Memory of a worker's GPU, such as 80GB, to advise on batch and strategy.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to plan.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Show what training needs on every node, and forecast hours, GPU hours and cost from a measured speed.

    It only downloads the manifests, and needs no cluster.
    """
    import numpy as np

    from yolofleet.core.errors import UserError
    from yolofleet.data.plan import StoreLimits, plan_epochs
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage import open_file
    from yolofleet.training.setup.builders import chosen_deal, open_dataset

    spec = JobSpec.load(open_file(job), overrides or [])
    speed = parse_byte_option(bandwidth.removesuffix("/s"), "--bandwidth")
    store = StoreLimits()
    if store_bandwidth is not None:
        store = StoreLimits(parse_byte_option(store_bandwidth.removesuffix("/s"), "--store-bandwidth"))
    dataset = open_dataset(spec.data, spec.data.train)
    validation = open_dataset(spec.data, spec.data.val)
    if not len(dataset):
        raise UserError(f"{spec.data.train}: the dataset is empty; there is nothing to plan")
    shards = dataset.manifest.shards
    cache_bytes = dataset.cache_settings.max_bytes
    largest = max(shards, key=lambda entry: entry.bytes)
    if largest.bytes > cache_bytes:
        raise UserError(
            f"data.cache.max_bytes is {cache_bytes:,}, but shard {largest.name} of {spec.data.train} alone has "
            f"{plural(largest.bytes, 'byte')}; allow more, or build smaller shards"
        )
    num_workers = workers or max(nodes, spec.cluster.most_workers)
    known = read_rate(spec, rate, like, num_workers)
    if steps_per_second is None:
        steps_per_second = 1.0 if known is None else 1 / known.seconds_per_step
    node_of_lane = [_node_of_lane(spec, num_workers, nodes)]
    if then_nodes is not None:
        node_of_lane.append(_node_of_lane(spec, max(then_nodes, num_workers * then_nodes // nodes), then_nodes))
    deal = chosen_deal(spec.data, dataset)
    with show_progress("planning", epochs * len(dataset)) as advance:
        epoch_plan = plan_epochs(
            dataset.shard_sizes,
            np.array([entry.bytes for entry in shards], dtype=np.int64),
            node_of_lane=node_of_lane,
            micro_batch_size=spec.resolved_micro_batch_size,
            cache_bytes=cache_bytes,
            bytes_per_second=speed,
            steps_per_second=steps_per_second,
            store=store,
            deal=deal,
            seed=spec.seed,
            num_epochs=epochs,
            progress=advance,
        )
    facts: dict[str, Any] = {
        "job": spec.name,
        "train": spec.data.train,
        "is_remote": dataset.is_remote,
        "images": len(dataset),
        "shards": len(shards),
        "dataset_bytes": sum(entry.bytes for entry in shards),
        "validation_bytes": sum(entry.bytes for entry in validation.manifest.shards),
        "cache_bytes": cache_bytes,
        "working_bytes": epoch_plan.working_bytes,
        "deal": deal,
        "workers": num_workers,
        "steps_per_epoch": round(len(dataset) / spec.global_batch_size, 2),
        "bandwidth_bytes_per_second": speed,
        "steps_per_second": steps_per_second,
        "downloaded_bytes": [sum(node.downloaded_bytes[epoch] for node in epoch_plan.nodes) for epoch in range(epochs)],
        "requests": [sum(node.requests[epoch] for node in epoch_plan.nodes) for epoch in range(epochs)],
        "start_seconds": round(epoch_plan.start_seconds, 3),
        "stall_seconds": [round(seconds, 3) for seconds in epoch_plan.stall_seconds],
        "shuffle_quality": round(epoch_plan.shuffle_quality, 4),
        "partner_quality": round(epoch_plan.partner_quality, 4),
        "nodes": [
            {
                "downloaded_bytes": list(node.downloaded_bytes),
                "hit_share": [round(share, 4) for share in node.hit_share],
                "peak_disk_bytes": node.peak_disk_bytes,
                "first_batch_bytes": node.first_batch_bytes,
            }
            for node in epoch_plan.nodes
        ],
        **forecast_facts(spec, dataset, len(validation), num_workers, known, exchange_bandwidth, device_memory),
    }
    print_result(facts, _plan_lines(facts), as_json=as_json)


def _node_of_lane(job: JobSpec, num_workers: int, num_nodes: int) -> list[int]:
    """Return the node that trains each micro-batch of a step."""
    from yolofleet.core.errors import UserError
    from yolofleet.training.loop.worker_group import assign_micro_batches

    workers = plural(num_workers, "worker")
    if num_nodes > num_workers:
        raise UserError(f"{plural(num_nodes, 'node')}, but only {workers}; plan for fewer nodes or more --workers")
    if num_workers > job.num_micro_batches:
        raise UserError(
            f"{workers}, but a global batch of {job.global_batch_size} holds only "
            f"{plural(job.num_micro_batches, 'micro-batch')} of {job.micro_batch_size}; plan for fewer --nodes or "
            "--workers, or a larger global_batch_size"
        )
    try:
        job.check_teams([num_workers])
    except ValueError as error:
        raise UserError(str(error)) from None
    node_of_lane: dict[int, int] = {}
    for rank in range(num_workers):
        owned = assign_micro_batches(job.num_micro_batches, rank, num_workers, job.batch_norm_workers)
        node_of_lane |= dict.fromkeys(owned, rank * num_nodes // num_workers)
    return [node_of_lane[lane] for lane in range(job.num_micro_batches)]


def _plan_lines(facts: dict[str, Any]) -> Iterator[str]:
    size = format_bytes
    source = "fetched into the cache of each node"
    if not facts["is_remote"]:
        source = "a folder, read where it is: nothing is downloaded; the table is that of the same shards on S3"
    images, shards = plural(facts["images"], "image"), plural(facts["shards"], "shard")
    yield f"{facts['train']}: {images} in {shards}, {size(facts['dataset_bytes'])}"
    yield f"  ({source})"
    yield (
        f"{plural(len(facts['nodes']), 'node')}, {plural(facts['workers'], 'worker')}, "
        f"{plural(facts['steps_per_epoch'], 'step')} an epoch, cache of {size(facts['cache_bytes'])} a node"
    )
    dealt = "once: a node keeps its part" if facts["deal"] == "fixed" else "anew every epoch"
    yield f"shards are dealt to the nodes {dealt} (data.deal)"
    num_epochs = len(facts["downloaded_bytes"])
    epochs = "".join(f"{f'epoch {epoch + 1}':>12}{'hits':>8}" for epoch in range(num_epochs))
    yield f"{'node':>6}{epochs}{'peak disk':>12}{'first batch':>14}"
    for number, node in enumerate(facts["nodes"]):
        pairs = zip(node["downloaded_bytes"], node["hit_share"], strict=True)
        cells = "".join(f"{size(downloaded):>12}{share:>8.1%}" for downloaded, share in pairs)
        yield f"{number:>6}{cells}{size(node['peak_disk_bytes']):>12}{size(node['first_batch_bytes']):>14}"
    totals = zip(facts["downloaded_bytes"], facts["requests"], facts["stall_seconds"], strict=True)
    for epoch, (downloaded, requests, stall) in enumerate(totals, start=1):
        share = downloaded / facts["dataset_bytes"]
        amount = f"{size(downloaded)} ({share:.2f} x the dataset)"
        yield f"epoch {epoch}: {amount}, {plural(requests, 'request')}, {stall:.1f} s of waiting"
    yield (
        f"start: {facts['start_seconds']:.1f} s until every node has its first micro-batch, at "
        f"{size(facts['bandwidth_bytes_per_second'])}/s a node; steps: {facts['steps_per_second']:g} a second"
    )
    yield (
        f"shuffle: a batch mixes {facts['shuffle_quality']:.0%} of the shards that a full shuffle would, a micro-batch "
        f"{facts['partner_quality']:.0%} (entropy)"
    )
    yield from forecast_lines(facts["forecast"], facts["advice"])
    node_bytes = max(sum(node["downloaded_bytes"][:1]) for node in facts["nodes"])
    wanted = node_bytes if facts["deal"] == "fixed" else facts["dataset_bytes"]
    wanted += facts["validation_bytes"]
    if facts["cache_bytes"] < facts["working_bytes"]:
        yield (
            f"cure: data.cache.max_bytes of {size(facts['working_bytes'])} or more, for the shards that a node reads "
            "and fetches ahead at a time"
        )
    elif facts["cache_bytes"] < wanted:
        yield (
            f"hint: with data.cache.max_bytes of {size(wanted)} (training and validation) nothing is fetched "
            "after the first epoch"
            + ("" if facts["deal"] == "fixed" or len(facts["nodes"]) == 1 else "s, when a node has had every shard")
        )
