"""``yolofleet registry verify`` and ``compare``: the claims of a version redone, and two versions side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import Device, JsonOption, TrackingUri, print_result
from yolofleet.cli.registry import reachable_registry
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.evaluation.bootstrap import Difference
    from yolofleet.registry.comparison import VersionComparison
    from yolofleet.registry.verify import Verification

MARKS = {"passed": "ok", "failed": "FAILED", "not possible": "not possible", "note": "note"}

Reference = Annotated[
    str, typer.Argument(metavar="VERSION", help="NAME, NAME@ALIAS or NAME/VERSION, with or without models:/.")
]
ValidationData = Annotated[
    str | None,
    typer.Option(
        "--data", help="Where the validation set is now. Default: where it was at registration.", show_default=False
    ),
]


def verify(
    model: Reference,
    data: ValidationData = None,
    device: Device = "auto",
    proof_sha256: Annotated[
        str | None, typer.Option("--proof-sha256", help="Digest of the proof that you stored elsewhere.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Also exit with 1 if a claim could not be verified.")
    ] = False,
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> int:
    """Verify every claim of a version; exit code 1 if one fails."""
    from yolofleet.cli.progress import show_progress
    from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED
    from yolofleet.evaluation.detector import select_device
    from yolofleet.registry.verify import check_sha256
    from yolofleet.registry.verify import verify as verify_version
    from yolofleet.registry.versions import find_version

    check_sha256(proof_sha256)
    torch_device = select_device(device, "--device")
    uri = reachable_registry(tracking_uri)
    with show_progress("evaluating") as on_images:
        verification = verify_version(
            uri,
            find_version(uri, model),
            torch_device,
            data=data,
            expected_proof_sha256=proof_sha256,
            on_images=on_images,
        )
    print_result(verification.document(), _format_verification(verification), as_json=as_json)
    bad = ("failed", "incomplete") if strict else ("failed",)
    return EXIT_WORK_FAILED if verification.verdict in bad else EXIT_DONE


def compare(
    first: Reference,
    second: Reference,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Dataset to compare on. Default: that of SECOND's evaluation.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with the images on which they differ most into this folder."),
    ] = None,
    replicates: Annotated[int, typer.Option("--replicates", min=100, help="Replicates of the bootstrap.")] = 1000,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions on the same images: the twelve figures, each class, and confidence intervals."""
    from yolofleet.cli.progress import show_progress
    from yolofleet.evaluation.detector import select_device
    from yolofleet.registry.comparison import compare as compare_versions
    from yolofleet.registry.versions import find_version

    torch_device = select_device(device, "--device")
    uri = reachable_registry(tracking_uri)
    with show_progress("evaluating") as on_images:
        comparison = compare_versions(
            uri,
            find_version(uri, first),
            find_version(uri, second),
            torch_device,
            data=data,
            num_replicates=replicates,
            confidence=confidence,
            on_images=on_images,
        )
    if html is not None:
        _write_page(comparison, html)
    print_result(comparison.document(), _format_comparison(comparison, html), as_json=as_json)


def _format_comparison(comparison: VersionComparison, html: Path | None) -> Iterator[str]:
    differences = comparison.differences
    images = f"{plural(differences.num_images, 'image')} of {comparison.dataset.storage.url}"
    yield f"{comparison.second.uri} against {comparison.first.uri}, {images}"
    for entry in (*differences.figures, *differences.per_class):
        yield f"  {entry.name:<20} {_format_difference(entry)}"
    replicates = f"{plural(differences.num_replicates, 'paired bootstrap replicate')} over images"
    yield f"intervals: {differences.confidence:.0%} of {replicates}"
    if html is not None:
        yield f"page: {html / 'index.html'}"


def _format_difference(entry: Difference) -> str:
    if entry.first is None or entry.second is None or entry.difference is None or entry.low is None:
        return "nothing to measure"
    interval = f"({entry.low:+.4f} to {entry.high:+.4f})"
    return f"{entry.first:.4f}  {entry.second:.4f}  {entry.difference:+.4f}  {interval}"


def _write_page(comparison: VersionComparison, folder: Path) -> None:
    from yolofleet.registry.comparison import differing_images, render_comparison
    from yolofleet.storage import open_storage

    images = differing_images(comparison)
    storage = open_storage(folder)
    for number, (_, image) in enumerate(images):
        storage.put(f"images/{number:02d}.jpg", image.jpeg)
    storage.put("index.html", render_comparison(comparison, images).encode())


def _format_verification(verification: Verification) -> Iterator[str]:
    yield verification.version.uri
    for claim in verification.claims:
        yield f"  {MARKS[claim.outcome]:<13} {claim.name:<20} {claim.detail}"
    counts = {o: len(verification.with_outcome(o)) for o in ("passed", "failed", "not possible")}
    yield f"{verification.verdict}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}"
