"""``yolofleet init``: from a folder of annotated images to shards and a job, with one command."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import FollowLinks, JsonOption, print_result
from yolofleet.cli.progress import show_progress
from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.terminal import show, width_of
from yolofleet.core.text import plural, wrap_words

if TYPE_CHECKING:
    from yolofleet.data.layout import Layout
    from yolofleet.data.layout_reader import SplitSource
    from yolofleet.data.manifest import Manifest
    from yolofleet.training.setup.job_draft import JobDraft

MOST_CLASSES_SHOWN = 12
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
SMALLEST_MODEL = "yolov7-tiny"
NAMED_ENDINGS = (".yaml", ".yml", ".json", ".json.gz", ".data")
ANNOTATION_FOLDERS = ("annotations", "annotation")


def init(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder or zip of annotated images, its data.yaml, or a COCO file.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the job and the run. Default: the folder's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for NAME.yaml and shards/NAME.")] = Path(),
    model: Annotated[
        str | None, typer.Option(help="Name of a model, or a block table (YAML). Default: chosen for the data.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Side of the network's input. Default: chosen for the data.")
    ] = None,
    val_share: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the images for validation, if they are not split.")
    ] = 0.2,
    max_skipped: Annotated[
        float, typer.Option(min=0, max=1, help="Stop if a larger share of the images cannot be used.")
    ] = 0.5,
    follow_links: FollowLinks = False,
    as_json: JsonOption = False,
) -> None:
    """Make shards for training and validation from a folder of annotated images, and write a job.

    Nothing is overwritten. If it was interrupted, run the same command again.
    """
    from yolofleet.data.layout_reader import assign_splits, shard_split
    from yolofleet.storage import open_storage

    root, named = _root_of(source)
    name = _checked(name) if name is not None else _name_of(root)
    if ":/" in str(out):
        raise UserError(f"--out {out}: name a folder of this machine; 'yolofleet data shard' writes to s3://")
    job, shards = out / f"{name}.yaml", out / "shards" / name
    if job.exists() and not shards.exists():
        raise UserError(f"{job}: already exists, and nothing is overwritten; choose another --name or --out")
    choice = _choice(model, image_size)
    layout, found = _read(root, named, out, follow_links)
    splits, how = assign_splits(found, val_share)
    if not as_json:
        for line in _found_lines(source, layout, splits, how):
            show(_wrapped(line))
    manifests = {}
    for split, entry in splits.items():
        with show_progress(f"sharding {split}", len(entry.source.records)) as advance:
            folder = open_storage(str(shards / split))
            result = shard_split(
                entry, folder, num_threads=os.cpu_count() or 1, most_skipped=max_skipped, progress=advance
            )
        manifests[split] = result.manifest
    draft = _draft(name, out, shards, choice, image_size)
    _write(job, draft.text(f"{name}: {layout.form} annotations, {_counts(manifests)}. Written by yolofleet init."))
    command = shlex.join(["yolofleet", "train", str(job)])
    facts = {
        "form": layout.form,
        "found": layout.evidence,
        "notes": [*layout.notes, *([how] if how else [])],
        "classes": _class_counts(splits),
        "splits": {
            split: {
                "url": str(shards / split),
                "images": manifest.num_samples,
                "boxes": manifest.num_boxes,
                "digest": manifest.digest,
                "problems": manifest.problems,
            }
            for split, manifest in manifests.items()
        },
        "job": str(job),
        "settings": draft.document,
        "command": command,
    }
    made = map(_wrapped, _made_lines(splits, manifests, shards, job, draft, command))
    print_result(facts, made, as_json=as_json)


def _root_of(source: str) -> tuple[str, str | None]:
    """Return the folder that the user means, and the key of the file in it where one was named."""
    is_remote = "://" in source
    path = Path(source)
    if not is_remote and not path.exists():
        raise UserError(f"{source}: no such folder or file; name the folder of your annotated images")
    is_folder = is_remote or path.is_dir() or source.lower().endswith(".zip")
    if not source.lower().endswith(NAMED_ENDINGS) or (not is_remote and path.is_dir()):
        if not is_folder:
            raise UserError(f"{source}: name a folder of annotated images, a zip, a data.yaml, or a COCO file (*.json)")
        return source.rstrip("/") or "/", None
    folder, slash, key = source.rpartition("/")
    folder = folder or ("/" if slash else ".")
    above, slash, last = folder.rpartition("/")
    if last.lower() in ANNOTATION_FOLDERS:  # the images are beside it
        return above or ("/" if slash else "."), f"{last}/{key}"
    return folder, key


def _checked(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise UserError(f"--name {name!r}: use letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


def _name_of(root: str) -> str:
    last = root.rpartition("/")[2] if "://" in root else Path(root).resolve().name
    last = last.removesuffix(".zip")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:100] or "dataset"


def _read(root: str, named: str | None, out: Path, follow_links: bool) -> tuple[Layout, dict[str, SplitSource]]:
    """Find the annotations below a folder and read them; what earlier runs wrote there is no part of them."""
    from yolofleet.data.find_layout import find_layout
    from yolofleet.data.layout_reader import read_layout
    from yolofleet.data.problems import ProblemLog
    from yolofleet.data.read_source import LONGEST_COCO_BYTES
    from yolofleet.data.source_folder import open_source

    problems = ProblemLog()
    folder = open_source(root, problems, follow_links=follow_links)
    own = Path(os.path.relpath(out.resolve(), Path(root).resolve())).as_posix()
    written = tuple(f"{own}/{part}/".removeprefix("./") for part in ("shards", "runs"))
    sizes = {entry.key: entry.size_bytes for entry in folder.list() if not entry.key.startswith(written)}

    def read(key: str) -> bytes:
        if sizes[key] > LONGEST_COCO_BYTES:
            raise UserError(f"{root}/{key}: {format_bytes(sizes[key])} are too many for annotations; split the file")
        return folder.get(key)

    try:
        layout = find_layout(list(sizes), read, named, root)
    except UserError as error:
        reasons = problems.reasons()
        raise UserError(f"{error}; left out: {reasons}" if reasons else str(error)) from error
    return layout, read_layout(layout, folder, sizes, problems)


def _choice(model: str | None, image_size: int | None) -> dict[str, Any] | None:
    """Return the model as a job names it, or None where it is to be chosen.

    Raises:
        UserError: It is not known, or the image size does not fit it.
    """
    from yolofleet.models.profile import check_size
    from yolofleet.models.wiring import wire
    from yolofleet.models.zoo import resolve

    if image_size is not None:
        check_size(wire(resolve(model or SMALLEST_MODEL)), (image_size, image_size))
    if model is None:
        return None
    resolve(model)
    return {"spec" if model.endswith((".yaml", ".yml")) or "/" in model else "name": model}


def _draft(name: str, out: Path, shards: Path, choice: dict[str, Any] | None, image_size: int | None) -> JobDraft:
    from yolofleet.data.verification import open_verified
    from yolofleet.training.setup.job_draft import DataFacts, Machine, draft_job

    return draft_job(
        DataFacts.survey(open_verified(shards / "train")),
        Machine.here(),
        name=name,
        data={split: str(shards / split) for split in ("train", "val")},
        storage=str(out / "runs"),
        model=choice,
        image_size=image_size,
    )


def _write(job: Path, text: str) -> None:
    from yolofleet.core.local_files import read_regular
    from yolofleet.storage import open_storage

    if open_storage(str(job.parent)).put_if_absent(job.name, text.encode()):
        return
    try:
        is_equal = read_regular(job, len(text.encode())) == text.encode()
    except OSError:  # longer, a link to nothing
        is_equal = False
    if not is_equal:
        raise UserError(
            f"{job}: already exists with other settings, and nothing is overwritten; the shards are ready, so train "
            f"it unchanged ('yolofleet train {job}'), or write another one with --out"
        )


def _counts(manifests: Mapping[str, Manifest]) -> str:
    return ", ".join(f"{plural(manifest.num_samples, 'image')} for {split}" for split, manifest in manifests.items())


def _class_counts(splits: Mapping[str, SplitSource]) -> dict[str, int]:
    """Return boxes by class over all splits, the most frequent first."""
    import numpy as np

    classes = splits["train"].source.classes
    totals = np.zeros(len(classes), dtype=np.int64)
    for split in splits.values():
        for record in split.source.records:
            totals += np.bincount(record.classes[~record.iscrowd], minlength=len(classes))
    order = np.argsort(-totals, kind="stable")
    return {f"{classes[index].id} {classes[index].name}": int(totals[index]) for index in order}


def _found_lines(source: str, layout: Layout, splits: Mapping[str, SplitSource], how: str | None) -> Iterator[str]:
    yield f"{source}: {layout.form} annotations, by {layout.evidence}"
    yield f"{'':8}{'images':>10}{'boxes':>12}"
    for split, entry in splits.items():
        yield f"  {split:6}{len(entry.source.records):>10,}{entry.num_boxes:>12,}"
    yield from (*([how] if how else []), *layout.notes)
    counts = _class_counts(splits)
    shown = [f"{name.partition(' ')[2]} {count:,}" for name, count in list(counts.items())[:MOST_CLASSES_SHOWN]]
    more = f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    yield f"{plural(len(counts), 'class')}: {', '.join(shown)}{more}"
    if layout.form == "YOLO" and layout.names_file is None:
        yield "No file contains class names, so their numbers are used; add a classes.txt"
    for entry in splits.values():
        yield from _problem_lines(entry.problems.as_document(), {})


def _made_lines(
    splits: Mapping[str, SplitSource],
    manifests: Mapping[str, Manifest],
    shards: Path,
    job: Path,
    draft: JobDraft,
    command: str,
) -> Iterator[str]:
    for split, manifest in manifests.items():
        yield from _problem_lines(manifest.problems, splits[split].problems.counts)
    yield ""
    yield f"{shards}: {_counts(manifests)}"
    settings = draft.document
    yield (
        f"{job}: {settings['model'].get('name') or settings['model']['spec']} at {settings['data']['image_size']} px, "
        f"{plural(settings['epochs'], 'epoch')} in batches of {settings['global_batch_size']}. {draft.forecast}"
    )
    yield "Train with:"
    yield f"  {command}"


def _problem_lines(problems: Mapping[str, Any], shown_before: Mapping[str, int]) -> Iterator[str]:
    """Yield each kind of problem with its count and an example, without what was shown before."""
    for kind, entry in problems.items():
        if (count := entry["count"] - shown_before.get(kind, 0)) > 0:
            example = f" ({entry['examples'][-1]})" if entry["examples"] else ""
            yield f"{entry['outcome']}: {kind} x {count}: {entry['meaning']}{example}"


def _wrapped(text: str) -> str:
    """Return a text in lines of the terminal, or of the usual 80 characters where there is none."""
    return wrap_words(text, width_of(sys.stdout))
