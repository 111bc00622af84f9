"""``yolofleet data``: draw, check, shard, inspect and show datasets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from yolofleet.cli.options import parse_byte_option
from yolofleet.cli.progress import counting

if TYPE_CHECKING:
    from yolofleet.data.problems import ProblemLog
    from yolofleet.data.sources import ImageStore, SourceDataset

app = typer.Typer(help="Datasets: draw, check, shard, inspect, show.", no_args_is_help=True)

SOURCE_HELP = "A COCO file, a folder of YOLO labels or VOC XML files, or tar shards: a path or s3://."
SOURCE_FORMAT = typer.Option(
    "auto", "--format", help="The annotations' kind: auto, coco, yolo, voc, webdataset, or a plugin's."
)
CLASS_NAMES = typer.Option(None, help="File with the names of the classes, for YOLO and VOC: YAML, or one a line.")
MAX_PIXELS = typer.Option(100_000_000, min=1, help="Larger images are left out.")
THREADS = typer.Option(0, min=0, help="Threads; 0 takes one a core.")
AS_JSON = typer.Option(False, "--json", help="Print only JSON on stdout.")


@app.command()
def synth(
    out: Path = typer.Argument(..., help="Folder to draw into."),
    images: int = typer.Option(500, min=1, help="Images in all; every fifth is for validation."),
    seed: int = typer.Option(0, help="Equal seeds draw equal datasets."),
    image_size: int = typer.Option(192, min=32, help="Longer side of the images, in pixels."),
    as_json: bool = AS_JSON,
) -> None:
    """Draw a COCO-format dataset of shapes, for trying things out."""
    from yolofleet.data.synth import write_synthetic_dataset

    with counting("drawing", images) as advance:
        write_synthetic_dataset(out, images, seed, image_size, advance)
    parts = {part: str(out / f"instances{part}.json") for part in ("", "_train", "_val")}
    facts = {
        "images": images,
        "folder": str(out / "images"),
        "annotations": {"all": parts[""], "train": parts["_train"], "val": parts["_val"]},
    }
    _tell(as_json, facts, f"{images} images in {out / 'images'}; annotations in {out}/instances[_train|_val].json")


@app.command()
def check(
    annotations: str = typer.Argument(..., help=SOURCE_HELP),
    images: str | None = typer.Argument(None, help="Folder of the images: a path or s3://. Shards need none."),
    source_format: str = SOURCE_FORMAT,
    classes: str | None = CLASS_NAMES,
    max_pixels: int = MAX_PIXELS,
    threads: int = THREADS,
    html: Path | None = typer.Option(None, help="Write a page with the suspicious images to this file."),
    strict: bool = typer.Option(False, "--strict", help="Exit with code 1 if there is any problem."),
    as_json: bool = AS_JSON,
) -> None:
    """Look for every problem in a dataset before anything is built from it; nothing is changed."""
    from yolofleet.data.check import check_dataset
    from yolofleet.data.check_page import check_page
    from yolofleet.data.problems import ProblemLog
    from yolofleet.storage import open_storage

    problems = ProblemLog()
    source, image_files = _read_source(annotations, images, problems, source_format, classes)
    with counting("checking", len(source.records)) as advance:
        report = check_dataset(
            source, image_files, problems, num_threads=_cores(threads), max_pixels=max_pixels, progress=advance
        )
    if html is not None:
        page = check_page(annotations, report, problems, image_files, max_pixels=max_pixels)
        open_storage(str(html.parent)).put(html.name, page.encode())
    facts = {
        "images": report.num_listed,
        "usable": report.num_usable,
        "skipped": report.num_listed - report.num_usable,
        "boxes": report.num_boxes,
        "crowds": report.num_crowds,
        "empty": report.num_empty,
        "class_counts": {
            f"{entry.id} {entry.name}": count for entry, count in zip(source.classes, report.class_counts, strict=True)
        },
        "problems": problems.as_document(),
    }
    if not as_json:
        _warn_of(problems)
    _tell(
        as_json,
        facts,
        f"{annotations}: {report.num_usable} of {report.num_listed} images can be used, with {report.num_boxes} "
        f"boxes and {report.num_crowds} crowds; {report.num_empty} hold no object; {problems.num()} problems",
    )
    if strict and problems.counts:
        raise typer.Exit(1)


@app.command()
def shard(
    annotations: str = typer.Argument(..., help=SOURCE_HELP),
    images: str = typer.Argument(..., help="Folder of the images: a path or s3://; '-' for shards, which hold them."),
    out: str = typer.Argument(..., help="Where the dataset shall lie: a path or s3://."),
    source_format: str = SOURCE_FORMAT,
    classes: str | None = CLASS_NAMES,
    shard_bytes: str = typer.Option("128MB", help="Size of a shard."),
    shard_samples: int = typer.Option(10_000, min=1, help="Most images in a shard."),
    threads: int = THREADS,
    max_pixels: int = MAX_PIXELS,
    max_skipped: float = typer.Option(0.5, min=0, max=1, help="Largest share of images that may be unusable."),
    reencode: int | None = typer.Option(None, min=1, max=100, help="Encode images anew as JPEG of this quality."),
    longest_side: int | None = typer.Option(None, min=1, help="With --reencode: scale larger images down to this."),
    split: str | None = typer.Option(None, help="Take only a share of the images, by a hash of their ids: 0.0-0.9."),
    shuffle: bool = typer.Option(True, help="Deal images to shards by a hash of their ids."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace another dataset that lies there."),
    as_json: bool = AS_JSON,
) -> None:
    """Turn annotations and images into WebDataset shards with indexes and a manifest.

    An interrupted build goes on where it stopped; building twice gives the same bytes.
    """
    from yolofleet.core.errors import UserError
    from yolofleet.data.build import build_dataset
    from yolofleet.data.build_plan import BuildOptions
    from yolofleet.data.problems import ProblemLog
    from yolofleet.storage import open_storage

    if longest_side is not None and reencode is None:
        raise UserError("--longest-side scales images, which must then be encoded anew: add --reencode QUALITY")
    options = BuildOptions(
        shard_bytes=parse_byte_option(shard_bytes, "--shard-bytes"),
        shard_samples=shard_samples,
        max_pixels=max_pixels,
        reencode_quality=reencode,
        longest_side=longest_side,
        shuffle=shuffle,
        split=_parsed_split(split),
    )
    problems = ProblemLog()
    source, image_files = _read_source(annotations, None if images == "-" else images, problems, source_format, classes)
    with counting("sharding", len(source.records)) as advance:
        result = build_dataset(
            source,
            image_files,
            open_storage(out),
            options,
            problems,
            num_threads=_cores(threads),
            most_skipped=max_skipped,
            overwrite=overwrite,
            progress=advance,
        )
    manifest = result.manifest
    num_bytes = sum(entry.bytes for entry in manifest.shards)
    facts = {
        "out": out,
        "digest": manifest.digest,
        "images": manifest.num_samples,
        "skipped": result.num_skipped,
        "boxes": manifest.num_boxes,
        "crowds": manifest.num_crowds,
        "classes": len(manifest.classes),
        "shards": len(manifest.shards),
        "shards_reused": result.num_shards_reused,
        "bytes": num_bytes,
        "source_bytes": result.source_bytes,
        "problems": manifest.problems,
    }
    if not as_json:
        _warn_of(problems)
    share = num_bytes / max(1, result.source_bytes)
    saved = f", {share:.0%} of the source" if reencode is not None else ""
    _tell(
        as_json,
        facts,
        f"{out}: {manifest.num_samples} images ({result.num_skipped} left out), {manifest.num_boxes} boxes of "
        f"{len(manifest.classes)} classes in {len(manifest.shards)} shards ({num_bytes:,} bytes{saved}; "
        f"{result.num_shards_reused} shards were there)",
    )


@app.command()
def inspect(
    url: str = typer.Argument(..., help="The dataset: a path or s3://."),
    verify: bool = typer.Option(True, "--verify/--no-verify", help="Compare every byte with the manifest's digests."),
    as_json: bool = AS_JSON,
) -> None:
    """Verify a dataset's digests and show what it holds; exit code 1 if anything is damaged."""
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.data.inspect import inspect_dataset

    dataset = ShardDataset(url)
    manifest = dataset.manifest
    with counting("inspecting", len(dataset)) as advance:
        found = inspect_dataset(dataset, verify=verify, progress=advance)
    facts = {
        "url": url,
        "digest": manifest.digest,
        "verified": verify and not found.problems.counts,
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "manifest": {
            "images": manifest.num_samples,
            "boxes": manifest.num_boxes,
            "crowds": manifest.num_crowds,
            "empty": manifest.num_empty,
            "problems_of_the_build": manifest.problems,
        },
        **found.as_document(),
    }
    if as_json:
        _tell(True, facts, "")
    else:
        _warn_of(found.problems)
        _print_inspection(facts)
    if found.problems.counts:
        raise typer.Exit(1)


