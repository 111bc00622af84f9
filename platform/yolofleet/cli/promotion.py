"""``yolofleet registry promote``, ``rollback`` and ``history``: which version an alias points to, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.proof import Data, Device
from yolofleet.cli.registry import AsJson, TrackingUri, reachable_registry

if TYPE_CHECKING:
    from yolofleet.registry.alias_history import Reign
    from yolofleet.registry.promotion import Examination

Name = Annotated[str, typer.Argument(help="The registered model.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]


def promote(
    name: Name,
    version: Annotated[int, typer.Option("--version", help="The version to promote.")],
    to: Annotated[str, typer.Option("--to", help="The alias to point to it.")] = "champion",
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="YAML file with the gates. Default: proof, lineage, AP against the champion."),
    ] = None,
    reason: Reason = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the gates and change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote in spite of closed gates; needs --reason.")] = False,
    data: Data = None,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> int:
    """Point an alias to a version that passes the gates; exit code 1 if it does not, or if another was first."""
    from yolofleet.cli.evaluate import counting
    from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED, UserError
    from yolofleet.evaluation.detector import select_device
    from yolofleet.registry import promotion
    from yolofleet.specs.promotion import PromotionPolicy

    if force and not reason:
        raise UserError("--force needs --reason: the history keeps why the gates were overruled")
    gates = PromotionPolicy.load(policy) if policy is not None else PromotionPolicy()
    chosen = select_device(device, "--device")
    uri = reachable_registry(tracking_uri)
    with counting() as on_images:
        examined = promotion.examine(uri, name, version, to, gates, chosen, data=data, on_images=on_images)
    wanted = (examined.passed or force) and not dry_run
    reign = promotion.promote(uri, examined, reason, forced=force) if wanted else None
    if as_json:
        typer.echo(json.dumps({**examined.document(), "promoted": reign is not None}, indent=2))
    else:
        _show(examined, reign, dry_run)
    return EXIT_DONE if reign is not None or (dry_run and examined.passed) else EXIT_WORK_FAILED


def rollback(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="The alias to point back.")] = "champion",
    reason: Reason = "",
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias back to the version that it pointed to before; a second rollback takes the first one back."""
    from dataclasses import asdict

    from yolofleet.registry.promotion import roll_back

    reign = roll_back(reachable_registry(tracking_uri), name, alias, reason)
    if as_json:
        typer.echo(json.dumps(asdict(reign), indent=2))
    else:
        typer.echo(f"models:/{name}/{reign.version} is @{alias} again, version {reign.previous} was")


def history(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="The alias.")] = "champion",
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Show which version an alias pointed to and when, the newest first."""
    from dataclasses import asdict

    from yolofleet.registry.alias_history import reigns
    from yolofleet.registry.versions import ModelTags, list_versions

    uri = reachable_registry(tracking_uri)
    list_versions(uri, name)
    tags, aliases = ModelTags(uri, name).read()
    entries = reigns(tags, aliases, alias)[::-1]
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        before = f"after version {entry.previous}" if entry.previous is not None else "the first"
        forced = ", gates overruled" if entry.forced else ""
        why = f": {entry.reason}" if entry.reason else ""
        typer.echo(f"{entry.time}  version {entry.version} ({entry.action}{forced}, {before}) by {entry.by}{why}")
    current = aliases.get(alias)
    if current is None:
        typer.echo(f"nothing is @{alias} now", err=True)
    elif not entries or entries[0].version != current:
        typer.echo(f"@{alias} points to version {current} now, which something else than yolofleet did", err=True)


def _show(examined: Examination, reign: Reign | None, dry_run: bool) -> None:
    for gate in examined.gates:
        typer.echo(f"  {'open' if gate.passed else 'CLOSED':<7} {gate.name:<17} {gate.detail}")
    if reign is not None:
        before = f", version {reign.previous} was" if reign.previous is not None else ""
        overruled = " in spite of closed gates" if reign.forced else ""
        typer.echo(f"{examined.version.uri} is @{examined.alias} now{overruled}{before}")
    elif dry_run and examined.passed:
        typer.echo(f"{examined.version.uri} would become @{examined.alias}")
    else:
        typer.echo(f"{examined.version.uri} does not become @{examined.alias}")
