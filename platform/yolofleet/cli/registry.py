"""``yolofleet registry``: detectors in the MLflow Model Registry, put there and found again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yolofleet.registry.lineage import Lineage
    from yolofleet.registry.versions import Version

MOST_SHARDS_SHOWN = 5

app = typer.Typer(help="Register, list, show and promote detectors in the MLflow Model Registry.", no_args_is_help=True)

TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow server or database. Default: MLFLOW_TRACKING_URI, else the database beside the runs.",
        show_default=False,
    ),
]
JudgedOn = Annotated[
    str | None,
    typer.Option("--data", help="Judge it on this dataset and register what it is worth.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]


@app.command("register")
def register(
    model: Annotated[str, typer.Argument(help="A run directory (path or s3:// URL) or a detector package folder.")],
    name: Annotated[str, typer.Option("--name", help="Name of the registered model; made if need be.")],
    alias: Annotated[str, typer.Option("--alias", help="Alias that points to the new version.")] = "candidate",
    data: JudgedOn = None,
    device: Annotated[str, typer.Option("--device", help="Where to judge it: auto, cpu, cuda or cuda:N.")] = "auto",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment that keeps it.")] = "yolofleet",
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Register a detector: its weights, its inference code and what is known of it."""
    from tempfile import TemporaryDirectory

    from yolofleet.core.errors import UserError
    from yolofleet.core.file_names import DETECTOR_CARD_NAME
    from yolofleet.registry.evaluation_record import judged_evidence, judged_manifests, judged_package
    from yolofleet.registry.register import register_detector, register_run
    from yolofleet.storage import open_storage
    from yolofleet.tracking.mlflow_store import check_reachable
    from yolofleet.tracking.run_directory import RunDirectory

    storage = open_storage(model)
    uri = _registry_uri(tracking_uri, model)
    check_reachable(uri)
    if storage.exists(DETECTOR_CARD_NAME):
        with TemporaryDirectory(prefix="yolofleet-package-") as folder:
            package = _local_package(model, Path(folder))
            judged = judged_package(package, data, device) if data is not None else None
            version = register_detector(
                package,
                name,
                uri,
                experiment=experiment,
                evidence=judged_evidence(judged),
                judged=judged,
                manifests=judged_manifests(data),
                alias=alias,
            )
    elif data is not None:
        raise UserError(f"{model} is a run, which was judged when it ended: --data is for detector packages")
    else:
        version = register_run(RunDirectory(storage), name, uri, experiment=experiment, alias=alias)
    _print_version(version, as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A published checkpoint (.pt); nothing in it is executed.")],
    model: Annotated[str, typer.Option("--model", help="The model it belongs to, e.g. yolov7.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the registered model; default: --model.")] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", help="COCO annotations that name the classes; default: COCO's 80.")
    ] = None,
    alias: Annotated[str, typer.Option("--alias", help="Alias that points to the new version.")] = "candidate",
    data: JudgedOn = None,
    device: Annotated[str, typer.Option("--device", help="Where to judge it: auto, cpu, cuda or cuda:N.")] = "auto",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment that keeps it.")] = "yolofleet",
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Register a published checkpoint, in its deployed form."""
    from tempfile import TemporaryDirectory

    from yolofleet.registry.evaluation_record import judged_evidence, judged_manifests, judged_package
    from yolofleet.registry.import_checkpoint import package_checkpoint
    from yolofleet.registry.register import register_detector
    from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri

    uri = tracking_uri or find_tracking_uri(None)
    check_reachable(uri)
    with TemporaryDirectory(prefix="yolofleet-package-") as folder:
        evidence = package_checkpoint(file, model, Path(folder), annotations=classes)
        judged = judged_package(Path(folder), data, device) if data is not None else None
        version = register_detector(
            Path(folder),
            name or Path(model).stem,
            uri,
            experiment=experiment,
            evidence={**evidence, **judged_evidence(judged)},
            judged=judged,
            manifests=judged_manifests(data),
            alias=alias,
        )
    _print_version(version, as_json)


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only versions of this registered model.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Only versions that used this data: digest of a manifest or a shard, or its start."
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """List the registered versions, the newest first."""
    from yolofleet.registry.lineage import PARTS, DataUse, uses_of
    from yolofleet.registry.versions import list_versions

    uri = reachable_registry(tracking_uri)
    uses = uses_of(uri, data, name) if data is not None else [DataUse(v, ()) for v in list_versions(uri, name)]
    if as_json:
        used = [{"data": list(use.parts)} if data is not None else {} for use in uses]
        _print_json([{**use.version.document(), **more} for use, more in zip(uses, used, strict=True)])
        return
    words = dict(zip(PARTS, ("trained on it", "judged on it"), strict=True))
    for use in uses:
        version = use.version
        aliases = f"  @{' @'.join(version.aliases)}" if version.aliases else ""
        how = f"  {' and '.join(words[part] for part in use.parts)}" if use.parts else ""
        typer.echo(f"{version.uri}{aliases}{_figures(version)}{how}")
    if not uses:
        typer.echo("nothing is registered yet" if data is None else f"no version used data {data}", err=True)


@app.command("show")
def show(
    reference: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION; models:/ may lead.")],
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a version: aliases, figures, and where it comes from down to the shards."""
    from yolofleet.registry.lineage import find_lineage
    from yolofleet.registry.versions import find_version

    uri = reachable_registry(tracking_uri)
    version = find_version(uri, reference)
    lineage = find_lineage(uri, version)
    if as_json:
        _print_json({**version.document(), "lineage": lineage.document()})
        return
    _print_version(version, as_json=False)
    _print_lineage(lineage)