def _print_inspection(facts: dict[str, Any]) -> None:
    state = "every digest is right" if facts["verified"] else "not verified, or damaged"
    size = f"{facts['num_images']} images in {facts['shards']} shards, {facts['bytes']:,} bytes"
    print(f"{facts['url']}: {size}; {state}")
    print(f"digest {facts['digest']}")
    for title, key in (
        ("boxes by class", "class_counts"),
        ("images by number of boxes (from)", "objects_per_image"),
        ("boxes by side in pixels (from)", "box_sides"),
        ("images by size", "image_sizes"),
    ):
        counts: dict[str, int] = facts[key]
        largest = max(counts.values(), default=0) or 1
        print(f"{title}:")
        numeric = all(name.isdigit() for name in counts)
        for name, count in sorted(counts.items(), key=lambda item: int(item[0]) if numeric else -item[1]):
            print(f"  {name:>24} {count:>9,} {'#' * round(40 * count / largest)}")


@app.command()
def show(
    job: Path = typer.Argument(..., help="The job whose training is looked at."),
    overrides: list[str] = typer.Argument(None, help="Changes to the job: key.path=value."),
    step: int = typer.Option(0, min=0, help="The training step."),
    out: Path = typer.Option(..., help="Folder for the images."),
    as_json: bool = AS_JSON,
) -> None:
    """Draw exactly the batch that a training step sees: augmented images with their targets."""
    from yolofleet.core.errors import UserError
    from yolofleet.data.draw import draw_micro_batch
    from yolofleet.specs.job import JobSpec
    from yolofleet.storage import open_storage
    from yolofleet.training.loop.schedule import Schedule
    from yolofleet.training.setup.builders import open_dataset, training_stream

    spec = JobSpec.load(job, overrides or [])
    dataset = open_dataset(spec.data, spec.data.train)
    steps_per_epoch = len(dataset) / spec.global_batch_size
    num_steps = spec.num_steps(len(dataset))
    if step >= num_steps:
        raise UserError(
            f"--step {step}: the job has {num_steps} steps, 0 to {num_steps - 1} ({spec.epochs:g} epochs of "
            f"{len(dataset)} samples in batches of {spec.global_batch_size})"
        )
    schedule = Schedule(spec.resolved_hyperparameters(), num_steps, steps_per_epoch)
    stream = training_stream(spec, dataset, schedule)
    folder = open_storage(str(out))
    drawn = []
    for index in range(stream.micro_batches_per_step):
        batch = stream.micro_batch(step, index)
        name = f"step-{step}-micro-batch-{index}.png"
        folder.put(name, draw_micro_batch(batch, [name for _, name in dataset.classes]))
        drawn.append({"file": str(out / name), "digest": batch.digest(), "keys": batch.keys, "skipped": batch.skipped})
    _tell(as_json, {"step": step, "micro_batches": drawn}, "\n".join(f"{entry['file']}" for entry in drawn))


