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

ANNOTATION_ENDINGS = (".json", ".tar", ".zip", ".tgz", ".gz", ".yaml", ".yml", ".csv")


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
    names = short_names([annotations for annotations, _ in pairs])
    for name, (url, folder) in zip(names, pairs, strict=True):
        source, images = read_dataset(
            url, folder, problems, classes, source_format=source_format, follow_links=follow_links
        )
        with show_progress("checking", len(source.records)) as advance:
            report = check_dataset(
                source, images, problems, num_threads=count_cores(threads), max_pixels=max_pixels, progress=advance
            )
        splits.append(CheckedSplit(name, report, images))
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
    return EXIT_WORK_FAILED if strict and problems.counts else EXIT_DONE


def pair_sources(arguments: list[str]) -> list[tuple[str, str | None]]:
    """Return each source with its folder of images, or None where the source needs none.

    A folder after annotations that hold no images is theirs, and that of the sources before them which have none yet.
    After shards, and after a folder that holds labels and images, it is the next source.
    """
    kinds: dict[str, str] = {}
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        if pairs and pairs[-1][1] is None and _holds_images_of(pairs[-1][0], kinds[pairs[-1][0]], argument):
            pairs = [
                (name, argument if images is None and kinds[name] != "shards" else images) for name, images in pairs
            ]
        else:
            kinds[argument] = _kind(argument)
            pairs.append((argument, None))
    return [(name, name if images is None and kinds[name] == "mixed" else images) for name, images in pairs]


def _holds_images_of(source: str, kind: str, argument: str) -> bool:
    if kind == "shards" or argument.lower().endswith(ANNOTATION_ENDINGS):
        return False
    if kind == "file" or argument == source:
        return True
    other = _kind(argument)
    return other == "images" if kind == "mixed" else other not in ("labels", "shards")


def _kind(url: str) -> str:
    """Return what a source is: a file, or a folder of shards, labels, images, or labels and images (mixed)."""
    from yolofleet.data.read_source import TAR_ENDINGS
    from yolofleet.data.source_folder import IMAGE_EXTENSIONS
    from yolofleet.storage import open_storage

    if url.lower().endswith(ANNOTATION_ENDINGS):
        return "shards" if url.lower().endswith(TAR_ENDINGS) else "file"
    endings = {entry.key.lower().rpartition(".")[2] for entry in open_storage(url).list()}
    if "tar" in endings:
        return "shards"
    has_labels, has_images = bool(endings & {"txt", "xml"}), bool(endings & set(IMAGE_EXTENSIONS))
    return ("mixed" if has_images else "labels") if has_labels else ("images" if has_images else "file")


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