def reachable_registry(given: str | None) -> str:
    """Return the store that a command shall use, known to answer."""
    from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri

    uri = find_tracking_uri(given)
    check_reachable(uri)
    return uri


def _registry_uri(given: str | None, model: str) -> str:
    """Return the store to register in: with nothing said, the one beside the run, made if need be."""
    import os

    from yolofleet.tracking.mlflow_store import default_tracking_uri, find_tracking_uri

    parent = model.rstrip("/").rpartition("/")[0] or "."
    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_tracking_uri(parent) or find_tracking_uri()


def _local_package(model: str, folder: Path) -> Path:
    """Return the package's folder, downloaded into ``folder`` if it is remote."""
    from yolofleet.core.file_names import DETECTOR_CARD_NAME
    from yolofleet.storage import open_storage

    storage = open_storage(model)
    index = storage.local_path(DETECTOR_CARD_NAME)
    if index is not None:
        return index.parent
    for entry in storage.list():
        storage.download(entry.key, folder / entry.key)
    return folder


def _figures(version: Version) -> str:
    shown = [f"{key} {version.facts[f'figures.{key}']}" for key in ("AP", "AP50") if f"figures.{key}" in version.facts]
    return f"  {', '.join(shown)}" if shown else ""


def _print_version(version: Version, as_json: bool) -> None:
    if as_json:
        _print_json(version.document())
        return
    aliases = " ".join(f"@{alias}" for alias in version.aliases) or "none"
    typer.echo(f"{version.uri}\n  aliases: {aliases}\n  run: {version.run_id or 'none'}\n  digest: {version.digest}")
    for key, value in version.facts.items():
        typer.echo(f"  {key}: {value}")


def _print_lineage(lineage: Lineage) -> None:
    typer.echo("lineage")
    typer.echo(f"  run: {lineage.run_id or 'none'} {lineage.run_directory or ''}".rstrip())
    typer.echo(f"  job: {f'sha256 {lineage.job_sha256}' if lineage.job_sha256 else 'not recorded'}")
    for source in lineage.data:
        typer.echo(f"  {source.part}: manifest {source.manifest_sha256} {source.url or ''}".rstrip())
        if source.shards is None:
            typer.echo("    the manifest is not in the version: its shards are not known")
            continue
        for name, sha256 in source.shards[:MOST_SHARDS_SHOWN]:
            typer.echo(f"    shard {name}: {sha256}")
        if len(source.shards) > MOST_SHARDS_SHOWN:
            typer.echo(f"    and {len(source.shards) - MOST_SHARDS_SHOWN} more shards; --json shows all")
    for generation, parent in enumerate(lineage.parents):
        typer.echo(f"  {'parent' if generation == 0 else 'its parent'}: {parent}")


def _print_json(document: Any) -> None:
    import json

    typer.echo(json.dumps(document, indent=2))