def _read_source(
    annotations: str, images: str | None, problems: ProblemLog, source_format: str, classes: str | None
) -> tuple[SourceDataset, ImageStore]:
    from yolofleet.data.read_source import read_class_names, read_source

    names = read_class_names(classes) if classes is not None else None
    return read_source(annotations, images, problems, source_format=source_format, class_names=names)


def _cores(threads: int) -> int:
    import os

    return threads or os.cpu_count() or 1


def _parsed_split(text: str | None) -> tuple[float, float]:
    from yolofleet.core.errors import UserError

    if text is None:
        return (0.0, 1.0)
    try:
        low, high = (float(part) for part in text.split("-"))
    except ValueError:
        raise UserError(f"--split {text!r}: two shares are needed, such as 0.0-0.9") from None
    if not 0 <= low < high <= 1:
        raise UserError(f"--split {text!r}: the shares must rise and lie within 0 and 1, such as 0.9-1.0")
    return (low, high)


def _warn_of(problems: ProblemLog) -> None:
    """Say on stderr what was left out or put right: one line a kind, with an example."""
    for kind, entry in problems.as_document().items():
        example = entry["examples"][0] if entry["examples"] else ""
        print(f"{entry['outcome']}: {kind} x {entry['count']}: {entry['meaning']} ({example})", file=sys.stderr)


def _tell(as_json: bool, facts: dict[str, Any], sentence: str) -> None:
    print(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else sentence)
