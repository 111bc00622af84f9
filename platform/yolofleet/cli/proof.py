"""``yolofleet registry verify`` and ``compare``: what a version claims, redone, and two versions side by side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.registry import AsJson, TrackingUri, reachable_registry

if TYPE_CHECKING:
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
    from yolofleet.errors import EXIT_DONE, EXIT_WORK_FAILED
    from yolofleet.evaluation.device import chosen_device
    from yolofleet.registry.verify import check_sha256
    from yolofleet.registry.verify import verify as verify_version
    from yolofleet.registry.versions import find_version

    expected = check_sha256(proof_sha256)
    chosen = chosen_device(device, "--device")
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


def _show(found: Verification) -> None:
    typer.echo(found.version.uri)
    for claim in found.claims:
        typer.echo(f"  {MARKS[claim.outcome]:<13} {claim.name:<20} {claim.detail}")
    numbers = ", ".join(f"{len(found.named(outcome))} {outcome}" for outcome in ("passed", "failed", "not possible"))
    typer.echo(f"{found.verdict}: {numbers}")
