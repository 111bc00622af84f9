"""``yolofleet registry promote``, ``rollback`` and ``history``: which version an alias points to, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import Device, JsonOption, TrackingUri, print_result
from yolofleet.cli.proof import ValidationData
from yolofleet.cli.registry import reachable_registry
from yolofleet.core.errors import EXIT_DONE, EXIT_WORK_FAILED, UserError
from yolofleet.core.terminal import note

if TYPE_CHECKING:
    from yolofleet.registry.alias_history import AliasChange
    from yolofleet.registry.promotion import GateReport
    from yolofleet.specs.tracking import NotifySpec

Name = Annotated[str, typer.Argument(metavar="NAME", help="The registered model.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]


def promote(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", help="NAME/VERSION or NAME@ALIAS; NAME alone with --version.", show_default=False
        ),
    ],
    version: Annotated[
        int | None, typer.Option("--version", help="Number of the version, unless VERSION has it.")
    ] = None,
    to: Annotated[str, typer.Option("--to", "--alias", help="The alias to point to it.")] = "champion",
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="YAML with the gates, path or URL. Default: proof, known training data, AP against the champion.",
        ),
    ] = None,
    reason: Reason = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the gates and change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote even if gates fail; needs --reason.")] = False,
    data: ValidationData = None,
    device: Device = "auto",
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> int:
    """Point an alias to a version if it passes the gates; exit code 1 if it does not, or if another one was faster."""
    from yolofleet.cli.progress import show_progress
    from yolofleet.evaluation.detector import select_device
    from yolofleet.registry import promotion
    from yolofleet.specs.promotion import PromotionPolicy
    from yolofleet.storage import open_file

    if force and not reason:
        raise UserError("--force needs --reason: the history records why the gates were ignored")
    gates = PromotionPolicy.load(open_file(policy)) if policy is not None else PromotionPolicy()
    if gates.notify is not None:
        from yolofleet.tracking.notifications import check_addresses

        check_addresses(gates.notify)
    torch_device = select_device(device, "--device")
    uri = reachable_registry(tracking_uri)
    name, number = _version_of(reference, version, uri)
    with show_progress("evaluating") as on_images:
        report = promotion.check_gates(uri, name, number, to, gates, torch_device, data=data, on_images=on_images)
    wanted = (report.passed or force) and not dry_run
    change = promotion.promote(uri, report, reason, forced=force) if wanted else None
    document = {**report.document(), "promoted": change is not None}
    print_result(document, _format_promotion(report, change, dry_run), as_json=as_json)
    if change is not None and gates.notify is not None:
        _notify_of_champion(gates.notify, report, "\n".join(_format_promotion(report, change, dry_run)))
    return EXIT_DONE if change is not None or (dry_run and report.passed) else EXIT_WORK_FAILED


def _version_of(reference: str, number: int | None, tracking_uri: str) -> tuple[str, int]:
    """Return the name and number of the version to promote.

    Raises:
        UserError: The arguments name none, or two.
    """
    from yolofleet.registry.versions import find_version, parse_reference

    name, alias, inside = parse_reference(reference)
    if number is not None and (alias or inside):
        raise UserError(f"{reference} --version {number}: gives the version twice; leave one of them out")
    if number is None and alias is not None:
        return name, find_version(tracking_uri, reference).number
    if (chosen := inside if number is None else number) is None:
        raise UserError(f"{reference}: names no version to promote; write {name}/3, {name}@candidate or --version 3")
    return name, chosen


def _notify_of_champion(spec: NotifySpec, report: GateReport, lines: str) -> None:
    from yolofleet.tracking.notifications import Notification, notify

    title = f"yolofleet: {report.version.uri} is @{report.alias} now"
    notify(spec, Notification("champion", title, lines, report.version.uri), lambda kind, **fields: None)


def rollback(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="The alias to point back.")] = "champion",
    reason: Reason = "",
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias back to the version before; a second rollback undoes the first one."""
    from yolofleet.registry.promotion import roll_back

    change = roll_back(reachable_registry(tracking_uri), name, alias, reason)
    line = f"models:/{name}/{change.version} is @{alias} again, version {change.previous} was"
    print_result(asdict(change), [line], as_json=as_json)


def history(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="The alias.")] = "champion",
    tracking_uri: TrackingUri = None,
    as_json: JsonOption = False,
) -> None:
    """Show which version an alias pointed to and when, the newest first."""
    from yolofleet.registry.alias_history import alias_changes
    from yolofleet.registry.versions import ModelTags, list_versions

    uri = reachable_registry(tracking_uri)
    list_versions(uri, name)  # raises where there is no such model
    tags, aliases = ModelTags(uri, name).read()
    changes = alias_changes(tags, aliases, alias)[::-1]
    print_result([asdict(change) for change in changes], map(_format_change, changes), as_json=as_json)
    current = aliases.get(alias)
    if as_json:
        return
    if current is None:
        note(f"nothing is @{alias} now")
    elif not changes or changes[0].version != current:
        note(f"@{alias} points to version {current} now; this was not done by yolofleet")


def _format_change(change: AliasChange) -> str:
    before = f"after version {change.previous}" if change.previous is not None else "the first"
    forced = ", gates overruled" if change.forced else ""
    why = f": {change.reason}" if change.reason else ""
    return f"{change.time}  version {change.version} ({change.action}{forced}, {before}) by {change.by}{why}"


def _format_promotion(report: GateReport, change: AliasChange | None, dry_run: bool) -> Iterator[str]:
    for gate in report.gates:
        yield f"  {'open' if gate.passed else 'CLOSED':<7} {gate.name:<17} {gate.detail}"
    if change is not None:
        before = f", version {change.previous} was" if change.previous is not None else ""
        overruled = " in spite of closed gates" if change.forced else ""
        yield f"{report.version.uri} is @{report.alias} now{overruled}{before}"
    elif dry_run and report.passed:
        yield f"{report.version.uri} would become @{report.alias}"
    else:
        yield f"{report.version.uri} does not become @{report.alias}"
