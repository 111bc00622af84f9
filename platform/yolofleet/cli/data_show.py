"""``yolofleet data show``: the images of a dataset with their boxes, or the batch that a training step sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JsonOption, Overrides, print_result
from yolofleet.core.errors import UserError
from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.storage import Storage

IMAGES_ON_A_SHEET = 16


def show(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA|JOB", help="A sharded dataset, or a job spec (YAML): a path or s3://.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("shown"),
    step: Annotated[int, typer.Option(min=0, help="For a job: the training step.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="For a dataset: number of images, spread evenly over it.")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Draw images of a dataset with their boxes, or exactly what a training step of a job sees."""
    from yolofleet.storage import open_storage

    folder = open_storage(str(out))
    is_job = source.endswith((".yaml", ".yml"))
    if not is_job and open_storage(source).exists(MANIFEST_NAME):
        if overrides:
            raise UserError(f"{overrides[0]}: KEY=VALUE changes a job, but {source} is a dataset")
        sheets = list(_draw_dataset(source, folder, out, count))
        print_result({"images": sheets}, [str(entry["file"]) for entry in sheets], as_json=as_json)
        return
    if not is_job and Path(source).is_dir():
        raise UserError(
            f"{source}: a folder without {MANIFEST_NAME}, so it is not a dataset; 'yolofleet data shard' makes one"
        )
    drawn = list(_draw_step(source, overrides or [], folder, out, step))
    print_result({"step": step, "micro_batches": drawn}, [str(entry["file"]) for entry in drawn], as_json=as_json)


def _draw_dataset(url: str, folder: Storage, out: Path, count: int) -> Iterator[dict[str, Any]]:
    """Draw images of a dataset on sheets; yields what each sheet holds."""
    import numpy as np

    from yolofleet.data.dataset import ShardDataset
    from yolofleet.data.draw import contact_sheet, draw_detections, encode

    dataset = ShardDataset(url)
    names = dict(dataset.classes)
    wanted = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist()
    for sheet, start in enumerate(range(0, len(wanted), IMAGES_ON_A_SHEET)):
        drawings, keys = [], []
        for number in wanted[start : start + IMAGES_ON_A_SHEET]:
            key, record, pixels, _ = dataset.read_decoded(number)
            boxes = zip(record.classes, record.boxes.tolist(), record.iscrowd, strict=True)
            objects = [
                {"category_id": dataset.classes[int(index)][0], "bbox": box, "iscrowd": bool(flag)}
                for index, box, flag in boxes
            ]
            drawings.append(draw_detections(pixels, objects, names=names))
            keys.append(key)
        name = f"images-{sheet}.png"
        folder.put(name, encode(contact_sheet(drawings), "png"))
        yield {"file": str(out / name), "keys": keys}


def _draw_step(job: str, overrides: list[str], folder: Storage, out: Path, step: int) -> Iterator[dict[str, Any]]:
    """Draw the micro-batches of a training step; yields what each holds."""
    from yolofleet.data.draw import draw_micro_batch
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage import open_file
    from yolofleet.training.loop.schedule import Schedule
    from yolofleet.training.setup.builders import open_dataset, training_stream

    spec = JobSpec.load(open_file(job), overrides)
    dataset = open_dataset(spec.data, spec.data.train)
    steps_per_epoch = len(dataset) / spec.global_batch_size
    num_steps = spec.num_steps(len(dataset))
    if step >= num_steps:
        raise UserError(
            f"--step {step}: the job has {plural(num_steps, 'step')}, 0 to {num_steps - 1} "
            f"({plural(spec.epochs, 'epoch', form='g')} of {plural(len(dataset), 'sample')} in batches of "
            f"{spec.global_batch_size})"
        )
    schedule = Schedule(spec.resolved_hyperparameters(), num_steps, steps_per_epoch)
    stream = training_stream(spec, dataset, schedule)
    for index in range(stream.micro_batches_per_step):
        batch = stream.micro_batch(step, index)
        name = f"step-{step}-micro-batch-{index}.png"
        folder.put(name, draw_micro_batch(batch, [name for _, name in dataset.classes]))
        yield {"file": str(out / name), "digest": batch.digest(), "keys": batch.keys, "skipped": batch.skipped}
