"""``yolofleet data``: draw, check, shard, inspect and show datasets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from yolofleet.data.problems import ProblemLog
    from yolofleet.storage import Storage

app = typer.Typer(help="Datasets: draw, check, shard, inspect, show.", no_args_is_help=True)

AS_JSON = typer.Option(False, "--json", help="Print only JSON on stdout.")


@app.command()
def synth(
    out: Path = typer.Argument(..., help="Folder to draw into."),
    images: int = typer.Option(500, min=1, help="Pictures in all; every fifth is for validation."),
    seed: int = typer.Option(0, help="Equal seeds draw equal datasets."),
    image_size: int = typer.Option(192, min=32, help="Longer side of the pictures, in pixels."),
    as_json: bool = AS_JSON,
) -> None:
    """Draw a COCO-format dataset of shapes, for trying things out."""
    from yolofleet.data.synth import write_synthetic_dataset

    with _progress("drawing", images) as advance:
        write_synthetic_dataset(out, images, seed, image_size, advance)
    parts = {part: str(out / f"instances{part}.json") for part in ("", "_train", "_val")}
    facts = {
        "images": images,
        "folder": str(out / "images"),
        "annotations": {"all": parts[""], "train": parts["_train"], "val": parts["_val"]},
    }
    _tell(as_json, facts, f"{images} pictures in {out / 'images'}; annotations in {out}/instances[_train|_val].json")


@app.command()
def shard(
    annotations: str = typer.Argument(..., help="COCO annotation file: a path or s3://."),
    images: str = typer.Argument(..., help="Folder of the pictures: a path or s3://."),
    out: str = typer.Argument(..., help="Where the dataset shall lie: a path or s3://."),
    shard_bytes: str = typer.Option("128MB", help="Size of a shard."),
    shard_samples: int = typer.Option(10_000, min=1, help="Most pictures in a shard."),
    threads: int = typer.Option(0, min=0, help="Shards worked on at once; 0 takes one a core."),
    max_pixels: int = typer.Option(100_000_000, min=1, help="Larger pictures are left out."),
    max_skipped: float = typer.Option(0.5, min=0, max=1, help="Largest share of pictures that may be unusable."),
    reencode: int | None = typer.Option(None, min=1, max=100, help="Encode pictures anew as JPEG of this quality."),
    longest_side: int | None = typer.Option(None, min=1, help="With --reencode: scale larger pictures down to this."),
    split: str | None = typer.Option(None, help="Take only a share of the pictures, by a hash of their ids: 0.0-0.9."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace another dataset that lies there."),
    as_json: bool = AS_JSON,
) -> None:
    """Turn COCO annotations and pictures into WebDataset shards with indexes and a manifest.

    An interrupted build goes on where it stopped; building twice gives the same bytes.
    """
    import os

    from yolofleet.data.build import build_dataset
    from yolofleet.data.build_plan import BuildOptions
    from yolofleet.data.coco import read_coco
    from yolofleet.data.problems import ProblemLog
    from yolofleet.storage import open_storage

    options = BuildOptions(
        shard_bytes=_parsed_bytes(shard_bytes),
        shard_samples=shard_samples,
        max_pixels=max_pixels,
        reencode_quality=reencode,
        longest_side=longest_side,
        split=_parsed_split(split),
    )
    problems = ProblemLog()
    source = read_coco(*_opened_file(annotations), problems)
    with _progress("sharding", len(source.records)) as advance:
        result = build_dataset(
            source,
            open_storage(images),
            open_storage(out),
            options,
            problems,
            num_threads=threads or os.cpu_count() or 1,
            most_skipped=max_skipped,
            overwrite=overwrite,
            progress=advance,
        )
    manifest = result.manifest
    facts = {
        "out": out,
        "digest": manifest.digest,
        "images": manifest.num_samples,
        "boxes": manifest.num_boxes,
        "crowds": manifest.num_crowds,
        "classes": len(manifest.classes),
        "shards": len(manifest.shards),
        "shards_reused": result.num_shards_reused,
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "source_bytes": result.source_bytes,
        "problems": manifest.problems,
    }
    _warn_of(problems)
    _tell(
        as_json,
        facts,
        f"{out}: {manifest.num_samples} pictures, {manifest.num_boxes} boxes of {len(manifest.classes)} classes in "
        f"{len(manifest.shards)} shards ({facts['bytes']:,} bytes; {result.num_shards_reused} shards were there)",
    )


def _opened_file(url: str) -> tuple[Storage, str]:
    """Return the storage of the folder that holds a file, and the file's key in it."""
    from yolofleet.storage import open_storage

    folder, separator, name = url.rpartition("/")
    return open_storage(folder if separator else "."), name


def _parsed_bytes(text: str) -> int:
    from yolofleet.errors import UserError

    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().rstrip("BKMGIbkmgi ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        value = int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise UserError(f"--shard-bytes {text!r}: a number of bytes is needed, such as 128MB or 512MiB") from None
    if value < 1:
        raise UserError(f"--shard-bytes {text!r}: at least one byte is needed")
    return value


def _parsed_split(text: str | None) -> tuple[float, float]:
    from yolofleet.errors import UserError

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


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr: a bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
