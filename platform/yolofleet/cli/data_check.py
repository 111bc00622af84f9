"""``yolofleet data check``: every problem of a dataset, and what its content says, across splits and beside a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.data import (
    DEFAULT_MAX_PIXELS,
    ClassNames,
    MaxPixels,
    SourceFormat,
    Threads,
    count_cores,
    note_problems,
    read_dataset,
)
from yolofleet.cli.options import Device, FollowLinks, JsonOption, TrackingUri, print_result
from yolofleet.cli.progress import show_progress
from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.data.content import Content

ANNOTATION_ENDINGS = (".json", ".tar", ".tgz", ".gz", ".yaml", ".yml", ".csv")
"""Of single files that are no images' folder; a zip is looked into, like a folder."""
WITHOUT_IMAGES = ("file", "labels")
"""The kinds of sources that need a folder of images."""


def check(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE [IMAGES]",
            help="Annotations as for `shard`, and the folder of their images; several for the splits of one dataset.",
            show_default=False,
        ),
    ],
    source_format: SourceFormat = "auto",
    classes: ClassNames = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    threads: Threads = 0,
    follow_links: FollowLinks = False,
    with_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="List likely wrong and missing labels by what this model finds (a model as in `evaluate`).",
        ),
    ] = None,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with images and histograms to this file.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if there is any problem.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Look for problems in a dataset before you use it; nothing is changed.

    Several sources are the splits of one dataset: images that two of them share are reported.
    """
    from yolofleet.cli.model_argument import open_detector
    from yolofleet.data.check import check_dataset
    from yolofleet.data.check_page import check_page
    from yolofleet.data.content import CheckedSplit, check_content
    from yolofleet.data.problems import ProblemLog
    from yolofleet.evaluation.label_errors import find_label_errors
    from yolofleet.storage import open_storage

    detector = None if with_model is None else open_detector(with_model, device, tracking_uri)
    problems = ProblemLog()
    splits = []
    pairs = pair_sources(sources)
    logs = [ProblemLog() for _ in pairs]  # each its own: what one source lost is no reason why another is refused
    opened = [
        read_dataset(url, images, own, classes, source_format=source_format, follow_links=follow_links)
        for (url, images), own in zip(pairs, logs, strict=True)
    ]
    for name, (source, store), own in zip(short_names(name_sources(pairs)), opened, logs, strict=True):
        with show_progress("checking", len(source.records)) as advance:
            report = check_dataset(
                source, store, own, num_threads=count_cores(threads), max_pixels=max_pixels, progress=advance
            )
        problems.merge(own.counts, own.examples)
        splits.append(CheckedSplit(name, report, store))
    content = check_content(splits, problems)
    if detector is not None:
        with show_progress("predicting", sum(split.report.num_usable for split in splits)) as advance:
            find_label_errors(
                detector,
                splits,
                content.findings,
                max_pixels=max_pixels,
                num_threads=count_cores(threads),
                progress=advance,
            )
    if html is not None:
        page = check_page(content, problems, max_pixels=max_pixels)
        open_storage(str(html.parent)).put(html.name, page.encode())
    note_problems(problems, as_json=as_json)
    if not as_json:
        _note_content(content)
    facts = {**_facts(content), "problems": problems.as_document(), **content.as_document()}
    line = (
        f"{', '.join(split.name for split in splits)}: {facts['usable']:,} of {plural(facts['images'], 'image')} can "
        f"be used, with {plural(facts['boxes'], 'box')} and {plural(facts['crowds'], 'crowd')}; "
        f"{plural(facts['empty'], 'holds', 'hold')} no object; {plural(problems.num(), 'problem')}, "
        f"{plural(sum(content.findings.counts.values()), 'suspicious label')}"
    )
    print_result(facts, [line], as_json=as_json)
    return EXIT_WORK_FAILED if strict and problems.num() else EXIT_DONE


def pair_sources(arguments: list[str]) -> list[tuple[str, str | None]]:
    """Return each source with its IMAGES: a folder, a split such as `train`, or None where it needs none.

    A folder after annotations without images is theirs, and that of such annotations before them which have none yet.
    After shards it is the next source; after annotations with images, too, unless it holds images alone. A `-` says
    that the source before it holds or names its images.
    """
    kinds: dict[str, str] = {}
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        source, images = pairs[-1] if pairs else ("", "-")
        if images is not None or not (argument == "-" or _are_images_of(source, kinds[source], argument)):
            kinds[argument] = _kind(argument)
            pairs.append((argument, None))
        elif argument != "-" and kinds[source] in WITHOUT_IMAGES:
            pairs = [
                (name, argument if given is None and kinds[name] in WITHOUT_IMAGES else given) for name, given in pairs
            ]
        else:
            pairs[-1] = (source, argument)
    beside = [(name, name if given is None and kinds[name] == "mixed" else given) for name, given in pairs]
    return [(name, None if given == "-" else given) for name, given in beside]


def _are_images_of(source: str, kind: str, argument: str) -> bool:
    """Return whether an argument is the IMAGES of the source before it, and not the next source."""
    from yolofleet.data.read_source import HELD_IN_ANNOTATIONS

    if kind == "shards" or argument.lower().endswith(ANNOTATION_ENDINGS):
        return False
    if argument == source or (kind in ("yaml", "archive") and argument in HELD_IN_ANNOTATIONS):
        return True
    if kind == "file" and not argument.lower().endswith(".zip"):
        return True
    other = _kind(argument)
    if kind == "file":
        return other in ("images", "archive")
    if kind == "labels":
        return other not in ("labels", "shards")
    return other == "images" or (other == "file" and (kind == "yaml" or argument in HELD_IN_ANNOTATIONS))


def _kind(url: str) -> str:
    """Return what a source is: shards, another file, a YAML file, or a folder or zip of labels or images.

    A folder of both is mixed, and a zip of both an archive. A folder of neither is taken for a file, as is one that is
    not there.
    """
    from yolofleet.data.annotation_kind import COCO_ENDINGS, kinds_of, source_files
    from yolofleet.data.class_names import YAML_ENDINGS
    from yolofleet.data.problems import ProblemLog
    from yolofleet.data.read_source import TAR_ENDINGS
    from yolofleet.data.source_folder import is_image_name, open_source

    name = url.lower()
    if name.endswith(ANNOTATION_ENDINGS):
        if name.endswith(YAML_ENDINGS):
            return "yaml"
        return "shards" if name.endswith(TAR_ENDINGS) and not name.endswith(COCO_ENDINGS) else "file"
    folder = open_source(url, ProblemLog(), follow_links=True)
    files = source_files(folder)
    if "webdataset" in kinds_of(folder, files):
        return "shards"
    keys = [entry.key.lower() for entry in files]
    has_labels, has_images = any(map(_is_label_name, keys)), any(map(is_image_name, keys))
    if has_labels and has_images:
        return "archive" if name.endswith(".zip") else "mixed"
    if has_labels or has_images:
        return "labels" if has_labels else "images"
    return "shards" if name.endswith(".zip") else "file"


def _is_label_name(key: str) -> bool:
    from yolofleet.data.annotation_kind import COCO_ENDINGS

    return key.endswith((".txt", ".xml", *COCO_ENDINGS)) and not key.rpartition("/")[2].startswith("readme")


def name_sources(pairs: list[tuple[str, str | None]]) -> list[str]:
    """Return a name for each source: its annotations, with the split where only that one is read."""
    from yolofleet.data.read_source import HELD_IN_ANNOTATIONS

    return [f"{name} {images}" if images in HELD_IN_ANNOTATIONS else name for name, images in pairs]


def short_names(urls: list[str]) -> list[str]:
    """Return names that tell sources apart: without the folders that all of them begin with."""
    parts = [url.rstrip("/").split("/") for url in urls]
    alike, most = 0, min(map(len, parts)) - 1 if len(urls) > 1 else 0
    while alike < most and len({entry[alike] for entry in parts}) == 1:
        alike += 1
    return ["/".join(entry[alike:]) for entry in parts]


def _facts(content: Content) -> dict[str, Any]:
    """Return the counts over all splits."""
    reports = [split.report for split in content.splits]
    class_counts: dict[str, int] = {}
    for histograms in content.histograms:
        for name, count in histograms.class_boxes.items():
            class_counts[name] = class_counts.get(name, 0) + count
    listed, usable = (sum(getattr(report, name) for report in reports) for name in ("num_listed", "num_usable"))
    return {
        "images": listed,
        "usable": usable,
        "skipped": listed - usable,
        "boxes": sum(report.num_boxes for report in reports),
        "crowds": sum(report.num_crowds for report in reports),
        "empty": sum(report.num_empty for report in reports),
        "class_counts": class_counts,
    }


def _note_content(content: Content) -> None:
    """Say on stderr what the content shows: one line a kind, with the worst example."""
    from yolofleet.data.findings import FINDING_KINDS

    for kind, meaning in FINDING_KINDS.items():
        if kind in content.findings.counts:
            worst = content.findings.worst(kind)[0]
            example = f"{worst.score:.2f}: {content.name(worst.split, worst.image)}: {worst.text}"
            note(f"look at: {kind} x {content.findings.counts[kind]}: {meaning} ({example})")
