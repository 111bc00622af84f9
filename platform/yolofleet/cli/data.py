"""``yolofleet data``: draws, shards and inspects datasets (`data_check` checks them, `data_show` draws them)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import FollowLinks, JsonOption, parse_byte_option, print_result
from yolofleet.cli.progress import show_progress
from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED, UserError
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.data.problems import ProblemLog
    from yolofleet.data.sources import ImageStore, SourceDataset

app = typer.Typer(help="Datasets: draw, check, make shards, inspect, show.", no_args_is_help=True)

Annotations = Annotated[
    str,
    typer.Argument(
        metavar="ANNOTATIONS",
        help="A COCO file, a folder of YOLO labels or VOC XML files, or tar shards: a path or s3://.",
    ),
]
SourceFormat = Annotated[str, typer.Option("--format", help="auto, coco, yolo, voc or webdataset.")]
ClassNames = Annotated[
    str | None, typer.Option(help="File with class names for YOLO and VOC: YAML, or one name per line.")
]
MaxPixels = Annotated[int, typer.Option(min=1, help="Larger images are left out.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 uses one per core.")]
DEFAULT_MAX_PIXELS = 100_000_000


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to draw into.")],
    images: Annotated[int, typer.Option(min=1, help="Number of images; every fifth is for validation.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed draws the same dataset.")] = 0,
    image_size: Annotated[int, typer.Option(min=32, help="Longer side of the images, in pixels.")] = 192,
    as_json: JsonOption = False,
) -> None:
    """Draw a small COCO dataset of shapes, to try things out."""
    from yolofleet.data.synth import write_synthetic_dataset

    with show_progress("drawing", images) as advance:
        write_synthetic_dataset(out, images, seed, image_size, advance)
    parts = {part: str(out / f"instances{part}.json") for part in ("", "_train", "_val")}
    facts = {
        "images": images,
        "folder": str(out / "images"),
        "annotations": {"all": parts[""], "train": parts["_train"], "val": parts["_val"]},
    }
    line = f"{plural(images, 'image')} in {out / 'images'}; annotations in {out}/instances[_train|_val].json"
    print_result(facts, [line], as_json=as_json)


@app.command()
def shard(
    annotations: Annotations,
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Folder of the images: a path or s3://; '-' for shards.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where to write the dataset: a path or s3://.")],
    source_format: SourceFormat = "auto",
    classes: ClassNames = None,
    shard_bytes: Annotated[str, typer.Option(help="Size of a shard.")] = "128MB",
    shard_samples: Annotated[int, typer.Option(min=1, max=1_000_000, help="Most images in a shard.")] = 10_000,
    threads: Threads = 0,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    follow_links: FollowLinks = False,
    max_skipped: Annotated[
        float, typer.Option(min=0, max=1, help="Stop if a larger share of the images cannot be used.")
    ] = 0.5,
    reencode: Annotated[
        int | None, typer.Option(min=1, max=100, help="Encode all images again as JPEG with this quality.")
    ] = None,
    longest_side: Annotated[int | None, typer.Option(min=1, help="With --reencode: longest side of an image.")] = None,
    split: Annotated[str | None, typer.Option(help="Share of the images to take, by hash of id: 0.0-0.9.")] = None,
    shuffle: Annotated[bool, typer.Option(help="Distribute images over shards by a hash of their ids.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another dataset at this location.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn annotations and images into WebDataset shards with indexes and a manifest.

    An interrupted build resumes where it stopped; building twice gives the same bytes.
    """
    from yolofleet.data.build import build_dataset
    from yolofleet.data.build_plan import BuildOptions
    from yolofleet.data.problems import ProblemLog
    from yolofleet.storage import open_storage

    if longest_side is not None and reencode is None:
        raise UserError("--longest-side scales images, which must then be encoded again: add --reencode QUALITY")
    options = BuildOptions(
        shard_bytes=parse_byte_option(shard_bytes, "--shard-bytes"),
        shard_samples=shard_samples,
        max_pixels=max_pixels,
        reencode_quality=reencode,
        longest_side=longest_side,
        shuffle=shuffle,
        split=_parse_split(split),
    )
    problems = ProblemLog()
    source, image_files = read_dataset(
        annotations,
        None if images == "-" else images,
        problems,
        classes,
        source_format=source_format,
        follow_links=follow_links,
    )
    with show_progress("sharding", len(source.records)) as advance:
        result = build_dataset(
            source,
            image_files,
            open_storage(out),
            options,
            problems,
            num_threads=count_cores(threads),
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
    share = f", {num_bytes / max(1, result.source_bytes):.0%} of the source" if reencode is not None else ""
    images, boxes = plural(manifest.num_samples, "image"), plural(manifest.num_boxes, "box")
    classes, shards = plural(len(manifest.classes), "class"), plural(len(manifest.shards), "shard")
    line = (
        f"{out}: {images} ({result.num_skipped} left out), {boxes} of {classes} in {shards} "
        f"({plural(num_bytes, 'byte')}{share}; {plural(result.num_shards_reused, 'shard')} reused)"
    )
    note_problems(problems, as_json=as_json)
    print_result(facts, [line], as_json=as_json)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(metavar="DATA", help="The dataset: a path or s3://.")],
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare every byte with the manifest's digests.")
    ] = True,
    as_json: JsonOption = False,
) -> int:
    """Verify a dataset's digests and show what it holds; exit code 1 if anything is damaged."""
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.data.verification import inspect_dataset

    dataset = ShardDataset(url)
    manifest = dataset.manifest
    with show_progress("inspecting", len(dataset)) as advance:
        result = inspect_dataset(dataset, verify=verify, progress=advance)
    facts = {
        "url": url,
        "digest": manifest.digest,
        "verified": verify and not result.problems.counts,
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "manifest": {
            "images": manifest.num_samples,
            "boxes": manifest.num_boxes,
            "crowds": manifest.num_crowds,
            "empty": manifest.num_empty,
            "problems_of_the_build": manifest.problems,
        },
        **result.as_document(),
    }
    note_problems(result.problems, as_json=as_json)
    print_result(facts, _inspection_lines(facts), as_json=as_json)
    return EXIT_WORK_FAILED if result.problems.counts else EXIT_DONE


