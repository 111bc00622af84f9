"""``yolofleet registry verify`` and ``compare``: what a version claims, redone, and two versions side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.registry import AsJson, TrackingUri, reachable_registry

if TYPE_CHECKING:
    from yolofleet.evaluation.bootstrap import Difference
    from yolofleet.registry.comparison import Comparison
    from yolofleet.registry.verify import Verification

MARKS = {"passed": "ok", "failed": "FAILED", "not possible": "not possible", "note": "note"}

Reference = Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION; models:/ may lead.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Where the validation set lies now. Default: where it lay.", show_default=False),
]


def verify(
    model: Reference,
    data: Data = None,
    device: Device = "auto",
    proof_sha256: Annotated[
        str | None, typer.Option("--proof-sha256", help="Digest of the proof as you know it from elsewhere.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a claim could not be redone, too.")] = False,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> int:
    """Redo every claim of a version; exit code 1 if one fails."""
    from yolofleet.cli.evaluate import counting
    from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED
    from yolofleet.evaluation.detector import select_device
    from yolofleet.registry.verify import check_sha256
    from yolofleet.registry.verify import verify as verify_version
    from yolofleet.registry.versions import find_version

    expected = check_sha256(proof_sha256)
    chosen = select_device(device, "--device")
    uri = reachable_registry(tracking_uri)
    with counting() as on_images:
        found = verify_version(
            uri,
            find_version(uri, model),
            chosen,
            data=data,
            expected_proof_sha256=expected,
            on_images=on_images,
        )
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2))
    else:
        _show(found)
    return EXIT_WORK_FAILED if found.verdict in (("failed", "incomplete") if strict else ("failed",)) else EXIT_DONE


def compare(
    first: Reference,
    second: Reference,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Dataset to compare on. Default: what SECOND was judged on.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page and the images where they differ most here.")
    ] = None,
    replicates: Annotated[int, typer.Option("--replicates", min=100, help="How often images are drawn anew.")] = 1000,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Compare two versions on the same images: the twelve figures, each class, and how sure the differences are."""
    from yolofleet.cli.evaluate import counting
    from yolofleet.evaluation.detector import select_device
    from yolofleet.registry.comparison import compare as compare_versions
    from yolofleet.registry.versions import find_version

    chosen = select_device(device, "--device")
    uri = reachable_registry(tracking_uri)
    with counting() as on_images:
        found = compare_versions(
            uri,
            find_version(uri, first),
            find_version(uri, second),
            chosen,
            data=data,
            num_replicates=replicates,
            confidence=confidence,
            on_images=on_images,
        )
    if html is not None:
        _write_page(found, html)
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2))
        return
    images = f"{found.differences.num_images} images of {found.dataset.storage.url}"
    typer.echo(f"{found.second.uri} against {found.first.uri}, {images}")
    for entry in (*found.differences.figures, *found.differences.per_class):
        typer.echo(f"  {entry.name:<20} {_described(entry)}")
    typer.echo(f"intervals: {confidence:.0%} of {replicates} paired bootstrap replicates over images")
    if html is not None:
        typer.echo(f"page: {html / 'index.html'}")


def _described(entry: Difference) -> str:
    """Return one figure of a comparison as a line."""
    if entry.first is None or entry.second is None or entry.difference is None or entry.low is None:
        return "nothing to measure"
    interval = f"({entry.low:+.4f} to {entry.high:+.4f})"
    return f"{entry.first:.4f}  {entry.second:.4f}  {entry.difference:+.4f}  {interval}"


def _write_page(found: Comparison, folder: Path) -> None:
    from yolofleet.registry.comparison import differing_images, render_comparison
    from yolofleet.storage import open_storage

    images = differing_images(found)
    storage = open_storage(folder)
    for number, entry in enumerate(images):
        storage.put(f"images/{number:02d}.jpg", entry.image.jpeg)
    storage.put("index.html", render_comparison(found, images).encode())


def _show(found: Verification) -> None:
    typer.echo(found.version.uri)
    for claim in found.claims:
        typer.echo(f"  {MARKS[claim.outcome]:<13} {claim.name:<20} {claim.detail}")
    numbers = ", ".join(f"{len(found.named(outcome))} {outcome}" for outcome in ("passed", "failed", "not possible"))
    typer.echo(f"{found.verdict}: {numbers}")