def _inspection_lines(facts: dict[str, Any]) -> Iterator[str]:
    state = "every digest is right" if facts["verified"] else "not verified, or damaged"
    images, shards = plural(facts["num_images"], "image"), plural(facts["shards"], "shard")
    yield f"{facts['url']}: {images} in {shards}, {plural(facts['bytes'], 'byte')}; {state}"
    yield f"digest {facts['digest']}"
    for title, key in (
        ("boxes by class", "class_counts"),
        ("images by number of boxes (from)", "objects_per_image"),
        ("boxes by side in pixels (from)", "box_sides"),
        ("images by size", "image_sizes"),
    ):
        counts: dict[str, int] = facts[key]
        largest = max(counts.values(), default=0) or 1
        yield f"{title}:"
        names = sorted(counts, key=lambda name: -counts[name])
        if all(name.isdigit() for name in names):  # of more digits than int() takes, too, where they name classes
            names.sort(key=lambda name: (len(name), name))
        for name in names:
            yield f"  {name:>24} {counts[name]:>9,} {'#' * round(40 * counts[name] / largest)}"


def read_dataset(
    annotations: str, images: str | None, problems: ProblemLog, classes: str | None, **options: Any
) -> tuple[SourceDataset, ImageStore]:
    """Read the annotations that the arguments of a command name."""
    from yolofleet.data.class_names import read_class_names
    from yolofleet.data.read_source import read_source

    names = read_class_names(classes) if classes is not None else None
    return read_source(annotations, images, problems, class_names=names, **options)


def count_cores(threads: int) -> int:
    """Return the number of threads that a command's option asks for."""
    return threads or os.cpu_count() or 1


def _parse_split(text: str | None) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in (text or "0-1").split("-"))
    except ValueError:
        raise UserError(f"--split {text!r}: two shares are needed, such as 0.0-0.9") from None
    if not 0 <= low < high <= 1:
        raise UserError(f"--split {text!r}: the shares must rise and lie within 0 and 1, such as 0.9-1.0")
    return (low, high)


def note_problems(problems: ProblemLog, *, as_json: bool) -> None:
    """Say on stderr what was left out or repaired: one line a kind, with an example; in JSON the facts have it."""
    if as_json:
        return
    for kind, entry in problems.as_document().items():
        example = entry["examples"][0] if entry["examples"] else ""
        note(f"{entry['outcome']}: {kind} x {entry['count']}: {entry['meaning']} ({example})")
